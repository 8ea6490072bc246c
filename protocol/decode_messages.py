"""Whole messages explained: MCTP control, APF, and vendor-defined ones that are not ours."""

from typing import Any

from protocol.decode_node import Node, error_of, node, values_of
from protocol.errors import ProtocolError
from protocol.mctp.control import (
    REQUESTS,
    RESPONSES,
    Command,
    CompletionCode,
    ControlBody,
    ControlMessage,
    GetEidResponse,
    GetVersionResponse,
    SetEidRequest,
    VendorFormat,
    version_text,
)
from protocol.mctp.packet import TYPE_CONTROL, TYPE_IC, TYPE_MASK, TYPE_VENDOR_PCI

_RESERVED_COMMAND = 0x00


def message_node(
    message: bytes, layer: str, *, vendor_id: int, type_byte: bool | None = None
) -> Node:
    """The node of a whole message of `layer`: "control", "apf" or "vendor".

    `type_byte` says whether a control message has its type byte; None finds out (`_control`).
    """
    if layer == "control":
        return _control(message, type_byte)
    return _vendor(message) if layer == "vendor" else _apf(message, vendor_id)


def _control(message: bytes, type_byte: bool | None) -> Node:
    """With its type byte, as it is sent; or without, as many traces show it.

    Taken as sent if that reads without an error and its command is known; else without the type
    byte, if that does, or if the first byte can't be a type byte (00, or 80 with IC set).
    """
    as_sent = _control_node(message, type_byte=True)
    if type_byte or _reads(as_sent):
        return as_sent
    bare = _control_node(b"\0" + message, type_byte=False)
    can_be_type = not message or message[0] & TYPE_MASK == TYPE_CONTROL
    return bare if _reads(bare) or not can_be_type else as_sent


def _reads(found: Node) -> bool:
    return bool(found["ok"]) and found["fields"]["cmd_name"] is not None


def _control_node(message: bytes, *, type_byte: bool) -> Node:
    shift = 0 if type_byte else -1  # offsets are those of the bytes that were given
    fields: dict[str, Any] = {}
    if type_byte and message:
        fields = {"type": message[0] & TYPE_MASK, "ic": int(message[0] & TYPE_IC != 0)}
    try:
        parsed = ControlMessage.from_bytes(message)
    except ProtocolError as exc:
        offset = None if exc.offset is None else exc.offset + shift
        fields["data"] = message[-shift:].hex()
        return node("control", fields, error_of(exc.code, offset, exc.detail))
    fields |= {
        "rq": int(parsed.rq),
        "d": int(parsed.d),
        "iid": parsed.iid,
        "cmd": parsed.cmd,
        "cmd_name": _name(Command, parsed.cmd),
    }
    body_at = 3 + shift
    if parsed.cc is not None:
        fields |= {"cc": parsed.cc, "cc_name": _name(CompletionCode, parsed.cc)}
        body_at += 1
    if parsed.cmd == _RESERVED_COMMAND:
        error = error_of("bad_command", 2 + shift, "command 0 is reserved")
        return node("control", fields | {"data": parsed.body.hex()}, error)
    if parsed.cc and not type_byte:
        # Some stacks leave Rq clear in requests (a Cerberus test vector does).
        request = _as_request(parsed)
        fields |= {} if request is None else {"as_request": request}
    return _control_body(parsed, fields, body_at)


def _as_request(parsed: ControlMessage) -> dict[str, Any] | None:
    kind = REQUESTS.get(parsed.cmd)
    if kind is None or parsed.cc is None:
        return None
    try:
        return _body_fields(kind.from_body(bytes([parsed.cc]) + parsed.body))
    except ProtocolError:
        return None


def _control_body(parsed: ControlMessage, fields: dict[str, Any], body_at: int) -> Node:
    """After an error code a response may stop, or hold anything."""
    kind = (REQUESTS if parsed.rq else RESPONSES).get(parsed.cmd)
    failed = bool(parsed.cc)
    if kind is not None and (parsed.body or not failed):
        try:
            return node("control", fields | _body_fields(kind.from_body(parsed.body)))
        except ProtocolError as exc:
            if not failed:
                error = error_of(exc.code, body_at, exc.detail)
                return node("control", fields | {"data": parsed.body.hex()}, error)
    if parsed.body:
        fields["data"] = parsed.body.hex()
    return node("control", fields)


def _body_fields(body: ControlBody) -> dict[str, Any]:
    shown = values_of(body)
    match body:
        case GetEidResponse():
            shown |= {"endpoint_type": body.endpoint_type, "eid_type": body.eid_type}
        case GetVersionResponse():
            shown["count"] = len(body.entries)
            shown["versions"] = [version_text(entry) for entry in body.entries]
        case SetEidRequest():
            shown["op_name"] = ("set", "force", "reset", "set_discovered")[body.op]
    if "format" in shown:
        shown["format_name"] = _name(VendorFormat, shown["format"])
    if "types" in shown:
        shown["count"] = len(shown["types"])
    return shown


def _is_vendor(message: bytes) -> bool:
    return len(message) >= 3 and message[0] & TYPE_MASK == TYPE_VENDOR_PCI


def _vendor(message: bytes) -> Node:
    """Nothing but the vendor id is standard in it. DSP0236 §13; reference "mctp", 7."""
    fields: dict[str, Any] = {}
    if message:
        fields = {"type": message[0] & TYPE_MASK, "ic": int(message[0] & TYPE_IC != 0)}
    if not _is_vendor(message):
        fields["data"] = message.hex()
        text = "a vendor-defined message has its type byte and two of vendor id"
        return node("vendor", fields, error_of("short", len(message), text))
    fields |= {"vendor": int.from_bytes(message[1:3], "big"), "payload": message[3:].hex()}
    return node("vendor", fields)


def _apf(message: bytes, vendor_id: int) -> Node:
    from protocol import apf  # the codec of 24 layouts: loaded when one is met

    fields: dict[str, Any] = {}
    if _is_vendor(message) and message[1:3] != vendor_id.to_bytes(2, "big"):
        text = f"vendor id is 0x{message[1:3].hex().upper()}, ours 0x{vendor_id:04X}"
        return node("apf", _vendor(message)["fields"], error_of("bad_vendor", 1, text))
    if len(message) >= 12:
        fields = {
            "type": message[0],
            "vendor": int.from_bytes(message[1:3], "big"),
            "version": message[3],
            "rq": message[4] >> 7,
            "d": message[4] >> 6 & 1,
            "opcode": int.from_bytes(message[5:7], "little"),
            "message_id": int.from_bytes(message[7:11], "little"),
            "status": message[11],
        }
    try:
        parsed = apf.decode(message, vendor_id=vendor_id)
    except ProtocolError as exc:
        fields["data"] = message[12:].hex() if fields else message.hex()
        return node("apf", fields, error_of(exc.code, exc.offset, exc.detail))
    fields["kind_name"] = parsed.kind.name.lower()
    if isinstance(parsed.body, apf.UnknownBody):
        fields |= {"opcode_name": None, "data": parsed.body.data.hex()}
        text = f"opcode 0x{parsed.opcode:04X} is unknown to version {apf.VERSION_CURRENT}"
        return node("apf", fields, error_of("unknown_opcode", 5, text))
    fields |= {"opcode_name": type(parsed.body).__name__, "body": values_of(parsed.body)}
    return node("apf", fields)


def _name(kind: type[Command | CompletionCode | VendorFormat], value: int) -> str | None:
    return kind(value).name.lower() if value in set(kind) else None
