"""Prepare, commit, abort of a move. Specification: protocol/SPEC.md section 10."""

from dataclasses import dataclass
from typing import ClassVar

from protocol.apf.fields import Body, Wire
from protocol.apf.instances import (
    COMMAND_REPLY_WIRE,
    COMMAND_REQUEST_WIRE,
    DEPLOY_REPLY_WIRE,
    DEPLOY_REQUEST_WIRE,
    Ctx,
    InstanceState,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareRequest(Body):
    """Stage all that the instance needs, start nothing."""

    OPCODE: ClassVar[int] = 0x0501
    WIRE: ClassVar[Wire] = DEPLOY_REQUEST_WIRE
    ctx: Ctx
    instance: str
    generation: int
    spec_digest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareReply(Body):
    OPCODE: ClassVar[int] = 0x0501
    WIRE: ClassVar[Wire] = DEPLOY_REPLY_WIRE
    state: InstanceState | int
    status_seq: int
    missing: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitRequest(Body):
    """Start what was prepared; only after the old generation is known to be gone."""

    OPCODE: ClassVar[int] = 0x0502
    WIRE: ClassVar[Wire] = COMMAND_REQUEST_WIRE
    ctx: Ctx
    instance: str
    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitReply(Body):
    OPCODE: ClassVar[int] = 0x0502
    WIRE: ClassVar[Wire] = COMMAND_REPLY_WIRE
    state: InstanceState | int
    status_seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AbortRequest(Body):
    """Forget what was prepared."""

    OPCODE: ClassVar[int] = 0x0503
    WIRE: ClassVar[Wire] = COMMAND_REQUEST_WIRE
    ctx: Ctx
    instance: str
    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AbortReply(Body):
    OPCODE: ClassVar[int] = 0x0503
    WIRE: ClassVar[Wire] = COMMAND_REPLY_WIRE
    state: InstanceState | int
    status_seq: int
