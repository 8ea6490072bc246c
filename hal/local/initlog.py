"""The bounded file that an init's stdout and stderr go to."""

import contextlib
import os
from pathlib import Path
from typing import Final

from hal.local.miniloop import MiniLoop
from hal.ports import Event

LOG_LIMIT_BYTES: Final = 1 << 20  # of one file; the one before it is kept as init.log.1
_READ_BYTES: Final = 65536


class InitLog:
    """Copies a pipe into `path`. Full: the file becomes `path.1` and a new one begins."""

    def __init__(self, loop: MiniLoop, pipe_fd: int, path: Path) -> None:
        self._loop, self._pipe_fd, self._path = loop, pipe_fd, path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file_fd = self._open()
        self._size_bytes = 0
        loop.watch(pipe_fd, Event.READ, self._on_ready)

    def close(self) -> None:
        """Take what is still in the pipe (64 KiB at most) and let go of it."""
        if self._pipe_fd >= 0:
            self._take()
        self._drop_pipe()
        if self._file_fd >= 0:
            os.close(self._file_fd)
            self._file_fd = -1

    def _on_ready(self, _event: Event) -> None:
        if not self._take():
            self._drop_pipe()

    def _take(self) -> bool:
        try:
            data = os.read(self._pipe_fd, _READ_BYTES)
        except BlockingIOError:
            return True
        if self._size_bytes + len(data) > LOG_LIMIT_BYTES and not self._begin_anew():
            return bool(data)
        try:
            os.write(self._file_fd, data)
        except OSError:
            return bool(data)  # no space for words of a CNM: they are lost, the CNM goes on
        self._size_bytes += len(data)
        return bool(data)

    def _begin_anew(self) -> bool:
        """False when that can't be now (no descriptor): words are lost, the CNM goes on."""
        try:
            with contextlib.suppress(FileNotFoundError):  # moved at the last try
                os.replace(self._path, f"{self._path}.1")
            fresh = self._open()
        except OSError:
            return False
        os.close(self._file_fd)
        self._file_fd, self._size_bytes = fresh, 0
        return True

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        return os.open(self._path, flags, 0o640)

    def _drop_pipe(self) -> None:
        if self._pipe_fd >= 0:
            self._loop.unwatch(self._pipe_fd)
            os.close(self._pipe_fd)
            self._pipe_fd = -1
