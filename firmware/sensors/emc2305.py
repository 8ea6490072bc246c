"""Fan controller EMC2305: five fans, with tachometers.

Ref: Microchip EMC2301/2/3/5 data sheet DS20006532A: 4.5 (tachometer, equation 4-3), 6 (registers).
"""

from typing import Final

from firmware.sensors.steps import At, Readings, Steps, WrongPart

REG_FAN_STALL_STATUS: Final = 0x25
REG_FAN_DRIVE_FAIL_STATUS: Final = 0x27
REG_FAN_SETTING: Final = 0x30  # + 0x10 * fan: 0 is off, 255 full
REG_FAN_CONFIGURATION_1: Final = 0x32
REG_TACH_READING_HIGH: Final = 0x3E
REG_TACH_READING_LOW: Final = 0x3F
REG_PRODUCT_ID: Final = 0xFD
REG_MANUFACTURER_ID: Final = 0xFE
PRODUCT_ID: Final = 0x34
MANUFACTURER_ID: Final = 0x5D
FAN_STRIDE: Final = 0x10
FANS: Final = 5
TACH_CONSTANT: Final = 3_932_160  # equation 4-3: two-pole fans, five edges
TACH_STOPPED: Final = 0x1FFF  # it did not turn within the longest measurement
FULL: Final = 255


class Emc2305:
    """`fans` to read, 0 to 4."""

    part = "emc2305"

    def __init__(self, at: At, *, fans: tuple[int, ...] = (0,)) -> None:
        self.at = at
        self.fans = fans

    def identify(self) -> Steps[str]:
        product = yield from self.at.read_byte(REG_PRODUCT_ID)
        maker = yield from self.at.read_byte(REG_MANUFACTURER_ID)
        if (product, maker) != (PRODUCT_ID, MANUFACTURER_ID):
            want = f"{PRODUCT_ID:#04x} and {MANUFACTURER_ID:#04x}"
            raise WrongPart(f"{self.at}: ids {product:#04x} and {maker:#04x}, want {want}")
        return "EMC2305"

    def configure(self) -> Steps[None]:
        """Nothing: fans are at full when nobody has set them, and that is safe."""
        yield from ()

    def read(self) -> Steps[Readings]:
        """`fan0_rpm`, `fan0_drive`..., and `stalled`, a bit for each fan."""
        found: dict[str, int | None] = {}
        for fan in self.fans:
            base = FAN_STRIDE * fan
            high = yield from self.at.read_byte(REG_TACH_READING_HIGH + base)
            low = yield from self.at.read_byte(REG_TACH_READING_LOW + base)
            config = yield from self.at.read_byte(REG_FAN_CONFIGURATION_1 + base)
            count = high << 5 | low >> 3
            multiplier = 1 << (config >> 5 & 3)  # RNG, 6.13
            stopped = count in (0, TACH_STOPPED)
            found[f"fan{fan}_rpm"] = 0 if stopped else TACH_CONSTANT * multiplier // count
            found[f"fan{fan}_drive"] = yield from self.at.read_byte(REG_FAN_SETTING + base)
        found["stalled"] = yield from self.at.read_byte(REG_FAN_STALL_STATUS)
        return found

    def set_drive(self, fan: int, drive: int) -> Steps[None]:
        """0 to 255 of one fan."""
        yield from self.at.write_byte(REG_FAN_SETTING + FAN_STRIDE * fan, drive)
