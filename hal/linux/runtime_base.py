"""What both runtimes share: the table of instances, their end, and what can be said of it.

    STARTING -> RUNNING -> ENDING -> DEAD -> (removed)
         \\-> FAILED -> (removed; the start's `done` gets the error)

ENDING: the first process is gone; the others are killed until the cgroup is empty, and only then
is the end reported. That is repeated for as long as anything lives: an end that is reported while
a process runs on would break the fence (DESIGN section 4).
"""

import contextlib
import os
import re
import signal as signals
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from hal.errors import HalError, Refused
from hal.linux.cgroup import Cgroup, CgroupTree
from hal.linux.children import Child, Children
from hal.linux.exec_stub import TMPFS
from hal.linux.procstat import session_pids
from hal.ports import (
    Done,
    ExitReason,
    InstanceExit,
    InstanceHandle,
    InstanceSpec,
    Reactor,
    Usage,
)

MS: Final = 1_000_000  # ns
POLL_FIRST_NS: Final = 1 * MS  # a killed cgroup is empty after 1 to 14 ms (measured)
POLL_LAST_NS: Final = 250 * MS
ARGV_LIMIT_BYTES: Final = 1 << 20  # argv and env together; the kernel's ARG_MAX is 2 MiB here
OUTPUT_LIMIT_BYTES: Final = 4096  # of an exec
_SHELL_KILLED: Final = 128 + signals.SIGKILL  # how a shell passes on that its child was killed
_KEY: Final = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}\Z")


class State(Enum):
    STARTING = "starting"
    RUNNING = "running"
    ENDING = "ending"
    DEAD = "dead"
    FAILED = "failed"


@dataclass(slots=True, kw_only=True)
class Instance:
    spec: InstanceSpec
    group: Cgroup
    done: Done[InstanceHandle]
    on_exit: Callable[[InstanceExit], None]
    deadline_ns: int
    session: int = 0  # where there is no cgroup: the session that is killed
    state: State = State.STARTING
    child: Child | None = None
    status: int | None = None  # of the first process; None: unknown
    output_fd: int = -1  # ours until `done`
    name_before: str = ""  # of the runtime's own program, which the exec replaces
    exe_before: tuple[int, int] | None = None
    removing: list[Callable[[], None]] = field(default_factory=list)


class RuntimeBase:
    """Signals, kills, usage and ends. Loop thread only."""

    def __init__(
        self, reactor: Reactor, children: Children, tree: CgroupTree, cgroup_parent: str
    ) -> None:
        """`cgroup_parent` is relative to the mounts of the hierarchies, e.g. "/apf/run1/cnm0"."""
        self._reactor = reactor
        self._children = children
        self._tree = tree
        self._parent = "/" + cgroup_parent.strip("/")
        self._instances: dict[str, Instance] = {}  # bounded by what the caller starts

    def signal(self, key: str, signal: int) -> None:
        """Raises Unavailable when we may not."""
        instance = self._instances.get(key)
        if instance is not None and instance.child is not None:
            instance.child.kill(signal)

    def kill_all(self, key: str) -> None:
        """Also while it is being started: the start then fails."""
        instance = self._instances.get(key)
        if instance is not None and instance.state is not State.DEAD:
            self._kill(instance)

    def usage(self, key: str) -> Usage:
        instance = self._instances.get(key)
        return Usage() if instance is None else instance.group.usage()

    def _group(self, key: str) -> Cgroup:
        return self._tree.at(f"{self._parent}/i-{key}")

    def _check(self, spec: InstanceSpec) -> None:
        """Raises Refused for what no runtime could start."""
        if not _KEY.match(spec.key):
            raise Refused(f"instance key {spec.key[:80]!r}: wanted [a-z0-9.-], at most 64")
        if spec.key in self._instances:
            state = self._instances[spec.key].state.value
            raise Refused(f"instance {spec.key} is there already ({state}); remove it first")
        words = [*spec.argv, *(f"{name}={value}" for name, value in spec.env.items())]
        if not spec.argv or not spec.argv[0]:
            raise Refused(f"instance {spec.key}: no program to run")
        if any("\0" in word for word in words) or any("=" in name or not name for name in spec.env):
            raise Refused(f"instance {spec.key}: a NUL in argv or env, or a bad name in env")
        if sum(len(os.fsencode(word)) + 1 for word in words) > ARGV_LIMIT_BYTES:
            raise Refused(f"instance {spec.key}: argv and env are over {ARGV_LIMIT_BYTES} B")
        if not spec.cwd.startswith("/"):
            raise Refused(f"instance {spec.key}: cwd {spec.cwd!r} is not absolute")
        for mount in spec.mounts:
            if mount.source != TMPFS and not mount.source.startswith("/"):
                raise Refused(f"instance {spec.key}: mount source {mount.source!r} is not absolute")
            parts = mount.target.split("/")
            if parts[0] or len(parts) < 2 or not all(parts[1:]) or {".", ".."} & set(parts):
                raise Refused(f"instance {spec.key}: mount target {mount.target!r}")

    def _kill(self, instance: Instance) -> None:
        instance.group.kill()
        if instance.session:
            with contextlib.suppress(OSError):  # no descriptor to list them by: tried again
                for pid in session_pids(instance.session):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signals.SIGKILL)
        if instance.child is not None:
            instance.child.kill(signals.SIGKILL)

    def _alive(self, instance: Instance) -> bool:
        if instance.child is not None and instance.child.alive:
            return True
        try:
            if instance.session and session_pids(instance.session):
                return True
        except OSError:
            return True  # what can't be looked at is not known to be dead
        return instance.group.populated()

    def _until_empty(
        self, instance: Instance, call: Callable[[], None], wait_ns: int = POLL_FIRST_NS
    ) -> None:
        """Kill what is left until nothing is, then `call`."""
        if not self._alive(instance):
            call()
            return
        self._kill(instance)
        next_ns = min(2 * wait_ns, POLL_LAST_NS)
        self._reactor.call_at(
            self._reactor.now_ns() + wait_ns, lambda: self._until_empty(instance, call, next_ns)
        )

    def _first_gone(self, instance: Instance, status: int | None) -> None:
        """The first process ended; one that was not seen to run yet is the start's business."""
        instance.status = status
        if instance.state is State.RUNNING:
            instance.state = State.ENDING
            self._until_empty(instance, lambda: self._ended(instance))

    def _ended(self, instance: Instance) -> None:
        instance.state = State.DEAD
        end = _why(instance.status, instance.group.oom_kills())
        instance.on_exit(end)
        removing, instance.removing = instance.removing, []
        for call in removing:
            call()

    def _running(self, instance: Instance, handle: InstanceHandle) -> None:
        """It was seen to run: tell it, and its end if that came in the meantime."""
        instance.state = State.RUNNING
        instance.output_fd = -1  # the caller's from now on
        instance.done(handle)
        if instance.child is not None and not instance.child.alive:
            self._first_gone(instance, instance.status)

    def _refuse(self, done: Done[InstanceHandle], error: HalError) -> None:
        self._reactor.post(lambda: done(error))


def close_fds(*fds: int) -> None:
    """-1 is none."""
    for fd in fds:
        if fd >= 0:
            os.close(fd)


def _why(status: int | None, oom_kills: int | None) -> InstanceExit:
    if status is None:
        return InstanceExit(
            reason=ExitReason.UNKNOWN, status=0, text="its parent is another process"
        )
    text = f"{oom_kills} processes were killed for memory" if oom_kills else ""
    if oom_kills and status in (-signals.SIGKILL, _SHELL_KILLED):
        return InstanceExit(
            reason=ExitReason.OOM_KILLED, status=signals.SIGKILL, text=f"memory limit: {text}"
        )
    if status < 0:
        return InstanceExit(reason=ExitReason.SIGNALED, status=-status, text=text)
    return InstanceExit(reason=ExitReason.EXITED, status=status, text=text)
