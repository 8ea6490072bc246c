"""Register models of temperature and power sensors. Their values are set by the test or world.

Ref: TI TMP75 (SBOS288), TMP1075 (SBOS854), TMP464 (SBOS835), INA226 (SBOS547). All of them send
words with the most significant byte first.
"""

from typing import Final

from hal.mock.smbus_model import Register, RegisterModel

TI_MANUFACTURER_ID: Final = 0x5449  # "TI"


def be16(value: int) -> bytes:
    """A register of 16 bits, two's complement."""
    return (value & 0xFFFF).to_bytes(2, "big")


class Tmp75(RegisterModel):
    """SBOS288, section 7.5: pointer 0 to 3. No identification register."""

    CONFIG_BYTES = 1

    def __init__(self, address: int = 0x48, *, temp_mdegc: int = 25_000) -> None:
        super().__init__(address)
        self.temp_mdegc = temp_mdegc
        self.open_bus = False
        self.registers = {
            0x00: Register(be16(0), read_only=True, refresh=self._convert),
            0x01: Register(bytes(self.CONFIG_BYTES), writable=b"\x7f" + b"\0" * 1),
            0x02: Register(be16(0x4B00)),  # T_LOW: 75 degrees
            0x03: Register(be16(0x5000)),  # T_HIGH: 80 degrees
        }

    def _resolution_bits(self) -> int:
        return 9 + (self.peek(0x01)[0] >> 5 & 3)  # R1, R0: table 7

    def _convert(self) -> None:
        if self.peek(0x01)[0] & 1:  # SD: shut down, the last conversion stays
            return
        sixteenths = self.temp_mdegc * 16 // 1000
        cut = 12 - self._resolution_bits()
        self.poke(0x00, be16((sixteenths >> cut << cut) << 4))


class Tmp1075(Tmp75):
    """SBOS854, section 8.5: always 12 bits, a device id at 0x0f."""

    CONFIG_BYTES = 2

    def __init__(self, address: int = 0x48, *, temp_mdegc: int = 25_000) -> None:
        super().__init__(address, temp_mdegc=temp_mdegc)
        self.registers[0x01] = Register(b"\x00\xff", writable=b"\x7f\x00")
        self.registers[0x0F] = Register(be16(0x7500), read_only=True)

    def _resolution_bits(self) -> int:
        return 12


class Tmp464(RegisterModel):
    """SBOS835, section 7.6: a local sensor and four remote diodes; 13 bits of 0.0625 degrees."""

    def __init__(
        self, address: int = 0x48, *, temps_mdegc: tuple[int, ...] = (25_000,) * 5
    ) -> None:
        super().__init__(address)
        self.temps_mdegc = list(temps_mdegc)
        self.open_diodes: set[int] = set()  # remote channels 1 to 4
        self.registers = {
            0x21: Register(be16(0), read_only=True),  # THERM status
            0x22: Register(be16(0), read_only=True),  # THERM2 status
            0x23: Register(be16(0), read_only=True, refresh=self._opens),  # remote channel open
            0x30: Register(be16(0x0F9C), writable=be16(0x0FBC)),  # configuration
            0x38: Register(be16(0x0A00)),  # THERM hysteresis
            0x39: Register(be16(0x2A80)),  # local THERM limit: 85 degrees
            0xC4: Register(be16(0x8000)),  # lock
            0xFE: Register(be16(TI_MANUFACTURER_ID), read_only=True),
            0xFF: Register(be16(0x1468), read_only=True),
        }
        for channel in range(5):
            self.registers[channel] = Register(
                be16(0),
                read_only=True,
                refresh=lambda at=channel: self._convert(at),  # type: ignore[misc]
            )

    def _convert(self, channel: int) -> None:
        sixteenths = self.temps_mdegc[channel] * 16 // 1000
        open_diode = channel in self.open_diodes  # 7.3.4: reads as -256 degrees
        self.poke(channel, be16(0x8000 if open_diode else sixteenths << 3))

    def _opens(self) -> None:
        self.poke(0x23, be16(sum(1 << 7 + channel for channel in self.open_diodes)))


class Ina226(RegisterModel):
    """SBOS547, section 7.6. `bus_mv` and `current_ma` are the world's; the shunt's resistance
    makes a voltage of the current."""

    def __init__(
        self,
        address: int = 0x40,
        *,
        shunt_uohm: int = 1000,
        bus_mv: int = 12_000,
        current_ma: int = 1_000,
    ) -> None:
        super().__init__(address)
        self.shunt_uohm = shunt_uohm
        self.bus_mv = bus_mv
        self.current_ma = current_ma
        self.registers = {
            0x00: Register(be16(0x4127), written=self._reset),  # configuration
            0x01: Register(be16(0), read_only=True, refresh=self._convert),  # shunt voltage
            0x02: Register(be16(0), read_only=True, refresh=self._convert),  # bus voltage
            0x03: Register(be16(0), read_only=True, refresh=self._convert),  # power
            0x04: Register(be16(0), read_only=True, refresh=self._convert),  # current
            0x05: Register(be16(0)),  # calibration
            0x06: Register(be16(0)),  # mask/enable
            0x07: Register(be16(0)),  # alert limit
            0xFE: Register(be16(TI_MANUFACTURER_ID), read_only=True),
            0xFF: Register(be16(0x2260), read_only=True),
        }

    def _reset(self) -> None:
        if self.peek(0x00)[0] & 0x80:  # RST: all registers to their defaults
            self.poke(0x00, be16(0x4127))
            self.poke(0x05, be16(0))

    def _convert(self) -> None:
        shunt = self.current_ma * self.shunt_uohm // 2500  # nV / 2.5 uV
        shunt = max(-0x8000, min(0x7FFF, shunt))
        bus = self.bus_mv * 100 // 125  # LSB 1.25 mV
        calibration = int.from_bytes(self.peek(0x05), "big")
        current = shunt * calibration // 2048  # equation 3
        self.poke(0x01, be16(shunt))
        self.poke(0x02, be16(bus))
        self.poke(0x04, be16(current))
        self.poke(0x03, be16(abs(current) * bus // 20_000))  # equation 4
