"""The seams between our code and CXL: a memory device's mailbox, and the bus it hangs on.

Ref: Compute Express Link Specification 3.1, 8.2.8.4 (mailbox), 8.2.9 (commands) and 8.2.4.20 (HDM
decoders); the kernel's include/uapi/linux/cxl_mem.h and Documentation/ABI/testing/sysfs-bus-cxl,
which the Linux backend goes through.

The port carries *commands*: an opcode and a payload go down, a return code and a payload come
back. What the bytes mean is `protocol.cxl`. A return code other than 0 is an answer of the device,
so it stands in the reply; errors are what kept us from getting an answer:

    Unavailable
    +- DriverMissing      no CXL in this kernel, or its driver isn't bound to the device
    +- NotPermitted       we may not open the device
    +- NotOffered         this kernel has no way to send this opcode
    +- Disabled           the kernel knows it, but this device's log of commands lacks it
    +- Claimed            a driver of the kernel keeps this command to itself
    +- RawRefused         a raw command was asked for, and the kernel takes none (of this kind)
    DeviceGone            the device was removed or its driver unbound
    DeadlinePassed        no answer in time; the command may still take effect
    Refused               the sizes are wrong
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from hal.errors import Unavailable
from hal.ports import Done, Window

OPCODE_MAX: Final = 0xFFFF
PAYLOAD_MAX_BYTES: Final = 1 << 20  # the mailbox's Payload Size register: 2^8 to 2^20, 8.2.8.4.3


class DriverMissing(Unavailable):
    """There is no CXL in this kernel, or no driver of it is bound to the device."""


class NotPermitted(Unavailable):
    """We may not open the device."""


class NotOffered(Unavailable):
    """This backend has no way to send this opcode."""


class Disabled(Unavailable):
    """The kernel knows the command, but this device doesn't have it."""


class Claimed(Unavailable):
    """A driver of the kernel keeps this command to itself."""


class RawRefused(Unavailable):
    """No raw command of this opcode is taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CxlCommand:
    """One mailbox command, 8.2.8.4.5."""

    opcode: int  # 16 bits: command set in the high byte
    payload: bytes = b""
    raw: bool = False  # past the kernel's table of commands, where it allows that


@dataclass(frozen=True, slots=True, kw_only=True)
class CxlReply:
    """What the device answered. `payload` is empty where `return_code` is an error."""

    return_code: int  # 8.2.8.4.5.1: 0 is success, 1 a background operation that has begun
    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class CxlMemdevInfo:
    """A memory device as its driver describes it, without asking it anything."""

    name: str  # "mem0"
    address: str  # of the PCI function, "0000:35:00.0"; "" if it is none
    serial: int | None
    firmware_version: str
    payload_max_bytes: int  # of one mailbox command
    volatile_bytes: int
    persistent_bytes: int
    label_bytes: int
    numa_node: int | None
    driver: str  # "cxl_mem"; "" when none is bound


@dataclass(frozen=True, slots=True, kw_only=True)
class CxlPort:
    """A port of the topology: the root, a host bridge, a switch, or a device's endpoint."""

    name: str  # "root0", "port1", "endpoint2"
    parent: str  # name of the port above; "" for a root
    uport: str  # what its upstream side is: "pci0000:34", "0000:35:00.0", "mem0"
    targets: tuple[str, ...]  # what hangs on its downstream ports, by their numbers: "0=..."


@dataclass(frozen=True, slots=True, kw_only=True)
class CxlDecoder:
    """One HDM decoder, or a fixed window of the platform (a root's)."""

    name: str  # "decoder1.0"
    port: str
    start: int  # host physical address; 0 where it decodes nothing
    size_bytes: int
    interleave_ways: int
    interleave_bytes: int
    kind: str  # "root", "switch" or "endpoint"
    mode: str  # of an endpoint's: "ram", "pmem", "none"; of others what it can do: "ram,pmem"
    region: str  # "region0"; "" for none
    locked: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CxlRegion:
    """Host physical memory that decoders map to one or more devices."""

    name: str
    start: int
    size_bytes: int
    mode: str  # "ram", "pmem" or ""
    uuid: str  # "" for none
    committed: bool  # the decoders are set: its memory can be reached
    dax: tuple[str, ...]  # character devices over it, "dax0.0"; empty: it can't be mapped


@dataclass(frozen=True, slots=True, kw_only=True)
class CxlInventory:
    """All that one scan found; each in the order of names."""

    memdevs: tuple[CxlMemdevInfo, ...] = ()
    ports: tuple[CxlPort, ...] = ()
    decoders: tuple[CxlDecoder, ...] = ()
    regions: tuple[CxlRegion, ...] = ()


class CxlMemdev(Protocol):
    """The mailbox of one memory device. Commands are carried out one by one, in order."""

    @property
    def info(self) -> CxlMemdevInfo: ...

    def opcodes(self) -> Sequence[int]:
        """What this backend can send without `raw`, sorted; not all of it need be enabled."""
        ...

    def submit(self, command: CxlCommand, deadline_ns: int, done: Done[CxlReply]) -> None:
        """Send it; errors as in the module's docstring, all of them through `done`."""
        ...

    def close(self) -> None:
        """Twice is fine. What still waits completes with DeviceGone or with its answer."""
        ...


class CxlBus(Protocol):
    """All CXL of the host. Reads small files only."""

    def scan(self) -> CxlInventory:
        """Raises DriverMissing where the kernel has no CXL. No device at all is no error."""
        ...

    def map_region(self, name: str, side: str) -> Window:
        """A committed region as a window: side "a" writes its first half and reads the second,
        "b" the other way round. Raises Absent for an unknown region, Unavailable for one that
        nothing offers for mapping, and says so."""
        ...
