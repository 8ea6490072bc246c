"""What every model of an SMBus device shares: bytes in, bytes out, as they are on the wire.

    begin(read)   a (repeated) start and its address byte: acknowledged?
    put(byte)     a byte from the controller: acknowledged?
    get()         a byte to the controller; 0xff when the device lets the line float
    end()         a stop

Ref: System Management Bus Specification 3.1, 6.5 and 6.4 (packet error code).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from fastcrc import crc8

MAX_WRITE_BYTES: Final = 512  # of one message; a device takes no more


class Model:
    """A device that acknowledges its address and nothing else."""

    def __init__(self, address: int) -> None:
        self.address = address
        self.journal: list[bytes] = []  # whole writes as they came, the last JOURNAL of them

    def begin(self, read: bool) -> bool:
        return True

    def put(self, byte: int) -> bool:
        return False

    def get(self) -> int:
        return 0xFF

    def end(self) -> None:
        pass


JOURNAL: Final = 256
Hook = Callable[[], None]


@dataclass(slots=True)
class Register:
    """One register: its bytes in the order of the wire.

    A `block` register is sent with its count, and taken with one. Writes change only the bits of
    `writable` (all, when empty); `refresh` is called before it is read, `written` after a write.
    """

    data: bytes
    read_only: bool = False
    block: bool = False
    writable: bytes = b""
    refresh: Hook | None = None
    written: Hook | None = None
    process: Callable[[bytes], bytes] | None = None  # a (block) process call: answer to the data


@dataclass(slots=True)
class _Write:
    command: int | None = None
    data: bytearray = field(default_factory=bytearray)
    refused: bool = False


class RegisterModel(Model):
    """A device with a register pointer, and packet error codes where it has them.

    An unknown register is not acknowledged, as most parts do; `lenient` ones give 0xff.
    """

    def __init__(self, address: int, *, pec: bool = False, lenient: bool = False) -> None:
        super().__init__(address)
        self.registers: dict[int, Register] = {}
        self.pec = pec
        self.lenient = lenient
        self.pointer = 0
        self.refused: set[int] = set()  # commands that are not acknowledged (fault B5)
        self.frozen = False  # `refresh` is not called any more: a stuck sensor
        self.wrong_pec = 0  # so many answers carry a wrong one (fault B6)
        self.wrong_count = 0  # so many blocks carry a wrong count (fault B8)
        self._crc = 0
        self._write = _Write()
        self._answer: list[int] | None = None
        self._sent = 0

    # --- for tests and faults ---

    def poke(self, command: int, data: bytes) -> None:
        """Set a register from outside, as the world does."""
        self.registers[command].data = data

    def peek(self, command: int) -> bytes:
        return self.registers[command].data

    # --- the wire ---

    def begin(self, read: bool) -> bool:
        first = self.address << 1 | int(read)
        if read:
            self._crc = crc8.smbus(bytes([first]), self._crc)
            self._answer = None
            self._sent = 0
        else:
            self._crc = crc8.smbus(bytes([first]))
            self._write = _Write()
        return True

    def put(self, byte: int) -> bool:
        taken = not self._write.refused and self._take(byte)
        self._write.refused = not taken
        return taken

    def _take(self, byte: int) -> bool:
        write = self._write
        if write.command is None:
            if byte in self.refused or not self.knows(byte):
                return False
            write.command = self.pointer = byte
            self._crc = crc8.smbus(bytes([byte]), self._crc)
            return True
        if len(write.data) >= MAX_WRITE_BYTES:
            return False
        write.data.append(byte)
        room = self._room(write)
        if self.pec and len(write.data) == room + 1:
            return byte == self._crc  # the last byte is the code; a wrong one is refused
        if len(write.data) > room:
            return False
        self._crc = crc8.smbus(bytes([byte]), self._crc)
        return True

    def get(self) -> int:
        if self._answer is None:
            self._answer = self._answer_bytes()
        if self._sent < len(self._answer):
            byte = self._answer[self._sent]
            self._sent += 1
            self._crc = crc8.smbus(bytes([byte]), self._crc)
            return byte
        if self._sent == len(self._answer) and self.pec:
            self._sent += 1
            if self.wrong_pec:
                self.wrong_pec -= 1
                return self._crc ^ 0x5A
            return self._crc
        return 0xFF

    def end(self) -> None:
        write, self._write = self._write, _Write()
        self._crc = 0
        if write.command is None or write.refused:
            return
        self.journal.append(bytes([write.command]) + bytes(write.data))
        del self.journal[:-JOURNAL]
        register = self.registers.get(write.command)
        if register is None or self._answer is not None:
            self._answer = None
            return
        room = self._room(write)
        if self.pec and len(write.data) > room:
            del write.data[room:]
        self.store(write.command, register, bytes(write.data))

    # --- what a device may do its own way ---

    def knows(self, command: int) -> bool:
        return self.lenient or command in self.registers

    def store(self, command: int, register: Register, data: bytes) -> None:
        """A write has ended. One that is too short changes nothing."""
        if register.block:
            data = data[1:]
        elif len(data) != len(register.data):
            data = b""
        if register.read_only or register.process is not None:
            return
        if data:
            mask = register.writable or b"\xff" * len(data)
            old = register.data.ljust(len(data), b"\0")
            register.data = bytes(
                new & m | was & ~m & 0xFF for new, was, m in zip(data, old, mask, strict=False)
            )
        elif register.data:
            return  # the pointer was set, nothing written
        if register.written is not None:
            register.written()

    def _room(self, write: _Write) -> int:
        """Bytes of data that its register takes."""
        register = self.registers.get(write.command or 0)
        if register is None:
            return 0 if not self.lenient else MAX_WRITE_BYTES
        if register.block:
            return 1 + write.data[0] if write.data else 1
        return len(register.data)

    def _answer_bytes(self) -> list[int]:
        register = self.registers.get(self.pointer)
        if register is None:
            return [0xFF]
        if register.refresh is not None and not self.frozen:
            register.refresh()
        data = register.data
        if register.process is not None:
            sent = bytes(self._write.data)
            data = register.process(sent[1:] if register.block else sent)
        if not register.block:
            return list(data)
        count = len(data)
        if self.wrong_count:
            self.wrong_count -= 1
            count = 0 if self.wrong_count % 2 else 0xFF
        return [count, *data]
