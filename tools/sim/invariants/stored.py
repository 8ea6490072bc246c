"""The journal's promise (I4): whatever is cut or killed, what is read back is what was acknowledged
and, of what was not, the first few batches: a committed prefix.

`WatchedJournal` stands between the daemon and its store and keeps the judge's own image; it asks
the store for nothing that the daemon did not ask for.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from hal.errors import HalError, StoreFull
from hal.mock.disk import JournalFile, apply
from hal.ports import Done, JournalRecord, JournalStore
from tools.sim.invariants.names import Fail, Invariant

Image = dict[tuple[str, str], bytes]
ESTIMATES: Final = frozenset({"profile"})  # a daemon may leave out those that it can't read


class Stored:
    """What was acknowledged, over all openings of one journal; and what still may be there."""

    def __init__(self, file: JournalFile, fail: Fail) -> None:
        self.acknowledged: Image = {}
        self.open: deque[tuple[JournalRecord, ...]] = deque()  # no answer, or no good one
        self.sequence = 0
        self._file = file
        self._fail = fail
        self._damaged: Image = {}  # records that were handed out so

    def watch(self, store: JournalStore) -> "WatchedJournal":
        """The same store, seen by the judge."""
        return WatchedJournal(store, self)

    def loaded(self, records: Sequence[JournalRecord]) -> None:
        """A daemon has read its journal. Raises Violation."""
        found: Image = {}
        for record in records:
            assert record.value is not None
            found[record.kind, record.key] = record.value
        self._damaged = {name: found[name] for name in self._file.rotten if name in found}
        for name, before in self._file.rotten.items():
            if found.get(name) == self._file.durable.get(name):
                found[name] = before  # a batch that is only seen by what has rotted counts as well
        want = dict(self.acknowledged)
        best = _differs(found, want)
        for batch in self.open:
            if not best:
                break
            apply(want, batch)
            best = _differs(found, want)
        if best:
            best = _differs(found, self.acknowledged)
            self._fail(
                Invariant.PREFIX,
                f"read after {len(self.open)} unacknowledged batches: {'; '.join(best[:4])}",
            )
        self.acknowledged = want
        self.open.clear()

    def card_is_up(self, held: Callable[[str, str], bytes | None] | None = None) -> None:
        """The daemon works with what it has read. Raises Violation if that was damaged: a decision
        at all, an estimate where `held(kind, key)` shows that the daemon's image has it still."""
        believed = [
            (kind, key)
            for (kind, key), value in sorted(self._damaged.items())
            if held is None or kind not in ESTIMATES or held(kind, key) == value
        ]
        if believed:
            self._fail(Invariant.ROT_BELIEVED, f"{believed}")

    def answered(self, batch: tuple[JournalRecord, ...], error: HalError | None) -> None:
        """The store has answered one. Raises Violation when it is told to be safe and is not."""
        if error is None:
            self._take(batch)
        elif isinstance(error, StoreFull):  # nothing of it was written
            _drop(self.open, batch)

    def _take(self, batch: tuple[JournalRecord, ...]) -> None:
        _drop(self.open, batch)
        apply(self.acknowledged, batch)
        if self._file.batches < self.sequence:
            self._fail(Invariant.SEQUENCE, f"from {self.sequence} to {self._file.batches}")
        self.sequence = self._file.batches
        for record in batch:
            key = record.kind, record.key
            found = self._file.durable.get(key)
            if found != self.acknowledged.get(key) and found not in self._later(record):
                self._fail(Invariant.ACKNOWLEDGED, f"record {record.kind}/{record.key}")

    def _later(self, record: JournalRecord) -> list[bytes | None]:
        """What a later batch may have made of it already."""
        later = (other for batch in self.open for other in batch)
        return [r.value for r in later if (r.kind, r.key) == (record.kind, record.key)]


class WatchedJournal:
    """A `JournalStore`."""

    def __init__(self, store: JournalStore, book: Stored) -> None:
        self._store = store
        self._book = book

    def load(self) -> Sequence[JournalRecord]:
        """As the store."""
        records = self._store.load()
        self._book.loaded(records)
        return records

    def submit(self, batch: Sequence[JournalRecord], done: Done[None]) -> None:
        """As the store; what is answered is noted first."""
        records = tuple(batch)
        self._book.open.append(records)

        def answered(error: HalError | None) -> None:
            self._book.answered(records, error)
            done(error)

        self._store.submit(records, answered)

    def close(self) -> None:
        """As the store."""
        self._store.close()


def _drop(batches: deque[tuple[JournalRecord, ...]], batch: tuple[JournalRecord, ...]) -> None:
    for index, other in enumerate(batches):
        if other is batch:
            del batches[index]
            return


def _differs(found: Image, want: Mapping[tuple[str, str], bytes]) -> list[str]:
    """Where they differ, in words."""
    if found == want:
        return []
    return [
        f"{kind}/{key} is {_short(found.get((kind, key)))}, wanted {_short(want.get((kind, key)))}"
        for kind, key in sorted(found.keys() | want.keys())
        if found.get((kind, key)) != want.get((kind, key))
    ]


def _short(value: bytes | None) -> str:
    return "absent" if value is None else repr(value[:60])
