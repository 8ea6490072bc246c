"""The daemon runs out of descriptors (prlimit(2) on the running process): those who come are told
so and may come again, those who are there are served, nothing that runs is touched, and it works
on when there are descriptors again.
"""

import json
import os
import resource
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from hal.linux.cgroup import CgroupTree
from hal.linux.procstat import proc_stat
from hal.local.cgroups import SlotCgroup, find_trees
from tests.process import fault_clients as clients
from tests.process.card_watch import CopyWatch
from tests.process.fault_logs import LogWatch
from tests.process.local_card import LocalCard, a_card
from tools.demo import observe, observe_card

pytestmark = [
    pytest.mark.process,
    pytest.mark.timeout(90),
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root"),
]

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
SUSPECT_S = 1.5  # both links silent for 1 s: its power would be cut


@pytest.fixture(scope="module")
def card() -> Iterator[LocalCard]:
    with a_card() as card:
        card.run_compose(STEADY, "steady")
        yield card


@contextmanager
def no_more_descriptors(pid: int) -> Iterator[None]:
    """Not one that it has not got."""
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    with os.scandir(f"/proc/{pid}/fd") as entries:
        numbers = {int(entry.name) for entry in entries}
    if pid == os.getpid():  # the listing's own is closed again
        free = os.dup(0)
        os.close(free)
        numbers.discard(free)
    first_free = next(number for number in range(soft) if number not in numbers)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (first_free, hard))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))


def told(sock: socket.socket) -> dict[str, Any]:
    """The one line that it says before it hangs up."""
    line = b""
    while piece := sock.recv(4096):
        line += piece
    answer: dict[str, Any] = json.loads(line)
    return answer


def test_who_comes_is_told_that_there_is_no_descriptor_and_who_is_there_is_served(
    card: LocalCard,
) -> None:
    status = card.managing()  # and this connection stays
    assert status is not None
    before, pid, logs = card.first_processes(), status["daemon_pid"], LogWatch(card)
    with CopyWatch(card) as watch:
        with no_more_descriptors(pid):
            for _ in range(20):
                with clients.connect(card.run, timeout_s=10) as sock:
                    answer = told(sock)
                assert answer["error"]["data"]["code"] == "no_descriptors", answer
            refused = card.apf("ps", code=3)  # the command's exit code for a refusal
            assert refused["error"]["code"] == "no_descriptors"
            assert card.managing(), "who is there is served, and the leases are granted"
            card.call("workload.submit", workload=_guest(card))
            card.wait("new work waits, and says for what", lambda: _waits_for_files(card))
        assert card.apf("status")["daemon_pid"] == pid
        card.wait_running("guest/loop/0")
        assert not watch.violations, watch.violations
    card.remove("guest")
    assert card.first_processes() == before
    logs.look()
    assert not logs.tracebacks, logs.tracebacks


@pytest.mark.parametrize(
    "module", [observe_card.KEEPER, observe_card.INIT, observe_card.AGENT, observe_card.SUPERVISOR]
)
def test_another_process_of_the_stack_without_descriptors_touches_nothing_that_runs(
    card: LocalCard, module: str
) -> None:
    before, logs = card.first_processes(), LogWatch(card)
    row = next(row for row in observe_card.card_processes(card.run) if row.module == module)
    victim = row.cnm or "cnm0"
    with CopyWatch(card) as watch:
        with no_more_descriptors(row.pid):
            card.call("workload.submit", workload=_guest(card, victim))
            card.wait("it was tried", lambda: card.ps("guest"))
            assert card.managing()
        card.wait_running("guest/loop/0", timeout_s=60)
        assert not watch.violations, watch.violations
    card.remove("guest")
    assert card.first_processes() == before
    logs.look()
    assert not logs.tracebacks, logs.tracebacks


def _waits_for_files(card: LocalCard) -> bool:
    return "Too many open files" in (card.ps("guest")["guest/loop/0"]["reason"] or "")


def test_what_lives_in_a_cgroup_is_not_taken_for_dead_when_nobody_can_look(
    card: LocalCard,
) -> None:
    """ "Stopped" is a fence (DESIGN section 4, rule 9a): it needs proof, not a read that failed."""
    path = next(iter(card.ps().values()))["cgroup"]
    by_agent = CgroupTree.detect().at(path)
    by_keeper = SlotCgroup(find_trees(), path)
    assert by_agent.populated()
    assert by_keeper.populated()
    with no_more_descriptors(os.getpid()):
        seen_by_agent = by_agent.populated()
        with pytest.raises(OSError, match="Too many open files"):
            by_keeper.populated()
        with pytest.raises(OSError, match="Too many open files"):
            proc_stat(os.getpid())
    assert seen_by_agent


def test_a_keeper_without_descriptors_outlives_a_module_that_dies(card: LocalCard) -> None:
    """It can't look whether all of the module is dead: the fence waits for its proof."""
    status = card.managing()
    assert status is not None
    victim = next(iter(card.ps().values()))["cnm"]
    lost = [name for name, row in card.ps().items() if row["cnm"] == victim]
    logs = LogWatch(card)
    with CopyWatch(card) as watch:
        with no_more_descriptors(status["keeper_pid"]):
            os.kill(card.cnms()[victim]["init_pid"], signal.SIGKILL)
            card.wait("suspected", lambda: card.cnms()[victim]["state"] != "LEASED")
            time.sleep(SUSPECT_S)
            assert observe.start_ticks(status["keeper_pid"]) is not None
        card.wait_running(*lost, timeout_s=60)
        assert not watch.violations, watch.violations
    assert card.status()["keeper_pid"] == status["keeper_pid"]
    card.wait_leased()
    logs.look()
    assert not logs.tracebacks, logs.tracebacks


def _guest(card: LocalCard, cnm: str = "") -> dict[str, Any]:
    from tools.compose import load_compose

    file = card.place / "guest.yaml"
    file.write_text(STEADY.replace("replicas: 4", "replicas: 1"))
    workload = load_compose(str(file), name="guest", env={}, profiles=()).workload
    document: dict[str, Any] = workload.to_json()
    return document
