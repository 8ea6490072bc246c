"""The allocator as a plug-in of the openb yardstick: `--plugin tools.bench.openb:Policy`.

Nodes become CNMs whose ids have the yardstick's order, tasks become demands, and all questions go
to `firmware.allocator`, which learns the mix from the tasks that it placed; the `classes` that the
yardstick offers are not looked at. An arriving task is one new request; a move is none.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from firmware.allocator import (
    AcceleratorDemand,
    AcceleratorPool,
    AcceleratorUnit,
    AllocatorState,
    Capacity,
    CnmView,
    Demand,
    best_cnm,
    fits,
)
from firmware.allocator.plan_pack import Tidier, rebalance
from firmware.allocator.plan_types import Move, Want

MIB: Final = 1 << 20
KIND: Final = "gpu"
_Running = Mapping[int, tuple[Any, int, Sequence[int]]]  # number -> task, node, GPUs
_Wants = tuple[int, int, int, int, int]  # CPU milli, memory MiB, GPUs, milli of each, models
_Spot = tuple[int, tuple[int, ...], _Wants]  # node, GPUs


def name_of(node: int) -> str:
    """Ids in the order of the nodes."""
    return f"cnm{node:05d}"


def node_of(cnm: str) -> int:
    return int(cnm[3:])


def model_name(model: int) -> str:
    return f"model{model}"


def capacity_of(cpu_milli: int, memory_mib: int, gpus: int, model: int) -> Capacity:
    """One node of the trace."""
    pools: tuple[AcceleratorPool, ...] = ()
    if gpus:
        pools = (AcceleratorPool(kind=KIND, model=model_name(model), count=gpus),)
    return Capacity(cpu_milli=cpu_milli, memory_bytes=memory_mib * MIB, accelerators=pools)


def demand_of(cpu_milli: int, memory_mib: int, gpus: int, milli: int, models: int) -> Demand:
    """One task; `models` is a bit mask, 0 for any."""
    wanted: tuple[AcceleratorDemand, ...] = ()
    if gpus:
        names = [model_name(bit) for bit in range(models.bit_length()) if models >> bit & 1]
        model = "|".join(names) or None
        wanted = (AcceleratorDemand(kind=KIND, model=model, count=gpus, milli=milli),)
    return Demand(cpu_milli=cpu_milli, memory_bytes=memory_mib * MIB, accelerators=wanted)


def state_of(nodes: Sequence[tuple[int, int, int, int]]) -> AllocatorState:
    """Books of (CPU milli, memory MiB, GPUs, model), one CNM each."""
    state = AllocatorState()
    for number, (cpu_milli, memory_mib, gpus, model) in enumerate(nodes):
        view = CnmView(
            id=name_of(number),
            arch="any",
            capacity=capacity_of(cpu_milli, memory_mib, gpus, model),
            labels={},
        )
        state.add_cnm(view)
    return state


class Policy:
    """What the yardstick asks."""

    def __init__(self) -> None:
        self._begin(AllocatorState())

    def _begin(self, state: AllocatorState) -> None:
        self.state = state
        self._demands: dict[_Wants, Demand] = {}
        self._held: dict[_Spot, list[str]] = {}
        self._count = 0
        self._tidier = Tidier(least_gain=100)

    def reset(self, state: Any, classes: object, rng: object) -> None:
        """The yardstick's nodes. The mix that it offers, and its random numbers, are not used."""
        del classes, rng
        rows = zip(state.cpu_cap, state.mem_cap, state.ngpu, state.model, strict=True)
        self._begin(state_of([(int(a), int(b), int(c), int(d)) for a, b, c, d in rows]))

    def demand(self, pod: Any) -> Demand:
        key = _wants(pod)
        found = self._demands.get(key)
        if found is None:
            found = self._demands[key] = demand_of(*key)
        return found

    def place(self, state: Any, pod: Any) -> tuple[int, tuple[int, ...]] | None:
        """Where it goes; `placed` books it."""
        del state
        demand = self.demand(pod)
        cnm = best_cnm(self.state, demand)
        if cnm is None:
            return None
        self.state.observe(demand)
        units = fits(self.state, cnm, demand)
        assert units is not None, f"{cnm} was chosen and refuses"
        return node_of(cnm), tuple(unit.index for unit in units)

    def placed(self, state: Any, pod: Any, node: int, gpus: Sequence[int]) -> None:
        """An arrival or a move is booked."""
        del state
        instance, cnm = f"t{self._count:07d}", name_of(node)
        self._count += 1
        (model,) = {key[1] for key in self.state.nodes[cnm].free_milli} or {""}
        units = tuple(
            AcceleratorUnit(kind=KIND, model=model, index=int(gpu), milli=pod.milli)
            for gpu in sorted(gpus)
        )
        self.state.commit(instance, cnm, self.demand(pod), units=units)
        self._held.setdefault(_spot(pod, node, gpus), []).append(instance)

    def released(self, state: Any, pod: Any, node: int, gpus: Sequence[int]) -> None:
        """It has ended, or moves away."""
        del state
        spot = _spot(pod, node, gpus)
        self.state.release(self._held[spot].pop())
        if not self._held[spot]:
            del self._held[spot]

    def adopt(self, state: Any, running: _Running) -> None:
        """What another policy has placed: the mix is learned from it."""
        for pod, node, gpus in running.values():
            self.placed(state, pod, node, gpus)
            self.state.observe(self.demand(pod))

    def rebalance(
        self, state: Any, running: _Running, pending: Sequence[Any], budget: int
    ) -> list[tuple[int, int, tuple[int, ...]]]:
        """Moves that make room for what waits."""
        del state
        wants = [
            Want(demand=self.demand(pod), worth=pod.ngpu * pod.milli) for pod in pending if pod.ngpu
        ]
        return self._told(running, rebalance(self.state, wants, budget))

    def migrate(
        self, state: Any, running: _Running, budget: int
    ) -> list[tuple[int, int, tuple[int, ...]]]:
        """Moves ahead of time, towards room for what is usually asked for."""
        del state
        wants = [
            Want(
                demand=Demand(
                    cpu_milli=key.vector[0],
                    memory_bytes=key.vector[1],
                    accelerators=(
                        AcceleratorDemand(
                            kind=key.kind, model=key.model or None, count=key.count, milli=key.milli
                        ),
                    ),
                ),
                worth=key.wanted_milli,
                count=weight,
            )
            for key, weight in self.state.mix.classes()
            if key.count
        ]
        return self._told(running, self._tidier.migrate(self.state, wants, budget))

    def _told(
        self, running: _Running, moves: Sequence[Move]
    ) -> list[tuple[int, int, tuple[int, ...]]]:
        """Moves with the yardstick's numbers of tasks."""
        if not moves:
            return []
        numbers: dict[str, int] = {}
        taken: dict[_Spot, int] = {}
        for number, (pod, node, gpus) in running.items():
            spot = _spot(pod, node, gpus)
            at = taken.get(spot, 0)
            taken[spot] = at + 1
            numbers[self._held[spot][at]] = number
        return [
            (numbers[move.instance], node_of(move.target), tuple(u.index for u in move.units))
            for move in moves
        ]


def _wants(pod: Any) -> _Wants:
    return pod.cpu, pod.mem, pod.ngpu, pod.milli, pod.spec


def _spot(pod: Any, node: int, gpus: Sequence[int]) -> _Spot:
    """Tasks that agree in this can stand for each other."""
    return int(node), tuple(sorted(int(gpu) for gpu in gpus)), _wants(pod)
