"""`apf events --last-crash` after each way in which a daemon can end, on a real card."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.process.local_card import LocalCard, a_card
from tools.errors import ToolError

pytestmark = [
    pytest.mark.process,
    pytest.mark.timeout(120),
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root"),
]

# In the daemon's process only: `status` does what a file asks for, once.
BREAK = """
import os, sys, time
if "firmware.app" in sys.orig_argv:
    import firmware.card
    whole = firmware.card.Card.status
    def status(self):
        for word in ("raise", "hang"):
            place = os.path.join({place!r}, word)
            if os.path.exists(place):
                os.unlink(place)
                if word == "raise":
                    raise ZeroDivisionError("on purpose")
                time.sleep(60)
        return whole(self)
    firmware.card.Card.status = status
"""
LOOP = """
services:
  loop:
    image: host
    command: ["/bin/sh", "-c", "trap 'exit 0' TERM; while true; do sleep 0.5; done"]
    cpus: 0.1
    mem_limit: 32m
    restart: always
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("break")
    (made / "sitecustomize.py").write_text(BREAK.format(place=str(made)))
    return made


@pytest.fixture(scope="module")
def card(place: Path) -> Iterator[LocalCard]:
    with a_card(env={"PYTHONPATH": str(place)}) as card:
        card.run_compose(LOOP, "steady")
        yield card


def ended(card: LocalCard, pid: int) -> dict[str, Any]:
    """What is said of the daemon `pid` once another one manages the card."""

    def other() -> Any:
        status = card.managing()
        return status if status and status["daemon_pid"] != pid else None

    card.wait("another daemon", other)
    crash: dict[str, Any] = card.apf("events", "--last-crash")
    assert crash["found"]
    assert crash["pid"] == pid
    return crash


def ask(card: LocalCard, place: Path, word: str) -> int:
    """Have the daemon do it; its pid."""
    status = card.wait("managing", card.managing)
    (place / word).touch()
    try:
        card.call("status")
    except ToolError:
        card.hang_up()
    return int(status["daemon_pid"])


def texts(crash: dict[str, Any], kind: str) -> list[str]:
    return [entry["text"] for entry in crash["entries"] if entry["kind"] == kind]


def test_the_last_crash_is_told_after_each_way_to_die(card: LocalCard, place: Path) -> None:
    before = card.first_processes()
    assert card.apf("events", "--last-crash") == {"found": False, "kept": 0}

    pid = int(card.wait("managing", card.managing)["daemon_pid"])
    os.kill(pid, signal.SIGKILL)
    killed = ended(card, pid)
    assert "signal 9" in killed["reason"]
    assert any("card.started" in text for text in texts(killed, "event"))
    assert any(text.startswith("start steady/loop/0") for text in texts(killed, "command"))
    assert any("assignment steady/loop/0" in text for text in texts(killed, "commit"))
    assert [event["data"]["pid"] for event in card.events("card.crashed")] == [pid]

    pid = ask(card, place, "raise")
    raised = ended(card, pid)
    assert "status 1" in raised["reason"]
    assert len(texts(raised, "fault")) == 1
    assert texts(raised, "fault")[0].endswith("ZeroDivisionError: on purpose\n")

    pid = ask(card, place, "hang")
    hung = ended(card, pid)
    assert "missed its watchdog" in hung["reason"]
    assert " in status" in hung["stack"]

    for _ in range(3):  # with the two above: five within a minute
        ended(card, ask(card, place, "raise"))
    assert card.wait("managing", card.managing)["safe_mode"]
    assert card.apf("events", "--last-crash")["kept"] == 5
    dumps = [path.stat().st_size for path in (card.state / "crashes").iterdir()]
    assert len(dumps) == 5
    assert max(dumps) <= 200_000
    assert card.first_processes() == before, "what runs is kept"
