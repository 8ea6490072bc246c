"""Voltage regulators that speak PMBus.

Ref: PMBus Power System Management Protocol Specification, Part II, revision 1.3: 11.10 (PAGE), 15
and 22 (identification), 17 (status), 18 (readings), 8.3 (VOUT_MODE); TI TPS53679 data sheet
SLUSC46 (two pages, VOUT_MODE is VID there); Infineon XDPE132G5C (ULINEAR16).
"""

from typing import Final

from firmware.sensors.steps import At, BadAnswer, Readings, Steps, WrongPart
from hal.errors import Unavailable
from hal.smbus_ports import DataNack, SmbusFault
from protocol.smbus.pmbus import VoutFormat, VoutMode, linear11_milli

PAGE: Final = 0x00
CLEAR_FAULTS: Final = 0x03
VOUT_MODE: Final = 0x20
STATUS_WORD: Final = 0x79
READ_VIN: Final = 0x88
READ_VOUT: Final = 0x8B
READ_IOUT: Final = 0x8C
READ_TEMPERATURE_1: Final = 0x8D
READ_POUT: Final = 0x96
PMBUS_REVISION: Final = 0x98
MFR_ID: Final = 0x99
MFR_MODEL: Final = 0x9A
REVISIONS: Final = (0x00, 0x11, 0x22, 0x33, 0x40, 0x42, 0x44)  # 1.0 to 1.4 of both parts

STATUS_BITS: Final = {  # 17.2: STATUS_WORD
    15: "vout",
    14: "iout_pout",
    13: "input",
    12: "mfr_specific",
    11: "power_good_negated",
    10: "fans",
    9: "other",
    8: "unknown",
    7: "busy",
    6: "off",
    5: "vout_ov_fault",
    4: "iout_oc_fault",
    3: "vin_uv_fault",
    2: "temperature",
    1: "cml",
    0: "none_of_the_above",
}
VID_STEPS: Final = {  # VOUT_MODE's table -> (uV of code 1, uV a code): TPS53679, 7.6; 0 is off
    0x01: (250_000, 5_000),  # VR12.0
    0x02: (500_000, 10_000),  # VR12.5
    0x04: (500_000, 10_000),  # VR13, 10 mV
    0x05: (250_000, 5_000),  # IMVP8
    0x07: (250_000, 5_000),  # VR13, 5 mV
}


class PmbusVrm:
    """One regulator; `page` is the rail, None for a part that has only one and no PAGE."""

    part = "pmbus"

    def __init__(self, at: At, *, page: int | None = 0) -> None:
        self.at = at
        self.page = page
        self._mode: VoutMode | None = None  # VOUT_MODE does not change while a rail is on

    def identify(self) -> Steps[str]:
        """The maker's name and model, where it says them."""
        revision = yield from self.at.read_byte(PMBUS_REVISION)
        if revision == 0xFF:
            raise WrongPart(f"{self.at}: PMBUS_REVISION reads 0xff: no PMBus part answers")
        words: list[str] = []
        for command in (MFR_ID, MFR_MODEL):
            try:
                text = (yield from self.at.read_block(command)).decode("latin-1")
            except (SmbusFault, Unavailable):
                continue  # optional: 22.2
            words.append(text.strip("\0 "))
        return " ".join(word for word in words if word.isprintable()) or "PMBus"

    def configure(self) -> Steps[None]:
        """Nothing that changes a rail: only what is needed to read it."""
        yield from self._choose()
        self._mode = VoutMode.from_bytes(bytes([(yield from self.at.read_byte(VOUT_MODE))]))

    def read(self) -> Steps[Readings]:
        """`status` is STATUS_WORD; `iout_ma` and the rest are None where a part does not have
        them."""
        if self._mode is None:
            yield from self.configure()
        else:
            yield from self._choose()
        vout = yield from self.at.read_word(READ_VOUT)
        found: dict[str, int | None] = {"vout_mv": self._millivolts(vout)}
        for name, command in (
            ("vin_mv", READ_VIN),
            ("iout_ma", READ_IOUT),
            ("temp_mdegc", READ_TEMPERATURE_1),
            ("pout_mw", READ_POUT),
        ):
            try:
                found[name] = linear11_milli((yield from self.at.read_word(command)))
            except DataNack:
                found[name] = None
        found["status"] = int.from_bytes((yield from self.at.read_word(STATUS_WORD)), "little")
        return found

    def clear_faults(self) -> Steps[None]:
        """15.1: the status bits go, those whose cause remains come back."""
        yield from self._choose()
        yield from self.at.send_byte(CLEAR_FAULTS)

    def _choose(self) -> Steps[None]:
        """The rail: another program, or a reset of the part, may have chosen another."""
        if self.page is None:
            return
        if (yield from self.at.read_byte(PAGE)) != self.page:
            yield from self.at.write_byte(PAGE, self.page)
            now = yield from self.at.read_byte(PAGE)
            if now != self.page:
                raise WrongPart(f"{self.at}: PAGE reads {now} after {self.page} was written")

    def _millivolts(self, word: bytes) -> int:
        mode = self._mode
        assert mode is not None
        if mode.format is VoutFormat.VID:
            code = int.from_bytes(word, "little")
            if mode.parameter not in VID_STEPS:
                raise BadAnswer(f"{self.at}: VID table {mode.parameter:#04x} is not known")
            first_uv, step_uv = VID_STEPS[mode.parameter]
            return (first_uv + (code - 1) * step_uv) // 1000 if code else 0
        return mode.millivolts(word)


def status_words(status: int) -> tuple[str, ...]:
    """The bits of STATUS_WORD that are on."""
    return tuple(name for bit, name in STATUS_BITS.items() if status >> bit & 1)
