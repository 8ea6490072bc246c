"""The fields of a FRU's areas: a type/length byte and what it covers.

Ref: IPMI Platform Management FRU Information Storage Definition 1.0, revision 1.3: 13 (type/length
byte), 13.1 (binary coded decimal plus), 13.2 and 13.3 (6-bit ASCII, packed), 15 (language codes).
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, Self

import construct as cs

from protocol.errors import ProtocolError

END_OF_FIELDS: Final = 0xC1  # 13: an 8-bit field of one character can't be said
MAX_FIELD_BYTES: Final = 63
LANGUAGE_ENGLISH: Final = frozenset({0, 25})  # 15: 0 is English by default, 25 is en

TYPE_LENGTH_WIRE: Final = cs.BitStruct("type" / cs.BitsInteger(2), "length" / cs.BitsInteger(6))
FIELD_WIRE: Final = cs.Struct("head" / TYPE_LENGTH_WIRE, "data" / cs.Bytes(cs.this.head.length))
_BCD_PLUS: Final = "0123456789 -."  # 13.1; Dh to Fh are reserved
_SIX_BIT_FIRST: Final = 0x20  # 13.2: 0 is a space, 3Fh is "_"


class FieldType(IntEnum):
    """Bits 7:6 of the type/length byte."""

    BINARY = 0
    BCD_PLUS = 1
    SIX_BIT = 2
    TEXT = 3  # 8-bit ASCII and Latin 1; UCS-2 where the area's language is not English


@dataclass(frozen=True, slots=True, kw_only=True)
class FruField:
    """One field as it is stored."""

    type: FieldType
    data: bytes

    @classmethod
    def of(cls, text: str, *, packed: bool = False) -> Self:
        """A field that holds this text: 8-bit, or 6-bit where `packed`. Raises ValueError for
        what does not fit, or for one 8-bit character (its type/length would be the end mark)."""
        if packed:
            data = pack_six_bit(text)
        else:
            try:
                data = text.encode("latin-1")
            except UnicodeEncodeError as exc:
                raise ValueError(f"{text!r}: want Latin 1 characters only") from exc
            if len(data) == 1:
                return cls(type=FieldType.SIX_BIT, data=pack_six_bit(text.upper()))
        if len(data) > MAX_FIELD_BYTES:
            raise ValueError(f"{text[:20]!r}...: {len(data)} bytes, at most {MAX_FIELD_BYTES}")
        return cls(type=FieldType.SIX_BIT if packed else FieldType.TEXT, data=data)

    def text(self, language: int = 0) -> str:
        """What it says; binary in hexadecimal. Characters that can't be are shown as U+FFFD."""
        if self.type is FieldType.BINARY:
            return self.data.hex()
        if self.type is FieldType.BCD_PLUS:
            digits = (nibble for byte in self.data for nibble in (byte >> 4, byte & 0x0F))
            return "".join(_BCD_PLUS[n] if n < len(_BCD_PLUS) else "\ufffd" for n in digits)
        if self.type is FieldType.SIX_BIT:
            return unpack_six_bit(self.data)
        if language in LANGUAGE_ENGLISH:
            return self.data.decode("latin-1")
        return self.data.decode("utf-16-le", errors="replace")

    def to_bytes(self) -> bytes:
        """With its type/length byte. Raises ValueError."""
        if len(self.data) > MAX_FIELD_BYTES:
            raise ValueError(f"a field of {len(self.data)} bytes, at most {MAX_FIELD_BYTES}")
        head: bytes = TYPE_LENGTH_WIRE.build({"type": self.type, "length": len(self.data)})
        if head[0] == END_OF_FIELDS:
            raise ValueError("an 8-bit field of one character would be the end mark")
        return head + self.data


EMPTY: Final = FruField(type=FieldType.BINARY, data=b"")


def pack_six_bit(text: str) -> bytes:
    """13.3: four characters in three bytes, the first in the lowest bits. Raises ValueError."""
    codes = [ord(character) - _SIX_BIT_FIRST for character in text]
    if any(not 0 <= code <= 0x3F for code in codes):
        raise ValueError(f"{text!r}: 6-bit ASCII is a space to '_', no lower case")
    bits = sum(code << 6 * at for at, code in enumerate(codes))
    return bits.to_bytes((6 * len(codes) + 7) // 8, "little")


def unpack_six_bit(data: bytes) -> str:
    """13.3, the other way. Bits that do not fill a character are dropped; padding spaces too."""
    bits = int.from_bytes(data, "little")
    count = 8 * len(data) // 6
    text = "".join(chr((bits >> 6 * at & 0x3F) + _SIX_BIT_FIRST) for at in range(count))
    return text.rstrip(" ")


def read_fields(data: bytes, start: int, whole: bytes) -> tuple[list[FruField], int]:
    """Fields up to the end mark, and where that stands. `whole` is for errors: the area.
    Raises ProtocolError "no_end" or "cut"."""
    found: list[FruField] = []
    at = start
    while at < len(data):
        if data[at] == END_OF_FIELDS:
            return found, at
        try:
            raw: Any = FIELD_WIRE.parse(data[at:])
        except cs.ConstructError as exc:
            raise ProtocolError(
                f"the field at byte {at} goes beyond its area",
                frame=whole,
                code="cut",
                offset=at,
            ) from exc
        found.append(FruField(type=FieldType(raw.head.type), data=bytes(raw.data)))
        at += 1 + len(raw.data)
    raise ProtocolError(
        "no end mark (C1) behind the fields", frame=whole, code="no_end", offset=len(data)
    )
