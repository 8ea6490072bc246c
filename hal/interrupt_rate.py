"""When interrupts come too often: a token bucket, the same on every backend (fault P7)."""

from dataclasses import dataclass
from typing import Final

LIMIT_PER_S: Final = 20_000  # a vector at 20 kHz already costs a core about a tenth of its time
BURST: Final = 4_000  # 0.2 s of it at once: a loop that was held up is no storm
_SECOND_NS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimit:
    """So many interrupts a second, and so many at once."""

    per_s: int = LIMIT_PER_S
    burst: int = BURST


class InterruptRate:
    """Counts the interrupts of one vector against its limit."""

    def __init__(self, limit: RateLimit, now_ns: int) -> None:
        self._limit = limit
        self._level_ns = 0  # what is owed, in time at the limit's rate
        self._since_ns = now_ns
        self.total = 0
        self.storms = 0

    def count(self, number: int, now_ns: int) -> bool:
        """Count them; True when that was too many. The bucket is empty again then."""
        self.total += number
        passed_ns = max(0, now_ns - self._since_ns)
        self._since_ns = now_ns
        self._level_ns = max(0, self._level_ns - passed_ns)
        self._level_ns += number * _SECOND_NS // self._limit.per_s
        if self._level_ns <= self._limit.burst * _SECOND_NS // self._limit.per_s:
            return False
        self._level_ns = 0
        self.storms += 1
        return True

    def text(self, number: int) -> str:
        """What an InterruptStorm says."""
        return (
            f"{number} interrupts at once and {self.total} in all, more than {self._limit.per_s} "
            f"a second beyond a burst of {self._limit.burst}: masked, storm {self.storms}"
        )
