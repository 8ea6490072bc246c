"""SMBus transactions and NVMe-MI messages explained."""

from typing import Any, Final

import construct as cs

from protocol.decode_node import Node, error_of, node, values_of
from protocol.errors import ProtocolError
from protocol.nvme_mi import basic
from protocol.nvme_mi.message import (
    ADMIN_REQUEST_WIRE,
    CONTROL_WIRE,
    HEADER_BYTES,
    MI_REQUEST_WIRE,
    RESPONSE_WIRE,
    TYPE_WITH_CHECK,
    MessageKind,
    MiOpcode,
    NvmeMiMessage,
    ResponseStatus,
    wait_ms,
)
from protocol.smbus.mctp import COMMAND_CODE, SmbusFrame
from protocol.smbus.pec import pec_is_good

_BASIC: Final[dict[int, type[basic.DriveStatus | basic.DriveIdentity]]] = {
    basic.COMMAND_STATUS: basic.DriveStatus,
    basic.COMMAND_IDENTITY: basic.DriveIdentity,
}


def is_smbus(data: bytes) -> bool:
    """Whether it is surely a transaction of MCTP, or a drive's answer: the PEC says so."""
    mctp = data[1:2] == bytes([COMMAND_CODE]) and not data[0] & 1
    return len(data) > 5 and (mctp or _is_block_read(data)) and pec_is_good(data)


def is_nvme_mi(data: bytes) -> bool:
    """Whether it begins as an NVMe-MI message does."""
    return data[:1] == bytes([TYPE_WITH_CHECK])


def smbus_node(data: bytes) -> tuple[Node, bytes | None]:
    """The node of a transaction, and the MCTP packet that it carries, if it does."""
    if _is_block_read(data):
        return _block_read(data), None
    fields: dict[str, Any] = {}
    if len(data) >= 3:
        fields = {"dest_address": data[0] >> 1, "command": data[1], "count": data[2]}
    try:
        frame = SmbusFrame.from_bytes(data)
    except ProtocolError as exc:
        fields["data"] = data.hex()
        return node("smbus", fields, error_of(exc.code, exc.offset, exc.detail)), None
    fields |= {
        "src_address": frame.src_address,
        "pec": data[-1],
        "packet": frame.packet.hex(),
    }
    return node("smbus", fields), frame.packet


def _is_block_read(data: bytes) -> bool:
    """address and write, command, address and read, count, ...: SMBus 3.1, 6.5.7."""
    return len(data) >= 5 and not data[0] & 1 and data[2] == data[0] | 1 != data[1]


def _block_read(data: bytes) -> Node:
    address, command, count = data[0] >> 1, data[1], data[3]
    fields: dict[str, Any] = {"address": address, "command": command, "count": count}
    block = data[4:-1]
    fields["data"] = block.hex()
    fields["pec"] = data[-1]
    if count != len(block):
        text = f"byte count {count}, but {len(block)} bytes and a PEC follow"
        return node("smbus", fields, error_of("bad_count", 3, text))
    if not pec_is_good(data):
        return node("smbus", fields, error_of("bad_pec", len(data) - 1, "the PEC does not fit"))
    inner = None
    if address == basic.ADDRESS and command in _BASIC:
        inner = _basic(block, command)
    return node("smbus", fields, None, inner)


def _basic(block: bytes, command: int) -> Node:
    try:
        found = _BASIC[command].from_bytes(block)
    except ProtocolError as exc:
        return node("nvme_basic", {"data": block.hex()}, error_of(exc.code, exc.offset, exc.detail))
    fields = values_of(found)
    if isinstance(found, basic.DriveStatus):
        fields["temp_mdegc"] = found.temp_mdegc
        if found.temp_mdegc is None:
            fields["temp_mdegc_error"] = "the drive has no data"
        fields["warnings"] = list(found.warnings)
    return node("nvme_basic", fields)


def nvme_mi_node(message: bytes) -> Node:
    """The node of a message of MCTP type 4."""
    fields: dict[str, Any] = {}
    if message:
        fields = {"type": message[0] & 0x7F, "ic": message[0] >> 7}
    try:
        parsed = NvmeMiMessage.from_bytes(message)
    except ProtocolError as exc:
        fields["data"] = message.hex()
        return node("nvme_mi", fields, error_of(exc.code, exc.offset, exc.detail))
    fields |= {
        "ror": int(parsed.response),
        "nmimt": parsed.kind,
        "nmimt_name": _name(MessageKind, parsed.kind),
        "csi": parsed.slot,
        "meb": parsed.meb,
        "mic": int.from_bytes(message[-4:], "little"),
    }
    try:
        return node("nvme_mi", fields | _body(parsed))
    except cs.ConstructError as exc:
        fields["data"] = parsed.body.hex()
        text = " ".join(str(exc).split())
        return node("nvme_mi", fields, error_of("bad_body", HEADER_BYTES, text))


def _body(parsed: NvmeMiMessage) -> dict[str, Any]:
    raw: Any
    if parsed.kind == MessageKind.CONTROL_PRIMITIVE:
        raw = CONTROL_WIRE.parse(parsed.body)
        first = "status" if parsed.response else "opcode"
        return {first: raw.opcode, "tag": raw.tag, "parameter": raw.parameter}
    if parsed.response:
        raw = RESPONSE_WIRE.parse(parsed.body)
        shown: dict[str, Any] = {
            "status": raw.status,
            "status_name": _name(ResponseStatus, raw.status),
            "nmresp": raw.nmresp.hex(),
            "data": raw.data.hex(),
        }
        more_ms = wait_ms(parsed)
        return shown if more_ms is None else shown | {"wait_ms": more_ms}
    if parsed.kind == MessageKind.MI_COMMAND:
        raw = MI_REQUEST_WIRE.parse(parsed.body)
        return {
            "opcode": raw.opcode,
            "opcode_name": _name(MiOpcode, raw.opcode),
            "cdw0": raw.cdw0,
            "cdw1": raw.cdw1,
            "data": raw.data.hex(),
        }
    if parsed.kind == MessageKind.ADMIN_COMMAND:
        raw = ADMIN_REQUEST_WIRE.parse(parsed.body)
        return {
            "opcode": raw.opcode,
            "cflgs": raw.cflgs,
            "ctlid": raw.ctlid,
            "data": raw.data.hex(),
        }
    return {"data": parsed.body.hex()}


def _name(kind: Any, value: int) -> str | None:
    try:
        name: str = kind(value).name
    except ValueError:
        return None
    return name.lower()
