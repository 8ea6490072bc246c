"""The `Trees` port on a simulated disk. Paths start at the disk's root; a leading "/" is fine."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hal.errors import Refused, Unavailable
from hal.mock.later import run_later
from hal.mock.layers import apply_layer
from hal.mock.tree import Dir, Entry, File, Link, MemoryTree, split
from hal.ports import Done, FileInfo

if TYPE_CHECKING:
    from hal.mock.disk import Disk
    from hal.mock.node import Node


class MockTrees:
    """Trees on the same disk as the blobs that they are made from."""

    def __init__(self, node: Node, disk: Disk) -> None:
        self._node, self._disk = node, disk

    def submit_unpack(
        self, blobs: Sequence[bytes], path: str, deadline_ns: int, done: Done[None]
    ) -> None:
        """Layers onto a fresh tree; what was at `path` before is replaced only on success."""
        digests = tuple(blobs)
        size = sum(len(self._disk.blobs.get(digest, b"")) for digest in digests)
        run_later(
            self._node,
            self._disk.work_ns(size),
            deadline_ns,
            lambda: self._unpack(digests, path),
            done,
        )

    def submit_checkout(
        self,
        files: Sequence[tuple[FileInfo, bytes]],
        path: str,
        deadline_ns: int,
        done: Done[None],
    ) -> None:
        """Make the tree hold exactly these entries. Raises Unavailable for a missing blob."""
        wanted = tuple(files)
        size = sum(info.size_bytes for info, _ in wanted)
        run_later(
            self._node,
            self._disk.work_ns(size),
            deadline_ns,
            lambda: self._checkout(wanted, path),
            done,
        )

    def submit_scan(
        self, path: str, deadline_ns: int, done: Done[Sequence[tuple[FileInfo, bytes]]]
    ) -> None:
        """Files below `path` into the blob store. Unavailable when there is no such tree."""
        size = sum(len(e.data) for _, e in self._disk.tree.walk(path) if isinstance(e, File))
        run_later(
            self._node,
            self._disk.work_ns(size),
            deadline_ns,
            lambda: self._scan(path),
            done,
        )

    def _unpack(self, digests: Sequence[bytes], path: str) -> None:
        fresh = MemoryTree()
        for digest in digests:
            apply_layer(fresh, self._blob(digest))
        self._replace(path, fresh)

    def _checkout(self, files: Sequence[tuple[FileInfo, bytes]], path: str) -> None:
        fresh = MemoryTree()
        for info, digest in sorted(files, key=lambda item: item[0].path):
            entry: Entry
            if info.kind == "dir":
                found = fresh.find(info.path)
                entry = Dir(found.children if isinstance(found, Dir) else {}, info.mode)
            elif info.kind == "symlink":
                entry = Link(info.target)
            elif info.kind == "file":
                data = self._blob(digest)
                if len(data) != info.size_bytes:
                    raise Refused(f"{info.path!r}: {info.size_bytes} bytes, blob has {len(data)}")
                entry = File(data, info.mode)
            else:
                raise Refused(f"{info.path!r}: kind {info.kind!r}; want file, dir or symlink")
            fresh.put(info.path, entry)
        self._replace(path, fresh)

    def _scan(self, path: str) -> Sequence[tuple[FileInfo, bytes]]:
        self._disk.check_read(path)
        if not isinstance(self._disk.tree.find(path), Dir):
            raise Unavailable(f"{self._disk.name}: no tree {path!r}")
        found: list[tuple[FileInfo, bytes]] = []
        for name, entry in self._disk.tree.walk(path):
            if isinstance(entry, File):
                digest = hashlib.sha256(entry.data).digest()
                if digest not in self._disk.blobs:
                    self._disk.need(len(entry.data), name)
                    self._disk.blobs[digest] = entry.data
                    self._disk.blob_bytes += len(entry.data)
                size = len(entry.data)
                info = FileInfo(path=name, kind="file", mode=entry.mode, size_bytes=size)
            elif isinstance(entry, Link):
                digest = b""
                info = FileInfo(
                    path=name, kind="symlink", mode=entry.mode, size_bytes=0, target=entry.target
                )
            else:
                digest = b""
                info = FileInfo(path=name, kind="dir", mode=entry.mode, size_bytes=0)
            found.append((info, digest))
        return found

    def _blob(self, digest: bytes) -> bytes:
        self._disk.check_read("blob")
        data = self._disk.blobs.get(digest)
        if data is None:
            raise Unavailable(f"{self._disk.name}: no blob {digest.hex()}")
        return data

    def _replace(self, path: str, fresh: MemoryTree) -> None:
        if not split(path):
            raise Refused(f"path {path!r} names the disk itself")
        self._disk.need(fresh.used_bytes, path)
        self._disk.tree.remove(path)
        self._disk.tree.put(path, fresh.root)
