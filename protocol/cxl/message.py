"""The CCI message that carries a command over MCTP, and inside of a tunnel. CXL 3.1, 7.6.3.

    category(3:0) 0 request, 1 response | tag | reserved | opcode, 16 bits |
    payload length, 20 bits, reserved(2:0), background operation(23) |
    return code, 16 bits | vendor's extended status, 16 bits | payload

As MCTP messages they stand behind the type byte: 07h for the FM API (DSP0234), 08h for the CCI of
a type 3 device (DSP0281). A request's return code is reserved; some senders leave a mark in its
vendor status (ABCDh), which is kept and means nothing.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Self

import construct as cs

from protocol.cxl.layout import reserved
from protocol.errors import ProtocolError

TYPE_FM_API: Final = 0x07  # DSP0239
TYPE_CCI: Final = 0x08
TYPES: Final = (TYPE_FM_API, TYPE_CCI)

HEADER_BYTES: Final = 12
PAYLOAD_MAX_BYTES: Final = (1 << 20) - 1
FM_API_FIRST: Final = 0x5100  # opcodes of the FM API, 7.6.7
FM_API_END: Final = 0x5A00
VENDOR_STATUS_MAX: Final = 0xFFFF
RESPONSE_MS: Final = 2000  # within which a response must come, 9.20.2

CCI_HEADER_WIRE: Final = cs.Struct(
    "category" / cs.ExprAdapter(cs.Int8ul, lambda v, _: v & 0x0F, lambda v, _: v),
    "tag" / cs.Int8ul,
    "reserved" / reserved(1),
    "opcode" / cs.Int16ul,
    "length" / cs.Int24ul,
    "return_code" / cs.Int16ul,
    "vendor_status" / cs.Int16ul,
)
_LENGTH_MASK: Final = 0x0F_FFFF
_BACKGROUND: Final = 1 << 23


class Category(IntEnum):
    REQUEST = 0
    RESPONSE = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CciMessage:
    """One command or one answer, without an MCTP type byte."""

    category: Category
    tag: int = 0  # an answer has its request's
    opcode: int
    payload: bytes = b""
    return_code: int = 0  # of an answer
    background: bool = False  # an answer: the operation goes on in the background
    vendor_status: int = 0

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """From the header on; the payload must be the rest.

        Raises `ProtocolError`: "short", "bad_category", or "bad_length" when the header's length
        is not that of what follows.
        """
        data = bytes(data)
        if len(data) < HEADER_BYTES:
            text = f"a CCI header needs {HEADER_BYTES} bytes, got {len(data)}"
            raise ProtocolError(text, frame=data, code="short", offset=len(data))
        raw = CCI_HEADER_WIRE.parse(data)
        if raw.category not in (Category.REQUEST, Category.RESPONSE):
            text = f"category {raw.category} is neither request (0) nor response (1)"
            raise ProtocolError(text, frame=data, code="bad_category", offset=0)
        length = raw.length & _LENGTH_MASK
        if length != len(data) - HEADER_BYTES:
            text = f"the header says {length} bytes of payload, {len(data) - HEADER_BYTES} came"
            raise ProtocolError(text, frame=data, code="bad_length", offset=5)
        return cls(
            category=Category(raw.category),
            tag=raw.tag,
            opcode=raw.opcode,
            payload=data[HEADER_BYTES:],
            return_code=raw.return_code,
            background=raw.length & _BACKGROUND != 0,
            vendor_status=raw.vendor_status,
        )

    def to_bytes(self) -> bytes:
        """Raises `ValueError` for values out of range."""
        if len(self.payload) > PAYLOAD_MAX_BYTES:
            raise ValueError(f"payload of {len(self.payload)} bytes, at most {PAYLOAD_MAX_BYTES}")
        try:
            head = CCI_HEADER_WIRE.build(
                {
                    "category": int(self.category),
                    "tag": self.tag,
                    "opcode": self.opcode,
                    "length": len(self.payload) | (_BACKGROUND if self.background else 0),
                    "return_code": self.return_code,
                    "vendor_status": self.vendor_status,
                }
            )
        except cs.ConstructError as exc:
            raise ValueError(f"CCI header: {exc}") from exc
        return bytes(head) + self.payload

    def answers(self, request: "CciMessage") -> bool:
        """Whether this is the answer to `request`: category, tag and opcode."""
        return (
            self.category is Category.RESPONSE
            and request.category is Category.REQUEST
            and (self.tag, self.opcode) == (request.tag, request.opcode)
        )


def mctp_type(opcode: int) -> int:
    """The MCTP message type that an opcode belongs to when it is sent to its own component."""
    return TYPE_FM_API if FM_API_FIRST <= opcode < FM_API_END else TYPE_CCI


def to_mctp(message: CciMessage, kind: int | None = None) -> bytes:
    """The whole MCTP message; `kind` is its type, None for `mctp_type` of its opcode."""
    found = mctp_type(message.opcode) if kind is None else kind
    if found not in TYPES:
        raise ValueError(f"MCTP message type 0x{found:02X} carries no CCI message")
    return bytes([found]) + message.to_bytes()


def from_mctp(data: bytes) -> tuple[int, CciMessage]:
    """Type and message. Raises `ProtocolError`: "bad_type", and those of `CciMessage.from_bytes`,
    with offsets that count from the type byte."""
    data = bytes(data)
    if not data or data[0] not in TYPES:
        found = f"0x{data[0]:02X}" if data else "absent"
        raise ProtocolError(
            f"MCTP message type {found} carries no CCI message: want 07 (FM API) or 08 (CCI)",
            frame=data,
            code="bad_type",
            offset=0,
        )
    try:
        return data[0], CciMessage.from_bytes(data[1:])
    except ProtocolError as exc:
        offset = None if exc.offset is None else exc.offset + 1
        raise ProtocolError(exc.detail, frame=data, code=exc.code, offset=offset) from exc
