"""The daemon killed at 50 random points of a busy run (DESIGN section 4, rule 11; D1, D6).

Judged by /proc: what runs is not touched, nothing is lost, nothing is there twice.
"""

import os
import random
import signal
import statistics
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.process.card_churn import Churn
from tests.process.card_watch import CopyWatch
from tests.process.local_card import BUSYBOX, LocalCard, a_card, say
from tools.demo import observe

pytestmark = [
    pytest.mark.process,
    pytest.mark.timeout(400),
    pytest.mark.skipif(os.geteuid() != 0, reason="containers and namespaces need root"),
    pytest.mark.skipif(not BUSYBOX, reason="busybox-static is not installed"),
]

KILLS = 50
SEED = int(os.environ.get("APF_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)

BUSY = """
x-loop: &loop
  image: busybox
  command: ["/bin/sh", "-c", "trap 'exit 0' TERM; while true; do sleep 0.2; done"]
  cpus: 0.1
  mem_limit: 32m
  restart: always
  stop_grace_period: 1s
services:
  web:
    <<: *loop
    deploy: {replicas: 3}
  db:
    <<: *loop
    command:
      - /bin/sh
      - -c
      - |
        trap 'exit 0' TERM
        n=0
        test -f /data/log && while read x; do n=$$x; done < /data/log
        while true; do n=$$((n+1)); echo $$n >> /data/log; sleep 0.2; done
    volumes: ["data:/data"]
    healthcheck: {test: ["CMD", "test", "-s", "/data/log"], interval: 500ms, timeout: 2s}
  app:
    <<: *loop
    depends_on: {db: {condition: service_healthy}}
  plain:
    <<: *loop
    image: host
  roamer:
    <<: *loop
  flaky:
    <<: *loop
    command: ["/bin/sh", "-c", "trap 'exit 0' TERM; sleep 1; exit 1"]
volumes: {data: {}}
"""
BY_THEMSELVES = {"busy/flaky/0"}
DB = "busy/db/0"
MOVED = ("busy/roamer/0", DB)


@pytest.fixture(scope="module")
def card() -> Iterator[LocalCard]:
    with a_card() as card:
        yield card


def test_fifty_kills_of_the_daemon_touch_nothing_that_runs(card: LocalCard) -> None:
    say(f"\nseed {SEED} (APF_TEST_SEED)")
    rng = random.Random(SEED)
    card.import_busybox()
    card.submit(BUSY, "busy")
    started = card.wait("all but the flaky one run", lambda: _settled(card), timeout_s=60)
    epoch = card.managing()["epoch"]
    times_ms: list[float] = []
    with CopyWatch(card) as watch:
        with Churn(card, rng.randrange(1 << 32), MOVED) as churn:
            for number in range(KILLS):
                time.sleep(rng.uniform(0.02, 0.6))
                daemon = card.wait("a daemon", card.managing)["daemon_pid"]
                mark, before = churn.mark(), card.first_processes()
                os.kill(daemon, signal.SIGKILL)
                killed_s = time.monotonic()
                _wait_another(card, daemon)
                times_ms.append(1000 * (time.monotonic() - killed_s))
                after = card.first_processes()
                for name in before.keys() - BY_THEMSELVES - churn.touched_since(mark):
                    assert after.get(name) == before[name], f"kill {number} touched {name}"
        assert churn.error is None, churn.error
        if "extra" in {row["workload"] for row in card.ps().values()}:
            card.remove("extra")
        card.wait("converged", lambda: _settled(card, started.keys()), timeout_s=60)
    _judge(card, started.keys(), epoch)
    assert not watch.violations, watch.violations
    assert watch.seen >= started.keys() | BY_THEMSELVES
    say(f"{KILLS} kills, {dict(churn.done)}, {watch.samples} looks at /proc")
    first = ", ".join(f"{time_ms:.0f}" for time_ms in times_ms[:4])
    say(
        f"killed -> managing again: median {statistics.median(times_ms):.0f} ms, max "
        f"{max(times_ms):.0f} ms; the first four, before starts are slowed down: {first} ms"
    )


def test_nothing_is_left_of_the_busy_run_after_rm(card: LocalCard) -> None:
    card.remove()
    assert card.mine() == []
    assert card.left_in_modules() == []
    assert card.mounts() == []


def _judge(card: LocalCard, names: Collection[str], epoch: int) -> None:
    """What is wanted runs once, and `apf ps` says what /proc shows."""
    rows = {row["instance"]: row for row in card.apf("ps")}
    assert rows.keys() == set(names) | BY_THEMSELVES
    found = card.first_processes()
    for name in names:
        assert (rows[name]["pid"], rows[name]["start_ticks"]) == found[name], name
        assert observe.copies(name, card.cgroup_root()) == {rows[name]["cgroup"]}, name
    status = card.managing()
    assert status is not None
    assert status["epoch"] == epoch + KILLS
    assert not status["safe_mode"]
    log = Path(f"/proc/{rows[DB]['pid']}/root/data/log").read_text().split("\n")[:-1]
    assert log == [str(number) for number in range(1, len(log) + 1)], "the volume lost something"


def _wait_another(card: LocalCard, daemon: int) -> None:
    def check() -> bool:
        status = card.managing()
        return status is not None and status["daemon_pid"] != daemon

    card.wait("managing again", check, every_s=0.01)


def _settled(card: LocalCard, names: Collection[str] = ()) -> dict[str, Any] | None:
    """Everything but what ends by itself runs, each with a process that /proc shows."""
    rows = {name: row for name, row in card.ps().items() if name not in BY_THEMSELVES}
    good = all(
        row["phase"] == "RUNNING"
        and row["pid"]
        and observe.start_ticks(row["pid"]) == row["start_ticks"]
        for row in rows.values()
    )
    return rows if good and rows.keys() >= (set(names) or {DB}) else None
