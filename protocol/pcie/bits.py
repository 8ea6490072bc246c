"""Registers of 16 and 32 bits as construct layouts, their fields from the top bit down."""

from typing import Any, Final

import construct as cs

_BITS: Final = {2: 16, 4: 32}


def register(size_bytes: int, fields: str) -> Any:
    """A little-endian register: "name:bits" words from its top bit down, "name" for one bit,
    which is a bool; "-" is reserved. ValueError when they don't fill it."""
    parts: list[Any] = []
    total = 0
    for word in fields.split():
        name, _, count = word.partition(":")
        bits = int(count or "1")
        total += bits
        if name == "-":
            parts.append(cs.Padding(bits))
        else:
            parts.append(name / (cs.BitsInteger(bits) if count else cs.Flag))
    if total != _BITS[size_bytes]:
        raise ValueError(f"fields of {total} bits in a register of {size_bytes} B: {fields}")
    return cs.ByteSwapped(cs.BitStruct(*parts))
