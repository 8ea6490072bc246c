"""Typed bodies of MCTP control messages. DSP0236 §12; layouts and sources: reference "mctp", 6.

A response's body begins after its completion code. Reserved bits are sent as 0 and ignored.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any, ClassVar, Final, Self, TypeAlias

import construct as cs

from protocol.errors import ProtocolError
from protocol.mctp.control_message import Command

Wire: TypeAlias = "cs.Construct[Any, Any]"

SELECTOR_END: Final = 0xFF  # no further vendor entry
HANDLE_END: Final = 0xFF  # no further part of a routing table
TYPE_BASE: Final = 0xFF  # of GET_VERSION: the base specification
VERSION_BASE: Final = bytes.fromhex("f1f3f1f0")  # 1.3.1: major, minor, update, alpha; BCD, F fills


class SetEidOperation(IntEnum):
    SET = 0
    FORCE = 1
    RESET = 2
    SET_DISCOVERED = 3


class VendorFormat(IntEnum):
    PCI = 0  # 16-bit vendor id
    IANA = 1  # 32-bit enterprise number


class ControlBody:
    """Base of all bodies: `WIRE` is the declaration, in the order of the fields."""

    __slots__ = ()
    CMD: ClassVar[Command]
    WIRE: ClassVar[Wire]

    @classmethod
    def from_body(cls, body: bytes) -> Self:
        """Raises `ProtocolError`: "bad_length" or "bad_value"."""
        try:
            raw = (cls.WIRE >> cs.Terminated).parse(body)[0]
        except (cs.StreamError, cs.TerminatedError) as exc:
            detail = f"{cls.__name__} can't have {len(body)} bytes"
            raise ProtocolError(detail, frame=body, code="bad_length") from exc
        except cs.ConstructError as exc:
            raise ProtocolError(f"{cls.__name__}: {exc}", frame=body, code="bad_value") from exc
        return cls(**{name: _plain(raw[name]) for name in cls._names()})

    def to_body(self) -> bytes:
        """Raises `ValueError` for values out of range."""
        values = {name: getattr(self, name) for name in self._names()}
        try:
            return bytes(self.WIRE.build(values))
        except cs.ConstructError as exc:
            raise ValueError(f"{type(self).__name__}: {exc}") from exc

    @classmethod
    def _names(cls) -> list[str]:
        return [field.name for field in fields(cls)]  # type: ignore[arg-type]


def _plain(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _bytes(*subcons: Wire) -> Wire:
    wire: Wire = cs.Struct(*subcons)
    return wire


def _bits(*subcons: Wire) -> Wire:
    wire: Wire = cs.BitStruct(*subcons)
    return wire


@dataclass(frozen=True, slots=True, kw_only=True)
class SetEidRequest(ControlBody):
    CMD = Command.SET_EID
    WIRE = _bits(
        "reserved" / cs.Default(cs.BitsInteger(6), 0), "op" / cs.BitsInteger(2), "eid" / cs.Octet
    )
    op: int  # SetEidOperation
    eid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SetEidResponse(ControlBody):
    CMD = Command.SET_EID
    WIRE = _bits(
        "reserved_high" / cs.Default(cs.BitsInteger(2), 0),
        "assignment_status" / cs.BitsInteger(2),
        "reserved_low" / cs.Default(cs.BitsInteger(2), 0),
        "allocation_status" / cs.BitsInteger(2),
        "eid" / cs.Octet,
        "pool" / cs.Octet,
    )
    assignment_status: int = 0  # 0 accepted, 1 rejected
    allocation_status: int = 0  # 0 no pool, 1 needs a pool, 2 has one
    eid: int  # now in force
    pool: int = 0  # dynamic EIDs that the endpoint wants


@dataclass(frozen=True, slots=True, kw_only=True)
class GetEidRequest(ControlBody):
    CMD = Command.GET_EID
    WIRE = _bytes()


@dataclass(frozen=True, slots=True, kw_only=True)
class GetEidResponse(ControlBody):
    CMD = Command.GET_EID
    WIRE = _bytes("eid" / cs.Int8ub, "type_byte" / cs.Int8ub, "medium" / cs.Int8ub)
    eid: int
    type_byte: int = 0
    medium: int = 0

    @property
    def endpoint_type(self) -> int:
        """0 simple endpoint, 1 bus owner or bridge."""
        return self.type_byte >> 4 & 3

    @property
    def eid_type(self) -> int:
        """0 dynamic, 1 static, 2 static and in force, 3 static and another in force."""
        return self.type_byte & 3


@dataclass(frozen=True, slots=True, kw_only=True)
class GetUuidRequest(ControlBody):
    CMD = Command.GET_UUID
    WIRE = _bytes()


@dataclass(frozen=True, slots=True, kw_only=True)
class GetUuidResponse(ControlBody):
    CMD = Command.GET_UUID
    WIRE = _bytes("uuid" / cs.Bytes(16))
    uuid: bytes  # RFC 4122 order; all zero is met in the field


@dataclass(frozen=True, slots=True, kw_only=True)
class GetVersionRequest(ControlBody):
    CMD = Command.GET_VERSION
    WIRE = _bytes("type_queried" / cs.Int8ub)
    type_queried: int  # TYPE_BASE, or a message type


@dataclass(frozen=True, slots=True, kw_only=True)
class GetVersionResponse(ControlBody):
    CMD = Command.GET_VERSION
    WIRE = _bytes("entries" / cs.PrefixedArray(cs.Int8ub, cs.Bytes(4)))
    entries: tuple[bytes, ...]  # major, minor, update, alpha; oldest first


@dataclass(frozen=True, slots=True, kw_only=True)
class GetTypesRequest(ControlBody):
    CMD = Command.GET_TYPES
    WIRE = _bytes()


@dataclass(frozen=True, slots=True, kw_only=True)
class GetTypesResponse(ControlBody):
    CMD = Command.GET_TYPES
    WIRE = _bytes("types" / cs.PrefixedArray(cs.Int8ub, cs.Int8ub))
    types: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GetVdmRequest(ControlBody):
    CMD = Command.GET_VDM_SUPPORT
    WIRE = _bytes("selector" / cs.Int8ub)
    selector: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GetVdmResponse(ControlBody):
    CMD = Command.GET_VDM_SUPPORT
    WIRE = _bytes(
        "next_selector" / cs.Int8ub,
        "format" / cs.OneOf(cs.Int8ub, [int(value) for value in VendorFormat]),
        "vendor" / cs.IfThenElse(cs.this.format == VendorFormat.PCI, cs.Int16ub, cs.Int32ub),
        "cmd_set" / cs.Int16ub,
    )
    next_selector: int  # SELECTOR_END after the last
    format: int  # VendorFormat
    vendor: int
    cmd_set: int  # the vendor's to define; ours is the major version


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocateEidsRequest(ControlBody):
    CMD = Command.ALLOCATE_EIDS
    WIRE = _bits(
        "reserved" / cs.Default(cs.BitsInteger(6), 0),
        "op" / cs.BitsInteger(2),
        "pool" / cs.Octet,
        "first" / cs.Octet,
    )
    op: int  # 0 allocate, 1 force, 2 tell
    pool: int  # EIDs in the pool
    first: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocateEidsResponse(ControlBody):
    CMD = Command.ALLOCATE_EIDS
    WIRE = _bits(
        "reserved" / cs.Default(cs.BitsInteger(6), 0),
        "status" / cs.BitsInteger(2),
        "pool" / cs.Octet,
        "first" / cs.Octet,
    )
    status: int  # 0 accepted, 1 rejected
    pool: int
    first: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GetRoutingTableRequest(ControlBody):
    CMD = Command.GET_ROUTING_TABLE
    WIRE = _bytes("handle" / cs.Int8ub)
    handle: int  # 0 for the first part


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingEntry:
    eid_range: int
    first_eid: int
    type_byte: int  # 7:6 kind (0 endpoint .. 3 endpoints), 5 static, 4:0 port
    binding: int  # 1 SMBus, 5 serial, ...
    medium: int
    address: bytes


_ROUTING_ENTRY_WIRE: Final = cs.Struct(
    "eid_range" / cs.Int8ub,
    "first_eid" / cs.Int8ub,
    "type_byte" / cs.Int8ub,
    "binding" / cs.Int8ub,
    "medium" / cs.Int8ub,
    "address" / cs.Prefixed(cs.Int8ub, cs.GreedyBytes),
)


def _entry_out(raw: Mapping[str, Any]) -> RoutingEntry:
    return RoutingEntry(**{field.name: raw[field.name] for field in fields(RoutingEntry)})


def _entry_in(entry: RoutingEntry) -> dict[str, Any]:
    return {field.name: getattr(entry, field.name) for field in fields(entry)}


@dataclass(frozen=True, slots=True, kw_only=True)
class GetRoutingTableResponse(ControlBody):
    CMD = Command.GET_ROUTING_TABLE
    WIRE = _bytes(
        "next_handle" / cs.Int8ub,
        "entries"
        / cs.PrefixedArray(
            cs.Int8ub,
            cs.ExprAdapter(
                _ROUTING_ENTRY_WIRE,
                lambda raw, _: _entry_out(raw),
                lambda entry, _: _entry_in(entry),
            ),
        ),
    )
    next_handle: int  # HANDLE_END after the last
    entries: tuple[RoutingEntry, ...]


REQUESTS: Final[Mapping[int, type[ControlBody]]] = {
    body.CMD: body
    for body in (
        SetEidRequest,
        GetEidRequest,
        GetUuidRequest,
        GetVersionRequest,
        GetTypesRequest,
        GetVdmRequest,
        AllocateEidsRequest,
        GetRoutingTableRequest,
    )
}
RESPONSES: Final[Mapping[int, type[ControlBody]]] = {
    body.CMD: body
    for body in (
        SetEidResponse,
        GetEidResponse,
        GetUuidResponse,
        GetVersionResponse,
        GetTypesResponse,
        GetVdmResponse,
        AllocateEidsResponse,
        GetRoutingTableResponse,
    )
}


def version_text(entry: bytes) -> str:
    """A version entry for people: f1 f3 f1 00 is 1.3.1 (DSP0236 §12.6.1)."""
    numbers = [f"{byte & 0x0F if byte >= 0xF0 else byte:x}" for byte in entry[:3] if byte != 0xFF]
    alpha = chr(entry[3]) if 0x20 < entry[3] < 0x7F else ""
    return ".".join(numbers) + alpha
