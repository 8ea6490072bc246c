"""Whole messages to typed objects and back. Specification: protocol/SPEC.md sections 2 to 5."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from protocol.apf.fields import HEADER_BYTES, Body
from protocol.apf.header import (
    HEADER_STRUCT,
    MAX_MESSAGE_BYTES,
    MESSAGE_ID_OFFSET,
    MESSAGE_TYPE,
    VENDOR_ID,
    ApfHeader,
    Kind,
    decode_header,
    encode_header,
)
from protocol.apf.lease import Grant, Heartbeat, grant_of, heartbeat_of
from protocol.apf.refusal import Refusal
from protocol.apf.registry import BODIES, UnknownBody
from protocol.apf.session import VERSION_CURRENT, VERSION_MIN, HelloRequest
from protocol.apf.telemetry import (
    InstanceTelemetry,
    Telemetry,
    instance_telemetry_of,
    telemetry_of,
)
from protocol.errors import ProtocolError

STATUS_OK: Final = 0
STATUS_REFUSED: Final = 1

_HOT: Final[dict[int, Callable[[bytes], Body]]] = {  # notices; SPEC 7 and 8
    Heartbeat.OPCODE: heartbeat_of,
    Grant.OPCODE: grant_of,
    Telemetry.OPCODE: telemetry_of,
    InstanceTelemetry.OPCODE: instance_telemetry_of,
}
_NOTICE: Final = int(Kind.NOTICE)
NOTICES: Final = {opcode: body for (kind, opcode), body in BODIES.items() if kind is Kind.NOTICE}
_unpack = HEADER_STRUCT.unpack_from


@dataclass(frozen=True, slots=True, kw_only=True)
class ApfMessage:
    """A decoded message. `body` is a Refusal exactly when `status` is not 0."""

    kind: Kind
    version: int
    opcode: int
    message_id: int
    status: int
    body: Body


def encode(
    body: Body,
    *,
    kind: Kind,
    message_id: int,
    vendor_id: int = VENDOR_ID,
    opcode: int | None = None,
) -> bytes:
    """A whole message. A Refusal needs the `opcode` of the request that it answers.

    Raises ValueError when the body does not fit its declaration or its kind.
    """
    status = STATUS_OK
    if isinstance(body, Refusal):
        if kind is not Kind.REPLY or opcode is None:
            raise ValueError("a Refusal is a reply, to an opcode that must be given")
        status = STATUS_REFUSED
    elif isinstance(body, UnknownBody):
        opcode = body.opcode
    else:
        opcode = body.OPCODE
        if BODIES.get((kind, opcode)) is not type(body):
            raise ValueError(f"{type(body).__name__} is not sent as {kind.name}")
    data = body.to_bytes()
    if HEADER_BYTES + len(data) > MAX_MESSAGE_BYTES:
        raise ValueError(f"{type(body).__name__} of {len(data)} B is above the limit")
    return encode_header(kind, VERSION_CURRENT, opcode, message_id, status, vendor_id) + data


def encode_notice(body: Body, *, message_id: int, vendor_id: int = VENDOR_ID) -> bytes:
    """As `encode` of a NOTICE, at half its cost: heartbeats, grants and telemetry all the time.

    Raises ValueError when the body does not fit its declaration or is no notice.
    """
    if NOTICES.get(body.OPCODE) is not type(body):
        raise ValueError(f"{type(body).__name__} is not sent as NOTICE")
    data = body.to_bytes()
    if HEADER_BYTES + len(data) > MAX_MESSAGE_BYTES:
        raise ValueError(f"{type(body).__name__} of {len(data)} B is above the limit")
    return b"%b%b\0%b" % (
        _notice_head(body.OPCODE, vendor_id),
        message_id.to_bytes(4, "little"),
        data,
    )


@lru_cache(maxsize=256)
def _notice_head(opcode: int, vendor_id: int) -> bytes:
    """What stands before a notice's message id."""
    head = encode_header(Kind.NOTICE, VERSION_CURRENT, opcode, 0, STATUS_OK, vendor_id)
    return head[:MESSAGE_ID_OFFSET]


def hot_notice(message: bytes, vendor_id: int) -> Body | None:
    """The body of one of the notices that come all the time, without an `ApfMessage` around it
    (0.5 us); None for every other message, which `decode` then judges.

    Raises ProtocolError "bad_body".
    """
    if not HEADER_BYTES <= len(message) <= MAX_MESSAGE_BYTES:
        return None
    type_, vendor, version, flags, opcode, _message_id, status = _unpack(message)
    hot = _HOT.get(opcode)
    if (
        hot is not None
        and flags == _NOTICE
        and type_ == MESSAGE_TYPE
        and status == 0
        and version == VERSION_CURRENT
        and int.from_bytes(vendor, "big") == vendor_id
    ):
        return hot(message)
    return None


def decode(message: bytes, *, vendor_id: int = VENDOR_ID) -> ApfMessage:
    """A whole message. An unknown opcode gives an `UnknownBody`.

    Raises ProtocolError: those of `decode_header`; "version" outside of VERSION_MIN..CURRENT (but
    never for a hello); "bad_body", with the offset in the message.
    """
    body = hot_notice(message, vendor_id)
    header = decode_header(message, vendor_id=vendor_id)
    if body is None:
        return _decode_any(message, header)
    return ApfMessage(
        kind=header.kind,
        version=header.version,
        opcode=header.opcode,
        message_id=header.message_id,
        status=header.status,
        body=body,
    )


def _decode_any(message: bytes, header: ApfHeader) -> ApfMessage:
    hello = header.opcode == HelloRequest.OPCODE and header.kind is not Kind.NOTICE
    if not hello and not VERSION_MIN <= header.version <= VERSION_CURRENT:
        detail = f"version {header.version} is not in {VERSION_MIN}..{VERSION_CURRENT}"
        raise ProtocolError(detail, frame=message, code="version", offset=3)
    data = message[HEADER_BYTES:]
    kind = Refusal if header.status else BODIES.get((header.kind, header.opcode))
    body: Body
    if kind is None:
        body = UnknownBody(opcode=header.opcode, data=data)
    else:
        try:
            body = kind.from_bytes(data)
        except ProtocolError as exc:
            offset = None if exc.offset is None else HEADER_BYTES + exc.offset
            raise ProtocolError(exc.detail, frame=message, code=exc.code, offset=offset) from exc
    return ApfMessage(
        kind=header.kind,
        version=header.version,
        opcode=header.opcode,
        message_id=header.message_id,
        status=header.status,
        body=body,
    )
