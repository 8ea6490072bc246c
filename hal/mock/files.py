"""The `Files` port on a simulated disk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hal.errors import Refused, Unavailable
from hal.mock.tree import Dir, File, split
from hal.ports import Buffer

if TYPE_CHECKING:
    from hal.mock.disk import Disk


class MockFiles:
    """The files below `root` of a disk. Survives whoever uses it."""

    def __init__(self, disk: Disk, root: str = "") -> None:
        self._disk = disk
        self._root = "/".join(split(root))

    def read(self, path: str, offset: int = 0, length: int = 1 << 20) -> bytes:
        """b"" past the end. Raises Unavailable when there is no such file."""
        if offset < 0 or length < 0:
            raise Refused(f"{path!r}: read of {length} bytes at {offset}")
        self._disk.check_read(path)
        found = self._disk.tree.find(self._full(path))
        if not isinstance(found, File):
            raise Unavailable(f"{self._disk.name}: no file {path!r}")
        return bytes(found.data[offset : offset + length])

    def write(self, path: str, data: Buffer) -> None:
        """Replace as a whole. Raises StoreFull, and leaves what was there."""
        content = bytes(data)
        full = self._full(path, of_file=True)
        self._disk.need(len(content), path)
        self._disk.tree.put(full, File(content))

    def append(self, path: str, data: Buffer) -> None:
        """To the end of a file, which is made when it is not there."""
        content = bytes(data)
        full = self._full(path, of_file=True)
        self._disk.need(len(content), path)
        old = self._disk.tree.find(full)
        before, mode = (old.data, old.mode) if isinstance(old, File) else (b"", File().mode)
        self._disk.tree.put(full, File(before + content, mode))

    def remove(self, path: str) -> None:
        """A file or a whole tree; absent is a success. Raises Refused for the root itself."""
        self._disk.tree.remove(self._full(path, of_file=True))

    def names(self, path: str) -> Sequence[str]:
        """Sorted names in a directory; empty when there is none."""
        found = self._disk.tree.find(self._full(path))
        return sorted(found.children) if isinstance(found, Dir) else []

    def size_bytes(self, path: str) -> int | None:
        """Of a file; None when there is none."""
        found = self._disk.tree.find(self._full(path))
        return len(found.data) if isinstance(found, File) else None

    def free_bytes(self) -> int:
        """Room on the disk."""
        return self._disk.free_bytes()

    def _full(self, path: str, *, of_file: bool = False) -> str:
        parts = split(path)
        if path.startswith("/"):
            raise Refused(f"path {path!r} is absolute; paths here are relative")
        if of_file and not parts:
            raise Refused(f"path {path!r} names the root itself")
        return "/".join([self._root, *parts])
