"""Starting a CNM's init: PID 1 of new pid and mount namespaces, by clone3 (Python 3.11 has none).

The parent has one thread, and the child runs a few system calls and execs, so the copy of the
interpreter is safe to use until then.
Ref: clone(2), prctl(2) PR_SET_PDEATHSIG, pid_namespaces(7); linux/sched.h.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import select
import signal
import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from hal.errors import HalError, Unavailable
from hal.local import libc

_SYS_CLONE3: Final = 435  # the same on every architecture
_CLONE_NEWNS: Final = 0x0002_0000
_CLONE_NEWPID: Final = 0x2000_0000
_CLONE_PIDFD: Final = 0x0000_1000
_CLONE_INTO_CGROUP: Final = 0x2_0000_0000  # v2 only
_ERRNO_BYTES: Final = 4
# struct clone_args, version 2: flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size,
# tls, set_tid, set_tid_size, cgroup
_CLONE_ARGS: Final = struct.Struct("=11Q")
KEEPER_FD: Final = 3  # the init's socket to the keeper


@dataclass(frozen=True, slots=True, kw_only=True)
class InitSpec:
    """argv[0] must be absolute. `cgroup` is a directory of the v2 tree."""

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: str
    namespaces: bool
    cgroup: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StartedInit:
    """Descriptors are the caller's. `exec_fd` ends at the exec, or gives the errno before it."""

    pid: int
    pidfd: int
    exec_fd: int
    log_fd: int  # its stdout and stderr
    sock: socket.socket  # its descriptor 3


def start_init(spec: InitSpec) -> StartedInit:
    """Fork and exec it. Raises Unavailable when the host does not let us."""
    with contextlib.ExitStack() as undo:
        try:
            own, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.callback(own.close)
            undo.callback(theirs.close)
            exec_read, exec_write = os.pipe()
            undo.callback(os.close, exec_read)
            undo.callback(os.close, exec_write)
            log_read, log_write = os.pipe()
        except OSError as exc:
            raise Unavailable(f"starting {spec.argv[0]}: {exc}") from exc
        undo.pop_all()
    own.setblocking(False)
    cgroup_fd = -1
    try:
        if spec.cgroup is not None:
            cgroup_fd = os.open(spec.cgroup, os.O_DIRECTORY | os.O_CLOEXEC)
        keeper_pidfd = os.pidfd_open(os.getpid())
        try:
            pid, pidfd = _fork(namespaces=spec.namespaces, cgroup_fd=cgroup_fd)
            if pid == 0:
                _child(spec, theirs.fileno(), log_write, exec_write, keeper_pidfd)
        finally:
            os.close(keeper_pidfd)
    except OSError as exc:
        own.close()
        for fd in (exec_read, log_read):
            os.close(fd)
        raise Unavailable(f"starting {spec.argv[0]}: {exc}") from exc
    finally:
        theirs.close()
        for fd in (exec_write, log_write):
            os.close(fd)
        if cgroup_fd >= 0:
            os.close(cgroup_fd)
    for fd in (exec_read, log_read):
        os.set_blocking(fd, False)
    return StartedInit(pid=pid, pidfd=pidfd, exec_fd=exec_read, log_fd=log_read, sock=own)


def why_no_namespaces(cgroup: Path | None) -> str:
    """Try a child in new pid and mount namespaces; "" when it works, else what was missing."""
    spec = InitSpec(
        argv=["/proc/self/exe", "-c", ""],  # never run to its end
        env={},
        cwd="/",
        namespaces=True,
        cgroup=cgroup,
    )
    try:
        started = start_init(spec)
    except HalError as exc:
        return str(exc)
    os.set_blocking(started.exec_fd, True)
    words = exec_error(os.read(started.exec_fd, _ERRNO_BYTES))
    signal.pidfd_send_signal(started.pidfd, signal.SIGKILL)
    os.waitid(os.P_PIDFD, started.pidfd, os.WEXITED)
    for fd in (started.exec_fd, started.log_fd, started.pidfd):
        os.close(fd)
    started.sock.close()
    return words


def exec_error(data: bytes) -> str:
    """What came from `exec_fd` in words; "" when the exec happened."""
    return os.strerror(int.from_bytes(data, "little")) if data else ""


def _fork(*, namespaces: bool, cgroup_fd: int) -> tuple[int, int]:
    """(pid, pidfd) in the parent, (0, -1) in the child. Raises OSError."""
    if not namespaces and cgroup_fd < 0:
        pid = os.fork()
        return pid, os.pidfd_open(pid) if pid else -1
    pidfd = ctypes.c_int(-1)
    flags = _CLONE_PIDFD
    flags |= _CLONE_NEWPID | _CLONE_NEWNS if namespaces else 0
    flags |= _CLONE_INTO_CGROUP if cgroup_fd >= 0 else 0
    address = ctypes.addressof(pidfd)
    packed = _CLONE_ARGS.pack(flags, address, 0, 0, signal.SIGCHLD, *[0] * 5, max(cgroup_fd, 0))
    args = ctypes.create_string_buffer(packed, len(packed))
    size = ctypes.c_size_t(len(packed))
    pid = libc.LIBC.syscall(ctypes.c_long(_SYS_CLONE3), args, size)
    if pid < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"clone3: {os.strerror(code)}")
    if pid:
        # A pidfd is close-on-exec from the kernel; Python knows no other way to have it.
        return pid, pidfd.value
    return 0, -1


def _child(spec: InitSpec, sock: int, log: int, status: int, keeper_pidfd: int) -> NoReturn:
    """In the child: never returns into the parent's stack."""
    try:
        _enter(spec, sock, log, status, keeper_pidfd)
    except OSError as exc:
        os.write(KEEPER_FD + 1, (exc.errno or errno.EIO).to_bytes(_ERRNO_BYTES, "little"))
    finally:
        os._exit(127)


def _enter(spec: InitSpec, sock: int, log: int, status: int, keeper_pidfd: int) -> None:
    # Out of the way of the numbers that they get below.
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 16) for fd in (sock, log, status, keeper_pidfd)]
    sock, log, status, keeper_pidfd = high
    os.dup2(status, KEEPER_FD + 1, inheritable=False)  # first: errors go there
    null = os.open(os.devnull, os.O_RDONLY)
    for fd, target in ((null, 0), (log, 1), (log, 2), (sock, KEEPER_FD)):
        os.dup2(fd, target, inheritable=True)
    os.setsid()
    libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
    dead = select.poll()
    dead.register(keeper_pidfd, select.POLLIN)
    if dead.poll(0):  # the keeper died before the line above, so no signal will come
        os._exit(127)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores these; an exec keeps that
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.umask(0o022)
    if spec.namespaces:
        libc.mount("none", "/", None, libc.MS_REC | libc.MS_PRIVATE)
        libc.mount("proc", "/proc", "proc", libc.MS_NOSUID | libc.MS_NODEV | libc.MS_NOEXEC)
    os.chdir(spec.cwd)
    # Everything of the keeper's is close-on-exec; this is for what it inherited itself.
    os.set_inheritable(KEEPER_FD + 1, False)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > KEEPER_FD + 1:
            _set_cloexec(int(name))
    os.execve(spec.argv[0], list(spec.argv), dict(spec.env))  # noqa: S606  (no shell is the point)


def _set_cloexec(fd: int) -> None:
    try:
        os.set_inheritable(fd, False)
    except OSError as exc:
        if exc.errno != errno.EBADF:  # the listing's own descriptor, closed by now
            raise
