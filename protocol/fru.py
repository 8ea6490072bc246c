"""What an EEPROM says of the board it is on: parse and build.

Ref: IPMI Platform Management FRU Information Storage Definition 1.0, revision 1.3: 8 (common
header), 9 (internal use), 10 (chassis), 11 (board), 12 (product), 16 (multirecords). Offsets and
lengths are multiples of 8 bytes; every checksum makes the sum of what it covers zero. Years ago
many boards were written with areas that overlap their neighbours: such images are refused.
"""

from dataclasses import dataclass
from typing import Any, Final, Self

import construct as cs

from protocol.errors import ProtocolError
from protocol.fru_fields import (
    EMPTY,
    END_OF_FIELDS,
    FieldType,
    FruField,
    pack_six_bit,
    read_fields,
    unpack_six_bit,
)

__all__ = [
    "BoardInfo", "ChassisInfo", "FieldType", "Fru", "FruField", "FruHeader", "MultiRecord",
    "ProductInfo", "area_bytes", "pack_six_bit", "unpack_six_bit",
]  # fmt: skip

FORMAT_VERSION: Final = 0x01
UNIT_BYTES: Final = 8
HEADER_BYTES: Final = 8
MAX_IMAGE_BYTES: Final = 255 * UNIT_BYTES + 255 * UNIT_BYTES  # the last area at the last offset
EPOCH_UNIX_S: Final = 820_454_400  # 11: minutes since 1996-01-01 00:00 UTC
UNSPECIFIED_MINUTES: Final = 0
MAX_CUSTOM: Final = 64
MAX_RECORDS: Final = 64

HEADER_WIRE: Final = cs.Struct(
    "format" / cs.Const(FORMAT_VERSION, cs.Int8ub),
    "internal" / cs.Int8ub,
    "chassis" / cs.Int8ub,
    "board" / cs.Int8ub,
    "product" / cs.Int8ub,
    "multirecord" / cs.Int8ub,
    "pad" / cs.Const(0, cs.Int8ub),
    "checksum" / cs.Int8ub,
)
CHASSIS_WIRE: Final = cs.Struct(
    "format" / cs.Const(FORMAT_VERSION, cs.Int8ub), "length" / cs.Int8ub, "chassis_type" / cs.Int8ub
)
BOARD_WIRE: Final = cs.Struct(
    "format" / cs.Const(FORMAT_VERSION, cs.Int8ub),
    "length" / cs.Int8ub,
    "language" / cs.Int8ub,
    "mfg_minutes" / cs.Int24ul,
)
PRODUCT_WIRE: Final = cs.Struct(
    "format" / cs.Const(FORMAT_VERSION, cs.Int8ub), "length" / cs.Int8ub, "language" / cs.Int8ub
)
RECORD_WIRE: Final = cs.Struct(  # 16.1
    "type" / cs.Int8ub,
    "flags" / cs.BitStruct("end" / cs.Flag, "reserved" / cs.BitsInteger(3), "format" / cs.Nibble),
    "length" / cs.Int8ub,
    "record_checksum" / cs.Int8ub,
    "header_checksum" / cs.Int8ub,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FruHeader:
    """Where the areas are, in bytes; 0 for one that is not there."""

    internal: int = 0
    chassis: int = 0
    board: int = 0
    product: int = 0
    multirecord: int = 0

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The first 8 bytes. Raises ProtocolError: "short", "blank" for an EEPROM that was never
        written, "bad_format", "bad_checksum"."""
        head = data[:HEADER_BYTES]
        if len(head) < HEADER_BYTES:
            raise ProtocolError(
                f"common header of {len(head)} bytes, want {HEADER_BYTES}",
                frame=data, code="short", offset=len(head),
            )  # fmt: skip
        if head in (b"\xff" * HEADER_BYTES, bytes(HEADER_BYTES)):
            raise ProtocolError("the EEPROM was never written", frame=head, code="blank", offset=0)
        raw = _parse(HEADER_WIRE, head, "common header")
        _check_sum(head, "common header")
        return cls(
            internal=raw.internal * UNIT_BYTES,
            chassis=raw.chassis * UNIT_BYTES,
            board=raw.board * UNIT_BYTES,
            product=raw.product * UNIT_BYTES,
            multirecord=raw.multirecord * UNIT_BYTES,
        )

    def to_bytes(self) -> bytes:
        head: bytes = HEADER_WIRE.build(
            {
                "internal": self.internal // UNIT_BYTES,
                "chassis": self.chassis // UNIT_BYTES,
                "board": self.board // UNIT_BYTES,
                "product": self.product // UNIT_BYTES,
                "multirecord": self.multirecord // UNIT_BYTES,
                "checksum": 0,
            }
        )
        return _summed(head[:-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class ChassisInfo:
    """10. `chassis_type` as in SMBIOS (DSP0134), table 17."""

    chassis_type: int = 0x02
    part_number: FruField = EMPTY
    serial_number: FruField = EMPTY
    custom: tuple[FruField, ...] = ()

    @classmethod
    def from_bytes(cls, area: bytes) -> Self:
        raw, fields = _read_area(CHASSIS_WIRE, area, "chassis area", 2)
        return cls(
            chassis_type=raw.chassis_type,
            part_number=fields[0],
            serial_number=fields[1],
            custom=tuple(fields[2:]),
        )

    def to_bytes(self) -> bytes:
        fields = (self.part_number, self.serial_number, *self.custom)
        return _area(bytes([self.chassis_type]), fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardInfo:
    """11. `mfg_minutes` since 1996; 0 is unspecified."""

    language: int = 0
    mfg_minutes: int = UNSPECIFIED_MINUTES
    manufacturer: FruField = EMPTY
    product_name: FruField = EMPTY
    serial_number: FruField = EMPTY
    part_number: FruField = EMPTY
    fru_file_id: FruField = EMPTY
    custom: tuple[FruField, ...] = ()

    @classmethod
    def from_bytes(cls, area: bytes) -> Self:
        raw, fields = _read_area(BOARD_WIRE, area, "board area", 5)
        return cls(
            language=raw.language,
            mfg_minutes=raw.mfg_minutes,
            manufacturer=fields[0],
            product_name=fields[1],
            serial_number=fields[2],
            part_number=fields[3],
            fru_file_id=fields[4],
            custom=tuple(fields[5:]),
        )

    @property
    def mfg_unix_s(self) -> int | None:
        """When it was made; None when that is not said."""
        return EPOCH_UNIX_S + 60 * self.mfg_minutes if self.mfg_minutes else None

    def to_bytes(self) -> bytes:
        if not 0 <= self.mfg_minutes < 1 << 24:
            raise ValueError(f"mfg_minutes {self.mfg_minutes} is outside 24 bits")
        fields = (
            self.manufacturer, self.product_name, self.serial_number, self.part_number,
            self.fru_file_id, *self.custom,
        )  # fmt: skip
        return _area(bytes([self.language]) + self.mfg_minutes.to_bytes(3, "little"), fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProductInfo:
    """12."""

    language: int = 0
    manufacturer: FruField = EMPTY
    product_name: FruField = EMPTY
    part_number: FruField = EMPTY
    version: FruField = EMPTY
    serial_number: FruField = EMPTY
    asset_tag: FruField = EMPTY
    fru_file_id: FruField = EMPTY
    custom: tuple[FruField, ...] = ()

    @classmethod
    def from_bytes(cls, area: bytes) -> Self:
        raw, fields = _read_area(PRODUCT_WIRE, area, "product area", 7)
        return cls(
            language=raw.language,
            manufacturer=fields[0],
            product_name=fields[1],
            part_number=fields[2],
            version=fields[3],
            serial_number=fields[4],
            asset_tag=fields[5],
            fru_file_id=fields[6],
            custom=tuple(fields[7:]),
        )

    def to_bytes(self) -> bytes:
        fields = (
            self.manufacturer, self.product_name, self.part_number, self.version,
            self.serial_number, self.asset_tag, self.fru_file_id, *self.custom,
        )  # fmt: skip
        return _area(bytes([self.language]), fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiRecord:
    """16.1: a record whose inside is its type's own business."""

    type: int
    format: int = 2
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Fru:
    """A whole image. `internal` is the internal use area, without its format byte."""

    chassis: ChassisInfo | None = None
    board: BoardInfo | None = None
    product: ProductInfo | None = None
    internal: bytes | None = None
    records: tuple[MultiRecord, ...] = ()

    @classmethod
    def from_bytes(cls, image: bytes) -> Self:
        """An image, perhaps with an EEPROM's rest behind it. Raises ProtocolError: "short",
        "blank", "bad_format", "bad_checksum", "bad_length", "overlap", "cut", "no_end", "few"."""
        header = FruHeader.from_bytes(image)
        starts = sorted(
            start
            for start in (header.internal, header.chassis, header.board, header.product,
                          header.multirecord)
            if start
        )  # fmt: skip

        def area(start: int, what: str) -> bytes:
            length = area_bytes(image[start : start + 2], what)
            following = next((other for other in starts if other > start), len(image))
            if start + length > following:
                code = "short" if following == len(image) else "overlap"
                raise ProtocolError(
                    f"{what}: {length} bytes from {start}, room until {following}",
                    frame=image[:HEADER_BYTES], code=code, offset=start,
                )  # fmt: skip
            return image[start : start + length]

        internal = None
        if header.internal:
            end = next((other for other in starts if other > header.internal), len(image))
            internal = image[header.internal + 1 : end]
        return cls(
            chassis=ChassisInfo.from_bytes(area(header.chassis, "chassis area"))
            if header.chassis
            else None,
            board=BoardInfo.from_bytes(area(header.board, "board area")) if header.board else None,
            product=ProductInfo.from_bytes(area(header.product, "product area"))
            if header.product
            else None,
            internal=internal,
            records=_read_records(image, header.multirecord) if header.multirecord else (),
        )

    def to_bytes(self) -> bytes:
        """The image, areas in the order of the header's offsets. Raises ValueError for what does
        not fit."""
        places: dict[str, int] = {}
        body = b""

        def place(name: str, area: bytes) -> None:
            nonlocal body
            places[name] = HEADER_BYTES + len(body)
            body += area
            if places[name] > 255 * UNIT_BYTES:
                raise ValueError(f"the {name} area would begin behind byte {255 * UNIT_BYTES}")

        if self.internal is not None:
            raw = bytes([FORMAT_VERSION]) + self.internal
            place("internal", raw + bytes(-len(raw) % UNIT_BYTES))
        for name, info in (
            ("chassis", self.chassis),
            ("board", self.board),
            ("product", self.product),
        ):
            if info is not None:
                place(name, info.to_bytes())
        if self.records:
            place("multirecord", _build_records(self.records))
        return FruHeader(**places).to_bytes() + body


def area_bytes(head: bytes, what: str) -> int:
    """How long an area is, by its first two bytes. Raises ProtocolError."""
    if len(head) < 2:
        raise ProtocolError(f"{what}: begins behind the end", frame=head, code="short", offset=0)
    if head[0] & 0x0F != FORMAT_VERSION:
        raise ProtocolError(
            f"{what}: format {head[0]:#04x}, want {FORMAT_VERSION}",
            frame=head, code="bad_format", offset=0,
        )  # fmt: skip
    if not head[1]:
        raise ProtocolError(f"{what}: its length is 0", frame=head, code="bad_length", offset=1)
    return head[1] * UNIT_BYTES


def _read_area(wire: Any, area: bytes, what: str, fixed: int) -> tuple[Any, list[FruField]]:
    length = area_bytes(area[:2], what)
    if len(area) != length:
        raise ProtocolError(
            f"{what}: {len(area)} bytes, its length says {length}",
            frame=area, code="bad_length", offset=1,
        )  # fmt: skip
    _check_sum(area, what)
    raw = _parse(wire, area, what)
    fields, _ = read_fields(area[:-1], wire.sizeof(), area)
    if len(fields) < fixed:
        raise ProtocolError(
            f"{what}: {len(fields)} fields, at least {fixed}", frame=area, code="few"
        )
    return raw, fields[: fixed + MAX_CUSTOM]


def _area(head: bytes, fields: tuple[FruField, ...]) -> bytes:
    body = head + b"".join(field.to_bytes() for field in fields) + bytes([END_OF_FIELDS])
    total = 2 + len(body) + 1
    total += -total % UNIT_BYTES
    if total > 255 * UNIT_BYTES:
        raise ValueError(f"an area of {total} bytes, at most {255 * UNIT_BYTES}")
    whole = bytes([FORMAT_VERSION, total // UNIT_BYTES]) + body
    return _summed(whole.ljust(total - 1, b"\0"))


def _read_records(image: bytes, start: int) -> tuple[MultiRecord, ...]:
    found: list[MultiRecord] = []
    size = RECORD_WIRE.sizeof()
    for _ in range(MAX_RECORDS):
        head = image[start : start + size]
        if len(head) < size:
            raise ProtocolError("a multirecord is cut", frame=head, code="short", offset=start)
        _check_sum(head, "multirecord header")
        raw = _parse(RECORD_WIRE, head, "multirecord header")
        data = image[start + size : start + size + raw.length]
        if len(data) < raw.length or (sum(data) + raw.record_checksum) & 0xFF:
            raise ProtocolError(
                f"multirecord of type {raw.type:#04x}: wrong checksum",
                frame=head + data, code="bad_checksum", offset=3,
            )  # fmt: skip
        found.append(MultiRecord(type=raw.type, format=raw.flags.format, data=data))
        if raw.flags.end:
            break
        start += size + raw.length
    return tuple(found)


def _build_records(records: tuple[MultiRecord, ...]) -> bytes:
    out = b""
    for index, record in enumerate(records):
        end = 0x80 if index == len(records) - 1 else 0
        if len(record.data) > 0xFF or not 0 <= record.format <= 0x0F:
            raise ValueError(f"multirecord {index}: {len(record.data)} bytes, at most 255")
        checksum = -sum(record.data) & 0xFF
        head = bytes([record.type, end | record.format, len(record.data), checksum])
        out += _summed(head) + record.data
    return out + bytes(-len(out) % UNIT_BYTES)


def _summed(data: bytes) -> bytes:
    return data + bytes([-sum(data) & 0xFF])


def _check_sum(data: bytes, what: str) -> None:
    if sum(data) & 0xFF:
        want = -sum(data[:-1]) & 0xFF
        raise ProtocolError(
            f"{what}: checksum 0x{data[-1]:02x}, want 0x{want:02x}",
            frame=data, code="bad_checksum", offset=len(data) - 1,
        )  # fmt: skip


def _parse(wire: Any, data: bytes, what: str) -> Any:
    try:
        return wire.parse(data)
    except cs.ConstructError as exc:
        raise ProtocolError(f"{what}: {exc}", frame=data, code="bad_format", offset=0) from exc
