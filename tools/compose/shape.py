"""Shapes of YAML values: small checkers that say what was wanted, and where.

A shape knows the kinds of value that it takes, so that a union can pick the one to ask, and its
words fit the value that was meant.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from firmware.fields import nearest
from tools.compose.cursor import Cursor
from tools.compose.document import Node

NAME_PATTERN: Final = r"^[a-zA-Z0-9._-]+$"


class Shape(Protocol):
    @property
    def want(self) -> str: ...

    @property
    def kinds(self) -> frozenset[str]: ...

    def check(self, at: Cursor) -> None:
        """Report what is wrong below `at`, whose kind is one of `kinds`."""
        ...


def kind_of(node: Node) -> str:
    value = node.value
    if value is None:
        return "null"
    names = {bool: "bool", int: "int", float: "float", str: "str", list: "list", dict: "map"}
    return names[type(value)]


def check(shape: Shape, at: Cursor) -> None:
    """Report everything below `at` that is not of this shape."""
    if kind_of(at.node) not in shape.kinds:
        at.problem(f"wanted {shape.want}, found {at.shown()}")
        return
    shape.check(at)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plain:
    """A scalar of certain kinds."""

    want: str
    kinds: frozenset[str]
    among: tuple[str, ...] = ()
    pattern: str = ""  # searched, as JSON Schema does
    whole: bool = False  # floats only where they are whole numbers
    low: int | None = None
    high: int | None = None

    def check(self, at: Cursor) -> None:
        value = at.value
        if isinstance(value, str):
            if self.among and value not in self.among:
                words = ", ".join(self.among)
                at.problem(f"wanted one of {words}{nearest(value, self.among)}, found {at.shown()}")
            elif self.pattern and re.search(self.pattern, value) is None:
                at.problem(f"wanted {self.want}, found {at.shown()}")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            low = self.low if self.low is not None else value
            high = self.high if self.high is not None else value
            if (self.whole and value != value // 1) or not low <= value <= high:
                at.problem(f"wanted {self.want}, found {at.shown()}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Items:
    """A list."""

    item: Shape
    unique: bool = False
    kinds: frozenset[str] = frozenset(("list",))

    @property
    def want(self) -> str:
        return "a list"

    def check(self, at: Cursor) -> None:
        seen: set[object] = set()
        for item in at.items():
            check(self.item, item)
            if self.unique:
                key = _frozen(item.node)
                if key in seen:
                    item.problem(f"{item.shown()} is there twice")
                seen.add(key)


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A mapping with known keys; `x-` keys may be anything where extensions are taken."""

    known: Mapping[str, Shape]
    required: tuple[str, ...] = ()
    extensions: bool = True
    want: str = "a mapping"
    kinds: frozenset[str] = frozenset(("map",))

    def check(self, at: Cursor) -> None:
        for key, below in at.entries():
            shape = self.known.get(key)
            if shape is not None:
                check(shape, below)
            elif not (self.extensions and key.startswith("x-")):
                below.problem(f"unknown key{nearest(key, list(self.known))}")
        for key in self.required:
            if isinstance(at.value, dict) and key not in at.value:
                at.problem(f"wanted the key {key!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """A mapping from names of the file's own to one shape."""

    item: Shape
    pattern: str = ".+"
    want: str = "a mapping"
    kinds: frozenset[str] = frozenset(("map",))

    def check(self, at: Cursor) -> None:
        for key, below in at.entries():
            if re.search(self.pattern, key) is None:
                below.problem(f"wanted a name like {self.pattern.strip('^$')}, found {key[:60]!r}")
            else:
                check(self.item, below)


@dataclass(frozen=True, slots=True)
class Either:
    """The first of these shapes that takes the value's kind."""

    shapes: Sequence[Shape]
    kinds: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        kinds = frozenset[str]().union(*(shape.kinds for shape in self.shapes))
        object.__setattr__(self, "kinds", kinds)

    @property
    def want(self) -> str:
        return " or ".join(shape.want for shape in self.shapes)

    def check(self, at: Cursor) -> None:
        kind = kind_of(at.node)
        next(shape for shape in self.shapes if kind in shape.kinds).check(at)


@dataclass(frozen=True, slots=True)
class Anything:
    """What belongs to others: extensions."""

    want: str = "anything"
    kinds: frozenset[str] = frozenset(("null", "bool", "int", "float", "str", "list", "map"))

    def check(self, at: Cursor) -> None:
        del at


def either(*shapes: Shape) -> Either:
    return Either(shapes)


def among(*words: str) -> Plain:
    return Plain(want=f"one of {', '.join(words)}", kinds=frozenset(("str",)), among=words)


def _frozen(node: Node) -> object:
    """A hashable value that is equal where JSON Schema says equal: 1 and 1.0, not 1 and true."""
    value = node.value
    if isinstance(value, dict):
        return ("map", frozenset((key, _frozen(item)) for key, item in value.items()))
    if isinstance(value, list):
        return ("list", tuple(_frozen(item) for item in value))
    return (isinstance(value, bool), value)


TEXT: Final = Plain(want="a string", kinds=frozenset(("str",)))
NULL: Final = Plain(want="nothing", kinds=frozenset(("null",)))
BOOL: Final = Plain(want="true or false", kinds=frozenset(("bool",)))
INTEGER: Final = Plain(want="an integer", kinds=frozenset(("int", "float")), whole=True)
NUMBER: Final = Plain(want="a number", kinds=frozenset(("int", "float")))
BOOL_TEXT: Final = either(BOOL, TEXT)
INTEGER_TEXT: Final = either(INTEGER, TEXT)
NUMBER_TEXT: Final = either(NUMBER, TEXT)
TEXTS: Final = Items(item=TEXT)
UNIQUE_TEXTS: Final = Items(item=TEXT, unique=True)
TEXT_OR_TEXTS: Final = either(TEXT, UNIQUE_TEXTS)
PAIRS: Final = either(
    Named(item=either(TEXT, NUMBER, BOOL, NULL), want="a mapping"), UNIQUE_TEXTS
)  # the schema's list_or_dict
COMMAND: Final = either(NULL, TEXT, TEXTS)
