"""How the card is filled, resource by resource: reserved, free, stranded, fragmented. Pure.

The mix is what the card is asked for of late (firmware.allocator.mix), the most frequent first; as
long as that has learned nothing, the demands of all that is held now. With it, of the free amount
of a resource on one module:

- stranded: of the demands in the mix that want this resource, none fits there, because something
  else is exhausted. Nobody who is likely to come can use it.
- fragmented: the share of it, in thousandths, that the next instance of the mix can't use where it
  lies, in the mean over the mix by frequency (Weng et al., "Beware of Fragmentation", USENIX ATC
  2023, section 3, here for each resource). 0: whoever comes can use all; 1000: nobody can.

A resource that nothing in the mix wants is neither. Where a module takes nothing new, nothing is
free. Labels, arch and runtimes do not count: this is about amounts.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from firmware.allocator import AcceleratorDemand, AllocatorState, Demand, Node
from firmware.allocator.mix import RequestClass
from firmware.allocator.types import DIMENSIONS, WHOLE_MILLI
from firmware.allocator.units import UnitShortage, choose_units

RESOURCES: Final = (*DIMENSIONS, "accelerators")  # accelerators in thousandths of a unit
MIX_SHAPES: Final = 16  # of equal demands; the rare ones decide nothing
_Wanted: TypeAlias = tuple[Sequence[tuple[int, int]], Sequence[AcceleratorDemand]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Equal demands, and how often they come. `wants` is in the order of RESOURCES."""

    wants: tuple[int, ...]
    accelerators: tuple[AcceleratorDemand, ...]
    weight: int

    @property
    def wanted(self) -> list[tuple[int, int]]:
        """(index in RESOURCES, amount) of what it wants at all."""
        return [(index, want) for index, want in enumerate(self.wants) if want]


@dataclass(slots=True, kw_only=True)
class Amounts:
    """One resource of one module, or of the card."""

    total: int = 0
    reserved: int = 0
    free: int = 0
    stranded: int = 0
    largest_free: int = 0  # on one module
    unusable: int = 0  # free amount times the weight of the demands that can't use it
    usable: int = 0  # free amount times the weight of all that want it

    @property
    def fragmented_permille(self) -> int | None:
        """None where nothing is free, or nobody wants it."""
        return self.unusable * 1000 // self.usable if self.usable else None


@dataclass(slots=True, kw_only=True)
class Occupancy:
    """The card, and each of its modules."""

    mix: tuple[Shape, ...]
    card: dict[str, Amounts] = field(default_factory=dict)
    cnms: dict[str, dict[str, Amounts]] = field(default_factory=dict)


def occupancy(state: AllocatorState) -> Occupancy:
    """All modules in the order of their ids."""
    found = Occupancy(mix=mix_of(state))
    found.card = {name: Amounts() for name in RESOURCES}
    wanting = [
        [(place, shape.weight) for place, shape in enumerate(found.mix) if shape.wants[index]]
        for index in range(len(RESOURCES))
    ]
    mix = [(shape.wanted, shape.accelerators) for shape in found.mix]
    for cnm, node in sorted(state.nodes.items()):
        row = found.cnms[cnm] = _node(node, mix, wanting)
        for name, amounts in row.items():
            whole = found.card[name]
            whole.total += amounts.total
            whole.reserved += amounts.reserved
            whole.free += amounts.free
            whole.stranded += amounts.stranded
            whole.largest_free = max(whole.largest_free, amounts.free)
            whole.unusable += amounts.unusable
            whole.usable += amounts.usable
    return found


def mix_of(state: AllocatorState) -> tuple[Shape, ...]:
    """The most frequent demands, learned or held; equal counts in the order of their amounts."""
    learned = state.mix.classes()
    if learned:
        return tuple(_shape(key, weight) for key, weight in learned[:MIX_SHAPES])
    counts: Counter[tuple[tuple[int, ...], tuple[AcceleratorDemand, ...]]] = Counter()
    for node in state.nodes.values():
        for hold in node.holds.values():
            counts[_wants(hold.demand), hold.demand.accelerators] += 1
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0][0], repr(item[0][1])))
    return tuple(
        Shape(wants=wants, accelerators=accelerators, weight=count)
        for (wants, accelerators), count in ordered[:MIX_SHAPES]
    )


def _shape(key: RequestClass, weight: int) -> Shape:
    units: tuple[AcceleratorDemand, ...] = ()
    if key.wanted_milli:
        model = key.model or None
        units = (AcceleratorDemand(kind=key.kind, model=model, count=key.count, milli=key.milli),)
    return Shape(wants=(*key.vector, key.wanted_milli), accelerators=units, weight=weight)


def _wants(demand: Demand) -> tuple[int, ...]:
    return (*demand.vector, sum(a.count * a.milli for a in demand.accelerators))


def _node(
    node: Node, mix: Sequence[_Wanted], wanting: Sequence[Sequence[tuple[int, int]]]
) -> dict[str, Amounts]:
    """`wanting`: for each resource the shapes that want it, by their place in the mix."""
    units = [milli for pool in node.free_milli.values() for milli in pool]
    total = (*node.total, len(units) * WHOLE_MILLI)
    reserved = (*node.used, len(units) * WHOLE_MILLI - sum(units))
    free = [0 if node.view.why_not else max(t - r, 0) for t, r in zip(total, reserved, strict=True)]
    barred = [not _fits(node, wants, units_of, free) for wants, units_of in mix]
    found: dict[str, Amounts] = {}
    for index, name in enumerate(RESOURCES):
        has = free[index]
        amounts = found[name] = Amounts(
            total=total[index], reserved=reserved[index], free=has, largest_free=has
        )
        if has and wanting[index]:
            weight = sum(count for _place, count in wanting[index])
            without = sum(count for place, count in wanting[index] if barred[place])
            amounts.stranded = has if without == weight else 0
            amounts.unusable = has * without
            amounts.usable = has * weight
    return found


def _fits(
    node: Node,
    wants: Sequence[tuple[int, int]],
    accelerators: Sequence[AcceleratorDemand],
    free: Sequence[int],
) -> bool:
    """By amounts alone."""
    for index, want in wants:
        if want > free[index]:
            return False
    if not accelerators:
        return True
    try:
        choose_units(node.free_milli, node.scopes, accelerators)
    except UnitShortage:
        return False
    return True
