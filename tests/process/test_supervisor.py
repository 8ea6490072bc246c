"""firmware.supervisor as a real process, over a small daemon that misbehaves on request."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hal.linux.pidfile import locked_pid

pytestmark = pytest.mark.process

ROOT = Path(__file__).resolve().parents[2]
BOARD = """
[board]
name = "sup"
kind = "{kind}"
inherit = "{inherit}"
[timing]
watchdog_ms = 400
"""
# Says READY, then feeds its watchdog until a file of the run directory tells it otherwise.
DAEMON = """
import os, sys, time, signal, pathlib
sys.path.insert(0, {root!r})
from hal.linux.notify import open_notifier
run = pathlib.Path(sys.argv[sys.argv.index("--run") + 1])
with open(run / "starts", "a") as log:
    log.write(f"{{os.getpid()}} {{'--safe' in sys.argv}} {{os.environ['APF_START_REASON']}}\\n")
if (run / "exit").exists():
    sys.exit(int((run / "exit").read_text()))
notifier = open_notifier()
notifier.send("READY=1")
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
while True:
    if not (run / "hang").exists():
        notifier.send("WATCHDOG=1")
    time.sleep(0.05)
"""
SUPERVISOR = """
import sys
from firmware.supervisor import main
sys.exit(main(sys.argv[2:], daemon_argv=[sys.executable, sys.argv[1]]))
"""


def eventually(check: Callable[[], object], what: str) -> None:
    for _ in range(1500):
        if check():
            return
        time.sleep(0.01)
    raise AssertionError(what)


class Rig:
    def __init__(self, path: Path, *, kind: str, inherit: str) -> None:
        self.run, self.state = path / "run", path / "state"
        self.run.mkdir()
        self.board = path / "sup.toml"
        self.board.write_text(BOARD.format(kind=kind, inherit=inherit))
        self.daemon_file = path / "daemon.py"
        self.daemon_file.write_text(DAEMON.format(root=str(ROOT)))
        self.log = self.run / "supervisor.log"
        self.supervisors: list[subprocess.Popen[bytes]] = []

    def up(self) -> "subprocess.Popen[bytes]":
        argv = [sys.executable, "-c", SUPERVISOR, str(self.daemon_file)]
        argv += ["--board", str(self.board), "--run", str(self.run), "--state", str(self.state)]
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                argv,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.supervisors.append(process)
        return process

    def starts(self) -> list[list[str]]:
        with contextlib.suppress(FileNotFoundError):
            return [line.split(" ", 2) for line in (self.run / "starts").read_text().splitlines()]
        return []

    def words(self) -> str:
        return self.log.read_text()

    def pid(self, name: str) -> int | None:
        return locked_pid(self.run / f"{name}.pid")

    def await_ready(self, count: int) -> int:
        """The pid of the daemon that was started as the `count`-th and said that it is ready."""
        eventually(
            lambda: self.words().count("is ready") >= count, f"ready {count}:\n{self.words()}"
        )
        pid = self.pid("daemon")
        assert pid is not None
        return pid

    def close(self) -> None:
        for process in self.supervisors:
            if process.poll() is None:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(15)
            if process.poll() is None:
                process.kill()
                process.wait()
        for name in ("daemon", "keeper"):
            pid = self.pid(name)
            if pid is not None:
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path, kind="mock", inherit="mock_4")
    yield made
    made.close()


@pytest.fixture
def local_rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path, kind="local", inherit="local")
    yield made
    made.close()


def test_a_killed_daemon_is_started_again_and_a_stop_ends_all(rig: Rig) -> None:
    supervisor = rig.up()
    first = rig.await_ready(1)
    assert rig.pid("supervisor") == supervisor.pid
    os.kill(first, signal.SIGKILL)
    second = rig.await_ready(2)
    assert second != first
    assert [(safe, reason) for _, safe, reason in rig.starts()] == [
        ("False", "the card was started"),
        ("False", "it had ended with signal 9"),
    ]
    supervisor.terminate()
    assert supervisor.wait(15) == 0
    assert (rig.pid("daemon"), rig.pid("supervisor")) == (None, None)


def test_a_daemon_that_hangs_is_aborted_and_started_again(rig: Rig) -> None:
    rig.up()
    first = rig.await_ready(1)
    (rig.run / "hang").touch()
    eventually(lambda: "missed its watchdog" in rig.words(), "no watchdog")
    (rig.run / "hang").unlink()
    assert rig.await_ready(2) != first
    assert "signal 6" in rig.words()


def test_a_daemon_that_keeps_crashing_is_started_in_safe_mode(rig: Rig) -> None:
    rig.up()
    first = rig.await_ready(1)
    (rig.run / "exit").write_text("1")
    os.kill(first, signal.SIGTERM)
    eventually(lambda: any(safe == "True" for _, safe, _ in rig.starts()), "no safe mode")
    (rig.run / "exit").unlink()
    rig.await_ready(2)
    assert [safe for _, safe, _ in rig.starts()][:6] == ["False"] * 5 + ["True"]


def test_a_daemon_that_refuses_its_first_start_ends_the_supervisor_with_its_status(
    rig: Rig,
) -> None:
    (rig.run / "exit").write_text("3")
    assert rig.up().wait(15) == 3
    assert len(rig.starts()) == 1


def test_a_second_supervisor_is_refused_with_the_pid_of_the_first(rig: Rig) -> None:
    first = rig.up()
    rig.await_ready(1)
    assert rig.up().wait(15) == 3
    assert f"held by process {first.pid}" in rig.words()
    assert first.poll() is None


def test_a_supervisor_that_was_killed_is_replaced_and_its_daemon_too(rig: Rig) -> None:
    first = rig.up()
    daemon = rig.await_ready(1)
    first.kill()
    first.wait()
    os.kill(daemon, 0)  # its death took nobody along
    rig.up()
    assert rig.await_ready(2) != daemon
    assert "is replaced" in rig.words()


def test_a_bad_board_is_refused_with_its_place(rig: Rig) -> None:
    rig.board.write_text('[board]\nname = "x"\nkind = "local"\n')
    assert rig.up().wait(15) == 3
    assert "sup.toml: slot: wanted at least one" in rig.words()


def test_the_keepers_death_restarts_the_card(local_rig: Rig) -> None:
    rig = local_rig
    supervisor = rig.up()
    daemon = rig.await_ready(1)
    keeper = rig.pid("keeper")
    assert keeper is not None
    config = json.loads((rig.run / "keeper.json").read_text())
    assert [slot["id"] for slot in config["slots"]] == ["cnm0", "cnm1", "cnm2", "cnm3"]
    os.kill(keeper, signal.SIGKILL)
    assert rig.await_ready(2) != daemon
    assert rig.pid("keeper") not in (None, keeper)
    assert "lost its power" in rig.words()
    supervisor.terminate()
    assert supervisor.wait(15) == 0
    assert rig.pid("keeper") is None


def test_a_new_supervisor_takes_over_the_keeper_that_it_finds(local_rig: Rig) -> None:
    rig = local_rig
    first = rig.up()
    rig.await_ready(1)
    keeper = rig.pid("keeper")
    first.kill()
    first.wait()
    second = rig.up()
    rig.await_ready(2)
    assert rig.pid("keeper") == keeper
    assert f"process {keeper} is this card's keeper already" in rig.words()
    second.terminate()
    assert second.wait(15) == 0
    assert rig.pid("keeper") is None
