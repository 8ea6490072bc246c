"""Processes of the stack that are killed or stopped while nobody looks: what each costs.

The daemon's and the init's deaths have files of their own (test_card_daemon_kills.py,
test_card_failover.py); here is the rest.
"""

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.process.card_watch import CopyWatch
from tests.process.local_card import LocalCard, a_card
from tools.demo import observe

pytestmark = [
    pytest.mark.process,
    pytest.mark.timeout(90),
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root"),
]

WATCHDOG_S = 2.0  # board_configs/base.toml
STEADY = """
services:
  loop:
    image: host
    command: ["/bin/sh", "-c", "trap 'exit 0' TERM; while true; do sleep 0.5; done"]
    cpus: 0.1
    mem_limit: 32m
    restart: always
    stop_grace_period: 1s
    deploy:
      replicas: 4
      placement: {preferences: [{spread: node.id}]}
"""


@pytest.fixture(scope="module")
def card() -> Iterator[LocalCard]:
    with a_card() as card:
        card.run_compose(STEADY, "steady")
        yield card


@pytest.fixture(autouse=True)
def untouched(card: LocalCard) -> Iterator[None]:
    """Whatever is done to the stack: what runs is the same process, and there is one of it."""
    before = card.first_processes()
    with CopyWatch(card) as watch:
        yield
        card.wait("managing", card.managing)
        card.wait_running()
    assert card.first_processes() == before
    assert not watch.violations, watch.violations


def status_of(card: LocalCard) -> dict[str, Any]:
    status: dict[str, Any] = card.wait("managing", card.managing)
    return status


def test_up_gives_a_card_whose_supervisor_has_died_another_one(card: LocalCard) -> None:
    before = status_of(card)
    os.kill(before["supervisor_pid"], signal.SIGKILL)
    card.wait("dead", lambda: observe.start_ticks(before["supervisor_pid"]) is None)
    card.apf("up", "--board", card.board)
    after = status_of(card)
    assert observe.start_ticks(after["supervisor_pid"]) is not None
    assert after["supervisor_pid"] != before["supervisor_pid"]
    assert after["daemon_pid"] != before["daemon_pid"]
    assert after["keeper_pid"] == before["keeper_pid"]
    os.kill(after["daemon_pid"], signal.SIGKILL)  # and that one does its work
    card.wait("another daemon", lambda: status_of(card)["epoch"] == after["epoch"] + 1)
    same = status_of(card)
    assert card.apf("up", "--board", card.board)["daemon_pid"] == same["daemon_pid"]


def test_a_supervisor_that_stood_still_does_not_take_its_daemon_for_hung(card: LocalCard) -> None:
    """What the daemon said meanwhile waits in the socket: that is read before anybody is judged."""
    before = status_of(card)
    os.kill(before["supervisor_pid"], signal.SIGSTOP)
    time.sleep(WATCHDOG_S + 1)
    os.kill(before["supervisor_pid"], signal.SIGCONT)
    time.sleep(0.5)
    after = status_of(card)
    assert after["daemon_pid"] == before["daemon_pid"]
    assert after["epoch"] == before["epoch"]


def test_an_agent_that_hangs_is_replaced_and_its_instances_never_notice(card: LocalCard) -> None:
    before = card.cnms()["cnm1"]
    os.kill(before["agent_pid"], signal.SIGSTOP)
    card.wait("another agent", lambda: _agent_of(card) not in (None, before["agent_pid"]))
    assert observe.start_ticks(before["agent_pid"]) is None
    assert card.cnms()["cnm1"]["boot_id"] == before["boot_id"]


def _agent_of(card: LocalCard) -> int | None:
    pid: int | None = card.cnms()["cnm1"]["agent_pid"]
    return pid
