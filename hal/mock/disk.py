"""A disk: what is on it outlives every node. Its faults are its attributes.

Files and whole blobs count as synced once written; what a power cut takes back is drawn for the
journal's unacknowledged batches (`JournalFile`) and, with `loses_partials`, for partial blobs.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from hal.errors import StoreFailed, StoreFull
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


@dataclass(slots=True)
class JournalFile:
    """The journal on this disk: what a power cut leaves, and what is on its way there."""

    durable: dict[tuple[str, str], bytes] = field(default_factory=dict)
    unsynced: deque[tuple[JournalRecord, ...]] = field(default_factory=deque)
    batches: int = 0  # ever made durable

    def commit(self, batch: tuple[JournalRecord, ...]) -> None:
        self.batches += 1
        for record in batch:
            if record.value is None:
                self.durable.pop((record.kind, record.key), None)
            else:
                self.durable[record.kind, record.key] = record.value


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
        self.journal = JournalFile()
        self.sync_ns = SYNC_NS  # fault: a slow disk
        self.full = False  # fault S5
        self.fail_sync = False  # fault S7: the next sync fails; cleared by it
        self.fail_reads = False  # fault S6
        self.read_only = False  # fault S8
        self.loses_partials = False  # fault S3: a cut leaves zero pages in partial blobs
        self._rng = kernel.rng(f"{name} cut")

    def free_bytes(self) -> int:
        """Room for more."""
        if self.full:
            return 0
        return max(0, self.capacity_bytes - self.tree.used_bytes - self.blob_bytes)

    def need(self, length: int, what: str) -> None:
        """Room to write `length` bytes. Raises StoreFull, or StoreFailed on a read-only disk."""
        if self.read_only:
            raise StoreFailed(f"{self.name}: {what}: read-only file system")
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

    def holder_died(self) -> None:
        """The journal's writer was killed: a prefix, drawn, of what it had not acknowledged is on
        the disk, in order and batch by batch; never anything else."""
        waiting = self.journal.unsynced
        kept = self._rng.randint(0, len(waiting)) if waiting else 0
        if waiting:
            self.kernel.note(self.name, "cut", f"{kept} of {len(waiting)} unsynced")
        for _ in range(kept):
            self.journal.commit(waiting.popleft())
        waiting.clear()

    def power_cut(self) -> None:
        """Power is gone at once (faults S1, S3)."""
        self.holder_died()
        if not self.loses_partials:
            return
        for partial in self.partials.values():
            for page in range(0, len(partial.data), PAGE_BYTES):
                if self._rng.random() < 0.5:
                    end = min(page + PAGE_BYTES, len(partial.data))
                    partial.data[page:end] = bytes(end - page)
