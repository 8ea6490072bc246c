"""`.env` and `env_file` files.

Ref: compose-spec, "Env_file format": `KEY=VALUE` lines, `#` comments, optional `export`; single
quotes keep everything, double quotes know escapes, both may span lines; unquoted and
double-quoted values are interpolated. `KEY` alone takes the value from outside.
"""

import re
from collections.abc import Callable, Mapping
from typing import Final

from tools.compose.interpolate import TemplateError, substitute

MAX_LINES: Final = 10_000
_LINE: Final = re.compile(
    r"\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_.-]*)\s*(?:(=|:\s)(.*))?", re.DOTALL
)
_ESCAPES: Final = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\", "$": "$$"}


class EnvFileError(ValueError):
    """`line` is 1-based."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(text)
        self.line = line


def parse_env_file(
    text: str, env: Mapping[str, str], unset: Callable[[str], None] = lambda name: None
) -> dict[str, str]:
    """Variables in order; later lines see the earlier ones. Raises EnvFileError."""
    found: dict[str, str] = {}
    lines = text.removeprefix("\ufeff").splitlines()
    if len(lines) > MAX_LINES:
        raise EnvFileError(MAX_LINES, f"more than {MAX_LINES} lines")
    number = 0
    while number < len(lines):
        line = lines[number]
        number += 1
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise EnvFileError(number, f"wanted KEY=VALUE, found {line[:60]!r}")
        key, equals, raw = match[1], match[2], match[3]
        if not equals:
            if key in env:
                found[key] = env[key]
            continue
        raw = raw.lstrip()
        first = number
        quote = raw[:1]
        if quote in ("'", '"'):
            while _closing(raw, quote) < 0:
                if number >= len(lines):
                    raise EnvFileError(first, f"the quote {quote} is not closed")
                raw += "\n" + lines[number]
                number += 1
            end = _closing(raw, quote)
            tail = raw[end + 1 :].strip()
            if tail and not tail.startswith("#"):
                raise EnvFileError(first, f"characters after the closing quote: {tail[:40]!r}")
            raw = raw[1:end]
        else:
            raw = re.split(r"\s+#", raw, maxsplit=1)[0].strip()
        if quote == '"':
            raw = re.sub(r"\\(.)", lambda m: _ESCAPES.get(m[1], "\\" + m[1]), raw, flags=re.DOTALL)
        try:
            found[key] = raw if quote == "'" else substitute(raw, {**found, **env}, unset)
        except TemplateError as exc:
            raise EnvFileError(first, str(exc)) from exc
    return found


def _closing(raw: str, quote: str) -> int:
    """Index of the closing quote, or -1."""
    place = 1
    while place < len(raw):
        if raw[place] == "\\" and quote == '"':
            place += 2
            continue
        if raw[place] == quote:
            return place
        place += 1
    return -1
