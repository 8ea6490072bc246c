"""Modules that die, hang or fall silent: fenced first, then their work runs elsewhere, once.

Judged by /proc (DESIGN section 4, rules 4, 9, 10 and 12). Each blow strikes another module.
"""

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.process.card_watch import CopyWatch, boottime_ms
from tests.process.local_card import BUSYBOX, LocalCard, a_card, say
from tools.demo import observe

pytestmark = [
    pytest.mark.process,
    pytest.mark.timeout(180),
    pytest.mark.skipif(os.geteuid() != 0, reason="containers and namespaces need root"),
    pytest.mark.skipif(not BUSYBOX, reason="busybox-static is not installed"),
]

SMALL = """
services:
  small:
    image: busybox
    command: ["/bin/sh", "-c", "trap 'exit 0' TERM; while true; do sleep 0.2; done"]
    cpus: 0.05
    mem_limit: 16m
    restart: "no"
    stop_grace_period: 1s
    deploy:
      replicas: 16
      placement: {preferences: [{spread: node.id}]}
  done:
    image: busybox
    command: ["/bin/true"]
    restart: "no"
    cpus: 0.05
    mem_limit: 16m
"""
DONE = "shop/done/0"
SUSPECT_MS = 1_000  # board_configs/base.toml
LEASE_MS = 5_000


@dataclass(frozen=True, kw_only=True)
class Blow:
    """A module that is about to be lost, and what ran on it."""

    cnm: dict[str, Any]
    instances: list[str]
    pids: dict[int, int]  # of its instances -> start ticks
    bystanders: dict[str, tuple[int, int]]


@pytest.fixture(scope="module")
def card() -> Iterator[LocalCard]:
    with a_card() as card:
        card.import_busybox()
        card.submit(SMALL)
        card.wait("done", lambda: card.ps()[DONE]["phase"] == "STOPPED")
        card.wait_running(*(f"shop/small/{index}" for index in range(16)))
        yield card


def aim(card: LocalCard, victim: str) -> Blow:
    rows, root = card.ps(), card.cnms()[victim]["cgroup"]
    on_it = [name for name, row in rows.items() if row["cnm"] == victim and row["pid"]]
    others = {n: (r["pid"], r["start_ticks"]) for n, r in rows.items() if n not in on_it}
    assert on_it, f"{victim} holds nothing"
    return Blow(
        cnm=card.cnms()[victim],
        instances=on_it,
        pids={seen.pid: seen.start_ticks for seen in observe.processes(root)},
        bystanders=others,
    )


def fullest(card: LocalCard, *but: str) -> str:
    """The module that holds most, and was not struck yet."""
    holds = {name: cnm["used"]["instances"] for name, cnm in card.cnms().items()}
    return max(sorted(holds.keys() - set(but)), key=lambda name: holds[name])


def judge(card: LocalCard, blow: Blow, watch: CopyWatch, struck_ms: float, title: str) -> None:
    """Everything of the module runs elsewhere, once; nothing else was touched."""
    again_ms = card.wait(
        "all of it seen to run again",
        lambda: watch.running_again_ms(blow.instances, struck_ms),
        every_s=0.02,
    )
    rows = card.wait_running(*blow.instances)
    assert blow.cnm["id"] not in {row["cnm"] for row in rows.values()}
    assert all(observe.start_ticks(pid) != ticks for pid, ticks in blow.pids.items())
    assert not watch.violations, watch.violations
    for name in blow.instances:
        assert len(observe.copies(name, card.cgroup_root())) == 1
    after = card.ps()
    for name, mark in blow.bystanders.items():
        assert (after[name]["pid"], after[name]["start_ticks"]) == mark, name
    assert after[DONE]["phase"] == "STOPPED"  # it had ended by itself: not again
    events = [event for event in card.events() if event["mono_ms"] >= struck_ms - 1]
    fenced = next(e for e in events if e["code"] == "cnm.fenced" and e["cnm"] == blow.cnm["id"])
    commanded_ms = max(
        event["mono_ms"]
        for event in events
        if event["code"] == "instance.staging" and event["instance"] in blow.instances
    )
    say(
        f"\n{title}, {len(blow.instances)} components: fenced after "
        f"{fenced['mono_ms'] - struck_ms:.0f} ms ({fenced['text']}), all commanded "
        f"{commanded_ms - fenced['mono_ms']:.0f} ms later, all seen running by /proc after "
        f"{again_ms - struck_ms:.0f} ms"
    )


def test_a_killed_inits_components_run_elsewhere_whatever_their_restart_policy(
    card: LocalCard,
) -> None:
    victim = card.ps()[DONE]["cnm"]
    blow = aim(card, victim)
    with CopyWatch(card) as watch:
        struck_ms = boottime_ms()
        os.kill(blow.cnm["init_pid"], signal.SIGKILL)
        judge(card, blow, watch, struck_ms, "init killed")
    card.wait_leased()  # it was switched on again
    assert card.cnms()[victim]["boot_id"] != blow.cnm["boot_id"]


def test_a_stopped_inits_components_run_elsewhere_only_when_the_old_ones_are_gone(
    card: LocalCard,
) -> None:
    """The guard of the lease stands still with its init: only cutting the power is a fence."""
    blow = aim(card, fullest(card, card.ps()[DONE]["cnm"]))
    with CopyWatch(card) as watch:
        struck_ms = boottime_ms()
        os.kill(blow.cnm["init_pid"], signal.SIGSTOP)
        judge(card, blow, watch, struck_ms, "init stopped (SIGSTOP)")
    power = [e["text"] for e in card.events("cnm.power") if e["mono_ms"] >= struck_ms]
    assert any("is off" in text and "empty after" in text for text in power), power
    card.wait_leased()


def test_silence_on_both_links_is_a_power_fence_and_healed_links_bring_it_back(
    card: LocalCard,
) -> None:
    blow = aim(card, fullest(card, card.ps()[DONE]["cnm"]))
    slot, victim = blow.cnm["slot"], blow.cnm["id"]
    with CopyWatch(card) as watch:
        struck_ms = boottime_ms()
        card.keeper().call("fault", slot=slot, cut=True)
        try:
            judge(card, blow, watch, struck_ms, "both links cut")
        finally:
            card.keeper().call("fault", slot=slot)
    fencing = next(
        e for e in card.events("cnm.fencing") if e["mono_ms"] > struck_ms and e["cnm"] == victim
    )
    assert fencing["mono_ms"] - struck_ms >= SUSPECT_MS - 100  # the last frame was on its way
    card.wait_leased()
    card.apf("migrate", blow.instances[0], "--to", victim)
    card.wait("it is used again", lambda: card.ps()[blow.instances[0]]["cnm"] == victim)
    card.wait_running(blow.instances[0])


def test_a_module_that_hears_no_grants_stops_its_instances_by_itself(card: LocalCard) -> None:
    """Its MC link is cut, its agent answers: no power fence before W, but its own guard acts."""
    blow = aim(card, fullest(card, card.ps()[DONE]["cnm"]))
    slot, init_pid = blow.cnm["slot"], blow.cnm["init_pid"]
    with CopyWatch(card) as watch:
        struck_ms = boottime_ms()
        card.keeper().call("fault", slot=slot, link="mc", cut=True)
        try:
            card.wait(
                "its instances gone",
                lambda: not observe.processes(blow.cnm["cgroup"]),
                every_s=0.01,
            )
            gone_ms, guard = boottime_ms() - struck_ms, observe.start_ticks(init_pid) is not None
            judge(card, blow, watch, struck_ms, "MC link cut")
        finally:
            card.keeper().call("fault", slot=slot)
    say(f"its own guard had ended its instances after {gone_ms:.0f} ms: {guard}")
    assert guard, "the power was cut before the guard had acted"
    assert gone_ms >= LEASE_MS - 200
    card.wait_leased()


def test_a_module_that_dies_together_with_the_daemon_is_fenced_by_the_next_one(
    card: LocalCard,
) -> None:
    blow = aim(card, fullest(card, card.ps()[DONE]["cnm"]))
    status = card.managing()
    assert status is not None
    with CopyWatch(card) as watch:
        struck_ms = boottime_ms()
        os.kill(status["daemon_pid"], signal.SIGKILL)
        os.kill(blow.cnm["init_pid"], signal.SIGKILL)
        card.wait("another daemon", lambda: (card.status() or {}).get("ready"))
        judge(card, blow, watch, struck_ms, "init and daemon killed")
    card.wait_leased()
