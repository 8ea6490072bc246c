"""A module that speaks another serial dialect, over real ptys: found, leased, used, and said."""

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from protocol.mctp.serial_frame import Dialect
from tests.process.local_card import BUSYBOX, LocalCard, a_card

pytestmark = [
    pytest.mark.process,
    pytest.mark.timeout(120),
    pytest.mark.skipif(os.geteuid() != 0, reason="containers and namespaces need root"),
    pytest.mark.skipif(not BUSYBOX, reason="busybox-static is not installed"),
]

# cnm1, cnm2, cnm3 speak only these; cnm0 follows the card
FIXED = {"cnm1": Dialect.B, "cnm2": Dialect.D, "cnm3": Dialect.C}
BOARD = """
[board]
name = "dialects"
kind = "local"
inherit = "local"
description = "the local board, three of its modules with foreign serial firmware"
""" + "".join(
    f'[[slot]]\nslot = {name[-1]}\n[slot.module]\ndialect = "{dialect}"\n'
    for name, dialect in FIXED.items()
)
STEADY = """
services:
  loop:
    image: busybox
    command: ["/bin/sh", "-c", "while true; do sleep 1; done"]
    cpus: 0.1
    mem_limit: 32m
    stop_grace_period: 0.2s
"""


@pytest.fixture(scope="module")
def card() -> Iterator[LocalCard]:
    with a_card(board_text=BOARD) as card:
        card.import_busybox()
        yield card


def dialects(card: LocalCard, cnm: str) -> set[str]:
    shown: dict[str, Any] = card.apf("cnm", "show", cnm)
    return {link["dialect"] for link in shown["links"]}


@pytest.mark.parametrize("cnm", FIXED)
def test_the_card_leases_it_runs_a_component_there_and_shows_its_dialect(
    card: LocalCard, cnm: str
) -> None:
    like = {"B", "C"} if FIXED[cnm] in ("B", "C") else {FIXED[cnm].value}
    assert dialects(card, cnm) <= like
    told = [e for e in card.events("link.dialect") if e["cnm"] == cnm]
    assert {e["data"]["link"] for e in told} == {"mc", "agent"}
    assert {e["data"]["from"] for e in told} - {"B"} == {"A"}
    name = f"on-{cnm}"
    card.run_compose(STEADY, name)
    if card.ps(name)[f"{name}/loop/0"]["cnm"] != cnm:
        card.apf("migrate", f"{name}/loop/0", "--to", cnm)
        card.wait("it runs there", lambda: card.ps(name)[f"{name}/loop/0"]["cnm"] == cnm)
        card.wait_running(f"{name}/loop/0")
    card.remove(name)


def test_the_module_that_follows_is_spoken_to_in_a(card: LocalCard) -> None:
    assert dialects(card, "cnm0") == {"A"}
    assert not [e for e in card.events("link.dialect") if e["cnm"] == "cnm0"]


def test_a_daemon_that_is_killed_finds_every_dialect_again_and_nothing_stops(
    card: LocalCard,
) -> None:
    card.run_compose(STEADY.replace("cpus", "scale: 4\n    cpus"), "kept")
    before = card.first_processes()
    old = card.wait("a daemon", card.managing)["daemon_pid"]
    os.kill(old, signal.SIGKILL)
    card.wait("another daemon", lambda: (card.managing() or {}).get("daemon_pid", old) != old)
    card.wait_leased()
    for cnm, dialect in FIXED.items():
        assert dialects(card, cnm) <= ({"B", "C"} if dialect in ("B", "C") else {dialect.value})
    assert card.first_processes() == before
    card.remove("kept")
