"""The `JournalStore` port on a simulated disk: what waits, what is written, what is synced.

As `hal.linux.journal` works: what was queued when a commit ended goes into the next one, is
written, then synced, then acknowledged; a batch that waits for its turn is only in the process's
memory, and a kill takes it.

    opening          what the log holds is moved into the main file and synced
    no room          that commit's batches get StoreFull, later ones may go on
    anything else    StoreFailed now and for ever; a failed sync is never tried again
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, TypeAlias

from hal.errors import HalError, StoreFailed, StoreFull
from hal.ports import Done, JournalRecord

if TYPE_CHECKING:
    from hal.mock.disk import Disk
    from hal.mock.node import Node

WAITING_LIMIT: Final = 4096  # batches; more than the daemon can have outstanding
RECORD_BYTES: Final = 64  # what a record takes beside its value

_Waiting: TypeAlias = tuple[tuple[JournalRecord, ...], Done[None]]


class MockJournal:
    """One opening of the disk's journal by one node. Batches that wait share one sync."""

    def __init__(self, node: Node, disk: Disk) -> None:
        self._node, self._disk = node, disk
        self._kernel = node.kernel
        self._post = node.poster()
        self._rng = self._kernel.rng(f"{disk.name} kill")
        self._waiting: deque[_Waiting] = deque()  # with those being written and synced, at most
        self._syncing: list[_Waiting] = []  # WAITING_LIMIT
        self._failed: StoreFailed | None = None
        self._closed = False
        node.on_death.append(self._died)

    def load(self) -> Sequence[JournalRecord]:
        """All live records by (kind, key). Raises StoreFailed while the disk's reads fail, or when
        what a killed holder had written can't be made safe."""
        disk = self._disk
        disk.check_read("journal")
        if disk.journal.unsynced and self._refusal(0) is None:
            if disk.fail_sync:
                disk.fail_sync = False
                raise StoreFailed(f"{disk.name}: journal: I/O error on sync")
            count = disk.journal.sync()
            self._kernel.note(disk.name, "recovered", str(count))
        return [
            JournalRecord(kind=kind, key=key, value=value)
            for (kind, key), value in sorted(disk.journal.readable().items())
        ]

    def submit(self, batch: Sequence[JournalRecord], done: Done[None]) -> None:
        """StoreFull: nothing of it was written. StoreFailed: nor will anything ever be."""
        error = self._refusal(sum(RECORD_BYTES + len(record.value or b"") for record in batch))
        if error is not None:
            if isinstance(error, StoreFailed):
                self._failed = error
            self._post(lambda: done(error))
            return
        self._waiting.append((tuple(batch), done))
        if not self._syncing:
            self._start_sync()

    def close(self) -> None:
        """Make durable what waits, and let go. Twice is fine."""
        if self._closed:
            return
        self._closed = True
        if self._failed is None and self._refusal(0, closing=True) is None:
            left = [*self._syncing, *self._waiting]
            self._disk.journal.unsynced.extend(batch for batch, _ in self._waiting)
            self._commit(left)
        self._syncing = []
        self._waiting.clear()

    def _refusal(self, size: int, *, closing: bool = False) -> HalError | None:
        """Why nothing, or nothing of that size, can be written now."""
        disk = self._disk
        if self._failed is not None:
            return self._failed
        if self._closed and not closing:
            return StoreFailed(f"{disk.name}: journal used after its close")
        if disk.read_only:
            return StoreFailed(f"{disk.name}: journal: read-only file system")
        if disk.fail_writes:
            return StoreFailed(f"{disk.name}: journal: I/O error on write")
        if size and len(self._waiting) + len(self._syncing) >= WAITING_LIMIT:
            return StoreFull(f"{disk.name}: {WAITING_LIMIT} journal batches wait already")
        if size > disk.free_bytes():
            return StoreFull(f"{disk.name}: a batch of {size} bytes, {disk.free_bytes()} are free")
        return None

    def _start_sync(self) -> None:
        """The next group: written now, safe after the sync."""
        self._syncing = list(self._waiting)
        self._waiting.clear()
        self._disk.journal.unsynced.extend(batch for batch, _ in self._syncing)
        incarnation = self._node.incarnation
        self._kernel.after(self._disk.sync_ns, lambda: self._synced(incarnation))

    def _synced(self, incarnation: int) -> None:
        disk = self._disk
        if self._closed or self._node.incarnation != incarnation:
            return
        error = self._refusal(0)
        if disk.fail_sync:
            disk.fail_sync = False
            error = StoreFailed(f"{disk.name}: I/O error on sync")
        if error is not None:
            self._fail(error)
            return
        group, self._syncing = self._syncing, []
        if disk.full:
            self._roll_back(group)
        else:
            self._commit(group)
        if self._waiting:
            self._start_sync()

    def _commit(self, group: Sequence[_Waiting]) -> None:
        journal = self._disk.journal
        journal.sync()
        if group:
            self._kernel.note(self._disk.name, "commit", f"{journal.batches} {len(group)}")
        for _, done in group:
            self._post(lambda done=done: done(None))  # type: ignore[misc]

    def _roll_back(self, group: Sequence[_Waiting]) -> None:
        """The disk filled up while it was written: nothing of it stays."""
        for _ in group:
            self._disk.journal.unsynced.pop()
        error = StoreFull(f"{self._disk.name}: journal: no space left; nothing was written")
        self._kernel.note(self._disk.name, "rolled_back", str(len(group)))
        for _, done in group:
            self._post(lambda done=done: done(error))  # type: ignore[misc]

    def _fail(self, error: HalError) -> None:
        """What was written stays readable until a cut, and nobody knows whether it is safe."""
        assert isinstance(error, StoreFailed)
        self._failed = error
        self._kernel.note(self._disk.name, "sync_failed")
        left = [*self._syncing, *self._waiting]
        self._syncing = []
        self._waiting.clear()
        for _, done in left:
            self._post(lambda done=done: done(error))  # type: ignore[misc]

    def _died(self) -> None:
        """Killed while it wrote: what was written by then stays with the system, whole batches
        first to last; what it had not begun to write is gone with it."""
        if self._closed:
            return
        self._closed = True
        count = len(self._syncing)
        if count:
            written = self._rng.randint(0, count)
            for _ in range(count - written):
                self._disk.journal.unsynced.pop()
            self._kernel.note(self._disk.name, "killed", f"{written} of {count} were written")
        self._syncing = []
        self._waiting.clear()
