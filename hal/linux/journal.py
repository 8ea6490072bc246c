"""The journal of decisions in SQLite. Ref: sqlite.org/wal.html, sqlite.org/pragma.html.

One writer thread owns the connection. Everything that was queued when the previous commit ended
goes into the next transaction, in order (group commit), with WAL and synchronous=FULL: `done`
comes after the WAL's fsync. The lock is exclusive: a second daemon is refused at the door.

    no space        that commit is rolled back, its batches get StoreFull, later ones may go on;
                    batches of nothing but `essential` kinds are first tried again on a reserve
    anything else   StoreFailed now and for ever: after a failed fsync the kernel may have thrown
                    the dirty pages away, so that a second try would lie
"""

import os
import sqlite3
import threading
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from hal.errors import HalError, Refused, StoreFailed, StoreFull
from hal.linux.journal_file import open_journal
from hal.linux.reserve import Reserve
from hal.ports import Done, JournalRecord, Reactor

WAITING_LIMIT: Final = 4096  # batches that wait for a commit
WAITING_LIMIT_BYTES: Final = 64 << 20
BATCH_LIMIT: Final = 65_536  # records: a whole card's state in one batch still fits
VALUE_LIMIT_BYTES: Final = 1 << 20
KEY_LIMIT_BYTES: Final = 1024
WAL_LIMIT_BYTES: Final = 4 << 20  # checkpointed when it is larger, even while busy
IDLE_S: Final = 1.0  # quiet for so long: checkpoint and truncate the WAL


@dataclass(frozen=True, slots=True, kw_only=True)
class _Waiting:
    rows: Sequence[tuple[str, str, bytes | None]]
    size_bytes: int
    essential: bool
    done: Done[None]


class SqliteJournal:
    """`hal.ports.JournalStore` in one file. Called on the loop's thread."""

    def __init__(
        self,
        path: str | Path,
        reactor: Reactor,
        *,
        waiting_limit: int = WAITING_LIMIT,
        essential: Collection[str] = (),
        wal_limit_bytes: int = WAL_LIMIT_BYTES,
        idle_s: float = IDLE_S,
    ) -> None:
        """Opens or makes it; see `journal_file.open_journal` for what is refused. `essential`:
        kinds of records that must find room when the disk is full."""
        self._path = os.fspath(path)
        self._reactor = reactor
        self._waiting_limit = waiting_limit
        self._wal_limit_bytes = wal_limit_bytes
        self._idle_s = idle_s
        self._connection = open_journal(self._path)
        self._essential = frozenset(essential)
        self._reserve = Reserve(f"{self._path}-reserve") if essential else None
        if self._reserve is not None:
            self._reserve.lay_in()
        self._wake = threading.Condition()
        self._waiting: deque[_Waiting] = deque()
        self._waiting_bytes = 0
        self._closing = False
        self._failed: StoreFailed | None = None
        self._writing: deque[_Waiting] = deque()  # on the writer's hands, not answered yet
        self._thread: threading.Thread | None = None

    def load(self) -> Sequence[JournalRecord]:
        """Raises StoreFailed when it can't be read."""
        try:
            rows = self._connection.execute(
                "SELECT kind, key, value FROM decision ORDER BY kind, key"
            ).fetchall()
        except sqlite3.Error as exc:
            raise StoreFailed(f"journal {self._path}: load: {exc}") from exc
        return [JournalRecord(kind=kind, key=key, value=value) for kind, key, value in rows]

    def submit(self, batch: Sequence[JournalRecord], done: Done[None]) -> None:
        """Refused for a record that no journal can hold, StoreFull when 4,096 batches (or
        64 MiB) wait, StoreFailed once the store has failed; always through `done`."""
        refusal: HalError
        try:
            rows, size_bytes = _rows(batch)
            essential = self._essential.issuperset(kind for kind, _, _ in rows)
            waiting = _Waiting(rows=rows, size_bytes=size_bytes, essential=essential, done=done)
            with self._wake:
                self._admit(size_bytes)
                self._waiting.append(waiting)
                self._waiting_bytes += size_bytes
                self._wake.notify()
        except HalError as exc:
            refusal = exc
            self._reactor.post(lambda: done(refusal))
            return
        if self._thread is None:  # not before the first batch: `load` comes first
            self._thread = threading.Thread(target=self._serve, name="apf-journal", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Commit what waits, then let go of the file. Its completions are posted as ever."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join()
        self._connection.close()

    def _admit(self, size_bytes: int) -> None:
        if self._failed is not None:
            raise self._failed
        if self._closing:
            raise StoreFailed(f"journal {self._path} is closed")
        waiting, waiting_bytes = len(self._waiting), self._waiting_bytes
        if waiting >= self._waiting_limit or waiting_bytes + size_bytes > WAITING_LIMIT_BYTES:
            raise StoreFull(
                f"journal {self._path}: {waiting} batches ({waiting_bytes} B) wait for the disk "
                f"already; at most {self._waiting_limit} ({WAITING_LIMIT_BYTES} B)"
            )

    def _serve(self) -> None:
        """The writer's thread. What ends it is told to all who wait, and raised on the loop's."""
        try:
            self._write()
        except BaseException as exc:  # noqa: BLE001 - nobody may wait for a thread that is gone
            failure = self._fail("its writer ended", exc)
            with self._wake:
                left, self._waiting = self._waiting, deque()
            self._answer(deque([*self._writing, *left]), failure)
            self._reactor.post(partial(_raise, exc))

    def _write(self) -> None:
        dirty = False
        while True:
            with self._wake:
                while not self._waiting and not self._closing:
                    if not self._wake.wait(self._idle_s if dirty else None):
                        break
                group, self._waiting = self._waiting, deque()
                self._waiting_bytes = 0
                stop = self._closing and not group
            if stop:
                return
            if group:
                self._store(group)
                dirty = True
                self._checkpoint(at_least_bytes=self._wal_limit_bytes)
            elif dirty:
                dirty = False
                self._checkpoint(at_least_bytes=0)

    def _store(self, group: deque[_Waiting]) -> None:
        """All of it in one commit; without room for that, what is essential on the reserve."""
        self._writing = group
        result = self._commit(group)
        vital = deque(waiting for waiting in group if waiting.essential)
        if isinstance(result, StoreFull) and self._reserve is not None and vital:
            rest = deque(waiting for waiting in group if not waiting.essential)
            if rest:
                self._answer(rest, result)
            group = self._writing = vital
            while isinstance(result, StoreFull) and self._reserve.give_up():
                result = self._commit(group)
        self._writing = deque()
        self._answer(group, result)

    def _commit(self, group: Sequence[_Waiting]) -> HalError | None:
        if self._failed is not None:
            return self._failed
        connection = self._connection
        try:
            connection.execute("BEGIN IMMEDIATE")
            for waiting in group:
                for kind, key, value in waiting.rows:
                    if value is None:
                        connection.execute(
                            "DELETE FROM decision WHERE kind = ? AND key = ?", (kind, key)
                        )
                    else:
                        connection.execute(
                            "INSERT OR REPLACE INTO decision (kind, key, value) VALUES (?, ?, ?)",
                            (kind, key, value),
                        )
            connection.execute("COMMIT")
        except sqlite3.Error as exc:
            return self._refuse(exc)
        return None

    def _refuse(self, cause: sqlite3.Error) -> HalError:
        """Take the transaction back; decide whether the store lives on."""
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except sqlite3.Error as exc:
            return self._fail("rollback", exc)
        if getattr(cause, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            return StoreFull(f"journal {self._path}: no space left; nothing was written")
        return self._fail("commit", cause)

    def _fail(self, step: str, cause: BaseException) -> StoreFailed:
        name = getattr(cause, "sqlite_errorname", type(cause).__name__)
        failure = StoreFailed(
            f"journal {self._path}: {step}: {cause} {name}; it must not be used any further. "
            "Check the disk, then restart"
        )
        failure.__cause__ = cause
        with self._wake:
            self._failed = failure
        return failure

    def _checkpoint(self, *, at_least_bytes: int) -> None:
        """Move the WAL into the main file. SQLite's automatic one ignores a failed fsync there
        (sqlite3WalDefaultHook), so that it is off and this one looks."""
        if self._failed is not None:
            return
        try:
            if os.stat(f"{self._path}-wal").st_size < at_least_bytes:
                return
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            if self._reserve is not None:
                self._reserve.lay_in()
        except FileNotFoundError:
            return  # nothing was ever committed
        except OSError as exc:
            self._fail("the size of its log", exc)
        except sqlite3.Error as exc:
            if getattr(exc, "sqlite_errorcode", None) != sqlite3.SQLITE_FULL:
                self._fail("checkpoint", exc)  # the batches that come next are told

    def _answer(self, group: deque[_Waiting], result: HalError | None) -> None:
        self._reactor.post(partial(self._deliver, group, result))

    def _deliver(self, group: deque[_Waiting], result: HalError | None) -> None:
        try:
            while group:
                group.popleft().done(result)
        finally:
            if group:  # a handler raised: its error goes up, the others are still told
                self._answer(group, result)


def _raise(error: BaseException) -> None:
    raise error


def _rows(batch: Sequence[JournalRecord]) -> tuple[list[tuple[str, str, bytes | None]], int]:
    if len(batch) > BATCH_LIMIT:
        raise Refused(f"journal: a batch of {len(batch)} records, at most {BATCH_LIMIT}")
    rows = []
    total = 0
    for record in batch:
        try:
            name_bytes = len(record.kind.encode()) + len(record.key.encode())
        except UnicodeEncodeError as exc:
            raise Refused(f"journal: {record.kind!r} {record.key[:80]!r} is not UTF-8") from exc
        value_bytes = 0 if record.value is None else len(record.value)
        if name_bytes > KEY_LIMIT_BYTES or value_bytes > VALUE_LIMIT_BYTES:
            raise Refused(
                f"journal: {record.kind!r} {record.key[:80]!r}: names of {name_bytes} B and a "
                f"value of {value_bytes} B; at most {KEY_LIMIT_BYTES} and {VALUE_LIMIT_BYTES}"
            )
        rows.append((record.kind, record.key, record.value))
        total += name_bytes + value_bytes
    return rows, total
