"""One seed from its plan to its outcome.

Safety phases, in which things break while people use the card and the judge watches; after each,
everything is healed and the card must come to rest within a bound (liveness); at the end all is
removed and nothing may be left. A violation ends the run and is part of the outcome.
"""

import gc
import random
import time
import traceback
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final

from firmware.board import load_board, on_mock
from firmware.board_types import Board
from hal.mock.kernel import LivelockError
from tools.sim.faults import FAULTS, Site, chosen
from tools.sim.injector import Injector
from tools.sim.judge import Violation
from tools.sim.plan import Plan, Step, draw
from tools.sim.rest import Rest
from tools.sim.workloads import Tenants
from tools.sim.world import SECOND, World

BOOT_LIMIT_S: Final = 60.0
RUN_DIR: Final = "/run/apf"  # of the boards' spec strings; nothing is made there
ARCH: Final = "arm64"
LAST_LINES: Final = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A violation, as it leaves its run."""

    invariant: str
    at_s: float  # after the start
    text: str
    detail: str  # what is needed to understand it


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What came of one seed."""

    seed: int
    simulated_s: float = 0.0
    cpu_s: float = 0.0
    events: int = 0  # entries of the trace
    modules: int = 0
    style: str = ""
    faults: dict[str, int] = field(default_factory=dict)  # by id: injected, and seen to act
    injected: dict[str, int] = field(default_factory=dict)  # by id: injected at all
    pairs: set[tuple[str, str]] = field(default_factory=set)  # classes that acted at once
    violation: Found | None = None
    trace_sha256: str = ""


def run_seed(
    seed: int,
    *,
    board: str = "mock_32",
    hours: float = 0.25,
    heartbeat_hz: float = 1.0,
    faults: str = "all",
    only: Container[int] | None = None,
    trace: Path | None = None,
) -> Outcome:
    """Run one seed; a violation is in the outcome, never raised. `only`: the numbers of the plan's
    steps that are done, all by default. `trace`: a file that gets every line of the trace.
    Raises BoardError and ValueError for what can't be run, OSError for the file."""
    plan = plan_of(seed, board=board, hours=hours, heartbeat_hz=heartbeat_hz, faults=faults)
    if trace is None:
        return run_plan(plan, only=only)
    with trace.open("w", encoding="utf-8") as file:

        def write(lines: str) -> None:
            file.write(lines)

        return run_plan(plan, only=only, sink=write)


def plan_of(seed: int, *, board: str, hours: float, heartbeat_hz: float, faults: str) -> Plan:
    """What `run_seed` runs. Raises BoardError and ValueError."""
    return draw(
        seed,
        board=sim_board(board),
        hours=hours,
        heartbeat_hz=heartbeat_hz,
        faults=chosen(faults),
    )


@cache
def sim_board(name: str) -> Board:
    """A board as it is simulated: one of real devices has those of the virtual kernel in their
    place. Raises BoardError."""
    board = load_board(name, run_dir=RUN_DIR, host_arch=ARCH)
    return board if board.kind == "mock" else on_mock(board)


def run_plan(
    plan: Plan,
    *,
    only: Container[int] | None = None,
    sink: Callable[[str], None] | None = None,
) -> Outcome:
    """Run a plan, or the steps of it whose numbers are in `only`."""
    began_s = time.process_time()
    steps = [step for step in plan.steps if only is None or step.number in only]
    collects = gc.isenabled()
    gc.disable()  # what a run leaves goes with its world, at the end
    try:
        run = Run(plan, steps, sink)
        violation = run.go()
    finally:
        if collects:
            gc.enable()
    kernel = run.world.kernel
    return Outcome(
        seed=plan.seed,
        simulated_s=(kernel.now_ns - run.began_ns) / SECOND,
        cpu_s=time.process_time() - began_s,
        events=kernel.trace.count,
        modules=len(plan.board.slots),
        style=str(plan.style),
        faults=dict(run.injector.seen),
        injected=dict(run.injector.injected),
        pairs=run.injector.pairs,
        violation=violation,
        trace_sha256=kernel.trace.sha256(),
    )


class Run:
    """The world of one plan, and what is done to it when."""

    def __init__(
        self, plan: Plan, steps: Sequence[Step], sink: Callable[[str], None] | None = None
    ) -> None:
        self.plan = plan
        self.world = World(plan.seed, board=plan.board)
        self.kernel = self.world.kernel
        self.kernel.trace.sink = sink
        self.began_ns = self.kernel.now_ns
        self.tenants = Tenants(self.world, plan.names, plan.most_replicas, ranked=plan.ranked)
        self.injector = Injector(self.world, haste=plan.haste)
        self.rest = Rest(self.world, self.tenants)
        self._steps = steps
        self._next = 0
        self._furnish()

    def go(self) -> Found | None:
        """The whole run; what it found."""
        try:
            self._go()
        except Violation as exc:
            return self._found(exc.invariant, exc.text, str(exc))
        except LivelockError as exc:
            return self._found("livelock", str(exc), self._last())
        except Exception as exc:  # noqa: BLE001  what leaves a handler of the firmware is a finding
            text = f"{type(exc).__name__}: {exc}"
            detail = "".join(traceback.format_exception(exc)) + self._last()
            return self._found("an exception nobody handled", text, detail)
        return None

    def _furnish(self) -> None:
        """The parts of the card as the plan drew them."""
        world, plan = self.world, self.plan
        world.disk.sync_ns = plan.sync_ns["card"]
        for name, module in world.modules.items():
            module.slot.fence = plan.fences[name]
            module.slot.disk.sync_ns = plan.sync_ns[name]
            for line in module.lines.values():
                line.baud = plan.baud
        for node, rate_ppm in plan.rates_ppm.items():
            world.kernel.node(node).clock.set_rate(rate_ppm)

    def _go(self) -> None:
        self.world.boot(limit_s=BOOT_LIMIT_S)
        self.tenants.settle_in()
        done_ns = 0
        for span_ns, switched in zip(self.plan.rounds_ns, self.plan.switched, strict=True):
            self._break(done_ns, done_ns + span_ns)
            done_ns += span_ns
            self.injector.heal()
            self.rest.come()
            self.rest.stay(self.plan.calm_ns)
            if switched is not None:
                self.rest.off_and_on(switched)
        self.rest.remove()
        end_ns = self.began_ns + self.plan.total_ns
        self.rest.gone(end_ns - self.kernel.now_ns)
        self.world.judge.finish()

    def _break(self, from_ns: int, until_ns: int) -> None:
        """The steps of one safety phase, at their times."""
        shift_ns = self.kernel.now_ns - from_ns
        while self._next < len(self._steps) and self._steps[self._next].at_ns < until_ns:
            step = self._steps[self._next]
            self._next += 1
            self.injector.run_until(shift_ns + step.at_ns)
            self._do(step)
        self.injector.run_until(shift_ns + until_ns)

    def _do(self, step: Step) -> None:
        rng = random.Random(step.seed)  # noqa: S311  a simulator, not a key
        self.kernel.note("sim", "step", f"{step.number} {step.what}")
        action = self.tenants.actions.get(step.what)
        if action is not None:
            action(rng)
        else:
            self.injector.inject(FAULTS[step.what], Site(self.world, rng))

    def _found(self, invariant: str, text: str, detail: str) -> Found:
        at_s = (self.kernel.now_ns - self.began_ns) / SECOND
        return Found(invariant=invariant, at_s=at_s, text=text, detail=detail)

    def _last(self) -> str:
        return "\n".join(
            f"  {entry.at_ns / SECOND:.6f} {entry.who} {entry.what} {entry.detail}"
            for entry in self.kernel.trace.entries()[-LAST_LINES:]
        )
