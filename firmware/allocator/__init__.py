"""Placement: who can hold an instance, and who does it best (DESIGN section 2).

Pure: no clock, no input or output; equal books give equal answers, in every process. Everything
else on the card asks `place` and `find_alternative_cnm`, and books with `AllocatorState.commit`;
a better allocator takes their place.
"""

from dataclasses import replace

from firmware.allocator.filter import candidates, never_fits, select_cnms
from firmware.allocator.score import select_best_cnm
from firmware.allocator.state import AllocatorState, Hold, Node
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
    "find_alternative_cnm",
    "never_fits",
    "place",
    "select_best_cnm",
    "select_cnms",
]


def place(
    state: AllocatorState, demand: Demand, constraints: Constraints = NO_CONSTRAINTS
) -> Placement | Unplaceable:
    """The one question. Books nothing: `state.commit` does, with the same demand."""
    found = candidates(state, demand, constraints)
    if found:
        return Placement(cnm=select_best_cnm(state, found, demand, constraints))
    return Unplaceable(reasons=select_cnms(state, demand, constraints)[1])


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
