"""Digital temperature sensors TMP75 and TMP1075 (and the LM75 family).

Ref: TI TMP75 data sheet SBOS288, 7.5 (registers); TMP1075 data sheet SBOS854, 8.5. Words come with
the most significant byte first; a degree is 256 of them, whatever the resolution.
"""

from typing import Any, Final

import construct as cs

from firmware.sensors.steps import At, Readings, Steps, WrongPart

REG_TEMPERATURE: Final = 0x00  # SBOS288 7.5.2
REG_CONFIGURATION: Final = 0x01  # 7.5.3
REG_T_LOW: Final = 0x02  # 7.5.4
REG_T_HIGH: Final = 0x03
REG_DEVICE_ID: Final = 0x0F  # SBOS854 8.5.6; the TMP1075 only
DEVICE_ID_TMP1075: Final = 0x7500

CONFIGURATION_WIRE: Final = cs.BitStruct(  # SBOS288 table 6
    "os" / cs.Flag,  # one-shot
    "r" / cs.BitsInteger(2),  # converter resolution: 9 to 12 bits
    "f" / cs.BitsInteger(2),  # fault queue
    "pol" / cs.Flag,
    "tm" / cs.Flag,  # thermostat mode
    "sd" / cs.Flag,  # shutdown
)
RESOLUTION_12_BITS: Final = 3
MIN_MDEGC: Final = -55_000  # the range of the parts: SBOS288 6.3
MAX_MDEGC: Final = 150_000


class Tmp75:
    """One sensor. `read` also wakes one that was left shut down."""

    part = "tmp75"

    def __init__(self, at: At) -> None:
        self.at = at

    def identify(self) -> Steps[str]:
        """There is no identification register: what reads as a temperature in range will do."""
        temp_mdegc = yield from self._temperature()
        if not MIN_MDEGC <= temp_mdegc <= MAX_MDEGC:
            raise WrongPart(f"{self.at}: {temp_mdegc} millidegrees is no temperature of a TMP75")
        return "TMP75"

    def configure(self) -> Steps[None]:
        """Continuous conversion with 12 bits; the rest as the board or the part set it."""
        raw: Any = CONFIGURATION_WIRE.parse(
            bytes([(yield from self.at.read_byte(REG_CONFIGURATION))])
        )
        if raw.sd or raw.r != RESOLUTION_12_BITS:
            raw.sd, raw.r, raw.os = False, RESOLUTION_12_BITS, False
            value: bytes = CONFIGURATION_WIRE.build(raw)
            yield from self.at.write_byte(REG_CONFIGURATION, value[0])

    def read(self) -> Steps[Readings]:
        temp_mdegc = yield from self._temperature()
        return {"temp_mdegc": temp_mdegc}

    def limits(self) -> Steps[Readings]:
        """The alert's thresholds."""
        low = yield from self.at.read_signed_be(REG_T_LOW)
        high = yield from self.at.read_signed_be(REG_T_HIGH)
        return {"t_low_mdegc": mdegc(low), "t_high_mdegc": mdegc(high)}

    def set_limits(self, low_mdegc: int, high_mdegc: int) -> Steps[None]:
        for register, value in ((REG_T_LOW, low_mdegc), (REG_T_HIGH, high_mdegc)):
            yield from self.at.write_be(register, value * 16 // 1000 << 4)

    def _temperature(self) -> Steps[int]:
        return mdegc((yield from self.at.read_signed_be(REG_TEMPERATURE)))


class Tmp1075(Tmp75):
    """12 bits always; it says who it is."""

    part = "tmp1075"

    def identify(self) -> Steps[str]:
        device_id = yield from self.at.read_be(REG_DEVICE_ID)
        if device_id != DEVICE_ID_TMP1075:
            want = f"{DEVICE_ID_TMP1075:#06x}, a TMP1075"
            raise WrongPart(f"{self.at}: device id {device_id:#06x}, want {want}")
        return "TMP1075"

    def configure(self) -> Steps[None]:
        raw: Any = CONFIGURATION_WIRE.parse(
            bytes([(yield from self.at.read_byte(REG_CONFIGURATION))])
        )
        if raw.sd:  # the word's second byte is reserved: SBOS854 table 8-6
            raw.sd = False
            value: bytes = CONFIGURATION_WIRE.build(raw)
            yield from self.at.write_word(REG_CONFIGURATION, value + b"\xff")


def mdegc(word: int) -> int:
    """A left-justified temperature of 1/256 degree in thousandths, to the nearest."""
    return (word * 1000 + 128) // 256
