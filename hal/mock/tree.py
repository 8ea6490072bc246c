"""A file tree in memory: directories, files, symbolic links. Owners and permission bits are kept,
never enforced."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from hal.errors import Refused, Unavailable

FILE_MODE = 0o644
DIR_MODE = 0o755
LINK_MODE = 0o777


@dataclass(slots=True)
class File:
    data: bytes = b""
    mode: int = FILE_MODE
    uid: int = 0
    gid: int = 0


@dataclass(slots=True)
class Link:
    target: str
    mode: int = LINK_MODE
    uid: int = 0
    gid: int = 0


@dataclass(slots=True)
class Dir:
    children: dict[str, Entry] = field(default_factory=dict)
    mode: int = DIR_MODE
    uid: int = 0
    gid: int = 0


Entry: TypeAlias = File | Link | Dir


def split(path: str) -> list[str]:
    """The parts of a path. Raises Refused for ".." and NUL; "." and empty parts fall away."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in path:
        raise Refused(f"path {path!r} would leave its tree")
    return parts


def bytes_below(entry: Entry) -> int:
    """What an entry takes of the disk."""
    if isinstance(entry, Dir):
        return sum(bytes_below(child) for child in entry.children.values())
    return len(entry.data) if isinstance(entry, File) else 0


class MemoryTree:
    """The tree, with the sum of its files' sizes kept at hand. Symlinks are never followed."""

    def __init__(self) -> None:
        self.root = Dir()
        self.used_bytes = 0

    def find(self, path: str) -> Entry | None:
        """The entry at a path; None when it or a directory on the way is not there."""
        entry: Entry = self.root
        for part in split(path):
            if not isinstance(entry, Dir) or part not in entry.children:
                return None
            entry = entry.children[part]
        return entry

    def directory(self, path: str) -> Dir:
        """The directory at a path, made with its parents. Raises Unavailable over a file."""
        here = self.root
        for part in split(path):
            child = here.children.setdefault(part, Dir())
            if not isinstance(child, Dir):
                raise Unavailable(f"{path!r}: {part!r} is no directory")
            here = child
        return here

    def put(self, path: str, entry: Entry) -> None:
        """Set the entry at a path in place of what was there; parents are made. Raises Refused
        for the root and in place of a directory."""
        parts = split(path)
        if not parts:
            raise Refused(f"path {path!r} names the tree itself")
        parent = self.directory("/".join(parts[:-1]))
        old = parent.children.get(parts[-1])
        if isinstance(old, Dir) and not isinstance(entry, Dir):
            raise Refused(f"{path!r} is a directory")
        self.used_bytes += bytes_below(entry) - (bytes_below(old) if old is not None else 0)
        parent.children[parts[-1]] = entry

    def remove(self, path: str) -> None:
        """An entry and all below it; absent is fine. Raises Refused for the root."""
        parts = split(path)
        if not parts:
            raise Refused(f"path {path!r} names the tree itself")
        parent = self.find("/".join(parts[:-1]))
        if isinstance(parent, Dir) and parts[-1] in parent.children:
            self.used_bytes -= bytes_below(parent.children.pop(parts[-1]))

    def walk(self, path: str) -> Iterator[tuple[str, Entry]]:
        """Everything below a path, relative to it, sorted by path; nothing when it is absent."""
        start = self.find(path)
        if not isinstance(start, Dir):
            return
        found: list[tuple[str, Entry]] = []
        stack: list[tuple[str, Dir]] = [("", start)]
        while stack:
            prefix, directory = stack.pop()
            for name, entry in directory.children.items():
                found.append((prefix + name, entry))
                if isinstance(entry, Dir):
                    stack.append((f"{prefix}{name}/", entry))
        yield from sorted(found, key=lambda item: item[0])
