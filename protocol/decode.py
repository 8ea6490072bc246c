"""Bytes explained, layer by layer, for `apf decode` and for logs. Shape: INTERFACES, "decode".

A node is `{layer, ok, error: {code, offset, text} | null, fields, inner: node | null}`. Layers are
serial, mctp, control, apf, cci, and "vendor" for a vendor-defined message that is not ours. `ok`
speaks of the node's own layer alone; `all_ok` asks a whole tree. Offsets count from the first byte
of the node's own layer, but those of a serial capture from the start of the capture. Fields are
integers, hex strings for bytes, and `<name>_name` beside an integer that has a name.
"""

from collections.abc import Sequence
from typing import Any, Final, TypeAlias

from protocol.decode_buses import is_nvme_mi, is_smbus, nvme_mi_node, smbus_node
from protocol.decode_cci import CCI_TYPES, cci_node, is_cci
from protocol.decode_messages import message_node
from protocol.decode_node import Node, error_of, node
from protocol.errors import ProtocolError
from protocol.mctp.packet import (
    FLAG_EOM,
    FLAG_SOM,
    FLAG_TO,
    HEADER_BYTES,
    HEADER_VERSION,
    SEQ_MASK,
    TAG_MASK,
    TYPE_CONTROL,
    TYPE_IC,
    TYPE_MASK,
    TYPE_NAMES,
    TYPE_VENDOR_PCI,
    VERSION_MASK,
    parse_packet,
)
from protocol.mctp.reassembly import Message, Reassembler
from protocol.mctp.serial_capture import Piece, read_capture
from protocol.mctp.serial_frame import FLAG, REVISION, SPECIAL
from protocol.nvme_mi.message import MESSAGE_TYPE as TYPE_NVME_MI

LAYERS: Final = ("serial", "mctp", "control", "apf", "smbus", "nvme_mi", "cci")
APF_VENDOR_ID: Final = 0x4150  # as protocol.apf.VENDOR_ID; a board may set another

Decoded: TypeAlias = Node | list[Node]

# What the reassembler says of a packet that is itself good: an older message was lost, or the
# capture began in the middle of one.
_LOST_BEFORE: Final = {"restarted", "superseded", "evicted", "peer_quota", "no_start"}
_OPEN_MESSAGES: Final = 4096  # in one capture; more would have been an error long before
_DROP_TEXTS: Final = {
    "short": "a packet needs at least one byte of payload",
    "bad_seq": "the sequence number is not the last one + 1: the message is lost",
    "bad_size": "not the size of the message's first packet: the message is lost",
    "too_long": "the message is above 65536 bytes: it is lost",
    "broadcast": "only control messages may be broadcast",
}


def decode(data: bytes, layer: str | None = None, *, vendor_id: int = APF_VENDOR_ID) -> Decoded:
    """What `data` says. A serial capture of several frames gives a list.

    `layer` names the outermost layer; None finds it by `detect_layer`. Raises `ValueError` only
    for an unknown layer name: bad bytes give nodes that say what is wrong.
    """
    if layer is None:
        layer = detect_layer(data, vendor_id=vendor_id)  # may also be "vendor"
    elif layer not in LAYERS:
        raise ValueError(f"layer {layer!r} is none of {', '.join(LAYERS)}")
    if layer == "serial":
        nodes = _serial_nodes(data, vendor_id)
        return nodes[0] if len(nodes) == 1 else nodes
    if layer == "mctp":
        return _packet_nodes([data], vendor_id)[0]
    if layer == "smbus":
        return _smbus_node(data, vendor_id)
    if layer == "nvme_mi":
        return nvme_mi_node(data)
    if layer == "cci":
        return cci_node(data)
    return message_node(data, layer, vendor_id=vendor_id)


def decode_packets(packets: Sequence[bytes], *, vendor_id: int = APF_VENDOR_ID) -> list[Node]:
    """A capture of MCTP packets, one by one; a message of several is shown with its last."""
    return _packet_nodes(packets, vendor_id)


def detect_layer(data: bytes, *, vendor_id: int = APF_VENDOR_ID) -> str:
    """The outermost layer of `data`, by its first bytes.

    7E begins both a serial frame and a vendor-defined message: it is serial if a frame is found,
    or if it looks more like a broken frame (revision 01 or another flag next, or a flag at its
    end) than like a message with our vendor id.
    """
    first = data[0] if data else -1
    if is_smbus(data):
        return "smbus"
    if is_nvme_mi(data):
        return "nvme_mi"
    if first == TYPE_VENDOR_PCI:
        if any(piece.verdict.packet for piece in read_capture(data)):
            return "serial"
        if data[1:3] == vendor_id.to_bytes(2, "big"):
            return "apf"
        broken = data[1:2] in (bytes([REVISION]), bytes([FLAG])) or data.endswith(bytes([FLAG]))
        return "serial" if broken else "vendor"
    if first == TYPE_CONTROL:
        return "control"
    if is_cci(data):
        return "cci"
    if first & VERSION_MASK != HEADER_VERSION and any(
        piece.verdict.packet for piece in read_capture(data)
    ):
        return "serial"  # noise before the first frame
    return "mctp"


def all_ok(decoded: Decoded) -> bool:
    """Whether every node of every layer is good."""
    nodes = decoded if isinstance(decoded, list) else [decoded]
    return all(item["ok"] and (item["inner"] is None or all_ok(item["inner"])) for item in nodes)


def _serial_nodes(data: bytes, vendor_id: int) -> list[Node]:
    pieces = read_capture(data)
    carried = [piece for piece in pieces if piece.good]
    inner = dict(
        zip(
            (piece.start for piece in carried),
            _packet_nodes([piece.verdict.packet for piece in carried], vendor_id),
            strict=True,
        )
    )
    return [_serial_node(data, piece, inner.get(piece.start)) for piece in pieces]


def _serial_node(data: bytes, piece: Piece, inner: Node | None) -> Node:
    verdict = piece.verdict
    fields: dict[str, Any] = {
        "offset": piece.start,
        "length": piece.end - piece.start,
        "dialect": None if verdict.dialect is None else verdict.dialect.value,
    }
    if verdict.reason != "garbage":
        head = data[piece.start + 1 : piece.start + 3]
        fields["revision"] = head[0] if head else None
        fields["count"] = head[1] if len(head) > 1 and head[0] == REVISION else None
        fields["fcs"] = verdict.fcs if verdict.fcs >= 0 else None
        fields["packet"] = verdict.packet.hex() if verdict.dialect is not None else None
        if verdict.dialect is not None and fields["dialect"] == "B":
            raw = verdict.fcs.to_bytes(2, "big")
            fields["dialect_also"] = None if set(raw) & set(SPECIAL) else "C"
    error = None if piece.good else error_of(verdict.reason or "", verdict.offset, verdict.text)
    return node("serial", fields, error, inner)


def _smbus_node(data: bytes, vendor_id: int) -> Node:
    outer, packet = smbus_node(data)
    if packet is not None:
        outer["inner"] = _packet_nodes([packet], vendor_id)[0]
    return outer


def _packet_nodes(packets: Sequence[bytes], vendor_id: int) -> list[Node]:
    """One node for each packet. A single packet is judged by itself, several as a conversation."""
    reassembler = Reassembler(max_contexts=_OPEN_MESSAGES, max_contexts_per_peer=_OPEN_MESSAGES)
    alone = len(packets) == 1
    return [_packet_node(packet, reassembler, alone, vendor_id) for packet in packets]


def _packet_node(data: bytes, reassembler: Reassembler, alone: bool, vendor_id: int) -> Node:
    fields = _packet_fields(data)
    try:
        packet = parse_packet(data)
    except ProtocolError as exc:
        return node("mctp", fields, error_of(exc.code, exc.offset, exc.detail))
    before = reassembler.drops.copy()
    message = reassembler.feed(data, link="", now_ns=0)
    reasons = list(reassembler.drops - before)
    if alone and not packet.som:
        reasons = []  # its message is elsewhere; the header is all there is to judge
    wrong = [reason for reason in reasons if reason not in _LOST_BEFORE]
    if wrong:
        text = _DROP_TEXTS.get(wrong[0], wrong[0])
        return node("mctp", fields, error_of(wrong[0], HEADER_BYTES - 1, text))
    if reasons:
        fields["lost_before"] = reasons[0]
    if message is None:
        return node("mctp", fields)
    if not packet.som:
        fields["message"] = message.data.hex()
    return node("mctp", fields, None, _message_inner(message, vendor_id))


def _packet_fields(data: bytes) -> dict[str, Any]:
    if len(data) < HEADER_BYTES:
        return {"length": len(data), "data": data.hex()}
    flags = data[3]
    fields: dict[str, Any] = {
        "version": data[0] & VERSION_MASK,
        "dest_eid": data[1],
        "src_eid": data[2],
        "som": int(flags & FLAG_SOM != 0),
        "eom": int(flags & FLAG_EOM != 0),
        "seq": flags >> 4 & SEQ_MASK,
        "to": int(flags & FLAG_TO != 0),
        "tag": flags & TAG_MASK,
        "type": None,
    }
    if flags & FLAG_SOM and len(data) > HEADER_BYTES:
        kind = data[HEADER_BYTES]
        fields["type"] = kind & TYPE_MASK
        fields["type_name"] = TYPE_NAMES.get(kind & TYPE_MASK)
        fields["ic"] = int(kind & TYPE_IC != 0)
    else:
        fields["type_error"] = "only the first packet of a message has a type"
    fields["payload"] = data[HEADER_BYTES:].hex()
    return fields


def _message_inner(message: Message, vendor_id: int) -> Node | None:
    if message.type == TYPE_CONTROL:
        return message_node(message.data, "control", vendor_id=vendor_id, type_byte=True)
    if message.type == TYPE_NVME_MI:
        return nvme_mi_node(message.data)
    if message.type == TYPE_VENDOR_PCI:
        ours = message.data[1:3] == vendor_id.to_bytes(2, "big")
        return message_node(message.data, "apf" if ours else "vendor", vendor_id=vendor_id)
    if message.type in CCI_TYPES:
        return cci_node(message.data, type_byte=True)
    return None
