"""Pid files whose number can be believed: the lock lives exactly as long as its owner.

Ref: flock(2): the lock belongs to the open file description, so a child that inherits the
descriptor holds it until the last of both is gone. The file is never unlinked: two owners might
then lock two files of one name.
"""

import fcntl
import os
from pathlib import Path

from hal.errors import Refused
from hal.linux.oserror import hal_error


class LockedPidFile:
    """A pid file that names a live process for as long as its lock is held."""

    def __init__(self, path: str | Path) -> None:
        """Raises Refused, with the holder's pid, when somebody else has the lock."""
        self._path = str(path)
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as exc:
            raise hal_error(exc, f"pid file {path}") from exc
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            holder = os.pread(self._fd, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._fd)
            raise Refused(f"{path} is held by process {holder}; stop it first") from exc
        os.ftruncate(self._fd, 0)

    @property
    def fd(self) -> int:
        """For a child that is to hold the lock."""
        return self._fd

    def write(self, pid: int) -> None:
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{pid}\n".encode(), 0)

    def release_to_child(self) -> None:
        """Close our copy; the child that inherited `fd` keeps the lock."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def close(self) -> None:
        """Empty the file and let the lock go."""
        if self._fd >= 0:
            os.ftruncate(self._fd, 0)
            self.release_to_child()


def locked_pid(path: str | Path) -> int | None:
    """The pid in a file that a live process holds locked, or None."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise hal_error(exc, f"pid file {path}") from exc
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        text = os.pread(fd, 32, 0).split()
        return int(text[0]) if text and text[0].isdigit() else None
    finally:
        os.close(fd)
    return None
