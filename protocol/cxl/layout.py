"""What every CXL payload is made of: one `construct` layout and one frozen dataclass.

Ref: CXL 3.1, 8.2.9: payloads are little-endian, reserved bytes are sent as 0 and ignored, and a
later revision may append fields. So bytes after a fixed layout are kept in `extra`, and a field
that a later revision has appended is None when it is absent.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from enum import IntEnum
from typing import Any, ClassVar, Final, Self, TypeAlias, TypeVar
from uuid import UUID

import construct as cs

from protocol.errors import ProtocolError

Wire: TypeAlias = "cs.Construct[Any, Any]"
E = TypeVar("E", bound=IntEnum)

UUID_BYTES: Final = 16  # in the order of RFC 4122, as the kernel's uuid_t


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Base of every payload. A subclass declares `WIRE` and the fields that its names hold."""

    WIRE: ClassVar[Wire]

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Raises `ProtocolError`: "short" when it ends too early, else "bad_value"."""
        data = bytes(data)
        try:
            raw = cls.WIRE.parse(data)
        except cs.StreamError as exc:
            raise ProtocolError(
                f"{cls.__name__}: {exc}", frame=data, code="short", offset=len(data)
            ) from exc
        except cs.ConstructError as exc:
            raise ProtocolError(f"{cls.__name__}: {exc}", frame=data, code="bad_value") from exc
        return cls.of(raw)

    @classmethod
    def of(cls, raw: Any) -> Self:
        """From what `WIRE` parsed."""
        return cls(**{field.name: raw[field.name] for field in fields(cls)})

    def to_bytes(self) -> bytes:
        """Raises `ValueError` for values out of range."""
        try:
            return bytes(self.WIRE.build(asdict(self)))
        except cs.ConstructError as exc:
            raise ValueError(f"{type(self).__name__}: {exc}") from exc


L = TypeVar("L", bound=Layout)


def reserved(length: int) -> Wire:
    """Bytes that are sent as 0 and ignored."""
    wire: Wire = cs.Default(cs.Bytes(length), bytes(length))
    return wire


def member(kind: type[E], number: Wire = cs.Int8ul) -> Wire:
    """A member of `kind`, or the plain number where it names none: later revisions add some."""
    known = {int(item): item for item in kind}
    wire: Wire = cs.ExprAdapter(number, lambda value, _: known.get(value, value), _plain)
    return wire


def nested(kind: type[L]) -> Wire:
    """Another layout inside of this one."""
    wire: Wire = cs.ExprAdapter(kind.WIRE, lambda raw, _: kind.of(raw), lambda value, _: value)
    return wire


def counted(count: Any, item: Wire) -> Wire:
    """So many items as the field before says, as a tuple."""
    wire: Wire = cs.ExprAdapter(cs.Array(count, item), _as_tuple, lambda value, _: list(value))
    return wire


def count_of(number: Wire, name: str) -> Wire:
    """The number of entries of `name`, filled in when it is built."""
    wire: Wire = cs.Rebuild(number, lambda context: len(context[name]))
    return wire


def all_of(item: Wire, item_bytes: int) -> Wire:
    """Items to the end; what is left must be a whole number of them."""

    def whole(data: bytes, context: Any) -> tuple[Any, ...]:
        if len(data) % item_bytes:
            raise cs.StreamError(f"{len(data)} bytes are no multiple of {item_bytes}")
        return tuple(
            item.parse(data[at : at + item_bytes]) for at in range(0, len(data), item_bytes)
        )

    def joined(values: Sequence[Any], context: Any) -> bytes:
        return b"".join(item.build(value) for value in values)

    wire: Wire = cs.ExprAdapter(cs.GreedyBytes, whole, joined)
    return wire


def uuid_bytes(text: str) -> bytes:
    """The 16 bytes that stand for a UUID on the wire."""
    return UUID(text).bytes


def _plain(value: Any, context: Any) -> int:
    return int(value)


def _as_tuple(value: Any, context: Any) -> tuple[Any, ...]:
    return tuple(value)
