"""Telemetry of a CNM and of its instances. Specification: protocol/SPEC.md section 8.

A field whose bit in `present` is clear could not be read: it is sent as 0 and means nothing.
Fast paths as in `protocol.apf.lease`, and for the same reason.
"""

import struct
from dataclasses import dataclass
from typing import ClassVar, Final

from protocol.apf.fields import (
    HEADER_BYTES,
    I32,
    INSTANCE,
    INSTANCE_MAX_BYTES,
    U8,
    U16,
    U32,
    U64,
    UUID,
    Body,
    Wire,
    bad_body,
    bitmap,
    layout,
    list8,
    record,
    unencodable,
)

TELEMETRY_FIELDS: Final = (  # bit n of `present` is the n-th of these
    "cpu_milli",
    "memory_bytes",
    "nvme_bytes",
    "link_tx_bytes",
    "link_rx_bytes",
    "temp_mdegc",
    "power_mw",
)
USAGE_FIELDS: Final = ("cpu_us", "memory_bytes", "memory_peak_bytes", "io_bytes", "pids")
USAGE_MAX: Final = 32  # instances in one notice; more are sent in more notices of the same seq

TELEMETRY_WIRE: Final = layout(
    "boot_id" / UUID,
    "seq" / U32,
    "present" / bitmap(U16, len(TELEMETRY_FIELDS)),
    "cpu_milli" / U32,  # in use, thousandths of a core
    "memory_bytes" / U64,  # in use
    "nvme_bytes" / U64,  # in use
    "link_tx_bytes" / U64,  # ever sent, from the CNM
    "link_rx_bytes" / U64,
    "temp_mdegc" / I32,
    "power_mw" / U32,
)
_TELEMETRY: Final = struct.Struct("<16sIHIQQQQiI")
_TELEMETRY_BYTES: Final = HEADER_BYTES + _TELEMETRY.size


@dataclass(frozen=True, slots=True, kw_only=True)
class Telemetry(Body):
    OPCODE: ClassVar[int] = 0x0301
    WIRE: ClassVar[Wire] = TELEMETRY_WIRE
    boot_id: bytes
    seq: int
    present: int
    cpu_milli: int = 0
    memory_bytes: int = 0
    nvme_bytes: int = 0
    link_tx_bytes: int = 0
    link_rx_bytes: int = 0
    temp_mdegc: int = 0
    power_mw: int = 0

    @classmethod
    def of(cls, *, boot_id: bytes, seq: int, **readings: int | None) -> "Telemetry":
        """From what could be read; None or left out means that it could not."""
        known = {name: value for name, value in readings.items() if value is not None}
        present = sum(1 << TELEMETRY_FIELDS.index(name) for name in known)
        return cls(boot_id=boot_id, seq=seq, present=present, **known)

    def reading(self, name: str) -> int | None:
        """The value of one of TELEMETRY_FIELDS, or None where it could not be read."""
        bit = 1 << TELEMETRY_FIELDS.index(name)
        return int(getattr(self, name)) if self.present & bit else None

    def to_bytes(self) -> bytes:
        """As the declaration builds it."""
        if len(self.boot_id) != 16:
            raise unencodable(Telemetry, f"boot_id of {len(self.boot_id)} bytes")
        if self.present >> len(TELEMETRY_FIELDS):
            raise unencodable(Telemetry, f"reserved bits in present {self.present:#x}")
        try:
            return _TELEMETRY.pack(
                self.boot_id,
                self.seq,
                self.present,
                self.cpu_milli,
                self.memory_bytes,
                self.nvme_bytes,
                self.link_tx_bytes,
                self.link_rx_bytes,
                self.temp_mdegc,
                self.power_mw,
            )
        except struct.error as exc:
            raise unencodable(Telemetry, str(exc)) from exc


class _TelemetryTwin(Body):
    __slots__ = Telemetry.__slots__

    def __init__(self, values: tuple[bytes, int, int, int, int, int, int, int, int, int]) -> None:
        (
            self.boot_id,
            self.seq,
            self.present,
            self.cpu_milli,
            self.memory_bytes,
            self.nvme_bytes,
            self.link_tx_bytes,
            self.link_rx_bytes,
            self.temp_mdegc,
            self.power_mw,
        ) = values


def telemetry_of(message: bytes) -> Telemetry:
    """The body of a whole message whose header was checked. Raises ProtocolError."""
    if len(message) != _TELEMETRY_BYTES:
        raise bad_body(Telemetry, message, f"{len(message)} bytes, {_TELEMETRY_BYTES} expected")
    twin = _TelemetryTwin(_TELEMETRY.unpack_from(message, HEADER_BYTES))
    if twin.present >> len(TELEMETRY_FIELDS):
        raise bad_body(Telemetry, message, f"reserved bits in present {twin.present:#x}")
    twin.__class__ = Telemetry  # type: ignore[assignment]  # same slots; see protocol.apf.lease
    return twin  # type: ignore[return-value]


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceUsage:
    instance: str
    generation: int
    present: int
    cpu_us: int = 0  # since its start
    memory_bytes: int = 0
    memory_peak_bytes: int = 0
    io_bytes: int = 0
    pids: int = 0

    @classmethod
    def of(cls, *, instance: str, generation: int, **readings: int | None) -> "InstanceUsage":
        """From what could be read; None or left out means that it could not."""
        known = {name: value for name, value in readings.items() if value is not None}
        present = sum(1 << USAGE_FIELDS.index(name) for name in known)
        return cls(instance=instance, generation=generation, present=present, **known)

    def reading(self, name: str) -> int | None:
        """The value of one of USAGE_FIELDS, or None where it could not be read."""
        return int(getattr(self, name)) if self.present >> USAGE_FIELDS.index(name) & 1 else None


INSTANCE_USAGE_WIRE: Final = record(
    InstanceUsage,
    "instance" / INSTANCE,
    "generation" / U64,
    "present" / bitmap(U8, len(USAGE_FIELDS)),
    "cpu_us" / U64,
    "memory_bytes" / U64,
    "memory_peak_bytes" / U64,
    "io_bytes" / U64,
    "pids" / U32,
)
INSTANCE_TELEMETRY_WIRE: Final = layout(
    "boot_id" / UUID,
    "seq" / U32,
    "entries" / list8(INSTANCE_USAGE_WIRE, USAGE_MAX),
)
_USAGE_HEAD: Final = struct.Struct("<16sIB")
_USAGE_TAIL: Final = struct.Struct("<QBQQQQI")


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceTelemetry(Body):
    OPCODE: ClassVar[int] = 0x0302
    WIRE: ClassVar[Wire] = INSTANCE_TELEMETRY_WIRE
    boot_id: bytes
    seq: int
    entries: tuple[InstanceUsage, ...] = ()


class _UsageTwin:
    __slots__ = InstanceUsage.__slots__

    def __init__(self, instance: str, values: tuple[int, int, int, int, int, int, int]) -> None:
        self.instance = instance
        (
            self.generation,
            self.present,
            self.cpu_us,
            self.memory_bytes,
            self.memory_peak_bytes,
            self.io_bytes,
            self.pids,
        ) = values


def instance_telemetry_of(message: bytes) -> InstanceTelemetry:
    """The body of a whole message whose header was checked. Raises ProtocolError."""
    try:
        boot_id, seq, count = _USAGE_HEAD.unpack_from(message, HEADER_BYTES)
        offset = HEADER_BYTES + _USAGE_HEAD.size
        if count > USAGE_MAX:
            raise bad_body(InstanceTelemetry, message, f"{count} entries, at most {USAGE_MAX}")
        entries = []
        for _ in range(count):
            length = message[offset]
            name = str(message[offset + 1 : offset + 1 + length], "utf8")
            if not 0 < length <= INSTANCE_MAX_BYTES or not name.isprintable():
                raise bad_body(InstanceTelemetry, message, f"instance name {name!r}", offset=offset)
            offset += 1 + length
            twin = _UsageTwin(name, _USAGE_TAIL.unpack_from(message, offset))
            if twin.present >> len(USAGE_FIELDS):
                raise bad_body(InstanceTelemetry, message, "reserved bits", offset=offset + 8)
            offset += _USAGE_TAIL.size
            twin.__class__ = InstanceUsage  # type: ignore[assignment]
            entries.append(twin)
    except (struct.error, IndexError, UnicodeDecodeError) as exc:
        raise bad_body(InstanceTelemetry, message, str(exc)) from exc
    if offset != len(message):
        raise bad_body(InstanceTelemetry, message, "bytes after the end", offset=offset)
    return InstanceTelemetry(boot_id=boot_id, seq=seq, entries=tuple(entries))  # type: ignore[arg-type]
