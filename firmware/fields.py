"""Strict reading of JSON and TOML objects: every key is asked for once, the rest is refused.

Bad input is refused whole, with the path of the key, what was wanted and what was found
(DESIGN section 5). Users: `firmware.workload` (JSON of the control socket), `firmware.board`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeVar, cast

Path = tuple[str | int, ...]
T = TypeVar("T")
SHOWN_CHARS: Final = 60  # of a found value in an error text


class FieldError(Exception):
    """One key is wrong. `path` is where, `want` and `got` are words for people."""

    def __init__(self, path: Path, want: str, got: str) -> None:
        super().__init__(f"{path_text(path)}: wanted {want}, found {got}")
        self.path = path
        self.want = want
        self.got = got


def path_text(path: Path) -> str:
    """`("slot", 1, "mc")` as `slot[1].mc`; the whole document is `(document)`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text.encode(errors="replace").decode() or "(document)"  # half a character can't be said


def shown(value: object) -> str:
    """A found value in an error text: its kind, and its first characters."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return f"an object with {len(value)} keys"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"a list of {len(value)}"
    text = repr(value)
    return text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + "..."


def closest(word: str, known: Sequence[str]) -> str:
    """The known word that was probably meant, or ""."""
    from difflib import get_close_matches  # 12 ms at a start, and wanted only for a mistake

    close = get_close_matches(word, known, n=1)
    return close[0] if close else ""


def nearest(word: str, known: Sequence[str]) -> str:
    """`; did you mean X?` or nothing."""
    close = closest(word, known)
    return f"; did you mean {close!r}?" if close else ""


class _Required:
    """The default of a key that has none."""


REQUIRED: Final = _Required()


class Fields:
    """One object, read key by key; `done` refuses what nobody asked for."""

    def __init__(
        self, value: object, path: Path = (), error: type[FieldError] = FieldError
    ) -> None:
        self.path = path
        self._error = error
        if not isinstance(value, Mapping):
            raise error(path, "an object", shown(value))
        for key in value:
            if not isinstance(key, str):
                raise error(path, "keys that are strings", shown(key))
        self._values = cast("Mapping[str, object]", value)
        self._asked: dict[str, None] = {}

    def fail(self, key: str, want: str, got: str) -> FieldError:
        return self._error((*self.path, key), want, got)

    def done(self) -> None:
        for key in self._values:
            if key not in self._asked:
                known = list(self._asked)
                want = f"one of {', '.join(known)}{nearest(key, known)}"
                raise self.fail(key, want, "an unknown key")

    def rest(self) -> Mapping[str, object]:
        """All of it, unread: for tables that are merged before they are checked."""
        self._asked.update(dict.fromkeys(self._values))
        return self._values

    def _get(self, key: str, default: object) -> object:
        self._asked[key] = None
        if key in self._values:
            return self._values[key]
        if default is REQUIRED:
            close = closest(key, list(self._values))
            raise self.fail(key, "this key", f"only {close!r}" if close else "nothing")
        return default

    def text(
        self,
        key: str,
        default: str | _Required = REQUIRED,
        *,
        pattern: re.Pattern[str] | None = None,
        want: str = "",
        max_bytes: int = 4096,
    ) -> str:
        value = self._get(key, default)
        want = want or f"a string of at most {max_bytes} bytes"
        if not isinstance(value, str) or not is_clean(value, max_bytes):
            raise self.fail(key, want, shown(value))
        if pattern is not None and pattern.fullmatch(value) is None:
            raise self.fail(key, want, shown(value))
        return value

    def text_or_none(
        self,
        key: str,
        *,
        pattern: re.Pattern[str] | None = None,
        want: str = "",
        max_bytes: int = 4096,
    ) -> str | None:
        """null, or absent, is None."""
        if self._get(key, None) is None:
            return None
        return self.text(key, pattern=pattern, want=want, max_bytes=max_bytes)

    def choice(self, key: str, choices: Sequence[str], default: str | _Required = REQUIRED) -> str:
        value = self._get(key, default)
        if not isinstance(value, str) or value not in choices:
            raise self.fail(key, f"one of {', '.join(choices)}", shown(value))
        return value

    def integer(
        self, key: str, default: int | _Required = REQUIRED, *, low: int = 0, high: int
    ) -> int:
        value = self._get(key, default)
        if type(value) is not int or not low <= value <= high:
            raise self.fail(key, f"an integer {low}..{high}", shown(value))
        return value

    def boolean(self, key: str, default: bool | _Required = REQUIRED) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self.fail(key, "true or false", shown(value))
        return value

    def items(self, key: str, *, max_items: int) -> Sequence[object]:
        """A list; absent is empty."""
        value = self._get(key, ())
        if not isinstance(value, list | tuple):
            raise self.fail(key, f"a list of at most {max_items}", shown(value))
        if len(value) > max_items:
            raise self.fail(key, f"a list of at most {max_items}", f"a list of {len(value)}")
        return value

    def texts(
        self,
        key: str,
        *,
        max_items: int,
        max_bytes: int = 4096,
        pattern: re.Pattern[str] | None = None,
        want: str = "",
    ) -> tuple[str, ...]:
        """A list of strings; absent is empty."""
        want = want or f"a string of at most {max_bytes} bytes"
        found: list[str] = []
        for index, item in enumerate(self.items(key, max_items=max_items)):
            if not isinstance(item, str) or not is_clean(item, max_bytes):
                raise self._error((*self.path, key, index), want, shown(item))
            if pattern is not None and pattern.fullmatch(item) is None:
                raise self._error((*self.path, key, index), want, shown(item))
            found.append(item)
        return tuple(found)

    def texts_or_none(
        self, key: str, *, max_items: int, max_bytes: int = 4096
    ) -> tuple[str, ...] | None:
        if self._get(key, None) is None:
            return None
        return self.texts(key, max_items=max_items, max_bytes=max_bytes)

    def mapping(
        self,
        key: str,
        *,
        max_items: int,
        key_pattern: re.Pattern[str],
        key_want: str,
        max_bytes: int = 4096,
    ) -> dict[str, str]:
        """An object of strings; absent is empty."""
        value = self._get(key, {})
        if not isinstance(value, Mapping):
            raise self.fail(key, "an object of strings", shown(value))
        if len(value) > max_items:
            raise self.fail(key, f"at most {max_items} entries", f"{len(value)}")
        found: dict[str, str] = {}
        for name, item in value.items():
            path = (*self.path, key, str(name))
            good = isinstance(name, str) and is_clean(name, max_bytes)
            if not good or key_pattern.fullmatch(name) is None:
                raise self._error(path, key_want, shown(name))
            if not isinstance(item, str) or not is_clean(item, max_bytes):
                raise self._error(path, f"a string of at most {max_bytes} bytes", shown(item))
            found[name] = item
        return found

    def objects(self, key: str, read: "Callable[[Fields], T]", *, max_items: int) -> tuple[T, ...]:
        """A list of objects, each read by `read` and closed by `done`; absent is empty."""
        found: list[T] = []
        for index, item in enumerate(self.items(key, max_items=max_items)):
            fields = Fields(item, (*self.path, key, index), self._error)
            found.append(read(fields))
            fields.done()
        return tuple(found)

    def object(self, key: str, read: "Callable[[Fields], T]") -> T:
        """An object read by `read`; absent is an empty one."""
        fields = Fields(self._get(key, {}), (*self.path, key), self._error)
        found = read(fields)
        fields.done()
        return found

    def object_or_none(self, key: str, read: "Callable[[Fields], T]") -> T | None:
        """null, or absent, is None."""
        if self._get(key, None) is None:
            return None
        return self.object(key, read)


def is_clean(text: str, max_bytes: int) -> bool:
    """Encodes to UTF-8 (no lone surrogates) within the limit, and holds no NUL."""
    try:
        return len(text.encode()) <= max_bytes and "\0" not in text
    except UnicodeEncodeError:
        return False
