"""A real keeper for one test: started, asked, and gone at the end with everything that it held."""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from hal.errors import HalError, Unavailable
from hal.local.cgroups import find_trees
from hal.local.client import KeeperControl
from hal.local.procview import read_stat

START_LIMIT_S: Final = 10.0
PROJECT: Final = Path(__file__).resolve().parents[3]
PAUSE: Final = select.poll()  # nothing is registered: poll(ms) waits

# An init that stands in for cnm-init: writes its own pids, leaves a daemon behind, and waits.
FORKING_INIT: Final = """
import os, signal, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(1000)
print("up", os.getpid(), flush=True)
time.sleep(1000)
"""


def python_init(program: str, python: str = sys.executable) -> list[str]:
    """argv of an init that runs this program."""
    return [python, "-S", "-c", program]


def slot(number: int = 0, **fields: Any) -> dict[str, Any]:
    """One slot of a config, with what a test cares for replaced."""
    return {
        "slot": number,
        "id": f"cnm{number}",
        "window_bytes": 1 << 20,
        "links": [{"name": "mc", "baud": 921600}],
        "argv": python_init(FORKING_INIT),
        **fields,
    }


class KeeperProcess:
    """`control` is connected to it; `close` ends it and judges that nothing is left."""

    def __init__(
        self,
        tmp_path: Path,
        slots: Sequence[Mapping[str, Any]],
        *,
        command: Sequence[str] = (sys.executable,),
        **top: Any,
    ) -> None:
        self.run_dir = tmp_path / "run"
        self.config_path = tmp_path / "keeper.json"
        self.config_path.write_text(json.dumps({"slots": list(slots), **top}))
        self._command = list(command)
        self.start()

    def start(self) -> None:
        """Start it (again)."""
        self.process = self.spawn()
        self.control = self._connect()
        self.run_id = str(self.control.call("status")["run_id"])

    def spawn(self) -> "subprocess.Popen[str]":
        """Only the process."""
        argv = [*self._command, "-m", "hal.local.keeper"]
        argv += ["--run", str(self.run_dir), "--config", str(self.config_path)]
        return subprocess.Popen(
            argv, cwd=PROJECT, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
        )

    def power(self, number: int, action: str) -> dict[str, Any]:
        return self.control.call("power", slot=number, action=action)

    def pids(self, number: int) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.control.call("pids", slot=number)["processes"]
        return rows

    def cgroups(self) -> list[str]:
        """Directories of this board in any hierarchy."""
        return [
            f"{mount}/apf/{self.run_id}"
            for mount in find_trees().all
            if os.path.isdir(f"{mount}/apf/{self.run_id}")
        ]

    def kill(self) -> None:
        """SIGKILL it, as a power loss of the card."""
        self.process.kill()
        self._reap()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self._reap()

    def _reap(self) -> None:
        self.process.wait(10)
        self.control.close()
        assert self.process.stderr is not None
        self.process.stderr.close()

    def _connect(self) -> KeeperControl:
        for _ in range(int(START_LIMIT_S * 100)):
            try:
                return KeeperControl(self.run_dir)
            except Unavailable:
                if self.process.poll() is not None:
                    assert self.process.stderr is not None
                    raise
                PAUSE.poll(10)
        raise TimeoutError("the keeper did not listen")


def until(predicate: Callable[[], bool], limit_s: float = 10.0) -> None:
    """Wait for something that another process does."""
    for _ in range(int(limit_s * 200)):
        if predicate():
            return
        PAUSE.poll(5)
    raise TimeoutError("it did not happen")


def gone(pid: int, start_ticks: int) -> bool:
    """Is this very process no more, or a zombie that nobody has reaped yet?"""
    stat = read_stat(pid)
    return stat is None or stat.start_ticks != start_ticks or stat.state in "ZX"


def error_of(call: Callable[[], object]) -> HalError:
    """The HalError that it raises."""
    try:
        call()
    except HalError as exc:
        return exc
    raise AssertionError("no error came")
