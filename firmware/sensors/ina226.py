"""Current, voltage and power monitor INA226.

Ref: TI INA226 data sheet SBOS547, 7.6 (registers), 7.5 (programming, equations 1 to 4). Words come
with the most significant byte first.
"""

from typing import Final

from firmware.sensors.steps import At, Readings, Steps, WrongPart

REG_CONFIGURATION: Final = 0x00
REG_SHUNT_VOLTAGE: Final = 0x01  # signed, 2.5 uV
REG_BUS_VOLTAGE: Final = 0x02  # 1.25 mV
REG_POWER: Final = 0x03  # 25 times the current's least significant bit
REG_CURRENT: Final = 0x04
REG_CALIBRATION: Final = 0x05
REG_MANUFACTURER_ID: Final = 0xFE
REG_DIE_ID: Final = 0xFF
MANUFACTURER_ID: Final = 0x5449  # "TI"
DIE_ID: Final = 0x2260
CALIBRATION_CONSTANT: Final = 5_120_000_000  # equation 1, 0.00512, for uA and uohm
CALIBRATION_MAX: Final = 0x7FFF


class Ina226:
    """`shunt_uohm` is the board's resistor; `current_lsb_ua` what a bit of the current is to be."""

    part = "ina226"

    def __init__(self, at: At, *, shunt_uohm: int, current_lsb_ua: int = 1000) -> None:
        self.at = at
        self.shunt_uohm = shunt_uohm
        self.current_lsb_ua = current_lsb_ua

    @property
    def calibration(self) -> int:
        """Equation 1."""
        exact = CALIBRATION_CONSTANT // (self.current_lsb_ua * self.shunt_uohm)
        return max(1, min(CALIBRATION_MAX, exact))

    def identify(self) -> Steps[str]:
        maker = yield from self.at.read_be(REG_MANUFACTURER_ID)
        die = yield from self.at.read_be(REG_DIE_ID)
        if (maker, die) != (MANUFACTURER_ID, DIE_ID):
            want = f"{MANUFACTURER_ID:#06x} and {DIE_ID:#06x}"
            raise WrongPart(f"{self.at}: ids {maker:#06x} and {die:#06x}, want {want}")
        return "INA226"

    def configure(self) -> Steps[None]:
        """Write the calibration; without it current and power read as zero."""
        yield from self.at.write_be(REG_CALIBRATION, self.calibration)

    def read(self) -> Steps[Readings]:
        """Also sees that the calibration is still there: a brown-out forgets it."""
        if (yield from self.at.read_be(REG_CALIBRATION)) != self.calibration:
            yield from self.configure()
        shunt = yield from self.at.read_signed_be(REG_SHUNT_VOLTAGE)
        bus = yield from self.at.read_be(REG_BUS_VOLTAGE)
        current = yield from self.at.read_signed_be(REG_CURRENT)
        power = yield from self.at.read_be(REG_POWER)
        return {
            "shunt_uv": shunt * 5 // 2,
            "bus_mv": bus * 5 // 4,
            "current_ma": current * self.current_lsb_ua // 1000,
            "power_mw": power * 25 * self.current_lsb_ua // 1000,
        }
