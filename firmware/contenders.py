"""Who waits for room, and who may be stopped for it now."""

from collections.abc import Callable, Container
from dataclasses import dataclass, replace
from typing import Final

from firmware.allocator import Constraints, Demand
from firmware.allocator.filter import homes_of
from firmware.allocator.plan_preempt import Victim
from firmware.assignments import Assignment, Eviction
from firmware.decide import Sight
from firmware.decisions import Decisions
from firmware.inventory import Inventory
from firmware.loop import MS, Loop
from firmware.placer import Placer
from firmware.promises import wanted_of
from firmware.workload import Component, Workload
from protocol.apf import InstanceState

RETRY_NS: Final = 2_000 * MS  # while others move, or who could be stopped is not settled
NOT_SETTLED: Final = frozenset(
    {InstanceState.ABSENT, InstanceState.STAGING, InstanceState.STOPPING}
)


@dataclass(frozen=True, slots=True)
class Want:
    """Something that waits, and what it asks for."""

    instance: str
    demand: Demand
    constraints: Constraints
    least: int | None  # priority of those that come along (`together`) and need room as well


class Contenders:
    """Loop thread only."""

    def __init__(
        self,
        loop: Loop,
        inventory: Inventory,
        decisions: Decisions,
        placer: Placer,
        pending: Container[str],
        evicted_ns: Callable[[Eviction], int],
        rest_ns: int,
    ) -> None:
        """`pending`: the instances that wait for room; `evicted_ns(evict)`: when that was."""
        self._loop = loop
        self._inventory = inventory
        self._decisions = decisions
        self._placer = placer
        self._pending = pending
        self._evicted_ns = evicted_ns
        self._rest_ns = rest_ns

    def want(self, instance: str) -> Want | None:
        """What it asks for, the least; modules that are being freed for others are left alone."""
        workload, component = wanted_of(self._decisions, instance)
        if component is None or workload is None or instance in self._placer.promises:
            return None
        if instance in self._decisions.pending or instance not in self._pending:
            return None
        needs, pins = self._placer.questions(workload.name, component, instance)
        demand, constraints = needs[-1]
        closed = frozenset(promise.cnm for promise in self._placer.promises.values())
        if pins:
            closed |= frozenset(self._placer.state.nodes) - pins
        constraints = replace(constraints, exclude=constraints.exclude | closed)
        homes = homes_of(self._placer.state, constraints)
        along = [
            workload.component(name) for name, _ in constraints.companions if name not in homes
        ]
        least = min((part.priority for part in along if part is not None), default=None)
        return Want(instance, demand, constraints, least)

    def victim(self, want: Want, instance: str, again: Callable[[int], None]) -> Victim | None:
        """None: it may not be stopped for that, or not now."""
        assignment = self._decisions.assignments.get(instance)
        workload, component = wanted_of(self._decisions, instance)
        if assignment is None or workload is None or component is None:
            return None
        place, now_ns = assignment.place, self._loop.now_ns()
        if place is None or assignment.ending is not None:
            return None
        if not self._placer.is_above(want.instance, instance):
            return None
        if want.least is not None and want.least <= component.priority:
            return None  # it would go before one of those that its room is for
        if self._needed_by(want.instance, workload, component):
            return None
        if assignment.evict is not None:
            rests_until_ns = self._evicted_ns(assignment.evict) + self._rest_ns
            if assignment.evicting or now_ns < rests_until_ns:
                again(max(rests_until_ns, now_ns + RETRY_NS))
                return None
        if not self._is_settled(assignment):
            again(now_ns + RETRY_NS)
            return None
        if self._placer.sharing(assignment, component):
            return None
        return Victim(priority=component.priority, stateful=bool(assignment.volumes))

    def _is_settled(self, assignment: Assignment) -> bool:
        """Nothing is being decided about it, and its module is heard."""
        place = assignment.place
        if place is None or assignment.target is not None:
            return False
        if assignment.instance in self._decisions.pending:
            return False
        seen = self._inventory.look(place, assignment.instance)
        return (
            seen.sight is Sight.CURRENT
            and seen.status is not None
            and seen.status.generation == place.generation
            and seen.status.state not in NOT_SETTLED
        )

    def _needed_by(self, want: str, workload: Workload, component: Component) -> bool:
        """What waits depends on it, directly or not."""
        name, part, _index = want.rsplit("/", 2)
        if name != workload.name:
            return False
        reached: set[str] = set()
        left = [part]
        while left:
            found = workload.component(left.pop())
            for needed in found.depends_on if found is not None else ():
                if needed.component not in reached:
                    reached.add(needed.component)
                    left.append(needed.component)
        return component.name in reached
