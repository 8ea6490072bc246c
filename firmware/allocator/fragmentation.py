"""How much of the free accelerators the recent requests could not use, in integers.

For one pool of equal units on one CNM, over the classes of the mix that could use the model:

    F = mean of what a class can't use: all that is free where it does not fit, else the remains
        smaller than one of its units ("Beware of Fragmentation", ATC'23, without CPU-only classes)
    S = what the free CPU can't feed: units that the mix would use with more CPU than is left
    O = and CPU that has lost the units it would serve, at a third
    R = for each unit, how much of it is expected to stay unused for good, when requests keep coming
        and take what fits: a remainder that only rare requests fit counts as lost by and by

A choice costs what the sum grows by, in steps of QUANTUM_MILLI: what is less is no difference, and
the order of ids decides, which fills one CNM after the other and keeps whole ones free.
Pressure is for scarce models: what is asked for by name, by what is free of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from firmware.allocator.mix import RequestMix
from firmware.allocator.types import WHOLE_MILLI
from firmware.allocator.units import PoolKey

SCALE_BITS: Final = 16  # of weights and of the remains
QUANTUM_BITS: Final = 4  # 16 milli
STRANDED_WEIGHT: Final = 1 << (SCALE_BITS - 1)  # one half
IDLE_CPU_WEIGHT: Final = (1 << SCALE_BITS) * 3 // 10
REMAINS_WEIGHT: Final = 10
MEAN_PERMILLE: Final = 900  # of the mean CPU by unit: leaner requests find the place
RARE_PERMILLE: Final = 40  # a remainder that fewer requests than this fit is lost in proportion
PRESSURE_LIMIT_PERMILLE: Final = 10_000
PRESSURE_STEPS: Final = 20  # of QUANTUM_MILLI, for a whole unit at a pressure of one: a third of it
EVALUATED: Final = 160  # classes at most


@dataclass(frozen=True, slots=True)
class PoolTable:
    """The mix as one pool sees it: flat, in the order of `millis`."""

    vectors: tuple[tuple[int, ...], ...]
    counts: tuple[int, ...]
    millis: tuple[int, ...]
    weights: tuple[int, ...]  # sum at most 1 << SCALE_BITS
    cpu_by_unit_milli: int  # 0: not known
    remains: tuple[int, ...]  # by milli left of a unit, << SCALE_BITS, times REMAINS_WEIGHT


EMPTY: Final = PoolTable((), (), (), (), 0, (0,) * (WHOLE_MILLI + 1))


class Tables:
    """The mix, made ready for evaluation; anew for each revision of it."""

    def __init__(self, mix: RequestMix) -> None:
        self.revision = mix.revision
        self._classes = [(k, n) for k, n in mix.classes() if k.count and k.milli]
        self._pools: dict[PoolKey, PoolTable] = {}
        self._remains: dict[str, tuple[int, ...]] = {}
        self.named: dict[tuple[str, str], int] = {}  # (kind, model as asked) -> weight by demand
        self.total: dict[str, int] = {}  # kind -> weight by demand
        for key, weight in self._classes:
            amount = weight * key.wanted_milli
            self.total[key.kind] = self.total.get(key.kind, 0) + amount
            if key.model:
                name = (key.kind, key.model)
                self.named[name] = self.named.get(name, 0) + amount

    def of(self, pool: PoolKey) -> PoolTable:
        table = self._pools.get(pool)
        if table is None:
            table = self._pools[pool] = self._make(pool)
        return table

    def _make(self, pool: PoolKey) -> PoolTable:
        kind, model = pool
        usable = [
            (key, weight)
            for key, weight in self._classes
            if key.kind == kind and (not key.model or model in key.model.split("|"))
        ][:EVALUATED]
        usable.sort(key=lambda pair: (pair[0].milli, pair[0]))  # equal ones in a row: one count
        total = sum(weight for _, weight in usable)
        if not total:
            return EMPTY
        cpu = sum(weight * key.vector[0] for key, weight in usable)
        units = sum(weight * key.wanted_milli for key, weight in usable)
        return PoolTable(
            vectors=tuple(key.vector for key, _ in usable),
            counts=tuple(key.count for key, _ in usable),
            millis=tuple(key.milli for key, _ in usable),
            weights=tuple((weight << SCALE_BITS) // total for _, weight in usable),
            cpu_by_unit_milli=cpu * MEAN_PERMILLE // units,
            remains=self._remains_of(kind),
        )

    def _remains_of(self, kind: str) -> tuple[int, ...]:
        found = self._remains.get(kind)
        if found is None:
            asked: dict[int, int] = {}
            for key, weight in self._classes:
                if key.kind == kind:
                    times = key.count if key.milli == WHOLE_MILLI else 1
                    asked[key.milli] = asked.get(key.milli, 0) + weight * times
            every = sum(weight for key, weight in self._classes if key.kind == kind)
            found = self._remains[kind] = expected_remains(sorted(asked.items()), every)
        return found


def expected_remains(asked: Sequence[tuple[int, int]], every: int) -> tuple[int, ...]:
    """By what is left of a unit: how much of it nobody will ever use, << SCALE_BITS. `asked` are
    (milli, weight) in order, `every` the weight of all requests of the kind."""
    enough = max(every * RARE_PERMILLE // 1000, 1)
    found: list[int] = []
    for left in range(WHOLE_MILLI + 1):
        weight = expected = 0
        for milli, count in asked:
            if milli > left:
                break
            weight += count
            expected += count * found[left - milli]
        lost = left * REMAINS_WEIGHT << SCALE_BITS
        if not weight:
            found.append(lost)
        elif weight >= enough:
            found.append(expected // weight)
        else:
            found.append((expected // weight * weight + lost * (enough - weight)) // enough)
    return tuple(found)


def pool_measure(table: PoolTable, free: Sequence[int], units: Sequence[int]) -> int:
    """F + S + O + R of one pool, << SCALE_BITS. `free` by dimension, `units` milli left of each."""
    total = sum(units)
    found = 0
    for unit in units:
        found += table.remains[unit]
    room = max(free[0], 0)
    cpu = table.cpu_by_unit_milli
    if cpu:
        want = total * cpu // WHOLE_MILLI
        if want > room:
            found += (want - room) * WHOLE_MILLI // cpu * STRANDED_WEIGHT
        else:
            found += (room - want) * WHOLE_MILLI // cpu * IDLE_CPU_WEIGHT
    if not total:
        return found
    remains: dict[int, tuple[int, int]] = {}  # milli -> (units that are large enough, rest)
    for vector, count, milli, weight in zip(
        table.vectors, table.counts, table.millis, table.weights, strict=True
    ):
        if any(want > left for want, left in zip(vector, free, strict=True) if want):
            found += weight * total
            continue
        known = remains.get(milli)
        if known is None:
            fitting = rest = 0
            for unit in units:
                if unit >= milli:
                    fitting += 1
                else:
                    rest += unit
            known = remains[milli] = (fitting, rest)
        found += weight * (known[1] if known[0] >= count else total)
    return found


def node_measure(
    tables: Tables, free: Sequence[int], pools: Mapping[PoolKey, Sequence[int]]
) -> int:
    """Of all pools of a CNM, << SCALE_BITS."""
    return sum(
        pool_measure(tables.of(key), free, [max(unit, 0) for unit in pools[key]]) for key in pools
    )


def pressures(tables: Tables, kind: str, free_milli: Mapping[PoolKey, int]) -> dict[PoolKey, int]:
    """How scarce each model of a kind is, permille: its share of the demand by name against its
    share of what is free. What is asked for with several names is spread by what is free."""
    whole = tables.total.get(kind, 0)
    pools = {key: milli for key, milli in free_milli.items() if key[0] == kind and milli > 0}
    free = sum(pools.values())
    if not whole or not free or not tables.named:
        return {}
    need: dict[PoolKey, int] = {}
    for (of_kind, names), weight in tables.named.items():
        if of_kind != kind:
            continue
        models = [(kind, name) for name in names.split("|")]
        there = sum(pools.get(key, 0) for key in models)
        if there:
            for key in models:
                need[key] = need.get(key, 0) + weight * pools.get(key, 0) // there
    found: dict[PoolKey, int] = {}
    for key, amount in need.items():
        if amount:
            permille = amount * free * 1000 // (whole * pools[key])
            found[key] = min(permille, PRESSURE_LIMIT_PERMILLE)
    return found
