"""The whole card loses its power, or is told to go down: what was decided comes back by itself.

Judged by /proc: nothing of before lives on, all of it runs again, once.
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process.card_watch import CopyWatch, boottime_ms
from tests.process.local_card import BUSYBOX, LocalCard, a_card, say
from tools.demo import observe

pytestmark = [
    pytest.mark.process,
    pytest.mark.timeout(120),
    pytest.mark.skipif(os.geteuid() != 0, reason="containers and namespaces need root"),
    pytest.mark.skipif(not BUSYBOX, reason="busybox-static is not installed"),
]

SHOP = """
services:
  web:
    image: busybox
    command: ["/bin/sh", "-c", "trap 'exit 0' TERM; while true; do sleep 0.2; done"]
    cpus: 0.1
    mem_limit: 32m
    stop_grace_period: 1s
    deploy: {replicas: 5, placement: {preferences: [{spread: node.id}]}}
  db:
    image: busybox
    command: ["/bin/sh", "-c", "trap 'exit 0' TERM; while true; do sleep 0.2; done"]
    cpus: 0.1
    mem_limit: 32m
    stop_grace_period: 1s
    volumes: ["data:/data"]
volumes: {data: {}}
"""


@pytest.fixture(scope="module")
def card() -> Iterator[LocalCard]:
    with a_card() as card:
        card.import_busybox()
        card.run_compose(SHOP, "shop")
        yield card


def write_note(card: LocalCard, text: str) -> None:
    pid = card.ps()["shop/db/0"]["pid"]
    Path(f"/proc/{pid}/root/data/note").write_text(text)


def note_of(card: LocalCard) -> str:
    pid = card.wait_running("shop/db/0")["shop/db/0"]["pid"]
    return Path(f"/proc/{pid}/root/data/note").read_text()


def test_the_keepers_death_is_the_cards_power_loss_and_all_of_it_comes_back(
    card: LocalCard,
) -> None:
    write_note(card, "before the loss")
    card.apf("volume", "flush", next(row["name"] for row in card.call("volume.list")))
    before, status = card.first_processes(), card.managing()
    assert status is not None
    with CopyWatch(card) as watch:
        lost_ms = boottime_ms()
        os.kill(status["keeper_pid"], signal.SIGKILL)
        card.wait(
            "nothing of before lives",
            lambda: not any(observe.start_ticks(p) == t for p, t in before.values()),
            every_s=0.005,
        )
        gone_ms = boottime_ms() - lost_ms
        again_ms = card.wait(
            "all of it again", lambda: watch.running_again_ms(before, lost_ms), every_s=0.02
        )
        card.wait("another daemon", card.managing)
        card.wait_running(*before)
        assert not watch.violations, watch.violations
    say(f"\nkeeper killed: all gone after {gone_ms:.0f} ms, again {again_ms - lost_ms:.0f} ms")
    after = card.managing()
    assert after is not None
    assert after["keeper_pid"] != status["keeper_pid"]
    assert after["epoch"] == status["epoch"] + 1
    assert card.first_processes().keys() == before.keys()
    assert note_of(card) == "before the loss"


def test_down_leaves_nothing_running_and_up_brings_the_workloads_back(card: LocalCard) -> None:
    write_note(card, "before going down")  # nobody flushes it: going down does
    before, ps = card.first_processes(), set(card.ps())
    images = card.call("image.list")
    card.hang_up()
    card.apf("down")
    assert card.leftovers() == []
    assert not any(observe.start_ticks(pid) == ticks for pid, ticks in before.values())
    assert card.apf("down") == {"stopped": False}
    assert card.apf("status", code=4)["error"]["code"] == "daemon_unreachable"
    card.up()
    card.wait_running(*ps)
    assert card.call("image.list") == images
    assert note_of(card) == "before going down"
    card.wait_leased()
    assert card.apf("up", "--board", card.board)["ready"]  # up already: a success
    assert card.apf("up", "--board", "mock_4", code=3)["error"]["code"] == "other_board"
