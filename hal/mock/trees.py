"""The `Trees` port on a simulated disk. Paths start at the disk's root; a leading "/" is fine."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from hal.errors import Absent, Refused, Unavailable
from hal.mock.later import run_later
from hal.mock.layers import apply_layer
from hal.mock.tree import Dir, Entry, File, Link, MemoryTree, split
from hal.ports import TREE_TOP, Done, FileInfo

if TYPE_CHECKING:
    from hal.mock.disk import Disk
    from hal.mock.node import Node

ID_LIMIT: Final = 0xFFFF_FFFE  # chown(2)


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
        """Files below `path` into the blob store. Absent when there is no such tree."""
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
        fresh, topped = MemoryTree(), False
        for info, digest in sorted(files, key=lambda item: item[0].path):
            entry: Entry
            if not all(0 <= number <= ID_LIMIT for number in (info.uid, info.gid)):
                raise Refused(f"{info.path!r}: owner {info.uid}:{info.gid}, ids are 0..{ID_LIMIT}")
            if info.path == TREE_TOP:
                if info.kind != "dir" or topped:
                    raise Refused(f"entry {TREE_TOP!r} is no directory, or comes twice")
                topped = True
                fresh.root.mode, fresh.root.uid, fresh.root.gid = info.mode, info.uid, info.gid
                continue
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
            entry.uid, entry.gid = info.uid, info.gid
            fresh.put(info.path, entry)
        self._replace(path, fresh)

    def _scan(self, path: str) -> Sequence[tuple[FileInfo, bytes]]:
        self._disk.check_read(path)
        top = self._disk.tree.find(path)
        if not isinstance(top, Dir):
            raise Absent(f"{self._disk.name}: no tree {path!r}")
        found: list[tuple[FileInfo, bytes]] = []
        everything = [(TREE_TOP, top), *self._disk.tree.walk(path)]
        for name, entry in sorted(everything, key=lambda item: item[0]):
            kind, digest, size, target = "dir", b"", 0, ""
            if isinstance(entry, File):
                digest = hashlib.sha256(entry.data).digest()
                if digest not in self._disk.blobs:
                    self._disk.need(len(entry.data), name)
                    self._disk.blobs[digest] = entry.data
                    self._disk.blob_bytes += len(entry.data)
                kind, size = "file", len(entry.data)
            elif isinstance(entry, Link):
                kind, target = "symlink", entry.target
            info = FileInfo(
                path=name,
                kind=kind,
                mode=entry.mode,
                size_bytes=size,
                target=target,
                uid=entry.uid,
                gid=entry.gid,
            )
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
