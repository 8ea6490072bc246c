"""The read end of a pipe as a byte stream: what an instance writes to its stdout. Ref: pipe(7)."""

import os

from hal.errors import LinkDown, Refused
from hal.linux.oserror import hal_error
from hal.ports import READ_LIMIT_BYTES, Buffer


class PipeReader:
    """`hal.ports.ByteStream` that only reads. Owns the descriptor: `close` closes it."""

    def __init__(self, fd: int) -> None:
        """Raises Unavailable for a descriptor that is not open."""
        try:
            os.set_blocking(fd, False)
            os.set_inheritable(fd, False)
        except OSError as exc:
            raise hal_error(exc, f"pipe {fd}") from exc
        self._fd = fd

    @property
    def handle(self) -> int:
        return self._fd

    def read(self) -> bytes:
        """LinkDown once the last writer is gone and everything was read."""
        try:
            data = os.read(self._fd, READ_LIMIT_BYTES)
        except BlockingIOError:
            return b""
        except OSError as exc:
            raise LinkDown(f"pipe: read: {exc.strerror}") from exc
        if not data:
            raise LinkDown("pipe: the last writer closed it")
        return data

    def write(self, data: Buffer) -> int:
        """Raises Refused: it has no other end to write to."""
        raise Refused(f"pipe: {len(data)} B to a read end")

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
