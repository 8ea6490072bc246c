"""Moves that nobody asked for by name: for load, for room, and off a module that drains.

Shedding: a module above its threshold gives one component away, the one whose going relieves it
most and heats nobody else, or swaps it for one with less use; then it rests for `cooldown_ms`.
Draining (`firmware.drainer`): by one plan for all that is there. Room for what waits:
`firmware.room_maker`, and for what may come: `firmware.tidying`. An instance that was moved rests
for `rest_ms`; all that the card moves by itself is within `moves_per_hour`.
"""

from collections.abc import Callable, Iterator

from firmware.allocator.plan_shed import ShedPlanner
from firmware.allocator.plan_types import MAX_CHAIN, Rules
from firmware.assignments import Assignment
from firmware.board_types import Thresholds
from firmware.chain_runner import ChainRunner
from firmware.decisions import Decisions
from firmware.drainer import Drainer
from firmware.events import EventLog
from firmware.inventory import Cnm, Inventory
from firmware.loop import MS, Loop
from firmware.move_facts import MoveFacts
from firmware.placer import Placer
from firmware.reconciler import Reconciler
from firmware.room_maker import STEPS_A_TURN, RoomMaker
from firmware.tidying import Tidying


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
        facts: MoveFacts,
        loaded: Callable[[], bool],
    ) -> None:
        """`use(cnm, instance)`: what an instance uses, in thousandths of a core; `loaded()`: a
        module is above its threshold."""
        self._loop = loop
        self._decisions = decisions
        self._placer = placer
        self._thresholds = thresholds
        self._use = use
        self._facts = facts
        self._loaded = loaded
        self.runner = ChainRunner(
            loop,
            placer.state,
            decisions,
            reconciler.migration,
            thresholds.moves_per_hour,
            facts.weigh,
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
            rules=self._rules,
        )
        self.drainer = Drainer(
            loop,
            inventory,
            decisions,
            reconciler,
            placer,
            events,
            self.runner,
            may_move=self._may_move,
            moved=self._note_move,
            stays=self._stays,
            rules=self._rules,
        )
        self.tidying = Tidying(
            loop,
            decisions,
            placer,
            reconciler.placements,
            self.runner,
            quiet=self._quiet,
            may_move=self._may_move,
            moved=self._note_move,
            rules=self._rules,
        )
        self._shed_ns: dict[str, int] = {}  # CNM -> when it last gave something away
        self._planning: str | None = None  # the CNM whose load is being planned away
        self._moved_ns: dict[str, int] = {}  # instance -> when it was last moved

    # --- who may move ---

    def _rules(self, budget: int, may_move: Callable[[str], bool]) -> Rules:
        return Rules(
            budget=budget, may_move=may_move, largest_first=True, weights=self._facts.weights()
        )

    def _note_move(self, instance: str) -> None:
        for name in [i for i in self._moved_ns if not self._resting(i)]:
            del self._moved_ns[name]
        self._moved_ns[instance] = self._loop.now_ns()

    def _resting(self, instance: str) -> bool:
        moved_ns, rest_ns = self._moved_ns.get(instance), self._thresholds.rest_ms * MS
        return moved_ns is not None and self._loop.now_ns() - moved_ns < rest_ns

    def _may_move(self, instance: str) -> bool:
        """For somebody else's sake: never with data that would have to come along."""
        assignment = self._decisions.assignments.get(instance)
        if assignment is None or self._resting(instance) or not self._facts.runs_settled(instance):
            return False
        record = self._decisions.workloads.get(assignment.workload)
        component = record.workload.component(assignment.component) if record else None
        return component is not None and not component.volumes

    def _may_leave(self, instance: str) -> bool:
        """For load: its data may come along, unless others use it too."""
        assignment = self._decisions.assignments.get(instance)
        component = self._placer.component_of(assignment) if assignment is not None else None
        return (
            assignment is not None
            and component is not None
            and not self._resting(instance)
            and self._facts.runs_settled(instance)
            and not self._placer.sharing(assignment, component)
        )

    def _quiet(self) -> bool:
        """Nothing is to be moved, nothing has just been, and no module is loaded."""
        return (
            self._planning is None
            and self.drainer.idle
            and self.room.idle
            and not any(self._resting(instance) for instance in self._moved_ns)
            and not self._loaded()
        )

    # --- load ---

    def shed(self, cnm: Cnm) -> None:
        """A report says that this module is above its threshold."""
        now_ns, cooldown_ns = self._loop.now_ns(), self._thresholds.cooldown_ms * MS
        if now_ns - self._shed_ns.get(cnm.id, -cooldown_ns) < cooldown_ns:
            return
        if self._planning is not None or self.runner.busy or self.runner.left() <= 0:
            return  # the next report asks again
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
            self._rules(min(MAX_CHAIN, self.runner.left()), self._may_leave),
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
        """Move everything off, if it is to be drained; goes on by itself."""
        self.drainer.drain(cnm)

    def _stays(self, instance: str) -> None:
        """It finds no way out of a module that drains."""
        if self._facts.runs_settled(instance):
            self.room.leaving(instance)

    def _on(self, cnm: Cnm) -> list[Assignment]:
        """What runs, or is to run, on a module; ended ones hold nothing."""
        found = [
            a
            for a in self._decisions.assignments.values()
            if a.place is not None and a.place.cnm == cnm.id and a.ending is None
        ]
        return sorted(found, key=lambda a: a.instance)
