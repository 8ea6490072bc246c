"""Refusals: a reply whose status is not 0. Specification: protocol/SPEC.md section 5."""

from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, Final

from protocol.apf.fields import U16, U32, Body, Wire, enum8, layout, text8


class RefusalReason(IntEnum):
    """Why a request was refused; append-only. SPEC 5.1 says which may be retried."""

    UNKNOWN_OPCODE = 1
    MALFORMED = 2
    VERSION = 3
    LAYOUT = 4
    FOREIGN_CARD = 5
    FOREIGN_BOOT = 6
    STALE_EPOCH = 7
    STALE_GENERATION = 8
    UNKNOWN_INSTANCE = 9
    BUSY = 10
    NO_SPACE = 11
    NO_RUNTIME = 12
    BAD_DIGEST = 13
    MISSING_BLOB = 14
    BAD_SPEC = 15
    NO_LEASE = 16
    LIMIT = 17
    BAD_STATE = 18
    INTERNAL = 19
    NO_WINDOW = 20
    TOO_LARGE = 21


RETRYABLE: Final = frozenset(  # SPEC 5.1, column "again": the same request may succeed later
    {
        RefusalReason.BUSY,
        RefusalReason.NO_SPACE,
        RefusalReason.NO_LEASE,
        RefusalReason.LIMIT,
        RefusalReason.NO_WINDOW,
    }
)

REFUSAL_WIRE: Final = layout(
    "reason" / enum8(RefusalReason, U16),
    "retry_after_ms" / U32,  # 0: no advice
    "text" / text8(),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal(Body):
    """Nothing was changed. It goes under the opcode of the request that it answers."""

    OPCODE: ClassVar[int] = 0x0000
    WIRE: ClassVar[Wire] = REFUSAL_WIRE
    reason: RefusalReason | int
    retry_after_ms: int = 0
    text: str = ""
