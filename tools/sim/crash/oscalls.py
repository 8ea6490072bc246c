"""Python's own file calls, recorded: os.open, write, rename, fsync and their like, while watched.

For the parts of a store that are not SQLite's. The calls themselves are made as ever. Descriptors
are named through /proc/self/fd, proc(5).
"""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from tools.sim.crash.events import Log, Resize, Sync, Write

_REAL: Final = {
    name: getattr(os, name)
    for name in (
        "open", "write", "pwrite", "ftruncate", "posix_fallocate", "fsync", "fdatasync",
        "rename", "replace", "unlink", "remove", "mkdir", "rmdir",
    )
}  # fmt: skip
NOT_MODELLED: Final = ("link", "symlink", "truncate", "writev", "pwritev", "sendfile")


class Unmodelled(Exception):
    """A call that changes files, and that the log has no event for."""


class _Watch:
    """The replaced calls."""

    def __init__(self, log: Log) -> None:
        self._log = log

    def calls(self) -> dict[str, Callable[..., Any]]:
        refuse = {name: _refusal(name) for name in NOT_MODELLED}
        return {**{name: getattr(self, f"_{name}") for name in _REAL}, **refuse}

    def _open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        fd: int = _REAL["open"](path, flags, mode, dir_fd=dir_fd)
        if flags & os.O_CREAT:
            self._log.named(_path_of(fd))
        if flags & os.O_TRUNC:
            self._resized(fd, 0)
        return fd

    def _write(self, fd: int, data: Any) -> int:
        done: int = _REAL["write"](fd, data)
        if _regular(fd):
            end = os.lseek(fd, 0, os.SEEK_CUR)  # behind what was written, with O_APPEND too
            self._wrote(fd, end - done, bytes(memoryview(data).cast("B")[:done]))
        return done

    def _pwrite(self, fd: int, data: Any, offset: int) -> int:
        done: int = _REAL["pwrite"](fd, data, offset)
        self._wrote(fd, offset, bytes(memoryview(data).cast("B")[:done]))
        return done

    def _ftruncate(self, fd: int, length: int) -> None:
        _REAL["ftruncate"](fd, length)
        self._resized(fd, length)

    def _posix_fallocate(self, fd: int, offset: int, length: int) -> None:
        before = os.fstat(fd).st_size
        _REAL["posix_fallocate"](fd, offset, length)
        if os.fstat(fd).st_size != before:
            self._resized(fd, os.fstat(fd).st_size)

    def _fsync(self, fd: int) -> None:
        _REAL["fsync"](fd)
        path = _path_of(fd)
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            self._log.synced_dir(path)
        elif (node := self._log.node(path)) is not None:
            self._log.add(Sync(node))

    def _fdatasync(self, fd: int) -> None:
        self._fsync(fd)

    def _rename(
        self, old: Any, new: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None
    ) -> None:
        _REAL["rename"](old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
        self._log.renamed(_absolute(old, src_dir_fd), _absolute(new, dst_dir_fd))

    def _replace(
        self, old: Any, new: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None
    ) -> None:
        self._rename(old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    def _unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        _REAL["unlink"](path, dir_fd=dir_fd)
        self._log.unnamed(_absolute(path, dir_fd))

    def _remove(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._unlink(path, dir_fd=dir_fd)

    def _mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        _REAL["mkdir"](path, mode, dir_fd=dir_fd)
        self._log.named(_absolute(path, dir_fd), directory=True)

    def _rmdir(self, path: Any, *, dir_fd: int | None = None) -> None:
        _REAL["rmdir"](path, dir_fd=dir_fd)
        self._log.unnamed(_absolute(path, dir_fd))

    def _wrote(self, fd: int, offset: int, data: bytes) -> None:
        node = self._log.node(_path_of(fd))
        if node is not None:
            self._log.add(Write(node, offset, data))

    def _resized(self, fd: int, size: int) -> None:
        node = self._log.node(_path_of(fd))
        if node is not None:
            self._log.add(Resize(node, size))


def _refusal(name: str) -> Callable[..., Any]:
    def refuse(*_args: object, **_more: object) -> None:
        raise Unmodelled(f"os.{name} while a store is watched")

    return refuse


def _regular(fd: int) -> bool:
    return stat.S_ISREG(os.fstat(fd).st_mode)


def _path_of(fd: int) -> str:
    return os.readlink(f"/proc/self/fd/{fd}")


def _absolute(path: Any, dir_fd: int | None) -> str:
    name = os.fsdecode(path)
    return os.path.join(_path_of(dir_fd) if dir_fd is not None else os.getcwd(), name)


@contextmanager
def recording_os(log: Log) -> Iterator[None]:
    """Calls of this process below the log's root are watched, from any thread."""
    calls = _Watch(log).calls()
    real = {name: getattr(os, name) for name in calls}
    for name, call in calls.items():
        setattr(os, name, call)
    try:
        yield
    finally:
        for name, call in real.items():
            setattr(os, name, call)
