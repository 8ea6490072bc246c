"""Room for what waits: others move so that it fits.

Something that waits longer than `room_ms`, or can't leave a module that drains, has a plan made for
it: at most three moves, of instances that nothing ties to where they are. What was lost with its
module does not wait so long: room is made for it as soon as all that was lost with it has been
looked at. The search goes on in short steps between the loop's other work.

One plan is for the first `WANTS_MOST` components that wait; when it finds nothing the next one is
for those after them, until all of them have been tried: nobody waits behind what can't be helped.
Then nothing is tried again until what waits has been looked at anew, which is when something has
changed, or the hour's budget of moves has some left again.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Final, TypeAlias

from firmware.allocator.plan_room import RoomPlanner
from firmware.allocator.plan_types import MAX_CHAIN, Rules, Want
from firmware.assignments import Assignment
from firmware.chain_runner import ChainRunner
from firmware.decisions import Decisions
from firmware.loop import MS, Call, Loop
from firmware.placements import Placements
from firmware.placer import Placer
from firmware.workload import Component

WANTS_MOST: Final = 64  # components in one plan
LOST_NS: Final = 50 * MS  # what is lost together is decided about within that (DESIGN section 6)
STEPS_A_TURN: Final = 4  # of the search; each takes some hundred microseconds, at most a few ms

Part: TypeAlias = tuple[str, str, bool]  # workload, component; whether room is promised to it


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
        rules: Callable[[int, Callable[[str], bool]], Rules],
    ) -> None:
        """`rules(budget, may_move)` of a plan."""
        self.enabled = True  # not in safe mode
        self._loop = loop
        self._decisions = decisions
        self._placer = placer
        self._placements = placements
        self._runner = runner
        self._room_ns = room_ms * MS
        self._may_move = may_move
        self._moved = moved
        self._rules = rules
        self._leaving: dict[str, None] = {}  # can't leave a module that drains; in order
        # was lost, and had no plan yet: instance -> the decision that took its place
        self._lost: dict[str, Assignment] = {}
        self._posted = False  # `_arm` is
        self._due: Call | None = None  # a plan is to be made
        self._due_ns = 0
        self._planner: RoomPlanner | None = None
        self._tried_leaving: set[Part] = set()  # of what must leave, in a round of its own
        self._tried: set[Part] = set()  # of what waits, in this round
        self._more = False  # of what waits has not been tried in this round
        self._missed = False  # what waits has been looked at anew since this round began
        placements.on_no_room = self.look
        placements.on_lost = self._note_lost
        runner.on_refill = self.look

    @property
    def idle(self) -> bool:
        """No plan is made or awaited."""
        return self._due is None and self._planner is None and not self._posted

    def leaving(self, instance: str) -> None:
        """It must go from where it is, and fits nowhere."""
        self._leaving[instance] = None
        self.look()

    def look(self) -> None:
        """Something waits for room: in `room_ms`, if it still does then, make some; at once for
        what has just lost its place."""
        if self.enabled and not self._posted:
            self._posted = True
            self._loop.post(self._arm)

    def _note_lost(self, lost: Assignment) -> None:
        self._forget_found()
        self._lost[lost.instance] = lost

    def _forget_found(self) -> None:
        """What was lost and has had another decision since, or is not wanted any more."""
        now, lost = self._decisions.assignments, self._lost
        self._lost = {name: last for name, last in lost.items() if now.get(name) is last}

    def _arm(self) -> None:
        self._posted = False
        self._forget_found()
        self._missed = True
        if self._planner is not None:
            return
        delay_ns = self._room_ns
        for name in [name for name in self._lost if name in self._placements.pending]:
            del self._lost[name]
            delay_ns = min(delay_ns, LOST_NS)
        due_ns = self._loop.now_ns() + delay_ns
        if self._due is not None:
            if self._due_ns <= due_ns:
                return
            self._due()
        self._due, self._due_ns = self._loop.call_at(due_ns, self._begin), due_ns

    def _must_leave(self, instance: str) -> bool:
        """Its module takes nothing new still: nobody moves for a drain that was called off."""
        assignment = self._decisions.assignments.get(instance)
        place = assignment.place if assignment is not None else None
        node = self._placer.state.nodes.get(place.cnm) if place is not None else None
        return node is not None and bool(node.view.why_not)

    def _begin(self) -> None:
        self._due = None
        if self._runner.busy or self._planner is not None:
            self.look()  # after the chain that is under way
            return
        names = [name for name in self._leaving if self._must_leave(name)]
        self._leaving.clear()  # said anew if it is still so
        if self._placements.settling():
            return  # the next time that something changes
        wants, more = self._wants(names, self._tried_leaving)
        if not more:
            self._tried_leaving.clear()
        if wants:
            self._plan(wants, MAX_CHAIN, names)
        else:
            self._go_round()

    def _go_round(self) -> None:
        """For those of what waits whose turn it is in this round."""
        left = self._runner.left()
        if left <= 0:
            if self._placements.pending:
                self._runner.await_refill()
            return
        if not self._tried:
            self._missed = False
        wants, self._more = self._wants(self._placements.pending, self._tried)
        if wants:
            self._plan(wants, min(MAX_CHAIN, left), [])
        else:
            self._go_on(begun=False)

    def _plan(self, wants: list[Want], budget: int, leaving: list[str]) -> None:
        self._planner = RoomPlanner(self._placer.state, wants, self._rules(budget, self._may_move))
        self._step(self._planner, self._planner.run(), leaving)

    def _step(self, planner: RoomPlanner, steps: Iterator[None], leaving: list[str]) -> None:
        """`leaving`: whom people have asked to go, for whom this is; else it is for what waits."""
        for _ in range(STEPS_A_TURN):
            if planner.plan.chains or next(steps, self) is self:
                self._planner = None
                self._planned(planner, leaving)
                return
        self._loop.post(lambda: self._step(planner, steps, leaving))

    def _planned(self, planner: RoomPlanner, leaving: list[str]) -> None:
        chains = planner.plan.chains
        begun = bool(chains) and self._runner.run(
            chains[0],
            self._moved,
            counted=not leaving,
            wanted=lambda: not leaving or any(map(self._must_leave, leaving)),
        )
        if not chains and self._runner.left() < MAX_CHAIN:
            self._runner.await_refill()  # more moves might do it
        if not leaving:
            self._go_on(begun=begun)
        elif not begun:
            self._go_round()  # what waits comes after what must leave
        elif self._placements.pending:
            self.look()

    def _go_on(self, *, begun: bool) -> None:
        """With the rest of the round: at once, or after the chain that has begun."""
        if not self._more:
            self._tried.clear()
            if self._missed:
                self.look()
        elif begun:
            self.look()
        else:
            self._due_ns = self._loop.now_ns()
            self._due = self._loop.call_at(self._due_ns, self._begin)

    def _wants(self, waiting_for_room: Iterable[str], tried: set[Part]) -> tuple[list[Want], bool]:
        """What waits, in the order of the queue, by itself the most constrained first, without what
        was `tried`; what is asked about now is added to that. And whether there is more of it. What
        must go to one place in particular, or come together with others, is left to those."""
        first: dict[Part, tuple[str, Component, Assignment | None]] = {}
        counts: dict[Part, int] = {}
        for instance in waiting_for_room:
            component, assignment = self._find(instance)
            if component is None or instance in self._decisions.pending:
                continue
            workload = instance.split("/", 1)[0]
            part = (workload, component.name, instance in self._placer.promises)
            if part not in tried:
                first.setdefault(part, (instance, component, assignment))
                counts[part] = counts.get(part, 0) + 1
        tightness = self._placer.tightness
        names = {one[0]: part for part, one in first.items()}
        by_tightness = sorted(names, key=lambda name: (-tightness(name), name))
        found: list[Want] = []
        for instance in self._placer.in_order(by_tightness)[:WANTS_MOST]:
            part = names[instance]
            tried.add(part)
            want = self._ask(part[0], *first[part])
            if want is not None:
                found.append(replace(want, count=counts[part]))
        return found, len(first) > WANTS_MOST

    def _ask(
        self, workload: str, instance: str, component: Component, assignment: Assignment | None
    ) -> Want | None:
        """What one of a component asks for: equal for all of them that wait."""
        needs, pins = self._placer.questions(workload, component, instance)
        demand, constraints = needs[-1]
        if pins and (assignment is None or assignment.place is None):
            return None
        if constraints.together or constraints.companions:
            return None
        return Want(demand=demand, constraints=constraints, worth=MAX_CHAIN)

    def _find(self, instance: str) -> tuple[Component | None, Assignment | None]:
        workload, name, _index = instance.rsplit("/", 2)
        record = self._decisions.workloads.get(workload)
        if record is None or record.deleted:
            return None, None
        return record.workload.component(name), self._decisions.assignments.get(instance)
