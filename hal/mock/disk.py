"""A disk: what is on it outlives every node. Its faults are its attributes.

Files, whole blobs and trees count as synced once written, as their real backends sync before they
answer. What a power cut takes back is drawn for the journal's unsynced sectors (`JournalFile`)
and, with `loses_partials`, for partial blobs.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from hal.errors import StoreFailed, StoreFull
from hal.mock.log_file import SECTOR_BYTES, Batch, after_cut, read_log, write_log
from hal.mock.tree import MemoryTree
from hal.ports import JournalRecord

if TYPE_CHECKING:
    from hal.mock.kernel import VirtualKernel

CAPACITY_BYTES: Final = 1 << 30
SYNC_NS: Final = 160_000  # one SQLite FULL commit on a fast disk, local_board.md section 7
BYTE_PER_NS: Final = 1  # 1 GB/s, for whatever moves bulk
PAGE_BYTES: Final = 4096


@dataclass(slots=True)
class Partial:
    """A blob that is still coming in."""

    size_bytes: int
    data: bytearray


class JournalFile:
    """The journal on this disk: what a power cut leaves, and what only the system's cache holds.

    `unsynced` batches were written and are read again for as long as the power is on, whoever was
    killed; none of them is promised.
    """

    def __init__(self, rng: random.Random) -> None:
        self.durable: dict[tuple[str, str], bytes] = {}
        self.unsynced: deque[Batch] = deque()
        self.batches = 0  # ever made durable
        self.rotten: dict[tuple[str, str], bytes] = {}  # what stood there before a bit turned over
        self.on_commit: Callable[[Batch], None] = lambda _batch: None  # one became durable
        self._rng = rng

    def commit(self, batch: Batch) -> None:
        """Make it durable."""
        self.batches += 1
        apply(self.durable, batch)
        for record in batch:
            self.rotten.pop((record.kind, record.key), None)  # written anew
        self.on_commit(batch)

    def sync(self) -> int:
        """Make durable what was written; how many batches that were."""
        count = len(self.unsynced)
        while self.unsynced:
            self.commit(self.unsynced.popleft())
        return count

    def readable(self) -> dict[tuple[str, str], bytes]:
        """What a reader finds now."""
        found = dict(self.durable)
        for batch in self.unsynced:
            apply(found, batch)
        return found

    def cut(self) -> int:
        """Power is gone: the unsynced sectors are there or not. How many batches are left of it."""
        batches = list(self.unsynced)
        self.unsynced.clear()
        if not batches:
            return 0
        salt = self._rng.getrandbits(32)
        data = after_cut(write_log(batches, salt), self._rng.randrange(SECTOR_BYTES), self._rng)
        found = read_log(data, salt)
        assert found == batches[: len(found)], "the log gave what nobody wrote"
        for batch in found:
            self.commit(batch)
        return len(found)


def apply(image: dict[tuple[str, str], bytes], batch: Sequence[JournalRecord]) -> None:
    """What a batch does to the records by (kind, key)."""
    for record in batch:
        if record.value is None:
            image.pop((record.kind, record.key), None)
        else:
            image[record.kind, record.key] = record.value


class Disk:
    """One disk of the world; shared by the journal, files, blobs and trees that are on it."""

    def __init__(
        self, kernel: VirtualKernel, name: str, *, capacity_bytes: int = CAPACITY_BYTES
    ) -> None:
        self.kernel = kernel
        self.name = name
        self.capacity_bytes = capacity_bytes
        self.tree = MemoryTree()
        self.blobs: dict[bytes, bytes] = {}
        self.partials: dict[bytes, Partial] = {}
        self.blob_bytes = 0  # whole ones, and the room of partial ones
        self.sync_ns = SYNC_NS  # fault: a slow disk
        self.full = False  # fault S5
        self.fail_sync = False  # fault S7: the next sync fails; cleared by it
        self.fail_writes = False  # I/O errors on write, as long as it is set
        self.fail_reads = False  # fault S6
        self.read_only = False  # fault S8
        self.loses_partials = False  # fault S3: a cut leaves zero pages in partial blobs
        self._rng = kernel.rng(f"{name} cut")
        self.journal = JournalFile(self._rng)

    def free_bytes(self) -> int:
        """Room for more."""
        if self.full:
            return 0
        return max(0, self.capacity_bytes - self.tree.used_bytes - self.blob_bytes)

    def need(self, length: int, what: str) -> None:
        """Room to write `length` bytes. Raises StoreFull, or StoreFailed on a read-only disk."""
        if self.read_only:
            raise StoreFailed(f"{self.name}: {what}: read-only file system")
        if self.fail_writes:
            raise StoreFailed(f"{self.name}: {what}: I/O error on write")
        if length > self.free_bytes():
            raise StoreFull(
                f"{self.name}: {what} needs {length} bytes, {self.free_bytes()} are free"
            )

    def check_read(self, what: str) -> None:
        """Raises StoreFailed while reads fail."""
        if self.fail_reads:
            raise StoreFailed(f"{self.name}: {what}: I/O error on read")

    def work_ns(self, length: int) -> int:
        """How long it takes to move so many bytes and sync them."""
        return self.sync_ns + length // BYTE_PER_NS

    def rot(self, digest: bytes, at: int = 0) -> None:
        """Fault S4: one bit of a stored blob turns over, silently."""
        data = bytearray(self.blobs[digest])
        data[at] ^= 0x01
        self.blobs[digest] = bytes(data)
        self.kernel.note(self.name, "rot", digest.hex()[:12])

    def rot_record(self, kind: str, key: str, at: int = 0) -> Callable[[], None]:
        """Fault S4: one bit of a stored record turns over, silently. Calling the result turns it
        back (a saved copy is restored), unless the record was written anew meanwhile."""
        journal, name = self.journal, (kind, key)
        was = journal.rotten.setdefault(name, journal.durable[name])
        data = bytearray(journal.durable[name])
        data[at] ^= 0x01
        journal.durable[name] = bytes(data)
        self.kernel.note(self.name, "rot", f"{kind}/{key}")

        def restore() -> None:
            if journal.rotten.pop(name, None) is not None:
                journal.durable[name] = was

        return restore

    def power_cut(self) -> None:
        """Power is gone at once (faults S1 to S3)."""
        waiting = len(self.journal.unsynced)
        if waiting:
            kept = self.journal.cut()
            self.kernel.note(self.name, "cut", f"{kept} of {waiting} unsynced")
        if not self.loses_partials:
            return
        for partial in self.partials.values():
            for page in range(0, len(partial.data), PAGE_BYTES):
                if self._rng.random() < 0.5:
                    end = min(page + PAGE_BYTES, len(partial.data))
                    partial.data[page:end] = bytes(end - page)
