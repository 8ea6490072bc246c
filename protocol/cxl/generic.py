"""Commands that every CXL component may have: identify, background, firmware, time.

CXL 3.1: 8.2.9.1 (information and status), 8.2.9.3 (firmware), 8.2.9.4 (timestamp).
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar

import construct as cs

from protocol.cxl.layout import Layout, Wire, counted, member, reserved


class ComponentType(IntEnum):
    """8.2.9.1.1"""

    SWITCH = 0x00
    TYPE3 = 0x03
    GFD = 0x04


@dataclass(frozen=True, slots=True, kw_only=True)
class Identify(Layout):
    """Answer of 0001h, 8.2.9.1.1."""

    vendor_id: int
    device_id: int
    subsystem_vendor_id: int
    subsystem_id: int
    serial: int
    message_max_log2: int  # the component's largest message is 2 to this power, in bytes
    component_type: ComponentType | int
    extra: bytes = b""

    WIRE: ClassVar[Wire] = cs.Struct(
        "vendor_id" / cs.Int16ul,
        "device_id" / cs.Int16ul,
        "subsystem_vendor_id" / cs.Int16ul,
        "subsystem_id" / cs.Int16ul,
        "serial" / cs.Int64ul,
        "message_max_log2" / cs.Int8ul,
        "component_type" / member(ComponentType),
        "extra" / cs.GreedyBytes,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class BackgroundStatus(Layout):
    """Answer of 0002h, 8.2.9.1.2: the operation that goes on, or the last one."""

    status: int  # bit 0: going on; bits 7:1 percentage complete
    opcode: int
    return_code: int  # valid when it has ended
    vendor_status: int
    extra: bytes = b""

    WIRE: ClassVar[Wire] = cs.Struct(
        "status" / cs.Int8ul,
        "reserved" / reserved(1),
        "opcode" / cs.Int16ul,
        "return_code" / cs.Int16ul,
        "vendor_status" / cs.Int16ul,
        "extra" / cs.GreedyBytes,
    )

    @property
    def running(self) -> bool:
        return self.status & 1 != 0

    @property
    def complete_percent(self) -> int:
        return self.status >> 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseLimit(Layout):
    """0003h's answer; 0004h's request and answer. 8.2.9.1.3 and .4."""

    limit_log2: int  # a response is at most 2 to this power bytes; 8 to 20
    extra: bytes = b""

    WIRE: ClassVar[Wire] = cs.Struct("limit_log2" / cs.Int8ul, "extra" / cs.GreedyBytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class FirmwareInfo(Layout):
    """Answer of 0200h, 8.2.9.3.1. Revisions are text padded with zeros."""

    slots: int  # 1 to 4
    slot_info: int  # bits 2:0 the active slot, 5:3 the staged one (0: none)
    capabilities: int  # bit 0: can be activated without a reset
    revisions: tuple[bytes, ...]  # 16 bytes each, of slots 1 to 4
    extra: bytes = b""

    WIRE: ClassVar[Wire] = cs.Struct(
        "slots" / cs.Int8ul,
        "slot_info" / cs.Int8ul,
        "capabilities" / cs.Int8ul,
        "reserved" / reserved(13),
        "revisions" / counted(4, cs.Bytes(16)),
        "extra" / cs.GreedyBytes,
    )

    @property
    def active_slot(self) -> int:
        return self.slot_info & 7

    @property
    def staged_slot(self) -> int:
        return self.slot_info >> 3 & 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Timestamp(Layout):
    """0300h's answer, 0301h's request, 8.2.9.4: ns since 1970-01-01T00:00Z; 0 was never set."""

    time_ns: int
    extra: bytes = b""

    WIRE: ClassVar[Wire] = cs.Struct("time_ns" / cs.Int64ul, "extra" / cs.GreedyBytes)
