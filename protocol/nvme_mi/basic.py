"""The basic management command: an SMBus block read that a drive answers without any stack.

Ref: NVM Express Basic Management Command (technical note, 1.0a; in NVMe-MI 1.2, appendix A). The
drive is at 0x6A; a block read of command 0 gives its status, of command 8 who it is; a send byte
of FFh clears the arbitration bit. Facts and their sources: reference "mctp", 9.
"""

from dataclasses import dataclass
from typing import Any, Final, Self

import construct as cs

from protocol.errors import ProtocolError

ADDRESS: Final = 0x6A
COMMAND_STATUS: Final = 0x00
COMMAND_IDENTITY: Final = 0x08
CLEAR_ARBITRATION: Final = 0xFF
STATUS_BYTES: Final = 6
IDENTITY_BYTES: Final = 22

TEMP_MAX_DEGC: Final = 0x7E  # 7Fh: 127 or more
TEMP_127_OR_MORE: Final = 0x7F
TEMP_NO_DATA: Final = 0x80  # no data, or older than 5 s
TEMP_FAILED: Final = 0x81
TEMP_BELOW: Final = 0xC4  # -60 or less; C5h to FFh are two's complement

STATUS_WIRE: Final = cs.Struct(
    "flags"
    / cs.BitStruct(
        "smbus_arbitration" / cs.Flag,
        "drive_not_ready" / cs.Flag,
        "drive_functional" / cs.Flag,
        "reset_not_required" / cs.Flag,
        "port_0_link_active" / cs.Flag,
        "port_1_link_active" / cs.Flag,
        "reserved" / cs.BitsInteger(2),
    ),
    "smart_warnings" / cs.Int8ub,
    "composite_temperature" / cs.Int8ub,
    "percentage_drive_life_used" / cs.Int8ub,
    "reserved" / cs.Bytes(2),
    cs.Terminated,
)
IDENTITY_WIRE: Final = cs.Struct(
    "vendor_id" / cs.Int16ub,  # the most significant byte first, unlike all else of NVMe
    "serial_number" / cs.Bytes(20),
    cs.Terminated,
)
WARNINGS: Final = (  # bits of SMART, inverted on the wire
    "spare_space",
    "temperature",
    "reliability",
    "read_only",
    "volatile_backup",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DriveStatus:
    """Command 0."""

    smbus_arbitration: bool
    drive_not_ready: bool
    drive_functional: bool
    reset_not_required: bool
    port_0_link_active: bool
    port_1_link_active: bool
    smart_warnings: int  # as on the wire: a bit that is 0 is a warning
    composite_temperature: int  # as on the wire
    percentage_drive_life_used: int

    @classmethod
    def from_bytes(cls, block: bytes) -> Self:
        """The block without its count. Raises ProtocolError "bad_length"."""
        raw = _parse(STATUS_WIRE, block, STATUS_BYTES, "drive status")
        return cls(
            smbus_arbitration=raw.flags.smbus_arbitration,
            drive_not_ready=raw.flags.drive_not_ready,
            drive_functional=raw.flags.drive_functional,
            reset_not_required=raw.flags.reset_not_required,
            port_0_link_active=raw.flags.port_0_link_active,
            port_1_link_active=raw.flags.port_1_link_active,
            smart_warnings=raw.smart_warnings,
            composite_temperature=raw.composite_temperature,
            percentage_drive_life_used=raw.percentage_drive_life_used,
        )

    @property
    def temp_mdegc(self) -> int | None:
        """None where the drive has no data or its sensor failed; the ends of the range mean
        "or beyond"."""
        code = self.composite_temperature
        if code <= TEMP_127_OR_MORE:
            return code * 1000
        return (code - 256) * 1000 if code >= TEMP_BELOW else None

    @property
    def warnings(self) -> tuple[str, ...]:
        """The SMART warnings that are on."""
        bits = ~self.smart_warnings
        return tuple(name for bit, name in enumerate(WARNINGS) if bits >> bit & 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class DriveIdentity:
    """Command 8."""

    vendor_id: int
    serial_number: str

    @classmethod
    def from_bytes(cls, block: bytes) -> Self:
        """The block without its count. Raises ProtocolError "bad_length" or "bad_text"."""
        raw = _parse(IDENTITY_WIRE, block, IDENTITY_BYTES, "drive identity")
        try:
            serial = raw.serial_number.decode("ascii")
        except UnicodeDecodeError as exc:
            raise ProtocolError(
                "serial number is not ASCII", frame=block, code="bad_text", offset=2
            ) from exc
        return cls(vendor_id=raw.vendor_id, serial_number=serial.rstrip(" \0"))


def _parse(wire: Any, block: bytes, size: int, what: str) -> Any:
    if len(block) != size:
        raise ProtocolError(
            f"{what}: {len(block)} bytes, want {size}", frame=block, code="bad_length"
        )
    return wire.parse(block)
