"""Small files below one root. Ref: open(2), rename(2), fsync(2)."""

import hashlib
import itertools
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from hal.errors import HalError, Refused, StoreFailed, Unavailable
from hal.linux.beneath import (
    DIR_FLAGS,
    open_dir,
    remove_tree,
    split_path,
    write_all,
)
from hal.linux.durable import make_dirs
from hal.linux.oserror import hal_error
from hal.linux.workers import Check, Workers
from hal.ports import Buffer

OURS: Final = ".apf-"  # names with this prefix are the store's own, and not shown
TRASH: Final = ".apf-trash"
READ_LIMIT_BYTES: Final = 16 << 20  # bulk goes through the blob store
WRITE_LIMIT_BYTES: Final = 16 << 20
_FOREVER_NS: Final = 1 << 62  # emptying the trash has no deadline: nobody waits for it

_O_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_O_APPEND: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_O_FRESH: Final = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC


class LinuxFiles:
    """`hal.ports.Files`. The root belongs to this program alone; symlinks below it are refused.

    With `workers`, a directory tree is removed by one rename into `.apf-trash`, which a worker
    empties; what a crash leaves there is emptied at the next start. Without, `remove` does all
    of it before it returns.
    """

    def __init__(self, root: str | Path, workers: Workers | None = None) -> None:
        """Makes the root (0700) where it is missing; raises Unavailable when that fails."""
        self._root = os.path.realpath(root)
        self._workers = workers
        self._serial = itertools.count()
        self._emptying = False
        self._more_trash = False
        try:
            make_dirs(self._root, 0o700)
            self._fd = os.open(self._root, DIR_FLAGS)
        except OSError as exc:
            raise hal_error(exc, f"root {self._root}") from exc
        if os.path.isdir(f"{self._root}/{TRASH}"):
            self._empty_trash()

    def close(self) -> None:
        """Give the root's descriptor back."""
        os.close(self._fd)

    def read(self, path: str, offset: int = 0, length: int = 1 << 20) -> bytes:
        if offset < 0 or not 0 <= length <= READ_LIMIT_BYTES:
            raise Refused(f"read of {path!r}: {length} B at {offset}, at most {READ_LIMIT_BYTES} B")
        try:
            fd = self._open(path, _O_READ)
            try:
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    raise Unavailable(f"read of {path!r}: not a regular file")
                return os.pread(fd, length, offset)
            finally:
                os.close(fd)
        except OSError as exc:
            raise hal_error(exc, f"read of {path!r} in {self._root}") from exc

    def write(self, path: str, data: Buffer) -> None:
        if len(data) > WRITE_LIMIT_BYTES:
            raise Refused(f"write of {path!r}: {len(data)} B, at most {WRITE_LIMIT_BYTES}")
        try:
            parent, name = self._parent(path, make=True, durable=True)
            try:
                self._replace(parent, name, data)
            finally:
                os.close(parent)
        except OSError as exc:
            raise hal_error(exc, f"write of {path!r} in {self._root}") from exc

    def append(self, path: str, data: Buffer) -> None:
        """All or nothing, but not synced: for logs. Parents are made."""
        try:
            fd = self._open(path, _O_APPEND, make=True)
            try:
                before = os.fstat(fd).st_size
                try:
                    write_all(fd, data)
                except OSError:
                    os.ftruncate(fd, before)
                    raise
            finally:
                os.close(fd)
        except OSError as exc:
            raise hal_error(exc, f"append to {path!r} in {self._root}") from exc

    def remove(self, path: str) -> None:
        try:
            try:
                parent, name = self._parent(path)
            except (FileNotFoundError, NotADirectoryError):
                return
            try:
                if self._workers is None or not self._to_trash(parent, name):
                    remove_tree(parent, name)
            finally:
                os.close(parent)
        except OSError as exc:
            raise hal_error(exc, f"remove of {path!r} in {self._root}") from exc

    def names(self, path: str) -> Sequence[str]:
        try:
            fd = open_dir(self._fd, split_path(path))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as exc:
            raise hal_error(exc, f"names in {path!r} in {self._root}") from exc
        try:
            return sorted(name for name in os.listdir(fd) if not name.startswith(OURS))
        finally:
            os.close(fd)

    def size_bytes(self, path: str) -> int | None:
        """None when there is no such regular file."""
        try:
            parent, name = self._parent(path)
            try:
                info = os.stat(name, dir_fd=parent, follow_symlinks=False)
            finally:
                os.close(parent)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as exc:
            raise hal_error(exc, f"size of {path!r} in {self._root}") from exc
        return info.st_size if stat.S_ISREG(info.st_mode) else None

    def free_bytes(self) -> int:
        try:
            info = os.fstatvfs(self._fd)
        except OSError as exc:
            raise hal_error(exc, f"free space of {self._root}") from exc
        return info.f_bavail * info.f_frsize

    def _parent(self, path: str, *, make: bool = False, durable: bool = False) -> tuple[int, str]:
        parts = split_path(path)
        if not parts:
            raise Refused("an empty path names the root itself")
        if parts[0].startswith(OURS) or parts[-1].startswith(OURS):
            raise Refused(f"path {path!r}: names that begin with {OURS!r} are the store's own")
        return open_dir(self._fd, parts[:-1], make=make, durable=durable), parts[-1]

    def _open(self, path: str, flags: int, *, make: bool = False) -> int:
        parent, name = self._parent(path, make=make)
        try:
            return os.open(name, flags, 0o600, dir_fd=parent)
        finally:
            os.close(parent)

    def _replace(self, parent: int, name: str, data: Buffer) -> None:
        # One temporary name for each target and process: what crashes leave behind is bounded.
        digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
        temporary = f"{OURS}tmp-{os.getpid()}-{digest}"
        fd = os.open(temporary, _O_FRESH, 0o600, dir_fd=parent)
        try:
            try:
                write_all(fd, data)
                os.fsync(fd)
            finally:
                os.close(fd)
            os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
        except OSError:
            os.unlink(temporary, dir_fd=parent)
            raise
        try:
            os.fsync(parent)
        except OSError as exc:
            raise StoreFailed(f"sync of the directory of {name!r}: {exc.strerror}") from exc

    def _to_trash(self, parent: int, name: str) -> bool:
        """False when it is better removed at once: a plain file, or another file system."""
        try:
            if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                return False
        except FileNotFoundError:
            return True
        trash = open_dir(self._fd, [TRASH], make=True)
        try:
            doomed = f"{os.getpid()}-{next(self._serial)}"
            os.rename(name, doomed, src_dir_fd=parent, dst_dir_fd=trash)
        except OSError:
            return False  # a mount point, or across devices: let the plain way say what is wrong
        finally:
            os.close(trash)
        self._empty_trash()
        return True

    def _empty_trash(self) -> None:
        self._more_trash = True
        if self._workers is None or self._emptying:
            return
        self._more_trash, self._emptying = False, True
        self._workers.submit("emptying the trash", self._burn, _FOREVER_NS, self._burnt)

    def _burnt(self, result: object) -> None:
        # What could not go (a mount below it, a stop) is tried again with the next removal.
        self._emptying = False
        if self._more_trash and not isinstance(result, HalError):
            self._empty_trash()

    def _burn(self, check: Check) -> None:
        trash = open_dir(self._fd, [TRASH], make=True)
        try:
            for name in os.listdir(trash):
                remove_tree(trash, name, check)
        finally:
            os.close(trash)
