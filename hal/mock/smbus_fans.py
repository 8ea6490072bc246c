"""Register models of fan controllers: the fans turn as their drive asks, unless they are stalled.

Ref: Microchip EMC2301/2/3/5 (DS20006532A): 4.5 (tachometer), 6 (registers); Maxim MAX31790
(19-6398): table 1 and the register descriptions.
"""

from typing import Final

from hal.mock.smbus_model import Register, RegisterModel

EMC_FANS: Final = 5
EMC_TACH_CONSTANT: Final = 3_932_160  # equation 4-3, two-pole fans, multiplier 1
MAX_FANS: Final = 6
MAX_TACH_HZ: Final = 8192


class _Fans(RegisterModel):
    def __init__(self, address: int, fans: int, full_rpm: int) -> None:
        super().__init__(address)
        self.full_rpm = [full_rpm] * fans  # what each turns at full drive
        self.stalled: set[int] = set()

    def drive(self, fan: int) -> int:
        """0 to 255."""
        raise NotImplementedError

    def rpm(self, fan: int) -> int:
        """What it turns now."""
        return 0 if fan in self.stalled else self.full_rpm[fan] * self.drive(fan) // 255


class Emc2305(_Fans):
    """6.1: five fans at 0x30 + 0x10 * fan."""

    def __init__(self, address: int = 0x4D, *, full_rpm: int = 12_000) -> None:
        super().__init__(address, EMC_FANS, full_rpm)
        self.registers = {
            0x20: Register(b"\x40"),  # configuration
            0x24: Register(b"\0", read_only=True, refresh=self._status),
            0x25: Register(b"\0", read_only=True, refresh=self._status),  # stall status
            0x26: Register(b"\0", read_only=True),  # spin status
            0x27: Register(b"\0", read_only=True),  # drive fail status
            0xFD: Register(b"\x34", read_only=True),  # product id of the EMC2305
            0xFE: Register(b"\x5d", read_only=True),  # manufacturer id
            0xFF: Register(b"\x80", read_only=True),  # revision
        }
        for fan in range(EMC_FANS):
            base = 0x30 + 0x10 * fan
            self.registers[base] = Register(b"\xff")  # fan setting: full, the power-up default
            self.registers[base + 2] = Register(b"\x2b")  # configuration 1: RNG 1, from 1000 rpm
            for offset in (0x0E, 0x0F):
                self.registers[base + offset] = Register(
                    b"\0",
                    read_only=True,
                    refresh=lambda at=fan: self._tach(at),  # type: ignore[misc]
                )

    def drive(self, fan: int) -> int:
        return self.peek(0x30 + 0x10 * fan)[0]

    def _tach(self, fan: int) -> None:
        base, rpm = 0x30 + 0x10 * fan, self.rpm(fan)
        multiplier = 1 << (self.peek(base + 2)[0] >> 5 & 3)  # RNG, table 6-9
        count = min(0x1FFF, EMC_TACH_CONSTANT * multiplier // rpm) if rpm else 0x1FFF
        self.poke(base + 0x0E, bytes([count >> 5]))
        self.poke(base + 0x0F, bytes([(count & 0x1F) << 3]))

    def _status(self) -> None:
        stalls = sum(1 << fan for fan in range(EMC_FANS) if self.drive(fan) and not self.rpm(fan))
        self.poke(0x25, bytes([stalls]))
        self.poke(0x24, bytes([bool(stalls)]))


class Max31790(_Fans):
    """Table 1: six fans; tachometer counts and target duty in 11 and 9 bits, left-justified."""

    def __init__(self, address: int = 0x20, *, full_rpm: int = 12_000) -> None:
        super().__init__(address, MAX_FANS, full_rpm)
        self.registers = {
            0x00: Register(b"\x20"),  # global configuration
            0x10: Register(b"\0", read_only=True),  # fault status of fans 12 to 7
            0x11: Register(b"\0", read_only=True, refresh=self._faults),  # of fans 6 to 1
        }
        for fan in range(MAX_FANS):
            self.registers[0x02 + fan] = Register(b"\x08")  # configuration: tachometer input on
            self.registers[0x08 + fan] = Register(b"\x4c")  # dynamics: speed range 4
            self.registers[0x18 + 2 * fan] = Register(
                b"\0\0",
                read_only=True,
                refresh=lambda at=fan: self._tach(at),  # type: ignore[misc]
            )
            self.registers[0x40 + 2 * fan] = Register(b"\xff\x80")  # PWMOUT target duty: full

    def drive(self, fan: int) -> int:
        return self.peek(0x40 + 2 * fan)[0]

    def _tach(self, fan: int) -> None:
        rpm = self.rpm(fan)
        periods = (1, 2, 4, 8, 16, 32, 32, 32)[self.peek(0x08 + fan)[0] >> 5]
        count = min(0x7FF, 60 * periods * MAX_TACH_HZ // (2 * rpm)) if rpm else 0x7FF
        self.poke(0x18 + 2 * fan, (count << 5).to_bytes(2, "big"))

    def _faults(self) -> None:
        stalls = sum(1 << fan for fan in range(MAX_FANS) if self.drive(fan) and not self.rpm(fan))
        self.poke(0x11, bytes([stalls]))
