"""Placement: who can hold an instance, and who does it best (DESIGN section 2).

Pure: no clock, no input or output; equal books give equal answers, in every process. Everything
else on the card asks `place` and `find_alternative_cnm`, books with `AllocatorState.commit`, and
tells of each new request with `AllocatorState.observe`, from which the card learns its mix.

For what plans and explains: `fits` says which units a demand would get on a CNM;
`AllocatorState.copy` gives books to try things in, and `commit` with `release` restores the books
exactly; `fragmentation_milli` says how many thousandths of accelerators are free but of no use to
the present mix, on one CNM or on all; `score.criteria` is what a choice compares.
"""

from dataclasses import replace

from firmware.allocator.filter import candidates, never_fits, select_cnms
from firmware.allocator.index import index_of, is_simple
from firmware.allocator.score import fragmentation_milli, select_best_cnm
from firmware.allocator.state import AllocatorState, Hold, Node, first_shortage
from firmware.allocator.types import (
    NO_CONSTRAINTS,
    WHOLE_MILLI,
    AcceleratorDemand,
    AcceleratorPool,
    AcceleratorUnit,
    Capacity,
    CnmView,
    Constraints,
    Demand,
    DoesNotFit,
    Placement,
    Unplaceable,
)
from firmware.allocator.units import choose_units

__all__ = [
    "NO_CONSTRAINTS",
    "WHOLE_MILLI",
    "AcceleratorDemand",
    "AcceleratorPool",
    "AcceleratorUnit",
    "AllocatorState",
    "Capacity",
    "CnmView",
    "Constraints",
    "Demand",
    "DoesNotFit",
    "Hold",
    "Node",
    "Placement",
    "Unplaceable",
    "best_cnm",
    "find_alternative_cnm",
    "fits",
    "fragmentation_milli",
    "never_fits",
    "place",
    "select_best_cnm",
    "select_cnms",
]


def place(
    state: AllocatorState, demand: Demand, constraints: Constraints = NO_CONSTRAINTS
) -> Placement | Unplaceable:
    """The one question. Books nothing: `state.commit` does, with the same demand."""
    best = best_cnm(state, demand, constraints)
    if best is not None:
        return Placement(cnm=best)
    return Unplaceable(reasons=select_cnms(state, demand, constraints)[1])


def best_cnm(
    state: AllocatorState, demand: Demand, constraints: Constraints = NO_CONSTRAINTS
) -> str | None:
    """What `place` chooses, without a word why not: for who asks often."""
    if is_simple(state, demand, constraints):
        return index_of(state).best(state, demand, constraints)
    found = candidates(state, demand, constraints)
    return select_best_cnm(state, found, demand, constraints) if found else None


def fits(state: AllocatorState, cnm: str, demand: Demand) -> tuple[AcceleratorUnit, ...] | None:
    """The units that `commit` would give it on this CNM; None where it would refuse."""
    node = state.nodes.get(cnm)
    if node is None or first_shortage(node, demand):
        return None
    return choose_units(node.free_milli, node.scopes, demand.accelerators)


def find_alternative_cnm(
    state: AllocatorState, instance: str, exclude: frozenset[str] = frozenset()
) -> Placement | Unplaceable:
    """Another CNM for an instance that is booked: not where it is, nor in `exclude`."""
    hold = state.hold_of(instance)
    if hold is None:
        return Unplaceable(reasons={})
    here = frozenset(state.places(instance))
    constraints = replace(hold.constraints, exclude=hold.constraints.exclude | exclude | here)
    return place(state, hold.demand, constraints)
