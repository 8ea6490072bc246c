"""Wrong boards are refused with file, line and key, by `apf board check` and `apf up` alike; and
modules that are not what they should be are quarantined."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process.local_card import LocalCard, a_card
from tools.demo import observe

pytestmark = [pytest.mark.process, pytest.mark.timeout(120)]

HEAD = """\
[board]
name = "bench"
kind = "local"
inherit = "base"
"""
SLOT = """\
[[slot]]
slot = {slot}
id = "{id}"
mc = "{mc}"
agent = "serial:${{run}}/tty/{id}-agent?baud=921600"
window = "shm:{id}"
window_bytes = 16777216
power = "local"
[slot.module]
arch = "host"
cores_milli = {cores_milli}
memory_bytes = 1073741824
nvme_bytes = 8589934592
link_mbit = 8000
runtimes = ["process"]
"""


def slot(number: int, *, mc: str = "", cnm: str = "", cores_milli: int = 1000) -> str:
    cnm = cnm or f"cnm{number}"
    mc = mc or f"serial:${{run}}/tty/{cnm}-mc?baud=921600"
    return SLOT.format(slot=number, id=cnm, mc=mc, cores_milli=cores_milli)


GOOD = HEAD + slot(0) + slot(1)
BAD_BOARDS = {
    "an unknown key": (GOOD.replace("window_bytes", "window_size", 1), "window_size"),
    "an unknown table": (GOOD + "[extras]\na = 1\n", "extras"),
    "the same slot twice": (HEAD + slot(0) + slot(0, cnm="cnm1"), "slot"),
    "the same id twice": (HEAD + slot(0) + slot(1, cnm="cnm0"), "cnm0"),
    "the same line twice": (
        HEAD + slot(0) + slot(1, mc="serial:${run}/tty/cnm0-mc?baud=921600"),
        "cnm0-mc",
    ),
    "a missing tty": (HEAD + slot(0, mc="serial:/dev/ttyNONE7?baud=115200"), "/dev/ttyNONE7"),
    "a lease too short for its rounds": (GOOD + "[timing]\nlease_ms = 300\n", "lease_ms"),
    "a text where a number belongs": (GOOD.replace("= 8000", '= "fast"', 1), "link_mbit"),
    "no slots": (HEAD, "slot"),
    "no TOML": ("[board\nname =", "line 1"),
    "an absurd capacity": (HEAD + slot(0, cores_milli=1 << 40), "cores_milli"),
    "a parent that is not there": (GOOD.replace('"base"', '"nobody"'), "nobody"),
}


@pytest.fixture
def card() -> Iterator[LocalCard]:
    """Places for a card; nothing is started."""
    card = LocalCard()
    card.run.mkdir()
    card.state.mkdir()
    try:
        yield card
    finally:
        card.close()


def test_the_board_that_the_bad_ones_are_made_of_is_good(card: LocalCard) -> None:
    board = card.place / "good.toml"
    board.write_text(GOOD)
    assert len(card.apf("board", "check", str(board))["slots"]) == 2


@pytest.mark.parametrize("what", BAD_BOARDS)
def test_a_bad_board_is_refused_with_its_place_and_nothing_is_started(
    card: LocalCard, what: str
) -> None:
    text, word = BAD_BOARDS[what]
    board = card.place / "bad.toml"
    board.write_text(text)
    checked = card.apf("board", "check", str(board), code=1)["error"]
    started = card.apf("up", "--board", str(board), code=2)["error"]
    for error in (checked, started):
        assert word in error["text"], error
        assert "bad.toml" in error["text"], error
    if what not in ("no slots", "a parent that is not there"):
        assert isinstance(checked["data"]["line"], int)
    assert list(card.run.iterdir()) == []
    assert list(card.state.iterdir()) == []


def test_a_board_that_is_not_there_is_a_usage_error_in_words(card: LocalCard) -> None:
    assert "nowhere.toml" in card.apf("up", "--board", "nowhere.toml", code=2)["error"]["text"]
    assert card.apf("board", "check", "nowhere", code=1)["error"]["code"] == "bad_board"


# --- modules that lie ---

# Python imports this before anything else (site). It bends the real init of a module, and its
# agent, to another build, as the file says that lies beside it.
BEND = """
import json, os, pathlib
lies = json.loads(pathlib.Path(__file__).with_name("lies.json").read_text())
lie = lies.get(os.environ.get("APF_CNM_ID", ""))
if lie == "version":
    import protocol.apf
    protocol.apf.VERSION_MIN = protocol.apf.VERSION_CURRENT = 9
elif lie == "layout":
    import protocol.apf
    protocol.apf.LAYOUT_HASH = bytes(8)
elif lie == "capacity":
    import dataclasses
    import firmware.cnm.config as config
    honest = config.CnmConfig.from_json.__func__
    def boast(cls, data):
        found = honest(cls, data)
        module = dataclasses.replace(found.module, cores_milli=4_000_000_000)
        return dataclasses.replace(found, module=module)
    config.CnmConfig.from_json = classmethod(boast)
"""
LIES = {"cnm1": "version", "cnm2": "layout", "cnm3": "capacity"}
WORK = """
services:
  loop:
    image: host
    command: ["/bin/sh", "-c", "trap 'exit 0' TERM; while true; do sleep 0.2; done"]
    cpus: 0.2
    mem_limit: 32m
    deploy: {replicas: 6, placement: {preferences: [{spread: node.id}]}}
"""


def init_pids(card: LocalCard) -> set[int | None]:
    """Of the three that lied."""
    return {cnm["init_pid"] for name, cnm in card.cnms().items() if name in LIES}


@pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")
def test_modules_of_another_build_are_quarantined_and_used_again_once_mended(
    tmp_path: Path,
) -> None:
    (tmp_path / "sitecustomize.py").write_text(BEND)
    (tmp_path / "lies.json").write_text(json.dumps(LIES))
    with a_card(env={"PYTHONPATH": str(tmp_path)}, modules=1) as card:
        card.wait(
            "three modules quarantined",
            lambda: sum(c["state"] == "QUARANTINED" for c in card.cnms().values()) == 3,
        )
        reasons = {name: cnm["reason"] for name, cnm in card.cnms().items()}
        assert "versions 9 to 9" in reasons["cnm1"]
        assert "layouts (0000000000000000)" in reasons["cnm2"]
        assert "cores_milli = 4000000000" in reasons["cnm3"]
        card.submit(WORK, "work")
        card.wait(
            "all that fits runs on the honest one",
            lambda: sum(row["phase"] == "RUNNING" for row in card.ps().values()) == 5,
        )
        assert {row["cnm"] for row in card.ps().values() if row["pid"]} == {"cnm0"}
        (waiting,) = [row for row in card.ps().values() if row["phase"] == "PENDING"]
        assert "version" in waiting["pending"]["cnm1"], waiting["pending"]
        assert {"cnm0"} == {seen.cgroup.split("/")[3] for seen in card.mine()}
        assert card.cnms()["cnm0"]["state"] == "LEASED"
        (tmp_path / "lies.json").write_text("{}")  # mended; a module is looked at at its next boot
        for action, left in (("off", {None}), ("on", set())):
            for number in (1, 2, 3):
                card.apf("cnm", "power", action, str(number))
            card.wait(f"they are {action}", lambda left=left: init_pids(card) == left or not left)
        card.wait_leased()
        rows = card.wait_running()
        assert len(rows) == 6
        assert all(len(observe.copies(name, card.cgroup_root())) == 1 for name in rows)
