"""A node with its place in the file: what the readers of Compose hand to each other."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tools.compose.document import Node, Scalar
from tools.compose.report import Report
from tools.compose.units import UnitError, parse_duration_ms, parse_size

SHOWN_CHARS: Final = 60
_INTEGER: Final = re.compile(r"[-+]?[0-9]{1,18}")


@dataclass(frozen=True, slots=True)
class Cursor:
    """One place. Reading the wrong kind gives nothing: the shape was checked before."""

    node: Node
    path: str
    report: Report

    @property
    def value(self) -> "Scalar | list[Node] | dict[str, Node]":
        return self.node.value

    @property
    def line(self) -> int:
        return self.node.line

    @property
    def text(self) -> str:
        """A scalar as the string that it stands for: source text, or what a variable gave."""
        value = self.node.value
        if isinstance(value, str):
            return value
        if isinstance(value, bool):
            return "true" if value else "false"
        return "" if value is None else self.node.text

    def get(self, key: str) -> "Cursor | None":
        """The entry, or None when it is absent or null."""
        value = self.node.value
        if not isinstance(value, dict) or key not in value or value[key].value is None:
            return None
        return Cursor(value[key], self._below(key), self.report)

    def entries(self) -> "Iterator[tuple[str, Cursor]]":
        """Entries of a mapping, null ones too; of anything else none."""
        if isinstance(self.node.value, dict):
            for key, node in self.node.value.items():
                yield key, Cursor(node, self._below(key), self.report)

    def items(self) -> "Iterator[Cursor]":
        """Items of a list; of anything else none."""
        if isinstance(self.node.value, list):
            for index, node in enumerate(self.node.value):
                yield Cursor(node, f"{self.path}[{index}]", self.report)

    def one_or_many(self) -> "Iterator[Cursor]":
        """Items of a list, or the scalar itself."""
        if isinstance(self.node.value, list):
            yield from self.items()
        elif self.node.value is not None:
            yield self

    def problem(self, text: str) -> None:
        self.report.problem(self.line, self.path, text)

    def warn(self, code: str, text: str) -> None:
        self.report.warn(self.line, self.path, text, code)

    def shown(self) -> str:
        """The value in words."""
        value = self.node.value
        if isinstance(value, dict):
            return "a mapping"
        if isinstance(value, list):
            return "a list"
        if value is None:
            return "nothing"
        text = repr(value) if isinstance(value, str) else self.text
        return text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + "..."

    # --- scalars with a unit; a problem gives the default ---

    def integer(self, *, low: int, high: int, default: int = 0) -> int:
        value = low - 1
        if isinstance(self.value, float):
            value = int(self.value) if self.value.is_integer() else value
        elif _INTEGER.fullmatch(self.text):
            value = int(self.text)
        if not low <= value <= high:
            self.problem(f"wanted an integer {low}..{high}, found {self.shown()}")
            return default
        return value

    def boolean(self) -> bool:
        word = self.text.strip().lower()
        if word in ("true", "1", "yes", "on", "y", "t"):
            return True
        if word not in ("false", "0", "no", "off", "n", "f", ""):
            self.problem(f"wanted true or false, found {self.shown()}")
        return False

    def size_bytes(self) -> int:
        try:
            return parse_size(self.text)
        except UnitError as exc:
            self.problem(str(exc))
            return 0

    def duration_ms(self) -> int:
        try:
            return parse_duration_ms(self.text)
        except UnitError as exc:
            self.problem(str(exc))
            return 0

    def _below(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key
