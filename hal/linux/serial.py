"""A serial line over pyserial: a UART, a USB adapter or a pty, raw, 8N1, without flow control.

pyserial sets the line up (baud rate, raw mode, the flock that keeps a second user out); bytes move
by plain reads and writes of the descriptor, because pyserial's own hide partial writes. Opening
drops input that came before it (pyserial does so): a peer must be able to repeat itself.
"""

import os
import select
from typing import Final

import serial

from hal.errors import LinkDown, Refused, Unavailable
from hal.ports import READ_LIMIT_BYTES, Buffer

BAUD_MIN: Final = 300
BAUD_MAX: Final = 4_000_000  # the fastest that termios names (B4000000)


class SerialLine:
    """ByteStream port on one tty. Raises Unavailable when it can't be opened or is in use."""

    def __init__(self, path: str, *, baud: int) -> None:
        if not BAUD_MIN <= baud <= BAUD_MAX:
            raise Refused(f"{path}: baud rate {baud} is outside {BAUD_MIN}..{BAUD_MAX}")
        self.path = path
        try:
            self._port = serial.Serial(
                path, baud, timeout=0, write_timeout=0, exclusive=True, xonxoff=False, rtscts=False
            )
        except (serial.SerialException, ValueError, OSError) as exc:
            # ValueError: a rate that the driver does not take
            raise Unavailable(f"opening serial line {path} at {baud} baud: {exc}") from exc
        self._fd: int = self._port.fileno()
        os.set_blocking(self._fd, False)
        self._poll = select.poll()
        self._poll.register(self._fd, 0)  # hang-up and error are reported always
        self._closed = False

    @property
    def handle(self) -> int:
        return self._fd

    def read(self) -> bytes:
        self._check_open()
        try:
            data = os.read(self._fd, READ_LIMIT_BYTES)
        except BlockingIOError:
            return b""
        except OSError as exc:  # EIO: the master of a pty is gone, or the device was pulled
            raise LinkDown(f"{self.path}: read: {exc}") from exc
        if not data and self._poll.poll(0):
            # VMIN = VTIME = 0: an idle line reads as empty, and so does a hung-up one
            raise LinkDown(f"{self.path}: hung up")
        return data

    def write(self, data: Buffer) -> int:
        self._check_open()
        if not len(data):
            return 0
        try:
            return os.write(self._fd, data)
        except BlockingIOError:
            return 0
        except OSError as exc:
            raise LinkDown(f"{self.path}: write: {exc}") from exc

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._port.close()

    def _check_open(self) -> None:
        if self._closed:
            raise LinkDown(f"{self.path}: was closed on this side")
