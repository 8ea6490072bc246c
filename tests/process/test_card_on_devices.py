"""A card of kind linux with modules of kind cnm, without a virtual machine: ttys are ptys that are
joined here, BARs are files. The daemon, the inits, the agents and the movers are the real ones."""

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import tty
from pathlib import Path

import pytest

from hal.local.cgroups import SlotCgroup, find_trees
from tests.process.local_card import LocalCard

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
TIMING = """
[timing]
heartbeat_ms = 100
lease_ms = 5000
stop_ms = 500
watchdog_ms = 2000
suspect_ms = 1000
restart_ms = 500
ready_ms = 1000
round_trip_ms = 100
loop_stall_ms = 100
lost_rounds = 3
"""


class Cables:
    """Pairs of ptys, joined by a thread; `name` and `name.cnm` are their ends."""

    def __init__(self, folder, names):
        self._peers, self._slaves = {}, []
        for name in names:
            masters = []
            for end in (name, f"{name}.cnm"):
                master, slave = pty.openpty()
                tty.setraw(slave)
                (folder / end).symlink_to(os.ttyname(slave))
                self._slaves.append(slave)
                masters.append(master)
            left, right = masters
            self._peers |= {left: right, right: left}
        self._wake = os.eventfd(0)
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._thread.start()

    def _carry(self):
        while True:
            ready, _, _ = select.select([self._wake, *self._peers], [], [])
            if self._wake in ready:
                return
            for fd in ready:
                os.write(self._peers[fd], os.read(fd, 4096))

    def close(self):
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        for fd in (self._wake, *self._peers, *self._slaves):
            os.close(fd)


def board_text(folder, kind, slots=2):
    far = kind == "cnm"
    text = f'[board]\nname = "devices-{kind}"\nkind = "{kind}"\ninherit = "qemu_q35"\n{TIMING}'
    for n in range(slots):
        end = ".cnm" if far else ""
        text += f"""
[[slot]]
slot = {n}
mc = "serial:{folder}/mc{n}{end}?baud=921600"
agent = "serial:{folder}/agent{n}{end}?baud=921600"
window = "map:{folder}/bar{n}?side={"b" if far else "a"}"
"""
    return text


class Modules:
    """The inits of two modules."""

    def __init__(self, folder):
        self._folder = folder
        self._board = folder / "cnm.toml"
        self._board.write_text(board_text(folder, "cnm"))
        self._inits = {}

    def start(self, slot):
        argv = [sys.executable, "-m", "firmware.cnm.init", "--board", str(self._board)]
        argv += ["--slot", str(slot), "--run", str(self._folder / f"run{slot}")]
        argv += ["--state", str(self._folder / f"state{slot}")]
        with (self._folder / f"init{slot}.log").open("ab") as log:
            self._inits[slot] = subprocess.Popen(
                argv,
                cwd="/",
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def stop(self):
        for init in self._inits.values():
            init.send_signal(signal.SIGTERM)
        for init in self._inits.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                init.wait(20)
            init.kill()
            init.wait()
        for slot in self._inits:  # a module's own, which its power would have taken along
            SlotCgroup(find_trees(), f"/apf/cnm{slot}").remove()


@pytest.fixture
def bench(tmp_path):
    cables = Cables(tmp_path, ["mc0", "agent0", "mc1", "agent1"])
    for n in range(2):
        (tmp_path / f"bar{n}").write_bytes(bytes(16 << 20))
    modules = Modules(tmp_path)
    for n in range(2):
        modules.start(n)
    card = LocalCard(board_text=board_text(tmp_path, "linux"))
    try:
        card.up()
        yield card, tmp_path
    finally:
        card.close()
        modules.stop()
        cables.close()


def leased(card):
    rows = card.call("cnm.list")
    return [row["id"] for row in rows if row["state"] == "LEASED"] == ["cnm0", "cnm1"]


def test_modules_behind_ttys_and_bars_are_found_and_a_vanished_bar_harms_no_daemon(bench):
    card, folder = bench
    card.wait("both modules leased", lambda: leased(card), 60)
    pid = card.call("status")["daemon_pid"]
    links = card.call("status")["slot_links"]
    assert {link["verdict"] for link in links} == {"no_port"}  # this machine is no such card
    card.wait("the window is up", lambda: "window.up" in codes(card, "cnm0"))
    os.truncate(folder / "bar0", 4096)  # what is mapped beyond the end is SIGBUS now
    down = card.wait("the cause is told", lambda: event(card, "window.down", "SIGBUS"))
    assert down["cnm"] == "cnm0"
    os.truncate(folder / "bar0", 16 << 20)
    before = codes(card, "cnm0").count("window.up")
    card.wait("the window is back", lambda: codes(card, "cnm0").count("window.up") > before)
    assert card.call("status")["daemon_pid"] == pid
    card.wait("both modules are leased still", lambda: leased(card))


def test_a_daemon_that_is_killed_leaves_no_mover_behind_and_its_successor_has_windows_again(bench):
    card, folder = bench
    card.wait("both modules leased", lambda: leased(card), 60)
    card.wait("the window is up", lambda: "window.up" in codes(card, "cnm0"))
    pid, before = card.call("status")["daemon_pid"], movers(folder)
    assert len(before) == 2
    os.kill(pid, signal.SIGKILL)
    card.hang_up()
    card.wait("another daemon", lambda: (card.status() or {}).get("daemon_pid", pid) != pid)
    card.wait("both modules are leased again", lambda: leased(card), 60)
    card.wait("its own window is up", lambda: "window.up" in codes(card, "cnm0"))
    assert not before & movers(folder)
    assert len(movers(folder)) == 2


def movers(folder):
    """Pids of the card's own."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if b"firmware.mover_app" in words and any(
                word.startswith(f"map:{folder}/".encode()) and b"side=a" in word for word in words
            ):
                found.add(int(path.parent.name))
    return found


def codes(card, cnm):
    return [event["code"] for event in card.events() if event["cnm"] == cnm]


def event(card, code, words):
    found = [e for e in card.events() if e["code"] == code and words in e["text"]]
    return found[0] if found else None
