"""How often something may be done: a token bucket in whole tokens, all integers."""

from typing import Final

SECOND_NS: Final = 1_000_000_000


class Tokens:
    """`per_s` a second on average, `burst` at once. Full at the start."""

    def __init__(self, now_ns: int, *, per_s: int, burst: int) -> None:
        self._per_s, self._burst = per_s, burst
        self._tokens = burst
        self._since_ns = now_ns

    def take(self, now_ns: int) -> bool:
        """Take one; False when there is none. The next comes within 1 / `per_s`."""
        fresh = (now_ns - self._since_ns) * self._per_s // SECOND_NS
        if fresh > 0:
            self._tokens = min(self._burst, self._tokens + fresh)
            self._since_ns += fresh * SECOND_NS // self._per_s
        if self._tokens == 0:
            return False
        self._tokens -= 1
        return True
