"""Moves that nobody asked for by name: shedding load, and emptying a module that drains.

Shedding: a module above its threshold gives one component away, the one with the largest use that
fits elsewhere, then waits for `cooldown_ms`; an instance that was moved rests as long. Draining:
a few moves at a time until the module is empty. The planner of swaps and chains comes behind the
same two functions.
"""

from collections.abc import Callable
from typing import Final

from firmware.assignments import Assignment
from firmware.board_types import Thresholds
from firmware.decisions import Decisions
from firmware.events import EventCode, EventLog
from firmware.inventory import Cnm, Inventory
from firmware.loop import MS, Call, Loop
from firmware.reconciler import Reconciler

DRAINS_AT_ONCE: Final = 2
DRAIN_RETRY_NS: Final = 500 * MS


class Rebalancer:
    """Loop thread only."""

    def __init__(
        self,
        loop: Loop,
        inventory: Inventory,
        decisions: Decisions,
        reconciler: Reconciler,
        events: EventLog,
        thresholds: Thresholds,
        use: Callable[[Cnm, str], int],
    ) -> None:
        """`use(cnm, instance)`: what an instance uses, in any unit that can be compared."""
        self._loop = loop
        self._inventory = inventory
        self._decisions = decisions
        self._reconciler = reconciler
        self._events = events
        self._cooldown_ns = thresholds.cooldown_ms * MS
        self._use = use
        self._shed_ns: dict[str, int] = {}  # CNM -> when it last gave something away
        self._moved_ns: dict[str, int] = {}  # instance -> when it was last moved
        self._timers: dict[str, Call] = {}
        self._drained: set[str] = set()

    # --- load ---

    def shed(self, cnm: Cnm) -> None:
        """A report says that this module is above its threshold."""
        now_ns = self._loop.now_ns()
        if now_ns - self._shed_ns.get(cnm.id, -self._cooldown_ns) < self._cooldown_ns:
            return
        for instance in list(self._moved_ns):
            if now_ns - self._moved_ns[instance] >= self._cooldown_ns:
                del self._moved_ns[instance]
        here = self._on(cnm)
        if any(a.target is not None for a in here):
            return  # it is giving something away already
        movable = [a for a in here if a.instance not in self._moved_ns]
        if len(here) < 2:
            return  # alone on it: another module would only be loaded instead
        movable.sort(key=lambda a: (-self._use(cnm, a.instance), a.instance))
        self._shed_ns[cnm.id] = now_ns
        self._try_next(cnm, movable)

    def _try_next(self, cnm: Cnm, movable: list[Assignment]) -> None:
        if not movable:
            return
        instance = movable[0].instance

        def decided(error: str) -> None:
            if error:
                self._try_next(cnm, movable[1:])
            else:
                self._moved_ns[instance] = self._loop.now_ns()

        self._reconciler.migration.migrate_component(instance, None, f"{cnm.id} is loaded", decided)

    # --- drain ---

    def drain(self, cnm: Cnm) -> None:
        """Move everything off; goes on by itself until the module is empty or undrained."""
        cancel = self._timers.pop(cnm.id, None)
        if cancel is not None:
            cancel()
        if not cnm.draining:
            self._drained.discard(cnm.id)
            return
        here = self._on(cnm)
        if not here:
            if cnm.id not in self._drained:
                self._drained.add(cnm.id)
                self._events.emit(EventCode.CNM_DRAINED, f"{cnm.id}: empty", cnm=cnm.id)
        else:
            self._drained.discard(cnm.id)
        moving = sum(a.target is not None for a in here)
        for assignment in here:
            if moving >= DRAINS_AT_ONCE:
                break
            if assignment.target is None:
                moving += 1
                self._reconciler.migration.migrate_component(
                    assignment.instance, None, f"{cnm.id} drains", self._note(assignment.instance)
                )
        self._timers[cnm.id] = self._loop.call_later(DRAIN_RETRY_NS, lambda: self.drain(cnm))

    def _note(self, instance: str) -> Callable[[str], None]:
        def decided(error: str) -> None:
            if error:
                self._reconciler.waiting[instance] = f"can't leave: {error}"

        return decided

    def _on(self, cnm: Cnm) -> list[Assignment]:
        """What runs, or is to run, on a module; ended ones hold nothing."""
        found = [
            a
            for a in self._decisions.assignments.values()
            if a.place is not None and a.place.cnm == cnm.id and a.ending is None
        ]
        return sorted(found, key=lambda a: a.instance)
