"""Names that a power cut does not take back. Ref: fsync(2): "Calling fsync() does not necessarily
ensure that the entry in the directory containing the file has also reached disk."
"""

import errno
import os
from typing import Final

from hal.linux.beneath import DIR_FLAGS

# What a directory that is not ours may answer: unreadable, or on a file system without fsync.
_NOT_OURS: Final = frozenset({errno.EACCES, errno.EPERM, errno.EINVAL, errno.EROFS})


def sync_dir(path: str) -> None:
    """The entries of a directory are durable. Raises OSError."""
    fd = os.open(path, DIR_FLAGS)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_names(path: str) -> None:
    """The name of a directory and those of all directories above it are durable, whoever made
    them, as far as we may sync them. Raises OSError."""
    path = os.path.realpath(path)
    while path != os.path.dirname(path):
        path = os.path.dirname(path)
        try:
            sync_dir(path)
        except OSError as exc:
            if exc.errno not in _NOT_OURS:
                raise


def make_dirs(path: str, mode: int) -> None:
    """Make a directory and what is missing above it, each with its name synced; that of `path`
    also when it is there already, as far as we may: whoever made it may have been killed before
    that. Raises OSError."""
    path = os.path.realpath(path)
    above = os.path.dirname(path)
    if os.path.isdir(path):
        try:
            sync_dir(above)
        except OSError as exc:
            if exc.errno not in _NOT_OURS:
                raise
        return
    if not os.path.isdir(above):
        make_dirs(above, mode)
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        if not os.path.isdir(path):
            raise
    sync_dir(above)
