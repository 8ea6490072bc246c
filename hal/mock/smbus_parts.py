"""Register models of an EEPROM, a port expander and a drive's management endpoint.

Ref: Microchip 24C02C (DS21202), 24LC64 (DS21189): 5 (addressing), 6 (writes), 7 (acknowledge
polling), 8 (reads); NXP PCA9555, 6.2; NVM Express Basic Management Command (technical note, 1.0a;
in NVMe-MI 1.2, appendix A).
"""

from collections.abc import Callable
from typing import Final

from hal.mock.smbus_model import JOURNAL, Model, Register, RegisterModel

WRITE_CYCLE_NS: Final = 5_000_000  # t_WC


class Eeprom(Model):
    """24Cxx. Up to 256 bytes have one address byte, larger ones two. While a write cycle runs
    the address is not acknowledged; without `now_ns`, which says how late it is, a cycle takes no
    time."""

    def __init__(
        self,
        address: int = 0x50,
        *,
        size_bytes: int = 256,
        page_bytes: int = 8,
        now_ns: Callable[[], int] | None = None,
    ) -> None:
        super().__init__(address)
        self.data = bytearray(b"\xff" * size_bytes)
        self.page_bytes = page_bytes
        self.write_protected = False
        self._address_bytes = 1 if size_bytes <= 256 else 2
        self.now_ns = now_ns
        self._busy_until_ns = 0
        self._pointer = 0
        self._got = bytearray()
        self._reading = False

    def begin(self, read: bool) -> bool:
        if self.now_ns is not None and self.now_ns() < self._busy_until_ns:
            return False
        if read:
            self._set_pointer()  # a repeated start: the write was the address only
            self._got.clear()
        else:
            self._got.clear()
        self._reading = read
        return True

    def put(self, byte: int) -> bool:
        wanted = self._address_bytes + self.page_bytes
        if len(self._got) >= self._address_bytes and self.write_protected:
            return False
        if len(self._got) < wanted:
            self._got.append(byte)
            return True
        return False  # real parts wrap within the page; to refuse shows the mistake

    def get(self) -> int:
        byte = self.data[self._pointer]
        self._pointer = (self._pointer + 1) % len(self.data)
        return byte

    def end(self) -> None:
        if self._reading or not self._got:
            return
        self._set_pointer()
        data = bytes(self._got[self._address_bytes :])
        self.journal.append(bytes(self._got))
        del self.journal[:-JOURNAL]
        self._got.clear()
        page = self._pointer - self._pointer % self.page_bytes
        for byte in data:
            self.data[self._pointer] = byte
            self._pointer = page + (self._pointer + 1 - page) % self.page_bytes
        if data and self.now_ns is not None:
            self._busy_until_ns = self.now_ns() + WRITE_CYCLE_NS

    def _set_pointer(self) -> None:
        if len(self._got) >= self._address_bytes:
            where = int.from_bytes(self._got[: self._address_bytes], "big")
            self._pointer = where % len(self.data)


class Pca9555(RegisterModel):
    """6.2: two ports of eight; `inputs` is what the pins of the world are driven to."""

    def __init__(self, address: int = 0x20, *, inputs: int = 0) -> None:
        super().__init__(address)
        self.inputs = inputs
        self.registers = {command: Register(b"\xff") for command in (0x02, 0x03, 0x06, 0x07)}
        self.registers |= {command: Register(b"\0") for command in (0x04, 0x05)}
        for port in (0, 1):
            self.registers[port] = Register(
                b"\0",
                read_only=True,
                refresh=lambda at=port: self._sample(at),  # type: ignore[misc]
            )

    def pins(self) -> int:
        """What the sixteen pins are now: outputs as set, inputs as driven."""
        outputs = self.peek(0x02)[0] | self.peek(0x03)[0] << 8
        inputs = self.peek(0x06)[0] | self.peek(0x07)[0] << 8  # 1: an input
        return self.inputs & inputs | outputs & ~inputs & 0xFFFF

    def _sample(self, port: int) -> None:
        inversion = self.peek(0x04 + port)[0]
        self.poke(port, bytes([(self.pins() >> 8 * port & 0xFF) ^ inversion]))


class NvmeDrive(RegisterModel):
    """The basic management command: command 0 is status, command 8 identifies the drive."""

    def __init__(
        self, address: int = 0x6A, *, temp_degc: int = 30, vendor_id: int = 0x8086,
        serial: bytes = b"PHFT0123456789",
    ) -> None:  # fmt: skip
        super().__init__(address, pec=True)
        self.temp_degc: int | None = temp_degc  # None: no data for longer than 5 s
        self.status_flags = 0x3F  # ready, functional, no reset needed, both links up
        self.smart_warnings = 0xFF  # inverted: no warning
        self.life_used_percent = 1
        self.registers = {
            0xFF: Register(b"", written=self._clear_arbitration),
            0x00: Register(b"", read_only=True, block=True, refresh=self._status),
            0x08: Register(
                vendor_id.to_bytes(2, "big") + serial.ljust(20), read_only=True, block=True
            ),
        }

    def _clear_arbitration(self) -> None:
        self.status_flags &= 0x7F

    def _status(self) -> None:
        temp = 0x80 if self.temp_degc is None else max(-60, min(127, self.temp_degc)) & 0xFF
        life = self.life_used_percent
        self.poke(0x00, bytes([self.status_flags, self.smart_warnings, temp, life, 0, 0]))
        self.status_flags |= 0x80  # SMBus arbitration: a block read has ended without contention
