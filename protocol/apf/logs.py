"""Log bytes by offset. Specification: protocol/SPEC.md section 12."""

from dataclasses import dataclass
from typing import ClassVar, Final

from protocol.apf.fields import INSTANCE, U32, U64, Body, Wire, layout, within

LOG_READ_MAX_BYTES: Final = 1 << 20
LOG_LENGTH: Final = within(U32, 0, LOG_READ_MAX_BYTES)

LOG_READ_REQUEST_WIRE: Final = layout(
    "instance" / INSTANCE,
    "transfer_id" / U32,
    "offset" / U64,
    "max_bytes" / LOG_LENGTH,
)
LOG_READ_REPLY_WIRE: Final = layout("start" / U64, "end" / U64, "length" / LOG_LENGTH)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogReadRequest(Body):
    OPCODE: ClassVar[int] = 0x0701
    WIRE: ClassVar[Wire] = LOG_READ_REQUEST_WIRE
    instance: str
    transfer_id: int
    offset: int
    max_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LogReadReply(Body):
    """`length` bytes from `start` follow as chunks of the transfer through the window."""

    OPCODE: ClassVar[int] = 0x0701
    WIRE: ClassVar[Wire] = LOG_READ_REPLY_WIRE
    start: int  # > offset shows a gap: the older bytes are gone
    end: int  # bytes ever logged
    length: int
