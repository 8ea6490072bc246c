"""Trees out of blobs and blobs out of trees, on the disk workers. Ref: rename(2), syncfs(2).

A tree is built beside its place and renamed into it when it is whole and synced, so that a
failure or a crash leaves nothing under its name. Paths are absolute below the root, or relative
to it.
"""

import contextlib
import ctypes
import errno
import hashlib
import itertools
import os
import stat
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from hal.errors import Absent, Refused, Unavailable
from hal.linux.beneath import DIR_FLAGS, mount_id, open_dir, remove_tree, split_path, write_all
from hal.linux.blobs import LinuxBlobStore
from hal.linux.layers import Budget, unpack_layer
from hal.linux.oserror import hal_error
from hal.linux.users import ID_LIMIT
from hal.linux.workers import Check, Workers
from hal.ports import TREE_TOP, Done, FileInfo

ENTRIES_LIMIT: Final = 1_000_000  # of one checkout or scan
LAYERS_LIMIT: Final = 128
_STEP_BYTES: Final = 1 << 20
_COPY_STEP_BYTES: Final = 1 << 26  # copied inside the kernel between two looks at the deadline
_libc: Final = ctypes.CDLL(None, use_errno=True)

Entry = tuple[FileInfo, bytes]


class LinuxTrees:
    """`hal.ports.Trees`. Owners are restored when the effective user is root, for whom a chown(2)
    that fails is an error like any other; nobody else may give files away, so without root all of
    a checkout belongs to this process's user and the owners of its entries are not looked at.
    Extended attributes (ACLs, file capabilities) and times are not kept. Device nodes in layers
    are left out unless `devices` is set."""

    def __init__(
        self,
        root: str | Path,
        blobs: LinuxBlobStore,
        workers: Workers,
        *,
        devices: bool = False,
    ) -> None:
        """Makes the root (0700) where it is missing; raises Unavailable when that fails."""
        self._root = os.path.realpath(root)
        self._given_root = os.path.abspath(root)
        self._blobs = blobs
        self._workers = workers
        self._devices = devices
        self._serial = itertools.count()
        try:
            os.makedirs(self._root, 0o700, exist_ok=True)
            self._fd = os.open(self._root, DIR_FLAGS)
        except OSError as exc:
            raise hal_error(exc, f"root of trees {self._root}") from exc

    def close(self) -> None:
        """Give the root's descriptor back; the workers must have been closed before."""
        os.close(self._fd)

    def submit_unpack(
        self, blobs: Sequence[bytes], path: str, deadline_ns: int, done: Done[None]
    ) -> None:
        layers = list(blobs)
        what = f"unpack of {len(layers)} layers into {path!r}"
        job = partial(self._build, partial(self._unpack, layers), path)
        self._workers.submit(what, job, deadline_ns, done)

    def submit_checkout(
        self,
        files: Sequence[Entry],
        path: str,
        deadline_ns: int,
        done: Done[None],
    ) -> None:
        entries = list(files)
        what = f"checkout of {len(entries)} entries into {path!r}"
        job = partial(self._build, partial(self._checkout, entries), path)
        self._workers.submit(what, job, deadline_ns, done)

    def submit_scan(self, path: str, deadline_ns: int, done: Done[Sequence[Entry]]) -> None:
        """What is mounted below the tree is left out too. Names that are not UTF-8 are Refused:
        no manifest could hold them. Owners are recorded as this process sees them."""
        what = f"scan of {path!r}"
        self._workers.submit(what, partial(self._scan, path), deadline_ns, done)

    def _parts(self, path: str) -> list[str]:
        for root in (self._root, self._given_root):
            if path.startswith(f"{root}/"):
                path = path[len(root) + 1 :]
                break
        parts = split_path(path.rstrip("/"))
        if not parts:
            raise Refused("the root of all trees is no tree itself")
        return parts

    def _build(self, fill: Callable[[int, Check], None], path: str, check: Check) -> None:
        parts = self._parts(path)
        made_from = self._missing_from(parts[:-1])
        parent = open_dir(self._fd, parts[:-1], make=True)
        fresh = f".apf-tree-{os.getpid()}-{next(self._serial)}"
        old = f"{fresh}-old"
        try:
            remove_tree(parent, fresh)
            os.mkdir(fresh, 0o755, dir_fd=parent)
            try:
                fd = open_dir(parent, [fresh])
                try:
                    fill(fd, check)
                    _sync_file_system(fd)
                finally:
                    os.close(fd)
                check()
                self._swap(parent, fresh, parts[-1], old)
            except BaseException:
                remove_tree(parent, fresh)
                raise
            remove_tree(parent, old)
        except BaseException:
            self._remove_empty(parts[:-1], made_from)
            raise
        finally:
            os.close(parent)

    def _swap(self, parent: int, fresh: str, name: str, old: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.rename(name, old, src_dir_fd=parent, dst_dir_fd=parent)
        os.rename(fresh, name, src_dir_fd=parent, dst_dir_fd=parent)
        os.fsync(parent)

    def _missing_from(self, parts: list[str]) -> int:
        """How many of the leading directories are there already."""
        for count in range(len(parts) + 1):
            if not os.path.isdir("/".join([self._root, *parts[:count]])):
                return count - 1
        return len(parts)

    def _remove_empty(self, parts: list[str], keep: int) -> None:
        """Take back the parents that a failed build made."""
        for count in range(len(parts), keep, -1):
            try:
                os.rmdir("/".join([self._root, *parts[:count]]))
            except OSError:
                return  # somebody else uses it by now

    def _unpack(self, layers: list[bytes], root_fd: int, check: Check) -> None:
        if len(layers) > LAYERS_LIMIT:
            raise Refused(f"{len(layers)} layers, at most {LAYERS_LIMIT}")
        budget = Budget()
        for digest in layers:
            with open(self._whole(digest), "rb") as blob:
                unpack_layer(
                    blob, root_fd, f"layer {digest.hex()}", budget, check, devices=self._devices
                )

    def _whole(self, digest: bytes) -> str:
        if self._blobs.has(digest) is None:
            raise Unavailable(f"blob {digest.hex()} is not in the store")
        return self._blobs.path_of(digest)

    def _checkout(self, entries: list[Entry], root_fd: int, check: Check) -> None:
        if len(entries) > ENTRIES_LIMIT:
            raise Refused(f"{len(entries)} entries, at most {ENTRIES_LIMIT}")
        directories: list[FileInfo] = []
        seen_top = False
        for info, digest in sorted(entries, key=_outer_first):
            check()
            _check_owner(info)
            if info.path != TREE_TOP:
                self._make(info, digest, root_fd, check)
            elif info.kind != "dir" or seen_top:
                raise Refused(f"entry {TREE_TOP!r} is no directory, or comes twice")
            else:
                seen_top = True
            if info.kind == "dir":
                directories.append(info)
        # At last, the inner ones first: a closed directory can't be filled, nor entered.
        for info in reversed(directories):
            fd = open_dir(root_fd, [] if info.path == TREE_TOP else split_path(info.path))
            try:
                _attributes(fd, info)
            finally:
                os.close(fd)

    def _make(self, info: FileInfo, digest: bytes, root_fd: int, check: Check) -> None:
        *above, name = split_path(info.path) or [""]
        if not name:
            raise Refused("an entry with an empty path")
        try:
            parent = open_dir(root_fd, above, make=True)
        except NotADirectoryError as exc:
            raise Refused(f"entry {info.path!r} lies below a file") from exc
        try:
            if info.kind == "dir":
                os.mkdir(name, 0o700, dir_fd=parent)
            elif info.kind == "symlink":
                os.symlink(info.target, name, dir_fd=parent)
                if os.geteuid() == 0:
                    os.chown(name, info.uid, info.gid, dir_fd=parent, follow_symlinks=False)
            elif info.kind == "file":
                self._copy_out(digest, parent, name, info, check)
            else:
                raise Refused(f"entry {info.path!r} is of the unknown kind {info.kind!r}")
        except FileExistsError as exc:
            raise Refused(f"entry {info.path!r} comes twice") from exc
        finally:
            os.close(parent)

    def _copy_out(
        self, digest: bytes, parent: int, name: str, info: FileInfo, check: Check
    ) -> None:
        source = os.open(self._whole(digest), os.O_RDONLY | os.O_CLOEXEC)
        try:
            if os.fstat(source).st_size != info.size_bytes:
                raise Refused(
                    f"entry {info.path!r}: {info.size_bytes} B, but its content "
                    f"{digest.hex()} has {os.fstat(source).st_size} B"
                )
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(name, flags, 0o600, dir_fd=parent)
            try:
                _copy(source, fd, check)
                _attributes(fd, info)
            finally:
                os.close(fd)
        finally:
            os.close(source)

    def _scan(self, path: str, check: Check) -> Sequence[Entry]:
        found: list[Entry] = []
        parts = self._parts(path)
        try:
            top = open_dir(self._fd, parts)
        except (FileNotFoundError, NotADirectoryError) as exc:
            raise Absent(f"tree {path!r}: {exc.strerror}") from exc
        except Refused as exc:  # the path itself is plain: a symlink is on the way
            raise Absent(f"tree {path!r}: {exc}") from exc
        try:
            found.append((_info(TREE_TOP, "dir", os.fstat(top), 0), b""))
            self._scan_dir(top, "", mount_id(top), found, check)
        finally:
            os.close(top)
        return sorted(found, key=lambda entry: entry[0].path)

    def _scan_dir(self, fd: int, above: str, mount: int, found: list[Entry], check: Check) -> None:
        for name in os.listdir(fd):
            check()
            path = f"{above}{name}"
            if len(found) >= ENTRIES_LIMIT:
                raise Refused(f"a tree of more than {ENTRIES_LIMIT} entries")
            _check_text(path)
            split_path(path)  # how deep one may nest
            try:
                info = os.stat(name, dir_fd=fd, follow_symlinks=False)
                if stat.S_ISDIR(info.st_mode):
                    below = os.open(name, DIR_FLAGS, dir_fd=fd)
                    try:
                        if mount_id(below) != mount:
                            continue
                        found.append((_info(path, "dir", info, 0), b""))
                        self._scan_dir(below, f"{path}/", mount, found, check)
                    finally:
                        os.close(below)
                elif stat.S_ISLNK(info.st_mode):
                    target = os.readlink(name, dir_fd=fd)
                    _check_text(target)
                    found.append((_info(path, "symlink", info, 0, target), b""))
                elif stat.S_ISREG(info.st_mode):
                    digest, size_bytes = self._take_in(fd, name, check)
                    found.append((_info(path, "file", info, size_bytes), digest))
            except FileNotFoundError:
                continue  # the program that uses the tree removed it meanwhile

    def _take_in(self, parent: int, name: str, check: Check) -> tuple[bytes, int]:
        """Its digest and size as they are in the store, whatever is written to it meanwhile."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        fd = os.open(name, flags, dir_fd=parent)
        try:
            hasher, size_bytes = hashlib.sha256(), 0
            while data := os.read(fd, _STEP_BYTES):
                check()
                hasher.update(data)
                size_bytes += len(data)
            digest = hasher.digest()
            if self._blobs.has(digest) is None:
                os.lseek(fd, 0, os.SEEK_SET)
                digest = self._blobs.admit(fd, os.fstat(fd).st_size, None, check)
                size_bytes = self._blobs.has(digest) or 0
            return digest, size_bytes
        finally:
            os.close(fd)


def _info(
    path: str, kind: str, info: os.stat_result, size_bytes: int, target: str = ""
) -> FileInfo:
    return FileInfo(
        path=path,
        kind=kind,
        mode=stat.S_IMODE(info.st_mode),
        size_bytes=size_bytes,
        target=target,
        uid=info.st_uid,
        gid=info.st_gid,
    )


def _outer_first(entry: Entry) -> list[str]:
    path = entry[0].path
    return [] if path == TREE_TOP else path.split("/")


def _check_owner(info: FileInfo) -> None:
    for number in (info.uid, info.gid):
        if not 0 <= number <= ID_LIMIT:
            raise Refused(
                f"entry {info.path!r} has the owner {info.uid}:{info.gid}; ids are 0..{ID_LIMIT}"
            )


def _attributes(fd: int, info: FileInfo) -> None:
    """Owner, for root alone, and mode."""
    if os.geteuid() == 0:
        os.fchown(fd, info.uid, info.gid)
    os.fchmod(fd, info.mode & 0o7777)  # after the owner: a chown clears setuid


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise Refused(f"{text[:200]!r} is not UTF-8; no manifest can hold it: rename it") from exc


def _copy(source: int, target: int, check: Check) -> None:
    """Inside the kernel (a reflink where the file system can), else through our memory."""
    try:
        while os.copy_file_range(source, target, _COPY_STEP_BYTES):
            check()
    except OSError as exc:
        if exc.errno not in (errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            raise
        while data := os.read(source, _STEP_BYTES):
            check()
            write_all(target, data)


def _sync_file_system(fd: int) -> None:
    """One syncfs(2) instead of an fsync for each of thousands of files."""
    if _libc.syncfs(fd):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), "syncfs")
