"""Parts on SMBus that answer anything: each driver, the verdicts on it, and an EEPROM's FRU."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from firmware.board_hardware import NUMBERS, PARTS, Device, Place
from firmware.sensors.eeprom import Eeprom, read_fru
from firmware.sensors.parts import driver_of
from firmware.sensors.steps import At, Steps, run_steps
from firmware.sensors.watch import Watch
from hal.errors import Absent, HalError
from hal.ports import Done
from hal.smbus_ports import (
    SmbusCapabilities,
    SmbusFault,
    SmbusFunctions,
    SmbusKind,
    SmbusTransfer,
)
from protocol.fru import BoardInfo, Fru, FruField
from tests.fuzz.reader import Reader
from tests.fuzz.target import Check, Target

SECOND: Final = 1_000_000_000
ADAPTERS: Final = (
    SmbusFunctions.I2C,
    ~SmbusFunctions.I2C & SmbusFunctions(sum(SmbusFunctions)),
    SmbusFunctions(sum(SmbusFunctions)),
)


class Segment:
    """`SmbusSegment` whose every answer is the input's: of the length that its kind has."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._answers: list[tuple[Any, bytes | HalError]] = []
        self.asked = 0

    def submit(self, transfer: SmbusTransfer, _deadline_ns: int, done: Done[bytes]) -> None:
        self.asked += 1
        self._answers.append((done, self._answer(transfer)))

    def go_on(self, limit: int) -> None:
        """Until the driver is content, or has asked so often."""
        while self._answers and self.asked < limit:
            done, answer = self._answers.pop()
            done(answer)

    def _answer(self, transfer: SmbusTransfer) -> bytes | HalError:
        reader = self._reader
        kind = transfer.kind
        if reader.left and reader.byte() > 250:
            return (Absent, SmbusFault)[reader.byte() & 1]("no answer")
        if kind in (SmbusKind.READ_BYTE, SmbusKind.RECEIVE_BYTE):
            return reader.take(1).ljust(1, b"\0")
        if kind in (SmbusKind.READ_WORD, SmbusKind.PROCESS_CALL):
            return reader.take(2).ljust(2, b"\0")
        if kind in (SmbusKind.READ_BLOCK, SmbusKind.BLOCK_PROCESS_CALL):
            return reader.take(reader.byte() % 33)
        if kind is SmbusKind.READ_I2C_BLOCK:
            return reader.take(min(transfer.read_bytes, reader.byte()))
        return reader.take(transfer.read_bytes).ljust(transfer.read_bytes, b"\0")


def _devices() -> list[Device]:
    place = Place(segment="a", muxes=(), address=0x40)
    found = []
    for role, parts in PARTS.items():
        for part in parts:
            numbers = {key: (low + high) // 2 for key, (low, high) in NUMBERS[role].items()}
            if "channel" in numbers:
                numbers["channel"] = 1
            found.append(Device(id="x", role=role, part=part, place=place, numbers=numbers))
    return found


DEVICES: Final = _devices()
READ: Final = [device for device in DEVICES if device.role != "fru"]


def sensors(_scratch: Path) -> Check:
    def check(data: bytes) -> bool:
        reader = Reader(data)
        device = READ[reader.byte() % len(READ)]
        adapter = SmbusCapabilities(adapter="any", functions=ADAPTERS[reader.byte() % 3])
        driver = driver_of(device, adapter)
        assert driver is not None
        watch, good = Watch(device, SECOND), 0
        for step in (driver.identify(), driver.configure()):
            _run(step, reader)
        for poll in range(4):
            result = _run(driver.read(), reader)
            now_ns = poll * SECOND
            if isinstance(result, HalError):
                found = watch.on_error(result)
            else:
                good += 1
                assert all(value is None or isinstance(value, int) for value in result.values())
                found = watch.on_readings(result, now_ns)
            assert len({finding.kind for finding in found}) == len(found)
            for finding in found:
                finding.text.encode()
            if not reader.left:
                break
        return good > 0

    return check


def _run(steps: Steps[Any], reader: Reader) -> Any:
    results: list[Any] = []
    segment = Segment(reader)
    run_steps(segment, 0, steps, SECOND, results.append)  # type: ignore[arg-type]
    segment.go_on(200)
    assert len(results) == 1, "steps end, and say how once"
    return results[0]


def eeprom(_scratch: Path) -> Check:
    """A FRU out of an EEPROM, by each way to read one."""

    def check(data: bytes) -> bool:
        reader = Reader(data)
        adapter = SmbusCapabilities(adapter="any", functions=ADAPTERS[reader.byte() % 3])
        size = (256, 8192)[reader.byte() & 1]
        part = Eeprom(At(address=0x50), size_bytes=size, capabilities=adapter)
        results: list[Any] = []
        memory = Memory(reader.rest())
        run_steps(memory, 0, read_fru(part), SECOND, results.append)  # type: ignore[arg-type]
        memory.go_on()
        [result] = results
        if isinstance(result, HalError):
            str(result).encode()
            return False
        assert isinstance(result, Fru)
        return True

    return check


class Memory:
    """An EEPROM that holds these bytes, and then ones; it may also be read byte by byte."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0
        self._next: Any = None

    def submit(self, transfer: SmbusTransfer, _deadline_ns: int, done: Done[bytes]) -> None:
        self._next = done, self._answer(transfer)

    def go_on(self) -> None:
        while self._next is not None:
            (done, answer), self._next = self._next, None
            done(answer)

    def _answer(self, transfer: SmbusTransfer) -> bytes:
        kind = transfer.kind
        if kind is SmbusKind.WRITE_BYTE:
            self._at = transfer.command << 8 | transfer.data[0]
            return b""
        if kind is SmbusKind.RAW:
            self._at = int.from_bytes(transfer.data, "big")
        elif kind is not SmbusKind.RECEIVE_BYTE:
            self._at = transfer.command
        count = transfer.read_bytes or 1
        self._at += count
        return self._data[self._at - count : self._at].ljust(count, b"\xff")


def _seeds() -> Iterable[bytes]:
    for index in range(len(READ)):
        for adapter in range(3):
            yield bytes([index, adapter])
            yield bytes([index, adapter]) + b"\x34\x5d" * 3 + bytes(range(40))
            yield bytes([index, adapter]) + b"\0\x06" + b"\xff\x00\x20" * 12


def _fru_seeds() -> Iterable[bytes]:
    fru = Fru(board=BoardInfo(manufacturer=FruField.of("Example Works"))).to_bytes()
    for adapter in range(3):
        for size in range(2):
            yield bytes([adapter, size]) + fru
    yield bytes([0, 0]) + b"\xff" * 16


TARGETS = (
    Target(
        name="sensors",
        text="parts on SMBus that answer what they like: every driver, and what is told of them",
        make=sensors,
        seeds=_seeds,
        max_bytes=400,
    ),
    Target(
        name="eeprom",
        text="a FRU out of an EEPROM that holds anything, by each way to read one",
        make=eeprom,
        seeds=_fru_seeds,
        max_bytes=400,
    ),
)
