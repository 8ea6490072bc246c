"""PMBus's formats of numbers, in integers. PMBus Power System Management Protocol Specification,
Part II, revision 1.3: 7.3 (LINEAR11), 7.4 (DIRECT), 8.3 (VOUT_MODE), 8.4 (LINEAR16: ULINEAR16).

Values are thousandths (milli-), rounded to the nearest, ties away from zero.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, Self

import construct as cs

from protocol.errors import ProtocolError

LINEAR11_WIRE: Final = cs.ByteSwapped(  # a word, least significant byte first
    cs.BitStruct(
        "exponent" / cs.BitsInteger(5, signed=True),
        "mantissa" / cs.BitsInteger(11, signed=True),
    )
)
VOUT_MODE_WIRE: Final = cs.BitStruct(  # 8.3
    "relative" / cs.Flag,
    "mode" / cs.BitsInteger(2),
    "parameter" / cs.BitsInteger(5),
)
COEFFICIENTS_WIRE: Final = cs.Struct(  # 14.1: what the block process call gives back
    "m" / cs.Int16sl,
    "b" / cs.Int16sl,
    "r" / cs.Int8sb,
    cs.Terminated,
)
WORD_WIRE: Final = cs.Struct("value" / cs.Int16ul, cs.Terminated)
SIGNED_WORD_WIRE: Final = cs.Struct("value" / cs.Int16sl, cs.Terminated)


class VoutFormat(IntEnum):
    """Bits 6:5 of VOUT_MODE."""

    ULINEAR16 = 0
    VID = 1
    DIRECT = 2
    IEEE_HALF = 3


def rounded(numerator: int, denominator: int) -> int:
    """The nearest integer, ties away from zero; `denominator` is positive."""
    half = denominator // 2
    if numerator >= 0:
        return (numerator + half) // denominator
    return -((-numerator + half) // denominator)


def scaled(mantissa: int, exponent: int) -> int:
    """mantissa * 2**exponent in thousandths."""
    if exponent >= 0:
        return mantissa * 1000 << exponent
    return rounded(mantissa * 1000, 1 << -exponent)


@dataclass(frozen=True, slots=True, kw_only=True)
class VoutMode:
    """How READ_VOUT and its like are to be read."""

    format: VoutFormat
    parameter: int  # an exponent (signed) for ULINEAR16, a VID code table for VID
    relative: bool = False

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        raw = _parse(VOUT_MODE_WIRE, data, 1, "VOUT_MODE")
        kind = VoutFormat(raw.mode)
        parameter = int(raw.parameter)
        if kind is VoutFormat.ULINEAR16 and parameter >= 16:
            parameter -= 32
        return cls(format=kind, parameter=parameter, relative=bool(raw.relative))

    def millivolts(self, data: bytes) -> int:
        """A voltage word of this mode. Raises ProtocolError "bad_mode" for a mode without a
        formula here (a VID table is the regulator maker's own)."""
        value = int(_parse(WORD_WIRE, data, 2, "voltage").value)
        if self.format is not VoutFormat.ULINEAR16:
            raise ProtocolError(
                f"VOUT_MODE {self.format.name}: want ULINEAR16", frame=data, code="bad_mode"
            )
        return scaled(value, self.parameter)

    def word(self, millivolts: int) -> bytes:
        """The voltage as a word of this mode. Raises ValueError when it does not fit."""
        if self.format is not VoutFormat.ULINEAR16:
            raise ValueError(f"VOUT_MODE {self.format.name}: only ULINEAR16 is built")
        if self.parameter < 0:
            value = rounded(millivolts << -self.parameter, 1000)
        else:
            value = rounded(millivolts, 1000 << self.parameter)
        if not 0 <= value <= 0xFFFF:
            raise ValueError(f"{millivolts} mV is outside 16 bits at exponent {self.parameter}")
        return value.to_bytes(2, "little")


def linear11_milli(data: bytes) -> int:
    """A LINEAR11 word in thousandths of its unit."""
    raw = _parse(LINEAR11_WIRE, data, 2, "LINEAR11")
    return scaled(int(raw.mantissa), int(raw.exponent))


def linear11_word(milli: int) -> bytes:
    """The closest LINEAR11 word, with the finest exponent that fits. Raises ValueError."""
    for exponent in range(-16, 16):
        if exponent < 0:
            mantissa = rounded(milli << -exponent, 1000)
        else:
            mantissa = rounded(milli, 1000 << exponent)
        if -1024 <= mantissa <= 1023:
            word: bytes = LINEAR11_WIRE.build({"exponent": exponent, "mantissa": mantissa})
            return word
    raise ValueError(f"{milli} thousandths do not fit LINEAR11")


@dataclass(frozen=True, slots=True, kw_only=True)
class Coefficients:
    """DIRECT: X = (Y * 10**-R - b) / m."""

    m: int
    b: int
    r: int

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        raw = _parse(COEFFICIENTS_WIRE, data, 5, "COEFFICIENTS")
        if raw.m == 0:
            raise ProtocolError("COEFFICIENTS: m is 0", frame=data, code="bad_value", offset=0)
        return cls(m=int(raw.m), b=int(raw.b), r=int(raw.r))

    def milli(self, data: bytes) -> int:
        """A DIRECT word in thousandths of its unit."""
        value = int(_parse(SIGNED_WORD_WIRE, data, 2, "DIRECT").value)
        if self.r >= 0:
            numerator, denominator = value - self.b * 10**self.r, self.m * 10**self.r
        else:
            numerator, denominator = value * 10**-self.r - self.b, self.m
        if denominator < 0:
            numerator, denominator = -numerator, -denominator
        return rounded(numerator * 1000, denominator)


def _parse(wire: Any, data: bytes, size: int, what: str) -> Any:
    if len(data) != size:
        raise ProtocolError(
            f"{what}: {len(data)} bytes, want {size}", frame=data, code="bad_length"
        )
    try:
        return wire.parse(data)
    except cs.ConstructError as exc:
        raise ProtocolError(f"{what}: {exc}", frame=data, code="bad_value") from exc
