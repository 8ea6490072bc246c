"""YAML 1.2 text to a tree of nodes that know their lines.

Built from ruamel's events, without recursion, so that the bounds hold while the file is read:
size, nesting, and the number of nodes after aliases are expanded (an "alias bomb" is refused
before it goes off). Scalars follow the core schema (YAML 1.2.2, section 10.3.2): `22:22` and `no`
are strings. `<<` merges. A key that is there twice is refused.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias

from tools.compose.report import ComposeError, Finding

MAX_FILE_BYTES: Final = 1 << 20
MAX_DEPTH: Final = 64
MAX_NODES: Final = 100_000  # with aliases expanded
_TAG: Final = "tag:yaml.org,2002:"
_INT: Final = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT: Final = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL_FLOAT: Final = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_NULLS: Final = ("", "~", "null", "Null", "NULL")
_BOOLS: Final = {
    "true": True,
    "True": True,
    "TRUE": True,
    "false": False,
    "False": False,
    "FALSE": False,
}
MAX_NUMBER_CHARS: Final = 100

Scalar: TypeAlias = str | int | float | bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A scalar, a list of nodes or a mapping to nodes. `text` is a scalar's source text."""

    value: "Scalar | list[Node] | dict[str, Node]"
    line: int
    text: str = ""
    size: int = 1  # nodes in it, aliases expanded


@dataclass(slots=True)
class _Open:
    """A list or mapping that is being read."""

    line: int
    anchor: str | None
    is_map: bool
    items: list[Node] = field(default_factory=list)
    entries: dict[str, Node] = field(default_factory=dict)
    merged: list[Node] = field(default_factory=list)
    key: tuple[str, int] | None = None
    merge_next: bool = False
    size: int = 1


def read_document(text: str, file: str) -> Node:
    """The file's single document; an empty file is an empty mapping. Raises ComposeError."""
    from ruamel.yaml import YAML

    if len(text.encode(errors="replace")) > MAX_FILE_BYTES:
        raise _error(file, 0, f"the file is larger than {MAX_FILE_BYTES} bytes")
    return _Builder(file).build(_events(YAML(typ="safe", pure=True), text, file))


def _events(yaml: Any, text: str, file: str) -> Iterator[Any]:
    """What the library reads. It has a type for most errors; for the rest it asserts."""
    from ruamel.yaml.error import MarkedYAMLError

    try:
        yield from yaml.parse(text)
    except MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        words = " ".join(part for part in (exc.context, exc.problem) if part)
        raise _error(file, mark.line + 1 if mark else 0, f"not YAML: {words}") from exc
    except Exception as exc:  # `%YAML 1.3` ends in an AssertionError, for one
        words = " ".join(str(exc).split())[:300] or type(exc).__name__
        raise _error(file, 0, f"not YAML: {words}") from exc


class _Builder:
    def __init__(self, file: str) -> None:
        self._file = file
        self._anchors: dict[str, Node] = {}
        self._stack: list[_Open] = []
        self._root: Node | None = None

    def build(self, events: Iterator[Any]) -> Node:
        documents = 0
        for event in events:
            kind = type(event).__name__
            line = event.start_mark.line + 1 if event.start_mark else 0
            if kind == "DocumentStartEvent":
                documents += 1
                if documents > 1:
                    raise _error(self._file, line, "one document is wanted, found a second one")
            elif kind == "ScalarEvent":
                self._scalar(event, line)
            elif kind == "AliasEvent":
                self._alias(str(event.anchor), line)
            elif kind in ("MappingStartEvent", "SequenceStartEvent"):
                self._open(event, kind == "MappingStartEvent", line)
            elif kind in ("MappingEndEvent", "SequenceEndEvent"):
                self._close()
        if self._root is None or self._root.value is None:
            return Node(value={}, line=1)
        return self._root

    def _open(self, event: Any, is_map: bool, line: int) -> None:
        tag = _tag(event)
        if tag and tag != f"{_TAG}{'map' if is_map else 'seq'}":
            raise _error(self._file, line, f"the tag {tag} is not known here")
        if len(self._stack) >= MAX_DEPTH:
            raise _error(self._file, line, f"nested deeper than {MAX_DEPTH} levels")
        self._need_key(line)
        self._stack.append(_Open(line=line, anchor=event.anchor, is_map=is_map))

    def _need_key(self, line: int) -> None:
        if self._stack and self._stack[-1].is_map and self._stack[-1].key is None:
            raise _error(self._file, line, "a key must be a string")

    def _close(self) -> None:
        top = self._stack.pop()
        value: dict[str, Node] | list[Node] = top.items
        if top.is_map:
            value = dict(top.entries)
            for base in top.merged:
                assert isinstance(base.value, dict)
                for key, node in base.value.items():
                    value.setdefault(key, node)
        self._put(Node(value=value, line=top.line, size=top.size), top.anchor)

    def _alias(self, name: str, line: int) -> None:
        target = self._anchors.get(name)
        if target is None:
            raise _error(self._file, line, f"the alias *{name} has no anchor before it")
        self._need_key(line)
        self._put(replace(target, line=line), None)

    def _scalar(self, event: Any, line: int) -> None:
        plain = event.style in (None, "")
        event.value = self._whole(event.value, line)
        top = self._stack[-1] if self._stack else None
        value = self._resolved(event, plain, line)
        if top is not None and top.is_map and top.key is None:
            if plain and event.value == "<<":
                top.key, top.merge_next = ("<<", line), True
                return
            if not isinstance(value, str):
                raise _error(self._file, line, f"a key must be a string, found {event.value!r}")
            if value in top.entries:
                raise _error(self._file, line, "this key is there twice", value)
            top.key = (value, line)
            return
        self._put(Node(value=value, line=line, text=str(event.value)), event.anchor)

    def _whole(self, text: str, line: int) -> str:
        """JSON writes a character beyond U+FFFF as two escapes, "\\ud83d\\ude00" (RFC 8259, section
        7); a YAML reader leaves them as two halves. A half alone is no character."""
        if text.isascii():
            return text
        try:
            return text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError as exc:
            raise _error(self._file, line, "an escape stands for half a character") from exc

    def _put(self, node: Node, anchor: str | None) -> None:
        if anchor:
            self._anchors[anchor] = node
        if not self._stack:
            self._root = node
            return
        top = self._stack[-1]
        top.size += node.size
        if top.size > MAX_NODES:
            raise _error(self._file, node.line, f"more than {MAX_NODES} values (aliases expanded)")
        if not top.is_map:
            top.items.append(node)
            return
        assert top.key is not None
        key, key_line = top.key
        top.key = None
        if top.merge_next:
            top.merge_next = False
            bases = node.value if isinstance(node.value, list) else [node]
            if not all(isinstance(base.value, dict) for base in bases):
                raise _error(self._file, key_line, "<< merges mappings only")
            top.merged.extend(bases)
        else:
            top.entries[key] = replace(node, line=key_line)  # people look for the key

    def _resolved(self, event: Any, plain: bool, line: int) -> Scalar:
        text = str(event.value)
        tag = _tag(event)
        if tag in (f"{_TAG}str", "!") or (not tag and not plain):
            return text
        if tag and tag not in (f"{_TAG}int", f"{_TAG}float", f"{_TAG}bool", f"{_TAG}null"):
            raise _error(self._file, line, f"the tag {tag} is not known here")
        value = plain_value(text)
        kinds = {"int": int, "float": (int, float), "bool": bool, "null": type(None)}
        if tag and not isinstance(value, kinds[tag.removeprefix(_TAG)]):  # type: ignore[arg-type]
            raise _error(self._file, line, f"{text!r} is no {tag.removeprefix(_TAG)}")
        return value


def plain_value(text: str) -> Scalar:
    """A plain scalar by the core schema."""
    if text in _NULLS:
        return None
    if text in _BOOLS:
        return _BOOLS[text]
    if len(text) <= MAX_NUMBER_CHARS:
        if _INT.fullmatch(text):
            return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
        if _FLOAT.fullmatch(text):
            return float(text)
        if _SPECIAL_FLOAT.fullmatch(text):
            return float(text.replace(".", ""))
    return text


def to_plain(node: Node) -> object:
    """The tree as plain Python values, for comparison with other readers."""
    if isinstance(node.value, dict):
        return {key: to_plain(item) for key, item in node.value.items()}
    if isinstance(node.value, list):
        return [to_plain(item) for item in node.value]
    return node.value


def _tag(event: Any) -> str:
    tag = event.tag
    return "" if tag is None else str(tag)


def _error(file: str, line: int, text: str, key: str = "") -> ComposeError:
    return ComposeError([Finding(code="invalid", file=file, line=line, key=key, text=text)])
