"""NVMe-MI messages over MCTP (message type 4), as far as they are the same for all commands.

Ref: NVM Express Management Interface 1.2: 3.1.1 (message header, message integrity check), 4.2
(control primitives), 5 (MI commands), 6 (admin commands), 4.1.2 (response status). The check is
CRC-32C over all before it, least significant byte first. A response need not be a multiple of
four bytes long. Facts and their sources: reference "mctp", 9.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, Self

import construct as cs

from protocol.crc import crc32c
from protocol.errors import ProtocolError

MESSAGE_TYPE: Final = 0x04
TYPE_WITH_CHECK: Final = 0x84  # IC is always set: 3.1.1
HEADER_BYTES: Final = 4
MIC_BYTES: Final = 4
STATUS_MORE_PROCESSING: Final = 0x01
WAIT_UNIT_MS: Final = 100  # of More Processing Required


class MessageKind(IntEnum):
    """NMIMT: NVMe-MI message type, 3.1.1."""

    CONTROL_PRIMITIVE = 0
    MI_COMMAND = 1
    ADMIN_COMMAND = 2
    PCIE_COMMAND = 4
    ASYNCHRONOUS_EVENT = 5


class MiOpcode(IntEnum):
    """NVMe-MI commands, 5."""

    READ_DATA_STRUCTURE = 0x00
    SUBSYSTEM_HEALTH_STATUS_POLL = 0x01
    CONTROLLER_HEALTH_STATUS_POLL = 0x02
    CONFIGURATION_SET = 0x03
    CONFIGURATION_GET = 0x04
    VPD_READ = 0x05
    VPD_WRITE = 0x06
    RESET = 0x07


class ResponseStatus(IntEnum):
    """4.1.2."""

    SUCCESS = 0x00
    MORE_PROCESSING_REQUIRED = 0x01
    INTERNAL_ERROR = 0x02
    INVALID_COMMAND_OPCODE = 0x03
    INVALID_PARAMETER = 0x04
    INVALID_COMMAND_SIZE = 0x05
    INVALID_COMMAND_INPUT_DATA_SIZE = 0x06
    ACCESS_DENIED = 0x07


MESSAGE_WIRE: Final = cs.Struct(
    "type" / cs.Const(TYPE_WITH_CHECK, cs.Int8ul),
    "nmp"
    / cs.BitStruct(
        "ror" / cs.Flag,  # request or response: 1 is a response
        "nmimt" / cs.BitsInteger(4),
        "reserved" / cs.BitsInteger(2),
        "csi" / cs.Bit,  # command slot
    ),
    "meb" / cs.Int8ul,
    "reserved" / cs.Int8ul,
    "body" / cs.GreedyBytes,
)
MI_REQUEST_WIRE: Final = cs.Struct(  # 5, figure "NVMe-MI command message format"
    "opcode" / cs.Int8ul,
    "reserved" / cs.Bytes(3),
    "cdw0" / cs.Int32ul,
    "cdw1" / cs.Int32ul,
    "data" / cs.GreedyBytes,
)
RESPONSE_WIRE: Final = cs.Struct(  # 4.1.2; what the three bytes mean is the command's own
    "status" / cs.Int8ul,
    "nmresp" / cs.Bytes(3),
    "data" / cs.GreedyBytes,
)
CONTROL_WIRE: Final = cs.Struct(  # 4.2.1; of a response: status, tag, CPSR
    "opcode" / cs.Int8ul,
    "tag" / cs.Int8ul,
    "parameter" / cs.Int16ul,
    cs.Terminated,
)
ADMIN_REQUEST_WIRE: Final = cs.Struct(  # 6.1: the head of it
    "opcode" / cs.Int8ul,
    "cflgs" / cs.Int8ul,
    "ctlid" / cs.Int16ul,
    "data" / cs.GreedyBytes,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NvmeMiMessage:
    """A whole message; `body` is what stands between the header and the integrity check."""

    response: bool
    kind: int  # MessageKind, where it is one
    slot: int = 0
    meb: int = 0
    body: bytes

    @classmethod
    def from_bytes(cls, message: bytes) -> Self:
        """From the type byte to the integrity check. Raises `ProtocolError`: "short", "bad_type"
        or "bad_mic"."""
        least = HEADER_BYTES + MIC_BYTES
        if len(message) < least:
            raise ProtocolError(
                f"{len(message)} bytes, at least {least}",
                frame=message,
                code="short",
                offset=len(message),
            )
        if message[0] != TYPE_WITH_CHECK:
            raise ProtocolError(
                f"type byte is 0x{message[0]:02x}, not 0x{TYPE_WITH_CHECK:02x} "
                "(type 4 with an integrity check)",
                frame=message,
                code="bad_type",
                offset=0,
            )
        covered, mic = message[:-MIC_BYTES], int.from_bytes(message[-MIC_BYTES:], "little")
        want = crc32c(covered)
        if mic != want:
            raise ProtocolError(
                f"integrity check is 0x{mic:08x}, not 0x{want:08x}",
                frame=message,
                code="bad_mic",
                offset=len(covered),
            )
        raw: Any = MESSAGE_WIRE.parse(covered)
        return cls(
            response=raw.nmp.ror,
            kind=raw.nmp.nmimt,
            slot=raw.nmp.csi,
            meb=raw.meb,
            body=bytes(raw.body),
        )

    def to_bytes(self) -> bytes:
        """With its integrity check. Raises `ValueError`."""
        if not 0 <= self.kind <= 15 or self.slot not in (0, 1) or not 0 <= self.meb <= 0xFF:
            raise ValueError(f"kind {self.kind}, slot {self.slot}, meb {self.meb}: out of range")
        covered: bytes = MESSAGE_WIRE.build(
            {
                "nmp": {
                    "ror": self.response, "nmimt": self.kind, "reserved": 0, "csi": self.slot,
                },
                "meb": self.meb,
                "reserved": 0,
                "body": self.body,
            }
        )  # fmt: skip
        return covered + crc32c(covered).to_bytes(MIC_BYTES, "little")


def mi_request(opcode: int, *, cdw0: int = 0, cdw1: int = 0, data: bytes = b"") -> NvmeMiMessage:
    """A request of the MI command set."""
    body = MI_REQUEST_WIRE.build(
        {"opcode": opcode, "reserved": bytes(3), "cdw0": cdw0, "cdw1": cdw1, "data": data}
    )
    return NvmeMiMessage(response=False, kind=MessageKind.MI_COMMAND, body=body)


def wait_ms(response: NvmeMiMessage) -> int | None:
    """How long "more processing required" may last: 4.1.2.1; None for other answers."""
    body = response.body
    if not response.response or len(body) < 4 or body[0] != STATUS_MORE_PROCESSING:
        return None
    return int.from_bytes(body[2:4], "little") * WAIT_UNIT_MS
