"""Commands of a memory device: what it is, its partitions, its labels, its health.

CXL 3.1: 8.2.9.9.1 (identify), 8.2.9.9.2 (capacity and labels), 8.2.9.9.3 (health and alerts).
Capacities are in units of 256 MiB on the wire and stay so in the objects' `*_units`.
"""

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import ClassVar, Final

import construct as cs

from protocol.cxl.layout import Layout, Wire, member, reserved

CAPACITY_UNIT_BYTES: Final = 256 << 20
LIFE_NOT_REPORTED: Final = 0xFF  # percent
TEMPERATURE_NOT_REPORTED: Final = 0x7FFF  # degrees Celsius


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentifyMemoryDevice(Layout):
    """Answer of 4000h, 8.2.9.9.1.1. Event log sizes are in records."""

    firmware_revision: bytes  # 16 bytes of text, padded with zeros
    total_units: int
    volatile_only_units: int
    persistent_only_units: int
    partition_alignment_units: int  # 0: there is nothing to partition
    informational_log_records: int
    warning_log_records: int
    failure_log_records: int
    fatal_log_records: int
    label_bytes: int
    poison_list_max: int
    inject_poison_limit: int
    poison_capabilities: int  # bit 0: injects persistently, bit 1: scans for poison
    qos_capabilities: int
    dynamic_capacity_log_records: int | None = None  # since CXL 3.0
    extra: bytes = b""

    WIRE: ClassVar[Wire] = cs.Struct(
        "firmware_revision" / cs.Bytes(16),
        "total_units" / cs.Int64ul,
        "volatile_only_units" / cs.Int64ul,
        "persistent_only_units" / cs.Int64ul,
        "partition_alignment_units" / cs.Int64ul,
        "informational_log_records" / cs.Int16ul,
        "warning_log_records" / cs.Int16ul,
        "failure_log_records" / cs.Int16ul,
        "fatal_log_records" / cs.Int16ul,
        "label_bytes" / cs.Int32ul,
        "poison_list_max" / cs.Int24ul,
        "inject_poison_limit" / cs.Int16ul,
        "poison_capabilities" / cs.Int8ul,
        "qos_capabilities" / cs.Int8ul,
        "dynamic_capacity_log_records" / cs.Optional(cs.Int16ul),
        "extra" / cs.GreedyBytes,
    )

    @property
    def firmware_text(self) -> str:
        """The revision as text; bytes that are no ASCII are shown as escapes."""
        return self.firmware_revision.split(b"\0")[0].decode("ascii", "backslashreplace").strip()

    @property
    def total_bytes(self) -> int:
        return self.total_units * CAPACITY_UNIT_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionInfo(Layout):
    """Answer of 4100h, 8.2.9.9.2.1: what holds now, and after the next cold reset (0 and 0: as
    now)."""

    active_volatile_units: int
    active_persistent_units: int
    next_volatile_units: int
    next_persistent_units: int
    extra: bytes = b""

    WIRE: ClassVar[Wire] = cs.Struct(
        "active_volatile_units" / cs.Int64ul,
        "active_persistent_units" / cs.Int64ul,
        "next_volatile_units" / cs.Int64ul,
        "next_persistent_units" / cs.Int64ul,
        "extra" / cs.GreedyBytes,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SetPartitionRequest(Layout):
    """Request of 4101h, 8.2.9.9.2.2. Everything in the memory is lost."""

    volatile_units: int
    immediate: bool = False  # else with the next cold reset
    extra: bytes = b""

    WIRE: ClassVar[Wire] = cs.Struct(
        "volatile_units" / cs.Int64ul,
        "immediate" / cs.ExprAdapter(cs.Int8ul, lambda v, _: bool(v & 1), lambda v, _: int(v)),
        "extra" / cs.GreedyBytes,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class GetLsaRequest(Layout):
    """Request of 4102h, 8.2.9.9.2.3. Its answer is the bytes of the label storage area."""

    offset: int
    length: int

    WIRE: ClassVar[Wire] = cs.Struct("offset" / cs.Int32ul, "length" / cs.Int32ul, cs.Terminated)


@dataclass(frozen=True, slots=True, kw_only=True)
class SetLsaRequest(Layout):
    """Request of 4103h, 8.2.9.9.2.4."""

    offset: int
    data: bytes

    WIRE: ClassVar[Wire] = cs.Struct(
        "offset" / cs.Int32ul, "reserved" / reserved(4), "data" / cs.GreedyBytes
    )


class HealthStatus(IntFlag):
    """8.2.9.9.3.1, table 8-133"""

    MAINTENANCE_NEEDED = 1 << 0
    PERFORMANCE_DEGRADED = 1 << 1
    REPLACEMENT_NEEDED = 1 << 2
    CAPACITY_DEGRADED = 1 << 3


class MediaStatus(IntEnum):
    """8.2.9.9.3.1, table 8-133"""

    NORMAL = 0
    NOT_READY = 1
    PERSISTENCY_LOST = 2
    DATA_LOST = 3
    PERSISTENCY_LOSS_AT_POWER_LOSS = 4
    PERSISTENCY_LOSS_AT_SHUTDOWN = 5
    PERSISTENCY_LOSS_IMMINENT = 6
    DATA_LOSS_AT_POWER_LOSS = 7
    DATA_LOSS_AT_SHUTDOWN = 8
    DATA_LOSS_IMMINENT = 9


class Level(IntEnum):
    """Where a quantity stands against its thresholds."""

    NORMAL = 0
    WARNING = 1
    CRITICAL = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthInfo(Layout):
    """Answer of 4200h, 8.2.9.9.3.1; also a part of memory module events."""

    health_status: int  # bits of HealthStatus
    media_status: MediaStatus | int
    additional_status: int  # bits 1:0 life, 3:2 temperature, 4 and 5 corrected errors
    life_used_percent: int  # LIFE_NOT_REPORTED: not known
    temp_degc: int  # TEMPERATURE_NOT_REPORTED: not known
    dirty_shutdowns: int
    corrected_volatile_errors: int
    corrected_persistent_errors: int

    WIRE: ClassVar[Wire] = cs.Struct(
        "health_status" / cs.Int8ul,
        "media_status" / member(MediaStatus),
        "additional_status" / cs.Int8ul,
        "life_used_percent" / cs.Int8ul,
        "temp_degc" / cs.Int16sl,
        "dirty_shutdowns" / cs.Int32ul,
        "corrected_volatile_errors" / cs.Int32ul,
        "corrected_persistent_errors" / cs.Int32ul,
    )

    @property
    def life_level(self) -> int:
        """As `Level`; 3 is reserved."""
        return self.additional_status & 3

    @property
    def temp_level(self) -> int:
        """As `Level`; 3 is reserved."""
        return self.additional_status >> 2 & 3

    @property
    def volatile_errors_warning(self) -> bool:
        return self.additional_status & 0x10 != 0

    @property
    def persistent_errors_warning(self) -> bool:
        return self.additional_status & 0x20 != 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertConfiguration(Layout):
    """Answer of 4201h, 8.2.9.9.3.2. Temperatures in degrees Celsius."""

    valid: int  # bits: 0 life, 1 over and 2 under temperature, 3 volatile, 4 persistent errors
    programmable: int  # the same bits
    life_critical_percent: int
    life_warning_percent: int
    over_temp_critical_degc: int
    under_temp_critical_degc: int
    over_temp_warning_degc: int
    under_temp_warning_degc: int
    volatile_errors_warning: int
    persistent_errors_warning: int
    extra: bytes = b""

    WIRE: ClassVar[Wire] = cs.Struct(
        "valid" / cs.Int8ul,
        "programmable" / cs.Int8ul,
        "life_critical_percent" / cs.Int8ul,
        "life_warning_percent" / cs.Int8ul,
        "over_temp_critical_degc" / cs.Int16sl,
        "under_temp_critical_degc" / cs.Int16sl,
        "over_temp_warning_degc" / cs.Int16sl,
        "under_temp_warning_degc" / cs.Int16sl,
        "volatile_errors_warning" / cs.Int16ul,
        "persistent_errors_warning" / cs.Int16ul,
        "extra" / cs.GreedyBytes,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ShutdownState(Layout):
    """4203h's answer and 4204h's request, 8.2.9.9.3.4: bit 0 dirty."""

    state: int
    extra: bytes = b""

    WIRE: ClassVar[Wire] = cs.Struct("state" / cs.Int8ul, "extra" / cs.GreedyBytes)
