"""tools.bench.openb: the plug-in asks what the daemon asks, and nothing else."""

import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest

from firmware.allocator import AllocatorState, Placement, place
from tools.bench import openb_table
from tools.bench.measure import Bench
from tools.bench.openb import Policy, demand_of, name_of, node_of, state_of

Pod = namedtuple("Pod", "name cpu mem ngpu milli spec tid")
NODES = [(96_000, 393_216, 8, 0), (104_000, 524_288, 2, 1), (16_000, 122_880, 2, 2)] * 4


def stream(length: int) -> list[Pod]:
    rng = Random(11)  # the same in every run
    pods = []
    for number in range(length):
        gpus = rng.choice((0, 1, 1, 1, 1, 2, 8))
        milli = 0 if not gpus else rng.choice((1000, 810, 470, 320)) if gpus == 1 else 1000
        spec = rng.choice((0, 0, 0, 0b010, 0b110)) if gpus == 1 else 0
        cpu = rng.choice((3152, 8000, 11_900))
        pods.append(Pod(f"p{number}", cpu, 4096, gpus, milli, spec, 0))
    return pods


def cluster() -> SimpleNamespace:
    columns = list(zip(*NODES, strict=True))
    return SimpleNamespace(
        cpu_cap=columns[0], mem_cap=columns[1], ngpu=columns[2], model=columns[3]
    )


def decisions() -> list[object]:
    """What the plug-in decides on the stream, with departures in between."""
    policy = Policy()
    policy.reset(cluster(), None, None)
    found: list[object] = []
    running = []
    for turn, pod in enumerate(stream(160)):
        answer = policy.place(None, pod)
        found.append(answer)
        if answer is not None:
            policy.placed(None, pod, *answer)
            running.append((pod, *answer))
        if turn % 5 == 4:
            policy.released(None, *running.pop(turn % len(running)))
    return found


def daemon_decisions() -> list[object]:
    """The same stream, asked and booked as the daemon does it."""
    state: AllocatorState = state_of(NODES)
    found: list[object] = []
    running = []
    for turn, pod in enumerate(stream(160)):
        demand = demand_of(pod.cpu, pod.mem, pod.ngpu, pod.milli, pod.spec)
        answer = place(state, demand)
        if isinstance(answer, Placement):
            state.observe(demand)
            units = state.commit(pod.name, answer.cnm, demand)
            found.append((node_of(answer.cnm), tuple(unit.index for unit in units)))
            running.append(pod.name)
        else:
            found.append(None)
        if turn % 5 == 4:
            state.release(running.pop(turn % len(running)))
    return found


def test_the_benchmark_and_the_daemon_decide_alike_on_one_stream() -> None:
    found = decisions()
    assert found == daemon_decisions()
    assert None in found  # the stream fills the cluster
    assert sum(answer is not None for answer in found) > 80


def test_the_decisions_do_not_depend_on_the_seed_of_hashes() -> None:
    program = "from tests.unit.tools.test_bench_openb import decisions; print(decisions())"
    root = Path(openb_table.__file__).parents[2]
    answers = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(root)},
            capture_output=True,
            check=True,
            cwd=root,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(answers) == 1
    assert b"None" in answers.pop()


def test_a_move_is_booked_where_it_goes_and_told_by_the_yardsticks_number() -> None:
    policy = Policy()
    policy.reset(cluster(), None, None)
    pod = Pod("p", 8000, 4096, 1, 470, 0, 0)
    policy.adopt(None, {7: (pod, 0, (3,)), 9: (pod, 1, (1,))})
    assert policy.state.nodes[name_of(0)].free_milli["gpu", "model0"][3] == 530
    policy.released(None, pod, 0, (3,))
    policy.placed(None, pod, 1, (1,))
    assert policy.state.nodes[name_of(0)].used[0] == 0
    assert policy.state.nodes[name_of(1)].free_milli["gpu", "model1"] == [1000, 60]


def test_without_the_data_the_benchmark_says_where_it_looked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APF_SHARED", str(tmp_path))
    (figure,) = openb_table.run(
        Bench(state_dir=lambda: tmp_path, quick=True, say=lambda text: None)
    )
    assert figure.value is None
    assert str(tmp_path / "openb") in (figure.error or "")
    assert "APF_SHARED" in (figure.error or "")
