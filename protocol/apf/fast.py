"""Plain functions beside the declarations: the same bytes at a tenth of construct's cost.

Each field type of `protocol.apf.fields` carries a `Fast` made from the same arguments as its
construct object. A `Fast` may always give up by raising: then the declaration itself is asked, so
that every refusal, with its words and its offset, is construct's. Where it does not give up, a
property test holds the two equal. (construct interpreted costs 5 us a field; DESIGN D4.)
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Generic, TypeVar

T = TypeVar("T")
Reader = Callable[[bytes, int], tuple[Any, int]]  # (data, offset) -> value, offset after it
Writer = Callable[[Any, list[bytes]], None]
Change = Callable[[Any], Any]


class GiveUpError(Exception):
    """Ask the declaration."""


GIVES_UP: Final = (GiveUpError, struct.error, IndexError, UnicodeError, TypeError, AttributeError)


class Fast:
    """A field type. `code` is its struct format where its size is fixed."""

    def __init__(
        self,
        *,
        code: str = "",
        after: Change | None = None,
        before: Change | None = None,
        read: Reader | None = None,
        write: Writer | None = None,
    ) -> None:
        """Fixed: `after(value)` as it was read, `before(value)` as it will be written."""
        self.code, self.after, self.before = code, after, before
        self.read = read if read is not None else self._read
        self.write = write if write is not None else self._write

    def _read(self, data: bytes, offset: int) -> tuple[Any, int]:
        wire = _struct(self.code)
        (value,) = wire.unpack_from(data, offset)
        return (value if self.after is None else self.after(value)), offset + wire.size

    def _write(self, value: Any, out: list[bytes]) -> None:
        out.append(_struct(self.code).pack(value if self.before is None else self.before(value)))


_STRUCTS: Final[dict[str, struct.Struct]] = {}


def _struct(code: str) -> struct.Struct:
    found = _STRUCTS.get(code)
    if found is None:
        found = _STRUCTS[code] = struct.Struct("<" + code)
    return found


# --- fixed sizes ---


def number(code: str) -> Fast:
    return Fast(code=code)


def fixed_bytes(length: int) -> Fast:
    def exact(value: bytes) -> bytes:
        if type(value) is not bytes or len(value) != length:
            raise GiveUpError
        return value

    return Fast(code=f"{length}s", before=exact)


def bounded(inner: Fast | None, good: Callable[[int], bool]) -> Fast | None:
    """An integer that must satisfy `good` both ways."""
    if inner is None or not inner.code:
        return None

    def check(value: int) -> int:
        if not good(value):
            raise GiveUpError
        return value

    return Fast(code=inner.code, after=check, before=check)


def member(inner: Fast | None, members: Mapping[int, Any]) -> Fast | None:
    """A member of an enumeration, or the plain number."""
    if inner is None or not inner.code:
        return None
    return Fast(code=inner.code, after=lambda value: members.get(value, value), before=int)


# --- sizes that are told ---


def text(least: int, most: int, *, printable: bool, clip: Change | None = None) -> Fast:
    """u8 length and UTF-8."""

    def read(data: bytes, offset: int) -> tuple[str, int]:
        start = offset + 1
        end = start + data[offset]
        if end > len(data) or not least <= end - start <= most:
            raise GiveUpError
        value = str(data[start:end], "utf8")
        if printable and not value.isprintable():
            raise GiveUpError
        return value, end

    def write(value: str, out: list[bytes]) -> None:
        raw = (value if clip is None else clip(value)).encode()
        if not least <= len(raw) <= most or (printable and not value.isprintable()):
            raise GiveUpError
        out.append(bytes((len(raw),)))
        out.append(raw)

    return Fast(read=read, write=write)


def raw(length: Fast | None, limit: int) -> Fast | None:
    """Bytes after their length."""
    if length is None or not length.code:
        return None
    wire = _struct(length.code)

    def read(data: bytes, offset: int) -> tuple[bytes, int]:
        (size,) = wire.unpack_from(data, offset)
        start = offset + wire.size
        end = start + size
        if end > len(data) or size > limit:
            raise GiveUpError
        return data[start:end], end

    def write(value: bytes, out: list[bytes]) -> None:
        if type(value) is not bytes or len(value) > limit:
            raise GiveUpError
        out.append(wire.pack(len(value)))
        out.append(value)

    return Fast(read=read, write=write)


def items(item: Fast | None, limit: int) -> Fast | None:
    """u8 count and that many; a tuple."""
    if item is None:
        return None
    read_item, write_item = item.read, item.write

    def read(data: bytes, offset: int) -> tuple[tuple[Any, ...], int]:
        count = data[offset]
        if count > limit:
            raise GiveUpError
        offset += 1
        found = []
        for _ in range(count):
            value, offset = read_item(data, offset)
            found.append(value)
        return tuple(found), offset

    def write(values: Sequence[Any], out: list[bytes]) -> None:
        if len(values) > limit:
            raise GiveUpError
        out.append(bytes((len(values),)))
        for value in values:
            write_item(value, out)

    return Fast(read=read, write=write)


def both(first: Fast | None, second: Fast | None) -> Fast | None:
    """Two fields; a tuple of two."""
    if first is None or second is None:
        return None

    def read(data: bytes, offset: int) -> tuple[tuple[Any, Any], int]:
        one, offset = first.read(data, offset)
        two, offset = second.read(data, offset)
        return (one, two), offset

    def write(value: tuple[Any, Any], out: list[bytes]) -> None:
        one, two = value
        first.write(one, out)
        second.write(two, out)

    return Fast(read=read, write=write)


# --- fields together ---


class Fields(Generic[T]):
    """Named fields in their order; runs of fixed sizes are one `struct`."""

    def __init__(self, fields: Sequence[tuple[str, Fast]]) -> None:
        self.names = [name for name, _ in fields]
        self._steps: list[_Run | tuple[str, Fast]] = []
        run: list[tuple[str, Fast]] = []
        for name, fast in fields:
            if fast.code:
                run.append((name, fast))
                continue
            if run:
                self._steps.append(_Run(run))
                run = []
            self._steps.append((name, fast))
        if run:
            self._steps.append(_Run(run))

    def read(self, data: bytes, offset: int) -> tuple[list[Any], int]:
        """The values in the order of `names`."""
        values: list[Any] = []
        for step in self._steps:
            if isinstance(step, _Run):
                step.read(data, offset, values)
                offset += step.wire.size
            else:
                value, offset = step[1].read(data, offset)
                values.append(value)
        return values, offset

    def write(self, item: object, out: list[bytes]) -> None:
        """From an object's attributes."""
        for step in self._steps:
            if isinstance(step, _Run):
                step.write(item, out)
            else:
                step[1].write(getattr(item, step[0]), out)


class _Run:
    """Fixed sizes one after the other."""

    def __init__(self, fields: Sequence[tuple[str, Fast]]) -> None:
        self.wire = _struct("".join(fast.code for _, fast in fields))
        self._names = [name for name, _ in fields]
        self._after = [(i, fast.after) for i, (_, fast) in enumerate(fields) if fast.after]
        self._before = [(i, fast.before) for i, (_, fast) in enumerate(fields) if fast.before]

    def read(self, data: bytes, offset: int, values: list[Any]) -> None:
        at = len(values)
        values += self.wire.unpack_from(data, offset)
        for index, after in self._after:
            values[at + index] = after(values[at + index])

    def write(self, item: object, out: list[bytes]) -> None:
        values = [getattr(item, name) for name in self._names]
        for index, before in self._before:
            values[index] = before(values[index])
        out.append(self.wire.pack(*values))


def maker(kind: type[T], names: Sequence[str]) -> Callable[[Sequence[Any]], T]:
    """A `kind` (frozen, slotted, without a __post_init__) from its fields' values, by its slots:
    its own __init__ costs three times as much."""
    new = kind.__new__
    setters = [vars(kind)[name].__set__ for name in names]

    def make(values: Sequence[Any]) -> T:
        item = new(kind)
        for put, value in zip(setters, values, strict=True):
            put(item, value)
        return item

    return make


def record(kind: type[Any], fields: Sequence[tuple[str, Fast]]) -> Fast:
    """A nested layout that is a `kind` in Python."""
    inner = Fields[Any](fields)
    make = maker(kind, inner.names)

    def read(data: bytes, offset: int) -> tuple[Any, int]:
        values, offset = inner.read(data, offset)
        return make(values), offset

    return Fast(read=read, write=inner.write)
