"""The 12 bytes in front of every APF message. Specification: protocol/SPEC.md section 2.

Frozen for ever, in every version. `struct` is the fast path; HEADER_WIRE is the declaration.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import construct as cs

from protocol.errors import ProtocolError

MESSAGE_TYPE: Final = 0x7E  # DSP0236 table 3: vendor defined, PCI
VENDOR_ID: Final = 0x4150  # "AP", until one is assigned; the board may set another
MAX_MESSAGE_BYTES: Final = 8192
MESSAGE_ID_OFFSET: Final = 7

HEADER_WIRE: Final = cs.Struct(
    "type" / cs.Const(MESSAGE_TYPE, cs.Int8ub),
    "vendor_id" / cs.Int16ub,  # DSP0236: big-endian; all that follows is little-endian
    "version" / cs.Int8ul,
    "flags" / cs.OneOf(cs.Int8ul, (0x00, 0x80, 0xC0)),
    "opcode" / cs.Int16ul,
    "message_id" / cs.Int32ul,
    "status" / cs.Int8ul,
)
HEADER_STRUCT: Final = struct.Struct("<B2sBBHIB")


class Kind(IntEnum):
    """The flags byte: bit 7 request, bit 6 no answer is sent; the others are reserved, zero."""

    REPLY = 0x00
    REQUEST = 0x80
    NOTICE = 0xC0


KINDS: Final = {int(kind): kind for kind in Kind}
_unpack = HEADER_STRUCT.unpack_from


@dataclass(frozen=True, slots=True, kw_only=True)
class ApfHeader:
    kind: Kind
    version: int
    opcode: int
    message_id: int
    status: int


def decode_header(message: bytes, *, vendor_id: int = VENDOR_ID) -> ApfHeader:
    """The header alone, of any version: enough to refuse what can't be decoded.

    Raises ProtocolError: short, too_large, bad_type, bad_vendor, bad_flags, bad_status.
    """
    if len(message) < HEADER_STRUCT.size:
        raise ProtocolError(f"APF header needs {HEADER_STRUCT.size} B", frame=message, code="short")
    if len(message) > MAX_MESSAGE_BYTES:
        detail = f"APF message above {MAX_MESSAGE_BYTES} B"
        raise ProtocolError(detail, frame=message, code="too_large")
    kind, vendor, version, flags, opcode, message_id, status = _unpack(message)
    if kind != MESSAGE_TYPE:
        detail = f"message type {kind:#04x} is not {MESSAGE_TYPE:#04x}"
        raise ProtocolError(detail, frame=message, code="bad_type", offset=0)
    if int.from_bytes(vendor, "big") != vendor_id:
        detail = f"vendor id {vendor.hex()} is not {vendor_id:04x}"
        raise ProtocolError(detail, frame=message, code="bad_vendor", offset=1)
    if flags not in KINDS:
        detail = f"flags {flags:#04x} are not a request, reply or notice"
        raise ProtocolError(detail, frame=message, code="bad_flags", offset=4)
    if status and flags != Kind.REPLY:
        detail = f"status {status} in a message that is no reply"
        raise ProtocolError(detail, frame=message, code="bad_status", offset=11)
    return ApfHeader(
        kind=KINDS[flags], version=version, opcode=opcode, message_id=message_id, status=status
    )


def encode_header(
    kind: Kind, version: int, opcode: int, message_id: int, status: int, vendor_id: int
) -> bytes:
    """Raises ValueError for a number that its field can't hold."""
    try:
        return HEADER_STRUCT.pack(
            MESSAGE_TYPE, vendor_id.to_bytes(2, "big"), version, kind, opcode, message_id, status
        )
    except (struct.error, OverflowError) as exc:
        raise ValueError(f"APF header can't be encoded: {exc}") from exc
