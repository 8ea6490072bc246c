"""The `TraceMemory` port: a shared file mapping, and the stack of a process that is aborted.

What is stored into the mapping is the kernel's from that moment (mmap(2), MAP_SHARED): a SIGKILL
at any instruction loses nothing of it. A power cut may, unless the file is on a disk and the kernel
has written it back; it is meant for /run.
"""

import faulthandler
import mmap
import os
from pathlib import Path
from typing import Final

from hal.errors import Refused
from hal.linux.oserror import hal_error
from hal.ports import Buffer

STACK_LIMIT_BYTES: Final = 16_384


class MappedTraceMemory:
    """A file of exactly this size; one of another size is begun anew. Raises HalError."""

    def __init__(self, path: str | Path, size_bytes: int) -> None:
        self._path = str(path)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise hal_error(exc, f"trace memory {path}") from exc
        try:
            if os.fstat(fd).st_size != size_bytes:
                os.ftruncate(fd, 0)
                # allocated now: a full file system shows here, and not as SIGBUS at a store
                os.posix_fallocate(fd, 0, size_bytes)
            self._map = mmap.mmap(fd, size_bytes)
        except OSError as exc:
            raise hal_error(exc, f"trace memory {path}") from exc
        finally:
            os.close(fd)

    @property
    def size_bytes(self) -> int:
        return len(self._map)

    def write(self, offset: int, data: Buffer) -> None:
        end = offset + len(data)
        if not 0 <= offset <= end <= len(self._map):
            raise Refused(f"trace memory {self._path}: {offset} to {end} of {len(self._map)} bytes")
        self._map[offset:end] = bytes(data) if isinstance(data, memoryview) else data

    def read(self) -> bytes:
        return self._map[:]

    def close(self) -> None:
        self._map.close()


def stack_of_the_last(path: str | Path) -> str:
    """What the process before wrote into `path` when it was aborted (signal 6, 7, 8 or 11), "" if
    it was not; from now on this process would write there. The watchdog aborts one that hangs, so
    this names the handler that hung. Raises HalError."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise hal_error(exc, f"stack file {path}") from exc
    try:
        text = os.read(fd, STACK_LIMIT_BYTES).decode(errors="replace")
        os.ftruncate(fd, 0)
        os.lseek(fd, 0, os.SEEK_SET)
        faulthandler.enable(fd, all_threads=True)  # it needs the descriptor for as long as it lives
    except OSError as exc:
        os.close(fd)
        raise hal_error(exc, f"stack file {path}") from exc
    return text
