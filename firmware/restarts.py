"""How long an instance that ended waits before it is started again.

Twice as long each time, so that what dies at once does not keep its module busy; and from the
beginning again once it has run for a while, as Docker does it (after 10 s): a service that fails
once a day is not a crash loop. Pure; in memory only, so that a new daemon counts from the restarts
that are written down.
"""

from dataclasses import dataclass
from typing import Final

from firmware.loop import MS

FIRST_NS: Final = 100 * MS
MOST_NS: Final = 30_000 * MS
DOUBLINGS: Final = 10
STABLE_NS: Final = 10_000 * MS


@dataclass(slots=True)
class _Record:
    generation: int = 0
    since_ns: int | None = None  # it was first seen to run
    due_ns: int | None = None
    calm_at: int = 0  # restarts when it had last run for a while


class Restarts:
    """Loop thread only. One record for each instance that ran, until `forget`."""

    def __init__(self) -> None:
        self._records: dict[str, _Record] = {}

    def running(self, instance: str, generation: int, now_ns: int) -> None:
        """It is seen to run."""
        record = self._record(instance, generation)
        if record.since_ns is None:
            record.since_ns = now_ns

    def pause_ns(self, instance: str, generation: int, restarts: int, now_ns: int) -> int | None:
        """This generation has ended: how long until the next; None if that was asked before, see
        `due_ns`. `restarts` as the assignment counts them."""
        record = self._record(instance, generation)
        if record.due_ns is not None:
            return None
        if record.since_ns is not None and now_ns - record.since_ns >= STABLE_NS:
            record.calm_at = restarts
        doublings = min(max(restarts - record.calm_at, 0), DOUBLINGS)
        pause_ns = min(MOST_NS, FIRST_NS << doublings)
        record.due_ns = now_ns + pause_ns
        return pause_ns

    def due_ns(self, instance: str) -> int:
        """When the pause is over."""
        due_ns = self._records[instance].due_ns
        assert due_ns is not None
        return due_ns

    def forget(self, instance: str) -> None:
        self._records.pop(instance, None)

    def _record(self, instance: str, generation: int) -> _Record:
        record = self._records.setdefault(instance, _Record())
        if record.generation != generation:
            record.generation = generation
            record.since_ns = record.due_ns = None
        return record
