"""Config space: the header, and the two chains of capabilities.

Ref: PCI Local Bus Specification 3.0, 6.1 and 6.7; PCI-to-PCI Bridge Architecture 1.2, 3.2;
PCI Express Base Specification 5.0, 7.5.1 (headers), 7.6.3 (extended capability header).

What a host can read may be shorter than all of it (64 B without privilege, 256 B of a
conventional function): chains end there. Config space of a device that is gone is all ones, and
that is a ProtocolError of its own.
"""

from dataclasses import dataclass
from typing import Any, Final

import construct as cs

from protocol.errors import ProtocolError

HEADER_BYTES: Final = 64
CONVENTIONAL_BYTES: Final = 256  # where extended config space begins
CONFIG_BYTES: Final = 4096
CAPABILITY_FIRST: Final = 0x40  # a pointer below is into the header
STATUS_CAPABILITIES: Final = 1 << 4
TYPE_DEVICE: Final = 0
TYPE_BRIDGE: Final = 1
MULTIFUNCTION: Final = 0x80
_CHAIN_LIMIT: Final = (CONVENTIONAL_BYTES - CAPABILITY_FIRST) // 4
_EXTENDED_LIMIT: Final = (CONFIG_BYTES - CONVENTIONAL_BYTES) // 4

_HEAD = (
    "vendor_id" / cs.Int16ul,  # 00h
    "device_id" / cs.Int16ul,
    "command" / cs.Int16ul,  # 04h
    "status" / cs.Int16ul,
    "revision" / cs.Int8ul,  # 08h
    "class_code" / cs.Int24ul,
    "cache_line" / cs.Int8ul,  # 0Ch
    "latency_timer" / cs.Int8ul,
    "header_type" / cs.Int8ul,
    "bist" / cs.Int8ul,
)
DEVICE_HEADER_WIRE: Final = cs.Struct(  # 6.1, type 00h
    *_HEAD,
    "bars" / cs.Array(6, cs.Int32ul),  # 10h
    "cardbus_cis" / cs.Int32ul,
    "subsystem_vendor_id" / cs.Int16ul,  # 2Ch
    "subsystem_id" / cs.Int16ul,
    "rom" / cs.Int32ul,
    "capabilities" / cs.Int8ul,  # 34h
    "reserved" / cs.Bytes(7),
    "interrupt_line" / cs.Int8ul,  # 3Ch
    "interrupt_pin" / cs.Int8ul,
    "min_grant" / cs.Int8ul,
    "max_latency" / cs.Int8ul,
)
BRIDGE_HEADER_WIRE: Final = cs.Struct(  # Bridge Architecture 3.2, type 01h
    *_HEAD,
    "bars" / cs.Array(2, cs.Int32ul),  # 10h
    "primary_bus" / cs.Int8ul,  # 18h
    "secondary_bus" / cs.Int8ul,
    "subordinate_bus" / cs.Int8ul,
    "secondary_latency" / cs.Int8ul,
    "windows" / cs.Bytes(0x18),  # 1Ch: I/O, memory, prefetchable memory
    "capabilities" / cs.Int8ul,  # 34h
    "reserved" / cs.Bytes(3),
    "rom" / cs.Int32ul,  # 38h
    "interrupt_line" / cs.Int8ul,  # 3Ch
    "interrupt_pin" / cs.Int8ul,
    "bridge_control" / cs.Int16ul,
)
POINTER_WIRE: Final = cs.Struct("id" / cs.Int8ul, "next" / cs.Int8ul)  # 6.7
EXTENDED_WIRE: Final = cs.Struct(  # 7.6.3: id 16, version 4, next 12 bits
    "id" / cs.Int16ul, "rest" / cs.Int16ul
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The first 64 bytes. The buses are None but of a bridge."""

    vendor_id: int
    device_id: int
    command: int
    status: int
    revision: int
    class_code: int
    header_type: int  # without the multifunction bit
    multifunction: bool
    bars: tuple[int, ...]  # as they are: address and kind bits
    subsystem_vendor_id: int
    subsystem_id: int
    interrupt_pin: int  # 0: none, 1: INTA
    primary_bus: int | None = None
    secondary_bus: int | None = None
    subordinate_bus: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Capability:
    """One link of a chain: where it is, and its bytes up to the end of what was read."""

    id: int
    offset: int
    extended: bool
    version: int  # of an extended one; 0
    data: bytes


def parse_header(config: bytes) -> Header:
    """Raises ProtocolError: "short", "all_ones" (nothing answers), "bad_header_type"."""
    if len(config) < HEADER_BYTES:
        raise ProtocolError(
            f"config space of {len(config)} B, want at least {HEADER_BYTES}",
            frame=config,
            code="short",
        )
    if config[:4] == b"\xff" * 4:
        raise ProtocolError("config space is all ones: no device", frame=config, code="all_ones")
    kind = config[0x0E] & ~MULTIFUNCTION
    if kind not in (TYPE_DEVICE, TYPE_BRIDGE):
        raise ProtocolError(
            f"header type {kind:#04x}; want 0 (device) or 1 (bridge)",
            frame=config,
            code="bad_header_type",
            offset=0x0E,
        )
    wire = BRIDGE_HEADER_WIRE if kind == TYPE_BRIDGE else DEVICE_HEADER_WIRE
    raw = wire.parse(config[:HEADER_BYTES])
    bridge = kind == TYPE_BRIDGE
    return Header(
        vendor_id=raw.vendor_id,
        device_id=raw.device_id,
        command=raw.command,
        status=raw.status,
        revision=raw.revision,
        class_code=raw.class_code,
        header_type=kind,
        multifunction=bool(raw.header_type & MULTIFUNCTION),
        bars=tuple(raw.bars),
        subsystem_vendor_id=0 if bridge else raw.subsystem_vendor_id,
        subsystem_id=0 if bridge else raw.subsystem_id,
        interrupt_pin=raw.interrupt_pin,
        primary_bus=raw.primary_bus if bridge else None,
        secondary_bus=raw.secondary_bus if bridge else None,
        subordinate_bus=raw.subordinate_bus if bridge else None,
    )


def walk(config: bytes) -> tuple[Capability, ...]:
    """Both chains, in their order. Raises ProtocolError for a chain that goes round or points out
    of config space ("bad_chain"): a device that does so is broken or going."""
    header = parse_header(config)
    found = []
    if header.status & STATUS_CAPABILITIES:
        found += _conventional(config)
    if len(config) > CONVENTIONAL_BYTES:
        found += _extended(config)
    return tuple(found)


def _conventional(config: bytes) -> list[Capability]:
    limit = min(len(config), CONVENTIONAL_BYTES)
    found: list[Capability] = []
    seen: set[int] = set()
    at = config[0x34] & ~3  # the two low bits are reserved: software masks them
    while at:
        if at < CAPABILITY_FIRST or at in seen or len(seen) > _CHAIN_LIMIT:
            raise _bad_chain(config, at)
        if at + 2 > limit:
            break  # in what we may not read
        seen.add(at)
        raw = POINTER_WIRE.parse(config[at : at + 2])
        found.append(
            Capability(id=raw.id, offset=at, extended=False, version=0, data=config[at:limit])
        )
        at = raw.next & ~3
    return found


def _extended(config: bytes) -> list[Capability]:
    found: list[Capability] = []
    seen: set[int] = set()
    at = CONVENTIONAL_BYTES
    while at:
        if at < CONVENTIONAL_BYTES or at in seen or len(seen) > _EXTENDED_LIMIT:
            raise _bad_chain(config, at)
        if at + 4 > len(config):
            break
        seen.add(at)
        raw = EXTENDED_WIRE.parse(config[at : at + 4])
        if raw.id == 0xFFFF and raw.rest == 0xFFFF:
            raise _bad_chain(config, at)
        if raw.id or raw.rest:  # all zeros at 100h: there are none
            found.append(
                Capability(
                    id=raw.id,
                    offset=at,
                    extended=True,
                    version=raw.rest & 0xF,
                    data=config[at:],
                )
            )
        at = raw.rest >> 4 & ~3
    return found


def _bad_chain(config: bytes, at: int) -> ProtocolError:
    return ProtocolError(
        f"a chain of capabilities leads to {at:#05x}: into the header, out of config space, round "
        "in a circle or to all ones",
        frame=config,
        code="bad_chain",
        offset=at,
    )


def parse_wire(wire: Any, capability: Capability, name: str) -> Any:
    """One capability by its layout. Raises ProtocolError "short" when it is cut off."""
    try:
        return wire.parse(capability.data)
    except cs.ConstructError as exc:
        raise ProtocolError(
            f"{name} at {capability.offset:#05x}: {exc}",
            frame=capability.data,
            code="short",
            offset=capability.offset,
        ) from exc
