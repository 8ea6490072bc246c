"""Between the reconciler and the allocator: the books follow the decisions.

An instance holds room at its place and, during a move, at its target. `sync` makes the books equal
to one assignment; what no CNM can hold now is told per CNM, in words.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from firmware.allocator import (
    AcceleratorPool,
    AllocatorState,
    Capacity,
    CnmView,
    Constraints,
    Demand,
    DoesNotFit,
    Unplaceable,
    never_fits,
    place,
)
from firmware.assignments import Assignment
from firmware.decide import Sight
from firmware.decisions import Decisions
from firmware.inventory import Cnm, Inventory
from firmware.profiler import Level, Profiler, analyze_workload, constraints_of
from firmware.workload import Component, Workload
from protocol.apf import CapabilitiesReply, Scope

Need = tuple[Demand, Constraints]
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


class Placer:
    """Loop thread only."""

    def __init__(self, inventory: Inventory, decisions: Decisions, profiler: Profiler) -> None:
        self.state = AllocatorState()
        self._inventory = inventory
        self._decisions = decisions
        self._profiler = profiler
        self._late: set[str] = set()  # a decision about them was on its way when a module came

    # --- modules ---

    def update(self, cnm: Cnm) -> None:
        """A module came, changed its state, or must take nothing new."""
        if cnm.capabilities is not None:
            known = self.state.nodes.get(cnm.id)
            if known is None or known.view.capacity != capacity_of(cnm.capabilities):
                self.state.add_cnm(view_of(cnm, cnm.capabilities))
                self._adopt_all(cnm)
        if cnm.id in self.state.nodes:
            self.state.set_schedulable(cnm.id, why_not(cnm))

    def _adopt_all(self, cnm: Cnm) -> None:
        for instance in self._decisions.concerned(cnm.id):
            if instance in self._decisions.pending:
                self._late.add(instance)  # the books have what is being decided; see `catch_up`
                continue
            assignment = self._decisions.assignments[instance]
            self.sync(assignment, self._component(assignment))

    def catch_up(self, instance: str) -> None:
        """The decision about it has arrived, or was refused."""
        if instance in self._late:
            self._late.discard(instance)
            assignment = self._decisions.assignments.get(instance)
            if assignment is not None:
                self.sync(assignment, self._component(assignment))

    def set_load(self, cnm: Cnm, cpu_milli: int, memory_bytes: int) -> None:
        """What the module was last measured to use."""
        if cnm.id in self.state.nodes:
            self.state.set_load(cnm.id, cpu_milli=cpu_milli, memory_bytes=memory_bytes)

    # --- books ---

    def sync(self, assignment: Assignment | None, component: Component | None) -> None:
        """Make the books equal to this assignment: held at its place and its target only."""
        if assignment is None:
            return
        places = (assignment.place, assignment.target)
        wanted = {p.cnm for p in places if p is not None}
        if assignment.ending is not None:
            wanted = set()  # it has ended for good; only its files are left
        held = set(self.state.places(assignment.instance))
        for cnm in held - wanted:
            self.state.release(assignment.instance, cnm)
        if component is None:
            return
        needs = self._needs(assignment.workload, component)
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
        self.state.release(instance)

    def reserve_target(self, assignment: Assignment, component: Component) -> None:
        """Hold the room at a move's target while it is being prepared."""
        self.sync(assignment, component)

    # --- choices ---

    def choose(self, workload: str, component: Component, instance: str) -> str | NoRoom:
        """The best CNM for a new generation."""
        pinned = self._pins(component, instance)
        needs = self._needs(workload, component)
        answer = self._ask_all(needs, pinned)
        if isinstance(answer, str):
            self.state.observe(needs[0][0])
        return answer

    def questions(
        self, workload: str, component: Component, instance: str
    ) -> tuple[list[Need], frozenset[str]]:
        """What `choose` asks, the most first, and the only modules that it may go to, if any."""
        return self._needs(workload, component), self._pins(component, instance)

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
            return self._ask_all(needs, frozenset({only}))
        return self._ask_all(needs, self._pins(component, assignment.instance))

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
        names = {mount.name for mount in component.volumes}
        return sorted(
            other.instance
            for other in self._decisions.assignments.values()
            if other.instance != assignment.instance
            and other.place is not None
            and other.ending is None
            and names & self._volumes_in(other.instance, other)
        )

    def tightness(self, instance: str) -> int:
        """How hard an instance is to place: accelerators first, then what it asks for."""
        component = self._find(instance)
        if component is None:
            return 0
        demand = self._profiler.demand(component)
        devices = sum(a.count * a.milli for a in demand.accelerators)
        return (devices << 40) + demand.memory_bytes // 1024 + demand.cpu_milli

    # --- inside ---

    def _ask_all(self, needs: Sequence[Need], only: frozenset[str]) -> str | NoRoom:
        """The best module for the most that one can be found for."""
        answer: str | NoRoom = NoRoom(reasons={})
        for demand, constraints in needs:
            answer = self._ask(demand, constraints, only)
            if isinstance(answer, str):
                break
        return answer

    def _ask(self, demand: Demand, constraints: Constraints, only: frozenset[str]) -> str | NoRoom:
        if only:
            others = frozenset(self.state.nodes) - only
            constraints = replace(constraints, exclude=constraints.exclude | others)
        answer = place(self.state, demand, constraints)
        if isinstance(answer, Unplaceable):
            reasons = dict(answer.reasons)
            for cnm in self._inventory:
                reasons.setdefault(cnm.id, why_not(cnm) or "it does not fit")
                if only and cnm.id not in only:
                    reasons[cnm.id] = "its volume is in use on " + ", ".join(sorted(only))
            return NoRoom(reasons=reasons)
        return answer.cnm

    def _pins(self, component: Component, instance: str) -> frozenset[str]:
        """CNMs where a volume of this component is in use, or is about to be: it must go there.

        A decision that is on its way to the disk is in the books already. A place whose module
        is gone holds nobody: those who shared the volume there go on together elsewhere."""
        names = {mount.name for mount in component.volumes}
        if not names:
            return frozenset()
        pins: set[str] = set()
        for other in {*self._decisions.assignments, *self._decisions.pending} - {instance}:
            assignment = self._decisions.assignments.get(other)
            if not names & self._volumes_in(other, assignment):
                continue
            if other in self._decisions.pending:
                pins.update(self.state.places(other))
            elif (
                assignment is not None
                and assignment.place is not None
                and assignment.ending is None
                and self._inventory.look(assignment.place, other).sight is not Sight.GONE
            ):
                pins.add(assignment.place.cnm)
        return frozenset(pins)

    def _volumes_in(self, instance: str, assignment: Assignment | None) -> set[str]:
        component = self._find(instance)
        mounts = component.volumes if component else ()
        writable = assignment.volumes if assignment else ()
        return {mount.name for mount in mounts} | set(writable)

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

    def _component(self, assignment: Assignment) -> Component | None:
        record = self._decisions.workloads.get(assignment.workload)
        return record.workload.component(assignment.component) if record else None

    def _find(self, instance: str) -> Component | None:
        workload, name, _index = instance.rsplit("/", 2)
        record = self._decisions.workloads.get(workload)
        return record.workload.component(name) if record else None


def capacity_of(capabilities: CapabilitiesReply) -> Capacity:
    """What a module says that it has, as the allocator counts it."""
    return Capacity(
        cpu_milli=capabilities.cores_milli,
        memory_bytes=capabilities.memory_bytes,
        nvme_bytes=capabilities.nvme_bytes,
        link_mbit=capabilities.link_mbit,
        accelerators=tuple(
            AcceleratorPool(
                kind=item.kind,
                model=item.model,
                count=item.count,
                scope="fabric" if item.scope == Scope.FABRIC else "local",
            )
            for item in capabilities.accelerators
        ),
    )


def view_of(cnm: Cnm, capabilities: CapabilitiesReply) -> CnmView:
    """A module as the allocator sees it."""
    return CnmView(
        id=cnm.id,
        arch=capabilities.arch,
        capacity=capacity_of(capabilities),
        labels=dict(capabilities.labels),
        runtimes=frozenset(capabilities.runtimes),
        why_not=why_not(cnm),
    )


def why_not(cnm: Cnm) -> str:
    """Why it takes nothing new; "" if it does."""
    if cnm.quarantine:
        return f"quarantined: {cnm.quarantine}"
    if cnm.draining:
        return "draining"
    if not cnm.schedulable:
        return f"state {cnm.state.value}"
    return ""
