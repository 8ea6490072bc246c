"""Collects the first bytes of what a short command says. Loop thread only."""

import os
from typing import Final

from hal.linux.oserror import hal_error
from hal.ports import Event, Reactor

_STEP_BYTES: Final = 65_536
_READS_A_TURN: Final = 16  # a command that floods us must not hold the loop up


class Output:
    """A pipe whose write end goes to a command. What comes beyond the limit is thrown away, so
    that the command never blocks on it."""

    def __init__(self, reactor: Reactor, limit_bytes: int) -> None:
        """Raises Unavailable without descriptors."""
        self._reactor = reactor
        self._limit_bytes = limit_bytes
        self._data = bytearray()
        try:
            self._fd, self.write_fd = os.pipe2(os.O_CLOEXEC)
        except OSError as exc:
            raise hal_error(exc, "pipe") from exc
        os.set_blocking(self._fd, False)
        reactor.watch(self._fd, Event.READ, lambda _: self._read())

    def started(self) -> None:
        """The command has its own copy of the write end now."""
        if self.write_fd >= 0:
            os.close(self.write_fd)
            self.write_fd = -1

    def finish(self) -> bytes:
        """What came; descendants of the command that hold the pipe open are not waited for."""
        self.started()
        self._read()
        self._stop()
        return bytes(self._data)

    def _read(self) -> None:
        for _ in range(_READS_A_TURN):
            if self._fd < 0:
                return
            try:
                piece = os.read(self._fd, _STEP_BYTES)
            except BlockingIOError:
                return
            if not piece:
                self._stop()
                return
            self._data += piece[: self._limit_bytes - len(self._data)]

    def _stop(self) -> None:
        if self._fd >= 0:
            self._reactor.unwatch(self._fd)
            os.close(self._fd)
            self._fd = -1
