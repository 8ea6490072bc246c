"""Interrupts of a VFIO device as eventfds: enabled, masked, rate limited, and taken away again.

Ref: include/uapi/linux/vfio.h (VFIO_DEVICE_GET_IRQ_INFO, VFIO_DEVICE_SET_IRQS). The kernel masks
INTx by itself at each interrupt (AUTOMASKED). It offers no mask for an MSI: there, a vector is
masked by taking its eventfd away, and unmasked by giving it again, so what the device raises in
between is lost. A device whose MSI capability has no mask bits would go on sending, to an address
that the kernel has cleared, and the IOMMU would tell of each: so MSI as a whole is switched off
while all vectors are masked.
"""

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable, Sequence
from typing import Final

from hal.errors import HalError, InterruptStorm, Refused, Unavailable
from hal.interrupt_rate import InterruptRate, RateLimit
from hal.linux import _vfio_cdef as vfio
from hal.linux.oserror import hal_error
from hal.pci_ports import InterruptKind

INDEX: Final = {
    InterruptKind.INTX: vfio.PCI_INTX_IRQ,
    InterruptKind.MSI: vfio.PCI_MSI_IRQ,
    InterruptKind.MSIX: vfio.PCI_MSIX_IRQ,
}
VECTORS_LIMIT: Final = 2048  # PCI Express Base, MSI-X Table Size
NO_EVENTFD: Final = -1


def irq_count(device_fd: int, index: int) -> int:
    """How many vectors of that index the device has; 0 for an index that it doesn't know."""
    info = vfio.struct("vfio_irq_info", index=index)
    try:
        vfio.call(device_fd, vfio.VFIO_DEVICE_GET_IRQ_INFO, info)
    except OSError as exc:
        if exc.errno == errno.EINVAL:
            return 0
        raise hal_error(exc, f"VFIO_DEVICE_GET_IRQ_INFO {index}") from exc
    count: int = info.count if info.flags & vfio.IRQ_INFO_EVENTFD else 0
    return count


def set_irqs(
    device_fd: int, index: int, action: int, start: int = 0, eventfds: Sequence[int] | None = None
) -> None:
    """One VFIO_DEVICE_SET_IRQS; without eventfds it is of one vector, and has no data.
    Raises OSError."""
    kind = vfio.IRQ_SET_DATA_NONE if eventfds is None else vfio.IRQ_SET_DATA_EVENTFD
    count = 1 if eventfds is None else len(eventfds)
    _set(device_fd, index, kind | action, start, count, eventfds or ())


def disable_irqs(device_fd: int, index: int) -> None:
    """Take all vectors of an index away (a trigger of none). Raises OSError."""
    flags = vfio.IRQ_SET_DATA_NONE | vfio.IRQ_SET_ACTION_TRIGGER
    _set(device_fd, index, flags, 0, 0, ())


def _set(
    device_fd: int, index: int, flags: int, start: int, count: int, eventfds: Sequence[int]
) -> None:
    data = b"".join(fd.to_bytes(4, "little", signed=True) for fd in eventfds)
    head = vfio.ffi.sizeof("struct vfio_irq_set")
    request = bytearray(head + len(data))
    held = vfio.ffi.from_buffer("struct vfio_irq_set *", request, require_writable=True)
    held.argsz, held.flags, held.index = len(request), flags, index
    held.start, held.count = start, count
    vfio.ffi.release(held)
    request[head:] = data
    fcntl.ioctl(device_fd, vfio.VFIO_DEVICE_SET_IRQS, request, True)


class VfioInterrupt:
    """`hal.pci_ports.Interrupt`: one vector of a set."""

    def __init__(self, owner: "InterruptSet", vector: int, rate: InterruptRate) -> None:
        self._owner, self._vector, self._rate = owner, vector, rate
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.masked = False

    @property
    def handle(self) -> int:
        return self._fd

    @property
    def total(self) -> int:
        """All that came since it was made."""
        return self._rate.total

    def clear(self) -> int:
        if self._fd < 0:
            raise Refused(f"{self._owner.name} vector {self._vector}: it was closed")
        try:
            number = os.eventfd_read(self._fd)
        except BlockingIOError:
            return 0
        if self._rate.count(number, self._owner.now_ns()):
            self.mask()
            raise InterruptStorm(
                f"{self._owner.name} vector {self._vector}: {self._rate.text(number)}"
            )
        return number

    def mask(self) -> None:
        if not self.masked:
            self._owner.set_masked(self._vector, self._fd, masked=True)
            self.masked = True

    def unmask(self) -> None:
        if self.masked or self._owner.kind is InterruptKind.INTX:
            self._owner.set_masked(self._vector, self._fd, masked=False)
            self.masked = False

    def close(self) -> None:
        """The last one that is closed disables the set."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            self._owner.closed(self._vector)
            os.close(fd)


class InterruptSet:
    """All vectors of one kind of one device. Held by its function."""

    def __init__(
        self,
        device_fd: int,
        kind: InterruptKind,
        count: int,
        *,
        name: str,
        now_ns: Callable[[], int],
        limit: RateLimit,
        on_close: Callable[[], None],
    ) -> None:
        """Enables them. Raises Unavailable."""
        self._fd, self.kind, self.name = device_fd, kind, f"{name} {kind.value}"
        self.now_ns, self._on_close = now_ns, on_close
        self._index = INDEX[kind]
        has = irq_count(device_fd, self._index)
        if not 1 <= count <= min(has, VECTORS_LIMIT):
            raise Unavailable(f"{self.name}: {count} vectors wanted, this function has {has}")
        self.vectors: list[VfioInterrupt] = []
        try:
            for vector in range(count):
                rate = InterruptRate(limit, now_ns())
                self.vectors.append(VfioInterrupt(self, vector, rate))
            trigger = vfio.IRQ_SET_ACTION_TRIGGER
            set_irqs(device_fd, self._index, trigger, 0, [v.handle for v in self.vectors])
        except OSError as exc:
            for made in self.vectors:
                os.close(made.handle)
            raise self._enable_error(exc) from exc
        self._open = set(range(count))
        self._eventfds = [vector.handle for vector in self.vectors]  # as the kernel has them

    def set_masked(self, vector: int, eventfd: int, *, masked: bool) -> None:
        """For a vector. Raises Unavailable."""
        try:
            if self.kind is InterruptKind.INTX:
                action = vfio.IRQ_SET_ACTION_MASK if masked else vfio.IRQ_SET_ACTION_UNMASK
                set_irqs(self._fd, self._index, action)
            else:
                self._set_message(vector, NO_EVENTFD if masked else eventfd)
        except OSError as exc:
            word = "masking" if masked else "unmasking"
            raise hal_error(exc, f"{self.name} vector {vector}: {word}") from exc

    def _set_message(self, vector: int, eventfd: int) -> None:
        was_on = any(fd != NO_EVENTFD for fd in self._eventfds)
        self._eventfds[vector] = eventfd
        is_on = any(fd != NO_EVENTFD for fd in self._eventfds)
        trigger = vfio.IRQ_SET_ACTION_TRIGGER
        if was_on and is_on:
            set_irqs(self._fd, self._index, trigger, vector, [eventfd])
        elif is_on:
            set_irqs(self._fd, self._index, trigger, 0, self._eventfds)
        elif was_on:
            disable_irqs(self._fd, self._index)

    def closed(self, vector: int) -> None:
        """For a vector, before its eventfd goes."""
        self._open.discard(vector)
        if self._open:  # a device that is gone has none to take away
            with contextlib.suppress(HalError):
                self.set_masked(vector, NO_EVENTFD, masked=True)
            return
        with contextlib.suppress(OSError):
            disable_irqs(self._fd, self._index)
        self._on_close()

    def close(self) -> None:
        for vector in self.vectors:
            vector.close()

    def _enable_error(self, exc: OSError) -> HalError:
        if exc.errno == errno.EBUSY and self.kind is InterruptKind.INTX:
            return Unavailable(
                f"{self.name}: its line is shared with another driver and this function can't mask "
                "it (no INTx disable bit): use MSI"
            )
        return hal_error(exc, f"{self.name}: enabling {len(self.vectors)} vectors")
