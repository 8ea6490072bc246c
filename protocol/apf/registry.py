"""Every body by kind and opcode, and the hash over all their layouts. protocol/SPEC.md 4.3."""

import hashlib
from dataclasses import dataclass
from typing import ClassVar, Final

import construct as cs

from protocol.apf import instances, lease, logs, moves, session, telemetry, transfers, volumes
from protocol.apf.fields import Body, Wire, described
from protocol.apf.header import HEADER_WIRE, Kind
from protocol.apf.refusal import REFUSAL_WIRE

PAIRS: Final[tuple[tuple[type[Body], type[Body]], ...]] = (  # append-only
    (session.HelloRequest, session.HelloReply),
    (session.CapabilitiesRequest, session.CapabilitiesReply),
    (instances.DeployRequest, instances.DeployReply),
    (instances.StartRequest, instances.StartReply),
    (instances.StopRequest, instances.StopReply),
    (instances.StatusRequest, instances.StatusReply),
    (instances.RemoveRequest, instances.RemoveReply),
    (moves.PrepareRequest, moves.PrepareReply),
    (moves.CommitRequest, moves.CommitReply),
    (moves.AbortRequest, moves.AbortReply),
    (transfers.OfferRequest, transfers.OfferReply),
    (transfers.ChunkMapRequest, transfers.ChunkMapReply),
    (transfers.VerifyRequest, transfers.VerifyReply),
    (transfers.CancelRequest, transfers.CancelReply),
    (transfers.PullRequest, transfers.PullReply),
    (transfers.HaveRequest, transfers.HaveReply),
    (logs.LogReadRequest, logs.LogReadReply),
    (volumes.VolumeFlushRequest, volumes.VolumeFlushReply),
    (volumes.VolumeStateRequest, volumes.VolumeStateReply),
)
NOTICES: Final[tuple[type[Body], ...]] = (  # append-only
    lease.Heartbeat,
    lease.Grant,
    telemetry.Telemetry,
    telemetry.InstanceTelemetry,
    instances.StatusChanged,
)

BODIES: Final[dict[tuple[Kind, int], type[Body]]] = {
    **{(Kind.REQUEST, request.OPCODE): request for request, _ in PAIRS},
    **{(Kind.REPLY, reply.OPCODE): reply for _, reply in PAIRS},
    **{(Kind.NOTICE, notice.OPCODE): notice for notice in NOTICES},
}
REPLY_OF: Final[dict[type[Body], type[Body]]] = dict(PAIRS)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownBody(Body):
    """A body whose opcode this version does not know: the receiver refuses it by name."""

    OPCODE: ClassVar[int] = 0x0000
    WIRE: ClassVar[Wire] = described(cs.GreedyBytes, "unknown")
    opcode: int
    data: bytes

    def to_bytes(self) -> bytes:
        """The bytes as they came."""
        return self.data


def layout_text() -> str:
    """One line for each layout in opcode order; what LAYOUT_HASH is the hash of."""
    sizes = [f"{field.name}:{field.sizeof()}" for field in HEADER_WIRE.subcons]
    lines = ["header {" + ";".join(sizes) + "}", f"refusal {REFUSAL_WIRE.docs}"]
    for (kind, opcode), body in sorted(BODIES.items(), key=lambda item: (item[0][1], item[0][0])):
        lines.append(f"{opcode:#06x} {kind.name} {body.__name__} {body.WIRE.docs}")
    return "\n".join(lines)


LAYOUT_HASH: Final = hashlib.sha256(layout_text().encode()).digest()[:8]
