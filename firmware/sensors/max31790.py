"""Fan controller MAX31790: six fans, with tachometers.

Ref: Maxim MAX31790 data sheet 19-6398, table 1 and "TACH Count Registers": RPM = 60 * SR * 8192 /
(NP * count), count in the upper 11 bits; two pulses a revolution.
"""

from typing import Final

from firmware.sensors.steps import At, Readings, Steps, WrongPart

REG_GLOBAL_CONFIGURATION: Final = 0x00
REG_FAN_CONFIGURATION: Final = 0x02  # + fan
REG_FAN_DYNAMICS: Final = 0x08  # + fan; bits 7:5 are the speed range
REG_FAN_FAULT_STATUS_1: Final = 0x11
REG_TACH_COUNT: Final = 0x18  # + 2 * fan, most significant byte first
REG_PWMOUT_TARGET_DUTY: Final = 0x40  # + 2 * fan, 9 bits, left-justified
FANS: Final = 6
SPEED_RANGE_PERIODS: Final = (1, 2, 4, 8, 16, 32, 32, 32)
TACH_HZ: Final = 8192
PULSES: Final = 2
TACH_STOPPED: Final = 0x7FF
DUTY_FULL: Final = 511


class Max31790:
    """`fans` to read, 0 to 5."""

    part = "max31790"

    def __init__(self, at: At, *, fans: tuple[int, ...] = (0,)) -> None:
        self.at = at
        self.fans = fans

    def identify(self) -> Steps[str]:
        """No identification register: bit 7 of the configuration (reset) always reads 0, and so
        do the unused bits of the fault status."""
        config = yield from self.at.read_byte(REG_GLOBAL_CONFIGURATION)
        faults = yield from self.at.read_byte(REG_FAN_FAULT_STATUS_1)
        if config & 0x80 or faults & 0xC0:
            raise WrongPart(f"{self.at}: {config:#04x} and {faults:#04x}: not a MAX31790")
        return "MAX31790"

    def configure(self) -> Steps[None]:
        """Nothing: without a command its fans are at full."""
        yield from ()

    def read(self) -> Steps[Readings]:
        """`fan0_rpm`, `fan0_drive` (0 to 255)..., and `stalled`, a bit for each fan."""
        found: dict[str, int | None] = {}
        for fan in self.fans:
            count = (yield from self.at.read_be(REG_TACH_COUNT + 2 * fan)) >> 5
            dynamics = yield from self.at.read_byte(REG_FAN_DYNAMICS + fan)
            periods = SPEED_RANGE_PERIODS[dynamics >> 5]
            stopped = count in (0, TACH_STOPPED)
            rpm = 0 if stopped else 60 * periods * TACH_HZ // (PULSES * count)
            found[f"fan{fan}_rpm"] = rpm
            duty = (yield from self.at.read_be(REG_PWMOUT_TARGET_DUTY + 2 * fan)) >> 7
            found[f"fan{fan}_drive"] = duty * 255 // DUTY_FULL
        found["stalled"] = yield from self.at.read_byte(REG_FAN_FAULT_STATUS_1)
        return found

    def set_drive(self, fan: int, drive: int) -> Steps[None]:
        """0 to 255 of one fan."""
        duty = drive * DUTY_FULL // 255 << 7
        yield from self.at.write_be(REG_PWMOUT_TARGET_DUTY + 2 * fan, duty)
