"""`apf bench sim`: how much simulated time a second of the processor gives, and virtual times.

The speed is of whole seeds, all faults and all invariants on, on cards with all 32 slots. The
times are virtual: what the firmware takes when nothing else has the processor (DESIGN section 6).
"""

import dataclasses
from collections.abc import Callable, Iterator
from statistics import median
from typing import Final

from firmware.board_types import Board
from firmware.events import EventCode
from hal.ports import FenceKind
from tools.bench.figures import (
    COMMANDED_MS,
    DETECTED_BY_EVENT_MS,
    DETECTED_BY_SILENCE_MS,
    RUNNING_AGAIN_LEASE_MS,
    RUNNING_AGAIN_POWER_MS,
    SIM_1_HZ,
    SIM_10_HZ,
    Figure,
    Goal,
)
from tools.bench.measure import Bench, cpu_ns
from tools.bench.timing import SECOND
from tools.sim.documents import component, workload
from tools.sim.plan import Plan, at_rate
from tools.sim.run import plan_of, run_plan, sim_board
from tools.sim.world import World

BOARD: Final = "mock_32"
SEEDS: Final = 4  # with all slots, of each rate
IDLE_MODULES: Final = 1000
COMPONENTS: Final = 16
REAL_TIME: Final = "real time"


def run(bench: Bench) -> list[Figure]:
    """All rows."""
    rows: list[Figure] = []
    for hz, hours, goal in ((1.0, 0.25, SIM_1_HZ), (10.0, 0.05, SIM_10_HZ)):
        bench.say(f"bench sim: whole cards at {hz:g} Hz ...")
        rows += _speed(hz, hours / bench.pick(1, 50), bench.pick(SEEDS, 1), goal)
    modules = bench.pick(IDLE_MODULES, 20)
    bench.say(f"bench sim: {modules} modules at rest ...")
    rows.append(_at_rest(modules))
    rows += _times(bench.pick(COMPONENTS, 4))
    return rows


def _speed(hz: float, hours: float, seeds: int, goal: Goal) -> list[Figure]:
    """Of seeds that drew the whole board, one after the other."""
    simulated_s = spent_s = 0.0
    faults = 0
    for plan in _whole_boards(hz, hours, seeds):
        outcome = run_plan(plan)
        simulated_s += outcome.simulated_s
        spent_s += outcome.cpu_s
        faults += sum(outcome.faults.values())
    name = f"sim.{hz:g}_hz"
    return [
        Figure(
            name=f"{name}.speed",
            value=simulated_s / spent_s,
            unit="s/s",
            baseline=1.0,
            baseline_name=REAL_TIME,
            goal=goal,
        ),
        Figure(name=f"{name}.faults", value=faults / spent_s, unit="1/s"),
    ]


def _whole_boards(hz: float, hours: float, count: int) -> Iterator[Plan]:
    seed = 0
    while count:
        seed += 1
        plan = plan_of(seed, board=BOARD, hours=hours, heartbeat_hz=hz, faults="all")
        if len(plan.board.slots) == len(sim_board(BOARD).slots):
            count -= 1
            yield plan


def _at_rest(modules: int) -> Figure:
    """Heartbeats, grants and telemetry of so many modules, and nothing else."""
    board = sim_board(BOARD)
    first = board.slots[0]
    slots = tuple(dataclasses.replace(first, slot=i, id=f"cnm{i}") for i in range(modules))
    board = dataclasses.replace(board, slots=slots, timing=at_rate(board.timing, 1.0))
    world = World(1, board=board)
    world.boot(limit_s=60)
    span_s = 20.0
    before_ns = cpu_ns()
    world.run(span_s)
    spent_s = (cpu_ns() - before_ns) / SECOND
    return Figure(
        name="sim.1000_cnms.speed",
        value=span_s / spent_s,
        unit="s/s",
        baseline=1.0,
        baseline_name=REAL_TIME,
    )


def _times(components: int) -> list[Figure]:
    """A module with so many components dies, or falls silent; virtual milliseconds."""
    rows = []
    for name, fence, strike, detected, running in (
        ("power", FenceKind.POWER, _die, DETECTED_BY_EVENT_MS, RUNNING_AGAIN_POWER_MS),
        ("silence", FenceKind.POWER, _hang, DETECTED_BY_SILENCE_MS, RUNNING_AGAIN_POWER_MS),
        ("lease", FenceKind.LEASE, _cut, DETECTED_BY_SILENCE_MS, RUNNING_AGAIN_LEASE_MS),
    ):
        found = [_failover(components, fence, strike, seed) for seed in (1, 2, 3)]
        goals = {"detected": detected, "commanded": COMMANDED_MS, "running_again": running}
        for step, goal in goals.items():
            value = median(one[step] for one in found)
            rows.append(Figure(name=f"sim.{name}.{step}", value=value, unit="ms", goal=goal))
    return rows


def _failover(
    components: int, fence: FenceKind, strike: Callable[[World, str], None], seed: int
) -> dict[str, float]:
    board: Board = sim_board("mock_4")
    world = World(seed, board=board)
    for module in world.modules.values():
        module.slot.fence = fence
    world.boot()
    victim = next(iter(world.modules))
    parts = [component(f"c{number}") for number in range(components)]
    world.submit(workload("shop", *parts))
    names = [f"shop/c{number}/0" for number in range(components)]
    world.wait_running(*names, limit_s=60)
    for name in names:  # all on one
        if world.where(name) != victim:
            world.migrate(name, victim)
            world.run_until(lambda name=name: world.where(name) == victim, 60)  # type: ignore[misc]
    world.run(0.37)  # at no particular moment of a period
    since = len(world.events)
    struck_ns = world.kernel.now_ns
    strike(world, victim)
    again_ns: list[int] = []
    world.run_until(
        lambda: all(world.where(name) not in (None, victim) for name in names), 60, "running again"
    )
    again_ns.append(world.kernel.now_ns)
    events = world.events[since:]

    def at_ms(code: EventCode) -> int:
        return max(int(event.mono_ms) for event in events if event.code is code)

    fenced_ms = at_ms(EventCode.CNM_FENCED)
    suspect_ms = next(e.mono_ms for e in events if e.code is EventCode.CNM_SUSPECT)
    return {
        "detected": max(0.0, suspect_ms - struck_ns / 1e6),  # events are told in whole ms
        "commanded": float(at_ms(EventCode.INSTANCE_FAILOVER) - fenced_ms),
        "running_again": (again_ns[0] - struck_ns) / 1e6,
    }


def _die(world: World, cnm: str) -> None:
    world.kernel.kill(world.modules[cnm].init_node)


def _hang(world: World, cnm: str) -> None:
    for node in (world.modules[cnm].init_node, world.modules[cnm].agent_node):
        world.kernel.pause(node)


def _cut(world: World, cnm: str) -> None:
    world.modules[cnm].cut()
