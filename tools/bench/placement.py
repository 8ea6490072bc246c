"""`apf bench placement`: one decision with its commit, in CPU time, beside a scan by numpy.

1,024 and 4,096 CNMs with six resources, plain (memory and CPU decide) and with eight accelerators
each (fragmentation and scarcity decide too), at 50, 90 and 99 % fill. The baseline is the least
that a vectorised scan does: mask of who can, weighted remainder, argmin, subtraction.
"""

from collections.abc import Callable
from random import Random
from typing import Final

from firmware.allocator import (
    AcceleratorDemand,
    AcceleratorPool,
    AllocatorState,
    Capacity,
    CnmView,
    Demand,
    best_cnm,
)
from hal import native_placement
from tools.bench.figures import Figure, Goal
from tools.bench.measure import Bench, cpu_ns

CNMS: Final = (1024, 4096)
FILLS_PERCENT: Final = (50, 90, 99)
SEED: Final = 5
PLAIN_US: Final = Goal(must=50, aim=5)
ACCELERATED_US: Final = Goal(must=250, aim=50)
ACCELERATED_P99_US: Final = Goal(must=2000, aim=250)
REPLACED_MS: Final = Goal(must=50, aim=10)
LOST: Final = 100  # components of a CNM that is gone
_GIB: Final = 1 << 30


def run(bench: Bench) -> list[Figure]:
    """All rows."""
    figures: list[Figure] = []
    numpy_us = _numpy_scan(bench) if not bench.quick else None
    if not native_placement.AVAILABLE:
        bench.say("hal._placement is not built: the scan is in Python")
    for cnms in CNMS if not bench.quick else CNMS[:1]:
        for accelerated in (False, True):
            figures += _one(bench, cnms, accelerated, numpy_us)
    return figures


def _one(
    bench: Bench, cnms: int, accelerated: bool, numpy_us: Callable[[int], float] | None
) -> list[Figure]:
    rng = Random(SEED)  # noqa: S311  # equal requests in every run, no secret
    state = books(cnms, accelerated)
    kind = "accelerators" if accelerated else "plain"
    figures: list[Figure] = []
    number = 0
    for fill in FILLS_PERCENT:
        number = fill_to(state, rng, accelerated, fill, number)
        times: list[int] = []
        for turn in range(bench.pick(2000, 100)):
            demand = request(rng, accelerated)
            start_ns = cpu_ns()
            cnm = best_cnm(state, demand)
            if cnm is not None:
                state.commit(f"turn{turn}", cnm, demand)
                times.append(cpu_ns() - start_ns)
                state.observe(demand)
                state.release(f"turn{turn}")
        times.sort()
        name = f"placement.{kind}.{cnms}.{fill}"
        if not times:
            figures.append(Figure(name=name, unit="us", error="nothing fitted"))
            continue
        goal = ACCELERATED_US if accelerated else PLAIN_US
        figures.append(
            Figure(
                name=f"{name}.p50",
                unit="us",
                value=times[len(times) // 2] / 1000,
                baseline=numpy_us(cnms) if numpy_us else None,
                baseline_name="numpy scan" if numpy_us else None,
                goal=goal,
            )
        )
        p99_us = times[len(times) * 99 // 100] / 1000
        figures.append(
            Figure(
                name=f"{name}.p99",
                unit="us",
                value=p99_us,
                goal=ACCELERATED_P99_US if accelerated else None,
            )
        )
    lost = [request(rng, accelerated) for _ in range(LOST)]
    emptied = books(cnms, accelerated)
    number = fill_to(emptied, rng, accelerated, FILLS_PERCENT[0], 0)
    emptied.set_schedulable("cnm00000", "FAILED")
    start_ns = cpu_ns()
    for demand in lost:
        cnm = best_cnm(emptied, demand)
        if cnm is not None:
            emptied.commit(f"again{number}", cnm, demand)
            number += 1
    figures.append(
        Figure(
            name=f"placement.{kind}.{cnms}.again{LOST}",
            unit="ms",
            value=(cpu_ns() - start_ns) / 1e6,
            goal=REPLACED_MS,
        )
    )
    return figures


def books(cnms: int, accelerated: bool) -> AllocatorState:
    """Empty CNMs with all six resources."""
    state = AllocatorState()
    for number in range(cnms):
        pools: tuple[AcceleratorPool, ...] = ()
        if accelerated:
            model = ("a", "b", "c")[number % 3]
            pools = (AcceleratorPool(kind="gpu", model=model, count=8),)
        capacity = Capacity(
            cpu_milli=96_000,
            memory_bytes=384 * _GIB,
            nvme_bytes=4096 * _GIB,
            link_mbit=100_000,
            nvme_mbit=50_000,
            window_slots=256,
            accelerators=pools,
        )
        view = CnmView(id=f"cnm{number:05d}", arch="any", capacity=capacity, labels={})
        state.add_cnm(view)
    return state


def request(rng: Random, accelerated: bool) -> Demand:
    """One of 64 kinds, or 128 with accelerators."""
    size = rng.randrange(1, 9)
    wanted: tuple[AcceleratorDemand, ...] = ()
    if accelerated:
        milli = rng.choice((1000, 1000, 700, 300))
        model = rng.choice((None, None, None, "c"))
        wanted = (AcceleratorDemand(kind="gpu", model=model, milli=milli),)
    return Demand(
        cpu_milli=1500 * size,
        memory_bytes=rng.choice((2, 5)) * size * _GIB,
        nvme_bytes=16 * _GIB,
        link_mbit=100 * size,
        nvme_mbit=200,
        window_slots=rng.choice((1, 2)),
        accelerators=wanted,
    )


def fill_to(
    state: AllocatorState, rng: Random, accelerated: bool, percent: int, number: int
) -> int:
    """Place until the resource that decides is so full, or twenty in a row found no room."""
    total = sum(n.total[0] for n in state.nodes.values())
    used = sum(n.used[0] for n in state.nodes.values())
    whole = sum(state.pool_free.values()) if number == 0 else 8000 * len(state.nodes)
    misses = 0
    while misses < 20:
        done = 100 * used >= percent * total
        if accelerated:
            done = 100 * (whole - sum(state.pool_free.values())) >= percent * whole
        if done:
            break
        demand = request(rng, accelerated)
        cnm = best_cnm(state, demand)
        if cnm is None:
            misses += 1
            continue
        misses = 0
        state.observe(demand)
        state.commit(f"fill{number}", cnm, demand)
        number += 1
        used += demand.cpu_milli
    return number


def _numpy_scan(bench: Bench) -> Callable[[int], float] | None:
    try:
        import numpy as np  # of the extra `bench`
    except ImportError:
        bench.say("numpy is not installed (extra `bench`): no baseline")
        return None

    def measure(cnms: int) -> float:
        free = np.full((cnms, 6), 1 << 40, dtype=np.int64)
        want = np.array([3000, 8 << 30, 16 << 30, 200, 200, 1], dtype=np.int64)
        weight = np.array([1e-5, 1e-12, 1e-13, 1e-5, 1e-5, 1e-3])
        times: list[int] = []
        for _ in range(300):
            start_ns = cpu_ns()
            left = free - want
            score = np.where((left >= 0).all(1), left @ weight, np.inf)
            free[int(score.argmin())] -= want
            times.append(cpu_ns() - start_ns)
        return sorted(times)[len(times) // 2] / 1000

    return measure
