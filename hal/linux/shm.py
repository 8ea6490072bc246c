"""A window in a sealed memfd, and a doorbell of two eventfds (DESIGN D11, D12).

The memfd holds two halves of equal size: the card writes the first, the CNM the second. An end
maps its own half for writing and the other's read-only, so that not even a bug of ours writes
where only the peer may. A memfd that could shrink would kill its readers with SIGBUS, so one
without the seals is refused (memfd_create(2), fcntl(2) "File sealing").

Behind the halves lies a page with the *gate*, which both ends only read: while its holder (the
keeper) has it shut, the link of this window is down, as a PCIe device that is gone: reads give all
ones, writes are lost (DESIGN D11). Every access looks at it, so that a cut is a cut at once.

Not modelled: PCIe's posted writes and their order, read latency.
"""

import contextlib
import fcntl
import mmap
import os
from typing import Final, Literal, TypeAlias

from hal import native
from hal.errors import Refused, Unavailable
from hal.ports import Buffer

Side: TypeAlias = Literal["card", "cnm"]

WINDOW_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
WINDOW_MIN_BYTES: Final = 2 * mmap.ALLOCATIONGRANULARITY
WINDOW_MAX_BYTES: Final = 1 << 32
GATE_BYTES: Final = mmap.ALLOCATIONGRANULARITY  # the last page of the memfd; its first byte counts
GATE_OPEN: Final = 0
GATE_SHUT: Final = 1
_ALL_ONES: Final = 0xFFFF_FFFF


def check_window_bytes(size_bytes: int) -> None:
    """Raise Refused unless a window of this size divides into two mappable halves."""
    if not WINDOW_MIN_BYTES <= size_bytes <= WINDOW_MAX_BYTES or size_bytes % WINDOW_MIN_BYTES:
        raise Refused(
            f"a window of {size_bytes} B: wanted a multiple of {WINDOW_MIN_BYTES} B (two halves of "
            f"whole pages), at most {WINDOW_MAX_BYTES} B"
        )


def create_window_memfd(name: str, size_bytes: int) -> int:
    """A zeroed, sealed memfd for `ShmWindow`, the gate open; the caller owns the descriptor."""
    check_window_bytes(size_bytes)
    try:
        fd = os.memfd_create(f"apf-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as exc:
        raise Unavailable(f"memfd_create for window {name}: {exc}") from exc
    try:
        os.ftruncate(fd, size_bytes + GATE_BYTES)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, WINDOW_SEALS)
    except OSError as exc:
        os.close(fd)
        raise Unavailable(f"window {name} of {size_bytes} B: {exc}") from exc
    return fd


class ShmWindow:
    """Window port on a sealed memfd. Takes over the descriptor, also when it refuses it."""

    def __init__(self, memfd: int, side: Side) -> None:
        try:
            self._half_bytes = half_bytes_of(memfd)
            first = mmap.mmap(memfd, self._half_bytes, prot=_prot(side == "card"), offset=0)
            second = mmap.mmap(
                memfd, self._half_bytes, prot=_prot(side == "cnm"), offset=self._half_bytes
            )
            gate_at = 2 * self._half_bytes
            self._gate = mmap.mmap(memfd, GATE_BYTES, prot=mmap.PROT_READ, offset=gate_at)
        except OSError as exc:
            raise Unavailable(f"mapping window descriptor {memfd}: {exc}") from exc
        finally:
            os.close(memfd)  # the mappings hold the memory
        self._tx_map, self._rx_map = (first, second) if side == "card" else (second, first)
        self._tx = memoryview(self._tx_map)
        self._rx = memoryview(self._rx_map).toreadonly()
        self._tx_words = native.words(self._tx)
        self._rx_words = native.words(self._rx)
        self._closed = False

    @property
    def tx_bytes(self) -> int:
        return self._half_bytes

    @property
    def rx_bytes(self) -> int:
        return self._half_bytes

    @property
    def pure(self) -> bool:
        """True when the words go without the compiled helper (`hal.native`)."""
        return self._tx_words.pure

    def write(self, offset: int, data: Buffer) -> None:
        if type(data) is bytes:  # the usual chunk, without a view and two calls: 0.5 us of 3
            end = offset + len(data)
            if offset >= 0 and end <= self._half_bytes and not self._closed:
                if self._gate[0] == GATE_OPEN:
                    self._tx[offset:end] = data
                return
        self._check_open()
        source = memoryview(data)
        if source.format != "B" or source.ndim != 1:
            source = source.cast("B")
        self._check_range("write", offset, source.nbytes)
        if self._gate[0] == GATE_OPEN:
            self._tx[offset : offset + source.nbytes] = source

    def read(self, offset: int, length: int) -> memoryview:
        end = offset + length
        if not (0 <= offset <= end <= self._half_bytes) or self._closed:
            self._check_open()
            self._check_range("read", offset, length)
        if self._gate[0] == GATE_OPEN:
            return self._rx[offset:end]
        return memoryview(b"\xff" * length)

    def publish(self, offset: int, value: int) -> None:
        self._check_open()
        if self._gate[0] == GATE_OPEN:
            self._tx_words.store32_release(offset, value)
        else:
            native.check_word(offset, value, self._half_bytes)

    def acquire(self, offset: int) -> int:
        self._check_open()
        value = self._rx_words.load32_acquire(offset)
        return value if self._gate[0] == GATE_OPEN else _ALL_ONES

    def close(self) -> None:
        """Unmap. Views that `read` gave and that still live keep their half mapped until they
        go; nothing of it is left open."""
        if self._closed:
            return
        self._closed = True
        for words in (self._tx_words, self._rx_words):
            words.close()
        for view, mapping in ((self._tx, self._tx_map), (self._rx, self._rx_map)):
            view.release()
            with contextlib.suppress(BufferError):  # a reader's view; unmapped with the last one
                mapping.close()
        self._gate.close()

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("the window was closed")

    def _check_range(self, what: str, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self._half_bytes:
            raise Refused(
                f"{what} of {length} B at offset {offset} is outside the half of "
                f"{self._half_bytes} B; nothing was moved"
            )


class EventfdDoorbell:
    """Doorbell port on two eventfds. Takes over both descriptors.

    Rings coalesce in the counter. Not modelled: death of the far end does not show here, it shows
    on the socket that passed the descriptors.
    """

    def __init__(self, rx_fd: int, tx_fd: int) -> None:
        self._rx_fd, self._tx_fd = rx_fd, tx_fd
        self._closed = False
        for fd in (rx_fd, tx_fd):
            os.set_blocking(fd, False)

    @property
    def handle(self) -> int:
        return self._rx_fd

    def ring(self) -> None:
        if self._closed:
            raise Unavailable("the doorbell was closed")
        with contextlib.suppress(BlockingIOError):  # 2^64 - 2 rings wait: it is ringing already
            os.eventfd_write(self._tx_fd, 1)

    def clear(self) -> None:
        if self._closed:
            raise Unavailable("the doorbell was closed")
        with contextlib.suppress(BlockingIOError):  # nothing had rung
            os.eventfd_read(self._rx_fd)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        os.close(self._rx_fd)
        os.close(self._tx_fd)


def shm_window_from_fds(
    memfd: int, bell_rx: int, bell_tx: int, side: Side
) -> tuple[ShmWindow, EventfdDoorbell]:
    """Window and doorbell from passed descriptors, all of which are taken over."""
    try:
        window = ShmWindow(memfd, side)
    except (Refused, Unavailable):
        os.close(bell_rx)
        os.close(bell_tx)
        raise
    return window, EventfdDoorbell(bell_rx, bell_tx)


def _prot(writable: bool) -> int:
    return mmap.PROT_READ | mmap.PROT_WRITE if writable else mmap.PROT_READ


def half_bytes_of(memfd: int) -> int:
    """What each end may write. Raises Refused unless seals and size are what a window needs."""
    try:
        seals = fcntl.fcntl(memfd, fcntl.F_GET_SEALS)
    except OSError as exc:
        raise Refused(f"descriptor {memfd} is no memfd: {exc}") from exc
    if seals & WINDOW_SEALS != WINDOW_SEALS:
        raise Refused(
            f"memfd {memfd} has seals {seals:#x}, wanted at least {WINDOW_SEALS:#x} (shrink, grow, "
            "seal): a peer that truncates it would kill its reader"
        )
    size_bytes = os.fstat(memfd).st_size - GATE_BYTES
    check_window_bytes(size_bytes)
    return size_bytes // 2
