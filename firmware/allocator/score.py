"""Who is best, among those who can. The first difference decides, in this order:

1. `spread`: fewer instances of the same component (only if the component asks for it);
2. room for load: below 70 % of its CPU and 90 % of its memory afterwards, by what is measured (a
   reservation alone is no load: the room for it is there), below its power limit and away from its
   throttle point, as far as telemetry tells;
3. no waste: who needs no accelerator goes where no whole one is free;
4. fragmentation: the accelerators that this makes useless for what is asked for of late, and the
   scarcity of the model that it takes (firmware.allocator.fragmentation);
5. balanced best fit, of CNMs without accelerators: the mean filling afterwards of CPU, memory and
   whatever else is wanted, less a quarter of the distance between the fullest and the emptiest of
   them: large CNMs stay free for large components, and little is stranded behind an exhausted
   resource;
6. the id, so that equal CNMs give the same answer everywhere, and whole CNMs stay empty.
"""

from collections.abc import Sequence
from typing import Final

from firmware.allocator.fragmentation import (
    PRESSURE_STEPS,
    QUANTUM_BITS,
    SCALE_BITS,
    node_measure,
    pressures,
)
from firmware.allocator.mix import main_accelerator
from firmware.allocator.state import AllocatorState, Node
from firmware.allocator.types import (
    WHOLE_MILLI,
    AcceleratorDemand,
    AcceleratorUnit,
    Constraints,
    Demand,
)
from firmware.allocator.units import PoolKey, choose_units

CPU_ROOM_PERMILLE: Final = 700
MEMORY_ROOM_PERMILLE: Final = 900
THERMAL_ROOM_MC: Final = 5_000  # nearer to its throttle point a CNM has no room for load
CRITERIA: Final = ("spread", "room_for_load", "free_accelerators", "fragmentation", "fill_ppm")
MOST_FILL_PPM: Final = (1 << 21) - 1


def select_best_cnm(
    state: AllocatorState, candidates: Sequence[str], demand: Demand, constraints: Constraints
) -> str:
    """The best of `candidates` (at least one, each known)."""
    prices = prices_of(state, demand)
    return min((_criteria(state, cnm, demand, constraints, prices), cnm) for cnm in candidates)[-1]


def criteria(
    state: AllocatorState, cnm: str, demand: Demand, constraints: Constraints
) -> tuple[int, ...]:
    """What is compared, named and ordered as CRITERIA; less is better. `explain` shows it: who
    changes how is chosen changes this, and no other place."""
    return _criteria(state, cnm, demand, constraints, prices_of(state, demand))


def _criteria(
    state: AllocatorState,
    cnm: str,
    demand: Demand,
    constraints: Constraints,
    prices: dict[PoolKey, int],
) -> tuple[int, ...]:
    node = state.nodes[cnm]
    part = (constraints.workload, constraints.component)
    units = choose_units(node.free_milli, node.scopes, demand.accelerators)
    hot, waste, cost, fill = weigh(state, node, demand, units)
    price = prices.get(first_pool(node, demand) or ("", ""), 0)
    spread = node.components.get(part, 0) if constraints.spread else 0
    return (spread, hot, waste, cost + price, -fill)


def weigh(
    state: AllocatorState, node: Node, demand: Demand, units: Sequence[AcceleratorUnit]
) -> tuple[int, int, int, int]:
    """(no room for load, waste, growth of fragmentation in quanta, filling in ppm) if these units
    are given: all that depends on nobody but this CNM."""
    hot = int(is_hot(node, demand))
    if not node.free_milli:
        return hot, 0, 0, _balanced_fill(node, demand)
    waste = 0 if demand.accelerators else int(_has_whole(node))
    free, want = node.free, demand.vector
    after = [left - asked for left, asked in zip(free, want, strict=True)]
    pools = {key: list(left) for key, left in node.free_milli.items()}
    for unit in units:
        pools[(unit.kind, unit.model)][unit.index] -= unit.milli
    grown = node_measure(state.tables, after, pools) - node_measure(
        state.tables, free, node.free_milli
    )
    return hot, waste, grown >> (SCALE_BITS + QUANTUM_BITS), 0


def fragmentation_milli(state: AllocatorState, cnm: str | None = None) -> int:
    """Accelerators that are free but of no use to the present mix, of one CNM or of all."""
    nodes = [state.nodes[cnm]] if cnm is not None else list(state.nodes.values())
    found = sum(node_measure(state.tables, node.free, node.free_milli) for node in nodes)
    return found >> SCALE_BITS


def prices_of(state: AllocatorState, demand: Demand) -> dict[PoolKey, int]:
    """What a model costs because others ask for it by name, in quanta."""
    main = main_accelerator(demand)
    if main is None or not state.tables.named:
        return {}
    asked = main.count * main.milli * PRESSURE_STEPS
    found = pressures(state.tables, main.kind, state.pool_free)
    return {key: permille * asked // (1000 * WHOLE_MILLI) for key, permille in found.items()}


def first_pool(node: Node, demand: Demand) -> PoolKey | None:
    """The pool that sets the price: the first that would do for the main demand."""
    main = main_accelerator(demand)
    if main is None:
        return None
    return min((key for key in node.free_milli if matches(main, key)), default=None)


def matches(wanted: AcceleratorDemand, pool: PoolKey) -> bool:
    return pool[0] == wanted.kind and wanted.takes(pool[1])


def is_strained(node: Node) -> bool:
    """At its power limit or near its throttle point."""
    power, thermal = node.view.power_headroom_mw, node.view.thermal_headroom_mc
    return (power is not None and power <= 0) or (
        thermal is not None and thermal <= THERMAL_ROOM_MC
    )


def measured(node: Node) -> tuple[int, int]:
    """CPU and memory that are in use or will be, as far as it was ever measured."""
    view = node.view
    return (
        max(node.hinted_cpu_milli, view.load_cpu_milli),
        max(node.hinted_memory_bytes, view.load_memory_bytes),
    )


def is_hinted(demand: Demand) -> bool:
    return bool(demand.hint_cpu_milli or demand.hint_memory_bytes)


def is_hot(node: Node, demand: Demand) -> bool:
    if is_strained(node):
        return True
    cpu, memory = measured(node)
    if not (cpu or memory or is_hinted(demand)):
        return False
    return (cpu + demand.expected_cpu_milli) * 1000 > node.total[0] * CPU_ROOM_PERMILLE or (
        memory + demand.expected_memory_bytes
    ) * 1000 > node.total[1] * MEMORY_ROOM_PERMILLE


def _has_whole(node: Node) -> bool:
    """A share that is left over is nobody's loss."""
    return any(WHOLE_MILLI in units for units in node.free_milli.values())


def _balanced_fill(node: Node, demand: Demand) -> int:
    """Parts per million."""
    filled = [
        (used + want) * 1_000_000 // total
        for index, (total, used, want) in enumerate(
            zip(node.total, node.used, demand.vector, strict=True)
        )
        if total and (want or index < 2)
    ]
    if not filled:
        return 0
    fill = sum(filled) // len(filled) - (max(filled) - min(filled)) // 4
    return min(max(fill, 0), MOST_FILL_PPM)
