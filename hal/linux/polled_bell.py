"""Doorbells of a window over PCI: polled, where the device has none (ivshmem-plain), and by MMIO.

The polled one counts its rings in the window's header page (`hal.bar_layout`); the far end looks
at that count: often for a while after a ring, and seldom when all is quiet. A look is one read
across the fabric, about 1 us on a real link.
"""

import contextlib
import os
from collections.abc import Callable
from typing import Final

from hal.errors import HalError, Unavailable
from hal.linux.pci_window import BarWindow
from hal.pci_ports import Interrupt, Mmio
from hal.ports import Reactor

MS: Final = 1_000_000
LOOK_BUSY_NS: Final = 1 * MS
LOOK_QUIET_NS: Final = 20 * MS
BUSY_FOR_NS: Final = 100 * MS  # after the last ring, ours or theirs
WORD: Final = 0xFFFF_FFFF


class PolledBell:
    """`hal.ports.Doorbell` without a device's help. `handle` is an eventfd of our own."""

    def __init__(self, window: BarWindow, reactor: Reactor) -> None:
        self._window, self._reactor = window, reactor
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._closed = False
        self._failed: HalError | None = None
        try:
            self._heard = window.ring_count(window.far)
            self._rung = window.ring_count(window.side)
        except HalError:
            os.close(self._fd)
            raise
        self._busy_until_ns = reactor.now_ns() + BUSY_FOR_NS
        self._cancel: Callable[[], None] = reactor.call_at(reactor.now_ns(), self._look)

    @property
    def handle(self) -> int:
        return self._fd

    def ring(self) -> None:
        self._check()
        self._rung = (self._rung + 1) & WORD or 1  # never 0: that is what a dead device may read
        self._window.set_ring_count(self._rung)
        self._stay_awake()

    def clear(self) -> None:
        self._check()
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._fd)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._cancel()
        os.close(self._fd)

    def _check(self) -> None:
        if self._closed:
            raise Unavailable("the doorbell was closed")
        if self._failed is not None:
            raise self._failed

    def _stay_awake(self) -> None:
        now_ns = self._reactor.now_ns()
        sleeps = now_ns >= self._busy_until_ns
        self._busy_until_ns = now_ns + BUSY_FOR_NS
        if sleeps:
            self._cancel()
            self._cancel = self._reactor.call_at(now_ns + LOOK_BUSY_NS, self._look)

    def _look(self) -> None:
        if self._closed:
            return
        now_ns = self._reactor.now_ns()
        try:
            count = self._window.ring_count(self._window.far)
        except HalError as exc:
            self._failed = exc  # said by the next `clear`, to which this wakes the user
            os.eventfd_write(self._fd, 1)
            return
        if count != self._heard:
            self._heard = count
            self._busy_until_ns = now_ns + BUSY_FOR_NS
            os.eventfd_write(self._fd, 1)
        period_ns = LOOK_BUSY_NS if now_ns < self._busy_until_ns else LOOK_QUIET_NS
        self._cancel = self._reactor.call_at(now_ns + period_ns, self._look)


class MmioBell:
    """`hal.ports.Doorbell` of a device: rung by one store to a register, heard by an interrupt."""

    def __init__(self, mmio: Mmio, offset: int, value: int, interrupt: Interrupt) -> None:
        """`offset` and `value`: the register that rings the far end, e.g. ivshmem's Doorbell at
        12 of BAR 0, peer in the upper half (QEMU's docs/specs/ivshmem-spec)."""
        self._mmio, self._offset, self._value = mmio, offset, value
        self._interrupt = interrupt
        self._closed = False

    @property
    def handle(self) -> int:
        return self._interrupt.handle

    def ring(self) -> None:
        self._check()
        self._mmio.barrier()  # what it tells of was written before
        self._mmio.write32(self._offset, self._value)

    def clear(self) -> None:
        self._check()
        self._interrupt.clear()

    def close(self) -> None:
        """The mapping and the function stay their owner's."""
        if not self._closed:
            self._closed = True
            self._interrupt.close()

    def _check(self) -> None:
        if self._closed:
            raise Unavailable("the doorbell was closed")
