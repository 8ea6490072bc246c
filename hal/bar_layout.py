"""How one shared memory (a BAR, CXL memory, a file) is divided between two ends. SPEC section 14.6.

    0x000   header: magic "APFB", version, header bytes, size, half bytes, offsets, CRC-32C
    0x080   count of a's rings    0x0C0   count of b's rings    (the polled doorbell)
    0x1000  half a: what a writes and b reads
    0x1000 + half   half b: what b writes and a reads

Each end computes the layout from the size alone, so the header is no secret of one end: it is there
so that an end of another version, or one that sees another size, is refused in words instead of
being misread; and its magic can't read as zeros or as ones, so a memory that has vanished shows.
Little-endian. What it holds is checked before it is believed.
"""

import struct
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from fastcrc import crc32

from hal.errors import Refused

Side: TypeAlias = Literal["a", "b"]

MAGIC: Final = 0x42465041  # the bytes "APFB"
VERSION: Final = 1
HEADER_BYTES: Final = 48
HEADER_PAGE_BYTES: Final = 4096
OFF_BELL: Final = {"a": 0x080, "b": 0x0C0}
MIN_BYTES: Final = 3 * 4096  # the header's page and two halves of a page
MAX_BYTES: Final = 1 << 33  # offsets in a half are 32 bits
_HEADER: Final = struct.Struct("<IHHQQQQ")
_CRC: Final = struct.Struct("<I")
CRC_OFFSET: Final = 44


@dataclass(frozen=True, slots=True, kw_only=True)
class BarLayout:
    """Where the parts are. Offsets and sizes are bytes."""

    size_bytes: int
    half_bytes: int

    @classmethod
    def of(cls, size_bytes: int) -> "BarLayout":
        """Raises Refused for a size that can't be divided."""
        if not MIN_BYTES <= size_bytes <= MAX_BYTES:
            raise Refused(
                f"a shared memory of {size_bytes} B: wanted {MIN_BYTES} to {MAX_BYTES} B (a page "
                "of header and two halves of whole pages)"
            )
        half_bytes = (size_bytes - HEADER_PAGE_BYTES) // 2 // 4096 * 4096
        return cls(size_bytes=size_bytes, half_bytes=half_bytes)

    def half_offset(self, side: Side) -> int:
        """The half that this side writes."""
        return HEADER_PAGE_BYTES + (0 if side == "a" else self.half_bytes)

    def header(self) -> bytes:
        """HEADER_BYTES of it."""
        data = _HEADER.pack(
            MAGIC,
            VERSION,
            HEADER_BYTES,
            self.size_bytes,
            self.half_bytes,
            self.half_offset("a"),
            self.half_offset("b"),
        )
        data += bytes(CRC_OFFSET - len(data))
        return data + _CRC.pack(crc32c_of_header(data))

    def problem(self, found: bytes) -> str | None:
        """What is wrong with a header that was found, or None."""
        if found == self.header():
            return None
        magic, version, header_bytes, size, half, at_a, at_b = _HEADER.unpack_from(found)
        if magic != MAGIC:
            return f"its first word is {magic:#010x}, not {MAGIC:#010x} (APFB)"
        if version != VERSION or header_bytes != HEADER_BYTES:
            return f"it is of version {version} with a header of {header_bytes} B, we speak 1"
        if _CRC.unpack_from(found, CRC_OFFSET)[0] != crc32c_of_header(found[:CRC_OFFSET]):
            return "the CRC of its header is wrong"
        return (
            f"the other end sees {size} B with halves of {half} B at {at_a:#x} and {at_b:#x}, we "
            f"see {self.size_bytes} B with halves of {self.half_bytes} B"
        )


def crc32c_of_header(data: bytes) -> int:
    value: int = crc32.iscsi(data)
    return value
