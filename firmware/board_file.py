"""Finding, reading and inheriting board files, and pointing at the line of a key.

`inherit = "base"` in `[board]` names another board or a file beside this one: tables merge key by
key, `[[slot]]` entries merge by their `slot` number, other lists replace. `[slot_default]` holds
what every slot says unless it says otherwise. In a slot's strings `${run}`, `${slot}` and `${id}`
are filled in.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from firmware.fields import Path as KeyPath
from firmware.fields import path_text

BOARDS_DIR: Final = Path(__file__).resolve().parent.parent / "board_configs"
MAX_FILE_BYTES: Final = 1 << 20
MAX_INHERIT: Final = 8
_HEADER: Final = re.compile(r"\s*(\[\[?)\s*([^\]]+?)\s*\]\]?\s*(#.*)?$")
_VARIABLE: Final = re.compile(r"\$\{([^}]*)\}")


class BoardError(Exception):
    """A board is refused. `line` is 1-based, 0 where it is not known."""

    def __init__(
        self, file: str, key: str, want: str, got: str, *, line: int = 0, do: str = ""
    ) -> None:
        where = f"{file}:{line}" if line else file
        text = f"{where}: {key}: wanted {want}, found {got}"
        super().__init__(f"{text}; {do}" if do else text)
        self.file, self.line, self.key = file, line, key
        self.want, self.got, self.do = want, got, do


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardFile:
    """One file of the chain of inheritance."""

    path: Path
    text: str
    document: dict[str, Any]


def find_board(source: str | Path) -> Path:
    """The file of a board: a path (it has a "/" or ends in .toml), or a name in board_configs."""
    text = str(source)
    if "/" in text or text.endswith(".toml"):
        return Path(text)
    return BOARDS_DIR / f"{text}.toml"


def board_names() -> list[str]:
    """The boards that come with this software; base only holds what they share."""
    return sorted(path.stem for path in BOARDS_DIR.glob("*.toml") if path.stem != "base")


def read_chain(source: str | Path) -> list[BoardFile]:
    """The board's file first, then what it inherits from. Raises BoardError."""
    chain: list[BoardFile] = []
    path: Path | None = find_board(source)
    while path is not None:
        if any(path.resolve() == file.path.resolve() for file in chain):
            trail = " -> ".join(str(file.path) for file in chain)
            raise _inherit_error(chain, "no circle", f"{trail} -> {path}")
        if len(chain) >= MAX_INHERIT:
            raise _inherit_error(chain, f"at most {MAX_INHERIT} files", "more")
        chain.append(_read(path, chain))
        board = chain[-1].document.get("board", {})
        parent = board.get("inherit") if isinstance(board, dict) else None
        if parent is not None and (
            not isinstance(parent, str) or not parent or not parent.isprintable()
        ):
            raise _inherit_error(chain, "the name or the file of a board", repr(parent))
        path = None if parent is None else _parent_path(chain[-1].path, parent)
    return chain


def merge(chain: list[BoardFile]) -> dict[str, Any]:
    """One document out of the chain; the nearer file wins."""
    document: dict[str, Any] = {}
    for file in reversed(chain):
        document = merge_tables(document, file.document)
    board = document.get("board")
    if isinstance(board, dict):
        document["board"] = {key: value for key, value in board.items() if key != "inherit"}
    return document


def expand(value: object, names: Mapping[str, str]) -> object:
    """Fill `${name}` in every string below `value`; raises KeyError with an unknown name."""
    if isinstance(value, str):
        return _VARIABLE.sub(lambda match: names[match[1]], value)
    if isinstance(value, dict):
        return {key: expand(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [expand(item, names) for item in value]
    return value


def locate(chain: list[BoardFile], path: KeyPath) -> tuple[str, int]:
    """The file and line of a key, or of the nearest thing around it. (file, 0) if not found."""
    for length in range(len(path), 0, -1):
        for file in chain:
            lines = _lines(file.text)
            for place in _own_paths(chain, file, path[:length]):
                if place in lines:
                    return str(file.path), lines[place]
    return str(chain[0].path), 0


def error_at(
    chain: list[BoardFile], path: KeyPath, want: str, got: str, do: str = ""
) -> BoardError:
    """A BoardError that points at the key."""
    file, line = locate(chain, path)
    return BoardError(file, path_text(path), want, got, line=line, do=do)


def _own_paths(chain: list[BoardFile], file: BoardFile, path: KeyPath) -> list[KeyPath]:
    """Where this file may hold a key of the merged document: `slot[2]` may be its `slot[0]`, and
    what a slot does not say itself is in `slot_default`."""
    if len(path) < 2 or path[0] != "slot" or not isinstance(path[1], int):
        return [path]
    default: KeyPath = ("slot_default", *path[2:])
    defaults = [default] if len(path) > 2 else []
    try:
        number = merge(chain)["slot"][path[1]]["slot"]
        own = [item.get("slot") for item in file.document["slot"]]
        index = path[1] if own[path[1] :][:1] == [number] else own.index(number)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        return [path, *defaults]  # too wrong to tell: the plain index is the best guess
    return [("slot", index, *path[2:]), *defaults]


def _read(path: Path, chain: list[BoardFile]) -> BoardFile:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as exc:
        do = f"boards here: {', '.join(board_names())}; or give a file"
        if chain:
            raise _inherit_error(
                chain, "a board that can be read", f"{path}: {exc.strerror}"
            ) from exc
        if path.parent == BOARDS_DIR and Path(path.stem).is_file():  # asked for by its bare name
            do = f"for the file of this directory write ./{path.stem}; {do}"
        raise BoardError(str(path), "(file)", "a board file", str(exc.strerror), do=do) from exc
    if len(data) > MAX_FILE_BYTES:
        raise BoardError(str(path), "(file)", f"at most {MAX_FILE_BYTES} bytes", "more")
    try:
        text = data.decode()
        document = tomllib.loads(text)
    except UnicodeDecodeError as exc:
        raise BoardError(str(path), "(file)", "UTF-8", f"byte {exc.start} is not") from exc
    except (ValueError, RecursionError) as exc:  # a TOMLDecodeError, or a number of 5,000 digits
        found = re.search(r"line (\d+)", str(exc))
        line = int(found[1]) if found else 0
        raise BoardError(str(path), "(file)", "TOML", str(exc), line=line) from exc
    return BoardFile(path=path, text=text, document=document)


def _inherit_error(chain: list[BoardFile], want: str, got: str) -> BoardError:
    return error_at(chain[-1:], ("board", "inherit"), want, got)


def _parent_path(child: Path, parent: str) -> Path:
    path = find_board(parent)
    return child.parent / parent if path.suffix == ".toml" and parent.endswith(".toml") else path


def merge_tables(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` on top of `base`, key by key."""
    result = dict(base)
    for key, value in over.items():
        before = result.get(key)
        if key == "slot" and isinstance(before, list) and isinstance(value, list):
            result[key] = _merged_slots(before, value)
        elif isinstance(before, dict) and isinstance(value, dict):
            result[key] = merge_tables(before, value)
        else:
            result[key] = value
    return result


def _merged_slots(base: list[Any], over: list[Any]) -> list[Any]:
    result = list(base)
    numbers = [item.get("slot") if isinstance(item, dict) else None for item in base]
    for item in over:
        number = item.get("slot") if isinstance(item, dict) else None
        if number is not None and number in numbers:
            place = numbers.index(number)
            result[place] = merge_tables(result[place], item)
        else:
            result.append(item)
    return result


def _lines(text: str) -> dict[KeyPath, int]:
    """Key path -> line, by scanning: headers, `key = value` lines, and one level of `{...}`."""
    found: dict[KeyPath, int] = {}
    counts: dict[KeyPath, int] = {}
    here: KeyPath = ()
    for number, line in enumerate(text.splitlines(), 1):
        header = _HEADER.match(line)
        if header:
            here = _header_path(header[2], header[1] == "[[", counts)
            found.setdefault(here, number)
            continue
        key = re.match(r"\s*([A-Za-z0-9_-]+(?:\s*\.\s*[A-Za-z0-9_-]+)*)\s*=", line)
        if key:
            parts = tuple(part.strip() for part in key[1].split("."))
            found.setdefault((*here, *parts), number)
            rest = line[key.end() :]
            for inner in re.findall(r"[{,]\s*([A-Za-z0-9_-]+)\s*=", rest):
                found.setdefault((*here, *parts, inner), number)
    return found


def _header_path(name: str, is_array: bool, counts: dict[KeyPath, int]) -> KeyPath:
    path: KeyPath = ()
    parts = [part.strip().strip("\"'") for part in name.split(".")]
    for part in parts[:-1]:
        path = (*path, part)
        if path in counts:
            path = (*path, counts[path])
    path = (*path, parts[-1])
    if is_array:
        counts[path] = counts.get(path, -1) + 1
        path = (*path, counts[path])
    return path
