"""Moves that nobody asked for by name: for load, for room, and off a module that drains.

Shedding: a module above its threshold gives one component away, the one whose going relieves it
most and heats nobody else, or swaps it for one with less use; then it rests for `cooldown_ms`.
Draining: a few moves at a time until the module is empty, the most constrained first; for what
fits nowhere, others make room. An instance that was moved rests for `rest_ms`; all that the
planner moves is within `moves_per_hour`.
"""

from collections.abc import Callable, Iterator
from typing import Final

from firmware.allocator.plan_shed import ShedPlanner
from firmware.allocator.plan_types import MAX_CHAIN, Rules
from firmware.assignments import Assignment
from firmware.board_types import Thresholds
from firmware.chain_runner import ChainRunner
from firmware.decide import Sight
from firmware.decisions import Decisions
from firmware.events import EventCode, EventLog
from firmware.inventory import Cnm, Inventory
from firmware.loop import MS, Call, Loop
from firmware.placer import Placer
from firmware.reconciler import Reconciler
from firmware.room_maker import STEPS_A_TURN, RoomMaker
from protocol.apf import InstanceState

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
        placer: Placer,
        events: EventLog,
        thresholds: Thresholds,
        use: Callable[[str, str], int],
    ) -> None:
        """`use(cnm, instance)`: what an instance uses, in thousandths of a core."""
        self._loop = loop
        self._inventory = inventory
        self._decisions = decisions
        self._reconciler = reconciler
        self._placer = placer
        self._events = events
        self._thresholds = thresholds
        self._use = use
        self.runner = ChainRunner(
            loop, placer.state, decisions, reconciler.migration, thresholds.moves_per_hour
        )
        self.room = RoomMaker(
            loop,
            decisions,
            placer,
            reconciler.placements,
            self.runner,
            thresholds.room_ms,
            may_move=self._may_move,
            moved=self._note_move,
        )
        self._shed_ns: dict[str, int] = {}  # CNM -> when it last gave something away
        self._planning: str | None = None  # the CNM whose load is being planned away
        self._moved_ns: dict[str, int] = {}  # instance -> when it was last moved
        self._timers: dict[str, Call] = {}
        self._drained: set[str] = set()

    # --- who may move ---

    def _note_move(self, instance: str) -> None:
        self._moved_ns[instance] = self._loop.now_ns()

    def _resting(self, instance: str) -> bool:
        moved_ns, rest_ns = self._moved_ns.get(instance), self._thresholds.rest_ms * MS
        return moved_ns is not None and self._loop.now_ns() - moved_ns < rest_ns

    def _runs_settled(self, instance: str) -> bool:
        """It runs where it is meant to run, and nothing is being decided about it."""
        assignment = self._decisions.assignments.get(instance)
        if assignment is None or assignment.place is None or assignment.target is not None:
            return False
        if instance in self._decisions.pending or assignment.ending is not None:
            return False
        seen = self._inventory.look(assignment.place, instance)
        return (
            seen.sight is Sight.CURRENT
            and seen.status is not None
            and seen.status.state == InstanceState.RUNNING
            and seen.status.generation == assignment.place.generation
        )

    def _may_move(self, instance: str) -> bool:
        """For somebody else's sake: never with data that would have to come along."""
        assignment = self._decisions.assignments.get(instance)
        if assignment is None or self._resting(instance) or not self._runs_settled(instance):
            return False
        record = self._decisions.workloads.get(assignment.workload)
        component = record.workload.component(assignment.component) if record else None
        return component is not None and not component.volumes

    def _may_leave(self, instance: str) -> bool:
        """For load: its data may come along."""
        return not self._resting(instance) and self._runs_settled(instance)

    # --- load ---

    def shed(self, cnm: Cnm) -> None:
        """A report says that this module is above its threshold."""
        now_ns, cooldown_ns = self._loop.now_ns(), self._thresholds.cooldown_ms * MS
        if now_ns - self._shed_ns.get(cnm.id, -cooldown_ns) < cooldown_ns:
            return
        if self._planning is not None or self.runner.busy or self.runner.left() <= 0:
            return  # the next report asks again
        for instance in [i for i in self._moved_ns if not self._resting(i)]:
            del self._moved_ns[instance]
        here = self._on(cnm)
        if any(a.target is not None for a in here):
            return  # it is giving something away already
        if len(here) < 2:
            return  # alone on it: another module would only be loaded instead
        self._shed_ns[cnm.id] = now_ns
        self._planning = cnm.id
        planner = ShedPlanner(
            self._placer.state,
            cnm.id,
            self._use,
            Rules(budget=min(MAX_CHAIN, self.runner.left()), may_move=self._may_leave),
            high_percent=self._thresholds.cpu_high_percent,
            low_percent=self._thresholds.cpu_low_percent,
        )
        self._shed_step(planner, planner.run())

    def _shed_step(self, planner: ShedPlanner, steps: Iterator[None]) -> None:
        for _ in range(STEPS_A_TURN):
            if next(steps, self) is self:
                self._planning = None
                for chain in planner.plan.chains:
                    self.runner.run(chain, self._note_move)
                return
        self._loop.post(lambda: self._shed_step(planner, steps))

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
        here.sort(key=lambda a: (-self._placer.tightness(a.instance), a.instance))
        moving = sum(a.target is not None for a in here)
        for assignment in here:
            if moving >= DRAINS_AT_ONCE:
                break
            if assignment.target is None and self._leave(assignment.instance, cnm):
                moving += 1
        self._timers[cnm.id] = self._loop.call_later(DRAIN_RETRY_NS, lambda: self.drain(cnm))

    def _leave(self, instance: str, cnm: Cnm) -> bool:
        """Begin its move; False when it is refused at once, so that others get their turn."""
        refused = False

        def decided(error: str) -> None:
            nonlocal refused
            if error:
                refused = True
                self._reconciler.waiting[instance] = f"can't leave: {error}"
                if self._runs_settled(instance):
                    self.room.leaving(instance)

        self._reconciler.migration.migrate_component(instance, None, f"{cnm.id} drains", decided)
        return not refused

    def _on(self, cnm: Cnm) -> list[Assignment]:
        """What runs, or is to run, on a module; ended ones hold nothing."""
        found = [
            a
            for a in self._decisions.assignments.values()
            if a.place is not None and a.place.cnm == cnm.id and a.ending is None
        ]
        return sorted(found, key=lambda a: a.instance)
