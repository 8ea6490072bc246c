"""A slot's window and doorbells as the keeper holds them, and the faults that it can arm.

- `cut`: the window's gate is shut (hal/linux/shm.py): for both ends the link is down, at once and
  altogether: reads give all ones, writes are lost. Both are rung, then and when it is healed, so
  that they look. What was written before lies there again after it; what was written during it is
  gone. A cut is of the link: it stays over power cycles.
- `corrupt`: every millisecond `flips` bytes of the data area of the half that the *CNM reads* get
  one bit inverted, at places from a seeded generator. What is not in flight then is not hurt.
"""

import contextlib
import mmap
import os
import random
from typing import Final

from hal.linux.shm import GATE_BYTES, GATE_OPEN, GATE_SHUT, create_window_memfd
from hal.local.libc import punch_hole
from hal.local.miniloop import MiniLoop

_TICK_NS: Final = 1_000_000
_DATA_OFFSET_AT: Final = 0x10  # u32: where a half's data area begins (protocol/SPEC.md 14)
FLIPS_LIMIT: Final = 4096


class SharedWindow:
    """Lives as long as the keeper; zeroed at each power on."""

    def __init__(self, loop: MiniLoop, name: str, size_bytes: int) -> None:
        self._loop, self.size_bytes = loop, size_bytes
        self.memfd = create_window_memfd(name, size_bytes)
        flags = os.EFD_NONBLOCK | os.EFD_CLOEXEC
        self.to_cnm_fd = os.eventfd(0, flags)
        self.to_card_fd = os.eventfd(0, flags)
        self._gate = mmap.mmap(self.memfd, GATE_BYTES, offset=size_bytes)
        self._half: mmap.mmap | None = None  # the half that the CNM reads, once corruption is armed
        self._flips = 0
        self._ticking = False
        self._random = random.Random(0)  # noqa: S311  (no secret)

    @property
    def cut(self) -> bool:
        return self._gate[0] != GATE_OPEN

    def fds_for_card(self) -> list[int]:
        """memfd, the doorbell that the card hears, the one that it rings."""
        return [self.memfd, self.to_card_fd, self.to_cnm_fd]

    def fds_for_cnm(self) -> list[int]:
        return [self.memfd, self.to_cnm_fd, self.to_card_fd]

    def clear(self) -> None:
        """Zero it and forget the rings: memory of a CNM that has just got power."""
        punch_hole(self.memfd, 0, self.size_bytes)
        for fd in (self.to_cnm_fd, self.to_card_fd):
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(fd)

    def set_cut(self, cut: bool) -> None:
        self._gate[0] = GATE_SHUT if cut else GATE_OPEN
        for fd in (self.to_card_fd, self.to_cnm_fd):
            with contextlib.suppress(BlockingIOError):  # it is ringing already
                os.eventfd_write(fd, 1)

    def set_corrupt(self, flips: int, seed: int) -> None:
        """`flips` bytes now and every millisecond; 0 ends it."""
        if flips and self._half is None:
            self._half = mmap.mmap(self.memfd, self.size_bytes // 2)
        self._flips = flips
        self._random = random.Random(seed)  # noqa: S311  (no secret)
        if flips and not self._ticking:
            self._ticking = True
            self._tick()

    def close(self) -> None:
        self._flips = 0
        self._gate.close()
        self._let_go()
        for fd in (self.memfd, self.to_cnm_fd, self.to_card_fd):
            os.close(fd)

    def _let_go(self) -> None:
        """A mapping holds a descriptor: none stays behind when nothing is corrupted."""
        if self._half is not None:
            self._half.close()
            self._half = None

    def _tick(self) -> None:
        if not self._flips:
            self._ticking = False
            self._let_go()
            return
        half, size_bytes = self._half, self.size_bytes // 2
        assert half is not None
        raw = half[_DATA_OFFSET_AT : _DATA_OFFSET_AT + 4]
        begin = min(int.from_bytes(raw, "little") or mmap.PAGESIZE, size_bytes - 1)
        for _ in range(self._flips):
            half[self._random.randrange(begin, size_bytes)] ^= 1 << self._random.randrange(8)
        self._loop.call_later(_TICK_NS, self._tick)
