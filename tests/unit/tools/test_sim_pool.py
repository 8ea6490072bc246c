"""Seeds on several processes."""

import os
import signal
import threading
from collections import Counter

import pytest

from tools.sim.pool import run_all
from tools.sim.run import Outcome


class Clock:
    """Real time is not for tests: each look is a second later."""

    def __init__(self, step_ns: int = 0) -> None:
        self.at_ns = 0
        self._step_ns = step_ns

    def now_ns(self) -> int:
        self.at_ns += self._step_ns
        return self.at_ns


def fine(seed: int) -> Outcome:
    return Outcome(seed=seed, events=seed * 10, trace_sha256=str(os.getpid()))


def deadly(seed: int) -> Outcome:
    if seed % 5 == 3:
        os._exit(9)
    if seed % 5 == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return fine(seed)


def stuck(seed: int) -> Outcome:
    if seed == 2:
        threading.Event().wait()
    return fine(seed)


def children() -> list[str]:
    with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
        return file.read().split()


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_every_seed_has_one_outcome(jobs: int) -> None:
    found = list(run_all(range(20), fine, clock=Clock(), jobs=jobs))
    assert Counter(outcome.seed for outcome in found) == Counter(range(20))
    assert all(outcome.events == outcome.seed * 10 for outcome in found)
    assert len({outcome.trace_sha256 for outcome in found}) == jobs
    assert all(outcome.violation is None for outcome in found)


def test_a_process_that_dies_names_its_seed_and_the_others_go_on() -> None:
    found = {outcome.seed: outcome for outcome in run_all(range(20), deadly, clock=Clock(), jobs=2)}
    assert sorted(found) == list(range(20))
    for seed, outcome in found.items():
        if seed % 5 in (3, 4):
            assert outcome.violation is not None
            assert outcome.violation.invariant == "the process died"
            assert ("9" if seed % 5 == 3 else "-9") in outcome.violation.text
        else:
            assert outcome.violation is None


def test_a_seed_that_does_not_end_is_ended() -> None:
    outcomes = run_all(
        range(6), stuck, clock=Clock(step_ns=10**9), jobs=2, limit_s=200, look_s=0.01
    )
    found = {outcome.seed: outcome for outcome in outcomes}
    assert sorted(found) == list(range(6))
    assert found[2].violation is not None
    assert found[2].violation.invariant == "no end"
    assert all(found[seed].violation is None for seed in (0, 1, 3, 4, 5))


def test_who_stops_early_leaves_no_process() -> None:
    before = children()
    outcomes = run_all(range(1000), fine, clock=Clock(), jobs=3)
    next(outcomes)
    assert len(children()) == len(before) + 3
    outcomes.close()
    assert children() == before


def test_no_seeds_are_no_outcomes() -> None:
    assert list(run_all([], fine, clock=Clock(), jobs=2)) == []


def test_processes_end_when_who_started_them_was_killed() -> None:
    """Nobody closes the pipes then but the kernel: no process may hold another's."""
    reader, writer = os.pipe()
    parent = os.fork()
    if parent == 0:
        for outcome in run_all(range(1000), told(writer), clock=Clock(), jobs=3):
            if outcome.seed >= 3:
                os.kill(os.getpid(), signal.SIGKILL)
        os._exit(1)
    os.close(writer)
    os.waitpid(parent, 0)
    with os.fdopen(reader, "rb") as file:
        assert file.read()  # ends when the last of them has closed its copy of the pipe


def told(writer: int):
    def run(seed: int) -> Outcome:
        os.write(writer, b".")
        return fine(seed)

    return run
