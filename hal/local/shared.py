"""A slot's window and doorbells as the keeper holds them, and the faults that it can arm.

Shared memory has no wire that could be cut, so a fault is what the memory would look like:

- `cut`: both halves' identity words (0x00-0x47: magic, sizes, session, echo; SPEC.md, window
  layout) read as zero, and rings are eaten. An end sees a peer without magic or session, so it
  must not trust anything in that half. Every millisecond it is done again, because an end may
  write its own half; what the ends wrote last comes back when the cut is healed.
- `corrupt`: every millisecond `flips` bytes of the data area of the half that the *CNM reads* get
  one bit inverted, at places from a seeded generator. What is not in flight then is not hurt.
"""

import contextlib
import mmap
import os
import random
import struct
from typing import Final

from hal.linux.shm import create_window_memfd
from hal.local.libc import punch_hole
from hal.local.miniloop import MiniLoop

_TICK_NS: Final = 1_000_000
_WORDS: Final = struct.Struct("<18I")
_IDENTITY_BYTES: Final = _WORDS.size
_DATA_OFFSET_AT: Final = 0x10  # u32: where a half's data area begins
FLIPS_LIMIT: Final = 4096


class SharedWindow:
    """Lives as long as the keeper; zeroed at each power on."""

    def __init__(self, loop: MiniLoop, name: str, size_bytes: int) -> None:
        self._loop, self.size_bytes = loop, size_bytes
        self.memfd = create_window_memfd(name, size_bytes)
        flags = os.EFD_NONBLOCK | os.EFD_CLOEXEC
        self.to_cnm_fd = os.eventfd(0, flags)
        self.to_card_fd = os.eventfd(0, flags)
        self.cut = False
        self.flips = 0
        self._map: mmap.mmap | None = None
        self._kept: dict[int, bytes] = {}  # half's offset -> identity words that were cut off
        self._ticking = False
        self._random = random.Random(0)  # noqa: S311  (no secret)

    def fds_for_card(self) -> list[int]:
        """memfd, the doorbell that the card hears, the one that it rings."""
        return [self.memfd, self.to_card_fd, self.to_cnm_fd]

    def fds_for_cnm(self) -> list[int]:
        return [self.memfd, self.to_cnm_fd, self.to_card_fd]

    def clear(self) -> None:
        """Zero it and forget the rings: memory of a CNM that has just got power."""
        self._kept.clear()
        punch_hole(self.memfd, 0, self.size_bytes)
        self._eat_rings()

    def set_cut(self, cut: bool) -> None:
        self.cut = cut
        if cut:
            self._arm()
            return
        memory = self._memory()
        for offset, words in self._kept.items():
            memory[offset : offset + len(words)] = words
        self._kept.clear()
        for fd in (self.to_card_fd, self.to_cnm_fd):  # a ring is only a hint: look again
            with contextlib.suppress(BlockingIOError):
                os.eventfd_write(fd, 1)

    def set_corrupt(self, flips: int, seed: int) -> None:
        """`flips` bytes a millisecond; 0 ends it."""
        self.flips = flips
        self._random = random.Random(seed)  # noqa: S311  (no secret)
        if flips:
            self._arm()

    def close(self) -> None:
        self.cut, self.flips = False, 0
        if self._map is not None:
            self._map.close()
            self._map = None
        for fd in (self.memfd, self.to_cnm_fd, self.to_card_fd):
            os.close(fd)

    def _arm(self) -> None:
        if not self._ticking:
            self._ticking = True
            self._tick()

    def _tick(self) -> None:
        if not (self.cut or self.flips):
            self._ticking = False
            return
        if self.cut:
            self._cut_identity()
            self._eat_rings()
        for _ in range(self.flips):
            self._flip()
        self._loop.call_later(_TICK_NS, self._tick)

    def _cut_identity(self) -> None:
        memory, zeros = self._memory(), bytes(_IDENTITY_BYTES)
        for half in (0, self.size_bytes // 2):
            words = memory[half : half + _IDENTITY_BYTES]
            if words != zeros:  # what the owner wrote since the last tick comes over what was kept
                kept = self._kept.get(half, zeros)
                pairs = zip(_WORDS.unpack(words), _WORDS.unpack(kept), strict=True)
                self._kept[half] = _WORDS.pack(*(new or old for new, old in pairs))
                memory[half : half + _IDENTITY_BYTES] = zeros

    def _flip(self) -> None:
        memory, half_bytes = self._memory(), self.size_bytes // 2
        raw = memory[_DATA_OFFSET_AT : _DATA_OFFSET_AT + 4]
        begin = min(int.from_bytes(raw, "little") or mmap.PAGESIZE, half_bytes - 1)
        place = self._random.randrange(begin, half_bytes)
        memory[place] ^= 1 << self._random.randrange(8)

    def _memory(self) -> mmap.mmap:
        if self._map is None:
            self._map = mmap.mmap(self.memfd, self.size_bytes)
        return self._map

    def _eat_rings(self) -> None:
        for fd in (self.to_cnm_fd, self.to_card_fd):
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(fd)
