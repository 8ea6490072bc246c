"""The process's own stdout and stderr: what happens when nobody takes what is written there.

Python's streams report a full disk or a reader that has gone by an OSError out of any write or
flush, that of the exit too; click makes 1 out of a closed pipe. Here descriptor 1 says it once, by
an exception of its own that can't be mistaken for a file's, and what follows goes nowhere. What
descriptor 2 does not take is dropped: there is nobody left to tell, and the exit code stands.
"""

import io
import os
import sys
from typing import Any, Final, TextIO

STDOUT_FD: Final = 1
STDERR_FD: Final = 2


class StdoutFailed(Exception):
    """Data was not taken; `errno` and `strerror` are those of the write."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(f"stdout: {cause.strerror}")
        self.errno = cause.errno
        self.strerror = cause.strerror


class _Descriptor(io.FileIO):
    """A standard stream's raw end. It stays open: it is not ours to close."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd, "w", closefd=False)

    def write(self, data: Any) -> Any:
        if not memoryview(data).nbytes:  # click asks so whether a stream takes bytes
            return 0
        try:
            return super().write(data)
        except OSError as exc:
            self._into_the_void()
            if self.fileno() == STDOUT_FD:
                raise StdoutFailed(exc) from exc
            return memoryview(data).nbytes

    def _into_the_void(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)


def guard_streams() -> None:
    """Put the guarded streams in place; for the process that is a command, once."""
    sys.stdout = _guarded(sys.stdout, STDOUT_FD)
    sys.stderr = _guarded(sys.stderr, STDERR_FD)


def _guarded(stream: TextIO | None, fd: int) -> TextIO:
    if stream is None:  # closed before the start (`>&-`)
        return open(os.devnull, "w", encoding="utf-8")
    unbuffered = getattr(stream, "write_through", False)  # python -u
    raw = _Descriptor(fd)
    return io.TextIOWrapper(
        raw if unbuffered else io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=getattr(stream, "line_buffering", False),
        write_through=unbuffered,
    )
