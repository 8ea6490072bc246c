"""Who can: the CNMs that may take an instance, and for each other one the reason, in numbers."""

from collections.abc import Iterable, Iterator, Mapping

from firmware.allocator.state import AllocatorState, Node
from firmware.allocator.types import DIMENSIONS, CnmView, Constraints, Demand
from firmware.allocator.units import UnitShortage, choose_units
from firmware.allocator.words import shortage


def select_cnms(
    state: AllocatorState, demand: Demand, constraints: Constraints
) -> tuple[tuple[str, ...], dict[str, str]]:
    """(candidates, reasons): ids in order, and why each other CNM is none."""
    candidates: list[str] = []
    reasons: dict[str, str] = {}
    homes = homes_of(state, constraints)
    for cnm, node in sorted(state.nodes.items()):
        why = objections_on(node, demand, constraints, homes)
        if why:
            reasons[cnm] = why
        else:
            candidates.append(cnm)
    return tuple(candidates), reasons


def candidates(state: AllocatorState, demand: Demand, constraints: Constraints) -> list[str]:
    """The same CNMs as `select_cnms`, in any order and without words: for the usual case, in
    which some CNM will do. A property test holds the two equal."""
    homes = homes_of(state, constraints)
    wants = [demand, *(d for name, d in constraints.companions if name not in homes)]
    cpu, memory, nvme, link, bandwidth, windows = (
        sum(column) for column in zip(*(d.vector for d in wants), strict=True)
    )
    accelerators = [a for d in wants for a in d.accelerators]
    arch, runtimes, labels = constraints.arch, constraints.runtimes, constraints.labels
    part, most = (constraints.workload, constraints.component), constraints.max_per_cnm
    found: list[str] = []
    for cnm, node in state.nodes.items():
        view, used, total = node.view, node.used, node.total
        if (
            view.why_not
            or (cpu and used[0] + cpu > total[0])
            or (memory and used[1] + memory > total[1])
            or (nvme and used[2] + nvme > total[2])
            or (link and used[3] + link > total[3])
            or (bandwidth and used[4] + bandwidth > total[4])
            or (windows and used[5] + windows > total[5])
            or cnm in constraints.exclude
            or (arch is not None and arch != view.arch)
            or (runtimes and runtimes.isdisjoint(view.runtimes))
            or any(view.labels.get(key) != value for key, value in labels)
            or (most and node.components.get(part, 0) >= most)
            or any(cnm not in places for places in homes.values())
        ):
            continue
        if accelerators:
            try:
                choose_units(node.free_milli, node.scopes, accelerators)
            except UnitShortage:
                continue
        found.append(cnm)
    return found


def objections(state: AllocatorState, cnm: str, demand: Demand, constraints: Constraints) -> str:
    """Why one CNM is no candidate, as `select_cnms` says it; "" when it is one."""
    homes = homes_of(state, constraints)
    return objections_on(state.nodes[cnm], demand, constraints, homes)


def objections_on(
    node: Node, demand: Demand, constraints: Constraints, homes: Mapping[str, frozenset[str]]
) -> str:
    """The same, for who has `homes_of` at hand."""
    return "; ".join(_objections(node, demand, constraints, homes))


def never_fits(
    cnms: AllocatorState | Iterable[CnmView], demand: Demand, constraints: Constraints
) -> dict[str, str] | None:
    """Why no CNM could ever hold it, not even an empty one; None when one could, or when no CNM
    is known at all. What may pass (load, a drain, its neighbours) does not count."""
    views = [n.view for n in cnms.nodes.values()] if isinstance(cnms, AllocatorState) else cnms
    reasons: dict[str, str] = {}
    for view in sorted(views, key=lambda v: v.id):
        why = "; ".join(_lasting(Node(view), demand, constraints, {}))
        if not why:
            return None
        reasons[view.id] = why
    return reasons or None


def _objections(
    node: Node, demand: Demand, constraints: Constraints, homes: Mapping[str, frozenset[str]]
) -> Iterator[str]:
    view = node.view
    if view.why_not:
        yield view.why_not
    if view.id in constraints.exclude:
        yield "excluded from this choice"
    yield from _lasting(node, demand, constraints, homes)
    here = node.components.get((constraints.workload, constraints.component), 0)
    if constraints.max_per_cnm and here >= constraints.max_per_cnm:
        yield f"max_per_cnm: {here} of {constraints.max_per_cnm} instances are here"
    for component, places in sorted(homes.items()):
        if view.id not in places:
            yield f"together: {component} is on {', '.join(sorted(places))}"


def _lasting(
    node: Node, demand: Demand, constraints: Constraints, homes: Mapping[str, frozenset[str]]
) -> Iterator[str]:
    """Objections that an empty CNM may have too."""
    view = node.view
    if constraints.arch is not None and constraints.arch != view.arch:
        yield f"arch: wants {constraints.arch}, is {view.arch}"
    if constraints.runtimes and not constraints.runtimes & view.runtimes:
        has = ", ".join(sorted(view.runtimes)) or "none"
        yield f"runtime: wants {' or '.join(sorted(constraints.runtimes))}, has {has}"
    for key, value in constraints.labels:
        found = view.labels.get(key)
        if found != value:
            has = "has no such label" if found is None else f"has {found}"
            yield f"label {key}: wants {value}, {has}"
    wants = [demand, *(d for name, d in constraints.companions if name not in homes)]
    for index, dimension in enumerate(DIMENSIONS):
        want = sum(d.vector[index] for d in wants)
        free = node.free[index]
        if want > free and want > 0:
            text = shortage(dimension, want, free, node.total[index])
            yield text + (" (with the components it must be together with)" * (len(wants) > 1))
    accelerators = [a for d in wants for a in d.accelerators]
    if accelerators:
        try:
            choose_units(node.free_milli, node.scopes, accelerators)
        except UnitShortage as exc:
            yield str(exc)


def homes_of(state: AllocatorState, constraints: Constraints) -> dict[str, frozenset[str]]:
    """Where the components are that this one must join: those it names, and those that name it.

    Where it is known how many of each are wanted, every instance gets one of each of the others
    beside it at last: replicas that come before those are on no more CNMs than there will be of
    them, and when no more of this component are to come than there are CNMs of the group where it
    is missed, that is where it goes."""
    if not constraints.workload:
        return {}
    homes: dict[str, set[str]] = {}
    own: set[str] = set()
    held = 0
    for cnm, other in state.members(constraints.workload):
        if other.component == constraints.component:
            own.add(cnm)
            held += 1
        elif other.component in constraints.together or constraints.component in other.together:
            homes.setdefault(other.component, set()).add(cnm)
    wanted = dict(constraints.group)
    if wanted and homes:
        places = own.union(*homes.values())
        missed = places - own
        if missed and len(missed) >= wanted.get(constraints.component, 0) - held:
            places = missed
        homes = dict.fromkeys(homes, places)
    elif own and len(own) >= min((wanted.get(c, 1) for c in constraints.together), default=1 << 32):
        homes[constraints.component] = own
    return {component: frozenset(places) for component, places in sorted(homes.items())}
