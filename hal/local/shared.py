"""A slot's window and doorbells as the keeper holds them, and the faults that it can arm.

Shared memory has no wire that could be cut, so a fault is what the memory would look like:

- `cut`: both halves' identity words (0x00-0x47: geometry, session, echo; protocol/SPEC.md 14) read
  as zero: an end sees a peer that is not attached, and must not trust anything in that half. Every
  millisecond it is done again, because an end may write its own half. First both ends are rung, so
  that they look at once; after SETTLE rings are eaten. To heal, both are rung once more, and after
  SETTLE what the ends wrote last comes back: whoever was cut has seen it, however short it was.
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
_SETTLE_NS: Final = 20_000_000
_WORDS: Final = struct.Struct("<18I")
_IDENTITY_BYTES: Final = _WORDS.size
_SESSION_AT: Final = 0x40
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
        self._cutting = False  # from the cut until it is healed
        self._settled_ns = 0
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
        self._settled_ns = self._loop.now_ns() + _SETTLE_NS
        if cut:
            self._cutting = True
            self._arm()
        if self._cutting:
            self._cut_identity()
            self._ring_both()

    def set_corrupt(self, flips: int, seed: int) -> None:
        """`flips` bytes a millisecond; 0 ends it."""
        self.flips = flips
        self._random = random.Random(seed)  # noqa: S311  (no secret)
        if flips:
            self._arm()

    def close(self) -> None:
        self.cut, self.flips, self._cutting = False, 0, False
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
        settled = self._loop.now_ns() >= self._settled_ns
        if self._cutting and not self.cut and settled:
            self._heal()
        if not (self._cutting or self.flips):
            self._ticking = False
            return
        if self._cutting:
            self._cut_identity()
            if self.cut and settled:
                self._eat_rings()
        for _ in range(self.flips):
            self._flip()
        self._loop.call_later(_TICK_NS, self._tick)

    def _heal(self) -> None:
        self._cutting = False
        memory = self._memory()
        for half, words in self._kept.items():
            _write_words(memory, half, 0, words[:_SESSION_AT])
            _write_words(memory, half, _SESSION_AT, words[_SESSION_AT:])  # last: it vouches
        self._kept.clear()
        self._ring_both()

    def _ring_both(self) -> None:
        for fd in (self.to_card_fd, self.to_cnm_fd):
            with contextlib.suppress(BlockingIOError):  # it is ringing already
                os.eventfd_write(fd, 1)

    def _cut_identity(self) -> None:
        memory, zeros = self._memory(), bytes(_IDENTITY_BYTES)
        for half in (0, self.size_bytes // 2):
            words = memory[half : half + _IDENTITY_BYTES]
            if words != zeros:  # what the owner wrote since the last tick comes over what was kept
                kept = self._kept.get(half, zeros)
                pairs = zip(_WORDS.unpack(words), _WORDS.unpack(kept), strict=True)
                self._kept[half] = _WORDS.pack(*(new or old for new, old in pairs))
                _write_words(memory, half, _SESSION_AT, zeros[_SESSION_AT:])  # first: it vouches
                _write_words(memory, half, 0, zeros[:_SESSION_AT])

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


def _write_words(memory: mmap.mmap, half: int, offset: int, words: bytes) -> None:
    memory[half + offset : half + offset + len(words)] = words
