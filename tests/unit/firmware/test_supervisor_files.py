"""Pid files that can be believed, and logs with a bound (hal.linux.pidfile, hal.linux.logfile)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hal.errors import Refused, Unavailable
from hal.linux.logfile import KEPT_BYTES, log_target, trim_log
from hal.linux.pidfile import LockedPidFile, locked_pid


def test_a_pid_file_names_its_owner_only_while_it_is_held(tmp_path: Path) -> None:
    path = tmp_path / "x.pid"
    assert locked_pid(path) is None
    file = LockedPidFile(path)
    assert locked_pid(path) is None  # held, and no number yet
    file.write(1234)
    assert locked_pid(path) == 1234
    with pytest.raises(Refused, match="1234"):
        LockedPidFile(path)
    file.close()
    assert locked_pid(path) is None
    path.write_text("99\n")  # left over by a crash: nobody holds it
    assert locked_pid(path) is None


@pytest.mark.process
def test_a_child_that_inherits_the_lock_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "x.pid"
    file = LockedPidFile(path)
    child = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"],
        stdin=subprocess.PIPE,
        pass_fds=[file.fd],
    )
    file.write(child.pid)
    file.release_to_child()
    assert locked_pid(path) == child.pid
    child.communicate()
    assert locked_pid(path) is None


def test_a_pid_file_that_can_not_be_made_says_where(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"x\.pid"):
        LockedPidFile(tmp_path / "no" / "x.pid")


def test_a_log_that_grows_too_long_keeps_its_last_part(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert trim_log(str(path), 10) is False
    path.write_bytes(b"x" * (KEPT_BYTES + 5) + b"the end")
    assert trim_log(str(path), 1 << 30) is False
    with path.open("ab") as writer:
        assert trim_log(str(path), 10) is True
        writer.write(b"after")
    assert path.read_bytes() == b"after"
    kept = Path(f"{path}.1").read_bytes()
    assert (len(kept), kept[-7:]) == (KEPT_BYTES, b"the end")


@pytest.mark.process
@pytest.mark.parametrize("kind", ["file", "pipe", "null"])
def test_the_words_of_children_go_where_ours_go(tmp_path: Path, kind: str) -> None:
    script = "from hal.linux.logfile import log_target; print(log_target('/d'))"
    log = tmp_path / "log"
    with log.open("wb") as file:
        stderr = {"file": file, "pipe": subprocess.PIPE, "null": subprocess.DEVNULL}[kind]
        done = subprocess.run(
            [sys.executable, "-c", script],
            stdout=subprocess.PIPE,
            stderr=stderr,
            check=True,
            text=True,
            cwd=Path(__file__).parents[3],
        )
    wanted = {"file": str(log), "pipe": "/d/supervisor.log", "null": os.devnull}[kind]
    assert done.stdout.strip() == wanted


def test_log_target_falls_back_to_the_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(path: str) -> str:
        raise OSError(9, f"closed: {path}")

    monkeypatch.setattr(os, "readlink", closed)
    assert log_target("/d") == "/d/supervisor.log"
