"""What was stopped for others so far: what is left of the hour's budget, and since when one rests.

The times of an hour are a record of the journal, written with the decisions that they are of: a
daemon that starts knows what the last one has spent, whatever became of whom it stopped. A time
that is later than a daemon's start is of another boot of the card, whose clock (CLOCK_BOOTTIME)
began anew: that was before this one began. It then counts as of this boot's first moment.
"""

from collections import deque
from typing import Final

from firmware.assignments import Eviction
from firmware.decisions import Decisions
from firmware.journal import Change, Kind
from firmware.journal_records import PREEMPTED_KEY, read_preempted
from firmware.loop import MS, Loop

HOUR_NS: Final = 3_600_000 * MS


class PreemptBudget:
    """Loop thread only."""

    def __init__(self, loop: Loop, decisions: Decisions, per_hour: int) -> None:
        self.per_hour = per_hour
        self._loop = loop
        self._decisions = decisions
        self._spent: deque[int] = deque()  # when, in ms; of this hour
        self._foreign: frozenset[tuple[str, int]] = frozenset()  # for whom, when: of another boot

    def restore(self) -> None:
        """After the journal was read. Raises JournalError."""
        now_ms = self._loop.now_ns() // MS
        evicted = [a.evict for a in self._decisions.assignments.values() if a.evict is not None]
        self._foreign = frozenset((e.by, e.at_ms) for e in evicted if e.at_ms > now_ms)
        spent = read_preempted(self._decisions.journal)
        if spent is None:  # written before there was such a record
            spent = [evict.at_ms for evict in evicted]
        self._spent = deque(sorted(0 if at_ms > now_ms else at_ms for at_ms in spent))
        self._forget()

    def at_ns(self, evict: Eviction) -> int:
        """When that was, by the clock of this boot."""
        return 0 if (evict.by, evict.at_ms) in self._foreign else evict.at_ms * MS

    def left(self) -> int:
        """Instances that may still be stopped in this hour."""
        self._forget()
        return max(0, self.per_hour - len(self._spent))

    def more_ns(self) -> int | None:
        """When there will be more left than now; None while nothing is spent."""
        return self._spent[0] * MS + HOUR_NS if self._spent else None

    def spend(self, count: int, at_ms: int) -> Change:
        """So many are stopped at that time: the record to be written with it."""
        self._forget()
        self._spent.extend([at_ms] * count)
        return Change(kind=Kind.META, key=PREEMPTED_KEY, value={"value": list(self._spent)})

    def give_back(self, count: int, at_ms: int) -> None:
        """That was refused by the store."""
        for _ in range(count):
            if at_ms in self._spent:
                self._spent.remove(at_ms)

    def _forget(self) -> None:
        since_ns = self._loop.now_ns() - HOUR_NS
        while self._spent and self._spent[0] * MS <= since_ns:
            self._spent.popleft()
