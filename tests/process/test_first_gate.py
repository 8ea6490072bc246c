"""One Compose service in a container on one CNM, through the real stack; and the three kills."""

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.process.local_card import BUSYBOX, LocalCard
from tools.demo import observe

pytestmark = [
    pytest.mark.process,
    pytest.mark.timeout(180),
    pytest.mark.skipif(os.geteuid() != 0, reason="containers and namespaces need root"),
    pytest.mark.skipif(not BUSYBOX, reason="busybox-static is not installed"),
]

ONE = """
services:
  tick:
    image: busybox
    command: ["/bin/sh", "-c", "i=0; while true; do i=$$((i+1)); echo tick $$i; sleep 0.1; done"]
    cpus: 0.2
    mem_limit: 32m
    restart: always
    stop_grace_period: 1s
"""
TICK = "shop/tick/0"


@pytest.fixture
def card() -> Iterator[LocalCard]:
    card = LocalCard()
    try:
        yield card.up()
    finally:
        card.close()


@pytest.fixture
def running(card: LocalCard) -> LocalCard:
    card.wait_leased()
    card.import_busybox()
    card.submit(ONE)
    card.wait_running(TICK)
    return card


def test_a_compose_service_runs_in_a_container_on_one_module(running: LocalCard) -> None:
    card, row = running, running.ps()[TICK]
    cnm = card.cnms()[row["cnm"]]
    assert row["runtime"] == "oci"
    assert row["cgroup"].startswith(cnm["cgroup"] + "/")
    assert observe.cgroup_of(row["pid"]) == row["cgroup"]
    assert observe.namespace_pid(cnm["init_pid"]) == 1
    assert len(observe.copies(TICK, card.cgroup_root())) == 1
    containers = observe.runc_states(cnm["init_pid"], cnm["runc_root"])
    assert [c["status"] for c in containers] == ["running"]
    memory = [
        d for d in observe.cgroup_dirs(row["cgroup"]) if (d / "memory.limit_in_bytes").exists()
    ]
    if memory:  # hybrid host: the limit is where the kernel keeps it
        assert int((memory[0] / "memory.limit_in_bytes").read_text()) == 32 << 20

    def three() -> str | None:
        text = card.apf("logs", TICK)["text"]
        return text if text.count("\n") >= 3 else None

    text = card.wait("output", three)
    assert text.splitlines()[:3] == ["tick 1", "tick 2", "tick 3"]


def test_the_agent_killed_is_back_and_the_component_untouched(running: LocalCard) -> None:
    card, before = running, running.ps()[TICK]
    agent = card.cnms()[before["cnm"]]["agent_pid"]
    os.kill(agent, signal.SIGKILL)
    card.wait(
        "another agent",
        lambda: card.cnms()[before["cnm"]]["agent_pid"] not in (None, agent),
    )
    after = card.wait_running(TICK)[TICK]
    assert (after["pid"], after["start_ticks"]) == (before["pid"], before["start_ticks"])
    assert after["generation"] == before["generation"]
    seen = len(card.apf("logs", TICK)["text"])
    card.wait("more output", lambda: len(card.apf("logs", TICK)["text"]) > seen)


def test_the_init_killed_is_fenced_and_its_component_runs_elsewhere(running: LocalCard) -> None:
    card, before = running, running.ps()[TICK]
    root = card.cgroup_root()
    os.kill(card.cnms()[before["cnm"]]["init_pid"], signal.SIGKILL)
    start = time.monotonic()
    card.wait(
        "it runs with another process",
        lambda: any(s.instance == TICK and s.cgroup != before["cgroup"] for s in card.mine()),
        every_s=0.01,
    )
    print(f"init killed -> running again: {1000 * (time.monotonic() - start):.0f} ms")
    after = card.wait_running(TICK)[TICK]
    assert after["generation"] > before["generation"]
    assert after["cnm"] != before["cnm"]
    assert observe.start_ticks(before["pid"]) != before["start_ticks"]
    assert len(observe.copies(TICK, root)) == 1
    codes = [event["code"] for event in card.apf("events")]
    assert codes.index("cnm.fencing") < codes.index("cnm.fenced")
    card.wait_leased()  # the module was switched on again


def test_the_daemon_killed_is_back_and_nothing_that_runs_is_touched(running: LocalCard) -> None:
    card, before = running, running.ps()[TICK]
    status = card.status()
    assert status is not None
    os.kill(status["daemon_pid"], signal.SIGKILL)

    def another() -> dict[str, Any] | None:
        found = card.status()
        return found if found and found["daemon_pid"] != status["daemon_pid"] else None

    after_status = card.wait("another daemon", another)
    assert after_status["epoch"] == status["epoch"] + 1
    after = card.wait_running(TICK)[TICK]
    assert (after["pid"], after["start_ticks"]) == (before["pid"], before["start_ticks"])
    assert after["generation"] == before["generation"]
    card.wait_leased()
    again = card.ps()[TICK]
    assert again["pid"] == before["pid"]


def test_removed_means_that_nothing_is_left(running: LocalCard) -> None:
    card, before = running, running.ps()[TICK]
    card.apf("rm", "shop", "--wait")
    assert card.mine() == []
    assert observe.cgroup_dirs(before["cgroup"]) == []
    assert card.ps() == {}
