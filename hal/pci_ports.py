"""The seams between our code and PCI Express: one function, its parts, and the bus it is on.

Ref: PCI Express Base Specification (config space, AER, DPC, links); the kernel's
Documentation/driver-api/vfio.rst and Documentation/ABI/testing/sysfs-bus-pci, which the Linux
backend goes through. Habits as in `hal.ports`: offsets and sizes are bytes, handles are for
`Reactor.watch`, everything is called on the loop's thread, errors are `HalError`.

A device that vanishes answers every read with all ones. So a read of all ones is checked against
config space, whose vendor id can't be FFFFh while the device is there, and `DeviceGone` is raised
when it is; a register that really holds all ones is given as it is. After `DeviceGone` everything
of that function raises it, and `close` still releases all that was held.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol, Self

from hal.errors import Refused
from hal.ports import Buffer, Done

CONFIG_BYTES: Final = 4096  # of a PCI Express function; 256 of a conventional one
PAGE_BYTES: Final = 4096  # what DMA buffers are multiples of
_ADDRESS: Final = re.compile(
    r"(?:([0-9a-fA-F]{4,8}):)?([0-9a-fA-F]{2}):([0-9a-fA-F]{2})\.([0-7])"
)  # the kernel writes a domain with at least four digits (VMD domains have more)


@dataclass(frozen=True, slots=True, order=True)
class PciAddress:
    """Where a function is: "0000:3b:00.0". Its bus number may change with the next boot."""

    domain: int
    bus: int
    device: int
    function: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """From "0000:3b:00.0" or "3b:00.0" (domain 0). Raises Refused."""
        found = _ADDRESS.fullmatch(text)
        if found is None or int(found[3], 16) > 31:
            raise Refused(
                f"PCI address {text[:40]!r}: want DDDD:BB:DD.F in hexadecimal, e.g. 0000:3b:00.0"
            )
        return cls(int(found[1] or "0", 16), int(found[2], 16), int(found[3], 16), int(found[4]))

    def __str__(self) -> str:
        return f"{self.domain:04x}:{self.bus:02x}:{self.device:02x}.{self.function:x}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PciRegion:
    """A BAR (index 0 to 5) or the expansion ROM (6), as the backend offers it."""

    index: int
    size_bytes: int
    readable: bool
    writable: bool
    mappable: bool  # in one piece; otherwise `map` makes each access a call to the kernel


class InterruptKind(Enum):
    INTX = "intx"  # one level-triggered line, masked by the host at each interrupt
    MSI = "msi"
    MSIX = "msix"


class Mmio(Protocol):
    """One mapped region. Offsets and widths are checked: Refused outside it or unaligned.

    Each access is one access of exactly that width, in program order.
    """

    @property
    def size_bytes(self) -> int: ...

    def read32(self, offset: int) -> int:
        """Raises DeviceGone for all ones from a device that is not there."""
        ...

    def write32(self, offset: int, value: int) -> None: ...

    def read64(self, offset: int) -> int:
        """Raises DeviceGone for all ones from a device that is not there."""
        ...

    def write64(self, offset: int, value: int) -> None: ...

    def barrier(self) -> None:
        """Nothing passes it in either direction, device memory included; combined writes are
        flushed. A posted write is still only known to have arrived after a read."""
        ...

    def copy_to(self, offset: int, data: Buffer) -> None:
        """Copy by aligned accesses; offset and length are multiples of 4."""
        ...

    def copy_from(self, offset: int, length: int) -> bytes:
        """Copy by aligned accesses; multiples of 4. Raises DeviceGone if it holds nothing but
        ones and the device is not there."""
        ...

    def close(self) -> None: ...


class DmaBuffer(Protocol):
    """Pinned memory that the device reaches at `iova`. Whole pages, zeroed."""

    @property
    def iova(self) -> int: ...

    @property
    def size_bytes(self) -> int: ...

    @property
    def view(self) -> memoryview: ...

    def close(self) -> None:
        """The device can't reach it any more when this returns; views of it must be gone."""
        ...


class Interrupt(Protocol):
    """One interrupt vector. `handle` is ready while interrupts wait to be cleared."""

    @property
    def handle(self) -> int: ...

    def clear(self) -> int:
        """How many came since the last `clear`; 0 is possible. Raises InterruptStorm when they
        come faster than the limit: the vector is masked then, until `unmask`."""
        ...

    def mask(self) -> None:
        """None comes through any more; what the device raises meanwhile may be lost."""
        ...

    def unmask(self) -> None:
        """Let them come again. INTx needs it after each one, when the device has been told to
        take its line back: the host masks a level-triggered line as soon as it is raised."""
        ...

    def close(self) -> None: ...


class ConfigSpace(Protocol):
    """Config space of one function. Little-endian; offsets are aligned to the width."""

    def read_config(self, offset: int, width: int) -> int:
        """`width` is 1, 2 or 4 bytes. All ones are given as they are."""
        ...

    def write_config(self, offset: int, width: int, value: int) -> None: ...


class PciEventKind(Enum):
    ADDED = "added"
    REMOVED = "removed"  # it is gone, orderly or not
    BOUND = "bound"  # a driver was bound to it, or taken off it
    LINK = "link"  # its link came up, went down, or changed speed or width
    SLOT = "slot"  # presence or power of a slot changed
    AER_CORRECTABLE = "aer_correctable"
    AER_NONFATAL = "aer_nonfatal"
    AER_FATAL = "aer_fatal"
    DPC = "dpc"  # a port has contained an error: what is below it is cut off
    RECOVERING = "recovering"  # the kernel has begun to recover from an error (AER, DPC)
    RECOVERED = "recovered"  # the kernel's recovery ended well
    LOST = "lost"  # and so it did not
    REMOVE_WANTED = "remove_wanted"  # the host waits for us to close this function
    OVERFLOW = "overflow"  # events were lost: scan again


@dataclass(frozen=True, slots=True, kw_only=True)
class PciEvent:
    """Something happened to a function. `count` is how many of them this one stands for."""

    kind: PciEventKind
    address: PciAddress | None  # None: of OVERFLOW, and of a slot with nothing in it
    slot: str = ""
    count: int = 1
    text: str = ""  # evidence, in the words of whoever told


class PciFunction(ConfigSpace, Protocol):
    """One function that is ours: its driver in the kernel only passes it through."""

    @property
    def address(self) -> PciAddress: ...

    def regions(self) -> Sequence[PciRegion]:
        """Those that exist."""
        ...

    def map(self, index: int, at_least_bytes: int = 0) -> Mmio:
        """Map a region, at most once at a time. Raises Absent for one that this function doesn't
        have and Unavailable for one that is smaller than `at_least_bytes`."""
        ...

    def dma(self, size_bytes: int, address_bits: int = 64) -> DmaBuffer:
        """A buffer of whole pages at an address that fits so many bits (a device's DMA mask).
        Raises Refused (size), StoreFull (no address or no memory that may be pinned is left)."""
        ...

    def interrupts(self, kind: InterruptKind, count: int) -> Sequence[Interrupt]:
        """Enable so many vectors of one kind; the one set must be closed before the next is
        made. Raises Unavailable when the function has fewer."""
        ...

    def on_event(self, call: Callable[[PciEvent], None]) -> None:
        """REMOVE_WANTED (close it soon: the host waits) and AER_* of this function."""
        ...

    def reset(self) -> None:
        """Reset this function alone. Registers are as after power-on, config space is restored.
        Blocks for the time that the device needs (100 ms and more): use `submit_reset` on a loop
        that others share."""
        ...

    def submit_reset(self, deadline_ns: int, done: Done[None]) -> None:
        """`reset`, off the loop's thread."""
        ...

    def close(self) -> None:
        """Release everything, in whatever order its parts were closed before; twice is fine."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PciLink:
    """A link as it was trained, and what the port could do. Speeds in MT/s, 0 for no link."""

    speed_mts: int
    width: int
    max_speed_mts: int
    max_width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AerCounts:
    """Errors that this function's AER capability has told since it was found."""

    correctable: int = 0
    nonfatal: int = 0
    fatal: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PciDevice:
    """One function as a scan found it."""

    address: PciAddress
    vendor_id: int
    device_id: int
    subsystem_vendor_id: int
    subsystem_device_id: int
    class_code: int  # 24 bits: base class, subclass, programming interface
    revision: int
    driver: str  # "" for none
    iommu_group: int | None
    numa_node: int | None
    parent: PciAddress | None  # the bridge above it; None on a root bus
    link: PciLink | None  # None for a conventional function
    slot: str  # the physical slot that it is in; "" for none
    bar_bytes: tuple[int, ...]  # sizes of BAR 0 to 5, 0 where there is none
    aer: AerCounts | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PciSlot:
    """A hot-plug slot. None where the slot's driver doesn't say."""

    name: str
    domain: int
    bus: int  # of the function in it
    device: int
    powered: bool | None
    present: bool | None
    speed_text: str = ""  # as the kernel words it, e.g. "32.0 GT/s PCIe"


class PciBus(Protocol):
    """All functions of the host. Scanning reads small files only; binding runs a driver's code
    and may take seconds, so a loop that others share uses `submit_bind`."""

    def scan(self) -> Sequence[PciDevice]:
        """All functions, in the order of their addresses."""
        ...

    def submit_scan(self, deadline_ns: int, done: Done[Sequence[PciDevice]]) -> None:
        """`scan`, off the loop's thread (0.2 ms a function)."""
        ...

    def config(self, address: PciAddress) -> bytes:
        """Config space as it is now, as much as we may read. Absent for an unknown function."""
        ...

    def slots(self) -> Sequence[PciSlot]:
        """All hot-plug slots, in the order of their names."""
        ...

    def power_slot(self, name: str, on: bool) -> None:
        """Ask a slot's hot-plug driver; takes seconds. Absent for an unknown slot."""
        ...

    def on_event(self, call: Callable[[PciEvent], None]) -> None:
        """Tell what happens from now on; the last one set is told."""
        ...

    def bind(self, address: PciAddress, driver: str) -> None:
        """Take the function from its driver and give it to this one, and to no other until
        `restore`. Bound already is a success."""
        ...

    def submit_bind(
        self, address: PciAddress, driver: str, deadline_ns: int, done: Done[None]
    ) -> None:
        """`bind`, off the loop's thread."""
        ...

    def restore(self) -> None:
        """Give every function back to the driver that it had before our first `bind`."""
        ...

    def submit_restore(self, deadline_ns: int, done: Done[None]) -> None:
        """`restore`, off the loop's thread."""
        ...

    def close(self) -> None:
        """Stop telling events; restores nothing."""
        ...
