"""Opening paths below a directory without ever leaving it.

Every component is opened by itself with O_NOFOLLOW, so that neither "..", nor a symlink, nor a
rename in between can lead out. (openat2(2) with RESOLVE_BENEATH would do the same in one call;
it is absent before Linux 5.6 and blocked by common seccomp profiles.)
"""

import errno
import itertools
import os
from collections.abc import Callable
from typing import Final

from hal.errors import Refused

DIR_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
DEPTH_LIMIT: Final = 255  # directories below each other; deeper paths are refused
NAME_LIMIT_BYTES: Final = 255  # NAME_MAX of every Linux file system
SYMLINK_LIMIT: Final = 40  # of one path, as the kernel's own limit
RECURSION_LIMIT: Final = 64  # directories open at a time while a tree is removed

_serial: Final = itertools.count()


def split_path(path: str) -> list[str]:
    """The parts of a relative path; [] for "". Raises Refused for anything that is not plain."""
    if path.startswith("/"):
        raise Refused(f"path {path[:200]!r} is absolute; it must be relative to the root")
    if "\0" in path:
        raise Refused(f"path {path[:200]!r} holds a NUL")
    parts = path.split("/") if path else []
    if len(parts) > DEPTH_LIMIT:
        raise Refused(f"path {path[:200]!r}... has {len(parts)} parts, at most {DEPTH_LIMIT}")
    for part in parts:
        if part in ("", ".", ".."):
            raise Refused(f"path {path[:200]!r} holds the part {part!r}")
        if len(os.fsencode(part)) > NAME_LIMIT_BYTES:
            raise Refused(f"path {path[:200]!r}: a name is longer than {NAME_LIMIT_BYTES} bytes")
    return parts


def open_dir(root_fd: int, parts: list[str], *, make: bool = False, durable: bool = False) -> int:
    """A descriptor of the directory; symlinks on the way are Refused. With `make`, missing
    directories are made, with `durable` each with its name synced: else a power cut may take the
    directory with all that was synced in it. Raises OSError (ENOENT, ENOTDIR, ...) otherwise."""
    fd = os.open(".", DIR_FLAGS, dir_fd=root_fd)
    try:
        for part in parts:
            try:
                below = os.open(part, DIR_FLAGS, dir_fd=fd)
            except FileNotFoundError:
                if not make:
                    raise
                os.mkdir(part, 0o755, dir_fd=fd)
                if durable:
                    os.fsync(fd)
                below = os.open(part, DIR_FLAGS, dir_fd=fd)
            except NotADirectoryError as exc:
                if is_symlink(part, fd):
                    raise Refused(f"path {'/'.join(parts)!r}: {part!r} is a symlink") from exc
                raise
            os.close(fd)
            fd = below
    except BaseException:
        os.close(fd)
        raise
    return fd


def is_symlink(name: str, dir_fd: int) -> bool:
    try:
        os.readlink(name, dir_fd=dir_fd)
    except OSError:
        return False
    return True


def resolve_dir(
    root_fd: int,
    parts: list[str],
    *,
    make: bool = False,
    on_make: Callable[[int], None] | None = None,
) -> int:
    """Like `open_dir`, but a *relative* symlink that stays below the root is followed.

    One that is absolute or climbs above the root is Refused. `on_make` is called with the
    descriptor of every directory made here.
    """
    stack = [os.open(".", DIR_FLAGS, dir_fd=root_fd)]  # the root, and each level below it
    todo = list(reversed(parts))
    links = 0
    try:
        while todo:
            part = todo.pop()
            if part in ("", "."):
                continue
            if part == "..":  # from a symlink's target only
                if len(stack) == 1:
                    raise Refused(f"path {'/'.join(parts)!r} leaves the tree through a symlink")
                os.close(stack.pop())
                continue
            try:
                below = os.open(part, DIR_FLAGS, dir_fd=stack[-1])
            except FileNotFoundError:
                if not make:
                    raise
                os.mkdir(part, 0o755, dir_fd=stack[-1])
                below = os.open(part, DIR_FLAGS, dir_fd=stack[-1])
                if on_make is not None:
                    on_make(below)
            except OSError as exc:
                if exc.errno not in (errno.ENOTDIR, errno.ELOOP) or not is_symlink(part, stack[-1]):
                    raise
                target = os.readlink(part, dir_fd=stack[-1])
                links += 1
                if target.startswith("/") or links > SYMLINK_LIMIT:
                    raise Refused(
                        f"path {'/'.join(parts)!r} leads through the symlink {part!r} to "
                        f"{target[:200]!r}: outside the tree, or a loop"
                    ) from exc
                todo.extend(reversed(target.split("/")))
                continue
            stack.append(below)
            if len(stack) > DEPTH_LIMIT:
                raise Refused(f"path {'/'.join(parts)[:200]!r} is deeper than {DEPTH_LIMIT}")
        return os.dup(stack[-1])
    finally:
        for fd in stack:
            os.close(fd)


def mount_id(fd: int) -> int:
    """The id of the mount that an open descriptor is on; a bind mount has one of its own even
    where st_dev is the same. Ref: proc(5), /proc/PID/fdinfo, "mnt_id"."""
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as info:
        for line in info:
            if line.startswith("mnt_id:"):
                return int(line.split()[1])
    return -1


def remove_tree(dir_fd: int, name: str, check: Callable[[], None] | None = None) -> None:
    """Remove a file or a whole tree. Symlinks are removed, never followed; a mount point is not
    entered: it stays, and Refused names it. Absent is a success.

    However deep a tenant nested its directories, RECURSION_LIMIT descriptors are open at most:
    what lies deeper is first moved up beside `name`.
    """
    pending = [name]
    while pending:
        _remove_some(dir_fd, pending.pop(), dir_fd, pending, 0, check)


def _remove_some(
    dir_fd: int,
    name: str,
    top_fd: int,
    pending: list[str],
    depth: int,
    check: Callable[[], None] | None,
) -> None:
    if check is not None:
        check()
    try:
        os.unlink(name, dir_fd=dir_fd)
    except FileNotFoundError:
        return
    except (IsADirectoryError, PermissionError):
        pass
    else:
        return
    if depth == RECURSION_LIMIT:
        moved = f".apf-deep-{os.getpid()}-{next(_serial)}"
        os.rename(name, moved, src_dir_fd=dir_fd, dst_dir_fd=top_fd)
        pending.append(moved)
        return
    fd = os.open(name, DIR_FLAGS, dir_fd=dir_fd)
    try:
        if mount_id(fd) != mount_id(dir_fd):
            raise Refused(f"{name!r} is a mount point; unmount it first")
        if os.geteuid():
            os.fchmod(fd, 0o700)  # ours, but perhaps read-only
        left: Refused | None = None
        for below in os.listdir(fd):
            try:
                _remove_some(fd, below, top_fd, pending, depth + 1, check)
            except Refused as exc:
                left = exc
        if left is not None:
            raise left
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=dir_fd)


def write_all(fd: int, data: bytes | bytearray | memoryview, offset: int | None = None) -> None:
    """All of it, at the file's position or at `offset`. Raises OSError."""
    view = memoryview(data).cast("B")
    while len(view):
        if offset is None:
            done = os.write(fd, view)
        else:
            done = os.pwrite(fd, view, offset)
            offset += done
        view = view[done:]
