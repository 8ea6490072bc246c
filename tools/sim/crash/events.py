"""What a program did to its disk, in order: the log from which crash images are rebuilt.

A file is a number of its own (its inode: a new file under an old name is another one); names are
entries of directories and are made durable by a sync of the *directory*, as fsync(2) says. Paths
are relative to the root that is watched, which itself counts as durable.
"""

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

DIRECTORY: Final = 0  # the node of a name that is a directory; files count from 1


@dataclass(frozen=True, slots=True)
class Write:
    file: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Resize:
    """ftruncate(2): shorter, or longer with zeros."""

    file: int
    size: int


@dataclass(frozen=True, slots=True)
class Sync:
    """fsync(2) or fdatasync(2) of a file returned: its bytes and its size are durable."""

    file: int


@dataclass(frozen=True, slots=True)
class Name:
    """A name came: open(2) with O_CREAT, mkdir(2)."""

    path: str
    node: int


@dataclass(frozen=True, slots=True)
class Unname:
    """A name went: unlink(2), rmdir(2)."""

    path: str


@dataclass(frozen=True, slots=True)
class Rename:
    """rename(2) of a file. A crash never shows neither name, where there was one before."""

    old: str
    new: str
    node: int


@dataclass(frozen=True, slots=True)
class SyncDir:
    """fsync(2) of a directory returned: its entries are durable."""

    path: str


@dataclass(frozen=True, slots=True)
class Submitted:
    """The program was handed commit number `commit` (from 1)."""

    commit: int


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """The program said that commit number `commit` would survive a power cut; 0: it has read
    what was there, and goes on from that."""

    commit: int


NameChange: TypeAlias = Name | Unname | Rename
Change: TypeAlias = Write | Resize | NameChange
Event: TypeAlias = Change | Sync | SyncDir | Submitted | Acknowledged


class Log:
    """The events so far. Any thread may add to it."""

    def __init__(self, root: str) -> None:
        """Of what lies below `root`; what is there already is taken as durable."""
        self.root: Final = os.path.realpath(root)
        self.events: list[Event] = []
        self._lock = threading.Lock()
        self._nodes: dict[str, int] = {}
        self._last = DIRECTORY
        for folder, folders, files in os.walk(self.root):
            for name in sorted(folders):
                self._nodes[self.relative(f"{folder}/{name}") or ""] = DIRECTORY
            for name in sorted(files):
                self._nodes[self.relative(f"{folder}/{name}") or ""] = self._fresh()

    @property
    def nodes(self) -> dict[str, int]:
        """Name -> node, as the program sees it now."""
        return dict(self._nodes)

    def relative(self, path: str) -> str | None:
        """Below the root, "" for the root itself; None for what is elsewhere."""
        path = os.path.normpath(path)
        if path == self.root:
            return ""
        if path.startswith(f"{self.root}/"):
            return path[len(self.root) + 1 :]
        return None

    def node(self, path: str) -> int | None:
        """Of an absolute path; None where there is none below the root."""
        name = self.relative(path)
        return None if name is None else self._nodes.get(name)

    def add(self, event: Event) -> None:
        with self._lock:
            self.events.append(event)

    def named(self, path: str, *, directory: bool = False) -> None:
        """A name came, if it is new; for an absolute path below the root."""
        name = self.relative(path)
        if name is None:
            return
        with self._lock:
            if name not in self._nodes:
                self._nodes[name] = DIRECTORY if directory else self._fresh()
                self.events.append(Name(name, self._nodes[name]))

    def unnamed(self, path: str) -> None:
        name = self.relative(path)
        if name is None:
            return
        with self._lock:
            if self._nodes.pop(name, None) is not None:
                self.events.append(Unname(name))

    def renamed(self, old: str, new: str) -> None:
        """Of a file. Raises ValueError for a directory: nothing of ours relies on that."""
        before, after = self.relative(old), self.relative(new)
        if before is None or after is None:
            return
        with self._lock:
            node = self._nodes.pop(before)
            if node == DIRECTORY:
                raise ValueError(f"rename of the directory {before!r} is not modelled")
            self._nodes[after] = node
            self.events.append(Rename(before, after, node))

    def synced_dir(self, path: str) -> None:
        name = self.relative(path)
        if name is not None:
            self.add(SyncDir(name))

    def _fresh(self) -> int:
        self._last += 1
        return self._last


def bytes_written(events: Sequence[Event]) -> int:
    return sum(len(event.data) for event in events if isinstance(event, Write))
