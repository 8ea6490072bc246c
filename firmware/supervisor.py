"""The process that keeps the card's processes alive, and their composition root.

    python -m firmware.supervisor --board FILE --run DIR --state DIR [--foreground]

What it decides is in `firmware.supervision`. It starts the keeper (local board) and the daemon,
each in a session of its own, so that its own death touches neither; started again, it takes over
the keeper that it finds and replaces the daemon. Signals: SIGTERM stops all in order (a second one
in haste), SIGINT too with --foreground; SIGHUP is ignored.

Pid files in the run directory, each held by flock(2) for as long as its owner lives:
supervisor.pid, daemon.pid, keeper.pid (the keeper's own).
Exit status: 0 stopped on request; 1 given up; 2 usage; 3 it could not start.
"""

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from firmware.board import BoardError, find_board, load_board
from firmware.board_types import Board, Timing
from firmware.fields import FieldError
from firmware.keeper_config import plan_keeper
from firmware.loop import Loop
from firmware.supervision import EXIT_START_FAILED, Supervision, SupervisionTiming
from hal.errors import HalError, Refused, Unavailable
from hal.linux.cgroup import CgroupTree
from hal.linux.children import Children
from hal.linux.clock import LinuxClock
from hal.linux.logfile import log_target, say, trim_log
from hal.linux.notify import LinuxNotifyServer
from hal.linux.pidfile import LockedPidFile, locked_pid
from hal.linux.spawner import LinuxSpawner
from hal.local import wire
from hal.ports import Process, ProcessSpec

ROOT: Final = Path(__file__).resolve().parent.parent  # where `python -m firmware...` works
LOG_LIMIT_BYTES: Final = 4 << 20
LOG_CHECK_NS: Final = 60_000_000_000
DAEMON_MODULE: Final = "firmware.app"
KEEPER_MODULE: Final = "hal.local.keeper"


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Absolute directories, and what of the environment goes on to children."""

    run: Path
    state: Path
    board: str
    log: str


class LinuxHost:
    """`firmware.supervision.ProcessHost` on this machine."""

    def __init__(
        self,
        board: Board,
        places: Places,
        loop: Loop,
        *,
        daemon_argv: Sequence[str] | None = None,
    ) -> None:
        """`daemon_argv` takes the place of the daemon's program (tests)."""
        self._board = board
        self._places = places
        self._children = Children(loop)
        self._spawner = LinuxSpawner(self._children, CgroupTree.detect())
        self._daemon_argv = list(daemon_argv or [sys.executable, "-m", DAEMON_MODULE])
        self.keeper_was_there = False

    def _env(self) -> dict[str, str]:
        rest = os.environ.get("PYTHONPATH")
        path = f"{ROOT}{os.pathsep}{rest}" if rest else str(ROOT)
        return {**os.environ, "PYTHONPATH": path}

    def start_keeper(self, on_exit: Callable[[int], None]) -> Process | None:
        self.keeper_was_there = False
        if self._board.kind not in ("local", "linux"):
            return None
        found = locked_pid(self._places.run / "keeper.pid")
        if found is not None:
            self.keeper_was_there = True
            self.say(f"process {found} is this card's keeper already: taken over")
            return self._children.watch(
                found, lambda status: on_exit(-9 if status is None else status)
            )
        env = self._env()
        plan = plan_keeper(
            self._board,
            run=self._places.run,
            state=self._places.state,
            python=sys.executable,
            env={"PYTHONPATH": env["PYTHONPATH"]},
        )
        config_file = self._places.run / "keeper.json"
        try:
            for place, config in plan.inits.values():
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(config.to_json())
            config_file.write_text(json.dumps(plan.keeper, indent=1, sort_keys=True))
        except OSError as exc:
            raise Unavailable(f"the keeper's configuration can't be written: {exc}") from exc
        argv = [sys.executable, "-m", KEEPER_MODULE]
        argv += ["--run", str(self._places.run), "--config", str(config_file)]
        return self._spawner.spawn(
            ProcessSpec(argv=argv, env=env, log_path=self._places.log), on_exit
        )

    def keeper_answers(self) -> bool:
        try:
            wire.connect(self._places.run).close()
        except HalError:
            return False
        return True

    def start_daemon(
        self, *, safe: bool, reason: str, notify: str, on_exit: Callable[[int], None]
    ) -> Process:
        pid_file = self._daemon_pid_file()
        try:
            argv = [*self._daemon_argv, "--board", self._places.board]
            argv += ["--run", str(self._places.run), "--state", str(self._places.state)]
            env = self._env() | {
                "NOTIFY_SOCKET": notify,
                "WATCHDOG_USEC": str(self._board.timing.watchdog_ms * 1000),
                "APF_START_REASON": reason,
            }
            process = self._spawner.spawn(
                ProcessSpec(
                    argv=[*argv, "--safe"] if safe else argv,
                    env=env,
                    pass_fds=(pid_file.fd,),
                    log_path=self._places.log,
                ),
                on_exit,
            )
            pid_file.write(process.pid)
        finally:
            pid_file.release_to_child()
        return process

    def _daemon_pid_file(self) -> LockedPidFile:
        path = self._places.run / "daemon.pid"
        left = locked_pid(path)
        if left is not None:  # a former supervisor's; nobody feeds its watchdog
            self.say(f"the daemon of a former supervisor, process {left}, is replaced")
            self._children.watch(left, lambda _status: None).kill(signal.SIGKILL)
            raise Refused(f"process {left} still holds {path}; it was killed, tried again soon")
        return LockedPidFile(path)

    def say(self, text: str) -> None:
        say("supervisor", text)


def main(argv: list[str] | None = None, *, daemon_argv: Sequence[str] | None = None) -> int:
    """Run until everything is down; the exit status."""
    parser = argparse.ArgumentParser(prog="apf-supervisor", description=__doc__.split("\n")[0])
    parser.add_argument("--board", required=True, help="name or file")
    parser.add_argument("--run", required=True, type=Path)
    parser.add_argument("--state", required=True, type=Path)
    parser.add_argument("--foreground", action="store_true", help="SIGINT stops it too")
    parser.add_argument("--record", type=Path, help="the daemon writes its ports' calls there")
    args = parser.parse_args(argv)
    if args.record is not None and daemon_argv is None:
        record = str(args.record.resolve())
        daemon_argv = [sys.executable, "-m", DAEMON_MODULE, "--record", record]
    run, state = args.run.resolve(), args.state.resolve()
    try:
        run.mkdir(parents=True, exist_ok=True)
        state.mkdir(parents=True, exist_ok=True)
        board = load_board(args.board, run_dir=str(run))
        own_pid = LockedPidFile(run / "supervisor.pid")
    except (HalError, BoardError, OSError) as exc:
        say("supervisor", str(exc))
        return EXIT_START_FAILED
    own_pid.write(os.getpid())
    file = str(find_board(args.board).resolve())  # children have another working directory in mind
    places = Places(run=run, state=state, board=file, log=log_target(run))
    try:
        return _supervise(board, places, daemon_argv, foreground=args.foreground)
    except (HalError, FieldError) as exc:
        say("supervisor", str(exc))
        return EXIT_START_FAILED
    finally:
        own_pid.close()


def _supervise(
    board: Board, places: Places, daemon_argv: Sequence[str] | None, *, foreground: bool
) -> int:
    clock = LinuxClock()
    loop = Loop(clock)
    notify = LinuxNotifyServer()
    ended = {"status": 1}

    def on_end(status: int) -> None:
        ended["status"] = status
        loop.stop()

    supervision = Supervision(
        loop,
        LinuxHost(board, places, loop, daemon_argv=daemon_argv),
        notify,
        timing=supervision_timing(board),
        on_end=on_end,
    )
    for number in (signal.SIGTERM, signal.SIGINT) if foreground else (signal.SIGTERM,):
        signal.signal(number, lambda _number, _frame: loop.post(supervision.stop))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    loop.every(LOG_CHECK_NS, lambda: _trim(places.log))
    loop.post(supervision.start)
    try:
        loop.run()
    finally:
        notify.close()
        loop.close()
        clock.close()
    return ended["status"]


def supervision_timing(board: Board) -> SupervisionTiming:
    """A board that says it takes longer to be ready (an emulated one) is waited for longer; never
    less long than for any other."""
    usual = SupervisionTiming()
    times = max(1, board.timing.ready_ms // Timing().ready_ms)
    return SupervisionTiming(
        watchdog_ns=board.timing.watchdog_ms * 1_000_000,
        ready_ns=usual.ready_ns * times,
        keeper_ready_ns=usual.keeper_ready_ns * times,
    )


def _trim(log: str) -> None:
    try:
        trim_log(log, LOG_LIMIT_BYTES)
    except HalError as exc:
        say("supervisor", f"the log can't be cut: {exc}")


if __name__ == "__main__":
    sys.exit(main())
