"""Empties modules that are to take nothing new, by one plan for all that is there.

The plan (`firmware.allocator.plan_drain`) says who goes first and who of others makes room; it is
searched in short steps between the loop's other work. Its chains are carried out a few at a time.
Where one needs no room made it goes where the placer would have it, if all that is still to leave
then keeps its way out; else where the plan says. What no longer fits is planned anew.

What finds no way out stays, and says why; nothing is tried again until room or the module's
instances have changed, or `AGAIN_NS` has passed. People asked: no move counts in the hour's budget.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Final

from firmware.allocator.plan_check import objection
from firmware.allocator.plan_drain import DrainPlanner
from firmware.allocator.plan_types import Chain, Rules
from firmware.assignments import Assignment
from firmware.chain_runner import ChainRunner
from firmware.decide import Sight
from firmware.decisions import Decisions
from firmware.events import EventCode, EventLog
from firmware.inventory import Cnm, Inventory
from firmware.loop import MS, Call, Loop
from firmware.placer import NoRoom, Placer
from firmware.reconciler import Reconciler

DRAINS_AT_ONCE: Final = 2  # moves off one module
LOOK_NS: Final = 500 * MS  # between two looks at a module that drains
DOUBLED_MOST: Final = 4  # times, the rest after a plan that moves nothing: 8 s
AGAIN_NS: Final = 15_000 * MS  # what stays is tried again after so long, whatever has changed
STEPS_A_TURN: Final = 4  # of the search
MOVES_MOST: Final = 4096  # of one plan
KEPT_OPEN: Final = 64  # moves that a choice of the placer must leave possible; of longer plans the
# first

Seen = tuple[int, tuple[tuple[str, bool], ...]]


@dataclass(slots=True)
class _Drain:
    """One module that drains."""

    cnm: Cnm
    said_empty: bool = False
    timer: Call | None = None
    chains: deque[Chain] | None = None  # of the plan, not begun; None: there is none
    under_way: int = 0  # chains
    refused: set[str] = field(default_factory=set)  # whose planned move was
    stuck: dict[str, str] = field(default_factory=dict)  # instance -> why it stays
    tried: Seen | None = None  # what was seen when a plan was made that moves nothing
    tried_ns: int = 0
    fruitless: int = 0  # such plans in a row


class Drainer:
    """Loop thread only."""

    def __init__(
        self,
        loop: Loop,
        inventory: Inventory,
        decisions: Decisions,
        reconciler: Reconciler,
        placer: Placer,
        events: EventLog,
        runner: ChainRunner,
        *,
        may_move: Callable[[str], bool],
        moved: Callable[[str], None],
        stays: Callable[[str], None],
        rules: Callable[[int, Callable[[str], bool]], Rules],
    ) -> None:
        """`may_move(instance)`: it may make room for others; `moved(instance)` when it does;
        `stays(instance)` for what finds no way out; `rules(budget, may_move)` of a plan."""
        self._loop = loop
        self._inventory = inventory
        self._decisions = decisions
        self._reconciler = reconciler
        self._placer = placer
        self._events = events
        self._runner = runner
        self._may_move = may_move
        self._moved = moved
        self._stays = stays
        self._rules = rules
        self._drains: dict[str, _Drain] = {}  # at most one a slot
        self._planning: _Drain | None = None  # one plan at a time
        self._queue: dict[str, None] = {}  # modules whose turn comes after it

    @property
    def idle(self) -> bool:
        """Nothing is to leave a module."""
        return all(drain.said_empty for drain in self._drains.values())

    def drain(self, cnm: Cnm) -> None:
        """Move everything off, if it is to be drained; goes on by itself until it is empty or
        undrained."""
        drain = self._drains.get(cnm.id)
        if not cnm.draining:
            if drain is not None:
                self._end(drain)
            return
        if drain is None:
            drain = self._drains[cnm.id] = _Drain(cnm)
        drain.tried, drain.fruitless = None, 0  # the module itself has changed
        self._look(drain)

    def _end(self, drain: _Drain) -> None:
        """Undrained: what is under way is finished, and nothing more is begun."""
        del self._drains[drain.cnm.id]
        if drain.timer is not None:
            drain.timer()
        for instance in drain.stuck:
            self._reconciler.waiting.pop(instance, None)
            self._reconciler.kick(instance)  # it may have a reason of its own

    # --- what is there ---

    def _here(self, cnm: Cnm) -> list[Assignment]:
        """What runs, or is to run, on a module; ended ones hold nothing."""
        found = [self._decisions.assignments[name] for name in self._decisions.concerned(cnm.id)]
        return sorted(
            (a for a in found if a.place and a.place.cnm == cnm.id and a.ending is None),
            key=lambda a: a.instance,
        )

    def _may_leave(self, assignment: Assignment) -> bool:
        """A move of it could be decided now; shared volumes are asked for in `_leaves`."""
        place = assignment.place
        return (
            place is not None
            and assignment.target is None
            and not assignment.evicting
            and assignment.instance not in self._decisions.pending
            and self._inventory.look(place, assignment.instance).sight is Sight.CURRENT
        )

    def _seen(self, here: list[Assignment]) -> Seen:
        """Of what a plan depends on."""
        leaving = tuple((a.instance, self._may_leave(a)) for a in here)
        return self._placer.state.changes, leaving

    def _look(self, drain: _Drain) -> None:
        if self._drains.get(drain.cnm.id) is not drain:
            return  # undrained meanwhile
        self._runner.drop_dead()
        here = self._here(drain.cnm)
        if not here and not drain.said_empty:
            text = f"{drain.cnm.id}: empty"
            self._events.emit(EventCode.CNM_DRAINED, text, cnm=drain.cnm.id)
        drain.said_empty = not here
        if here:
            self._go_on(drain, here)
        if drain.timer is not None:
            drain.timer()
        drain.timer = self._loop.call_later(LOOK_NS, lambda: self._look(drain))

    def _go_on(self, drain: _Drain, here: list[Assignment]) -> None:
        self._say_stuck(drain, here)
        moving = sum(a.target is not None for a in here)
        if drain.chains:
            self._begin_chains(drain, moving)
        elif drain.chains is not None:
            if not drain.under_way and not moving:
                drain.chains = None  # carried out; what is still there stays for now
        elif not drain.under_way and self._is_due(drain, here):
            if self._planning is None:
                self._plan(drain, here)
            elif self._planning is not drain:
                self._queue[drain.cnm.id] = None

    def _is_due(self, drain: _Drain, here: list[Assignment]) -> bool:
        """Anything has changed since the last plan that moved nothing; on a card where much does,
        more and more seldom."""
        if drain.tried is None:
            return True
        since_ns = self._loop.now_ns() - drain.tried_ns
        if since_ns < LOOK_NS << min(drain.fruitless, DOUBLED_MOST):
            return False
        return since_ns >= AGAIN_NS or drain.tried != self._seen(here)

    def _say_stuck(self, drain: _Drain, here: list[Assignment]) -> None:
        """The reconciler forgets such a reason whenever it looks at the instance."""
        still = {a.instance for a in here if a.target is None}
        drain.stuck = {name: why for name, why in drain.stuck.items() if name in still}
        for instance, why in drain.stuck.items():
            self._reconciler.waiting.setdefault(instance, why)

    # --- the plan ---

    def _plan(self, drain: _Drain, here: list[Assignment]) -> None:
        leaving = {
            a.instance
            for a in here
            if a.instance not in drain.refused and self._may_leave(a) and self._is_free(a)
        }
        on_cnm = {a.instance for a in here}

        def may_move(instance: str) -> bool:
            return instance in leaving if instance in on_cnm else self._may_move(instance)

        self._planning = drain
        drain.tried, drain.tried_ns = self._seen(here), self._loop.now_ns()
        planner = DrainPlanner(self._placer.state, drain.cnm.id, self._rules(MOVES_MOST, may_move))
        self._step(drain, planner, planner.run())

    def _is_free(self, assignment: Assignment) -> bool:
        """It shares no volume with another one: those stay on one module."""
        component = self._placer.component_of(assignment)
        return component is not None and not self._placer.sharing(assignment, component)

    def _step(self, drain: _Drain, planner: DrainPlanner, steps: Iterator[None]) -> None:
        for _ in range(STEPS_A_TURN):
            if next(steps, self) is self:
                self._planned(drain, planner)
                return
        self._loop.post(lambda: self._step(drain, planner, steps))

    def _planned(self, drain: _Drain, planner: DrainPlanner) -> None:
        if planner.plan.chains:
            drain.fruitless, drain.stuck = 0, {}
            drain.chains = deque(planner.plan.chains)
            self._end_planning()
            return
        drain.fruitless += 1
        drain.refused.clear()
        self._leave_one(drain, [a.instance for a in reversed(self._here(drain.cnm))])

    def _leave_one(self, drain: _Drain, names: list[str]) -> None:
        """The plan has no way out for these. Each is asked for by itself, which finds a place if
        there is one by now, or words for why not: one a turn, for it looks at all modules."""
        if not names or self._drains.get(drain.cnm.id) is not drain:
            self._end_planning()
            return
        self._leave(drain, names.pop())
        self._loop.post(lambda: self._leave_one(drain, names))

    def _leave(self, drain: _Drain, instance: str) -> None:
        assignment = self._decisions.assignments.get(instance)
        if assignment is None or assignment.target is not None:
            return

        def decided(error: str) -> None:
            if error:
                drain.stuck[instance] = f"can't leave: {error}"
                self._reconciler.waiting[instance] = drain.stuck[instance]
                self._stays(instance)

        why = f"{drain.cnm.id} drains"
        self._reconciler.migration.migrate_component(instance, None, why, decided)

    def _end_planning(self) -> None:
        """What was planned is begun, and another module has its turn."""
        ended, self._planning = self._planning, None
        following = next(iter(self._queue), "")
        self._queue.pop(following, None)
        for drain in (ended, self._drains.get(following)):
            if drain is not None:
                self._look_soon(drain)

    def _look_soon(self, drain: _Drain) -> None:
        self._loop.post(lambda: self._look(drain))

    # --- carrying it out ---

    def _begin_chains(self, drain: _Drain, moving: int) -> None:
        """As many as there may be at once, in the order of the plan."""
        chains = drain.chains
        while chains and max(moving, drain.under_way) < DRAINS_AT_ONCE:
            chain = self._by_choice(chains)
            if not self._run(drain, chain):
                if not drain.under_way and not moving:
                    drain.chains = None  # the plan is overtaken: another one at the next look
                return  # else after what is under way
            if drain.chains is not chains:
                return  # refused at once
            chains.popleft()
            moving += 1

    def _by_choice(self, chains: deque[Chain]) -> Chain:
        """The first chain; where it is one move, to where the placer would have it (its criteria
        know of spread and of load), if the others of the plan can still go where they are to."""
        first = chains[0]
        if len(first.moves) > 1:
            return first
        (move,) = first.moves
        assignment = self._decisions.assignments.get(move.instance)
        component = self._placer.component_of(assignment) if assignment is not None else None
        if assignment is None or component is None:
            return first
        choice = self._placer.find_alternative_cnm(component, assignment)
        if isinstance(choice, NoRoom) or choice == move.target:
            return first
        chosen = replace(move, target=choice, units=())
        later = [m for chain in list(chains)[1:] for m in chain.moves][:KEPT_OPEN]
        if objection(self._placer.state, [chosen, *later]):
            return first
        return replace(first, moves=(chosen,))

    def _run(self, drain: _Drain, chain: Chain) -> bool:
        here = chain.moves[-1].instance

        def moved(instance: str) -> None:
            if instance != here:
                self._moved(instance)  # it has made room, and rests

        def ended(why: str) -> None:
            drain.under_way -= 1
            if why:
                drain.refused.add(here)
                drain.chains = None  # planned anew at the next look
            else:
                self._look_soon(drain)

        def wanted() -> bool:
            return self._drains.get(drain.cnm.id) is drain

        drain.under_way += 1
        if self._runner.run(chain, moved, counted=False, wanted=wanted, ended=ended):
            return True
        drain.under_way -= 1
        return False
