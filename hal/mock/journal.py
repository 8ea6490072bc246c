"""The `JournalStore` port on a simulated disk: durable, unsynced, and what a cut leaves."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from hal.errors import HalError, StoreFailed, StoreFull
from hal.ports import Done, JournalRecord

if TYPE_CHECKING:
    from hal.mock.disk import Disk
    from hal.mock.node import Node

WAITING_LIMIT: Final = 4096  # batches; more than the daemon can have outstanding
RECORD_BYTES: Final = 64  # what a record takes beside its value


class MockJournal:
    """One opening of the disk's journal by one node. Batches that wait share one sync."""

    def __init__(self, node: Node, disk: Disk) -> None:
        self._node, self._disk = node, disk
        self._kernel = node.kernel
        self._post = node.poster()
        self._waiting: deque[tuple[tuple[JournalRecord, ...], Done[None]]] = deque()
        self._syncing = 0  # how many of them the present sync covers; 0 is no sync under way
        self._failed: StoreFailed | None = None
        self._closed = False
        node.on_death.append(self._died)

    def load(self) -> Sequence[JournalRecord]:
        """All live records by (kind, key). Raises StoreFailed while the disk's reads fail."""
        self._disk.check_read("journal")
        return [
            JournalRecord(kind=kind, key=key, value=value)
            for (kind, key), value in sorted(self._disk.journal.durable.items())
        ]

    def submit(self, batch: Sequence[JournalRecord], done: Done[None]) -> None:
        """StoreFull: nothing of it was written. StoreFailed: nor will anything ever be."""
        error = self._refusal(batch)
        if error is not None:
            self._post(lambda: done(error))
            return
        records = tuple(batch)
        self._waiting.append((records, done))
        self._disk.journal.unsynced.append(records)
        if not self._syncing:
            self._start_sync()

    def close(self) -> None:
        """Make durable what waits, and let go. Twice is fine."""
        if self._closed:
            return
        self._closed = True
        self._syncing = 0
        while self._waiting and self._failed is None:
            self._commit_one()

    def _refusal(self, batch: Sequence[JournalRecord]) -> HalError | None:
        name = self._disk.name
        if self._failed is not None:
            return self._failed
        if self._closed:
            return StoreFailed(f"{name}: journal used after its close")
        if self._disk.read_only:
            return StoreFailed(f"{name}: journal: read-only file system")
        if len(self._waiting) >= WAITING_LIMIT:
            return StoreFull(f"{name}: {WAITING_LIMIT} journal batches wait already")
        size = sum(RECORD_BYTES + len(record.value or b"") for record in batch)
        if size > self._disk.free_bytes():
            return StoreFull(f"{name}: a batch of {size} bytes, {self._disk.free_bytes()} are free")
        return None

    def _start_sync(self) -> None:
        self._syncing = len(self._waiting)
        incarnation = self._node.incarnation
        self._kernel.after(self._disk.sync_ns, lambda: self._synced(incarnation))

    def _synced(self, incarnation: int) -> None:
        if self._closed or self._node.incarnation != incarnation:
            return
        if self._disk.fail_sync:
            self._disk.fail_sync = False
            self._fail()
            return
        count, self._syncing = self._syncing, 0
        for _ in range(count):
            self._commit_one()
        if self._waiting:
            self._start_sync()

    def _commit_one(self) -> None:
        _, done = self._waiting.popleft()
        batch = self._disk.journal.unsynced.popleft()
        self._disk.journal.commit(batch)
        self._kernel.note(self._disk.name, "commit", f"{self._disk.journal.batches} {len(batch)}")
        self._post(lambda: done(None))

    def _fail(self) -> None:
        self._failed = error = StoreFailed(f"{self._disk.name}: I/O error on sync")
        self._kernel.note(self._disk.name, "sync_failed")
        self._disk.holder_died()  # what the failed sync had put there by then is a matter of luck
        self._syncing = 0
        waiting, self._waiting = self._waiting, deque()
        for _, done in waiting:
            self._post(lambda done=done: done(error))  # type: ignore[misc]

    def _died(self) -> None:
        if not self._closed:
            self._closed = True
            self._disk.holder_died()
