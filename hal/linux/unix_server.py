"""A UNIX stream socket to listen on: credentials, descriptors, and no stale file in the way.

Ref: unix(7) (SO_PEERCRED, SCM_RIGHTS, 108-byte paths); SO_PEERGROUPS is Linux 4.13.
"""

import array
import contextlib
import errno
import grp
import os
import socket
import stat
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from hal.errors import HalError, LinkDown, Refused, StoreFull, Unavailable
from hal.ports import Buffer
from hal.service_ports import PeerCredentials

READ_BYTES: Final = 65536
READ_FDS: Final = 4  # more than any request of ours carries
PATH_LIMIT_BYTES: Final = 107  # sun_path is 108 with its NUL
LISTEN_BACKLOG: Final = 64
TURNED_AWAY_AT_ONCE: Final = 16  # when there is no descriptor for them
SO_PEERGROUPS: Final = 59  # asm-generic/socket.h; x86, ARM and RISC-V
_UCRED: Final = struct.Struct("3i")
_GROUPS_BYTES: Final = (256 * 4, 65536 * 4)  # NGROUPS_MAX is 65536


def group_id(name: str) -> int | None:
    """The gid of a group of this host, or None when there is no such group."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None


def _peer_groups(sock: socket.socket) -> frozenset[int]:
    for size in _GROUPS_BYTES:
        try:
            raw = sock.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, size)
        except OSError as exc:
            if exc.errno == errno.ERANGE:
                continue
            return frozenset()  # an older kernel: only the primary group counts
        return frozenset(array.array("I", raw))
    return frozenset()


class UnixConnection:
    """One accepted connection (StreamConnection)."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        pid, uid, gid = _UCRED.unpack(
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        )
        self._peer = PeerCredentials(pid=pid, uid=uid, gid=gid, groups=_peer_groups(sock))

    @property
    def handle(self) -> int:
        return self._sock.fileno()

    @property
    def peer(self) -> PeerCredentials:
        return self._peer

    def read(self) -> tuple[bytes, Sequence[int]]:
        try:
            data, ancillary, flags, _ = self._sock.recvmsg(
                READ_BYTES, socket.CMSG_SPACE(READ_FDS * 4), socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return b"", ()
        except OSError as exc:
            raise LinkDown(f"control connection of pid {self._peer.pid}: {exc}") from exc
        fds = array.array("i")
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
        if flags & socket.MSG_CTRUNC:  # the kernel dropped some: what is left is not the request
            self.discard(fds)
            raise Refused(f"more than {READ_FDS} descriptors came with one message")
        if not data:
            self.discard(fds)
            raise LinkDown(f"pid {self._peer.pid} closed its control connection")
        return data, tuple(fds)

    def write(self, data: Buffer) -> int:
        try:
            return self._sock.send(data, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return 0
        except OSError as exc:
            raise LinkDown(f"control connection of pid {self._peer.pid}: {exc}") from exc

    def discard(self, fds: Sequence[int]) -> None:
        for fd in fds:
            with contextlib.suppress(OSError):  # closed is what we want it to be
                os.close(fd)

    def close(self) -> None:
        self._sock.close()


class UnixServer:
    """A listening UNIX socket (StreamServer).

    The socket is made beside its place and renamed into it, so that nobody ever sees it with
    another mode or not yet listening. One that is there already is replaced only when nobody
    answers on it.

    One descriptor is kept in reserve: when there is none left for those who wait, it is given up
    for as long as it takes to tell them so.
    """

    def __init__(
        self, path: str, *, mode: int = 0o660, gid: int | None = None, full_answer: bytes = b""
    ) -> None:
        """`full_answer`: what those are told for whom there is no descriptor; without it they
        wait. Raises Refused for a path that is too long or no socket, Unavailable when another
        process listens there or the directory can't be written."""
        self._path = path
        self._full_answer = full_answer
        self._spare_fd = -1
        place = os.fsencode(path)
        fresh = f"{path}.{os.getpid()}"
        if len(os.fsencode(fresh)) > PATH_LIMIT_BYTES:
            raise Refused(
                f"socket path {path!r} is {len(place)} bytes; with the pid it may have at most "
                f"{PATH_LIMIT_BYTES}: choose a shorter APF_RUN"
            )
        self._check_place()
        self._sock = socket.socket(
            socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        )
        try:
            Path(fresh).unlink(missing_ok=True)
            self._sock.bind(fresh)
            Path(fresh).chmod(mode)
            if gid is not None:
                os.chown(fresh, -1, gid)
            self._sock.listen(LISTEN_BACKLOG)
            self._inode = Path(fresh).stat().st_ino
            Path(fresh).rename(path)
        except OSError as exc:
            self._sock.close()
            raise Unavailable(f"control socket {path}: {exc}") from exc
        self._keep_spare()

    def _check_place(self) -> None:
        try:
            found = os.lstat(self._path)
        except FileNotFoundError:
            return
        except OSError as exc:
            raise Unavailable(f"control socket {self._path}: {exc}") from exc
        if not stat.S_ISSOCK(found.st_mode):
            raise Refused(f"{self._path} exists and is no socket: move it away")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
            try:
                probe.connect(self._path)
            except (ConnectionRefusedError, FileNotFoundError):
                return  # left over by a process that is gone
            except BlockingIOError:
                pass  # its backlog is full: somebody is there
            except OSError as exc:
                raise Unavailable(f"control socket {self._path}: {exc}") from exc
        raise Unavailable(f"another process listens on {self._path}: stop it first (apf down)")

    @property
    def handle(self) -> int:
        return self._sock.fileno()

    def accept(self) -> UnixConnection | None:
        try:
            sock, _ = self._sock.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return None
        except OSError as exc:
            if exc.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                self._turn_away()
                raise StoreFull(f"no descriptor left for a control connection: {exc}") from exc
            raise HalError(f"accept on {self._path}: {exc}") from exc
        sock.setblocking(False)
        self._keep_spare()
        return UnixConnection(sock)

    def _keep_spare(self) -> None:
        if self._full_answer and self._spare_fd < 0:
            with contextlib.suppress(OSError):  # none to spare: tried again at the next chance
                self._spare_fd = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)

    def _turn_away(self) -> None:
        """Accept with the descriptor in reserve, say why not, hang up."""
        self._keep_spare()
        if self._spare_fd < 0:
            return
        os.close(self._spare_fd)
        self._spare_fd = -1
        with contextlib.suppress(OSError):  # nobody is left, or another thread was faster
            for _ in range(TURNED_AWAY_AT_ONCE):
                sock, _ = self._sock.accept()
                with sock, contextlib.suppress(OSError):  # it need not listen
                    sock.send(self._full_answer, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
        self._keep_spare()

    def close(self) -> None:
        """Stop listening; the file goes too unless a successor has put its own there."""
        with contextlib.suppress(FileNotFoundError):
            if os.lstat(self._path).st_ino == self._inode:
                Path(self._path).unlink()
        self._sock.close()
        if self._spare_fd >= 0:
            os.close(self._spare_fd)
            self._spare_fd = -1
