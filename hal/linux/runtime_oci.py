"""Containers by any OCI runtime (runc by default). Ref: OCI runtime-spec 1.0.2, runtime.md.

    create      stdin /dev/null, output to our pipe; the init waits before its exec
    pidfd       on the init, which is our child: the caller is PID 1 or a subreaper
    start       lets the init exec; RUNNING is reported when it was *seen* to run the program
    end         pidfd; the rest of its cgroup is killed and seen to be empty; OOM counters are read
    delete      --force, then what is left of its cgroups and its bundle

Every call of the runtime is a child process with a deadline; at most 4 at a time, 64 more wait.
Execs (health checks) have a queue of their own, so that hanging ones hold up no deployment.

Measured with runc 1.1.5: create 20-55 ms, start 4-9 ms, delete 5 ms.
"""

import contextlib
import json
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from hal.errors import DeadlinePassed, HalError, Refused, Unavailable
from hal.linux.cgroup import CgroupTree
from hal.linux.children import Children
from hal.linux.commands import CommandQueue
from hal.linux.oci_config import oci_config
from hal.linux.oserror import hal_error
from hal.linux.output import Output
from hal.linux.procstat import executable, proc_stat
from hal.linux.runtime_base import (
    MS,
    OUTPUT_LIMIT_BYTES,
    POLL_FIRST_NS,
    POLL_LAST_NS,
    Instance,
    RuntimeBase,
    State,
    close_fds,
)
from hal.linux.users import find_user
from hal.ports import Done, InstanceExit, InstanceHandle, InstanceSpec, Reactor

DELETE_NS: Final = 10_000 * MS  # to clean up after a start that failed
EXECS_AT_ONCE: Final = 8
EXEC_GRACE_NS: Final = 1_000 * MS  # for the runtime to end after its program was killed
WORDS_LIMIT: Final = 600  # characters of the runtime's own message in an error
_LOG_LIMIT_BYTES: Final = 65_536


class OciRuntime(RuntimeBase):
    """`hal.ports.Runtime` for container images. Needs root (or a delegated cgroup)."""

    name = "oci"

    def __init__(
        self,
        reactor: Reactor,
        children: Children,
        tree: CgroupTree,
        *,
        cgroup_parent: str,
        state_dir: str | Path,
        bundle_dir: str | Path,
        program: str = "runc",
    ) -> None:
        """`state_dir` is the runtime's `--root`. Raises Unavailable without the program, and for
        others than root: their containers would need user namespaces, which we do not make."""
        super().__init__(reactor, children, tree, cgroup_parent)
        found = shutil.which(program)
        if found is None:
            raise Unavailable(f"OCI runtime {program!r} is not installed (Debian: runc)")
        if os.geteuid():
            raise Unavailable(f"containers ({program}) need root; processes do not")
        self._state_dir = os.path.abspath(state_dir)
        self._bundle_dir = os.path.abspath(bundle_dir)
        self._program = os.path.realpath(found)
        self._commands = CommandQueue(reactor, children)
        self._execs = CommandQueue(reactor, children, at_once=EXECS_AT_ONCE)
        self._exec_serial = 0
        try:
            for directory in (self._state_dir, self._bundle_dir):
                os.makedirs(directory, 0o700, exist_ok=True)
        except OSError as exc:
            raise hal_error(exc, "directories of the OCI runtime") from exc

    def submit_start(
        self,
        spec: InstanceSpec,
        deadline_ns: int,
        done: Done[InstanceHandle],
        on_exit: Callable[[InstanceExit], None],
    ) -> None:
        """A mount whose source is "tmpfs" gives a fresh tmpfs."""
        try:
            self._check(spec)
            self._write_bundle(spec)
            read_fd, write_fd = _pipe()
        except HalError as exc:
            self._refuse(done, exc)
            return
        instance = Instance(
            spec=spec,
            group=self._group(spec.key),
            done=done,
            on_exit=on_exit,
            deadline_ns=deadline_ns,
            output_fd=read_fd,
        )
        self._instances[spec.key] = instance
        bundle = self._bundle(spec.key)
        self._commands.submit(
            self._argv(
                spec.key, "create", "--bundle", bundle, "--pid-file", f"{bundle}/pid", spec.key
            ),
            deadline_ns,
            partial(self._created, instance, write_fd),
            output_fd=write_fd,
        )

    def submit_exec(
        self, key: str, argv: Sequence[str], deadline_ns: int, done: Done[tuple[int, bytes]]
    ) -> None:
        """With the instance's own user, environment and working directory. A program that is
        not there is a status (127 or so) with the runtime's words as output."""
        instance = self._instances.get(key)
        if instance is None or instance.state is not State.RUNNING:
            self._reactor.post(lambda: done(Unavailable(f"instance {key[:80]!r} does not run")))
            return
        try:
            output = Output(self._reactor, OUTPUT_LIMIT_BYTES)
        except HalError as exc:
            error = exc
            self._reactor.post(lambda: done(error))
            return
        self._exec_serial += 1
        pid_file = f"{self._bundle(key)}/exec-{self._exec_serial}"

        late = False

        def ended(result: int | HalError) -> None:
            cancel()
            data = output.finish()
            with contextlib.suppress(OSError):
                os.unlink(pid_file)
            if isinstance(result, HalError):
                done(result)
            elif late:
                done(DeadlinePassed(f"instance {key}: {argv[0]} was killed at its deadline"))
            else:
                done((result, data))

        def kill() -> None:
            # The program first, while the runtime is there to reap it: as an orphan of ours it
            # would hold up the end of the whole container until somebody does (tried).
            nonlocal late
            late = True
            if not self._kill_exec(instance, pid_file) and command.child is not None:
                command.child.kill(signal.SIGKILL)

        cancel = self._reactor.call_at(deadline_ns, kill)
        command = self._execs.submit(
            self._argv(key, "exec", "--pid-file", pid_file, key, *argv),
            deadline_ns + EXEC_GRACE_NS,
            ended,
            output_fd=output.write_fd,
            on_started=lambda _: output.started(),
        )

    def submit_remove(self, key: str, deadline_ns: int, done: Done[None]) -> None:
        """One that runs is killed first. Also cleans up after an earlier run of this program
        that used the same directories."""
        instance = self._instances.get(key)
        if instance is not None and instance.state in (State.STARTING, State.FAILED):
            busy = Refused(f"instance {key} is being started")
            self._reactor.post(lambda: done(busy))
        elif instance is not None and instance.state is not State.DEAD:
            instance.removing.append(lambda: self._delete(key, deadline_ns, done))
            self._kill(instance)
        else:
            try:
                absent = instance is None and not self._traces(key)
            except HalError as exc:
                error = exc
                self._reactor.post(lambda: done(error))
                return
            if absent:
                self._reactor.post(lambda: done(None))
            else:
                self._delete(key, deadline_ns, done)

    # --- start ---

    def _write_bundle(self, spec: InstanceSpec) -> None:
        if not spec.rootfs.startswith("/") or not os.path.isdir(spec.rootfs):
            raise Refused(f"instance {spec.key}: rootfs {spec.rootfs!r} is no directory")
        # runc refuses a root file system behind a symlink (tried).
        config = oci_config(
            spec,
            find_user(spec.rootfs, spec.user),
            cgroup=self._group(spec.key).path,
            limit_swap=self._limits_swap(),
            oom_score_adj=_oom_score_adj(),
        )
        config["root"]["path"] = os.path.realpath(spec.rootfs)
        bundle = self._bundle(spec.key)
        try:
            os.makedirs(bundle, 0o700, exist_ok=True)
            for name in os.listdir(bundle):
                os.unlink(f"{bundle}/{name}")
            with open(f"{bundle}/config.json", "w", encoding="ascii") as file:
                json.dump(config, file)
        except OSError as exc:
            raise hal_error(exc, f"bundle {bundle}") from exc

    def _limits_swap(self) -> bool:
        with contextlib.suppress(HalError):  # without permission runc will say it better
            self._tree.create(self._parent)
            return self._tree.limits_swap(self._parent)
        return False

    def _created(self, instance: Instance, write_fd: int, result: int | HalError) -> None:
        os.close(write_fd)
        key = instance.spec.key
        if result != 0:
            self._fail(instance, self._error(key, "create", result))
            return
        try:
            with open(f"{self._bundle(key)}/pid", encoding="ascii") as file:
                pid = int(file.read(32))
            instance.child = self._children.watch(pid, partial(self._first_gone, instance))
        except (OSError, ValueError) as exc:
            self._fail(instance, Unavailable(f"instance {key}: create gave no pid: {exc}"))
            return
        except HalError as exc:
            self._fail(instance, exc)
            return
        try:
            stat = proc_stat(pid)
        except OSError as exc:
            self._fail(instance, hal_error(exc, f"instance {key}: process {pid}"))
            return
        instance.name_before = stat.name if stat is not None else ""
        instance.exe_before = executable(pid)
        ticks = stat.start_ticks if stat is not None else 0
        handle = InstanceHandle(
            pid=pid, start_ticks=ticks, cgroup=instance.group.path, output_fd=instance.output_fd
        )
        self._commands.submit(
            self._argv(key, "start", key),
            instance.deadline_ns,
            partial(self._started, instance, handle),
        )

    def _started(self, instance: Instance, handle: InstanceHandle, result: int | HalError) -> None:
        if result != 0:
            self._fail(instance, self._error(instance.spec.key, "start", result))
        else:
            self._prove(instance, handle)

    def _prove(self, instance: Instance, handle: InstanceHandle) -> None:
        """`start` returns when the init was let go; its exec comes an instant later, and may
        fail. It happened when the process runs another file, or died under another name."""
        assert instance.child is not None
        key = instance.spec.key
        if not instance.child.alive:
            if instance.child.last_name != instance.name_before:
                self._running(instance, handle)
                return
            said = _peek(instance.output_fd)
            self._fail(
                instance,
                Refused(
                    f"instance {key}: {instance.spec.argv[0]!r} could not be executed "
                    f"(status {instance.status}): {said or self._words(key)}"
                ),
            )
            return
        exe = executable(handle.pid)
        try:
            stat = proc_stat(handle.pid)
        except OSError:
            stat = None  # no descriptor to look with: looked at again
        if (exe is not None and exe != instance.exe_before) or (
            stat is not None and stat.name != instance.name_before and stat.state not in "ZX"
        ):
            self._running(instance, handle)
        elif self._reactor.now_ns() >= instance.deadline_ns:
            self._fail(instance, DeadlinePassed(f"instance {key}: started, but not seen to run"))
        else:
            self._reactor.call_at(
                self._reactor.now_ns() + POLL_FIRST_NS, lambda: self._prove(instance, handle)
            )

    def _fail(self, instance: Instance, error: HalError) -> None:
        """Clean up, and only then tell: the key is free again."""
        instance.state = State.FAILED
        close_fds(instance.output_fd)
        instance.output_fd = -1
        deadline_ns = self._reactor.now_ns() + DELETE_NS
        self._until_empty(
            instance,
            lambda: self._delete(instance.spec.key, deadline_ns, lambda _: instance.done(error)),
        )

    # --- end ---

    def _kill_exec(self, instance: Instance, pid_file: str) -> bool:
        """False when the runtime has not come so far as to start the program."""
        try:
            with open(pid_file, encoding="ascii") as file:
                pid = int(file.read(32))
        except (OSError, ValueError):
            return False
        first = instance.child.pid if instance.child is not None else 0
        if pid != first and pid in instance.group.procs():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return True

    def _delete(self, key: str, deadline_ns: int, done: Done[None]) -> None:
        self._group(key).thaw()
        self._commands.submit(
            self._argv(key, "delete", "--force", key),
            deadline_ns,
            partial(self._deleted, key, deadline_ns, done),
        )

    def _deleted(
        self, key: str, deadline_ns: int, done: Done[None], result: int | HalError
    ) -> None:
        if os.path.exists(f"{self._state_dir}/{key}"):
            if isinstance(result, HalError):
                self._forget(key)
                done(result)
                return
            # Half-made state that the runtime itself can't read any more.
            shutil.rmtree(f"{self._state_dir}/{key}", ignore_errors=True)
        self._sweep(key, deadline_ns, done, POLL_FIRST_NS)

    def _sweep(self, key: str, deadline_ns: int, done: Done[None], wait_ns: int) -> None:
        group = self._group(key)
        group.kill()
        left = group.remove()
        now_ns = self._reactor.now_ns()
        if left and now_ns < deadline_ns:
            next_ns = min(2 * wait_ns, POLL_LAST_NS)
            self._reactor.call_at(
                now_ns + wait_ns, lambda: self._sweep(key, deadline_ns, done, next_ns)
            )
            return
        shutil.rmtree(self._bundle(key), ignore_errors=True)
        self._forget(key)
        if left:
            done(DeadlinePassed(f"instance {key}: cgroups {', '.join(left)[:300]} stay populated"))
        else:
            done(None)

    def _forget(self, key: str) -> None:
        self._instances.pop(key, None)

    def _traces(self, key: str) -> bool:
        """Is anything here from an earlier run? Raises Refused for what can be no key."""
        if "/" in key or key in ("", ".", ".."):
            raise Refused(f"instance key {key[:80]!r}")
        return (
            os.path.exists(f"{self._state_dir}/{key}")
            or os.path.exists(self._bundle(key))
            or self._group(key).exists()
        )

    # --- the runtime's command line and words ---

    def _bundle(self, key: str) -> str:
        return f"{self._bundle_dir}/{key}"

    def _argv(self, key: str, *words: str) -> list[str]:
        log = f"{self._bundle(key)}/log"
        return [
            self._program, "--root", self._state_dir, "--log", log, "--log-format", "json", *words
        ]  # fmt: skip

    def _error(self, key: str, step: str, result: int | HalError) -> HalError:
        if isinstance(result, HalError):
            return result
        name = os.path.basename(self._program)
        return Refused(f"instance {key}: {name} {step} ended with {result}: {self._words(key)}")

    def _words(self, key: str) -> str:
        """The last error that the runtime logged for this instance."""
        try:
            with open(f"{self._bundle(key)}/log", "rb") as file:
                lines = file.read(_LOG_LIMIT_BYTES).splitlines()
        except OSError:
            return "no words"
        for line in reversed(lines):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                if entry["level"] in ("error", "fatal"):
                    return str(entry["msg"])[:WORDS_LIMIT]
        return "no words"


def _pipe() -> tuple[int, int]:
    try:
        read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    except OSError as exc:
        raise hal_error(exc, "output pipe") from exc
    os.set_blocking(read_fd, False)
    return read_fd, write_fd


def _peek(fd: int) -> str:
    """What was said before the end, on one line."""
    try:
        return " ".join(os.read(fd, WORDS_LIMIT).decode(errors="replace").split())
    except OSError:
        return ""


def _oom_score_adj() -> int:
    """Of the instance: our own protection (a negative score) is not handed on."""
    try:
        with open("/proc/self/oom_score_adj", encoding="ascii") as file:
            return max(0, int(file.read()))
    except (OSError, ValueError):
        return 0
