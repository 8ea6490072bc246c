"""Between the reconciler and the allocator: the books follow the decisions.

An instance holds room at its place and, during a move, at its target. `sync` makes the books equal
to one assignment; what no CNM can hold now is told per CNM, in words.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from firmware.allocator import (
    AllocatorState,
    Constraints,
    Demand,
    DoesNotFit,
    Unplaceable,
    never_fits,
    place,
)
from firmware.allocator.plan_drain import Ask, constrained_first
from firmware.allocator.queue import Waiting, by_priority, by_share
from firmware.assignments import Assignment
from firmware.cnm_view import is_alike, view_of, why_not
from firmware.decisions import Decisions
from firmware.inventory import Cnm, Inventory
from firmware.profiler import Level, Profiler, analyze_workload, constraints_of
from firmware.volume_users import VolumeUsers
from firmware.workload import Component, Workload

Need = tuple[Demand, Constraints]
EXCLUDED: Final = "excluded from this choice"  # firmware.allocator.filter's words
TEXT_CNMS: Final = 4  # named in one line; `ps --json` has all of them


@dataclass(frozen=True, slots=True, kw_only=True)
class NoRoom:
    """No CNM will do now, and why not, for each."""

    reasons: dict[str, str]

    def text(self) -> str:
        """One line for people."""
        if not self.reasons:
            return "there is no module that it could go to"
        shown = [f"{cnm}: {why}" for cnm, why in sorted(self.reasons.items())[:TEXT_CNMS]]
        more = len(self.reasons) - TEXT_CNMS
        return "; ".join(shown) + (f"; and {more} more" if more > 0 else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """The room on a module that is being freed for an instance, and that others leave alone."""

    by: str
    cnm: str
    priority: int

    def text(self) -> str:
        return f"its room is being freed for {self.by} (priority {self.priority})"


class Placer:
    """Loop thread only."""

    def __init__(self, inventory: Inventory, decisions: Decisions, profiler: Profiler) -> None:
        self.state = AllocatorState()
        self._inventory = inventory
        self._decisions = decisions
        self._profiler = profiler
        self.weights: Mapping[str, int] | None = None  # of tenants; None: they are not told apart
        self.promises: dict[str, Promise] = {}  # by the instance that it is for; firmware.preemptor
        self._late: set[str] = set()  # a decision about them was on its way when a module came
        self._leaving: dict[str, set[str]] = {}  # modules held until the decision to go is on disk
        self._volumes = VolumeUsers(inventory, decisions, self._bound_for)

    # --- modules ---

    def update(self, cnm: Cnm) -> None:
        """A module came, changed its state, or must take nothing new."""
        if cnm.capabilities is not None:
            known, view = self.state.nodes.get(cnm.id), view_of(cnm, cnm.capabilities)
            if known is None or not is_alike(known.view, view):
                self.state.add_cnm(view)
                self._adopt_all(cnm)
        if cnm.id in self.state.nodes:
            self.state.set_schedulable(cnm.id, why_not(cnm))

    def _adopt_all(self, cnm: Cnm) -> None:
        for instance in self._decisions.concerned(cnm.id):
            if instance in self._decisions.pending:
                self._late.add(instance)  # the books have what is being decided; see `catch_up`
                continue
            assignment = self._decisions.assignments[instance]
            self.sync(assignment, self.component_of(assignment))

    def catch_up(self, instance: str) -> None:
        """The decision about it has arrived, or was refused."""
        if instance in self._late:
            self._late.discard(instance)
            assignment = self._decisions.assignments.get(instance)
            if assignment is not None:
                self.sync(assignment, self.component_of(assignment))

    def set_load(self, cnm: Cnm, cpu_milli: int, memory_bytes: int) -> None:
        """What the module was last measured to use."""
        if cnm.id in self.state.nodes:
            self.state.set_load(cnm.id, cpu_milli=cpu_milli, memory_bytes=memory_bytes)

    def relearn(self) -> None:
        """After a start: the mix of what was placed before it, as if it had been asked for in the
        order of the instances' names."""
        asked: dict[tuple[str, str], Demand] = {}
        for _, assignment in sorted(self._decisions.assignments.items()):
            component = self.component_of(assignment)
            if component is None or assignment.ending is not None:
                continue
            part = (assignment.workload, assignment.component)
            if part not in asked:
                asked[part] = self._profiler.demand(component)
            self.state.observe(asked[part])

    # --- books ---

    def sync(self, assignment: Assignment | None, component: Component | None) -> None:
        """Make the books equal to this assignment: held at its place and its target only. The
        first that an instance ever gets is a request that the mix counts; what is placed again,
        moved, or adopted is none."""
        if assignment is None:
            return
        wanted, held = _places_of(assignment), set(self.state.places(assignment.instance))
        self._leaving.pop(assignment.instance, None)
        for cnm in held - wanted:
            self.state.release(assignment.instance, cnm)
        if component is not None:
            self._hold(assignment, component, wanted, held)

    def reserve(self, assignment: Assignment, component: Component) -> None:
        """Hold the room of a decision that is on its way to the disk, and what it will leave as
        well: the store may refuse it. Ends with `sync`."""
        wanted, held = _places_of(assignment), set(self.state.places(assignment.instance))
        if held - wanted:
            self._leaving[assignment.instance] = held - wanted
        self._hold(assignment, component, wanted, held)

    def _hold(
        self, assignment: Assignment, component: Component, wanted: set[str], held: set[str]
    ) -> None:
        needs = self._needs(assignment.workload, component)
        if wanted and not held and assignment.instance not in self._decisions.assignments:
            self.state.observe(needs[0][0])
        for cnm in wanted & held:
            self._grow(assignment.instance, cnm, needs)
        for cnm in wanted - held:
            if cnm in self.state.nodes:
                self._book(assignment.instance, cnm, needs)

    def _book(self, instance: str, cnm: str, needs: Sequence[Need]) -> None:
        """The first need that fits there, as it was when the module was chosen; else the least."""
        for demand, constraints in needs:
            try:
                self.state.commit(instance, cnm, demand, constraints)
            except DoesNotFit:
                continue
            return
        demand, constraints = needs[-1]
        self.state.adopt(instance, cnm, demand, constraints)

    def _grow(self, instance: str, cnm: str, needs: Sequence[Need]) -> None:
        """It begins anew where it was: with the memory that it is now known to need, if that is
        there. Units of accelerators can't be given back for a moment."""
        hold = self.state.hold_of(instance, cnm)
        if hold is None or hold.units or hold.demand.memory_bytes >= needs[-1][0].memory_bytes:
            return
        self.state.release(instance, cnm)
        for demand, constraints in needs:
            try:
                self.state.commit(instance, cnm, demand, constraints)
            except DoesNotFit:
                continue
            return
        self.state.adopt(instance, cnm, hold.demand, hold.constraints)

    def outgrown(self, assignment: Assignment, component: Component) -> bool:
        """The memory that it is now known to need is not free where it is."""
        place = assignment.place
        hold = self.state.hold_of(assignment.instance, place.cnm) if place is not None else None
        if place is None or hold is None:
            return False
        demand, _constraints = self._needs(assignment.workload, component)[-1]
        more_bytes = demand.memory_bytes - hold.demand.memory_bytes
        return more_bytes > max(self.state.nodes[place.cnm].free[1], 0)

    def forget(self, instance: str) -> None:
        """It holds nothing anywhere."""
        self._leaving.pop(instance, None)
        self.state.release(instance)

    def reserve_target(self, assignment: Assignment, component: Component) -> None:
        """Hold the room at a move's target while it is being prepared."""
        self.sync(assignment, component)

    # --- choices ---

    def choose(self, workload: str, component: Component, instance: str) -> str | NoRoom:
        """The best CNM for a new generation."""
        pinned = self._volumes.pins(component, instance)
        return self._ask_all(self._needs(workload, component), pinned, instance)

    def questions(
        self, workload: str, component: Component, instance: str
    ) -> tuple[list[Need], frozenset[str]]:
        """What `choose` asks, the most first, and the only modules that it may go to, if any."""
        needs, barred = self._needs(workload, component), frozenset(self.barred(instance))
        if barred:
            needs = [(d, replace(c, exclude=c.exclude | barred)) for d, c in needs]
        return needs, self._volumes.pins(component, instance)

    def find_alternative_cnm(
        self, component: Component, assignment: Assignment, only: str | None = None
    ) -> str | NoRoom:
        """Another CNM than the one it is on; `only` one in particular."""
        here = frozenset(p.cnm for p in (assignment.place, assignment.target) if p is not None)
        needs = [
            (demand, replace(constraints, exclude=here))
            for demand, constraints in self._needs(assignment.workload, component)
        ]
        if only is not None:
            if self._inventory.get(only) is None:
                return NoRoom(reasons={only: "there is no such module"})
            if only in here:
                return NoRoom(reasons={only: "it is there already"})
            answer = self._ask_all(needs, frozenset({only}), assignment.instance)
            if isinstance(answer, NoRoom):  # nobody asked why not elsewhere
                return NoRoom(reasons={only: answer.reasons[only]})
            return answer
        pinned = self._volumes.pins(component, assignment.instance)
        return self._ask_all(needs, pinned, assignment.instance)

    def hopeless(self, workload: Workload) -> dict[str, Mapping[str, str]]:
        """Components that no CNM of this card could hold even when empty, each with the reason per
        CNM. Nothing is hopeless before all modules have said what they are."""
        known = self.state.nodes
        if any(cnm.id not in known and not cnm.quarantine for cnm in self._inventory):
            return {}
        views = [node.view for node in known.values()]
        found: dict[str, Mapping[str, str]] = {}
        for need in analyze_workload(workload, self._profiler, Level.DECLARED):
            if need.component not in found:
                reasons = never_fits(views, need.demand, need.constraints)
                if reasons is not None:
                    found[need.component] = reasons
        return found

    def sharing(self, assignment: Assignment, component: Component) -> list[str]:
        """Other instances that use a volume of this one: they stay on one CNM."""
        return self._volumes.sharing(assignment.instance, component)

    def tightness(self, instance: str) -> int:
        """How hard an instance is to place: accelerators first, then what it asks for."""
        component = self._decisions.component(instance)
        if component is None:
            return 0
        demand = self._profiler.demand(component)
        devices = sum(a.count * a.milli for a in demand.accelerators)
        return (devices << 40) + demand.memory_bytes // 1024 + demand.cpu_milli

    def tightest_first(self, instances: Iterable[str]) -> list[str]:
        """The hardest to place first; equals stay in their order. Asked once a component."""
        known: dict[str, int] = {}

        def tightness(instance: str) -> int:
            part = instance.rpartition("/")[0]
            if part not in known:
                known[part] = self.tightness(instance)
            return known[part]

        return sorted(instances, key=tightness, reverse=True)

    # --- the queue ---

    def in_order(self, instances: Iterable[str]) -> list[str]:
        """The order in which they are offered room (`firmware.allocator.queue`); equals stay in
        theirs."""
        known: dict[str, Waiting] = {}  # by component: equal for all of it but for the name
        waiting = []
        for instance in instances:
            part = instance.rpartition("/")[0]
            if part not in known:
                known[part] = self._waiting(instance)
            waiting.append(replace(known[part], instance=instance))
        if self.weights is None or len({one.tenant for one in waiting}) < 2:
            return by_priority(waiting)
        return by_share(waiting, self.weights, self.state, self.tenant_of)

    def _waiting(self, instance: str) -> Waiting:
        component = self._decisions.component(instance)
        return Waiting(
            instance=instance,
            priority=component.priority if component is not None else 0,
            tenant=self.tenant_of(instance),
            demand=self._profiler.demand(component) if component is not None else Demand(),
        )

    def priority_of(self, instance: str) -> int:
        """Of an instance that is not wanted any more: the least."""
        component = self._decisions.component(instance)
        return component.priority if component is not None else 0

    def tenant_of(self, instance: str) -> str:
        """Whose share of the card it counts for."""
        record = self._decisions.workloads.get(instance.split("/", 1)[0])
        return record.workload.tenant if record is not None else ""

    def is_above(self, instance: str, other: str) -> bool:
        """It goes before the other: a higher priority, which between tenants that share the card
        by weight counts for nothing."""
        if self.weights is not None and self.tenant_of(instance) != self.tenant_of(other):
            return False
        return self.priority_of(instance) > self.priority_of(other)

    def barred(self, instance: str) -> dict[str, str]:
        """Modules whose room is being freed for another instance that goes before it, or is as
        good: and the words for it. What has found its place needs the promise no more."""
        return {
            promise.cnm: promise.text()
            for promise in self.promises.values()
            if promise.by != instance
            and self.state.hold_of(promise.by) is None
            and not self.is_above(instance, promise.by)
        }

    def constrained_first(self, instances: Iterable[str]) -> list[str]:
        """In the order in which they are best placed together: the fewest places first, by what
        each has booked, or would ask for now. Those that nobody wants any more come last."""
        asks: list[Ask] = []
        unknown: list[str] = []
        asked: dict[tuple[str, str], Need] = {}
        for instance in instances:
            hold = self.state.hold_of(instance)
            component = self._decisions.component(instance)
            if hold is not None:
                asks.append((instance, hold.demand, hold.constraints))
            elif component is None:
                unknown.append(instance)
            else:
                part = (instance.split("/", 1)[0], component.name)
                if part not in asked:
                    asked[part] = self._needs(part[0], component)[0]
                asks.append((instance, *asked[part]))
        if len(asks) > 1:
            return constrained_first(self.state, asks) + unknown
        return [name for name, _, _ in asks] + unknown

    def component_of(self, assignment: Assignment) -> Component | None:
        """What it is an instance of, if that is still known."""
        record = self._decisions.workloads.get(assignment.workload)
        return record.workload.component(assignment.component) if record else None

    # --- inside ---

    def _ask_all(self, needs: Sequence[Need], only: frozenset[str], instance: str) -> str | NoRoom:
        """The best module for the most that one can be found for."""
        answer: str | NoRoom = NoRoom(reasons={})
        barred = self.barred(instance)
        for demand, constraints in needs:
            answer = self._ask(demand, constraints, only, barred)
            if isinstance(answer, str):
                break
        return answer

    def _ask(
        self,
        demand: Demand,
        constraints: Constraints,
        only: frozenset[str],
        barred: Mapping[str, str],
    ) -> str | NoRoom:
        if barred:
            constraints = replace(constraints, exclude=constraints.exclude | frozenset(barred))
        if only:
            others = frozenset(self.state.nodes) - only
            constraints = replace(constraints, exclude=constraints.exclude | others)
        answer = place(self.state, demand, constraints)
        if isinstance(answer, Unplaceable):
            reasons = dict(answer.reasons)
            for name, why in barred.items():
                reasons[name] = reasons.get(name, EXCLUDED).replace(EXCLUDED, why)
            for cnm in self._inventory:
                reasons.setdefault(cnm.id, why_not(cnm) or "it does not fit")
                if only and cnm.id not in only:
                    reasons[cnm.id] = "its volume is in use on " + ", ".join(sorted(only))
            return NoRoom(reasons=reasons)
        return answer.cnm

    def _needs(self, workload: str, component: Component) -> list[Need]:
        """What an instance of this component asks for, by what is measured now: the most first.
        The declared need alone is no answer while a module could hold the memory that is known
        to be needed."""
        record = self._decisions.workloads.get(workload)
        whole = record.workload if record else Workload(name=workload, components=(component,))
        constraints = constraints_of(whole, component, self._profiler)
        found: list[Need] = []
        for level, demand in zip(Level, self._profiler.demands(component), strict=True):
            if constraints.companions and found:
                constraints = constraints_of(whole, component, self._profiler, level)
            need = (demand, constraints)
            if found and need == found[-1]:
                continue
            if level is Level.DECLARED and found[-1][0].memory_bytes > need[0].memory_bytes:
                views = [node.view for node in self.state.nodes.values()]
                if never_fits(views, *found[-1]) is None:
                    continue
            found.append(need)
        return found

    def _bound_for(self, instance: str) -> set[str]:
        """The modules where it is to be, by the books: with what is on its way to the disk."""
        return set(self.state.places(instance)) - self._leaving.get(instance, set())


def _places_of(assignment: Assignment) -> set[str]:
    """The modules where it holds room: none once it has ended for good and only files are left."""
    if assignment.ending is not None:
        return set()
    return {p.cnm for p in (assignment.place, assignment.target) if p is not None}
