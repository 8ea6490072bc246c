"""What the Linux wire hands to the kernel, and what it makes of the kernel's answers. The adapters
themselves are met in the virtual machines."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from hal.errors import Absent, HalError, Refused, Unavailable
from hal.linux import smbus_wire
from hal.linux.smbus_target import LinuxSmbusTarget
from hal.linux.smbus_wire import LinuxSmbusWire, fault_of, parts_of
from hal.registry import Registry, World
from hal.smbus_ports import (
    ArbitrationLost,
    BusHeld,
    PecWrong,
    SmbusCapabilities,
    SmbusFault,
    SmbusFunctions,
    SmbusKind,
    SmbusTransfer,
    WrongCount,
)
from protocol.smbus.pec import with_pec
from tests.contract.worlds import VirtualWorld


class FakeBus:
    """smbus2.SMBus on a file that stands for /dev/i2c-N; keeps messages, gives prepared bytes."""

    functions = int(SmbusFunctions.I2C)
    answer = b""
    raises: OSError | None = None

    def __init__(self, path: str) -> None:
        self.fd = os.open(os.devnull, os.O_RDWR)
        self.funcs = self.functions
        self.pec = 0
        self.sent: list[tuple[int, int, bytes]] = []
        self.commands: list[Any] = []

    def close(self) -> None:
        os.close(self.fd)

    def i2c_rdwr(self, *messages: Any) -> None:
        if FakeBus.raises is not None:
            raise FakeBus.raises
        for message in messages:
            self.sent.append((message.addr, message.flags, bytes(message)))
        if messages[-1].flags:
            for index in range(messages[-1].len):
                answer = self.answer
                messages[-1].buf[index] = answer[index : index + 1] or b"\xff"

    def read_byte(self, address: int) -> int:
        if FakeBus.raises is not None:
            raise FakeBus.raises
        return 0x12

    def read_word_data(self, address: int, command: int) -> int:
        self.commands.append((address, command, self.pec))
        return 0x3412


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(smbus_wire, "SMBus", FakeBus)
    monkeypatch.setattr(FakeBus, "raises", None)
    monkeypatch.setattr(smbus_wire.fcntl, "flock", lambda *_args: None)
    made = LinuxSmbusWire(7)
    yield made
    made.close()


def test_a_long_block_is_read_with_its_count_and_its_code_is_checked(
    wire: LinuxSmbusWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = with_pec(bytes([0x20, 0x11, 0x21, 3]) + b"abc")
    monkeypatch.setattr(FakeBus, "answer", whole[3:] + b"\xff" * 90)
    item = SmbusTransfer(
        address=0x10, kind=SmbusKind.READ_BLOCK, command=0x11, read_bytes=64, pec=True
    )
    assert wire.transfer(item) == b"abc"
    bus: Any = wire._bus
    assert [(address, flags) for address, flags, _ in bus.sent] == [(0x10, 0), (0x10, 1)]
    assert bus.sent[0][2] == b"\x11"
    assert len(bus.sent[1][2]) == 1 + 64 + 1
    monkeypatch.setattr(FakeBus, "answer", whole[3:-1] + b"\0")
    with pytest.raises(PecWrong, match="PEC 0x00"):
        wire.transfer(item)
    monkeypatch.setattr(FakeBus, "answer", b"\x41" + bytes(65))
    with pytest.raises(WrongCount, match="a block of 65 of 64 bytes"):
        wire.transfer(item)


def test_an_mctp_packet_goes_out_as_one_write_with_its_code(wire: LinuxSmbusWire) -> None:
    """The public vector smbus_libmctp_5byte, on an adapter that has nothing but plain I2C."""
    item = SmbusTransfer(
        address=0x21,
        kind=SmbusKind.WRITE_BLOCK,
        command=0x0F,
        data=bytes.fromhex("41013332c20001020304"),
        pec=True,
    )
    assert wire.transfer(item) == b""
    bus: Any = wire._bus
    assert bus.sent == [(0x21, 0, bytes.fromhex("0f0a41013332c20001020304bb"))]


@pytest.mark.parametrize(
    ("item", "out", "wanted"),
    [
        ({"kind": SmbusKind.RAW, "data": b"\x01\x02", "read_bytes": 9}, b"\x01\x02", 9),
        ({"kind": SmbusKind.PROCESS_CALL, "command": 5, "data": b"ab"}, b"\x05ab", 2),
        ({"kind": SmbusKind.BLOCK_PROCESS_CALL, "command": 5, "data": b"ab"}, b"\x05\x02ab", 33),
        ({"kind": SmbusKind.READ_I2C_BLOCK, "command": 5, "read_bytes": 40}, b"\x05", 40),
        ({"kind": SmbusKind.WRITE_I2C_BLOCK, "command": 5, "data": b"abc"}, b"\x05abc", 0),
        ({"kind": SmbusKind.READ_BLOCK, "command": 5}, b"\x05", 33),
    ],
)
def test_transfers_as_plain_i2c(item: dict[str, Any], out: bytes, wanted: int) -> None:
    found = parts_of(SmbusTransfer(address=0x40, **item))
    assert found[:2] == (out, wanted)


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENXIO, Absent),
        (errno.ENODEV, Absent),
        (errno.EREMOTEIO, Absent),
        (errno.ETIMEDOUT, BusHeld),
        (errno.EBUSY, BusHeld),
        (errno.EBADMSG, PecWrong),
        (errno.EAGAIN, ArbitrationLost),
        (errno.EPROTO, WrongCount),
        (errno.EIO, SmbusFault),
        (errno.EOPNOTSUPP, Unavailable),
    ],
)
def test_the_kernels_fault_codes(number: int, kind: type[HalError]) -> None:
    found = fault_of(OSError(number, os.strerror(number)), "0x40 read_byte")
    assert type(found) is kind
    assert "0x40 read_byte" in str(found)


def test_a_bus_is_free_when_somebody_or_nobody_answers_and_held_when_it_times_out(
    wire: LinuxSmbusWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire.free()
    monkeypatch.setattr(FakeBus, "raises", OSError(errno.ENXIO, "no such device"))
    wire.free()
    monkeypatch.setattr(FakeBus, "raises", OSError(errno.ETIMEDOUT, "timed out"))
    with pytest.raises(BusHeld, match="looking whether the bus is free"):
        wire.free()


def test_a_bus_that_is_not_there_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"/dev/i2c-253: No such file.*i2c-dev"):
        LinuxSmbusWire(253)


@pytest.mark.parametrize("text", ["i2c:", "i2c:one", "i2c:1/0x48", "i2c:1000"])
def test_a_wrong_spec_of_a_bus_is_refused(text: str) -> None:
    registry = Registry(World(reactor=VirtualWorld().reactor))
    with pytest.raises(Refused, match="want i2c:N"):
        registry.open_smbus(text)


# --- targets ---

CAPABLE = SmbusCapabilities(adapter="Example I2C", functions=SmbusFunctions.TARGET)


def test_an_adapter_that_cannot_be_addressed_is_refused_with_the_reason(tmp_path: Path) -> None:
    without = SmbusCapabilities(adapter="SMBus I801", functions=SmbusFunctions.I2C)
    with pytest.raises(Unavailable, match=r"SMBus I801 can't be addressed.*I2C_FUNC_SLAVE"):
        LinuxSmbusTarget(0, 0x12, without, sysfs=tmp_path)


def test_a_kernel_without_the_backend_is_told_and_the_address_given_back(tmp_path: Path) -> None:
    adapter = tmp_path / "i2c-0"
    adapter.mkdir()
    with pytest.raises(Unavailable, match="no i2c-slave-mqueue"):
        LinuxSmbusTarget(0, 0x12, CAPABLE, sysfs=tmp_path)
    assert (adapter / "new_device").read_text() == "slave-mqueue 0x1012"
    assert (adapter / "delete_device").read_text() == "0x1012"


def test_a_reserved_address_of_our_own_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="reserved"):
        LinuxSmbusTarget(0, 0x78, CAPABLE, sysfs=tmp_path)
