"""The few libc calls that Python 3.11 does not offer. Each raises OSError with its own name."""

import ctypes
import os
from typing import Final

# PyDLL keeps the GIL over the call: after clone3 the child must hold it too.
LIBC: Final = ctypes.PyDLL(None, use_errno=True)
LIBC.syscall.restype = ctypes.c_long

PR_SET_PDEATHSIG: Final = 1  # prctl(2)
PR_SET_CHILD_SUBREAPER: Final = 36
MS_NOSUID: Final = 2  # mount(2)
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_REC: Final = 1 << 14
MS_PRIVATE: Final = 1 << 18
MNT_DETACH: Final = 2  # umount2(2)
FALLOC_FL_KEEP_SIZE: Final = 1  # fallocate(2)
FALLOC_FL_PUNCH_HOLE: Final = 2


def call(name: str, *args: int | bytes | None) -> int:
    """Integers go as unsigned long, None as a null pointer."""
    converted = [ctypes.c_ulong(arg) if isinstance(arg, int) else arg for arg in args]
    result: int = LIBC[name](*converted)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result


def prctl(option: int, value: int) -> None:
    call("prctl", option, value, 0, 0, 0)


def mount(source: str, target: str, kind: str | None, flags: int) -> None:
    fs = kind.encode() if kind is not None else None
    call("mount", os.fsencode(source), os.fsencode(target), fs, flags, None)


def detach_mount(target: str) -> None:
    call("umount2", os.fsencode(target), MNT_DETACH)


def punch_hole(fd: int, offset: int, length: int) -> None:
    """The range reads as zeros afterwards, also in mappings that exist; the size stays."""
    call("fallocate", fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length)
