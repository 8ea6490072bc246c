"""Disks of a size that a test chooses, to be filled and emptied while a card works on them.

A tmpfs of its own: what it refuses is the kernel's own ENOSPC, and nothing else on the machine is
short of room. The card's state and the modules' stores can lie on two of them. Needs root.
"""

import errno
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.process.local_card import LocalCard

_PIECE = bytes(1 << 16)


class SmallDisk:
    """A tmpfs at `place` while it is mounted. `filled` says whether it has no page left."""

    def __init__(self, place: Path, size_bytes: int) -> None:
        place.mkdir(parents=True, exist_ok=True)
        self.place = place
        self._ballast = place / ".ballast"
        size = f"size={size_bytes},nr_inodes=20000,mode=700"
        subprocess.run(["mount", "-t", "tmpfs", "-o", size, "apf-test", place], check=True)

    def fill(self) -> None:
        """Until the kernel refuses one more page."""
        with self._ballast.open("ab", buffering=0) as file:
            for piece in (_PIECE, _PIECE[:4096]):
                while _fits(file.fileno(), piece):
                    pass

    @property
    def filled(self) -> bool:
        """Tried: not one page more."""
        with self._ballast.open("ab", buffering=0) as file:
            return not _fits(file.fileno(), _PIECE[:4096])

    def free(self) -> None:
        self._ballast.unlink(missing_ok=True)

    def close(self) -> None:
        subprocess.run(["umount", "--lazy", self.place], check=True)


def _fits(fd: int, piece: bytes) -> bool:
    try:
        return os.write(fd, piece) > 0
    except OSError as exc:
        if exc.errno != errno.ENOSPC:
            raise
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallDisks:
    """Where the journal and the images lie, and where the modules keep theirs."""

    card: SmallDisk
    modules: SmallDisk


@contextmanager
def small_disks(card: LocalCard, *, card_bytes: int, modules_bytes: int) -> Iterator[SmallDisks]:
    """The state of a card that is not up yet, on two disks."""
    place = Path(tempfile.mkdtemp(prefix="apf-d-"))
    disk = SmallDisk(place / "state", card_bytes)
    modules = SmallDisk(place / "state/cnm", modules_bytes)
    card.state = disk.place
    card.env = {**card.env, "APF_STATE": str(disk.place)}
    try:
        yield SmallDisks(card=disk, modules=modules)
    finally:
        modules.close()
        disk.close()
        (place / "state").rmdir()
        place.rmdir()
