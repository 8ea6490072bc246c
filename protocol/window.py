"""Layout of a window half: header, ring of descriptors, data slots. protocol/SPEC.md section 14.

The same on shared memory and on a BAR. An end writes only its own half and reads only the peer's.
Nothing read from a half is believed before the checks here passed: the peer may be wrong, may be
gone (all ones), or may change the bytes while they are read, so callers pass in *copies*.

    0x000 geometry   0x040 session, echo   0x080 head   0x0C0 tail   0x100 descriptors   data
"""

import struct
from dataclasses import dataclass
from typing import Final

import construct as cs

from protocol.crc import crc32c
from protocol.errors import ProtocolError

MAGIC: Final = 0x57465041  # the bytes "APFW"
WINDOW_VERSION: Final = 1
OFF_GEOMETRY: Final = 0x000
OFF_SESSION: Final = 0x040  # random at each attach; 0: not attached
OFF_ECHO: Final = 0x044  # the peer's session that this end has accepted
OFF_HEAD: Final = 0x080  # entries produced into this half
OFF_TAIL: Final = 0x0C0  # entries consumed from the peer's half
HEADER_BYTES: Final = 0x100
DESCRIPTOR_BYTES: Final = 32
DATA_ALIGN_BYTES: Final = 4096

RING_MAX: Final = 4096
SLOT_ALIGN_BYTES: Final = 64
SLOT_MAX_BYTES: Final = 1 << 20
SESSION_GONE: Final = 0xFFFF_FFFF  # what a vanished PCIe device reads as; never a session
WORD: Final = 0xFFFF_FFFF  # indexes are free-running u32

KIND_BLOB: Final = 1  # a chunk of a blob transfer (SPEC 11)
KIND_LOG: Final = 2  # log bytes (SPEC 12)
KIND_MCTP: Final = 3  # an MCTP packet; of a mailbox alone (SPEC 17)

HEADER_WIRE: Final = cs.Struct(
    "magic" / cs.Const(MAGIC, cs.Int32ul),
    "version" / cs.Const(WINDOW_VERSION, cs.Int16ul),
    "header_bytes" / cs.Const(HEADER_BYTES, cs.Int16ul),
    "ring_entries" / cs.Int32ul,  # a power of two, so that the index wraps with the ring
    "slot_bytes" / cs.Int32ul,
    "data_offset" / cs.Int32ul,
)
GEOMETRY_BYTES: Final = 20

DESCRIPTOR_WIRE: Final = cs.Struct(
    "seq" / cs.Int32ul,  # session + index of the entry: one of an older session never fits
    "kind" / cs.Int8ul,
    "flags" / cs.Const(0, cs.Int8ul),
    "reserved" / cs.Const(0, cs.Int16ul),
    "transfer_id" / cs.Int32ul,
    "chunk" / cs.Int32ul,
    "data_offset" / cs.Int32ul,
    "length" / cs.Int32ul,
    "crc32c" / cs.Int32ul,  # of the data
    "desc_crc" / cs.Int32ul,  # CRC-32C of the 28 bytes before
)
_GEOMETRY: Final = struct.Struct("<IHHIII")
_DESCRIPTOR: Final = struct.Struct("<IBBHIIIII")
_DESC_CRC: Final = struct.Struct("<I")
_unpack_descriptor = struct.Struct("<IBBHIIIIII").unpack


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """How one half is divided."""

    ring_entries: int
    slot_bytes: int
    data_offset: int

    def to_bytes(self) -> bytes:
        """The first GEOMETRY_BYTES of the half."""
        return _GEOMETRY.pack(
            MAGIC,
            WINDOW_VERSION,
            HEADER_BYTES,
            self.ring_entries,
            self.slot_bytes,
            self.data_offset,
        )

    def descriptor_offset(self, index: int) -> int:
        return HEADER_BYTES + index % self.ring_entries * DESCRIPTOR_BYTES

    def slot_offset(self, index: int) -> int:
        return self.data_offset + index % self.ring_entries * self.slot_bytes

    def problem(self, half_bytes: int) -> str | None:
        """What is wrong with it for a half of this size, or None."""
        ring, slot = self.ring_entries, self.slot_bytes
        if not 2 <= ring <= RING_MAX or ring & (ring - 1):
            return f"ring_entries {ring}: a power of two in 2..{RING_MAX} is needed"
        if not SLOT_ALIGN_BYTES <= slot <= SLOT_MAX_BYTES or slot % SLOT_ALIGN_BYTES:
            return f"slot_bytes {slot}: a multiple of 64 up to {SLOT_MAX_BYTES} is needed"
        table_end = HEADER_BYTES + ring * DESCRIPTOR_BYTES
        if self.data_offset < table_end or self.data_offset % SLOT_ALIGN_BYTES:
            return f"data_offset {self.data_offset:#x}: aligned, from {table_end:#x} on, is needed"
        if self.data_offset + ring * slot > half_bytes:
            return f"{ring} slots of {slot} B from {self.data_offset:#x} exceed {half_bytes} B"
        return None


def geometry_for(ring_entries: int, slot_bytes: int, half_bytes: int) -> Geometry:
    """The geometry that we write. Raises ValueError when it does not fit the half."""
    table_end = HEADER_BYTES + ring_entries * DESCRIPTOR_BYTES
    data_offset = -(-table_end // DATA_ALIGN_BYTES) * DATA_ALIGN_BYTES
    geometry = Geometry(ring_entries=ring_entries, slot_bytes=slot_bytes, data_offset=data_offset)
    problem = geometry.problem(half_bytes)
    if problem is not None:
        raise ValueError(f"window geometry: {problem}")
    return geometry


def parse_geometry(data: bytes, half_bytes: int) -> Geometry:
    """A peer's geometry. Raises ProtocolError bad_magic, bad_version or bad_geometry."""
    if len(data) != GEOMETRY_BYTES:
        raise ProtocolError("window header is short", frame=data, code="short")
    magic, version, header_bytes, ring, slot, data_offset = _GEOMETRY.unpack(data)
    if magic != MAGIC:
        detail = f"window magic {magic:#010x} is not {MAGIC:#010x}"
        raise ProtocolError(detail, frame=data, code="bad_magic", offset=0)
    if version != WINDOW_VERSION or header_bytes != HEADER_BYTES:
        detail = f"window version {version} with a header of {header_bytes} B"
        raise ProtocolError(detail, frame=data, code="bad_version", offset=4)
    geometry = Geometry(ring_entries=ring, slot_bytes=slot, data_offset=data_offset)
    problem = geometry.problem(half_bytes)
    if problem is not None:
        raise ProtocolError(problem, frame=data, code="bad_geometry", offset=8)
    return geometry


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    seq: int
    kind: int
    transfer_id: int
    chunk: int
    data_offset: int
    length: int
    crc32c: int

    def to_bytes(self) -> bytes:
        """DESCRIPTOR_BYTES, the last four being the CRC of the others."""
        data = _DESCRIPTOR.pack(
            self.seq,
            self.kind,
            0,
            0,
            self.transfer_id,
            self.chunk,
            self.data_offset,
            self.length,
            self.crc32c,
        )
        return data + _DESC_CRC.pack(crc32c(data))


def parse_descriptor(data: bytes, *, geometry: Geometry, index: int, session: int) -> Descriptor:
    """The descriptor of entry `index`, from a copy of its bytes.

    Raises ProtocolError: short, desc_crc, desc_seq (stale or torn), desc_reserved, desc_bounds.
    """
    if len(data) != DESCRIPTOR_BYTES:
        raise ProtocolError("window descriptor is short", frame=data, code="short")
    seq, kind, flags, reserved, transfer_id, chunk, offset, length, crc, own_crc = (
        _unpack_descriptor(data)
    )
    if crc32c(data[:28]) != own_crc:
        raise ProtocolError("descriptor CRC is wrong", frame=data, code="desc_crc", offset=28)
    if seq != (session + index) & WORD:
        detail = f"descriptor seq {seq:#x} is not of entry {index} of session {session:#x}"
        raise ProtocolError(detail, frame=data, code="desc_seq", offset=0)
    if flags or reserved:
        raise ProtocolError("reserved bits are set", frame=data, code="desc_reserved", offset=5)
    if length > geometry.slot_bytes or offset != geometry.slot_offset(index):
        detail = f"descriptor points at {length} B at {offset:#x}, not into slot of entry {index}"
        raise ProtocolError(detail, frame=data, code="desc_bounds", offset=16)
    return Descriptor(
        seq=seq,
        kind=kind,
        transfer_id=transfer_id,
        chunk=chunk,
        data_offset=offset,
        length=length,
        crc32c=crc,
    )


def distance(newer: int, older: int) -> int:
    """Entries from one free-running index to a later one."""
    return (newer - older) & WORD
