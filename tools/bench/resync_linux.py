"""The receiver of Linux's `mctp-serial`, as reference "mctp" 4.3 describes it, for comparison.

A model for figures, byte by byte; nothing of ours reads a line with it. Its limits are kept: an
error is left only at a flag, which is used up, and the place in the head is kept over an error.
"""

from enum import Enum
from typing import Final

from protocol.crc import fcs16, fcs16_seed0
from protocol.mctp.serial_frame import ESCAPE, FLAG, REVISION, Dialect

MAX_COUNT: Final = 74
BUFFER_BYTES: Final = 74  # what comes behind it is written nowhere here


class _State(Enum):
    HEAD = 0
    DATA = 1
    ESCAPED = 2
    TAIL = 3
    ERROR = 4


class LinuxReceiver:
    """Dialect A as it is now, dialect D as it was."""

    def __init__(self, dialect: Dialect) -> None:
        self._sum = fcs16_seed0 if dialect is Dialect.D else fcs16
        self._state = _State.HEAD
        self._place = 0  # in the head, in the data, in the tail
        self._count = 0
        self._data = bytearray()
        self._fcs = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The packets that these bytes complete."""
        packets: list[bytes] = []
        for byte in data:
            match self._state:
                case _State.HEAD:
                    self._head(byte)
                case _State.DATA if byte == ESCAPE:
                    self._state = _State.ESCAPED
                case _State.DATA:
                    self._body(byte)
                case _State.ESCAPED:
                    self._state = _State.DATA
                    self._body(byte | 0x20)
                case _State.TAIL:
                    self._tail(byte, packets)
                case _State.ERROR if byte == FLAG:
                    self._state = _State.HEAD
        return packets

    def _head(self, byte: int) -> None:
        wrong = (
            (self._place == 0 and byte != FLAG)
            or (self._place == 1 and byte != REVISION)
            or (self._place == 2 and byte > MAX_COUNT)
        )
        if wrong:
            self._state = _State.ERROR  # and the place stays
        elif self._place < 2:
            self._place += 1
        else:
            self._count, self._place = byte, 0
            self._data.clear()
            self._state = _State.DATA

    def _body(self, byte: int) -> None:
        if self._place < BUFFER_BYTES:
            self._data.append(byte)
        self._place += 1
        if self._place == self._count:
            self._place = 0
            self._state = _State.TAIL

    def _tail(self, byte: int, packets: list[bytes]) -> None:
        if self._place < 2:
            self._fcs = (self._fcs << 8 | byte) & 0xFFFF
            self._place += 1
            return
        if byte != FLAG:
            self._state = _State.ERROR
            return
        self._place = 0
        self._state = _State.HEAD
        covered = bytes((REVISION, self._count)) + self._data
        if self._fcs == self._sum(covered):
            packets.append(bytes(self._data))
