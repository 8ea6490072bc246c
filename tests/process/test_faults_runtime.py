"""An OCI runtime that fails, instances that run out of memory: said, tried again, never lost."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process.card_watch import CopyWatch
from tests.process.fault_logs import LogWatch
from tests.process.fault_runtime import WORDS, FlakyRuntime
from tests.process.local_card import BUSYBOX, LocalCard
from tools.demo import observe

pytestmark = [
    pytest.mark.process,
    pytest.mark.timeout(120),
    pytest.mark.skipif(os.geteuid() != 0, reason="containers and namespaces need root"),
    pytest.mark.skipif(not BUSYBOX, reason="busybox-static is not installed"),
    pytest.mark.skipif(shutil.which("runc") is None, reason="runc is not installed"),
]

APP = """
services:
  app:
    image: busybox
    command:
      - /bin/sh
      - -c
      - |
        trap 'exit 0' TERM
        while true; do
          if test -f /tmp/eat; then
            rm /tmp/eat
            exec dd if=/dev/zero of=/dev/null bs=64M count=1
          fi
          sleep 0.2
        done
    cpus: 0.1
    mem_limit: 24m
    restart: always
    stop_grace_period: 1s
    deploy: {replicas: 3}
"""
ALL = ("app/app/0", "app/app/1", "app/app/2")


@pytest.fixture(scope="module")
def ground() -> Iterator[tuple[LocalCard, FlakyRuntime]]:
    card = LocalCard()
    runtime = FlakyRuntime(card.place)
    card.env = {**card.env, "PATH": f"{runtime.bin}:{card.env['PATH']}"}
    try:
        card.up()
        card.wait_leased()
        card.import_busybox()
        yield card, runtime
    finally:
        runtime.fail(0)
        card.close()


@pytest.fixture(autouse=True)
def no_copies(ground: tuple[LocalCard, FlakyRuntime]) -> Iterator[None]:
    card, _ = ground
    logs = LogWatch(card)
    with CopyWatch(card) as watch:
        yield
    assert not watch.violations, watch.violations
    logs.look()
    assert not logs.tracebacks, logs.tracebacks


def test_a_runtime_that_always_fails_is_said_in_its_own_words_and_tried_again(
    ground: tuple[LocalCard, FlakyRuntime],
) -> None:
    card, runtime = ground
    runtime.fail(100)
    card.submit(APP, "app")
    card.wait(
        "said of each", lambda: all(WORDS in (row["reason"] or "") for row in card.ps().values())
    )
    assert not card.mine()
    runtime.fail(0)
    card.wait_running(*ALL, timeout_s=60)


def test_a_runtime_that_fails_every_other_time_leaves_nothing_and_loses_nothing(
    ground: tuple[LocalCard, FlakyRuntime],
) -> None:
    card, runtime = ground
    before = runtime.failures
    runtime.fail(50)
    for name in ALL:
        card.call("instance.migrate", instance=name)
    card.wait("it failed", lambda: runtime.failures - before >= 3)
    runtime.fail(0)
    card.wait_running(*ALL, timeout_s=60)
    found = card.first_processes()
    assert found.keys() == set(ALL)


def test_an_instance_out_of_memory_is_killed_alone_said_so_and_started_again(
    ground: tuple[LocalCard, FlakyRuntime],
) -> None:
    card, _ = ground
    card.wait_running(*ALL)
    before = card.first_processes()
    pid, ticks = before[ALL[0]]
    Path(f"/proc/{pid}/root/tmp/eat").touch()
    card.wait("killed", lambda: observe.start_ticks(pid) != ticks)
    card.wait("again", lambda: card.first_processes().get(ALL[0], (pid, ticks)) != (pid, ticks))
    card.wait_running(*ALL)
    said = [event["text"] for event in card.events() if event["instance"] == ALL[0]]
    assert any("memory" in text for text in said), said
    after = card.first_processes()
    assert {name: after[name] for name in ALL[1:]} == {name: before[name] for name in ALL[1:]}


def test_after_rm_nothing_is_left_of_what_failed(ground: tuple[LocalCard, FlakyRuntime]) -> None:
    card, runtime = ground
    runtime.fail(30)
    card.remove("app")
    assert card.mine() == []
    runtime.fail(0)
    card.wait("nothing left", lambda: card.left_in_modules() == [])
