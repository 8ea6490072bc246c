"""Instances as plain processes on the CNM's own root file system. Ref: setsid(2), cgroups(7),
execve(2), mount_namespaces(7).

Each gets a session and (where we may) a cgroup of its own with its limits, in every hierarchy;
limits that no cgroup can set become rlimits where there is one (memory: RLIMIT_AS of each process,
pids: RLIMIT_NPROC, which counts the user's processes, not the instance's, and never binds root).
`notes` says what an instance went without. Without a cgroup its session is what is killed: a
process that makes a session of its own escapes; the CNM's fence still ends it.

Volumes are bound in a private mount namespace (root only): at the target where it exists, else
on a private mirror of the directory above it, so that nothing is made on the CNM's real root (see
`exec_stub.Mounter`). Otherwise Refused, naming the path.
"""

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

from hal.errors import DeadlinePassed, HalError, Refused, Unavailable
from hal.linux.cgroup import CgroupTree
from hal.linux.children import Children
from hal.linux.exec_stub import StubConfig
from hal.linux.oci_config import nofile
from hal.linux.oserror import hal_error
from hal.linux.output import Output
from hal.linux.procstat import proc_stat, session_pids
from hal.linux.runtime_base import (
    OUTPUT_LIMIT_BYTES,
    POLL_FIRST_NS,
    POLL_LAST_NS,
    Instance,
    RuntimeBase,
    State,
    close_fds,
)
from hal.linux.stub_run import await_exec, spawn_stub
from hal.linux.users import find_user
from hal.ports import Done, InstanceExit, InstanceHandle, InstanceSpec, Reactor

EXECS_LIMIT: Final = 64
EXEC_KILLS: Final = 20  # rounds; what forks faster than that is left to the instance's own end
_SIGKILL: Final = 9


class ProcessRuntime(RuntimeBase):
    """`hal.ports.Runtime` without images: `rootfs` must be ""."""

    name = "process"

    def __init__(
        self,
        reactor: Reactor,
        children: Children,
        tree: CgroupTree,
        *,
        cgroup_parent: str,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """`env` goes over each instance's own: marks by which it can be found."""
        super().__init__(reactor, children, tree, cgroup_parent)
        self._env = dict(env or {})
        self._execs = 0
        self.notes: dict[str, list[str]] = {}  # by key: what it went without, and why

    def submit_start(
        self,
        spec: InstanceSpec,
        deadline_ns: int,
        done: Done[InstanceHandle],
        on_exit: Callable[[InstanceExit], None],
    ) -> None:
        """A mount whose source is "tmpfs" gives a fresh tmpfs. The hostname is set for root."""
        try:
            self._check(spec)
            self._check_here(spec)
            instance = Instance(
                spec=spec,
                group=self._group(spec.key),
                done=done,
                on_exit=on_exit,
                deadline_ns=deadline_ns,
            )
            joins = self._join(instance)
            self._spawn(instance, joins)
        except HalError as exc:
            self._refuse(done, exc)

    def submit_exec(
        self, key: str, argv: Sequence[str], deadline_ns: int, done: Done[tuple[int, bytes]]
    ) -> None:
        """In the instance's cgroup and namespaces, with its user and environment. A program
        that is not there is status 127 with the reason as output."""
        instance = self._instances.get(key)
        try:
            if instance is None or instance.state is not State.RUNNING or instance.child is None:
                raise Unavailable(f"instance {key[:80]!r} does not run")
            if self._execs >= EXECS_LIMIT:
                raise Unavailable(f"{EXECS_LIMIT} programs run inside instances already")
            if not argv:
                raise Refused("no program to run")
            self._exec(instance, instance.child.pid, argv, deadline_ns, done)
        except HalError as exc:
            error = exc
            self._reactor.post(lambda: done(error))

    def submit_remove(self, key: str, deadline_ns: int, done: Done[None]) -> None:
        """One that runs is killed first."""
        instance = self._instances.get(key)
        if instance is None:
            self._reactor.post(lambda: done(None))
        elif instance.state in (State.STARTING, State.FAILED):
            busy = Refused(f"instance {key} is being started")
            self._reactor.post(lambda: done(busy))
        elif instance.state is State.DEAD:
            self._reactor.post(lambda: self._sweep(instance, deadline_ns, done, POLL_FIRST_NS))
        else:
            instance.removing.append(
                lambda: self._sweep(instance, deadline_ns, done, POLL_FIRST_NS)
            )
            self._kill(instance)

    def _check_here(self, spec: InstanceSpec) -> None:
        if spec.rootfs:
            raise Refused(
                f"instance {spec.key}: the process runtime runs no images (rootfs "
                f"{spec.rootfs!r}); use the oci runtime"
            )
        if spec.read_only_rootfs:
            raise Refused(f"instance {spec.key}: the CNM's own root can't be made read-only")
        if spec.mounts and os.geteuid():
            raise Refused(
                f"instance {spec.key}: {spec.mounts[0].target} can't be mounted without root"
            )

    def _join(self, instance: Instance) -> list[str]:
        """The cgroup's files to join; [] where there can be none."""
        notes: list[str] = []
        self.notes[instance.spec.key] = notes
        group = instance.group
        try:
            group.make()
            group.limit(instance.spec.limits)
        except HalError as exc:
            limits = instance.spec.limits
            notes.append(str(exc))
            wanted = {"cpu": limits.cpu_milli, "memory": limits.memory_bytes, "pids": limits.pids}
            group.unlimited = {name for name, amount in wanted.items() if amount}
            return []
        finally:
            notes.extend(group.notes)
        return group.join_paths()

    def _rlimits(self, instance: Instance) -> dict[str, tuple[int, int]]:
        limits, missing = instance.spec.limits, instance.group.unlimited
        found = {"NOFILE": nofile(), "CORE": (0, 0)}
        if "memory" in missing:
            found["AS"] = (limits.memory_bytes, limits.memory_bytes)
        if "pids" in missing:
            found["NPROC"] = (limits.pids, limits.pids)
        return found

    def _stub(
        self, instance: Instance, joins: Sequence[str], status_fd: int, argv: Sequence[str]
    ) -> StubConfig:
        spec = instance.spec
        user = find_user("/", spec.user)
        root = os.geteuid() == 0
        if not root and spec.user and user.uid != os.geteuid():
            raise Refused(f"instance {spec.key}: only root can run it as user {spec.user!r}")
        return StubConfig(
            argv=list(argv),
            env={**spec.env, **self._env},
            join=list(joins),
            rlimits=self._rlimits(instance),
            mounts=[(mount.source, mount.target, mount.read_only) for mount in spec.mounts],
            hostname=spec.hostname if root else "",
            uid=user.uid if root else -1,
            gid=user.gid,
            groups=list(user.groups),
            cwd=spec.cwd,
            no_new_privileges=True,
            status_fd=status_fd,
        )

    def _spawn(self, instance: Instance, joins: Sequence[str]) -> None:
        key = instance.spec.key
        fds: list[int] = []
        try:
            output_read, output_write = os.pipe2(os.O_CLOEXEC)
            fds += [output_read, output_write]
            status_read, status_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            fds += [status_read, status_write]
            os.set_blocking(output_read, False)
            os.set_blocking(status_write, True)
            config = self._stub(instance, joins, status_write, instance.spec.argv)
            pid = spawn_stub(config, output_write, [status_write])
        except OSError as exc:
            close_fds(*fds)
            instance.group.remove()
            raise hal_error(exc, f"start of instance {key}") from exc
        except HalError:
            close_fds(*fds)
            instance.group.remove()
            raise
        close_fds(output_write, status_write)
        self._instances[key] = instance
        instance.output_fd = output_read
        instance.session = 0 if joins else pid
        try:
            gone = partial(self._first_gone, instance)
            instance.child = self._children.watch_started(pid, gone)
            stat = proc_stat(pid)
        except (HalError, OSError) as exc:
            close_fds(status_read)
            error = exc if isinstance(exc, HalError) else hal_error(exc, f"process {pid}")
            self._fail(instance, error)
            return
        handle = InstanceHandle(
            pid=pid,
            start_ticks=stat.start_ticks if stat is not None else 0,
            cgroup=instance.group.path if joins else "",
            output_fd=output_read,
        )
        await_exec(
            self._reactor,
            status_read,
            instance.deadline_ns,
            partial(self._proved, instance, handle),
        )

    def _proved(self, instance: Instance, handle: InstanceHandle, error: HalError | None) -> None:
        if error is None:
            self._running(instance, handle)
        else:
            self._fail(instance, type(error)(f"instance {instance.spec.key}: {error}"))

    def _exec(
        self,
        instance: Instance,
        pid: int,
        argv: Sequence[str],
        deadline_ns: int,
        done: Done[tuple[int, bytes]],
    ) -> None:
        spec = instance.spec
        joins = [] if instance.session else instance.group.join_paths()
        config = replace(
            self._stub(instance, joins, -1, argv),
            mounts=(),
            hostname="",
            enter_pid=pid if spec.mounts or spec.hostname else -1,
        )
        output = Output(self._reactor, OUTPUT_LIMIT_BYTES)
        late = False

        def ended(status: int | None) -> None:
            cancel()
            self._execs -= 1
            data = output.finish()
            if late:
                name = os.path.basename(argv[0])
                done(DeadlinePassed(f"instance {spec.key}: {name} was killed at its deadline"))
            else:
                done((-_SIGKILL if status is None else status, data))

        def kill() -> None:
            nonlocal late
            late = True
            child.kill(_SIGKILL)
            self._kill_session(child.pid)

        try:
            pid = spawn_stub(config, output.write_fd, [])
            child = self._children.watch_started(pid, ended)
        except OSError as exc:
            output.finish()
            raise hal_error(exc, f"instance {spec.key}: start of {argv[0]!r}") from exc
        except HalError:
            output.finish()
            raise
        output.started()
        self._execs += 1
        cancel = self._reactor.call_at(deadline_ns, kill)

    def _kill_session(self, session: int, tries: int = EXEC_KILLS) -> None:
        """Once is not enough: a member may fork between being listed and being killed."""
        members: list[int] | None = None
        with contextlib.suppress(OSError):  # no descriptor to list them by: once more
            members = session_pids(session)
        for member in members or ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(member, _SIGKILL)
        if members != [] and tries:
            self._reactor.call_at(
                self._reactor.now_ns() + POLL_FIRST_NS,
                lambda: self._kill_session(session, tries - 1),
            )

    def _fail(self, instance: Instance, error: HalError) -> None:
        """Kill it, clean up, and only then tell: the key is free again."""
        instance.state = State.FAILED
        close_fds(instance.output_fd)
        instance.output_fd = -1
        deadline_ns = self._reactor.now_ns() + 40 * POLL_LAST_NS
        self._until_empty(
            instance,
            lambda: self._sweep(
                instance, deadline_ns, lambda _: instance.done(error), POLL_FIRST_NS
            ),
        )

    def _sweep(self, instance: Instance, deadline_ns: int, done: Done[None], wait_ns: int) -> None:
        left = instance.group.remove()
        now_ns = self._reactor.now_ns()
        if left and now_ns < deadline_ns:
            next_ns = min(2 * wait_ns, POLL_LAST_NS)
            self._reactor.call_at(
                now_ns + wait_ns, lambda: self._sweep(instance, deadline_ns, done, next_ns)
            )
            return
        key = instance.spec.key
        if self._instances.get(key) is instance:
            del self._instances[key]
            self.notes.pop(key, None)
        if left:
            done(DeadlinePassed(f"instance {key}: cgroups {', '.join(left)[:300]} stay populated"))
        else:
            done(None)
