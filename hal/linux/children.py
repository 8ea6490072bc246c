"""Exit statuses of our children, by pidfd. Ref: pidfd_open(2), waitid(2), prctl(2).

One `Children` is shared by the spawner and the runtimes of a process. A PID 1 or subreaper also
inherits orphans that nobody waits for: it calls `reap_orphans` now and then (on SIGCHLD, or once
a second), which never takes the status of a known child away from its owner.
"""

import contextlib
import ctypes
import os
import signal
from collections.abc import Callable
from typing import Final, TypeAlias

from hal.errors import Unavailable
from hal.linux.oserror import hal_error
from hal.linux.procstat import proc_stat
from hal.ports import Event, Reactor

# Exit status, or minus the signal; None when we are not its parent and nobody can say.
Exited: TypeAlias = Callable[[int | None], None]

_PR_SET_CHILD_SUBREAPER: Final = 36  # <linux/prctl.h>
_ORPHANS_AT_ONCE: Final = 1024  # zombies reaped in one call; the rest in the next


class Child:
    """A process that is watched; also `hal.ports.Process`."""

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self.pidfd = pidfd  # -1 once it is gone
        self.last_name = ""  # of the program that it ran last (comm); known once it is gone

    @property
    def alive(self) -> bool:
        """False once its end was seen here."""
        return self.pidfd >= 0

    def kill(self, signal: int) -> None:
        """By pidfd, so that a reused pid is never hit. Nothing happens when it is gone.

        Raises Unavailable when we may not signal it.
        """
        if self.pidfd < 0:
            return
        try:
            _send_signal(self.pidfd, signal)
        except ProcessLookupError:
            return
        except OSError as exc:
            raise hal_error(exc, f"signal {signal} to process {self.pid}") from exc


_send_signal: Final = signal.pidfd_send_signal


class Children:
    """All processes whose end somebody in this program waits for. Loop thread only."""

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor
        self._known: dict[int, tuple[Child, Exited]] = {}  # bounded by what its users start

    def watch(self, pid: int, on_exit: Exited) -> Child:
        """Call `on_exit` once when `pid` ends. It must be a child that nobody reaped yet (or any
        process: its status is None then). Raises Unavailable when it does not exist."""
        try:
            pidfd = os.pidfd_open(pid)
        except OSError as exc:
            raise hal_error(exc, f"pidfd of process {pid}") from exc
        child = Child(pid, pidfd)
        self._known[pid] = (child, on_exit)
        self._reactor.watch(pidfd, Event.READ, lambda _: self._reap(pid))
        return child

    def watch_started(self, pid: int, on_exit: Exited) -> Child:
        """As `watch`, for a child that we have just started as the leader of its session: one that
        can't be watched (no descriptor is left) must not live on unseen, and is killed."""
        try:
            return self.watch(pid, on_exit)
        except Unavailable:
            for send in (os.killpg, os.kill):  # it may not lead its group yet
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    send(pid, signal.SIGKILL)  # not reaped, so the number is still its own
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)  # else `reap_orphans` finds it
            raise

    def reap_orphans(self) -> int:
        """Collect zombies that were re-parented to us; returns how many."""
        reaped = 0
        for _ in range(_ORPHANS_AT_ONCE):
            try:
                info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                break
            if info is None:
                break
            if info.si_pid in self._known:
                self._reap(info.si_pid)
            else:
                os.waitid(os.P_PID, info.si_pid, os.WEXITED | os.WNOHANG)
                reaped += 1
        return reaped

    def _reap(self, pid: int) -> None:
        known = self._known.get(pid)
        if known is None:
            return
        child, on_exit = known
        try:
            stat = proc_stat(pid)  # while it is a zombie: afterwards nobody can tell
        except OSError:
            stat = None  # no descriptor to look with: its status still counts
        status: int | None
        try:
            info = os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            status = None  # not our child, or somebody else took its status
        else:
            if info is None:
                return  # not dead yet
            status = info.si_status if info.si_code == os.CLD_EXITED else -info.si_status
        del self._known[pid]
        child.last_name = stat.name if stat is not None else ""
        self._reactor.unwatch(child.pidfd)
        os.close(child.pidfd)
        child.pidfd = -1
        on_exit(status)


def become_subreaper() -> None:
    """Have orphaned descendants re-parented to this process. Raises Unavailable."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise Unavailable(f"PR_SET_CHILD_SUBREAPER: {os.strerror(ctypes.get_errno())}")
