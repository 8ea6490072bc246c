"""Starting and stopping the card's processes from outside (`apf up`, `apf down`).

The supervisor is `python -m firmware.supervisor`. Its pid files in the run directory are held by
flock(2) for as long as their owners live: a number in a file that nobody locks names a stranger,
and is never signalled.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Final

from firmware.board_file import find_board
from hal.errors import HalError
from hal.linux.pidfile import locked_pid
from tools.client import Client
from tools.errors import BadUsage, CheckFailed, DaemonRefused, DaemonUnreachable, DeadlinePassed
from tools.paths import Places
from tools.polls import polls

POLL_MS: Final = 50
SAY_AFTER_MS: Final = 2000
PRESS_AFTER: Final = 4  # a quarter of the time allowed passes before SIGTERM
KILL_AFTER: Final = 0.75  # and this share of it before SIGKILL
LOG_TAIL_BYTES: Final = 4096
LOG_TAIL_LINES: Final = 20
STATUS_TIMEOUT_MS: Final = 2000
RUN_OPTION: Final = "--run (APF_RUN)"
STATE_OPTION: Final = "--state (APF_STATE)"


def status_or_none(places: Places) -> dict[str, Any] | None:
    """What the daemon says, or None when nobody answers."""
    try:
        with Client(places.socket, timeout_ms=STATUS_TIMEOUT_MS) as client:
            status = client.call("status")
    except (DaemonUnreachable, DeadlinePassed):
        return None
    return status if isinstance(status, dict) else {}


def unsupervised(places: Places, status: dict[str, Any]) -> bool:
    """The daemon was started by a supervisor that is no more."""
    return bool(status.get("supervisor_pid")) and "supervisor" not in live_owners(places)


def start_daemon(
    places: Places,
    board: str,
    *,
    foreground: bool,
    timeout_ms: int,
    say: Callable[[str], None],
    former_pid: object = None,
    record: Path | None = None,
) -> dict[str, Any]:
    """Start the supervisor and wait until the daemon is ready; its status. `former_pid`: of a
    daemon that answers still and is going to be replaced. `record`: where it writes every call on
    a port. Raises BadUsage for a place that can't be made, DeadlinePassed or CheckFailed with the
    tail of the log."""
    if not foreground and former_pid is None and "supervisor" in live_owners(places):
        return _await_ready(places, None, timeout_ms, say, None)  # it is at it already
    _make_place(places.run, RUN_OPTION)
    _make_place(places.state, STATE_OPTION)
    board = str(find_board(board).absolute())
    argv = [sys.executable, "-m", "firmware.supervisor", "--board", board]
    argv += ["--run", str(places.run), "--state", str(places.state)]
    if record is not None:
        argv += ["--record", str(record.absolute())]
    env = {**os.environ, "PYTHONPATH": _python_path()}
    if foreground:
        status = subprocess.call([*argv, "--foreground"], env=env)
        if status:
            raise CheckFailed("daemon_ended", f"the supervisor ended with status {status}")
        return {}
    with _open_log(places) as log:
        child = subprocess.Popen(
            argv,
            env=env,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return _await_ready(places, child, timeout_ms, say, former_pid)


def _make_place(path: Path, option: str) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise _bad_place(path, option, exc) from exc


def _open_log(places: Places) -> IO[bytes]:
    try:
        if not live_owners(places):  # else a keeper writes to it still
            places.supervisor_log.unlink(missing_ok=True)
        return places.supervisor_log.open("ab")
    except OSError as exc:
        raise _bad_place(places.run, RUN_OPTION, exc) from exc


def _bad_place(path: Path, option: str, exc: OSError) -> BadUsage:
    return BadUsage(
        "bad_place",
        f"{option} {path}: {exc.strerror}; choose a directory that you may write",
        {"path": str(path), "why": exc.strerror},
    )


def _await_ready(
    places: Places,
    child: "subprocess.Popen[bytes] | None",
    timeout_ms: int,
    say: Callable[[str], None],
    former_pid: object,
) -> dict[str, Any]:
    told = False
    for waited_ms in polls(timeout_ms, step_ms=POLL_MS):
        status = status_or_none(places)
        fresh = status is not None and status.get("daemon_pid", 0) != former_pid
        if status is not None and fresh and status.get("ready", True):
            return status
        ended = None if child is None else child.poll()
        if ended is not None:
            raise CheckFailed(
                "daemon_ended",
                f"the supervisor ended with status {ended} before the card was ready;\n"
                f"{places.supervisor_log} says:\n{log_tail(places)}",
                {"status": ended, "log": str(places.supervisor_log)},
            )
        if waited_ms > SAY_AFTER_MS and not told:
            told = True
            say("starting; waiting for the card to be ready ...")
    raise DeadlinePassed(
        "not_ready",
        f"the card was not ready after {timeout_ms / 1000:g} s; it is left as it is (`apf down` "
        f"ends it);\n{places.supervisor_log} says:\n{log_tail(places)}",
        {"log": str(places.supervisor_log)},
    )


def stop_daemon(places: Places, *, timeout_ms: int) -> bool:
    """Stop everything that `start_daemon` started; False when nothing was up. Raises
    DeadlinePassed, DaemonRefused."""
    asked = _ask_to_stop(places, timeout_ms)
    owners = live_owners(places)
    if not asked and not owners:
        return False
    signalled: dict[int, int] = {}
    for waited_ms in polls(timeout_ms, step_ms=POLL_MS):
        owners = live_owners(places)
        if not owners and status_or_none(places) is None:
            return True
        if asked and waited_ms < timeout_ms // PRESS_AFTER:
            continue  # it was asked and is at it
        late = waited_ms >= timeout_ms * KILL_AFTER
        _press(owners, signalled, signal.SIGKILL if late else signal.SIGTERM)
    left = ", ".join(f"{name} ({pid})" for name, pid in owners.items()) or "the socket"
    raise DeadlinePassed(
        "not_stopped", f"still there after {timeout_ms / 1000:g} s: {left}", {"left": owners}
    )


def _ask_to_stop(places: Places, timeout_ms: int) -> bool:
    try:
        with Client(places.socket, timeout_ms=STATUS_TIMEOUT_MS) as client:
            client.call("shutdown", timeout_ms=timeout_ms)
    except DaemonRefused as exc:
        if exc.code in ("unauthorised", "unauthorized"):
            raise
        return False
    except DaemonUnreachable as exc:
        # it may close the connection while it goes: that is an answer too
        return "closed the connection" in exc.text
    except DeadlinePassed:
        return False
    return True


def _press(owners: dict[str, int], signalled: dict[int, int], number: int) -> None:
    """One signal of each kind to each owner. A live supervisor stops the others in order, so it
    alone is asked; in haste it goes first, so that it restarts nobody."""
    first = {name: pid for name, pid in owners.items() if name == "supervisor"}
    asked = first if first and number == signal.SIGTERM else {**first, **owners}
    for pid in asked.values():
        if signalled.get(pid) != number:
            signalled[pid] = number
            _signal(pid, number)


def _signal(pid: int, number: int) -> None:
    """By pidfd, so that a pid that is reused in between is not hit."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:
        return
    finally:
        os.close(handle)


def live_owners(places: Places) -> dict[str, int]:
    """Name -> pid of the pid files that a live process holds locked."""
    owners = {}
    for path in sorted(places.run.glob("*.pid")):
        try:
            pid = locked_pid(path)
        except HalError:
            continue  # not ours to read, so not ours to stop
        if pid is not None:
            owners[path.stem] = pid
    return owners


def log_tail(places: Places) -> str:
    """The last lines of the supervisor's log."""
    try:
        with places.supervisor_log.open("rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - LOG_TAIL_BYTES))
            text = log.read().decode(errors="replace")
    except OSError as exc:
        return f"(no log: {exc.strerror})"
    return "\n".join(text.splitlines()[-LOG_TAIL_LINES:]) or "(the log is empty)"


def _python_path() -> str:
    """The packages' own place first: `firmware` is started from any directory."""
    root = str(Path(__file__).resolve().parent.parent)
    rest = os.environ.get("PYTHONPATH")
    return f"{root}{os.pathsep}{rest}" if rest else root
