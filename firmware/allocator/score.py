"""Who is best, among those who can. The first difference decides, in this order:

1. `spread`: fewer instances of the same component (only if the component asks for it);
2. room for load: below 70 % of its CPU and 90 % of its memory afterwards, by what is reserved or
   measured, whichever is more;
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
ALWAYS_COUNTED: Final = 2  # CPU and memory, the first two of DIMENSIONS


def select_best_cnm(
    state: AllocatorState, candidates: Sequence[str], demand: Demand, constraints: Constraints
) -> str:
    """The best of `candidates` (at least one, each known)."""
    return min(
        candidates, key=lambda cnm: (*_penalties(state.nodes[cnm], demand, constraints), cnm)
    )


def _penalties(node: Node, demand: Demand, constraints: Constraints) -> tuple[int, int, int, int]:
    """Less is better."""
    here = node.components.get((constraints.workload, constraints.component), 0)
    return (
        here if constraints.spread else 0,
        int(_is_hot(node, demand)),
        0 if demand.accelerators else _free_accelerators(node),
        -_balanced_fill(node, demand),
    )


def _is_hot(node: Node, demand: Demand) -> bool:
    capacity, view = node.view.capacity, node.view
    cpu = max(node.expected_cpu_milli, view.load_cpu_milli) + demand.expected_cpu_milli
    memory = max(node.expected_memory_bytes, view.load_memory_bytes)
    memory += demand.expected_memory_bytes
    return (
        cpu * 1000 > capacity.cpu_milli * CPU_ROOM_PERMILLE
        or memory * 1000 > capacity.memory_bytes * MEMORY_ROOM_PERMILLE
    )


def _free_accelerators(node: Node) -> int:
    """Whole units that are free; a share that is left over is nobody's loss."""
    return sum(units.count(WHOLE_MILLI) for units in node.free_milli.values())


def _balanced_fill(node: Node, demand: Demand) -> int:
    """Parts per million."""
    wanted = demand.vector
    total = node.view.capacity.vector
    filled = [
        (node.used[index] + wanted[index]) * 1_000_000 // total[index]
        for index in range(len(wanted))
        if total[index] > 0 and (index < ALWAYS_COUNTED or wanted[index] > 0)
    ]
    if demand.accelerators:
        units = [milli for pool in node.free_milli.values() for milli in pool]
        whole = max(len(units), 1) * WHOLE_MILLI
        asked = sum(a.count * a.milli for a in demand.accelerators)
        filled.append((whole - sum(units) + asked) * 1_000_000 // whole)
    if not filled:
        return 0
    return sum(filled) // len(filled) - (max(filled) - min(filled)) // 4
