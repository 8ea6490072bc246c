"""MCTP packets on SMBus and I2C. DMTF DSP0237, section 6: the packet as one block write.

    destination address << 1 | 0 | 0F | byte count | source address << 1 | 1 | packet | PEC

The byte count covers the source address and the packet. The packet error code is mandatory and
covers everything from the destination address on. Both ends write: each must also be a target.
Facts and their sources: reference "mctp", 5.
"""

from dataclasses import dataclass
from typing import Any, Final

import construct as cs

from protocol.crc import pec8
from protocol.errors import ProtocolError
from protocol.mctp.packet import BASELINE_UNIT_BYTES, HEADER_BYTES, MIN_FRAGMENT_BYTES

COMMAND_CODE: Final = 0x0F  # 6.3.1: MCTP
OVERHEAD_BYTES: Final = 5  # addresses, command, count, PEC
BASELINE_FRAME_BYTES: Final = OVERHEAD_BYTES + HEADER_BYTES + BASELINE_UNIT_BYTES
MAX_PACKET_BYTES: Final = 254  # a count is a byte and covers the source address too
ADDRESS_LAST: Final = 0x7F

FRAME_WIRE: Final = cs.Struct(
    "dest" / cs.BitStruct("address" / cs.BitsInteger(7), "write" / cs.Const(0, cs.Bit)),
    "command" / cs.Const(COMMAND_CODE, cs.Int8ub),
    "packet_and_source"
    / cs.Prefixed(
        cs.Int8ub,
        cs.Struct(
            "source" / cs.BitStruct("address" / cs.BitsInteger(7), "mctp" / cs.Const(1, cs.Bit)),
            "packet" / cs.GreedyBytes,
        ),
    ),
    "pec" / cs.Int8ub,
    cs.Terminated,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SmbusFrame:
    """One packet on its way from one address to another; addresses are 7 bits."""

    dest_address: int
    src_address: int
    packet: bytes

    @classmethod
    def from_bytes(cls, frame: bytes) -> "SmbusFrame":
        """A whole transaction, from the destination's address byte to the PEC.

        Raises `ProtocolError`: "short", "bad_direction", "bad_command", "bad_count", "bad_source",
        "bad_pec", or "bad_length" for a packet without payload.
        """
        _check_head(frame)
        try:
            raw: Any = FRAME_WIRE.parse(frame)
        except cs.ConstructError as exc:
            raise ProtocolError(f"MCTP over SMBus: {exc}", frame=frame, code="bad_frame") from exc
        want = pec8(frame[:-1])
        if raw.pec != want:
            raise ProtocolError(
                f"PEC is 0x{raw.pec:02x}, not 0x{want:02x}",
                frame=frame,
                code="bad_pec",
                offset=len(frame) - 1,
            )
        inner = raw.packet_and_source
        if len(inner.packet) < MIN_FRAGMENT_BYTES:
            raise ProtocolError(
                f"a packet of {len(inner.packet)} bytes, at least {MIN_FRAGMENT_BYTES}",
                frame=frame,
                code="bad_length",
                offset=2,
            )
        return cls(
            dest_address=raw.dest.address,
            src_address=inner.source.address,
            packet=bytes(inner.packet),
        )

    def to_bytes(self) -> bytes:
        """The transaction. Raises `ValueError` for addresses or lengths out of range."""
        if not 0 <= self.dest_address <= ADDRESS_LAST or not 0 <= self.src_address <= ADDRESS_LAST:
            raise ValueError(f"addresses are 7 bits: {self.dest_address}, {self.src_address}")
        if not MIN_FRAGMENT_BYTES <= len(self.packet) <= MAX_PACKET_BYTES:
            raise ValueError(
                f"a packet has {MIN_FRAGMENT_BYTES} to {MAX_PACKET_BYTES} bytes, "
                f"not {len(self.packet)}"
            )
        block = bytes([self.src_address << 1 | 1]) + self.packet
        head = bytes([self.dest_address << 1, COMMAND_CODE, len(block)])
        body = head + block
        return body + bytes([pec8(body)])


def _check_head(frame: bytes) -> None:
    """Every length is checked before it is believed, and the first wrong byte is named."""
    least = OVERHEAD_BYTES
    if len(frame) >= 1 and frame[0] & 1:
        raise ProtocolError(
            "the destination address has the read bit; packets are written",
            frame=frame,
            code="bad_direction",
            offset=0,
        )
    if len(frame) >= 2 and frame[1] != COMMAND_CODE:
        raise ProtocolError(
            f"command code is 0x{frame[1]:02x}, not 0x{COMMAND_CODE:02x}",
            frame=frame,
            code="bad_command",
            offset=1,
        )
    if len(frame) >= 3 and frame[2] != len(frame) - 4:
        raise ProtocolError(
            f"byte count {frame[2]}, but {max(0, len(frame) - 4)} bytes and a PEC follow",
            frame=frame,
            code="bad_count",
            offset=2,
        )
    if len(frame) < least:
        raise ProtocolError(
            f"{len(frame)} bytes, at least {least}", frame=frame, code="short", offset=len(frame)
        )
    if not frame[3] & 1:
        raise ProtocolError(
            "bit 0 of the source address is 0: this is not MCTP (IPMI writes so)",
            frame=frame,
            code="bad_source",
            offset=3,
        )
