"""What a command says: data on stdout, words on stderr (INTERFACES.md, "JSON").

With `--json` exactly one envelope on stdout, good or bad; without it tables for people. What
comes from elsewhere (CNMs, containers, files) may hold control characters: they are made visible
before they reach a terminal, and are never read as markup.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any, Final

from tools.errors import ToolError

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA: Final = "apf/1"
WIDE_COLUMNS: Final = 250  # where stdout is no terminal, nothing is cut
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")

Row = Mapping[str, Any]


class Output:
    """One command's mouth."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json

    def data(
        self,
        kind: str,
        data: object,
        show: Callable[[], None] | None = None,
        *,
        warnings: Sequence[Row] = (),
    ) -> None:
        """The result: an envelope for programs, or `show()` for people."""
        if self.as_json:
            self._write({"schema": SCHEMA, "kind": kind, "data": data, "warnings": list(warnings)})
            return
        self.warn(warnings)
        if show is not None:
            show()

    def warn(self, warnings: Sequence[Row]) -> None:
        """For people; for programs warnings are in the envelope."""
        if not self.as_json:
            for warning in warnings:
                self.say(f"warning: {warning_text(warning)}")

    def line(self, value: object) -> None:
        """One compact JSON object a line (`events -f --json`)."""
        sys.stdout.write(json.dumps(value, separators=(",", ":"), ensure_ascii=False) + "\n")
        sys.stdout.flush()

    def error(self, error: ToolError) -> None:
        """The bad end: words on stderr, and the envelope for programs. Of its warnings people
        were told before."""
        self.say(f"apf: {error.text}")
        if self.as_json:
            body = {"code": error.code, "text": error.text, "data": error.data}
            warnings = {"warnings": list(error.input_warnings)} if error.input_warnings else {}
            self._write({"schema": SCHEMA, "kind": "error", "error": body, **warnings})

    def say(self, text: str) -> None:
        """Words for people, on stderr."""
        print("\n".join(printable(line) for line in text.split("\n")), file=sys.stderr)

    def print(self, text: str) -> None:
        """A line of data for people, on stdout."""
        print(printable(text))

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Cells as text; None is shown as "-"."""
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
        for name in columns:
            table.add_column(name.upper(), overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell(value)) for value in row))
        self.console().print(table)

    def fields(self, values: Mapping[str, object]) -> None:
        """One thing as `key  value` lines."""
        width = max((len(key) for key in values), default=0)
        for key, value in values.items():
            self.print(f"{key:<{width}}  {cell(value)}")

    def console(self) -> "Console":
        """Where tables, and displays that change, are drawn: stdout."""
        from rich.console import Console

        return Console(
            file=sys.stdout,
            width=None if sys.stdout.isatty() else WIDE_COLUMNS,
            no_color=True if os.environ.get("NO_COLOR") else None,
            highlight=False,
            markup=False,
            emoji=False,
        )

    def _write(self, document: Row) -> None:
        sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
        sys.stdout.flush()


def cell(value: object) -> str:
    """A value for people."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return " ".join(f"{key}={cell(item)}" for key, item in value.items()) or "-"
    if isinstance(value, list | tuple):
        return ", ".join(cell(item) for item in value) or "-"
    return printable(str(value))


def printable(text: str) -> str:
    """Control characters as escapes, so that no foreign text can steer the terminal."""
    return "".join(
        char if char.isprintable() or char == "\t" else repr(char)[1:-1] for char in text
    )


def human_bytes(value: int | None) -> str:
    """1.5 GiB; None is "-"."""
    if value is None:
        return "-"
    size, unit = float(value), 0
    while size >= 1024 and unit < len(_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{value} B" if unit == 0 else f"{size:.1f} {_UNITS[unit]}"


def human_ms(value: int | None) -> str:
    """850 ms, 4.2 s, 3m20s; None is "-"."""
    if value is None:
        return "-"
    if abs(value) < 1000:
        return f"{value} ms"
    if abs(value) < 60_000:
        return f"{value / 1000:.1f} s"
    return f"{value // 60_000}m{value % 60_000 // 1000:02d}s"


def human_cores(milli: int | None) -> str:
    """1500 thousandths are 1.5 cores."""
    return "-" if milli is None else f"{milli / 1000:g}"


def warning_text(warning: Row) -> str:
    """file:line: key: text."""
    place = ":".join(str(warning[key]) for key in ("file", "line") if warning.get(key))
    parts = [part for part in (place, str(warning.get("key") or "")) if part]
    return ": ".join([*parts, str(warning.get("text", ""))])


def is_tty(stream: IO[str]) -> bool:
    """Whether a progress bar makes sense there."""
    return stream.isatty() and os.environ.get("TERM", "") != "dumb"
