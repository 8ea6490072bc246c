"""The vocabulary of APF layouts: field types, records and the base of every body.

Specification: protocol/SPEC.md section 3 (types and their limits). A field type is an ordinary
`construct` object whose `docs` holds its canonical text; the layout hash (section 4.3) is made of
these texts, so a type that changes on the wire must change its text too.
"""

import copy
import io
from collections.abc import Sequence
from enum import IntEnum
from typing import Any, ClassVar, Final, Self, TypeAlias, TypeVar, cast

import construct as cs

from protocol.apf import fast
from protocol.errors import ProtocolError

Wire: TypeAlias = "cs.Construct[Any, Any]"
E = TypeVar("E", bound=IntEnum)

HEADER_BYTES: Final = 12  # SPEC 2
UUID_BYTES: Final = 16
DIGEST_BYTES: Final = 32  # SHA-256
INSTANCE_MAX_BYTES: Final = 128
VOLUME_MAX_BYTES: Final = 64
TEXT_MAX_BYTES: Final = 160  # words for people; cut when longer, never refused
LIST_MAX: Final = 64  # entries of a list8 unless its field says less


def described(wire: Wire, text: str, quick: "fast.Fast | None" = None) -> Wire:
    """A copy of `wire` that carries its canonical text, and what does the same without construct
    (`protocol.apf.fast`), where there is such a thing."""
    named: Any = copy.copy(wire)
    named.docs = text
    named.fast = quick
    return cast("Wire", named)


def _fast(wire: Wire) -> "fast.Fast | None":
    """Of a field type; a named field has it beneath."""
    inner = wire.subcon if isinstance(wire, cs.Renamed) else wire
    return getattr(inner, "fast", None)


def _fast_fields(fields: Sequence[Wire]) -> "list[tuple[str, fast.Fast]] | None":
    found = []
    for field in fields:
        quick = _fast(field)
        if quick is None:
            return None
        found.append((str(field.name), quick))
    return found


U8: Final = described(cs.Int8ul, "u8", fast.number("B"))
U16: Final = described(cs.Int16ul, "u16", fast.number("H"))
U32: Final = described(cs.Int32ul, "u32", fast.number("I"))
U64: Final = described(cs.Int64ul, "u64", fast.number("Q"))
I32: Final = described(cs.Int32sl, "i32", fast.number("i"))
UUID: Final = described(cs.Bytes(UUID_BYTES), "bytes16", fast.fixed_bytes(UUID_BYTES))
DIGEST: Final = described(cs.Bytes(DIGEST_BYTES), "bytes32", fast.fixed_bytes(DIGEST_BYTES))
HASH8: Final = described(cs.Bytes(8), "bytes8", fast.fixed_bytes(8))


def within(number: Wire, low: int, high: int) -> Wire:
    """An integer whose value must lie in low..high."""
    wire: Wire = cs.ExprValidator(number, lambda value, _: low <= value <= high)
    quick = fast.bounded(_fast(number), lambda value: low <= value <= high)
    return described(wire, f"{number.docs}[{low}..{high}]", quick)


def enum8(kind: type[E], number: Wire = U8) -> Wire:
    """A member of `kind`, or the plain integer where a later version has added one."""
    members = {int(member): member for member in kind}
    values = ",".join(f"{member.name}={member.value}" for member in kind)
    wire: Wire = cs.ExprAdapter(
        number, lambda value, _: members.get(value, value), lambda v, _: int(v)
    )
    return described(wire, f"enum {number.docs}({values})", fast.member(_fast(number), members))


def bitmap(number: Wire, used_bits: int) -> Wire:
    """A set of flags; the reserved bits above `used_bits` must be zero."""
    wire: Wire = cs.ExprValidator(number, lambda value, _: value >> used_bits == 0)
    quick = fast.bounded(_fast(number), lambda value: value >> used_bits == 0)
    return described(wire, f"bits {number.docs}({used_bits})", quick)


def _string(length: Wire) -> Wire:
    return cs.PascalString(length, "utf8")


def str8(limit: int = 255) -> Wire:
    """u8 length and UTF-8 of at most `limit` bytes."""
    wire: Wire = cs.ExprValidator(_string(U8), lambda text, _: len(text.encode()) <= limit)
    return described(wire, f"str8({limit})", fast.text(0, limit, printable=False))


def name8(limit: int) -> Wire:
    """A str8 that names something: 1..`limit` bytes, printable."""
    wire: Wire = cs.ExprValidator(
        _string(U8), lambda text, _: 0 < len(text.encode()) <= limit and text.isprintable()
    )
    return described(wire, f"name8({limit})", fast.text(1, limit, printable=True))


def clip(text: str, limit: int = TEXT_MAX_BYTES) -> str:
    """`text` cut to at most `limit` bytes of UTF-8, between characters.

    What UTF-8 can't say (half a character: a file's name that is not UTF-8 has them) becomes "?".
    """
    if text.isascii() and len(text) <= limit:
        return text
    return text.encode(errors="replace")[:limit].decode(errors="ignore")


def text8(limit: int = TEXT_MAX_BYTES) -> Wire:
    """A str8 for people: cut to `limit` when it is built, refused above it when it is parsed."""
    wire: Wire = cs.ExprAdapter(
        str8(limit), lambda text, _: text, lambda text, _: clip(text, limit)
    )
    quick = fast.text(0, limit, printable=False, clip=lambda text: clip(text, limit))
    return described(wire, f"text8({limit})", quick)


INSTANCE: Final = name8(INSTANCE_MAX_BYTES)
VOLUME: Final = name8(VOLUME_MAX_BYTES)


def data_of(length: Wire, limit: int) -> Wire:
    """Raw bytes after their length; at most `limit`."""
    wire: Wire = cs.ExprValidator(
        cs.Prefixed(length, cs.GreedyBytes), lambda data, _: len(data) <= limit
    )
    return described(wire, f"data {length.docs}({limit})", fast.raw(_fast(length), limit))


def list8(item: Wire, limit: int = LIST_MAX) -> Wire:
    """u8 count, then that many items; a tuple in Python."""
    array: Wire = cs.PrefixedArray(within(U8, 0, limit), item)
    wire: Wire = cs.ExprAdapter(array, lambda items, _: tuple(items), lambda items, _: list(items))
    return described(wire, f"list8({limit})[{item.docs}]", fast.items(_fast(item), limit))


def pair(first: Wire, second: Wire) -> Wire:
    """Two fields as a Python tuple."""
    wire: Wire = cs.ExprAdapter(
        cs.Sequence(first, second), lambda items, _: tuple(items), lambda items, _: list(items)
    )
    quick = fast.both(_fast(first), _fast(second))
    return described(wire, f"({first.docs},{second.docs})", quick)


def field_text(fields: Sequence[Wire]) -> str:
    """The canonical text of named fields in their order."""
    return ";".join(f"{field.name}:{field.docs}" for field in fields)


def record(kind: type[Any], *fields: Wire) -> Wire:
    """A nested layout that is a `kind` (frozen dataclass) in Python."""
    names = [str(field.name) for field in fields]
    wire: Wire = cs.ExprAdapter(
        cs.Struct(*fields),
        lambda raw, _: kind(**{name: raw[name] for name in names}),
        lambda item, _: {name: getattr(item, name) for name in names},
    )
    quick = _fast_fields(fields)
    return described(
        wire,
        "{" + field_text(fields) + "}",
        fast.record(kind, quick) if quick is not None else None,
    )


def layout(*fields: Wire) -> Wire:
    """A whole body: exactly these fields and then the end of the message."""
    named: Any = described(cs.Struct(*fields, cs.Terminated), "{" + field_text(fields) + "}")
    quick = _fast_fields(fields)
    named.fields = fast.Fields(quick) if quick is not None else None
    return cast("Wire", named)


_MAKERS: Final[dict[type[Any], Any]] = {}  # of the bodies, which are as many as the protocol has


class Body:
    """Base of the bodies: `WIRE` declares the layout, the dataclass fields hold the values."""

    __slots__ = ()
    OPCODE: ClassVar[int]
    WIRE: ClassVar[Wire]

    @classmethod
    def _names(cls) -> Sequence[str]:
        return cls.__slots__  # of a slotted dataclass: its fields, in their order

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Decode exactly `data`. Raises ProtocolError "bad_body" with the offset in `data`."""
        fields = getattr(cls.WIRE, "fields", None)
        if fields is not None:
            try:
                values, end = fields.read(data, 0)
            except fast.GIVES_UP:
                pass  # the declaration says why
            else:
                if end == len(data):
                    return cls._made(fields.names, values)
        return cls.declared(data)

    @classmethod
    def _made(cls, names: Sequence[str], values: Sequence[Any]) -> Self:
        make = _MAKERS.get(cls)
        if make is None:
            make = _MAKERS[cls] = fast.maker(cls, names)
        return cast("Self", make(values))

    @classmethod
    def declared(cls, data: bytes) -> Self:
        """`from_bytes` by the declaration alone: the oracle."""
        stream = io.BytesIO(data)
        try:
            raw = cls.WIRE.parse_stream(stream)
        except cs.ConstructError as exc:
            raise bad_body(cls, data, str(exc), offset=stream.tell()) from exc
        return cls(**{name: raw[name] for name in cls._names()})

    def to_bytes(self) -> bytes:
        """Raises ValueError for a value that its field can't hold (our slip, not a peer's)."""
        fields = getattr(self.WIRE, "fields", None)
        if fields is not None:
            out: list[bytes] = []
            try:
                fields.write(self, out)
            except fast.GIVES_UP:
                pass  # the declaration says why
            else:
                return b"".join(out)
        return self.declared_bytes()

    def declared_bytes(self) -> bytes:
        """`to_bytes` by the declaration alone: the oracle."""
        try:
            return self.WIRE.build({name: getattr(self, name) for name in self._names()})
        except cs.ConstructError as exc:
            raise unencodable(type(self), str(exc)) from exc


def bad_body(kind: type[Any], data: bytes, why: str, offset: int | None = None) -> ProtocolError:
    detail = f"{kind.__name__}: {' '.join(why.split())[:200]}"
    return ProtocolError(detail, frame=data, code="bad_body", offset=offset)


def unencodable(kind: type[Any], why: str) -> ValueError:
    return ValueError(f"{kind.__name__} can't be encoded: {' '.join(why.split())[:200]}")
