"""Same seed, same history (invariant I11); and virtual time costs nothing while nothing happens."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from firmware.loop import MS, Loop
from hal.mock.entropy import MockEntropy
from hal.mock.kernel import VirtualKernel
from tests.unit.hal.mock import scenario

ROOT = Path(__file__).parents[4]


def test_the_same_seed_gives_the_same_trace_and_another_seed_another() -> None:
    first = scenario.run(7)
    assert scenario.run(7) == first
    assert scenario.run(8) != first


@pytest.mark.process
def test_the_trace_does_not_depend_on_the_hash_seed() -> None:
    traces = {
        subprocess.run(
            [sys.executable, "-m", "tests.unit.hal.mock.scenario", "7"],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        ).stdout
        for hash_seed in ("0", "4242")
    }
    assert traces == {scenario.run(7)}


def test_an_idle_virtual_hour_takes_a_handful_of_steps() -> None:
    kernel = VirtualKernel(1)
    loop = Loop(kernel.node("n").clock)
    kernel.attach("n", loop)
    beats: list[int] = []
    loop.every(60 * 1000 * MS, lambda: beats.append(loop.now_ns()))
    before = time.process_time_ns()
    kernel.run_for(3600 * 1000 * MS)
    assert len(beats) == 60
    assert kernel.steps < 200
    assert time.process_time_ns() - before < 3600 * 1000 * MS // 1000, "a thousandth, and far less"


def test_streams_of_randomness_do_not_shift_each_other() -> None:
    alone = VirtualKernel(3).rng("b").random()
    kernel = VirtualKernel(3)
    kernel.rng("a").random()
    assert kernel.rng("b").random() == alone
    assert kernel.rng("b") is kernel.rng("b")
    assert VirtualKernel(4).rng("b").random() != alone


def test_each_start_of_a_program_draws_its_own_bytes_and_the_same_in_each_run() -> None:
    def boots() -> list[bytes]:
        node = VirtualKernel(3).node("cnm0/init")
        return [MockEntropy(node).random_bytes(16) for _ in range(5)]

    assert len(set(boots())) == 5
    assert boots() == boots()


def test_the_trace_hash_covers_what_has_fallen_out_of_the_trace() -> None:
    first, second = VirtualKernel(1), VirtualKernel(1)
    first.note("x", "early")
    second.note("y", "early")
    for kernel in (first, second):
        for number in range(30_000):
            kernel.note("z", "later", str(number))
    assert first.trace.entries() == second.trace.entries()
    assert first.trace.sha256() != second.trace.sha256()
