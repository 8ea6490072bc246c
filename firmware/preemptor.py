"""Room for what waits at the cost of others: instances of a lower priority are stopped for it.

Off unless the board allows some an hour. What waits gets its time first (`room_ms`): for room that
comes up, and for others to be moved. Then `firmware.allocator.plan_preempt` picks whom; the
decision is written on their assignments (`Eviction`) and `firmware.decide` does the rest: STOP with
their grace, volumes brought home, place given up, and they wait like everything else.

The room is promised (`firmware.promises`): until its instance is placed, is not wanted any more,
the module is out of use, or a bounded time has passed, nobody of its priority or below is placed on
that module. Whoever is not stopped by then stays where it is. A victim rests for `rest_ms`.
Decisions, rests and what is spent of the budget are in the journal, so a daemon that starts goes on
where the last one was.
"""

from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Final, TypeAlias

from firmware.allocator import Constraints, Demand
from firmware.allocator.plan_preempt import (
    VICTIMS_MOST,
    Preemption,
    PreemptPlanner,
    fits_without,
)
from firmware.assignments import Assignment, Eviction
from firmware.board_types import Thresholds
from firmware.contenders import RETRY_NS, Contenders, Want
from firmware.decisions import Decisions
from firmware.events import EventCode, EventLog
from firmware.inventory import Inventory
from firmware.loop import MS, Call, Loop
from firmware.placements import Placements
from firmware.placer import Placer
from firmware.preempt_budget import HOUR_NS, PreemptBudget
from firmware.promises import LOOK_NS, Promises, wanted_of

SLACK_NS: Final = 1_000 * MS  # beyond room_ms: for a plan of moves to be made
SPARE_NS: Final = 60_000 * MS  # beyond the victims' grace: to stop, bring data home, and place
WANTS_MOST: Final = 16  # of what waits, all unlike, in one pass
PROMISES_MOST: Final = 8  # modules that are being freed at one time
LOOKS_TO_EXPLAIN: Final = 2_000  # whoever may read may ask for it again and again
_Alike: TypeAlias = tuple[Demand, Constraints, int, str]  # and the priority and the tenant


class Preemptor:
    """Loop thread only."""

    def __init__(
        self,
        loop: Loop,
        inventory: Inventory,
        decisions: Decisions,
        placer: Placer,
        placements: Placements,
        events: EventLog,
        thresholds: Thresholds,
        *,
        moving: Callable[[], bool],
        freed: Callable[[], None],
    ) -> None:
        """`moving()`: a chain of moves is under way; `freed()`: promised room is open to all."""
        self.enabled = thresholds.preemptions_per_hour > 0  # and never in safe mode
        self._loop = loop
        self._decisions = decisions
        self._placer = placer
        self._placements = placements
        self._events = events
        self.budget = PreemptBudget(loop, decisions, thresholds.preemptions_per_hour)
        self._patience_ns = thresholds.room_ms * MS + SLACK_NS
        self._moving = moving
        self._contenders = Contenders(
            loop,
            inventory,
            decisions,
            placer,
            placements.pending,
            self.budget.at_ns,
            thresholds.rest_ms * MS,
        )
        self._promises = Promises(loop, inventory, decisions, placer, placements, freed)
        self._since: dict[str, int] = {}  # what waits -> since when
        self._posted = False  # `_note` is
        self._due: Call | None = None
        self._due_ns = 0
        self._planning = False
        self._planned_ns = -RETRY_NS  # when a pass began
        self._missed = False  # something came to wait while a plan was made
        self._tried: set[_Alike] = set()  # in this round
        self._changed = False  # something came to wait since this round began
        self._again_ns: int | None = None  # when somebody may be stopped who may not be now
        placements.on_waiting = self.look
        placements.on_found = self._forget

    def restore(self) -> None:
        """What the journal says was begun: after it was read. Raises JournalError."""
        self.budget.restore()
        now_ns = self._loop.now_ns()
        for _, assignment in sorted(self._decisions.assignments.items()):
            evict = assignment.evict
            if evict is None:
                continue
            until_ns = self.budget.at_ns(evict) + self._stop_ns([assignment])
            if assignment.evicting or (until_ns > now_ns and evict.generation):
                self._promises.make(evict.by, evict.cnm, until_ns)

    def left(self) -> int:
        """Instances that may still be stopped in this hour."""
        return self.budget.left()

    # --- when to look ---

    def look(self) -> None:
        """Something waits for room."""
        if self.enabled and not self._posted:
            self._posted = True
            self._loop.post(self._note)

    def _forget(self, instance: str) -> None:
        """It waits no more; should it ever wait again it has its patience anew."""
        self._since.pop(instance, None)

    def _note(self) -> None:
        self._posted = False
        now_ns, pending = self._loop.now_ns(), self._placements.pending
        self._since = {name: self._since.get(name, now_ns) for name in pending}
        self._missed = self._planning
        self._changed = True
        if self._since and not self._planning:
            ripe_ns = min(self._since.values()) + self._patience_ns
            self._begin_at(max(now_ns, ripe_ns, self._planned_ns + RETRY_NS))

    def _begin_at(self, due_ns: int) -> None:
        if self._due is not None:
            if self._due_ns <= due_ns:
                return
            self._due()
        self._due, self._due_ns = self._loop.call_at(due_ns, self._begin), due_ns

    def _begin(self) -> None:
        self._due = None
        now_ns = self._loop.now_ns()
        if self._planning or not self.enabled or self._placements.settling():
            return  # the next time that something changes
        waiting = [name for name in self._since if name in self._placements.pending]
        if not waiting:
            return
        ripe = [name for name in waiting if self._since[name] + self._patience_ns <= now_ns]
        unripe_ns = [self._since[name] + self._patience_ns for name in waiting]
        unripe_ns = [due_ns for due_ns in unripe_ns if due_ns > now_ns]
        if unripe_ns:
            self._begin_at(min(unripe_ns))
        if self._moving() or len(self._placer.promises) >= PROMISES_MOST:
            self._begin_at(now_ns + RETRY_NS)
        elif self.left() <= 0:
            self._begin_at(self.budget.more_ns() or now_ns + HOUR_NS)
        elif ripe:
            self._planning, self._planned_ns = True, now_ns
            self._again_ns = None
            if not self._tried:
                self._changed = False
            self._step(self._plans(self._placer.in_order(ripe)))

    # --- the plan ---

    def _step(self, steps: Iterator[None]) -> None:
        if next(steps, self) is not self:
            self._loop.post(lambda: self._step(steps))
            return
        self._planning = False
        if self._again_ns is not None:
            self._begin_at(self._again_ns)
        if self._missed:
            self.look()

    def _plans(self, names: list[str]) -> Iterator[None]:
        """One after the other, until one is found that helps. So many in one pass, and the next
        one goes on with those after them, until all have been tried: then the round is over."""
        passed = 0
        for name in names:
            want = self._contenders.want(name)
            if want is None:
                continue
            placer = self._placer
            alike = want.demand, want.constraints, placer.priority_of(name), placer.tenant_of(name)
            if alike in self._tried:
                continue
            if passed >= WANTS_MOST:
                self._again(self._loop.now_ns() + RETRY_NS)
                return
            passed += 1
            self._tried.add(alike)
            planner = PreemptPlanner(
                placer.state,
                want.demand,
                want.constraints,
                partial(self._contenders.victim, want, again=self._again),
                self.left(),
            )
            yield from planner.run()
            if planner.plan is not None and self._preempt(want, planner.plan):
                self._again(self._loop.now_ns() + LOOK_NS)  # for the next one that waits
                self._tried.clear()
                return
            more_ns = self.budget.more_ns()
            if planner.plan is None and more_ns is not None and self.left() < VICTIMS_MOST:
                self._again(more_ns)  # with more of them it might do
        if self._changed and len(self._tried) > passed:
            self._again(self._loop.now_ns() + RETRY_NS)  # for those of the passes before
        self._tried.clear()

    def _again(self, at_ns: int) -> None:
        """Who could not be stopped now may be stopped then."""
        self._again_ns = at_ns if self._again_ns is None else min(self._again_ns, at_ns)

    # --- the decision ---

    def _preempt(self, want: Want, plan: Preemption) -> bool:
        """Write it down; False when it does not hold any more."""
        by, cnm = want.instance, plan.cnm
        victims = [self._decisions.assignments.get(name) for name in plan.victims]
        good = self._contenders.want(by) is not None and len(victims) <= self.left()
        good = good and all(self._contenders.victim(want, n, self._again) for n in plan.victims)
        state = self._placer.state
        if not good or not fits_without(state, cnm, want.demand, want.constraints, plan.victims):
            self._again(self._loop.now_ns() + RETRY_NS)
            return False
        at_ms = self._loop.now_ns() // MS
        changes = [
            replace(
                victim,
                evict=Eviction(by=by, cnm=cnm, generation=victim.place.generation, at_ms=at_ms),
            )
            for victim in victims
            if victim is not None and victim.place is not None
        ]
        spent = self.budget.spend(len(changes), at_ms)
        self._promises.make(by, cnm, at_ms * MS + self._stop_ns(changes))
        self._decisions.assign(changes, lambda good: self._decided(good, changes), also=[spent])
        return True

    def _decided(self, good: bool, changes: list[Assignment]) -> None:
        for change in changes:
            evict = change.evict
            assert evict is not None
            if not good:
                self.budget.give_back(1, evict.at_ms)
                self._promises.drop(evict.by)
                continue
            mine = self._placer.priority_of(change.instance)
            its = self._placer.priority_of(evict.by)
            self._events.emit(
                EventCode.INSTANCE_PREEMPTED,
                f"{change.instance}: stopped on {evict.cnm} for {evict.by}, priority {mine} "
                f"for {its}",
                cnm=evict.cnm,
                instance=change.instance,
                data={
                    "for": evict.by,
                    "priority": mine,
                    "for_priority": its,
                    "cnm": evict.cnm,
                    "generation": evict.generation,
                },
            )

    def _stop_ns(self, victims: list[Assignment]) -> int:
        """How long their room stays promised."""
        parts = [wanted_of(self._decisions, victim.instance)[1] for victim in victims]
        return max((part.stop_grace_ms for part in parts if part), default=0) * MS + SPARE_NS

    # --- for people ---

    def explain(self, instance: str) -> Generator[None, None, dict[str, Any] | None]:
        """What would be done, or why nothing is, for one that waits for room; else None. Changes
        nothing. In short steps."""
        if instance not in self._placements.pending:
            return None
        row: dict[str, Any] = {
            "per_hour": self.budget.per_hour,
            "left": self.left(),
            "priority": self._placer.priority_of(instance),
            "cnm": None,
            "victims": [],
        }
        found = yield from self._explain(instance)
        return {**row, **found}

    def _explain(self, instance: str) -> Generator[None, None, dict[str, Any]]:
        if not self.enabled:
            safe = (
                "the card is in safe mode" if self.budget.per_hour else "preemptions_per_hour is 0"
            )
            return {"text": f"nobody is stopped for it: {safe}"}
        promise = self._placer.promises.get(instance)
        if promise is not None:
            victims = sorted(
                name
                for name, assignment in self._decisions.assignments.items()
                if assignment.evict is not None and assignment.evict.by == instance
            )
            text = f"room is being freed for it on {promise.cnm}"
            return {"text": text, "cnm": promise.cnm, "victims": victims}
        want = self._contenders.want(instance)
        if want is None:
            return {"text": "a decision about it is on its way"}
        later: list[int] = []
        planner = PreemptPlanner(
            self._placer.state,
            want.demand,
            want.constraints,
            partial(self._contenders.victim, want, again=later.append),
            VICTIMS_MOST,
            LOOKS_TO_EXPLAIN,
        )
        yield from planner.run()
        plan = planner.plan
        if plan is None:
            text = "nobody of a lower priority could make room by going"
            if later:
                text += "; some rest since they were stopped last, or are not settled"
            return {"text": text}
        who = f"{', '.join(plan.victims)} on {plan.cnm}"
        found = {"cnm": plan.cnm, "victims": list(plan.victims)}
        if len(plan.victims) > self.left():
            return found | {"text": f"{who} would have to be stopped; left are {self.left()}"}
        return found | {"text": f"{who} will be stopped for it if nothing else makes room"}
