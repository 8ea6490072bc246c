"""The PCI Express capability: what a port is, its link and its slot.

Ref: PCI Express Base Specification 5.0, 7.5.3 (capability id 10h); the sections at each register.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

import construct as cs

from protocol.pcie.bits import register
from protocol.pcie.config import Capability, parse_wire

CAPABILITY_ID: Final = 0x10
SPEED_MTS: Final = {1: 2_500, 2: 5_000, 3: 8_000, 4: 16_000, 5: 32_000, 6: 64_000}  # 7.5.3.6

EXPRESS_WIRE: Final = cs.Struct(
    "header" / cs.Int16ul,
    "flags" / register(2, "-:2 message:5 slot type:4 version:4"),
    "device"
    / register(  # 7.5.3.3 Device Capabilities, 04h
        4,
        "-:3 flr power_scale:2 power_limit:8 -:2 rber -:3 l1_latency:3 l0s_latency:3 "
        "extended_tag phantom:2 payload:3",
    ),
    "device_control" / cs.Int16ul,  # 08h
    "device_status"
    / register(  # 7.5.3.5, 0Ah
        2, "-:10 pending aux_power unsupported fatal nonfatal correctable"
    ),
    "link"
    / register(  # 7.5.3.6 Link Capabilities, 0Ch
        4,
        "port:8 -:3 dll_active_reporting surprise_down_reporting - l1_exit:3 "
        "l0s_exit:3 aspm:2 width:6 speed:4",
    ),
    "link_control" / cs.Int16ul,  # 10h
    "link_status"
    / register(  # 7.5.3.8, 12h
        2, "-:2 dll_active slot_clock training - width:6 speed:4"
    ),
    "slot"
    / register(  # 7.5.3.9 Slot Capabilities, 14h
        4,
        "number:13 no_command_completed interlock power_scale:2 power_limit:8 hotplug "
        "surprise power_indicator attention_indicator mrl_sensor power_controller "
        "attention_button",
    ),
    "slot_control" / cs.Int16ul,  # 18h
    "slot_status"
    / register(  # 7.5.3.11, 1Ah
        2,
        "-:7 dll_changed interlock present mrl_open command_completed "
        "presence_changed mrl_changed power_fault button",
    ),
)


class PortType(IntEnum):
    """7.5.3.2, Device/Port Type."""

    ENDPOINT = 0
    LEGACY_ENDPOINT = 1
    ROOT_PORT = 4
    UPSTREAM = 5
    DOWNSTREAM = 6
    TO_PCI_BRIDGE = 7
    FROM_PCI_BRIDGE = 8
    ROOT_ENDPOINT = 9
    EVENT_COLLECTOR = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpressLink:
    """Speeds in MT/s; 0 for one that this layout doesn't know."""

    speed_mts: int
    width: int
    max_speed_mts: int
    max_width: int
    active: bool | None  # None where the port can't tell
    training: bool
    surprise_down_reporting: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpressSlot:
    """A port's slot."""

    number: int
    hotplug: bool
    surprise: bool  # a module may go without a word
    present: bool
    power_controller: bool
    power_fault: bool
    attention_button: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Express:
    version: int
    port_type: int  # a PortType, or a number that this layout doesn't know
    flr: bool  # function level reset
    max_payload_bytes: int
    link: ExpressLink | None  # None of what is built into the root complex
    slot: ExpressSlot | None
    errors: tuple[str, ...]  # detected and not cleared: "correctable", "nonfatal", ...


def parse_express(capability: Capability) -> Express:
    """Raises ProtocolError."""
    raw = parse_wire(EXPRESS_WIRE, capability, "PCI Express capability")
    try:
        port_type: int = PortType(raw.flags.type)
    except ValueError:
        port_type = raw.flags.type  # kept visible
    status = raw.device_status
    return Express(
        version=raw.flags.version,
        port_type=port_type,
        flr=raw.device.flr,
        max_payload_bytes=128 << raw.device.payload,
        link=_link(raw) if port_type not in _WITHOUT_LINK else None,
        slot=_slot(raw) if raw.flags.slot else None,
        errors=tuple(
            name for name in ("correctable", "nonfatal", "fatal", "unsupported") if status[name]
        ),
    )


_WITHOUT_LINK: Final = (PortType.ROOT_ENDPOINT, PortType.EVENT_COLLECTOR)  # 7.5.3.6


def _link(raw: Any) -> ExpressLink:
    can_tell = raw.link.dll_active_reporting
    return ExpressLink(
        speed_mts=SPEED_MTS.get(raw.link_status.speed, 0),
        width=raw.link_status.width,
        max_speed_mts=SPEED_MTS.get(raw.link.speed, 0),
        max_width=raw.link.width,
        active=raw.link_status.dll_active if can_tell else None,
        training=raw.link_status.training,
        surprise_down_reporting=raw.link.surprise_down_reporting,
    )


def _slot(raw: Any) -> ExpressSlot:
    return ExpressSlot(
        number=raw.slot.number,
        hotplug=raw.slot.hotplug,
        surprise=raw.slot.surprise,
        present=raw.slot_status.present,
        power_controller=raw.slot.power_controller,
        power_fault=raw.slot_status.power_fault,
        attention_button=raw.slot.attention_button,
    )
