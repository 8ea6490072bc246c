"""Which units of an accelerator an instance gets.

Whole units come from untouched ones; a share goes to the unit that it fills best, so that whole
units stay whole. Demands that name a model choose before those that take any, whole ones before
shares, large shares before small. For one demand that is exact; when several demands of one
instance compete for the same units it is first-fit-decreasing, which may say no to a rare mix
that could be squeezed in.
"""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from firmware.allocator.types import WHOLE_MILLI, AcceleratorDemand, AcceleratorUnit

PoolKey: TypeAlias = tuple[str, str]  # kind, model


class UnitShortage(Exception):
    """A demand finds too few units; the text has the numbers."""


def choose_units(
    free: Mapping[PoolKey, Sequence[int]],
    scopes: Mapping[PoolKey, str],
    demands: Sequence[AcceleratorDemand],
) -> tuple[AcceleratorUnit, ...]:
    """Units for all demands out of `free` (milli left of each unit). Raises UnitShortage."""
    if not demands:
        return ()
    left = {key: list(units) for key, units in free.items()}
    chosen: list[AcceleratorUnit] = []
    order = sorted(
        demands, key=lambda d: (d.kind, d.model is None, d.model or "", -d.milli, -d.count)
    )
    for demand in order:
        fitting = sorted(
            (units[index], key[1], index)
            for key, units in left.items()
            if key[0] == demand.kind and demand.takes(key[1])
            for index in range(len(units))
            if units[index] >= demand.milli
        )
        if len(fitting) < demand.count:
            raise UnitShortage(_shortage(left, demand, len(fitting)))
        for _, model, index in fitting[: demand.count]:
            key = (demand.kind, model)
            left[key][index] -= demand.milli
            chosen.append(
                AcceleratorUnit(
                    kind=demand.kind,
                    model=model,
                    index=index,
                    milli=demand.milli,
                    scope=scopes.get(key, "local"),
                )
            )
    return tuple(sorted(chosen))


def _shortage(
    left: Mapping[PoolKey, Sequence[int]], demand: AcceleratorDemand, fitting: int
) -> str:
    name = f"{demand.kind}/{demand.model}" if demand.model else demand.kind
    units = [
        milli
        for key, units in left.items()
        if key[0] == demand.kind and demand.takes(key[1])
        for milli in units
    ]
    what = "whole" if demand.milli == WHOLE_MILLI else f"with {demand.milli} milli each"
    if not units:
        return f"accelerator {name}: wants {demand.count} {what}, has none"
    text = f"accelerator {name}: wants {demand.count} {what}, {fitting} of {len(units)} free"
    if demand.milli < WHOLE_MILLI:
        text += f" (at most {max(units)} milli left on one)"
    return text
