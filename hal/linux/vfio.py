"""PCI functions through VFIO: `hal.pci_ports.PciFunction` on container, group and device.

Ref: Documentation/driver-api/vfio.rst, include/uapi/linux/vfio.h; PCI Local Bus Specification 3.0
section 6.2 for the command register.

    _vfio_cdef.py   layouts and numbers of the ioctls
    vfio_group.py   the way to a device, and what is missing on it
    vfio_iommu.py   device addresses and their mappings; the seam for iommufd
    vfio_dma.py     pinned buffers
    vfio_region.py  BARs, mapped or through the kernel
    vfio_irq.py     interrupts as eventfds

What is not done: no I/O port access but through the kernel, no peer-to-peer DMA between functions,
no power states, no SR-IOV of a function that is passed through.
"""

import contextlib
import os
import struct
from collections.abc import Callable, Sequence
from typing import Final

from hal.errors import DeviceGone, HalError, Refused, Unavailable
from hal.interrupt_rate import RateLimit
from hal.linux import _vfio_cdef as vfio
from hal.linux.oserror import hal_error
from hal.linux.vfio_dma import BUFFER_LIMIT_BYTES, VfioDmaBuffer
from hal.linux.vfio_group import Places, VfioFds, group_of, open_device, open_fds
from hal.linux.vfio_iommu import IommuSpace, Type1Space
from hal.linux.vfio_irq import (
    INDEX,
    InterruptSet,
    VfioInterrupt,
    disable_irqs,
    irq_count,
    set_irqs,
)
from hal.linux.vfio_region import (
    CalledRegion,
    MappedRegion,
    RegionInfo,
    check_bar,
    region_info,
)
from hal.linux.vfio_reset import reset_device
from hal.linux.workers import Check, Workers
from hal.pci_ports import InterruptKind, PciAddress, PciEvent, PciEventKind, PciRegion
from hal.ports import Done, Event, Reactor

REGIONS: Final = 7  # BAR 0 to 5 and the ROM
COMMAND: Final = 0x04  # PCI 3.0, 6.2.2
COMMAND_MEMORY: Final = 1 << 1
COMMAND_MASTER: Final = 1 << 2
VENDOR_ID: Final = 0x00
NO_VENDOR: Final = 0xFFFF  # never given to anybody: nothing answers
_WORD: Final = {1: struct.Struct("<B"), 2: struct.Struct("<H"), 4: struct.Struct("<I")}


class _Group:
    """An open group with its container, for as long as a function of it is open."""

    def __init__(self, fds: VfioFds) -> None:
        self.fd = fds.group_fd
        self.space = Type1Space(fds.container_fd, fds.iommu)
        self.users = 0

    def close(self) -> None:
        """Group before container: then no mapping is left that a device could use."""
        os.close(self.fd)
        self.space.close()


class VfioHost:
    """Opens functions. One a process: functions of one IOMMU group share its translations, and
    the kernel gives a group to one opener only."""

    def __init__(
        self,
        reactor: Reactor,
        *,
        places: Places = Places(),  # noqa: B008  it is frozen
        limit: RateLimit = RateLimit(),  # noqa: B008  it is frozen
    ) -> None:
        self.reactor, self.limit = reactor, limit
        self._places = places
        self._groups: dict[int, _Group] = {}  # one for each IOMMU group in use

    def open(self, address: PciAddress) -> "VfioFunction":
        """Raises Absent and Unavailable with what is missing on the way."""
        number = group_of(address, self._places)
        group = self._groups.get(number)
        if group is None:
            return self.adopt(address, open_fds(address, self._places), fresh=True)
        return self._function(address, number, open_device(group.fd, address))

    def adopt(self, address: PciAddress, fds: VfioFds, *, fresh: bool = False) -> "VfioFunction":
        """From descriptors that somebody keeps for us (DESIGN D12); they are ours from here.
        What another process has left mapped and enabled is taken away, the device is not reset."""
        if fds.group in self._groups:
            os.close(fds.container_fd)
            os.close(fds.group_fd)
        else:
            group = _Group(fds)
            if not fresh:
                group.space.unmap_all()
            self._groups[fds.group] = group
        return self._function(address, fds.group, fds.device_fd)

    def group_fds(self) -> dict[int, int]:
        """The descriptors of the groups that are open: a hot reset names them all."""
        return {number: group.fd for number, group in self._groups.items()}

    def _function(self, address: PciAddress, number: int, device_fd: int) -> "VfioFunction":
        group = self._groups[number]
        group.users += 1

        def release() -> None:
            group.users -= 1
            if not group.users:
                del self._groups[number]
                group.close()

        try:
            return VfioFunction(self, address, device_fd, group.space, release)
        except HalError:
            os.close(device_fd)
            release()
            raise


class VfioFunction:
    """`hal.pci_ports.PciFunction`; made by `VfioHost`."""

    def __init__(
        self,
        host: VfioHost,
        address: PciAddress,
        device_fd: int,
        space: IommuSpace,
        release: Callable[[], None],
    ) -> None:
        self.address = address
        self.space = space
        self.blocked = ""  # why nothing may be touched now
        self._gone = False
        self._host, self._fd, self._release = host, device_fd, release
        self._on_event: Callable[[PciEvent], None] = lambda _event: None
        self._maps: dict[int, MappedRegion | CalledRegion] = {}
        self._buffers: list[VfioDmaBuffer] = []
        self._vectors: InterruptSet | None = None
        self._notices: list[int] = []  # eventfds of errors and of the host's requests
        self._workers: Workers | None = None
        self._closed = False
        info = vfio.struct("vfio_device_info")
        try:
            vfio.call(device_fd, vfio.VFIO_DEVICE_GET_INFO, info)
        except OSError as exc:
            raise hal_error(exc, f"{address}: VFIO_DEVICE_GET_INFO") from exc
        if not info.flags & vfio.DEVICE_FLAGS_PCI:
            raise Unavailable(f"{address}: not a PCI device (flags {info.flags:#x})")
        self._can_reset = bool(info.flags & vfio.DEVICE_FLAGS_RESET)
        config = region_info(device_fd, vfio.PCI_CONFIG_REGION)
        if config is None:
            raise Unavailable(f"{address}: the kernel shows no config space")
        self._config: RegionInfo = config
        for kind in InterruptKind:  # left over from a process that was killed
            with contextlib.suppress(OSError):
                disable_irqs(device_fd, INDEX[kind])
        self._set_command(COMMAND_MEMORY)
        self._listen(vfio.PCI_REQ_IRQ, PciEventKind.REMOVE_WANTED, "the host wants to remove it")
        self._listen(vfio.PCI_ERR_IRQ, PciEventKind.AER_NONFATAL, "an uncorrectable error")

    # --- config space ---

    @property
    def config_bytes(self) -> int:
        """256, or 4096 of a PCI Express function."""
        return self._config.region.size_bytes

    def read_config(self, offset: int, width: int) -> int:
        form = self._config_form(offset, width)
        if self.blocked:
            self.refuse()
        try:
            data = os.pread(self._fd, width, self._config.file_offset + offset)
        except OSError as exc:
            raise hal_error(exc, f"{self.address}: config read at {offset:#x}") from exc
        if len(data) != width:
            raise Unavailable(f"{self.address}: config read at {offset:#x} gave {len(data)} B")
        value: int = form.unpack(data)[0]
        return value

    def write_config(self, offset: int, width: int, value: int) -> None:
        form = self._config_form(offset, width)
        if self.blocked:
            self.refuse()
        if not 0 <= value < 1 << 8 * width:
            raise Refused(f"{self.address}: config value {value:#x} does not fit {width} B")
        try:
            os.pwrite(self._fd, form.pack(value), self._config.file_offset + offset)
        except OSError as exc:
            raise hal_error(exc, f"{self.address}: config write at {offset:#x}") from exc

    # --- regions, DMA, interrupts ---

    def regions(self) -> Sequence[PciRegion]:
        self._check_open()
        found = (region_info(self._fd, index) for index in range(REGIONS))
        return [info.region for info in found if info is not None]

    def map(self, index: int, at_least_bytes: int = 0) -> MappedRegion | CalledRegion:
        self._check_open()
        if self.blocked:
            self.refuse()
        if not 0 <= index < REGIONS:
            raise Refused(f"{self.address}: region {index}; want 0 to {REGIONS - 1}")
        if index in self._maps:
            raise Refused(f"{self.address}: BAR {index} is mapped already; close that first")
        name = f"{self.address} BAR {index}"
        info = check_bar(name, region_info(self._fd, index), at_least_bytes)
        kind = MappedRegion if info.region.mappable else CalledRegion
        made = kind(self._fd, info, self, name, lambda: self._forget_map(index))
        self._maps[index] = made
        return made

    def dma(self, size_bytes: int, address_bits: int = 64) -> VfioDmaBuffer:
        self._check_open()
        if self.blocked:
            self.refuse()
        if size_bytes > BUFFER_LIMIT_BYTES:
            raise Refused(f"a DMA buffer of {size_bytes} B; at most {BUFFER_LIMIT_BYTES} B")
        self._set_command(COMMAND_MASTER)
        made = VfioDmaBuffer(self.space, size_bytes, address_bits, self._buffers.remove)
        self._buffers.append(made)
        return made

    def interrupts(self, kind: InterruptKind, count: int) -> Sequence[VfioInterrupt]:
        self._check_open()
        if self.blocked:
            self.refuse()
        if self._vectors is not None:
            raise Refused(f"{self._vectors.name} is enabled; close its vectors first")
        if kind is not InterruptKind.INTX:
            self._set_command(COMMAND_MASTER)  # a message is a write of the device's own
        self._vectors = InterruptSet(
            self._fd,
            kind,
            count,
            name=str(self.address),
            now_ns=self._host.reactor.now_ns,
            limit=self._host.limit,
            on_close=self._forget_vectors,
        )
        return list(self._vectors.vectors)

    def on_event(self, call: Callable[[PciEvent], None]) -> None:
        self._on_event = call

    # --- reset ---

    def reset(self) -> None:
        self._begin_reset()
        try:
            self._reset()
        finally:
            self._end_reset()

    def submit_reset(self, deadline_ns: int, done: Done[None]) -> None:
        self._begin_reset()

        def finish(result: HalError | None) -> None:
            self._end_reset()
            done(result)

        def job(_check: Check) -> None:
            self._reset()

        if self._workers is None:
            self._workers = Workers(self._host.reactor, threads=1, waiting_limit=0)
        self._workers.submit(f"reset of {self.address}", job, deadline_ns, finish)

    def _begin_reset(self) -> None:
        self._check_open()
        if self.blocked:
            self.refuse()
        self.blocked = "it is being reset"

    def _end_reset(self) -> None:
        if not self._gone:
            self.blocked = ""

    def _reset(self) -> None:
        reset_device(self.address, self._fd, self._can_reset, self._host.group_fds())

    # --- presence ---

    def refuse(self) -> None:
        """For regions too: raise what `blocked` means."""
        if self._gone:
            raise DeviceGone(f"{self.address}: {self.blocked}")
        raise Unavailable(f"{self.address}: {self.blocked}")

    def check_present(self, what: str) -> None:
        """For regions: a read gave all ones. Raises DeviceGone unless config space answers."""
        try:
            data = os.pread(self._fd, 2, self._config.file_offset + VENDOR_ID)
        except OSError:
            data = b""
        if len(data) == 2 and int.from_bytes(data, "little") != NO_VENDOR:
            return
        self._gone = True
        self.blocked = f"gone: {what} gave all ones, and so does its vendor id"
        self._tell(PciEventKind.REMOVED, self.blocked)
        self.refuse()

    # --- the end ---

    def close(self) -> None:
        if self._closed:
            return
        if self._workers is not None:
            self._workers.close()  # a reset that runs is waited for
        self._closed = True
        for eventfd in self._notices:
            self._host.reactor.unwatch(eventfd)
        with contextlib.ExitStack() as last:  # whatever fails, the descriptors are closed
            last.callback(self._release)
            last.callback(os.close, self._fd)
            for eventfd in self._notices:
                last.callback(os.close, eventfd)
            for part in (*self._maps.values(), *self._buffers):
                last.callback(_close_part, part)
            if self._vectors is not None:
                last.callback(self._vectors.close)
        self.blocked = self.blocked or "it was closed"

    def _forget_map(self, index: int) -> None:
        self._maps.pop(index, None)

    def _forget_vectors(self) -> None:
        self._vectors = None

    def _check_open(self) -> None:
        if self._closed:
            raise Refused(f"{self.address}: it was closed")

    def _set_command(self, bit: int) -> None:
        command = self.read_config(COMMAND, 2)
        if not command & bit:
            self.write_config(COMMAND, 2, command | bit)

    def _config_form(self, offset: int, width: int) -> struct.Struct:
        form = _WORD.get(width)
        size = self.config_bytes
        if form is None or offset % width or not 0 <= offset <= size - width:
            raise Refused(
                f"{self.address}: config access of {width} B at {offset:#x}; want 1, 2 or 4 B, "
                f"aligned, within {size} B"
            )
        self._check_open()
        return form

    def _listen(self, index: int, kind: PciEventKind, text: str) -> None:
        if not irq_count(self._fd, index):
            return  # a conventional function tells no errors
        eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        try:
            set_irqs(self._fd, index, vfio.IRQ_SET_ACTION_TRIGGER, 0, [eventfd])
        except OSError as exc:
            os.close(eventfd)
            raise hal_error(exc, f"{self.address}: listening for {kind.value}") from exc
        self._notices.append(eventfd)

        def noticed(_events: Event) -> None:
            with contextlib.suppress(BlockingIOError):
                count = os.eventfd_read(eventfd)
                self._tell(kind, text, count)

        self._host.reactor.watch(eventfd, Event.READ, noticed)

    def _tell(self, kind: PciEventKind, text: str, count: int = 1) -> None:
        event = PciEvent(kind=kind, address=self.address, count=count, text=text)
        self._host.reactor.post(lambda: self._on_event(event))


def _close_part(part: MappedRegion | CalledRegion | VfioDmaBuffer) -> None:
    with contextlib.suppress(HalError):  # unmapping fails when the group is gone: so is the mapping
        part.close()
