"""Deploy, start, stop, status, remove. Specification: protocol/SPEC.md section 9."""

from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, Final

from protocol.apf.fields import (
    DIGEST,
    I32,
    INSTANCE,
    U16,
    U32,
    U64,
    UUID,
    Body,
    Wire,
    enum8,
    layout,
    list8,
    record,
    str8,
    text8,
)

STATUS_ENTRIES_MAX: Final = 16
STATUS_END: Final = 0xFFFF  # next_cursor: nothing follows
CGROUP_MAX_BYTES: Final = 160


class InstanceState(IntEnum):
    """SPEC 9.1 has the table of transitions."""

    ABSENT = 0
    STAGING = 1
    PREPARED = 2
    STARTING = 3
    RUNNING = 4
    STOPPING = 5
    STOPPED = 6
    EXITED = 7
    FAILED = 8


class Health(IntEnum):
    NONE = 0  # no healthcheck
    STARTING = 1
    HEALTHY = 2
    UNHEALTHY = 3


class ExitReason(IntEnum):
    NONE = 0  # not ended
    EXITED = 1
    SIGNALED = 2
    OOM_KILLED = 3
    UNKNOWN = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Ctx:
    """Who commands whom; first in every command (DESIGN section 4, rule 1)."""

    card_uuid: bytes
    epoch: int
    boot_id: bytes


CTX_WIRE: Final = record(Ctx, "card_uuid" / UUID, "epoch" / U64, "boot_id" / UUID)
STATE: Final = enum8(InstanceState)
MISSING: Final = list8(DIGEST)

DEPLOY_REQUEST_WIRE: Final = layout(
    "ctx" / CTX_WIRE,
    "instance" / INSTANCE,
    "generation" / U64,
    "spec_digest" / DIGEST,
)
DEPLOY_REPLY_WIRE: Final = layout("state" / STATE, "status_seq" / U32, "missing" / MISSING)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeployRequest(Body):
    OPCODE: ClassVar[int] = 0x0401
    WIRE: ClassVar[Wire] = DEPLOY_REQUEST_WIRE
    ctx: Ctx
    instance: str
    generation: int
    spec_digest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class DeployReply(Body):
    OPCODE: ClassVar[int] = 0x0401
    WIRE: ClassVar[Wire] = DEPLOY_REPLY_WIRE
    state: InstanceState | int
    status_seq: int
    missing: tuple[bytes, ...] = ()  # digests to send before it can go on


COMMAND_REQUEST_WIRE: Final = layout("ctx" / CTX_WIRE, "instance" / INSTANCE, "generation" / U64)
COMMAND_REPLY_WIRE: Final = layout("state" / STATE, "status_seq" / U32)


@dataclass(frozen=True, slots=True, kw_only=True)
class StartRequest(Body):
    OPCODE: ClassVar[int] = 0x0402
    WIRE: ClassVar[Wire] = COMMAND_REQUEST_WIRE
    ctx: Ctx
    instance: str
    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StartReply(Body):
    OPCODE: ClassVar[int] = 0x0402
    WIRE: ClassVar[Wire] = COMMAND_REPLY_WIRE
    state: InstanceState | int
    status_seq: int


STOP_REQUEST_WIRE: Final = layout(
    "ctx" / CTX_WIRE,
    "instance" / INSTANCE,
    "generation" / U64,
    "grace_ms" / U32,  # from the stop signal to SIGKILL
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRequest(Body):
    OPCODE: ClassVar[int] = 0x0403
    WIRE: ClassVar[Wire] = STOP_REQUEST_WIRE
    ctx: Ctx
    instance: str
    generation: int
    grace_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StopReply(Body):
    OPCODE: ClassVar[int] = 0x0403
    WIRE: ClassVar[Wire] = COMMAND_REPLY_WIRE
    state: InstanceState | int
    status_seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceStatus:
    instance: str
    generation: int
    state: InstanceState | int
    pid: int = 0  # as the CNM sees it; 0: none
    start_ticks: int = 0
    cgroup: str = ""
    health: Health | int = Health.NONE
    exit_reason: ExitReason | int = ExitReason.NONE
    exit_status: int = 0  # exit status, or signal number
    text: str = ""


INSTANCE_STATUS_WIRE: Final = record(
    InstanceStatus,
    "instance" / INSTANCE,
    "generation" / U64,
    "state" / STATE,
    "pid" / U32,
    "start_ticks" / U64,
    "cgroup" / str8(CGROUP_MAX_BYTES),
    "health" / enum8(Health),
    "exit_reason" / enum8(ExitReason),
    "exit_status" / I32,
    "text" / text8(),
)
STATUS_REQUEST_WIRE: Final = layout("cursor" / U16)
STATUS_REPLY_WIRE: Final = layout(
    "boot_id" / UUID,
    "status_seq" / U32,
    "total" / U16,
    "next_cursor" / U16,
    "entries" / list8(INSTANCE_STATUS_WIRE, STATUS_ENTRIES_MAX),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusRequest(Body):
    OPCODE: ClassVar[int] = 0x0404
    WIRE: ClassVar[Wire] = STATUS_REQUEST_WIRE
    cursor: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusReply(Body):
    OPCODE: ClassVar[int] = 0x0404
    WIRE: ClassVar[Wire] = STATUS_REPLY_WIRE
    boot_id: bytes
    status_seq: int
    total: int
    next_cursor: int = STATUS_END
    entries: tuple[InstanceStatus, ...] = ()


REMOVE_REPLY_WIRE: Final = layout("status_seq" / U32)


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveRequest(Body):
    OPCODE: ClassVar[int] = 0x0405
    WIRE: ClassVar[Wire] = COMMAND_REQUEST_WIRE
    ctx: Ctx
    instance: str
    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveReply(Body):
    OPCODE: ClassVar[int] = 0x0405
    WIRE: ClassVar[Wire] = REMOVE_REPLY_WIRE
    status_seq: int


STATUS_CHANGED_WIRE: Final = layout("boot_id" / UUID, "status_seq" / U32)


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusChanged(Body):
    """A hint to ask for Status; the same number is in every heartbeat, so it may be lost."""

    OPCODE: ClassVar[int] = 0x0406
    WIRE: ClassVar[Wire] = STATUS_CHANGED_WIRE
    boot_id: bytes
    status_seq: int
