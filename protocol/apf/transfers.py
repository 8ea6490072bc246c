"""Control of bulk transfers through the window. Specification: protocol/SPEC.md section 11."""

from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, Final

from protocol.apf.fields import (
    DIGEST,
    LIST_MAX,
    U8,
    U16,
    U32,
    U64,
    Body,
    Wire,
    data_of,
    enum8,
    layout,
    list8,
    within,
)
from protocol.apf.instances import CTX_WIRE, Ctx

CHUNK_MIN_BYTES: Final = 64
CHUNK_MAX_BYTES: Final = 1 << 20
CHUNKS_MAX: Final = 1 << 24  # of one object: its map is 2 MiB; 1 TiB at 64 KiB
MAP_MAX_BYTES: Final = 1024  # of one ChunkMapReply: 8,192 chunks


class OfferState(IntEnum):
    HAVE = 0  # whole and checked: send nothing
    NEED = 1
    PARTIAL = 2  # ask for the chunk map


class VerifyState(IntEnum):
    GOOD = 0
    INCOMPLETE = 1
    BAD_DIGEST = 2  # what came was dropped
    HASHING = 3  # ask again


CHUNK_BYTES: Final = within(U32, CHUNK_MIN_BYTES, CHUNK_MAX_BYTES)

OFFER_REQUEST_WIRE: Final = layout(
    "ctx" / CTX_WIRE,
    "transfer_id" / U32,
    "digest" / DIGEST,
    "size_bytes" / U64,
    "chunk_bytes" / CHUNK_BYTES,
)
OFFER_REPLY_WIRE: Final = layout(
    "state" / enum8(OfferState),
    "missing_chunks" / U32,
    "first_missing" / U32,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferRequest(Body):
    OPCODE: ClassVar[int] = 0x0601
    WIRE: ClassVar[Wire] = OFFER_REQUEST_WIRE
    ctx: Ctx
    transfer_id: int
    digest: bytes
    size_bytes: int
    chunk_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferReply(Body):
    OPCODE: ClassVar[int] = 0x0601
    WIRE: ClassVar[Wire] = OFFER_REPLY_WIRE
    state: OfferState | int
    missing_chunks: int = 0
    first_missing: int = 0


CHUNK_MAP_REQUEST_WIRE: Final = layout("transfer_id" / U32, "first_chunk" / U32)
CHUNK_MAP_REPLY_WIRE: Final = layout("first_chunk" / U32, "bits" / data_of(U16, MAP_MAX_BYTES))


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkMapRequest(Body):
    OPCODE: ClassVar[int] = 0x0602
    WIRE: ClassVar[Wire] = CHUNK_MAP_REQUEST_WIRE
    transfer_id: int
    first_chunk: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkMapReply(Body):
    OPCODE: ClassVar[int] = 0x0602
    WIRE: ClassVar[Wire] = CHUNK_MAP_REPLY_WIRE
    first_chunk: int
    bits: bytes  # bit n (LSB first) = 1: chunk first_chunk + n is there


VERIFY_REQUEST_WIRE: Final = layout("transfer_id" / U32)
VERIFY_REPLY_WIRE: Final = layout("state" / enum8(VerifyState))


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyRequest(Body):
    OPCODE: ClassVar[int] = 0x0603
    WIRE: ClassVar[Wire] = VERIFY_REQUEST_WIRE
    transfer_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReply(Body):
    OPCODE: ClassVar[int] = 0x0603
    WIRE: ClassVar[Wire] = VERIFY_REPLY_WIRE
    state: VerifyState | int


CANCEL_REQUEST_WIRE: Final = layout("transfer_id" / U32)
CANCEL_REPLY_WIRE: Final = layout()


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelRequest(Body):
    """End a transfer in either direction; what came stays for a later resume."""

    OPCODE: ClassVar[int] = 0x0604
    WIRE: ClassVar[Wire] = CANCEL_REQUEST_WIRE
    transfer_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelReply(Body):
    OPCODE: ClassVar[int] = 0x0604
    WIRE: ClassVar[Wire] = CANCEL_REPLY_WIRE


PULL_REQUEST_WIRE: Final = layout(
    "ctx" / CTX_WIRE,
    "transfer_id" / U32,
    "digest" / DIGEST,
    "first_chunk" / U32,
    "chunk_bytes" / CHUNK_BYTES,
)
PULL_REPLY_WIRE: Final = layout("size_bytes" / U64, "chunks" / U32)


@dataclass(frozen=True, slots=True, kw_only=True)
class PullRequest(Body):
    OPCODE: ClassVar[int] = 0x0605
    WIRE: ClassVar[Wire] = PULL_REQUEST_WIRE
    ctx: Ctx
    transfer_id: int
    digest: bytes
    first_chunk: int
    chunk_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PullReply(Body):
    OPCODE: ClassVar[int] = 0x0605
    WIRE: ClassVar[Wire] = PULL_REPLY_WIRE
    size_bytes: int
    chunks: int  # of the whole object; those from first_chunk on follow through the window


HAVE_REQUEST_WIRE: Final = layout("digests" / list8(DIGEST, LIST_MAX))
HAVE_REPLY_WIRE: Final = layout("bits" / data_of(U8, LIST_MAX // 8))


@dataclass(frozen=True, slots=True, kw_only=True)
class HaveRequest(Body):
    OPCODE: ClassVar[int] = 0x0606
    WIRE: ClassVar[Wire] = HAVE_REQUEST_WIRE
    digests: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HaveReply(Body):
    OPCODE: ClassVar[int] = 0x0606
    WIRE: ClassVar[Wire] = HAVE_REPLY_WIRE
    bits: bytes  # bit n (LSB first) = 1: the n-th digest of the request is there


def pack_bits(flags: list[bool]) -> bytes:
    """LSB first, as ChunkMap and Have carry them; bits past the end are 0."""
    value = sum(1 << index for index, flag in enumerate(flags) if flag)
    return value.to_bytes((len(flags) + 7) // 8, "little")


def bit_at(bits: bytes, index: int) -> bool:
    """False past the end."""
    return index >> 3 < len(bits) and bool(bits[index >> 3] >> (index & 7) & 1)
