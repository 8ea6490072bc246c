"""Room for what waits: others move so that it fits.

Something that waits longer than `room_ms`, or can't leave a module that drains, has a plan made for
it: at most three moves, of instances that nothing ties to where they are. The search goes on in
short steps between the loop's other work. When it finds nothing, nothing is tried again until what
waits has been looked at anew, which is when something has changed.
"""

from collections.abc import Callable, Iterator
from typing import Final

from firmware.allocator.plan_room import RoomPlanner
from firmware.allocator.plan_types import MAX_CHAIN, Rules, Want
from firmware.assignments import Assignment
from firmware.chain_runner import ChainRunner
from firmware.decisions import Decisions
from firmware.loop import MS, Loop
from firmware.placements import Placements
from firmware.placer import Placer
from firmware.workload import Component

WANTS_MOST: Final = 64  # the most constrained of what waits
STEPS_A_TURN: Final = 4  # of the search; each takes some hundred microseconds, at most a few ms


class RoomMaker:
    """Loop thread only."""

    def __init__(
        self,
        loop: Loop,
        decisions: Decisions,
        placer: Placer,
        placements: Placements,
        runner: ChainRunner,
        room_ms: int,
        *,
        may_move: Callable[[str], bool],
        moved: Callable[[str], None],
    ) -> None:
        self.enabled = True  # not in safe mode
        self._loop = loop
        self._decisions = decisions
        self._placer = placer
        self._placements = placements
        self._runner = runner
        self._room_ns = room_ms * MS
        self._may_move = may_move
        self._moved = moved
        self._leaving: dict[str, None] = {}  # can't leave a module that drains; in order
        self._due = False  # a look is on its way
        self._planner: RoomPlanner | None = None
        placements.on_no_room = self.look

    def leaving(self, instance: str) -> None:
        """It must go from where it is, and fits nowhere."""
        self._leaving[instance] = None
        self.look()

    def look(self) -> None:
        """Something waits for room: in `room_ms`, if it still does then, make some."""
        if self.enabled and not self._due and self._planner is None:
            self._due = True
            self._loop.call_later(self._room_ns, self._begin)

    def _begin(self) -> None:
        self._due = False
        if self._runner.busy or self._planner is not None:
            self.look()  # after the chain that is under way
            return
        left, wants = self._runner.left(), self._wants()
        if left <= 0 or not wants or self._placements.settling():
            return  # the next time that something changes
        rules = Rules(budget=min(MAX_CHAIN, left), may_move=self._may_move, largest_first=True)
        self._planner = RoomPlanner(self._placer.state, wants, rules)
        self._step(self._planner, self._planner.run())

    def _step(self, planner: RoomPlanner, steps: Iterator[None]) -> None:
        for _ in range(STEPS_A_TURN):
            if planner.plan.chains or next(steps, self) is self:
                self._planner = None
                for chain in planner.plan.chains[:1]:
                    self._runner.run(chain, self._moved)
                return
        self._loop.post(lambda: self._step(planner, steps))

    def _wants(self) -> list[Want]:
        """What waits, the most constrained first. What must go to one place in particular, or come
        together with others, is left to those."""
        found: list[Want] = []
        waiting = sorted(
            {*self._placements.pending, *self._leaving},
            key=lambda instance: (-self._placer.tightness(instance), instance),
        )
        self._leaving.clear()  # said anew if it is still so
        for instance in waiting:
            component, assignment = self._find(instance)
            if component is None or instance in self._decisions.pending:
                continue
            workload = instance.split("/", 1)[0]
            needs, pins = self._placer.questions(workload, component, instance)
            demand, constraints = needs[-1]
            if pins and (assignment is None or assignment.place is None):
                continue
            if constraints.together or constraints.companions:
                continue
            found.append(Want(demand=demand, constraints=constraints, worth=MAX_CHAIN))
            if len(found) >= WANTS_MOST:
                break
        return found

    def _find(self, instance: str) -> tuple[Component | None, Assignment | None]:
        workload, name, _index = instance.rsplit("/", 2)
        record = self._decisions.workloads.get(workload)
        if record is None or record.deleted:
            return None, None
        return record.workload.component(name), self._decisions.assignments.get(instance)
