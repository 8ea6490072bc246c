"""CCI messages explained: `apf decode --layer cci`. A tunnelled message is the inner node."""

from typing import Any, Final

from protocol.decode_node import Node, error_of, node, values_of
from protocol.errors import ProtocolError
from protocol.mctp.packet import TYPE_IC, TYPE_MASK, TYPE_NAMES

CCI_TYPES: Final = (0x07, 0x08)  # as protocol.cxl.message.TYPES
TUNNEL_DEPTH: Final = 4  # a switch, an MLD's port, its LD: nobody nests deeper


def is_cci(message: bytes) -> bool:
    """Whether a CCI header that fits stands behind its MCTP type byte."""
    if message[:1] not in (b"\x07", b"\x08"):
        return False
    shown = _node(message, type_byte=True)
    return bool(shown["ok"] or "opcode" in shown["fields"])


def cci_node(message: bytes, type_byte: bool | None = None) -> Node:
    """The node of a whole CCI message. `type_byte` says whether its MCTP type byte is there; None
    finds out: a header begins with its category, 00 or 01."""
    if type_byte is None:
        type_byte = message[:1] not in (b"\x00", b"\x01")
    return _node(message, type_byte=type_byte)


def _node(message: bytes, *, type_byte: bool, depth: int = 0) -> Node:
    from protocol.cxl.codes import opcode_name, return_code_name  # loaded when one is met
    from protocol.cxl.message import Category, CciMessage, from_mctp

    fields: dict[str, Any] = {}
    if type_byte and message:
        kind = message[0] & TYPE_MASK
        fields = {
            "type": kind,
            "type_name": TYPE_NAMES.get(kind),
            "ic": int(message[0] & TYPE_IC != 0),
        }
    try:
        parsed = from_mctp(message)[1] if type_byte else CciMessage.from_bytes(message)
    except ProtocolError as exc:
        fields["data"] = message[1 if type_byte else 0 :].hex()
        return node("cci", fields, error_of(exc.code, exc.offset, exc.detail))
    answer = parsed.category is Category.RESPONSE
    fields |= {
        "category": int(parsed.category),
        "category_name": parsed.category.name.lower(),
        "tag": parsed.tag,
        "opcode": parsed.opcode,
        "opcode_name": opcode_name(parsed.opcode),
        "length": len(parsed.payload),
        "background": int(parsed.background),
        "return_code": parsed.return_code,
        "vendor_status": parsed.vendor_status,
    }
    if answer:
        fields["return_code_name"] = return_code_name(parsed.return_code)
    return _body(parsed.opcode, parsed.payload, answer, parsed.return_code, fields, depth)


def _body(
    opcode: int, payload: bytes, answer: bool, code: int, fields: dict[str, Any], depth: int
) -> Node:
    from protocol.cxl.message import HEADER_BYTES
    from protocol.cxl.registry import REQUESTS, RESPONSES
    from protocol.cxl.switch import TunnelRequest, TunnelResponse

    body_at = HEADER_BYTES + ("type" in fields)
    kind = (RESPONSES if answer else REQUESTS).get(opcode)
    if kind is None or (answer and code and not payload):
        if payload:
            fields["data"] = payload.hex()
        return node("cci", fields)
    try:
        body = kind.from_bytes(payload)
    except ProtocolError as exc:
        fields["data"] = payload.hex()
        if answer and code:
            return node("cci", fields)  # behind an error anything may stand
        offset = body_at if exc.offset is None else body_at + exc.offset
        return node("cci", fields, error_of(exc.code, offset, exc.detail))
    inner = None
    if isinstance(body, TunnelRequest | TunnelResponse) and depth < TUNNEL_DEPTH:
        inner = _node(body.command, type_byte=False, depth=depth + 1)
    return node("cci", fields | {"body": _shown(body)}, None, inner)


def _shown(body: Any) -> dict[str, Any]:
    from protocol.cxl.events import EventRecords
    from protocol.cxl.logs import LOG_NAMES, SupportedLogs

    shown = values_of(body)
    if isinstance(body, EventRecords):
        shown["records"] = [_record(record) for record in body.records]
    if isinstance(body, SupportedLogs):
        for entry, log in zip(shown["logs"], body.logs, strict=True):
            entry["uuid_name"] = LOG_NAMES.get(log.uuid)
    return shown


def _record(record: Any) -> dict[str, Any]:
    body = record.body  # 80 bytes whatever they hold: every layout is that long
    shown = values_of(record) | {
        "uuid_name": record.kind,
        "severity": int(record.severity),
        "severity_name": record.severity.name.lower(),
    }
    return shown if body is None else shown | {"body": values_of(body)}
