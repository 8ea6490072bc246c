"""Opening, making and judging the journal's file. What is found damaged is never replaced.

A new journal is made under another name and renamed into place when it is whole, so that an
empty or half-made file under the journal's own name is always damage, and is told as such.
"""

import os
import sqlite3
from typing import Final

from hal.errors import Refused, StoreFailed, Unavailable
from hal.linux.durable import make_dirs, sync_dir, sync_names
from hal.linux.oserror import hal_error

# "APFJ"; PRAGMA application_id, bytes 68..71 of the header (sqlite.org/fileformat2.html, 1.3.14)
APPLICATION_ID: Final = 0x4150464A
SCHEMA_VERSION: Final = 1
# The oldest version that still reads what we write (DESIGN D14: the one before, from 2 on).
OLDEST_READER: Final = 1
_BUSY_S: Final = 1.0  # a predecessor that is being killed gets this long to let go of the lock

_SCHEMA: Final = """
CREATE TABLE decision (
    kind TEXT NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL, PRIMARY KEY (kind, key)
) WITHOUT ROWID;
CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
"""


def open_journal(path: str) -> sqlite3.Connection:
    """A connection that may be handed to another thread, checked and exclusively locked.

    Raises StoreFailed for a damaged file, Refused for one that is newer or no journal of ours,
    Unavailable when it is locked or can't be reached, StoreFull without space to make one.
    """
    try:
        if not os.path.lexists(path):
            folder = os.path.dirname(os.path.abspath(path))
            make_dirs(folder, 0o700)
            sync_names(folder)  # once in a journal's life, so all the way up
            _make(path)
    except OSError as exc:
        raise hal_error(exc, f"journal {path}") from exc
    connection: sqlite3.Connection | None = None
    try:
        connection = _connect(path)
        _judge(connection, path)
        _settle(connection)
    except sqlite3.Error as exc:
        _close(connection)
        raise _explain(exc, path) from exc
    except BaseException:
        _close(connection)
        raise
    return connection


def _connect(path: str) -> sqlite3.Connection:
    if not os.path.getsize(path):
        raise _damaged(path, "the file is empty")
    connection = sqlite3.connect(
        path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
    )
    for pragma in (
        # Before the first read: no shared-memory file, and a second process is kept out.
        "locking_mode = EXCLUSIVE",
        "journal_mode = WAL",
        "synchronous = FULL",
        "wal_autocheckpoint = 0",  # done by hand: see SqliteJournal._checkpoint
        "journal_size_limit = 4194304",
        "cell_size_check = ON",
        "trusted_schema = OFF",
        "temp_store = MEMORY",
    ):
        connection.execute(f"PRAGMA {pragma}")
    return connection


def _judge(connection: sqlite3.Connection, path: str) -> None:
    found = connection.execute("PRAGMA application_id").fetchone()[0]
    if found != APPLICATION_ID:
        raise Refused(
            f"journal {path}: application id {found:#x}, wanted {APPLICATION_ID:#x}: this is "
            "another program's database. Point APF_STATE elsewhere"
        )
    verdict = [row[0] for row in connection.execute("PRAGMA quick_check(5)")]
    if verdict != ["ok"]:
        raise _damaged(path, " ".join("; ".join(verdict).split()))
    meta = dict(connection.execute("SELECT name, value FROM meta"))
    schema, oldest = meta.get("schema"), meta.get("oldest_reader")
    if not isinstance(schema, int) or not isinstance(oldest, int):
        raise _damaged(path, f"its version can't be read: {meta!r}")
    if schema > SCHEMA_VERSION + 1 or oldest > SCHEMA_VERSION:
        raise Refused(
            f"journal {path}: written by schema {schema}, readable from {oldest} on; this program "
            f"reads up to {SCHEMA_VERSION} (and what {SCHEMA_VERSION + 1} keeps readable). Start "
            "the newer program, or restore the journal that was saved before the upgrade"
        )


def _settle(connection: sqlite3.Connection) -> None:
    """Move what a predecessor's log holds into the main file, synced, before anything relies on it.
    If its last sync had failed, the kernel may call those pages clean that never reached the disk:
    later syncs of the same log would say nothing, and a power cut would take what was acknowledged
    behind the gap. A disk without room for that keeps the log as it is."""
    try:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except sqlite3.Error as exc:
        if getattr(exc, "sqlite_errorcode", None) != sqlite3.SQLITE_FULL:
            raise


def _make(path: str) -> None:
    """A new journal, whole and synced before it has its name."""
    if os.path.lexists(f"{path}-wal"):
        raise _damaged(path, f"the file is gone, but its log {path}-wal is here")
    fresh = f"{path}.new"
    for leftover in (fresh, f"{fresh}-journal"):
        if os.path.lexists(leftover):
            os.unlink(leftover)
    try:
        connection = sqlite3.connect(fresh, isolation_level=None)
        try:
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.executescript(_SCHEMA)
            connection.executemany(
                "INSERT INTO meta VALUES (?, ?)",
                [("schema", SCHEMA_VERSION), ("oldest_reader", OLDEST_READER)],
            )
        finally:
            connection.close()
    except sqlite3.Error as exc:
        raise _explain(exc, path) from exc
    os.chmod(fresh, 0o600)
    os.rename(fresh, path)
    sync_dir(os.path.dirname(os.path.abspath(path)))


def _explain(exc: sqlite3.Error, path: str) -> StoreFailed | Unavailable:
    code = getattr(exc, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return Unavailable(f"journal {path}: another process holds it ({exc}); stop that first")
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY):
        return Unavailable(f"journal {path}: {exc}; check its owner and mode")
    return _damaged(path, str(exc))


def _damaged(path: str, how: str) -> StoreFailed:
    return StoreFailed(
        f"journal {path} is damaged: {how}. It was left as it is. Restore a saved copy, or keep "
        f"this one aside (`mv {path} {path}.damaged`, its -wal too) and start with an empty one: "
        "the card then knows no workload, and stops what its modules still run"
    )


def _close(connection: sqlite3.Connection | None) -> None:
    if connection is not None:
        connection.close()
