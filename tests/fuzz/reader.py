"""Choices out of bytes: how a state machine is driven, and how a document is edited, by an input.

Every reader of a choice takes what is there and gives 0 at the end, so that any bytes are a
program, and bytes cut off make it shorter, never wrong.
"""

import json
from collections.abc import Sequence
from typing import Any, Final, TypeVar

T = TypeVar("T")
EDITS_LIMIT: Final = 6
DEPTH_LIMIT: Final = 3
NUMBERS: Final = (
    *(0, 1, -1, 2, 7, 64, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**32),
    *(2**53, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), 10**30, 0.5, -0.0, 1e300),
    *(float("inf"), float("-inf"), float("nan")),
)
TEXTS: Final = (
    *(
        "",
        "a",
        "A",
        "0",
        "-1",
        "x" * 41,
        "x" * 42,
        "x" * 129,
        "/",
        "/a",
        "..",
        "/..",
        "a/../b",
        ".",
    ),
    *("\0", "\n", "é", "\ud800", "\U0001f600", "a:b", "a=b", "$", "${A}", "null", "ab" * 32),
    *("g" * 64, "00" * 16, " ", "a b", "²", "٣"),
)


class Reader:
    """An input, read from its beginning."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def byte(self) -> int:
        if self._at >= len(self._data):
            return 0
        self._at += 1
        return self._data[self._at - 1]

    def number(self, size: int) -> int:
        """Little-endian, `size` bytes."""
        return int.from_bytes(self.take(size), "little")

    def take(self, size: int) -> bytes:
        piece = self._data[self._at : self._at + size]
        self._at += len(piece)
        return piece

    def piece(self) -> bytes:
        """Up to 255 bytes after their count."""
        return self.take(self.byte())

    def rest(self) -> bytes:
        return self.take(self.left)

    def choice(self, items: Sequence[T]) -> T:
        return items[self.byte() % len(items)]


def json_text(data: bytes, bases: Sequence[Any], words: Sequence[str] = ()) -> bytes:
    """The input as JSON text. One that begins with a control character is a program that edits
    one of the `bases`, which reaches behind the JSON parser; any other is the text itself."""
    if not data or data[0] >= 9:
        return data
    document = edited(bases[data[0] % len(bases)], Reader(data[1:]), words)
    return json.dumps(document, ensure_ascii=len(data) % 2 == 0).encode(errors="surrogatepass")


def edited(document: Any, reader: Reader, words: Sequence[str] = ()) -> Any:
    """A copy of a JSON document with some of its parts changed, as the reader says."""
    holder: dict[str, Any] = {"": json.loads(json.dumps(document))}
    for _ in range(EDITS_LIMIT):
        if not reader.left:
            break
        _edit(holder, reader, words)
    return holder[""]


def _edit(holder: dict[str, Any], reader: Reader, words: Sequence[str]) -> None:
    where: Any = holder
    key: Any = ""
    while isinstance(where[key], dict | list) and where[key]:
        step = reader.byte()
        if step == 255:
            break
        inner = where[key]
        keys = list(inner) if isinstance(inner, dict) else range(len(inner))
        where, key = inner, keys[step % len(keys)]
    action = reader.byte() % 8
    if action == 0 and where is not holder:
        del where[key]
    elif action == 1 and isinstance(where, dict) and where is not holder:
        where[text(reader, words)] = where.pop(key)
    elif action == 2 and isinstance(where, list):
        where.extend([where[key]] * (1 + reader.byte() % 4))
    elif action == 3 and isinstance(where, dict) and where is not holder:
        where[text(reader, words)] = value(reader, words)
    else:
        where[key] = value(reader, words)


def value(reader: Reader, words: Sequence[str] = (), depth: int = 0) -> Any:
    """Any JSON value, odd ones above all."""
    kind = reader.byte() % 8
    if kind == 0:
        return reader.choice((None, True, False))
    if kind == 1:
        return reader.choice(NUMBERS)
    if kind == 2:
        return reader.byte()
    if kind == 3 and depth < DEPTH_LIMIT:
        return [value(reader, words, depth + 1) for _ in range(reader.byte() % 4)]
    if kind == 4 and depth < DEPTH_LIMIT:
        count = reader.byte() % 4
        return {text(reader, words): value(reader, words, depth + 1) for _ in range(count)}
    return text(reader, words)


def text(reader: Reader, words: Sequence[str] = ()) -> str:
    """A known word, a text that is odd, or one out of the bytes."""
    kind = reader.byte() % 4
    if kind == 0 and words:
        return reader.choice(words)
    if kind == 1:
        return reader.take(reader.byte() % 48).decode(errors="replace")
    return reader.choice(TEXTS)


def all_keys(*documents: Any) -> tuple[str, ...]:
    """Every key and every short string in the documents: words for the edits."""
    found: dict[str, None] = {}

    def walk(item: Any) -> None:
        if isinstance(item, dict):
            for key, inner in item.items():
                found[key] = None
                walk(inner)
        elif isinstance(item, list):
            for inner in item:
                walk(inner)
        elif isinstance(item, str) and len(item) <= 64:
            found[item] = None

    for document in documents:
        walk(document)
    return tuple(found)
