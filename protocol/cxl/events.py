"""Event records: what happened to a component, and how its logs are read and cleared.

CXL 3.1: 8.2.9.2.1 (record formats), 8.2.9.2.2 and .3 (get and clear), 7.6.8 (those of a switch).
A record is 128 bytes: 48 that all have, 80 that depend on its UUID.
"""

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Any, ClassVar, Final, TypeAlias

import construct as cs

from protocol.cxl.event_bodies import (
    Dram,
    GeneralMedia,
    MemoryModule,
    PhysicalSwitch,
    VirtualSwitch,
)
from protocol.cxl.layout import (
    UUID_BYTES,
    Layout,
    Wire,
    count_of,
    counted,
    member,
    nested,
    reserved,
    uuid_bytes,
)

RECORD_BYTES: Final = 128
BODY_BYTES: Final = 80
RECORDS_HEADER_BYTES: Final = 32  # of the answer of 0100h
NO_HANDLE: Final = 0  # handles begin at 1
CLEAR_MAX: Final = 255  # handles in one clear command

GENERAL_MEDIA_UUID: Final = uuid_bytes("fbcd0a77-c260-417f-85a9-088b1621eba6")
DRAM_UUID: Final = uuid_bytes("601dcbb3-9c06-4eab-b8af-4e9bfb5c9624")
MEMORY_MODULE_UUID: Final = uuid_bytes("fe927475-dd59-4339-a586-79bab113b774")
PHYSICAL_SWITCH_UUID: Final = uuid_bytes("77cf9271-9c02-470b-9fe4-bc7b75f2da97")
VIRTUAL_SWITCH_UUID: Final = uuid_bytes("40d26425-3396-4c4d-a5da-3d47263af425")

Body: TypeAlias = GeneralMedia | Dram | MemoryModule | PhysicalSwitch | VirtualSwitch
BODIES: Final[dict[bytes, type[Body]]] = {
    GENERAL_MEDIA_UUID: GeneralMedia,
    DRAM_UUID: Dram,
    MEMORY_MODULE_UUID: MemoryModule,
    PHYSICAL_SWITCH_UUID: PhysicalSwitch,
    VIRTUAL_SWITCH_UUID: VirtualSwitch,
}
RECORD_NAMES: Final = {
    GENERAL_MEDIA_UUID: "general_media",
    DRAM_UUID: "dram",
    MEMORY_MODULE_UUID: "memory_module",
    PHYSICAL_SWITCH_UUID: "physical_switch",
    VIRTUAL_SWITCH_UUID: "virtual_switch",
    uuid_bytes("8dc44363-0c96-4710-b7bf-04bb99534c3f"): "mld_port",
    uuid_bytes("ca95afa7-f183-4018-8c2f-95268e101a2a"): "dynamic_capacity",
    uuid_bytes("e71f3a40-2d29-4092-8a39-4d1c966c7c65"): "memory_sparing",
}


class EventLog(IntEnum):
    """8.2.9.2.2"""

    INFORMATIONAL = 0
    WARNING = 1
    FAILURE = 2
    FATAL = 3
    DYNAMIC_CAPACITY = 4


class RecordFlag(IntFlag):
    """8.2.9.2.1, table 8-43; bits 1:0 are the severity, as the logs are numbered."""

    PERMANENT = 1 << 2
    MAINTENANCE_NEEDED = 1 << 3
    PERFORMANCE_DEGRADED = 1 << 4
    REPLACEMENT_NEEDED = 1 << 5
    MAINTENANCE_SUBCLASS_VALID = 1 << 6


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRecord(Layout):
    """One record. `data` are the 80 bytes that `body` reads where the UUID is known."""

    uuid: bytes
    length: int = RECORD_BYTES
    flags: int  # bits of RecordFlag, and the severity in 1:0
    handle: int
    related_handle: int = NO_HANDLE
    time_ns: int = 0  # since 1970; 0 where the component's clock was never set
    maintenance_class: int = 0
    maintenance_subclass: int = 0
    data: bytes

    WIRE: ClassVar[Wire] = cs.Struct(
        "uuid" / cs.Bytes(UUID_BYTES),
        "length" / cs.Int8ul,
        "flags" / cs.Int24ul,
        "handle" / cs.Int16ul,
        "related_handle" / cs.Int16ul,
        "time_ns" / cs.Int64ul,
        "maintenance_class" / cs.Int8ul,
        "maintenance_subclass" / cs.Int8ul,
        "reserved" / reserved(14),
        "data" / cs.Bytes(BODY_BYTES),
    )

    @property
    def severity(self) -> EventLog:
        return EventLog(self.flags & 3)

    @property
    def kind(self) -> str | None:
        """ "dram"; None for a UUID that is not known."""
        return RECORD_NAMES.get(self.uuid)

    @property
    def body(self) -> Body | None:
        """None for a kind without a layout here; its `data` stays visible."""
        found = BODIES.get(self.uuid)
        return None if found is None else found.from_bytes(self.data)


@dataclass(frozen=True, slots=True, kw_only=True)
class GetEventsRequest(Layout):
    """Request of 0100h, 8.2.9.2.2."""

    log: EventLog | int

    WIRE: ClassVar[Wire] = cs.Struct("log" / member(EventLog), cs.Terminated)


class RecordsFlag(IntFlag):
    """8.2.9.2.2"""

    OVERFLOW = 1 << 0
    MORE = 1 << 1


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRecords(Layout):
    """Answer of 0100h, 8.2.9.2.2: the oldest records. They stay until they are cleared."""

    flags: int  # bits of RecordsFlag
    overflow_count: int = 0  # events that found no room; 65535 stands for more
    first_overflow_ns: int = 0
    last_overflow_ns: int = 0
    records: tuple[EventRecord, ...]
    extra: bytes = b""

    WIRE: ClassVar[Wire] = cs.Struct(
        "flags" / cs.Int8ul,
        "reserved" / reserved(1),
        "overflow_count" / cs.Int16ul,
        "first_overflow_ns" / cs.Int64ul,
        "last_overflow_ns" / cs.Int64ul,
        "count" / count_of(cs.Int16ul, "records"),
        "reserved2" / reserved(10),
        "records" / counted(cs.this.count, nested(EventRecord)),
        "extra" / cs.GreedyBytes,
    )

    @property
    def more(self) -> bool:
        return self.flags & RecordsFlag.MORE != 0

    @property
    def overflow(self) -> bool:
        return self.flags & RecordsFlag.OVERFLOW != 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClearEventsRequest(Layout):
    """Request of 0101h, 8.2.9.2.3. Handles in the order in which the records came."""

    log: EventLog | int
    clear_all: bool = False  # then no handles; only allowed when the log has overflowed
    handles: tuple[int, ...] = ()

    WIRE: ClassVar[Wire] = cs.Struct(
        "log" / member(EventLog),
        "clear_all" / cs.ExprAdapter(cs.Int8ul, lambda v, _: bool(v & 1), lambda v, _: int(v)),
        "count" / count_of(cs.Int8ul, "handles"),
        "reserved" / reserved(3),
        "handles" / counted(cs.this.count, cs.Int16ul),
        cs.Terminated,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class InterruptPolicy(Layout):
    """0102h's answer, 0103h's request, 8.2.9.2.4: bits 1:0 0 none, 1 MSI/MSI-X, 2 firmware;
    bits 7:4 the vector (of an answer)."""

    informational: int
    warning: int
    failure: int
    fatal: int
    dynamic_capacity: int | None = None  # since CXL 3.0

    WIRE: ClassVar[Wire] = cs.Struct(
        "informational" / cs.Int8ul,
        "warning" / cs.Int8ul,
        "failure" / cs.Int8ul,
        "fatal" / cs.Int8ul,
        "dynamic_capacity" / cs.Optional(cs.Int8ul),
    )


def record_of(uuid: bytes, body: Body, **header: Any) -> EventRecord:
    """A record around a body. Raises `ValueError` for a body that is not this UUID's."""
    if BODIES.get(uuid) is not type(body):
        raise ValueError(f"UUID {uuid.hex()} is not that of {type(body).__name__}")
    return EventRecord(uuid=uuid, data=body.to_bytes(), **header)
