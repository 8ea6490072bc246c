"""Seeds of `apf sim`: one seed is one run, and seeds that once found something stay clean.

A failure names its seed; `apf sim --replay SEED` with the arguments below says it in full.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools.sim.faults import FAULTS, Site
from tools.sim.run import plan_of, run_plan, run_seed
from tools.sim.world import World

ROOT = Path(__file__).parents[2]
KEPT = [  # (seed, hours, heartbeat_hz, faults)
    *((seed, 0.02, 1.0, "all") for seed in range(1, 13)),
    *((seed, 0.02, 10.0, "all") for seed in range(13, 17)),
    # a run of thousands of seeds found something in each of these
    (14, 0.25, 1.0, "all"),  # a profile that had rotted was left out, as it may be
    (54, 0.25, 1.0, "all"),  # a stop that had been taken back lay in an agent that hung
    (56, 0.25, 1.0, "all"),  # an hour of the budget is one of the daemon's clock
    (183, 0.25, 1.0, "all"),  # at rest, the card had not read all inventories yet
    (316, 0.25, 1.0, "all"),  # room stayed promised to a job that had ended
    (493, 0.25, 1.0, "all"),  # at rest, room was made for what waited
    (633, 0.25, 1.0, "all"),  # what waits at its place for a pending component has its room
    (689, 0.25, 1.0, "all"),  # cancelled deadlines filled the timers' heap
    (692, 0.25, 1.0, "all"),  # a fence wrote over a drain that was on its way to the disk
    (864, 0.25, 1.0, "all"),  # callers that nobody has accepted yet hold descriptors as well
    (906, 0.25, 1.0, "all"),  # what crashed too often has ended by itself
    (931, 0.25, 1.0, "all"),  # a removal that was refused at once was asked for again at once
    (956, 0.25, 1.0, "all"),  # what started this very moment was not heard of
    (1354, 0.25, 1.0, "all"),  # a module came while its instances were being moved away
    (1947, 0.25, 1.0, "all"),  # what rotted was of a batch that nobody had been told of
    (2224, 0.25, 1.0, "all"),  # a submit whose sync failed may have been done
    (2477, 0.25, 1.0, "all"),  # the first report at rest told of a busy module
    (3544, 0.25, 1.0, "all"),  # a removal whose sync failed may have been done
    # at rest, one moved for a drain that had been called off
    *((seed, 0.25, 1.0, "all") for seed in (5647, 5954, 6518, 7724, 8733, 8817)),
    # heartbeats that the link repeated kept a dead module alive
    *((seed, 0.25, 1.0, "all") for seed in (7562, 9369)),
]
PROGRAM = """
from tools.sim.run import run_seed
for seed in (7, 8, 11, 16):
    print(run_seed(seed, hours=0.02).trace_sha256)
print(run_seed(5, board="rev_a", hours=0.02).trace_sha256)
"""


@pytest.mark.parametrize(("seed", "hours", "heartbeat_hz", "faults"), KEPT)
def test_a_kept_seed_breaks_no_invariant(
    seed: int, hours: float, heartbeat_hz: float, faults: str
) -> None:
    outcome = run_seed(seed, hours=hours, heartbeat_hz=heartbeat_hz, faults=faults)
    assert outcome.violation is None, outcome.violation.detail


@pytest.mark.parametrize("seed", range(1, 5))
def test_a_seed_of_a_card_with_smbus_and_pcie_breaks_no_invariant(seed: int) -> None:
    outcome = run_seed(seed, board="rev_a", hours=0.05)
    assert outcome.violation is None, outcome.violation.detail


def test_the_same_seed_is_the_same_run_under_any_hash_seed() -> None:
    said = {
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for hash_seed in ("0", "1")
    }
    assert len(said) == 1


def test_a_clock_that_is_held_up_does_not_begin_to_drift() -> None:
    """What it would go back to is not what it ran at: the daemon's clock stood still for good."""
    world = World(1, slots=1)
    world.boot()
    rng = world.kernel.rng("faults")
    assert FAULTS["D3"].inject is not None
    assert FAULTS["T3"].inject is not None
    assert FAULTS["D3"].inject(Site(world, rng)) is not None
    world.run(0.01)
    clock = world.kernel.nodes["daemon"].clock
    assert clock.rate_ppm == -1_000_000
    begun = [FAULTS["T3"].inject(Site(world, rng)) for _ in range(20)]
    world.run(10)
    for injection in begun:
        if injection is not None:
            injection.heal()
    assert clock.rate_ppm == 0


def test_two_seeds_are_two_runs() -> None:
    assert len({run_seed(seed, hours=0.01).trace_sha256 for seed in (1, 2, 3)}) == 3


def test_a_step_that_is_left_out_changes_nothing_before_it() -> None:
    plan = plan_of(1, board="mock_4", hours=0.05, heartbeat_hz=1.0, faults="all")
    assert plan.steps
    lines: list[list[str]] = [[], []]
    run_plan(plan, sink=lambda text: lines[0].extend(text.splitlines()))
    last = plan.steps[-1]
    only = {step.number for step in plan.steps if step is not last}
    run_plan(plan, only=only, sink=lambda text: lines[1].extend(text.splitlines()))
    at = next(n for n, line in enumerate(lines[0]) if f" sim step {last.number} " in line)
    assert lines[0][:at] == lines[1][:at]
