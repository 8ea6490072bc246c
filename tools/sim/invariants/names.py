"""The names of the invariants: stable, reports and tests match on them."""

from collections.abc import Callable
from enum import StrEnum
from typing import NoReturn, TypeAlias


class Invariant(StrEnum):
    """Append-only. The number is that of the reference's list (reliability and speed, 1.3)."""

    LOST = "I1 a component is lost"
    REVIVED = "I1 what had ended runs again"
    WAITS = "I1 it waits and need not"
    TWO_COPIES = "I2 two copies run"
    TWICE = "I2 a generation started twice"
    LOWER = "I2 a lower generation started"
    UNDECIDED = "I2 it runs and was never decided"
    EARLY = "I2 started before what it depends on"
    OBEYED = "I2 a stale command was obeyed"
    OVERCOMMIT = "I3 overcommit"
    DRAINED = "I3 placed on a module that is drained"
    BOOKS = "I3 the allocator's books are not what was decided"
    OVERBOOKED = "I3 more is decided than a module holds"
    ACKNOWLEDGED = "I4 acknowledged and not on disk"
    PREFIX = "I4 not a committed prefix"
    FORGOTTEN = "I4 on disk and not believed"
    ROT_BELIEVED = "I4 a damaged record was believed"
    EXCEPTION = "I5 an unhandled exception"
    BOUND = "I6 over its bound"
    DETECTION = "I7 a death went unnoticed"
    RECOVERY = "I7 no recovery in time"
    MOVES = "I7 moved again and again"
    EPOCH = "I8 the epoch fell"
    GENERATION = "I8 a generation fell"
    SEQUENCE = "I8 a sequence fell"
    SPREAD = "I9 a fault spread"
    SILENT = "I10 a fault went unreported"
    FLOOD = "I10 events came as a flood"
    UNTRUE = "I10 the card does not tell the truth"
    REPEAT = "I11 not repeatable"
    PREEMPTED = "I12 stopped for another, and should not have been"
    ABOVE = "I12 it waits, and those below it run"


class Violation(AssertionError):
    """An invariant was broken. `invariant` is its stable name, `text` what was found, `at_ns` the
    kernel's time."""

    def __init__(self, invariant: str, at_ns: int, text: str, context: str = "") -> None:
        """`context`: what helps to see it again, for the message only."""
        super().__init__(f"{invariant}: {text}" + (f"\n{context}" if context else ""))
        self.invariant = invariant
        self.at_ns = at_ns
        self.text = text


Fail: TypeAlias = Callable[[str, str], NoReturn]  # invariant, what was found
