"""The order in which what waits is offered room. Pure: integers only, equal input, equal order.

By priority. Where tenants have weights, by weighted dominant-resource fairness before that (Ghodsi
et al., "Dominant Resource Fairness", NSDI 2011): the tenant with the least dominant share for its
weight is offered room for its first instance, which then counts as if it were placed, and so on.
What certainly has no room now gets its turn and counts for nothing: a tenant is not held back by
what it can't have.
"""

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import lcm
from typing import Final, TypeAlias

from firmware.allocator.state import AllocatorState, Hold, Node
from firmware.allocator.types import NOTHING, WHOLE_MILLI, AcceleratorDemand, Demand

WEIGHT_USUAL: Final = 1
RESOURCES: Final = ("cpu", "memory", "nvme", "link")  # the first of a demand's vector
Amounts: TypeAlias = dict[str, int]  # by resource: one of RESOURCES, or a kind of accelerator
Owner: TypeAlias = Callable[[str], str]  # instance -> its tenant


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """Something that is to be offered room."""

    instance: str
    priority: int
    tenant: str = ""
    demand: Demand = field(default_factory=Demand)


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A tenant's dominant share: of the resource of which it has most, `used` of `total`."""

    tenant: str
    weight: int
    resource: str  # "" where it has nothing
    used: int
    total: int


def by_priority(waiting: Iterable[Waiting]) -> list[str]:
    """The highest first; equals stay in their order."""
    return [one.instance for one in sorted(waiting, key=lambda one: -one.priority)]


def by_share(
    waiting: Iterable[Waiting], weights: Mapping[str, int], state: AllocatorState, owner: Owner
) -> list[str]:
    """The tenant with the least share first, and its highest priority; equals of one tenant stay
    in their order. What is among them and holds something counts as if it did not: it is to be
    offered room anew."""
    waiting = sorted(waiting, key=lambda one: -one.priority)
    used = use_by_tenant(state, owner, leave_out=[one.instance for one in waiting])
    scales = _scales(capacity(state))
    weight_of = {one.tenant: weights.get(one.tenant, WEIGHT_USUAL) for one in waiting}
    common = lcm(*weight_of.values())
    room = _Room(state)
    queues: dict[str, list[Waiting]] = {}
    for one in reversed(waiting):  # the first one last
        queues.setdefault(one.tenant, []).append(one)

    def share(tenant: str) -> int:
        """All over one denominator, so that they compare."""
        return _dominant(used.get(tenant, {}), scales)[0] * (common // weight_of[tenant])

    heap = [(share(tenant), tenant) for tenant in queues]
    heapq.heapify(heap)
    order: list[str] = []
    while heap:
        _, tenant = heapq.heappop(heap)
        one = queues[tenant].pop()
        order.append(one.instance)
        if room.may_hold(one.demand):
            _add(used.setdefault(tenant, {}), one.demand)
        if queues[tenant]:
            heapq.heappush(heap, (share(tenant), tenant))
    return order


def shares(
    state: AllocatorState, weights: Mapping[str, int], owner: Owner, tenants: Iterable[str] = ()
) -> list[Share]:
    """Of all who hold something, or are named in `weights` or `tenants`, by name."""
    totals = capacity(state)
    scales = _scales(totals)
    used = use_by_tenant(state, owner)
    found: list[Share] = []
    for tenant in sorted({*used, *weights, *tenants}):
        has = used.get(tenant, {})
        resource = _dominant(has, scales)[1]
        found.append(
            Share(
                tenant=tenant,
                weight=weights.get(tenant, WEIGHT_USUAL),
                resource=resource,
                used=has.get(resource, 0),
                total=totals.get(resource, 0),
            )
        )
    return found


def capacity(state: AllocatorState) -> Amounts:
    """What there is on the modules that take new instances."""
    totals: Amounts = {}
    for _, node in sorted(state.nodes.items()):
        if not node.view.why_not:
            for name, amount in zip(RESOURCES, node.total, strict=False):
                totals[name] = totals.get(name, 0) + amount
            for pool in node.view.capacity.accelerators:
                name = _device(pool.kind)
                totals[name] = totals.get(name, 0) + pool.count * WHOLE_MILLI
    return totals


def use_by_tenant(
    state: AllocatorState, owner: Owner, leave_out: Iterable[str] = ()
) -> dict[str, Amounts]:
    """What is reserved. An instance that moves holds room twice and is counted once."""
    counted = set(leave_out)
    used: dict[str, Amounts] = {}
    for _, node in sorted(state.nodes.items()):
        for instance, hold in node.holds.items():
            if instance not in counted:
                counted.add(instance)
                _add(used.setdefault(owner(instance), {}), hold.demand, hold)
    return used


def _dominant(has: Amounts, scales: Amounts) -> tuple[int, str]:
    """The largest share and its resource; of equal ones the first. (0, "") for nothing."""
    most, resource = 0, ""
    for name, scale in scales.items():
        scaled = has.get(name, 0) * scale
        if scaled > most:
            most, resource = scaled, name
    return most, resource


def _scales(totals: Amounts) -> Amounts:
    """What brings shares of each resource over one denominator."""
    common = lcm(*(total for total in totals.values() if total > 0))
    return {name: common // total for name, total in sorted(totals.items()) if total > 0}


def _add(amounts: Amounts, demand: Demand, hold: Hold | None = None) -> None:
    for name, amount in zip(RESOURCES, demand.vector, strict=False):
        amounts[name] = amounts.get(name, 0) + amount
    devices = (
        [(unit.kind, unit.milli) for unit in hold.units]
        if hold is not None
        else [(asked.kind, asked.count * asked.milli) for asked in demand.accelerators]
    )
    for kind, milli in devices:
        amounts[_device(kind)] = amounts.get(_device(kind), 0) + milli


def _device(kind: str) -> str:
    """A kind of accelerator may be called like a resource."""
    return f"accelerator {kind}" if kind in RESOURCES else kind


class _Room:
    """The most that is free of each thing on any one module; where no module is open, less than
    anything."""

    def __init__(self, state: AllocatorState) -> None:
        self._open = [node for node in state.nodes.values() if not node.view.why_not]
        columns = zip(*(node.free for node in self._open), strict=True)
        self._free: Sequence[int] = [max(column) for column in columns] or [-1] * len(NOTHING)
        self._units: dict[AcceleratorDemand, int] = {}  # of one unit -> such units

    def may_hold(self, demand: Demand) -> bool:
        """False: certainly no module has room for it now."""
        wanted = zip(demand.vector, self._free, strict=True)
        return all(not want or want <= free for want, free in wanted) and all(
            asked.count <= self._units_for(asked) for asked in demand.accelerators
        )

    def _units_for(self, asked: AcceleratorDemand) -> int:
        """Looked up once for all that ask alike."""
        one = replace(asked, count=1)
        if one not in self._units:
            self._units[one] = max((_count_units(node, one) for node in self._open), default=0)
        return self._units[one]


def _count_units(node: Node, asked: AcceleratorDemand) -> int:
    """The units there with enough left of each."""
    return sum(
        left >= asked.milli
        for (kind, model), units in node.free_milli.items()
        if kind == asked.kind and asked.takes(model)
        for left in units
    )
