"""Variables in Compose values: `$X ${X} ${X:-d} ${X-d} ${X:?e} ${X?e} ${X:+a} ${X+a} $$`.

Ref: compose-spec 12-interpolation.md. Defaults may hold variables themselves. Keys are left alone.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from tools.compose.document import Node
from tools.compose.report import Report

MAX_DEPTH: Final = 8
MAX_RESULT_CHARS: Final = 1 << 20
_OPERATORS: Final = (":-", ":?", ":+", "-", "?", "+")
_NAME: Final = re.compile(r"[_A-Za-z][_A-Za-z0-9]*")


class TemplateError(ValueError):
    """The text is no valid template, or demands a variable that is not there."""


def substitute(text: str, env: Mapping[str, str], unset: Callable[[str], None]) -> str:
    """Fill in the variables. `unset(name)` hears each one that becomes empty by default. Raises
    TemplateError."""
    result, place = _fill(text, 0, env, unset, depth=0)
    assert place == len(text)
    return result


def interpolate(node: Node, path: str, env: Mapping[str, str], report: Report) -> Node:
    """The tree with every string value filled in; what is wrong goes to the report."""
    value = node.value
    if isinstance(value, dict):
        entries = {
            key: interpolate(item, f"{path}.{key}" if path else key, env, report)
            for key, item in value.items()
        }
        return replace(node, value=entries)
    if isinstance(value, list):
        items = [
            interpolate(item, f"{path}[{index}]", env, report) for index, item in enumerate(value)
        ]
        return replace(node, value=items)
    if not isinstance(value, str) or "$" not in value:
        return node

    def unset(name: str) -> None:
        text = f"the variable {name} is not set; it is taken as empty"
        report.warn(node.line, path, text, "unset_variable")

    try:
        return replace(node, value=substitute(value, env, unset))
    except TemplateError as exc:
        report.problem(node.line, path, str(exc))
        return node


def _fill(
    text: str, place: int, env: Mapping[str, str], unset: Callable[[str], None], *, depth: int
) -> tuple[str, int]:
    """From `place` to the end, or inside braces (`depth` > 0) to the closing one, not eaten."""
    parts: list[str] = []
    length = 0
    while place < len(text):
        char = text[place]
        if char == "}" and depth:
            break
        if char != "$":
            parts.append(char)
            place += 1
        elif text.startswith("$$", place):
            parts.append("$")
            place += 2
        elif text.startswith("${", place):
            piece, place = _braced(text, place, env, unset, depth)
            parts.append(piece)
        else:
            match = _NAME.match(text, place + 1)
            if match is None:
                raise TemplateError(f"{_near(text, place)}: a lone '$' is written '$$'")
            parts.append(_value(match[0], env, unset))
            place = match.end()
        length += len(parts[-1])
        if length > MAX_RESULT_CHARS:
            raise TemplateError(f"the variables make more than {MAX_RESULT_CHARS} characters")
    return "".join(parts), place


def _braced(
    text: str, place: int, env: Mapping[str, str], unset: Callable[[str], None], depth: int
) -> tuple[str, int]:
    if depth >= MAX_DEPTH:
        raise TemplateError(f"variables nest deeper than {MAX_DEPTH}")
    match = _NAME.match(text, place + 2)
    if match is None:
        raise TemplateError(f"{_near(text, place)}: wanted a variable's name after '${{'")
    name, after = match[0], match.end()
    if text.startswith("}", after):
        return _value(name, env, unset), after + 1
    operator = next(
        (op for op in (":-", ":?", ":+", "-", "?", "+") if text.startswith(op, after)), ""
    )
    if not operator:
        raise TemplateError(f"{_near(text, place)}: wanted }} or one of :- - :? ? :+ +")
    is_set = bool(env.get(name)) if operator[0] == ":" else name in env
    used = not is_set if operator[-1] in "-?" else is_set
    hush: Callable[[str], None] = lambda name: None  # noqa: E731 (what is not used is not missed)
    word, end = _fill(text, after + len(operator), env, unset if used else hush, depth=depth + 1)
    if not text.startswith("}", end):
        raise TemplateError(f"{_near(text, place)}: the brace is not closed")
    if operator[-1] == "?" and used:
        raise TemplateError(f"the variable {name} is required: {word or 'it is not set'}")
    if operator[-1] == "+":
        return (word if used else ""), end + 1
    return (word if used else env.get(name, "")), end + 1


def _value(name: str, env: Mapping[str, str], unset: Callable[[str], None]) -> str:
    if name not in env:
        unset(name)
    return env.get(name, "")


def _near(text: str, place: int) -> str:
    return repr(text[place : place + 40])
