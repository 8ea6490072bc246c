"""Who has what: the allocator's books. Pure; the caller is the only one who changes them.

Nothing is ever given twice: `commit` refuses what does not fit. Only `adopt`, for what a CNM was
found to run already, may go beyond a capacity that has shrunk; such a CNM has nothing free.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from firmware.allocator.fragmentation import Tables
from firmware.allocator.mix import RequestMix
from firmware.allocator.types import (
    DIMENSIONS,
    NO_CONSTRAINTS,
    NOTHING,
    WHOLE_MILLI,
    AcceleratorUnit,
    CnmView,
    Constraints,
    Demand,
    DoesNotFit,
    Vector,
)
from firmware.allocator.units import PoolKey, UnitShortage, choose_units
from firmware.allocator.words import shortage

if TYPE_CHECKING:
    from firmware.allocator.index import Index


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """What one instance has on one CNM."""

    instance: str
    demand: Demand
    constraints: Constraints
    units: tuple[AcceleratorUnit, ...]


class Node:
    """One CNM's books. Read it; `AllocatorState` writes it."""

    def __init__(self, view: CnmView) -> None:
        self.view = view
        self.total = view.capacity.vector
        self.used: Vector = NOTHING
        self.expected_cpu_milli = 0  # reservations or measured use, whichever is more
        self.expected_memory_bytes = 0
        self.hinted_cpu_milli = 0  # the part of it that was measured
        self.hinted_memory_bytes = 0
        self.holds: dict[str, Hold] = {}
        self.components: dict[tuple[str, str], int] = {}  # (workload, component) -> instances
        self.free_milli: dict[PoolKey, list[int]] = {}
        self.scopes: dict[PoolKey, str] = {}
        self.set_view(view)

    def set_view(self, view: CnmView) -> None:
        """New capacity, labels or load; what is held stays held."""
        self.view = view
        self.total = view.capacity.vector
        counts: dict[PoolKey, int] = {}
        self.scopes = {}
        for pool in view.capacity.accelerators:
            key = (pool.kind, pool.model)
            counts[key] = counts.get(key, 0) + pool.count
            self.scopes[key] = pool.scope
        self.free_milli = {key: [WHOLE_MILLI] * count for key, count in counts.items()}
        for hold in self.holds.values():
            self._move_units(hold.units, -1)

    @property
    def free(self) -> Vector:
        """Negative where adopted instances exceed the capacity."""
        total, used = self.total, self.used
        return (
            total[0] - used[0],
            total[1] - used[1],
            total[2] - used[2],
            total[3] - used[3],
            total[4] - used[4],
            total[5] - used[5],
        )

    def hold(self, hold: Hold) -> None:
        assert hold.instance not in self.holds
        self.holds[hold.instance] = hold
        self._count(hold, 1)

    def drop(self, instance: str) -> Hold:
        hold = self.holds.pop(instance)
        self._count(hold, -1)
        return hold

    def copy(self) -> "Node":
        """Books of its own with the same content."""
        twin = Node(self.view)
        twin.used = self.used
        twin.expected_cpu_milli = self.expected_cpu_milli
        twin.expected_memory_bytes = self.expected_memory_bytes
        twin.hinted_cpu_milli = self.hinted_cpu_milli
        twin.hinted_memory_bytes = self.hinted_memory_bytes
        twin.holds = dict(self.holds)
        twin.components = dict(self.components)
        twin.free_milli = {key: list(units) for key, units in self.free_milli.items()}
        twin.scopes = dict(self.scopes)
        return twin

    def _count(self, hold: Hold, sign: int) -> None:
        want = hold.demand.vector
        used = self.used
        self.used = (
            used[0] + sign * want[0],
            used[1] + sign * want[1],
            used[2] + sign * want[2],
            used[3] + sign * want[3],
            used[4] + sign * want[4],
            used[5] + sign * want[5],
        )
        self.expected_cpu_milli += sign * hold.demand.expected_cpu_milli
        self.expected_memory_bytes += sign * hold.demand.expected_memory_bytes
        if hold.demand.hint_cpu_milli:
            self.hinted_cpu_milli += sign * hold.demand.expected_cpu_milli
        if hold.demand.hint_memory_bytes:
            self.hinted_memory_bytes += sign * hold.demand.expected_memory_bytes
        key = (hold.constraints.workload, hold.constraints.component)
        count = self.components.get(key, 0) + sign
        if count:
            self.components[key] = count
        else:
            del self.components[key]
        self._move_units(hold.units, -sign)

    def _move_units(self, units: tuple[AcceleratorUnit, ...], sign: int) -> None:
        for unit in units:
            pool = self.free_milli.get((unit.kind, unit.model), [])
            if unit.index < len(pool):  # else the unit has gone with a smaller capacity
                pool[unit.index] += sign * unit.milli


class AllocatorState:
    """All CNMs. `nodes` is keyed by CNM id; answers never depend on its order."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        # instance -> CNMs, sorted; two during a move
        self._where: dict[str, tuple[str, ...]] = {}
        self._members: dict[str, set[tuple[str, str]]] = {}  # workload -> (instance, CNM)
        self.mix = RequestMix()
        self.pool_free: dict[PoolKey, int] = {}  # milli left of a model, on all CNMs
        self.cache: Index | None = None  # what `place` keeps between questions; see index.py
        self.touched: set[str] = set()  # CNMs that have changed since it looked
        self.layout = 0  # grows when CNMs or their units come or go
        self.eligibility = 0  # grows when who takes what has changed
        self.changes = 0  # grows with every change of room: whoever found none waits for that
        self._tables = Tables(self.mix)

    def observe(self, demand: Demand) -> None:
        """One new request of this kind has come: the card learns its mix. What asks again, moves
        or only asks what if, is none."""
        self.mix.observe(demand)

    @property
    def tables(self) -> Tables:
        """The present mix, ready for evaluation."""
        if self._tables.revision != self.mix.revision:
            self._tables = Tables(self.mix)
        return self._tables

    def add_cnm(self, view: CnmView) -> None:
        """A new CNM, or a new view of one that is known."""
        node = self.nodes.get(view.id)
        if node is None:
            node = self.nodes[view.id] = Node(view)
        else:
            self._count_pools(node, -1)
            node.set_view(view)
        self._count_pools(node, 1)
        self.layout += 1
        self.changes += 1

    def _count_pools(self, node: Node, sign: int) -> None:
        for key, units in node.free_milli.items():
            left = self.pool_free.get(key, 0) + sign * sum(units)
            if left:
                self.pool_free[key] = left
            else:
                self.pool_free.pop(key, None)

    def remove_cnm(self, cnm: str) -> tuple[str, ...]:
        """Forget a CNM and what is held there; the instances that it held. Unknown: none."""
        node = self.nodes.get(cnm)
        if node is None:
            return ()
        gone = tuple(sorted(node.holds))
        for instance in gone:
            self.release(instance, cnm)
        self._count_pools(node, -1)
        self.layout += 1
        self.changes += 1
        del self.nodes[cnm]
        return gone

    def set_schedulable(self, cnm: str, why_not: str) -> None:
        """ "" lets it take new instances; anything else is the reason why it does not."""
        node = self.nodes[cnm]
        if node.view.why_not != why_not:
            node.view = replace(node.view, why_not=why_not)
            self.eligibility += 1
            self.changes += 1

    def set_load(self, cnm: str, *, cpu_milli: int, memory_bytes: int) -> None:
        """What the CNM was last measured to use."""
        node = self.nodes[cnm]
        view = node.view
        if (cpu_milli, memory_bytes) == (view.load_cpu_milli, view.load_memory_bytes):
            return
        node.view = replace(view, load_cpu_milli=cpu_milli, load_memory_bytes=memory_bytes)
        self.touched.add(cnm)

    def set_headroom(
        self, cnm: str, *, power_mw: int | None = None, thermal_mc: int | None = None
    ) -> None:
        """How far it was last measured to be below its limits; None: not known."""
        node = self.nodes[cnm]
        node.view = replace(node.view, power_headroom_mw=power_mw, thermal_headroom_mc=thermal_mc)
        self.touched.add(cnm)

    def commit(
        self,
        instance: str,
        cnm: str,
        demand: Demand,
        constraints: Constraints = NO_CONSTRAINTS,
        units: tuple[AcceleratorUnit, ...] | None = None,
    ) -> tuple[AcceleratorUnit, ...]:
        """Give it to the instance. One instance may be on two CNMs (a move), never twice on one.
        `units` are given as they are, where it is known which it has; else the best are chosen.
        Raises DoesNotFit with the first shortage; then nothing has changed."""
        node = self.nodes.get(cnm)
        if node is None:
            raise DoesNotFit(instance, cnm, "no such CNM")
        if instance in node.holds:
            raise DoesNotFit(instance, cnm, "it is held there already")
        short = first_shortage(node, demand)
        if short:
            raise DoesNotFit(instance, cnm, short)
        if units is None:
            units = choose_units(node.free_milli, node.scopes, demand.accelerators)
        else:
            for unit in units:
                left = node.free_milli.get((unit.kind, unit.model), [])
                if unit.index >= len(left) or left[unit.index] < unit.milli:
                    name = f"{unit.kind}/{unit.model} {unit.index}"
                    raise DoesNotFit(instance, cnm, f"{name}: {unit.milli} milli are not free")
        self._hold(node, instance, demand, constraints, units)
        return units

    def adopt(
        self,
        instance: str,
        cnm: str,
        demand: Demand,
        constraints: Constraints = NO_CONSTRAINTS,
    ) -> tuple[AcceleratorUnit, ...]:
        """Book what runs there already, even beyond the capacity: refusing the books would not
        stop the instance. Raises DoesNotFit for an unknown CNM or a second booking only."""
        try:
            return self.commit(instance, cnm, demand, constraints)
        except DoesNotFit:
            node = self.nodes.get(cnm)
            if node is None or instance in node.holds:
                raise
        try:
            units = choose_units(node.free_milli, node.scopes, demand.accelerators)
        except UnitShortage:
            units = ()  # it keeps what it has; we can't say which
        self._hold(node, instance, demand, constraints, units)
        return units

    def _hold(
        self,
        node: Node,
        instance: str,
        demand: Demand,
        constraints: Constraints,
        units: tuple[AcceleratorUnit, ...],
    ) -> None:
        hold = Hold(instance=instance, demand=demand, constraints=constraints, units=units)
        if units:
            self._count_pools(node, -1)
        node.hold(hold)
        if units:
            self._count_pools(node, 1)
        self.touched.add(node.view.id)
        self.changes += 1
        places = {*self._where.get(instance, ()), node.view.id}
        self._where[instance] = tuple(sorted(places))
        self._members.setdefault(constraints.workload, set()).add((instance, node.view.id))

    def release(self, instance: str, cnm: str | None = None) -> bool:
        """Take it back, from one CNM or from all; exactly what was given. False: it held none."""
        places = self._where.get(instance, ())
        gone = [place for place in places if cnm in (None, place)]
        for place in gone:
            node = self.nodes[place]
            self._count_pools(node, -1)
            workload = node.drop(instance).constraints.workload
            self._count_pools(node, 1)
            self.touched.add(place)
            self.changes += 1
            members = self._members[workload]
            members.discard((instance, place))
            if not members:
                del self._members[workload]
        left = tuple(place for place in places if place not in gone)
        if left:
            self._where[instance] = left
        else:
            self._where.pop(instance, None)
        return bool(gone)

    def copy(self) -> "AllocatorState":
        """Books of their own with the same content: what is asked of them changes nothing here."""
        twin = AllocatorState()
        twin.nodes = {cnm: node.copy() for cnm, node in self.nodes.items()}
        twin._where = dict(self._where)
        twin._members = {workload: set(pairs) for workload, pairs in self._members.items()}
        twin.mix, twin._tables = self.mix.copy(), self._tables
        twin.pool_free = dict(self.pool_free)
        return twin

    def without(self, instance: str, cnm: str | None = None) -> "AllocatorState":
        """The books as they would be if it held nothing (there). Only for reading: what is equal
        is shared with these."""
        twin = AllocatorState()
        twin.nodes, twin._where = dict(self.nodes), dict(self._where)
        twin._members = dict(self._members)
        twin.mix, twin._tables = self.mix.copy(), self._tables
        twin.pool_free = dict(self.pool_free)
        for place in self.places(instance):
            if cnm in (None, place):
                twin.nodes[place] = self.nodes[place].copy()
                workload = self.nodes[place].holds[instance].constraints.workload
                twin._members[workload] = set(twin._members[workload])
        twin.release(instance, cnm)
        return twin

    def members(self, workload: str) -> Iterator[tuple[str, Constraints]]:
        """(CNM, constraints) of all that is held for a workload; in no order."""
        for instance, cnm in self._members.get(workload, ()):
            yield cnm, self.nodes[cnm].holds[instance].constraints

    def places(self, instance: str) -> tuple[str, ...]:
        return self._where.get(instance, ())

    def hold_of(self, instance: str, cnm: str | None = None) -> Hold | None:
        """What it holds there; without a CNM, on the first in the order of ids."""
        for place in self.places(instance):
            if cnm in (None, place):
                return self.nodes[place].holds[instance]
        return None

    def instances(self) -> Mapping[str, tuple[str, ...]]:
        return {instance: self.places(instance) for instance in sorted(self._where)}


def first_shortage(node: Node, demand: Demand) -> str:
    """The first resource that is not there in full; "" when all are."""
    for dimension, want, free, total in zip(
        DIMENSIONS,
        demand.vector,
        node.free,
        node.total,
        strict=True,
    ):
        if want > free and want > 0:
            return shortage(dimension, want, free, total)
    try:
        choose_units(node.free_milli, node.scopes, demand.accelerators)
    except UnitShortage as exc:
        return str(exc)
    return ""
