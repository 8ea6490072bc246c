"""Who is best, among those who can. The first difference decides, in this order:

1. `spread`: fewer instances of the same component (only if the component asks for it);
2. room for load: below 70 % of its CPU and 90 % of its memory afterwards, by what is reserved or
   measured, whichever is more, and below its power limit and its throttle point as far as
   telemetry tells;
3. no waste: who needs no accelerator goes where none is free;
4. balanced best fit: the mean filling afterwards of CPU, memory and whatever else is wanted, less
   a quarter of the distance between the fullest and the emptiest of them: large CNMs stay free
   for large components, and little is stranded behind an exhausted resource;
5. the id, so that equal CNMs give the same answer everywhere.
"""

from collections.abc import Sequence
from typing import Final

from firmware.allocator.state import AllocatorState, Node
from firmware.allocator.types import WHOLE_MILLI, Constraints, Demand

CPU_ROOM_PERMILLE: Final = 700
MEMORY_ROOM_PERMILLE: Final = 900
THERMAL_ROOM_MC: Final = 5_000  # nearer to its throttle point a CNM has no room for load
CRITERIA: Final = ("spread", "room_for_load", "free_accelerators", "fill_ppm")


def select_best_cnm(
    state: AllocatorState, candidates: Sequence[str], demand: Demand, constraints: Constraints
) -> str:
    """The best of `candidates` (at least one, each known)."""
    return min((criteria(state, cnm, demand, constraints), cnm) for cnm in candidates)[-1]


def criteria(
    state: AllocatorState, cnm: str, demand: Demand, constraints: Constraints
) -> tuple[int, ...]:
    """What is compared, named and ordered as CRITERIA; less is better. `explain` shows it: who
    changes how is chosen changes this, and no other place."""
    node = state.nodes[cnm]
    part = (constraints.workload, constraints.component)
    return (
        node.components.get(part, 0) if constraints.spread else 0,
        int(_is_hot(node, demand)),
        0 if demand.accelerators else _free_accelerators(node),
        -_balanced_fill(node, demand),
    )


def _is_hot(node: Node, demand: Demand) -> bool:
    view = node.view
    power, thermal = view.power_headroom_mw, view.thermal_headroom_mc
    if (power is not None and power <= 0) or (thermal is not None and thermal <= THERMAL_ROOM_MC):
        return True
    cpu = max(node.expected_cpu_milli, view.load_cpu_milli)
    memory = max(node.expected_memory_bytes, view.load_memory_bytes)
    cpu += max(demand.cpu_milli, demand.hint_cpu_milli)
    memory += max(demand.memory_bytes, demand.hint_memory_bytes)
    return (
        cpu * 1000 > node.total[0] * CPU_ROOM_PERMILLE
        or memory * 1000 > node.total[1] * MEMORY_ROOM_PERMILLE
    )


def _free_accelerators(node: Node) -> int:
    """Whole units that are free; a share that is left over is nobody's loss."""
    if not node.free_milli:
        return 0
    return sum(units.count(WHOLE_MILLI) for units in node.free_milli.values())


def _balanced_fill(node: Node, demand: Demand) -> int:
    """Parts per million."""
    total, used = node.total, node.used
    filled: list[int] = []
    if total[0]:
        filled.append((used[0] + demand.cpu_milli) * 1_000_000 // total[0])
    if total[1]:
        filled.append((used[1] + demand.memory_bytes) * 1_000_000 // total[1])
    for index, want in enumerate(demand.vector[2:], 2):
        if want and total[index]:
            filled.append((used[index] + want) * 1_000_000 // total[index])
    if demand.accelerators:
        units = [milli for pool in node.free_milli.values() for milli in pool]
        whole = max(len(units), 1) * WHOLE_MILLI
        asked = sum(a.count * a.milli for a in demand.accelerators)
        filled.append((whole - sum(units) + asked) * 1_000_000 // whole)
    if not filled:
        return 0
    return sum(filled) // len(filled) - (max(filled) - min(filled)) // 4
