"""A register model of a PMBus voltage regulator with pages.

Ref: PMBus Power System Management Protocol Specification, Part II, revision 1.3: 7 (number
formats), 8.3 (VOUT_MODE), 11.10 (PAGE), 17 (status), 18 (readings), 14.1 (COEFFICIENTS); words are
sent with the least significant byte first, with a packet error code.
"""

from dataclasses import dataclass
from typing import Final

from hal.mock.smbus_model import Register, RegisterModel

PAGE: Final = 0x00
CLEAR_FAULTS: Final = 0x03
VOUT_MODE: Final = 0x20
COEFFICIENTS: Final = 0x30
STATUS_BYTE: Final = 0x78
STATUS_WORD: Final = 0x79
STATUS_CML: Final = 0x7E
READ_VIN: Final = 0x88
READ_IIN: Final = 0x89
READ_VOUT: Final = 0x8B
READ_IOUT: Final = 0x8C
READ_TEMPERATURE_1: Final = 0x8D
READ_POUT: Final = 0x96
READ_PIN: Final = 0x97
PMBUS_REVISION: Final = 0x98
MFR_ID: Final = 0x99
MFR_MODEL: Final = 0x9A


def linear11(value_milli: int) -> bytes:
    """The closest number of that format (7.3), with the finest exponent that fits."""
    for exponent in range(-16, 16):
        step = 2.0**exponent * 1000
        mantissa = round(value_milli / step)
        if -1024 <= mantissa <= 1023:
            word = (exponent & 0x1F) << 11 | mantissa & 0x7FF
            return word.to_bytes(2, "little")
    raise ValueError(f"{value_milli} thousandths do not fit")


@dataclass(slots=True, kw_only=True)
class Rail:
    """What one page of it does."""

    vout_mv: int = 900
    iout_ma: int = 20_000
    temp_mdegc: int = 45_000
    vout_exponent: int = -12
    status: int = 0  # STATUS_WORD


class PmbusVrm(RegisterModel):
    """One regulator. Change `rails` and `vin_mv` underneath it."""

    def __init__(
        self,
        address: int = 0x58,
        *,
        rails: int = 1,
        mfr_id: bytes = b"TI",
        mfr_model: bytes = b"TPS53679",
    ) -> None:
        super().__init__(address, pec=True)
        self.rails = [Rail() for _ in range(rails)]
        self.vin_mv = 12_000
        self.efficiency_percent = 90
        self.registers = {
            PAGE: Register(b"\0", written=self._page_written),
            0x01: Register(b"\x80"),  # OPERATION: on
            CLEAR_FAULTS: Register(b"", written=self._clear),
            0x19: Register(b"\xb0", read_only=True),  # CAPABILITY: PEC, 400 kHz
            VOUT_MODE: Register(b"\x14", read_only=True, refresh=self._refresh),
            COEFFICIENTS: Register(b"", block=True, process=self._coefficients),
            STATUS_BYTE: Register(b"\0", read_only=True, refresh=self._refresh),
            STATUS_WORD: Register(b"\0\0", read_only=True, refresh=self._refresh),
            STATUS_CML: Register(b"\0", read_only=True),
            PMBUS_REVISION: Register(b"\x33", read_only=True),  # 1.3, parts I and II
            MFR_ID: Register(mfr_id, read_only=True, block=True),
            MFR_MODEL: Register(mfr_model, read_only=True, block=True),
        }
        for command in (
            READ_VIN, READ_IIN, READ_VOUT, READ_IOUT, READ_TEMPERATURE_1, READ_POUT, READ_PIN,
        ):  # fmt: skip
            self.registers[command] = Register(b"\0\0", read_only=True, refresh=self._refresh)

    @property
    def rail(self) -> Rail:
        """The one that PAGE chooses."""
        return self.rails[self.peek(PAGE)[0]]

    def _page_written(self) -> None:
        if self.peek(PAGE)[0] >= len(self.rails):  # 11.10: an invalid page; CML, and page stays
            self.poke(PAGE, b"\0")
            self.poke(STATUS_CML, b"\x40")
            self.rails[0].status |= 0x0002

    def _clear(self) -> None:
        for rail in self.rails:
            rail.status = 0
        self.poke(STATUS_CML, b"\0")

    def _coefficients(self, _query: bytes) -> bytes:
        """m = 1, b = 0, R = 3 for whatever is asked: direct values in thousandths."""
        return (1).to_bytes(2, "little") + (0).to_bytes(2, "little") + b"\x03"

    def _refresh(self) -> None:
        rail = self.rail
        vout = rail.vout_mv * 2**-rail.vout_exponent // 1000
        pout_mw = rail.vout_mv * rail.iout_ma // 1000
        pin_mw = pout_mw * 100 // self.efficiency_percent
        self.poke(VOUT_MODE, bytes([rail.vout_exponent & 0x1F]))
        self.poke(STATUS_WORD, rail.status.to_bytes(2, "little"))
        self.poke(STATUS_BYTE, bytes([rail.status & 0xFF]))
        self.poke(READ_VOUT, (vout & 0xFFFF).to_bytes(2, "little"))
        for command, milli in (
            (READ_VIN, self.vin_mv),
            (READ_IIN, pin_mw * 1000 // self.vin_mv),
            (READ_IOUT, rail.iout_ma),
            (READ_TEMPERATURE_1, rail.temp_mdegc),
            (READ_POUT, pout_mw),
            (READ_PIN, pin_mw),
        ):
            self.poke(command, linear11(milli))
