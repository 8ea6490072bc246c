"""An SMBus adapter of the kernel, through /dev/i2c-N and smbus2. For one worker thread.

Ref: the kernel's Documentation/i2c/dev-interface.rst, fault-codes.rst and smbus-protocol.rst;
uapi/linux/i2c.h and i2c-dev.h.

The kernel's SMBus commands carry 32 bytes. Longer blocks (SMBus 3.0) and plain I2C go through
I2C_RDWR, where the adapter has it; packet error codes of those are made and checked here. There
is no system call that frees a held bus: the adapter's driver does that by itself when a transfer
finds the bus busy. So `free` is a harmless transfer, to the address of the SMBus host (0x08),
which no device has.
"""

import errno
import fcntl
import threading
import time
from pathlib import Path
from typing import Final

from fastcrc import crc8
from smbus2 import SMBus, i2c_msg

from hal.errors import Absent, DeadlinePassed, HalError, Refused, Unavailable
from hal.smbus_ports import (
    BLOCK_LIMIT_BYTES,
    KERNEL_BLOCK_BYTES,
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

SMBUS_HOST: Final = 0x08  # SMBus 3.1, appendix C: the host's own address
SYSFS: Final = Path("/sys/bus/i2c/devices")
_ABSENT: Final = frozenset({errno.ENXIO, errno.ENODEV, errno.EREMOTEIO})
_HELD: Final = frozenset({errno.ETIMEDOUT, errno.EBUSY})
_KNOWN: Final = sum(SmbusFunctions)


class LinuxSmbusWire:
    """`hal.smbus_engine.SmbusWire`. Only its worker calls it, but `stop` is for any thread."""

    def __init__(self, number: int) -> None:
        """Raises Unavailable: no such bus, no permission, or another program has it."""
        self.path = f"/dev/i2c-{number}"
        try:
            self._bus = SMBus(self.path)
        except OSError as exc:
            hint = "load the module i2c-dev" if exc.errno == errno.ENOENT else "are we root?"
            raise Unavailable(f"opening {self.path}: {exc.strerror}; {hint}") from exc
        assert self._bus.fd is not None
        try:
            fcntl.flock(self._bus.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            self._bus.close()
            raise Unavailable(f"{self.path} is in use by another program of ours") from exc
        self._capabilities = SmbusCapabilities(
            adapter=_read(SYSFS / f"i2c-{number}" / "name") or self.path,
            functions=SmbusFunctions(int(self._bus.funcs) & _KNOWN),
            driver=_driver(SYSFS / f"i2c-{number}"),
        )
        self._stopping = threading.Event()

    @property
    def capabilities(self) -> SmbusCapabilities:
        return self._capabilities

    def now_ns(self) -> int:
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def pause(self, duration_ns: int) -> None:
        if self._stopping.wait(duration_ns / 1e9):
            raise DeadlinePassed(f"{self.path}: given up, the program is stopping")

    def stop(self) -> None:
        """End the pauses."""
        self._stopping.set()

    def close(self) -> None:
        self._bus.close()

    def transfer(self, transfer: SmbusTransfer) -> bytes:
        try:
            if self._needs_rdwr(transfer):
                return self._by_rdwr(transfer)
            return self._by_command(transfer)
        except OSError as exc:
            raise fault_of(exc, f"{self.path}: {transfer}") from exc

    def free(self) -> None:
        try:
            self._by_command(SmbusTransfer(address=SMBUS_HOST, kind=SmbusKind.RECEIVE_BYTE))
        except OSError as exc:
            fault = fault_of(exc, f"{self.path}: looking whether the bus is free")
            if isinstance(fault, BusHeld):
                raise fault from exc

    # --- the adapter's own SMBus commands ---

    def _by_command(self, item: SmbusTransfer) -> bytes:
        bus, at, command, data = self._bus, item.address, item.command, item.data
        if bus.pec != item.pec:
            bus.pec = item.pec
        match item.kind:
            case SmbusKind.QUICK:
                bus.write_quick(at)
            case SmbusKind.SEND_BYTE:
                bus.write_byte(at, command)
            case SmbusKind.RECEIVE_BYTE:
                return bytes([bus.read_byte(at)])
            case SmbusKind.READ_BYTE:
                return bytes([bus.read_byte_data(at, command)])
            case SmbusKind.WRITE_BYTE:
                bus.write_byte_data(at, command, data[0])
            case SmbusKind.READ_WORD:
                return bus.read_word_data(at, command).to_bytes(2, "little")
            case SmbusKind.WRITE_WORD:
                bus.write_word_data(at, command, int.from_bytes(data, "little"))
            case SmbusKind.READ_BLOCK:
                return bytes(bus.read_block_data(at, command))
            case SmbusKind.WRITE_BLOCK:
                bus.write_block_data(at, command, list(data))
            case SmbusKind.PROCESS_CALL:
                word: int = bus.process_call(at, command, int.from_bytes(data, "little"))
                return word.to_bytes(2, "little")
            case SmbusKind.BLOCK_PROCESS_CALL:
                return bytes(bus.block_process_call(at, command, list(data)))
            case SmbusKind.READ_I2C_BLOCK:
                return bytes(bus.read_i2c_block_data(at, command, item.read_bytes))
            case SmbusKind.WRITE_I2C_BLOCK:
                bus.write_i2c_block_data(at, command, list(data))
            case SmbusKind.RAW:
                raise AssertionError("plain I2C goes through I2C_RDWR")
        return b""

    # --- I2C_RDWR: what those can't carry ---

    def _needs_rdwr(self, item: SmbusTransfer) -> bool:
        if item.kind is SmbusKind.RAW:
            return True
        if max(len(item.data), item.read_bytes) > KERNEL_BLOCK_BYTES:
            return True
        own = self._capabilities.functions & ~SmbusFunctions.I2C
        missing = SmbusCapabilities(adapter="", functions=own).missing(item)
        return bool(missing) and SmbusFunctions.I2C in self._capabilities.functions

    def _by_rdwr(self, item: SmbusTransfer) -> bytes:
        out, wanted, counted = parts_of(item)
        pec = int(item.pec)
        write_address, read_address = item.address << 1, item.address << 1 | 1
        sent = bytes([write_address]) + out if out else b""
        if not wanted:
            tail = bytes([crc8.smbus(sent)]) if pec else b""
            self._rdwr(item.address, out + tail, 0)
            return b""
        came = self._rdwr(item.address, out, wanted + pec)
        used = came
        if counted:
            count = came[0]
            if not 0 < count < wanted:
                raise WrongCount(f"{self.path}: {item}: a block of {count} of {wanted - 1} bytes")
            used = came[: 1 + count + pec]
        if pec:
            crc = crc8.smbus(sent + bytes([read_address]) + used[:-1])
            if crc != used[-1]:
                raise PecWrong(f"{self.path}: {item}: PEC {used[-1]:#04x}, want {crc:#04x}")
            used = used[:-1]
        return used[1:] if counted else used

    def _rdwr(self, address: int, out: bytes, wanted: int) -> bytes:
        messages = [i2c_msg.write(address, list(out))] if out else []
        if wanted:
            messages.append(i2c_msg.read(address, wanted))
        self._bus.i2c_rdwr(*messages)
        return bytes(messages[-1]) if wanted else b""


def parts_of(item: SmbusTransfer) -> tuple[bytes, int, bool]:
    """A transfer as plain I2C: bytes out, bytes in, and whether the first of those is a count.
    A block of unknown length is read in full length: what is behind it is thrown away."""
    command = bytes([item.command])
    count = bytes([len(item.data) & 0xFF])
    block = 1 + (item.read_bytes or KERNEL_BLOCK_BYTES)
    match item.kind:
        case SmbusKind.RAW:
            return item.data, item.read_bytes, False
        case SmbusKind.READ_BLOCK:
            return command, block, True
        case SmbusKind.WRITE_BLOCK:
            return command + count + item.data, 0, False
        case SmbusKind.PROCESS_CALL:
            return command + item.data, 2, False
        case SmbusKind.BLOCK_PROCESS_CALL:
            return command + count + item.data, block, True
        case SmbusKind.READ_I2C_BLOCK:
            return command, item.read_bytes, False
        case SmbusKind.WRITE_I2C_BLOCK:
            return command + item.data, 0, False
        case _:
            raise Refused(f"{item}: the adapter must have this command of its own")


def fault_of(exc: OSError, what: str) -> HalError:
    """Documentation/i2c/fault-codes.rst."""
    text = f"{what}: {exc.strerror or exc}"
    if exc.errno in _ABSENT:
        return Absent(f"{what}: nobody acknowledges the address ({exc.strerror})")
    if exc.errno in _HELD:
        return BusHeld(f"{text}; the bus is held, or a device stretches the clock")
    if exc.errno == errno.EBADMSG:
        return PecWrong(text)
    if exc.errno == errno.EAGAIN:
        return ArbitrationLost(text)
    if exc.errno == errno.EPROTO:
        return WrongCount(f"{text}; want a block of 1 to {BLOCK_LIMIT_BYTES} bytes")
    if exc.errno == errno.EIO:
        return SmbusFault(text)
    return Unavailable(text)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _driver(adapter: Path) -> str:
    """The driver of the device that the adapter belongs to; "" for one of software."""
    try:
        return (adapter.resolve().parent / "driver").resolve(strict=True).name
    except OSError:
        return ""
