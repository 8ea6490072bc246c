"""A byte stream over a socket (unix(7)), ours or inherited by number."""

import errno
import os
import socket
from typing import Self

from hal.errors import LinkDown, Refused
from hal.linux.oserror import hal_error
from hal.ports import READ_LIMIT_BYTES, Buffer


class StreamSocket:
    """`hal.ports.ByteStream` over a stream socket. Owns it: `close` closes it."""

    def __init__(self, sock: socket.socket) -> None:
        if sock.type != socket.SOCK_STREAM:
            raise Refused(f"a byte stream needs SOCK_STREAM, found {sock.type!r}")
        sock.setblocking(False)
        self._sock = sock

    @classmethod
    def from_fd(cls, fd: int) -> Self:
        """Take over an inherited descriptor (and keep it from our own children).

        Raises Refused when it is not a stream socket; it stays open then.
        """
        try:
            os.set_inheritable(fd, False)
            sock = socket.socket(fileno=fd)
        except OSError as exc:
            raise Refused(f"descriptor {fd} is not a socket: {exc.strerror}") from exc
        try:
            return cls(sock)
        except Refused:
            sock.detach()
            raise

    @property
    def handle(self) -> int:
        return self._sock.fileno()

    def read(self) -> bytes:
        try:
            data = self._sock.recv(READ_LIMIT_BYTES)
        except BlockingIOError:
            return b""
        except OSError as exc:
            raise LinkDown(f"stream: read: {exc.strerror}") from exc
        if not data:
            raise LinkDown("stream: the far end closed it")
        return data

    def write(self, data: Buffer) -> int:
        if not len(data):
            return 0
        try:
            return self._sock.send(data, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return 0
        except OSError as exc:
            if exc.errno == errno.ENOBUFS:
                return 0
            raise LinkDown(f"stream: write of {len(data)} B: {exc.strerror}") from exc

    def close(self) -> None:
        self._sock.close()


def stream_pair() -> tuple[StreamSocket, int]:
    """A connected pair: our end, and the descriptor for the other process, not inheritable until
    it is named in `pass_fds`; the caller closes it after the spawn."""
    try:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError as exc:
        raise hal_error(exc, "socketpair") from exc
    return StreamSocket(ours), theirs.detach()
