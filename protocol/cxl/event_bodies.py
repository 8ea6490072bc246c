"""The 80 bytes of an event record that depend on its kind.

CXL 3.1: 8.2.9.2.1.1 (general media), .2 (DRAM), .3 (memory module), 7.6.8.1 (physical switch),
7.6.8.2 (virtual switch). Fields that a `valid` bit governs hold anything where it is clear.
"""

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import ClassVar, Final

import construct as cs

from protocol.cxl.layout import Layout, Wire, member, nested, reserved
from protocol.cxl.memory import HealthInfo
from protocol.cxl.switch import Binding, ConnectedMode, ConnectedType, Ltssm, PortConfig

DPA_MASK: Final = ~0x3F & (1 << 64) - 1  # bits 5:0 of a record's address are flags
DPA_VOLATILE: Final = 1 << 0
DPA_NOT_REPAIRABLE: Final = 1 << 1
_LOW4: Final = cs.ExprAdapter(cs.Int8ul, lambda v, _: v & 0x0F, lambda v, _: v)


class Descriptor(IntFlag):
    """Memory event descriptor, table 8-45."""

    UNCORRECTABLE = 1 << 0
    THRESHOLD = 1 << 1
    POISON_LIST_OVERFLOW = 1 << 2


class MediaEvent(IntEnum):
    """Memory event type of a general media record, table 8-45."""

    ECC_ERROR = 0
    INVALID_ADDRESS = 1
    DATA_PATH_ERROR = 2
    TE_STATE_VIOLATION = 3
    SCRUB_ECC_ERROR = 4
    CORRECTED_COUNTER_EXPIRED = 5
    CKID_VIOLATION = 6


class DramEvent(IntEnum):
    """Memory event type of a DRAM record, table 8-46: other numbers than table 8-45's."""

    ECC_ERROR = 0
    SCRUB_ECC_ERROR = 1
    INVALID_ADDRESS = 2
    DATA_PATH_ERROR = 3
    TE_STATE_VIOLATION = 4
    CORRECTED_COUNTER_EXPIRED = 5
    CKID_VIOLATION = 6


class Transaction(IntEnum):
    """What led to the event, table 8-45."""

    UNKNOWN = 0
    HOST_READ = 1
    HOST_WRITE = 2
    HOST_SCAN_MEDIA = 3
    HOST_INJECT_POISON = 4
    MEDIA_SCRUB = 5
    MEDIA_MANAGEMENT = 6
    MEDIA_ECS = 7
    MEDIA_INITIALIZATION = 8


class MediaValid(IntFlag):
    """Table 8-45"""

    CHANNEL = 1 << 0
    RANK = 1 << 1
    DEVICE = 1 << 2
    COMPONENT = 1 << 3
    COMPONENT_PLDM = 1 << 4


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneralMedia(Layout):
    """Table 8-45."""

    address: int  # device physical address; bits 5:0 are flags (DPA_MASK)
    descriptor: int  # bits of Descriptor
    event: MediaEvent | int
    transaction: Transaction | int
    valid: int = 0  # bits of MediaValid
    channel: int = 0
    rank: int = 0
    device: int = 0
    component: bytes = bytes(16)
    threshold_flags: int = 0
    corrected_count: int = 0
    subtype: int = 0

    WIRE: ClassVar[Wire] = cs.Struct(
        "address" / cs.Int64ul,
        "descriptor" / cs.Int8ul,
        "event" / member(MediaEvent),
        "transaction" / member(Transaction),
        "valid" / cs.Int16ul,
        "channel" / cs.Int8ul,
        "rank" / cs.Int8ul,
        "device" / cs.Int24ul,
        "component" / cs.Bytes(16),
        "threshold_flags" / cs.Int8ul,
        "corrected_count" / cs.Int24ul,
        "subtype" / cs.Int8ul,
        "reserved" / reserved(41),
    )


class DramValid(IntFlag):
    """Table 8-46"""

    CHANNEL = 1 << 0
    RANK = 1 << 1
    NIBBLE = 1 << 2
    BANK_GROUP = 1 << 3
    BANK = 1 << 4
    ROW = 1 << 5
    COLUMN = 1 << 6
    CORRECTION = 1 << 7
    COMPONENT = 1 << 8
    COMPONENT_PLDM = 1 << 9
    SUB_CHANNEL = 1 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Dram(Layout):
    """Table 8-46."""

    address: int  # device physical address; bits 5:0 are flags (DPA_MASK)
    descriptor: int  # bits of Descriptor
    event: DramEvent | int
    transaction: Transaction | int
    valid: int = 0  # bits of DramValid
    channel: int = 0
    rank: int = 0
    nibbles: int = 0
    bank_group: int = 0
    bank: int = 0
    row: int = 0
    column: int = 0
    correction: bytes = bytes(32)
    component: bytes = bytes(16)
    sub_channel: int = 0
    threshold_flags: int = 0
    corrected_count: int = 0
    subtype: int = 0

    WIRE: ClassVar[Wire] = cs.Struct(
        "address" / cs.Int64ul,
        "descriptor" / cs.Int8ul,
        "event" / member(DramEvent),
        "transaction" / member(Transaction),
        "valid" / cs.Int16ul,
        "channel" / cs.Int8ul,
        "rank" / cs.Int8ul,
        "nibbles" / cs.Int24ul,
        "bank_group" / cs.Int8ul,
        "bank" / cs.Int8ul,
        "row" / cs.Int24ul,
        "column" / cs.Int16ul,
        "correction" / cs.Bytes(32),
        "component" / cs.Bytes(16),
        "sub_channel" / cs.Int8ul,
        "threshold_flags" / cs.Int8ul,
        "corrected_count" / cs.Int24ul,
        "subtype" / cs.Int8ul,
        "reserved" / reserved(1),
    )


class ModuleEvent(IntEnum):
    """Device event type, table 8-47."""

    HEALTH_STATUS_CHANGE = 0
    MEDIA_STATUS_CHANGE = 1
    LIFE_USED_CHANGE = 2
    TEMPERATURE_CHANGE = 3
    DATA_PATH_ERROR = 4
    LABEL_AREA_ERROR = 5
    SIDEBAND_BUS_ERROR = 6
    MEDIA_FRU_ERROR = 7
    POWER_MANAGEMENT_FAULT = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryModule(Layout):
    """Table 8-47: the device's health as it was when it happened."""

    event: ModuleEvent | int
    health: HealthInfo
    valid: int = 0
    component: bytes = bytes(16)
    subtype: int = 0

    WIRE: ClassVar[Wire] = cs.Struct(
        "event" / member(ModuleEvent),
        "health" / nested(HealthInfo),
        "valid" / cs.Int16ul,
        "component" / cs.Bytes(16),
        "subtype" / cs.Int8ul,
        "reserved" / reserved(42),
    )


class PortEvent(IntEnum):
    """Table 7-77"""

    LINK_STATE_CHANGE = 0
    SLOT_STATUS_UPDATED = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PhysicalSwitch(Layout):
    """Table 7-77; the fields from `config` on are those of `protocol.cxl.switch.PortState`."""

    port: int
    event: PortEvent | int
    slot_status: int  # PCI Express's Slot Status register
    config: PortConfig | int
    connected_mode: ConnectedMode | int
    connected_type: ConnectedType | int
    cxl_modes: int
    max_width: int
    width: int
    speeds_vector: int
    max_speed: int
    speed: int
    ltssm: Ltssm | int
    first_lane: int
    link_flags: int

    WIRE: ClassVar[Wire] = cs.Struct(
        "port" / cs.Int8ul,
        "event" / member(PortEvent),
        "slot_status" / cs.Int16ul,
        "reserved" / reserved(1),
        "config" / member(PortConfig, _LOW4),
        "connected_mode" / member(ConnectedMode, _LOW4),
        "reserved2" / reserved(1),
        "connected_type" / member(ConnectedType),
        "cxl_modes" / cs.Int8ul,
        "max_width" / cs.Int8ul,
        "width" / cs.Int8ul,
        "speeds_vector" / cs.Int8ul,
        "max_speed" / cs.Int8ul,
        "speed" / cs.Int8ul,
        "ltssm" / member(Ltssm),
        "first_lane" / cs.Int8ul,
        "link_flags" / cs.Int16ul,
        "reserved3" / reserved(61),
    )


class VcsEvent(IntEnum):
    """Table 7-78"""

    BINDING_CHANGE = 0
    SECONDARY_BUS_RESET = 1
    LINK_CONTROL_UPDATED = 2
    SLOT_CONTROL_UPDATED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualSwitch(Layout):
    """Table 7-78: how a bind or unbind ended, for one."""

    vcs: int
    vppb: int
    event: VcsEvent | int
    binding: Binding | int
    port: int
    ld: int
    link_control: int
    slot_control: int

    WIRE: ClassVar[Wire] = cs.Struct(
        "vcs" / cs.Int8ul,
        "vppb" / cs.Int8ul,
        "event" / member(VcsEvent),
        "binding" / member(Binding),
        "port" / cs.Int8ul,
        "ld" / cs.Int8ul,
        "link_control" / cs.Int16ul,
        "slot_control" / cs.Int16ul,
        "reserved" / reserved(70),
    )
