"""Generations that are dead on this CNM for good. DESIGN section 4, rules 1 and 9a.

A tombstone for (instance, g) makes every later command for a generation <= g stale, so that a
delayed START cannot bring back what the card was told is gone.

Bound: `LIMIT` names, one each (the highest generation counts). When full, the oldest tombstone is
dropped only when nothing that is still under way could need it: it was made under an older card
epoch (its commands are refused by epoch), or it is older than `SETTLED_NS` (no request lives that
long: its retries and its reply cache are over). Else a new name is refused with LIMIT.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

LIMIT: Final = 4096
SETTLED_NS: Final = 60_000_000_000  # ten times the 6 s for which a request id may be retried


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tombstone:
    generation: int
    epoch: int
    at_ns: int


class Tombstones:
    """Highest dead generation by instance name; oldest first."""

    def __init__(self, *, limit: int = LIMIT) -> None:
        self._limit = limit
        self._stones: OrderedDict[str, _Tombstone] = OrderedDict()

    def __len__(self) -> int:
        return len(self._stones)

    def is_dead(self, name: str, generation: int) -> bool:
        stone = self._stones.get(name)
        return stone is not None and generation <= stone.generation

    def has_room(self, name: str, *, reserved: int, epoch: int, now_ns: int) -> bool:
        """Could `name` be buried now, with room kept for `reserved` other names? Drops what may
        be dropped to make it so."""
        if name in self._stones:
            return True
        while len(self._stones) + reserved >= self._limit:
            oldest = next(iter(self._stones), None)
            if oldest is None:
                return False
            stone = self._stones[oldest]
            if stone.epoch >= epoch and now_ns - stone.at_ns < SETTLED_NS:
                return False
            del self._stones[oldest]
        return True

    def bury(self, name: str, generation: int, *, epoch: int, now_ns: int) -> None:
        """The caller made sure of `has_room` when it took the name in."""
        stone = self._stones.get(name)
        highest = max(generation, stone.generation if stone else 0)
        self._stones[name] = _Tombstone(generation=highest, epoch=epoch, at_ns=now_ns)
        self._stones.move_to_end(name)
