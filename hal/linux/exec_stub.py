"""A small program between fork and exec: joins cgroups, mounts, drops rights, execs.

A multi-threaded Python must not run Python between fork and exec, so the child is this script
(`python -I -S exec_stub.py FD`, about 15 ms), single-threaded, told what to do by JSON in the
memfd FD. It imports nothing of ours. Just before the exec it writes READY to `status_fd`, which
the exec closes: READY and the end of file are the proof. When a step fails it writes one line,
`step: reason`, there (or to stderr) and exits with 127.

Ref: execve(2), mount(2), unshare(2), setgroups(2), cgroups(7), pivot_root(2).
"""

import contextlib
import ctypes
import errno
import json
import os
import resource
import signal
import socket
import stat
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Final

STUB_ARGV: Final = (sys.executable, "-I", "-S", "-B", "-X", "utf8", os.path.abspath(__file__))
EXEC_FAILED: Final = 127  # as a shell says it
READY: Final = b"+"  # on the status pipe: all is prepared, the exec is next

_CLONE_NEWNS: Final = 0x0002_0000  # <linux/sched.h>
_CLONE_NEWUTS: Final = 0x0400_0000
_MS_RDONLY: Final = 0x1  # <linux/mount.h>
_MS_NOSUID: Final = 0x2
_MS_NODEV: Final = 0x4
_MS_REMOUNT: Final = 0x20
_MS_BIND: Final = 0x1000
_MS_REC: Final = 0x4000
_MS_UNBINDABLE: Final = 0x2_0000
_MS_PRIVATE: Final = 0x4_0000
_MNT_DETACH: Final = 2
_PR_SET_NO_NEW_PRIVS: Final = 38  # <linux/prctl.h>
MIRROR_LIMIT: Final = 512  # entries of a directory that is mirrored to make a mount point in it
NEW_ROOT: Final = "/run"  # where a new root is built in the private namespace: exists everywhere
TMPFS: Final = "tmpfs"  # the source that asks for a fresh one

_libc: Final = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class StubConfig:
    """What the stub does, in this order."""

    argv: Sequence[str]
    env: Mapping[str, str]
    join: Sequence[str] = ()  # cgroup.procs files
    enter_pid: int = -1  # whose mount and UTS namespaces to enter
    rlimits: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # "NOFILE" -> (soft, hard)
    mounts: Sequence[tuple[str, str, bool]] = ()  # source or TMPFS, target, ro
    hostname: str = ""
    uid: int = -1  # -1: stay who we are
    gid: int = -1
    groups: Sequence[int] = ()
    cwd: str = "/"  # "" stays
    no_new_privileges: bool = False
    status_fd: int = -1


def stub_config_fd(config: StubConfig) -> int:
    """The memfd to pass on; the caller closes it after the spawn. Raises OSError."""
    fd = os.memfd_create("apf-exec", os.MFD_CLOEXEC)
    data = json.dumps(asdict(config)).encode()
    with open(os.dup(fd), "wb") as file:
        file.write(data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


class Mounter:
    """Binds volumes in a private mount namespace.

    A target that exists is mounted over. One that is missing is made on a *mirror* of the
    directory above it: a private tmpfs with every entry of that directory bound into it, so that
    the real file system keeps no trace. Where that directory is "/" the mirror becomes the new
    root. New entries which the program makes in a mirrored directory live in that tmpfs only.
    """

    def __init__(self) -> None:
        self._private: list[str] = []  # directories of which everything below is ours to make

    def run(self, mounts: Sequence[tuple[str, str, bool]]) -> None:
        """Raises OSError; `filename` is the target."""
        _libc_call("unshare", _CLONE_NEWNS)
        _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
        if any(not os.path.lexists("/" + target.split("/")[1]) for _, target, _ in mounts):
            _new_root()
        # After the new root (the old one's mounts are no sources any more), before a mirror or a
        # volume hides them.
        sources = [
            -1 if source == TMPFS else os.open(source, os.O_PATH | os.O_CLOEXEC)
            for source, _, _ in mounts
        ]
        for fd, (_, target, read_only) in sorted(
            zip(sources, mounts, strict=True), key=lambda pair: pair[1][1]
        ):
            try:
                self._bind(fd, target, read_only)
            except OSError as exc:
                raise OSError(exc.errno, exc.strerror or str(exc), target) from exc

    def _bind(self, fd: int, target: str, read_only: bool) -> None:
        is_dir = fd < 0 or stat.S_ISDIR(os.fstat(fd).st_mode)
        if not os.path.lexists(target):
            self._make(target, is_dir)
        if fd < 0:
            _mount("apf-tmpfs", target, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=1777")
            self._private.append(target)
            return
        _mount(f"/proc/self/fd/{fd}", target, None, _MS_BIND | _MS_REC)
        os.close(fd)
        if read_only:
            _mount("none", target, None, _MS_BIND | _MS_REMOUNT | _MS_RDONLY)

    def _make(self, target: str, is_dir: bool) -> None:
        above = os.path.dirname(target)
        while not os.path.isdir(above):
            above = os.path.dirname(above)
        inside = (above == own or above.startswith(f"{own}/") for own in self._private)
        if above != "/" and not any(inside):
            _mirror(above, above)
        first = target[len(above.rstrip("/")) + 1 :].split("/")[0]
        self._private.append(f"{above.rstrip('/')}/{first}")
        if is_dir:
            os.makedirs(target, 0o755)
        else:
            os.makedirs(os.path.dirname(target), 0o755, exist_ok=True)
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))


def _new_root() -> None:
    """Make a mirror of "/" the root. pivot_root(2), "pivot_root(".", ".")": the old root then
    lies on top of the new one, and goes."""
    _mirror("/", NEW_ROOT)
    os.chdir(NEW_ROOT)
    _libc_call("pivot_root", b".", b".")
    _libc_call("umount2", b".", _MNT_DETACH)
    os.chdir("/")


def _mirror(directory: str, onto: str) -> None:
    names = os.listdir(directory)
    if len(names) > MIRROR_LIMIT:
        raise OSError(
            errno.E2BIG, f"{directory} has {len(names)} entries, at most {MIRROR_LIMIT} can be kept"
        )
    info = os.stat(directory)
    flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
    fds = {name: os.open(f"{directory}/{name}", flags) for name in names}
    _mount("apf-mirror", onto, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=755,size=1m")
    # Unbindable: where `onto` lies below `directory`, it must not be bound into itself.
    _mount("none", onto, None, _MS_UNBINDABLE)
    os.chmod(onto, info.st_mode & 0o7777)
    os.chown(onto, info.st_uid, info.st_gid)
    for name, fd in fds.items():
        there, mode = f"{onto}/{name}", os.fstat(fd).st_mode
        if stat.S_ISLNK(mode):
            os.symlink(os.readlink("", dir_fd=fd), there)
        else:
            if stat.S_ISDIR(mode):
                os.mkdir(there)
            else:
                os.close(os.open(there, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC))
            # Through the descriptor: its name may be hidden by the mirror by now.
            _mount(f"/proc/self/fd/{fd}", there, None, _MS_BIND | _MS_REC)
        os.close(fd)


def _libc_call(name: str, *arguments: object) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


def _mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    _libc_call(
        "mount",
        os.fsencode(source),
        os.fsencode(target),
        kind.encode() if kind else None,
        ctypes.c_ulong(flags),
        data.encode() or None,
    )


def _prepare(config: StubConfig) -> Iterator[tuple[str, Callable[[], object]]]:
    """The steps before the exec, each with its name for the error."""
    for path in config.join:
        yield f"join {path}", partial(_write, path, "0")
    yield "signals", _default_signals
    yield "umask", partial(os.umask, 0o022)
    if config.enter_pid >= 0:
        yield f"namespaces of {config.enter_pid}", partial(_enter, config.enter_pid)
    if config.mounts:
        yield "mount", partial(Mounter().run, config.mounts)
    if config.hostname:
        yield "hostname", partial(_set_hostname, config.hostname)
    for name, (soft, hard) in config.rlimits.items():
        which = getattr(resource, f"RLIMIT_{name}")
        yield f"rlimit {name}", partial(resource.setrlimit, which, (soft, hard))
    if config.uid >= 0:
        yield "groups", partial(os.setgroups, config.groups)
        yield "gid", partial(os.setresgid, config.gid, config.gid, config.gid)
        yield "uid", partial(os.setresuid, config.uid, config.uid, config.uid)
    if config.no_new_privileges:
        yield "no_new_privs", partial(_libc_call, "prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if config.cwd:
        yield f"cwd {config.cwd}", partial(os.chdir, config.cwd)
    if config.status_fd >= 0:
        yield "ready", partial(os.write, config.status_fd, READY)
    program, argv, env = config.argv[0], list(config.argv), dict(config.env)
    yield f"exec {program!r}", partial(os.execvpe, program, argv, env)


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _enter(pid: int) -> None:
    for kind, flag in (("uts", _CLONE_NEWUTS), ("mnt", _CLONE_NEWNS)):
        fd = os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
        _libc_call("setns", fd, flag)
        os.close(fd)


def _set_hostname(name: str) -> None:
    _libc_call("unshare", _CLONE_NEWUTS)
    socket.sethostname(name)


def _default_signals() -> None:
    """Ignored and blocked signals survive an exec; the program gets them as after boot."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        with contextlib.suppress(OSError, ValueError):  # those the C library keeps to itself
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def main(config_fd: int) -> int:
    """Ends only when a step fails."""
    with open(config_fd, "rb") as file:
        config = StubConfig(**json.load(file))
    if config.status_fd >= 0:
        os.set_inheritable(config.status_fd, False)
    step = "start"
    try:
        for name, call in _prepare(config):
            step = name
            call()
    except (OSError, ValueError) as exc:
        line = f"{step}: {exc}\n".encode(errors="replace")
        os.write(config.status_fd if config.status_fd >= 0 else 2, line)
    return EXEC_FAILED


if __name__ == "__main__":
    os._exit(main(int(sys.argv[1])))
