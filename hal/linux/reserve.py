"""Room on a disk that is kept for what must be written even when the disk is full.

A file of allocated blocks beside what it is for. It is given up piece by piece, because whatever
else fills the disk takes what a bigger piece would leave over, and laid in again when there is
room. Ref: posix_fallocate(3), ftruncate(2); ext4 gives freed blocks away once their transaction
is committed, hence the fsync.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Final

PIECE_BYTES: Final = 64 << 10
PIECES: Final = 8


class Reserve:
    """Best effort: without room or rights for it there is none, and nothing else is different."""

    def __init__(self, path: str) -> None:
        self._path = path

    @property
    def pieces(self) -> int:
        """How many may still be given up."""
        try:
            return os.stat(self._path).st_size // PIECE_BYTES
        except OSError:
            return 0

    def lay_in(self) -> None:
        """As many pieces as there are to be, as far as there is room; none is half there."""
        with contextlib.suppress(OSError), self._opened() as fd:
            size_bytes = os.fstat(fd).st_size
            while size_bytes < PIECES * PIECE_BYTES:
                try:
                    os.posix_fallocate(fd, size_bytes, PIECE_BYTES)
                except OSError:
                    os.ftruncate(fd, size_bytes)
                    return
                size_bytes += PIECE_BYTES

    def give_up(self) -> bool:
        """One piece; False when there is none left."""
        left = self.pieces - 1
        if left < 0:
            return False
        try:
            with self._opened() as fd:
                os.ftruncate(fd, left * PIECE_BYTES)
                os.fsync(fd)
        except OSError:
            return False
        return True

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            yield fd
        finally:
            os.close(fd)
