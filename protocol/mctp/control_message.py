"""MCTP control messages: header, commands, completion codes. DSP0236 §11, §12; reference "mctp", 6.

    00 type | Rq(7) D(6) reserved(5) IID(4:0) | command | completion code, in responses | body

Error responses may stop after the completion code.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Self

import construct as cs

from protocol.errors import ProtocolError
from protocol.mctp.packet import TYPE_CONTROL

HEADER_BYTES: Final = 3  # type byte included

CONTROL_HEADER_WIRE: Final = cs.BitStruct(
    "ic" / cs.Const(0, cs.Bit),  # control messages never have an integrity check
    "type" / cs.Const(TYPE_CONTROL, cs.BitsInteger(7)),
    "rq" / cs.Flag,
    "d" / cs.Flag,
    "reserved" / cs.Default(cs.Bit, 0),
    "iid" / cs.BitsInteger(5),
    "cmd" / cs.Octet,
)


class Command(IntEnum):
    """DSP0236 table 12; those that we only name have no typed body."""

    SET_EID = 0x01
    GET_EID = 0x02
    GET_UUID = 0x03
    GET_VERSION = 0x04
    GET_TYPES = 0x05
    GET_VDM_SUPPORT = 0x06
    RESOLVE_EID = 0x07
    ALLOCATE_EIDS = 0x08
    ROUTING_UPDATE = 0x09
    GET_ROUTING_TABLE = 0x0A
    PREPARE_DISCOVERY = 0x0B
    ENDPOINT_DISCOVERY = 0x0C
    DISCOVERY_NOTIFY = 0x0D
    GET_NETWORK_ID = 0x0E
    QUERY_HOP = 0x0F
    RESOLVE_UUID = 0x10
    QUERY_RATE_LIMIT = 0x11
    REQUEST_RATE_LIMIT = 0x12
    UPDATE_RATE_LIMIT = 0x13
    QUERY_INTERFACES = 0x14


class CompletionCode(IntEnum):
    """DSP0236 table 13; 0x80..0xFF belong to the command."""

    SUCCESS = 0x00
    ERROR = 0x01
    INVALID_DATA = 0x02
    INVALID_LENGTH = 0x03
    NOT_READY = 0x04
    UNSUPPORTED = 0x05
    TYPE_NOT_SUPPORTED = 0x80  # of GET_VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlMessage:
    """One control message. `cc` is None in requests, `body` begins after it in responses."""

    rq: bool
    d: bool = False  # datagram: no answer is wanted
    iid: int  # 0..31
    cmd: int  # kept as a number where `Command` does not know it
    body: bytes = b""
    cc: int | None = None

    @classmethod
    def from_bytes(cls, message: bytes) -> Self:
        """From a whole message, type byte included.

        Raises `ProtocolError`: "short", "ic_set", "bad_type", or "no_cc" for a response without
        its completion code.
        """
        if len(message) < HEADER_BYTES:
            detail = f"control header needs {HEADER_BYTES} bytes, got {len(message)}"
            raise ProtocolError(detail, frame=message, code="short", offset=len(message))
        if message[0] != TYPE_CONTROL:
            ic_set = message[0] & 0x7F == TYPE_CONTROL
            raise ProtocolError(
                "a control message can't have IC set"
                if ic_set
                else f"message type 0x{message[0]:02X} is not control",
                frame=message,
                code="ic_set" if ic_set else "bad_type",
                offset=0,
            )
        raw = CONTROL_HEADER_WIRE.parse(message)
        body = message[HEADER_BYTES:]
        if raw.rq:
            return cls(rq=True, d=raw.d, iid=raw.iid, cmd=raw.cmd, body=body)
        if not body:
            raise ProtocolError(
                "a response needs a completion code",
                frame=message,
                code="no_cc",
                offset=HEADER_BYTES,
            )
        return cls(rq=False, d=raw.d, iid=raw.iid, cmd=raw.cmd, body=body[1:], cc=body[0])

    def to_bytes(self) -> bytes:
        """The whole message, type byte included. Raises `ValueError` for values out of range."""
        if (self.cc is None) is not self.rq:
            raise ValueError("a response has a completion code and a request has none")
        try:
            head = CONTROL_HEADER_WIRE.build(
                {"rq": self.rq, "d": self.d, "iid": self.iid, "cmd": self.cmd}
            )
        except cs.ConstructError as exc:
            raise ValueError(f"control header: {exc}") from exc
        return bytes(head) + (b"" if self.cc is None else bytes([self.cc])) + self.body
