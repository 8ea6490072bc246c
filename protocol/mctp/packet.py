"""MCTP packet header. DSP0236 §8.1; facts and their sources: reference "mctp", 3.1.

`PACKET_HEADER_WIRE` is the declaration; `parse_packet` and `build_packet` are its `struct` fast
path, held equal to it by property tests.
"""

import struct
from dataclasses import dataclass
from typing import Final

import construct as cs

from protocol.errors import ProtocolError

HEADER_BYTES: Final = 4
HEADER_VERSION: Final = 1
VERSION_MASK: Final = 0x0F  # low nibble; the high one is reserved: sent as 0, ignored on receipt
BASELINE_UNIT_BYTES: Final = 64  # payload that every endpoint takes without negotiation
MIN_FRAGMENT_BYTES: Final = HEADER_BYTES + 1  # a packet without payload carries nothing

EID_NULL: Final = 0  # physical addressing; accepted as local
EID_FIRST: Final = 8  # 1..7 are reserved
EID_LAST: Final = 254
EID_BROADCAST: Final = 255  # never a source

FLAG_SOM: Final = 0x80
FLAG_EOM: Final = 0x40
FLAG_TO: Final = 0x08
SEQ_MASK: Final = 3
TAG_MASK: Final = 7

TYPE_CONTROL: Final = 0x00
TYPE_VENDOR_PCI: Final = 0x7E
TYPE_VENDOR_IANA: Final = 0x7F
TYPE_MASK: Final = 0x7F
TYPE_IC: Final = 0x80  # integrity check present, defined by the message type

TYPE_NAMES: Final = {
    TYPE_CONTROL: "control",
    0x01: "pldm",
    0x02: "nc_si_control",
    0x03: "ethernet",
    0x04: "nvme_mi",
    0x05: "spdm",
    0x06: "secured",
    0x07: "cxl_fm_api",
    0x08: "cxl_cci",
    TYPE_VENDOR_PCI: "vendor_pci",
    TYPE_VENDOR_IANA: "vendor_iana",
}

PACKET_HEADER_WIRE: Final = cs.BitStruct(
    "reserved" / cs.Default(cs.Nibble, 0),
    "version" / cs.Const(HEADER_VERSION, cs.Nibble),
    "dest_eid" / cs.Octet,
    "src_eid" / cs.Octet,
    "som" / cs.Flag,
    "eom" / cs.Flag,
    "seq" / cs.BitsInteger(2),
    "to" / cs.Flag,
    "tag" / cs.BitsInteger(3),
)

_HEADER: Final = struct.Struct("4B")


@dataclass(frozen=True, slots=True, kw_only=True)
class Packet:
    """One packet. `payload` holds the message type byte only when `som` is set."""

    dest_eid: int
    src_eid: int
    som: bool
    eom: bool
    seq: int  # 0..3
    to: bool  # tag owner: set on requests
    tag: int  # 0..7
    payload: bytes


def is_source(eid: int) -> bool:
    """Whether a packet may come from `eid`: null or 8..254."""
    return eid == EID_NULL or EID_FIRST <= eid <= EID_LAST


def is_destination(eid: int) -> bool:
    """Whether a packet may go to `eid`: null, 8..254 or broadcast."""
    return eid == EID_NULL or eid >= EID_FIRST


def parse_packet(data: bytes) -> Packet:
    """The packet in `data`, the whole of it.

    Raises `ProtocolError`: "short", "bad_version", "bad_dest", "bad_source", or "no_type" for a
    first packet without its message type byte.
    """
    if len(data) < HEADER_BYTES:
        raise ProtocolError(
            f"MCTP header needs {HEADER_BYTES} bytes, got {len(data)}",
            frame=data,
            code="short",
            offset=len(data),
        )
    version, dest, src, flags = _HEADER.unpack_from(data)
    if version & VERSION_MASK != HEADER_VERSION:
        raise ProtocolError(
            f"MCTP header version is {version & VERSION_MASK}, not {HEADER_VERSION}",
            frame=data,
            code="bad_version",
            offset=0,
        )
    if not is_destination(dest):
        raise ProtocolError(
            f"destination EID {dest} is reserved", frame=data, code="bad_dest", offset=1
        )
    if not is_source(src):
        raise ProtocolError(f"EID {src} can't be a source", frame=data, code="bad_source", offset=2)
    if flags & FLAG_SOM and len(data) == HEADER_BYTES:
        raise ProtocolError(
            "first packet of a message has no type byte",
            frame=data,
            code="no_type",
            offset=HEADER_BYTES,
        )
    return Packet(
        dest_eid=dest,
        src_eid=src,
        som=flags & FLAG_SOM != 0,
        eom=flags & FLAG_EOM != 0,
        seq=flags >> 4 & SEQ_MASK,
        to=flags & FLAG_TO != 0,
        tag=flags & TAG_MASK,
        payload=data[HEADER_BYTES:],
    )


def build_packet(packet: Packet) -> bytes:
    """The wire bytes of `packet`. Raises `ValueError` for values out of range."""
    if not is_destination(packet.dest_eid) or not is_source(packet.src_eid):
        raise ValueError(f"can't send from EID {packet.src_eid} to EID {packet.dest_eid}")
    if packet.som and not packet.payload:
        raise ValueError("the first packet of a message holds its type byte")
    return (
        header(
            dest_eid=packet.dest_eid,
            src_eid=packet.src_eid,
            flags=(FLAG_SOM if packet.som else 0) | (FLAG_EOM if packet.eom else 0),
            seq=packet.seq,
            to=packet.to,
            tag=packet.tag,
        )
        + packet.payload
    )


def header(*, dest_eid: int, src_eid: int, flags: int, seq: int, to: bool, tag: int) -> bytes:
    """Four header bytes; `flags` is FLAG_SOM | FLAG_EOM. Raises `ValueError`."""
    if not 0 <= seq <= SEQ_MASK or not 0 <= tag <= TAG_MASK:
        raise ValueError(f"seq {seq} must be 0..{SEQ_MASK}, tag {tag} 0..{TAG_MASK}")
    last = flags | seq << 4 | (FLAG_TO if to else 0) | tag
    try:
        return _HEADER.pack(HEADER_VERSION, dest_eid, src_eid, last)
    except struct.error as exc:
        raise ValueError(f"EIDs are bytes, not {dest_eid} and {src_eid}") from exc
