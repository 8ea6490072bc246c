"""Flush of a volume from a CNM's hot tier. Specification: protocol/SPEC.md section 13."""

from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, Final

from protocol.apf.fields import (
    DIGEST,
    INSTANCE,
    U32,
    U64,
    VOLUME,
    Body,
    Wire,
    enum8,
    layout,
    text8,
)
from protocol.apf.instances import CTX_WIRE, Ctx


class FlushState(IntEnum):
    SCANNING = 0
    READY = 1
    FAILED = 2


VOLUME_FLUSH_REQUEST_WIRE: Final = layout(
    "ctx" / CTX_WIRE,
    "instance" / INSTANCE,
    "generation" / U64,
    "volume" / VOLUME,
)
VOLUME_FLUSH_REPLY_WIRE: Final = layout("flush_id" / U32)


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeFlushRequest(Body):
    OPCODE: ClassVar[int] = 0x0801
    WIRE: ClassVar[Wire] = VOLUME_FLUSH_REQUEST_WIRE
    ctx: Ctx
    instance: str
    generation: int
    volume: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeFlushReply(Body):
    OPCODE: ClassVar[int] = 0x0801
    WIRE: ClassVar[Wire] = VOLUME_FLUSH_REPLY_WIRE
    flush_id: int


VOLUME_STATE_REQUEST_WIRE: Final = layout("volume" / VOLUME, "flush_id" / U32)
VOLUME_STATE_REPLY_WIRE: Final = layout(
    "state" / enum8(FlushState),
    "manifest_digest" / DIGEST,  # zeros until READY
    "files" / U32,
    "bytes" / U64,
    "text" / text8(),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeStateRequest(Body):
    OPCODE: ClassVar[int] = 0x0802
    WIRE: ClassVar[Wire] = VOLUME_STATE_REQUEST_WIRE
    volume: str
    flush_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeStateReply(Body):
    OPCODE: ClassVar[int] = 0x0802
    WIRE: ClassVar[Wire] = VOLUME_STATE_REPLY_WIRE
    state: FlushState | int
    manifest_digest: bytes
    files: int
    bytes: int
    text: str = ""
