"""Clocks that step: the wall clock by decades, the boot-time clock between two lives of a daemon.

Leases and time-outs hang on differences of CLOCK_BOOTTIME alone (DESIGN section 4); the wall clock
is what is shown to people. So a step costs nothing that runs.
"""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.process.card_watch import CopyWatch
from tests.process.fault_clock import (
    DAY_S,
    HAVE_COMPILER,
    WallClock,
    in_time_namespace,
    why_no_time_namespaces,
)
from tests.process.fault_logs import LogWatch
from tests.process.local_card import BUSYBOX, ROOT, LocalCard
from tools.compose import load_compose
from tools.demo import observe

pytestmark = [
    pytest.mark.process,
    pytest.mark.timeout(120),
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root"),
    pytest.mark.skipif(not BUSYBOX, reason="busybox-static is not installed"),
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
    deploy: {replicas: 4, placement: {preferences: [{spread: node.id}]}}
  db:
    image: busybox
    command: ["/bin/sh", "-c", "trap 'exit 0' TERM; while true; do sleep 0.5; done"]
    cpus: 0.1
    mem_limit: 32m
    restart: always
    stop_grace_period: 1s
    volumes: ["data:/data"]
volumes: {data: {}}
"""
LEASE_S = 5.0
CENTURY_S = 100 * 365 * DAY_S


@pytest.fixture(scope="module")
def ground() -> Iterator[tuple[LocalCard, WallClock | None]]:
    card = LocalCard()
    clock = WallClock(card.place) if HAVE_COMPILER else None
    plain = card.env
    card.env = {**card.env, **(clock.env if clock else {})}
    try:
        card.up()
        card.env = plain
        card.wait_leased()
        card.import_busybox()
        card.run_compose(STEADY, "steady")
        yield card, clock
    finally:
        if clock is not None:
            clock.close()
        card.close()


@pytest.fixture(autouse=True)
def untouched(ground: tuple[LocalCard, WallClock | None]) -> Iterator[None]:
    card, _ = ground
    before, boots, logs = card.first_processes(), boots_of(card), LogWatch(card)
    with CopyWatch(card) as watch:
        yield
        card.wait("managing", card.managing)
    assert card.first_processes() == before
    assert boots_of(card) == boots
    assert not watch.violations, watch.violations
    logs.look()
    assert not logs.tracebacks, logs.tracebacks


def boots_of(card: LocalCard) -> Mapping[str, str]:
    return {cnm["id"]: cnm["boot_id"] for cnm in card.cnms().values()}


def newest(card: LocalCard) -> dict[str, Any]:
    """Something that happens now."""
    file = card.place / "now.yaml"
    file.write_text('services: {now: {image: host, command: ["/bin/true"], restart: "no"}}\n')
    found = load_compose(str(file), name="now", env={}, profiles=())
    card.call("workload.submit", workload=found.workload.to_json())
    card.remove("now")
    return card.events("workload.submitted")[-1]


@pytest.mark.skipif(not HAVE_COMPILER, reason="the library that moves a clock needs a C compiler")
def test_the_wall_clock_of_a_running_card_steps_by_a_century_and_nobody_minds(
    ground: tuple[LocalCard, WallClock | None],
) -> None:
    card, clock = ground
    assert clock is not None
    status = card.managing()
    assert status is not None
    volume = card.call("volume.list")[0]["name"]
    last_ms, last_seq = 0, 0
    steps_s = (CENTURY_S, -int(time.time()), DAY_S, 0)  # ahead; 1970, as without a battery; back
    for step_s in steps_s:
        clock.move(step_s)
        event = newest(card)
        shown_s = datetime.fromisoformat(event["at"]).astimezone(UTC).timestamp()
        assert abs(shown_s - (time.time() + step_s)) < DAY_S  # it is told the clock's own time
        assert event["mono_ms"] >= last_ms  # and what counts goes on
        assert event["seq"] > last_seq
        last_ms, last_seq = event["mono_ms"], event["seq"]
        flushed = card.call("volume.flush", name=volume)
        assert (flushed["age_ms"] or 0) >= 0, flushed
    for step_s in steps_s:  # the card shows the age of what came home under another clock
        clock.move(step_s)
        assert (card.call("volume.list")[0]["age_ms"] or 0) >= 0, step_s
    clock.move(CENTURY_S)
    os.kill(status["daemon_pid"], signal.SIGKILL)  # and one that wakes up a century later
    after = card.wait("another daemon", lambda: _life(card, status["epoch"] + 1))
    clock.move(0)
    assert after["epoch"] == status["epoch"] + 1
    time.sleep(1)
    assert card.managing()


@pytest.mark.skipif(bool(why_no_time_namespaces()), reason="no time namespaces here")
def test_a_daemon_whose_boot_time_clock_jumped_between_two_lives_adopts_what_runs(
    ground: tuple[LocalCard, WallClock | None],
) -> None:
    """Its modules' clocks do not jump: each end counts by its own."""
    card, _ = ground
    for number, jump_s in enumerate((1_000 * DAY_S, 0)):
        status = card.managing()
        assert status is not None
        for name in ("supervisor_pid", "daemon_pid"):
            _kill(status[name])
        card.hang_up()
        words = [card.python, "-m", "tools", "up", "--board", card.board]
        argv = in_time_namespace(words, jump_s) if jump_s else words
        subprocess.run(argv, cwd=ROOT, env=card.env, check=True, timeout=60, capture_output=True)
        after = card.wait("another daemon", lambda s=status: _life(card, s["epoch"] + 1))
        moved_ms = newest(card)["mono_ms"] - 1000 * time.clock_gettime(time.CLOCK_BOOTTIME)
        assert abs(moved_ms - 1000 * jump_s) < 1000 * DAY_S / 2, number
        assert after["keeper_pid"] == status["keeper_pid"]
        time.sleep(LEASE_S + 1)  # longer than what the last life had granted
        assert card.managing()
        rows = card.ps()
        assert {name: row["pid"] for name, row in rows.items()} == {
            name: pid for name, (pid, _) in card.first_processes().items()
        }


def _kill(pid: int) -> None:
    ticks = observe.start_ticks(pid)
    os.kill(pid, signal.SIGKILL)
    while observe.start_ticks(pid) == ticks and Path(f"/proc/{pid}").exists():
        time.sleep(0.01)


def _life(card: LocalCard, epoch: int) -> dict[str, Any] | None:
    status = card.managing()
    return status if status is not None and status["epoch"] == epoch else None
