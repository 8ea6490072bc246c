"""Tar layers onto a tree in memory, with OCI whiteouts (image-spec, layer.md "Whiteouts").

Directory symlinks on the way to a member are resolved inside the tree, so that "bin/sh" lands in
"usr/bin/sh" where "bin" points there; a link that points out of the tree refuses the layer.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from typing import Final

from hal.errors import Refused, Unavailable
from hal.mock.tree import Dir, Entry, File, Link, MemoryTree, split

WHITEOUT: Final = ".wh."
OPAQUE: Final = ".wh..wh..opq"
MEMBER_LIMIT: Final = 200_000
CONTENT_LIMIT_BYTES: Final = 1 << 30  # unpacked: a small blob may not claim the whole disk
LINK_LIMIT: Final = 40  # symlinks on one path, as in Linux
_GZIP: Final = b"\x1f\x8b"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"


def apply_layer(tree: MemoryTree, blob: bytes) -> None:
    """Unpack one layer onto the tree. Raises Refused for what is no sound layer, Unavailable for
    zstd, which the standard library can't read."""
    try:
        with tarfile.open(fileobj=io.BytesIO(_plain(blob)), mode="r:") as archive:
            _apply(tree, archive)
    except (tarfile.TarError, EOFError, ValueError) as exc:
        raise Refused(f"layer of {len(blob)} bytes: {exc}") from exc


def _plain(blob: bytes) -> bytes:
    if blob.startswith(_ZSTD):
        raise Unavailable("layer: zstd can't be read here; use gzip or plain tar")
    if not blob.startswith(_GZIP):
        return blob
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(blob)) as packed:
            data = packed.read(CONTENT_LIMIT_BYTES + 1)
    except (OSError, EOFError, zlib.error) as exc:
        raise Refused(f"layer of {len(blob)} bytes: {exc}") from exc
    if len(data) > CONTENT_LIMIT_BYTES:
        raise Refused(f"layer of {len(blob)} bytes unpacks to over {CONTENT_LIMIT_BYTES}")
    return data


def _apply(tree: MemoryTree, archive: tarfile.TarFile) -> None:
    made: set[str] = set()  # by this layer: its own whiteouts don't reach these
    for count, member in enumerate(archive):
        if count >= MEMBER_LIMIT:
            raise Refused(f"layer has over {MEMBER_LIMIT} members")
        parts = _parts(member.name)
        if not parts:
            if member.isdir():
                _attributes(tree.root, member)
            continue
        parent = resolve(tree, parts[:-1], member.name)
        path = "/".join([*parent, parts[-1]])
        if parts[-1] == OPAQUE:
            _empty(tree, "/".join(parent), made)
        elif parts[-1].startswith(WHITEOUT):
            tree.remove("/".join([*parent, parts[-1][len(WHITEOUT) :]]))
        else:
            _put(tree, path, member, archive)
            made.add(path)


def _parts(name: str) -> list[str]:
    if name.startswith("/"):
        raise Refused(f"layer member {name!r} is absolute")
    return split(name)


def _put(tree: MemoryTree, path: str, member: tarfile.TarInfo, archive: tarfile.TarFile) -> None:
    entry: Entry
    if member.isdir():
        found = tree.find(path)
        if isinstance(found, Dir):
            _attributes(found, member)
            return
        entry = Dir()
        _attributes(entry, member)
    elif member.issym():
        entry = Link(member.linkname, uid=member.uid, gid=member.gid)
    elif member.islnk():
        *parents, last = _parts(member.linkname) or [""]
        target = tree.find("/".join([*resolve(tree, parents, member.name), last]))
        if not isinstance(target, File):
            raise Refused(f"layer member {member.name!r}: no file {member.linkname!r} to link")
        entry = target
    elif member.isreg():
        source = archive.extractfile(member)
        assert source is not None
        data = source.read()
        if len(data) != member.size:
            raise Refused(f"layer member {member.name!r} ends after {len(data)} bytes")
        entry = File(data)
        _attributes(entry, member)
    else:
        return  # devices, fifos: a container's runtime makes its own
    if isinstance(tree.find(path), Dir):
        tree.remove(path)
    tree.put(path, entry)


def _attributes(entry: File | Dir, member: tarfile.TarInfo) -> None:
    entry.mode, entry.uid, entry.gid = member.mode & 0o7777, member.uid, member.gid


def resolve(tree: MemoryTree, parts: list[str], what: str) -> list[str]:
    """The real directory that `parts` lead to, symlinks followed inside the tree. Raises Refused
    when one leads out of it."""
    todo, links = list(reversed(parts)), 0
    done: list[str] = []
    while todo:
        part = todo.pop()
        if part == "..":
            if not done:
                raise Refused(f"layer member {what!r} leaves its tree through a link")
            done.pop()
            continue
        found = tree.find("/".join([*done, part]))
        if isinstance(found, Link):
            links += 1
            if links > LINK_LIMIT:
                raise Refused(f"layer member {what!r}: over {LINK_LIMIT} links on the way")
            if found.target.startswith("/"):
                done = []
            todo.extend(p for p in reversed(found.target.split("/")) if p not in ("", "."))
        elif isinstance(found, File):
            raise Refused(f"layer member {what!r}: {part!r} is a file, not a directory")
        else:
            done.append(part)
    return done


def _empty(tree: MemoryTree, path: str, made: set[str]) -> None:
    found = tree.find(path)
    if isinstance(found, Dir):
        for name in list(found.children):
            child = f"{path}/{name}" if path else name
            if not any(m == child or m.startswith(f"{child}/") for m in made):
                tree.remove(child)
