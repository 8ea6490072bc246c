"""Helper programs of ours (the agent, for one). Ref: fork(2), setsid(2), cgroups(7)."""

import os
import subprocess
from collections.abc import Callable
from typing import Final

from hal.errors import HalError, Refused
from hal.linux.cgroup import CgroupTree
from hal.linux.children import Children
from hal.linux.exec_stub import STUB_ARGV, StubConfig, stub_config_fd
from hal.linux.oserror import hal_error
from hal.linux.stream import stream_pair
from hal.ports import ByteStream, Process, ProcessSpec

ARGV_LIMIT: Final = 1024
UNKNOWN_STATUS: Final = -9  # reported when the kernel no longer knows how it ended


class LinuxSpawner:
    """`hal.ports.Spawner`. Each program gets a session of its own and /dev/null as stdin.

    With `cgroup` it is in its cgroup before its first instruction: a small stub writes itself
    there and execs. If the cgroup can't be had the program starts without, and `notes` says why.
    """

    def __init__(self, children: Children, cgroups: CgroupTree) -> None:
        self._children = children
        self._cgroups = cgroups
        self._pairs: set[int] = set()  # far ends not handed to a program yet
        self.notes: list[str] = []  # why the last spawn got less than it asked for

    def spawn(self, spec: ProcessSpec, on_exit: Callable[[int], None]) -> Process:
        """Raises Unavailable when it can't be started. A program in a cgroup that can't be
        exec'd ends with status 127 instead."""
        if not spec.argv or len(spec.argv) > ARGV_LIMIT:
            raise Refused(f"argv has {len(spec.argv)} entries, wanted 1 to {ARGV_LIMIT}")
        self.notes = []
        joins = self._joins(spec.cgroup)
        what = f"start of {spec.argv[0]!r}"
        log_fd = -1
        config_fd = -1
        try:
            log_fd = _open_log(spec.log_path)
            argv = list(spec.argv)
            fds = list(spec.pass_fds)
            if joins:
                config_fd = stub_config_fd(
                    StubConfig(argv=argv, env=dict(spec.env), join=joins, cwd="")
                )
                argv = [*STUB_ARGV, str(config_fd)]
                fds.append(config_fd)
            popen = subprocess.Popen(
                argv,
                env=dict(spec.env) if not joins else {},
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                stdout=log_fd,
                stderr=log_fd,
                start_new_session=True,
            )
        except (OSError, ValueError, subprocess.SubprocessError) as exc:
            cause = exc if isinstance(exc, OSError) else OSError(0, str(exc))
            raise hal_error(cause, what) from exc
        finally:
            for fd in (log_fd, config_fd, *self._pairs.intersection(spec.pass_fds)):
                self._pairs.discard(fd)
                if fd >= 0:
                    os.close(fd)
        popen.returncode = 0  # reaped through its pidfd: Popen must not wait for it as well
        return self._children.watch_started(
            popen.pid, lambda status: on_exit(UNKNOWN_STATUS if status is None else status)
        )

    def stream_pair(self) -> tuple[ByteStream, int]:
        """The descriptor is closed by the `spawn` that it is passed to, started or not: only then
        does the program's end hang up ours, and nobody else may close it."""
        ours, fd = stream_pair()
        self._pairs.add(fd)
        return ours, fd

    def _joins(self, path: str | None) -> list[str]:
        if path is None:
            return []
        try:
            group = self._cgroups.create(path)
        except HalError as exc:
            self.notes.append(str(exc))
            return []
        self.notes.extend(group.notes)
        return group.join_paths()


def _open_log(path: str | None) -> int:
    if path is None:
        return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(path, flags, 0o600)
