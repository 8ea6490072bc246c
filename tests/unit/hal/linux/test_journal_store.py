"""SqliteJournal's file: damage, versions, locks, space. The contract suite has the rest."""

import os
import shutil
import sqlite3
import subprocess
import threading
from pathlib import Path

import pytest

from hal.errors import HalError, Refused, StoreFailed, StoreFull, Unavailable
from hal.linux import journal as journal_module
from hal.linux.journal import SqliteJournal
from hal.ports import JournalRecord


def put(key: str, value: bytes | None = b"v", kind: str = "k") -> JournalRecord:
    return JournalRecord(kind=kind, key=key, value=value)


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "deep" / "journal.db"


@pytest.fixture
def opened(path, loop):
    """Opens it; all are closed at the end."""
    made: list[SqliteJournal] = []

    def open_it(**more) -> SqliteJournal:
        made.append(SqliteJournal(path, loop, **more))
        return made[-1]

    yield open_it
    for journal in made:
        journal.close()


def commit(journal: SqliteJournal, until, *batch: JournalRecord) -> HalError | None:
    results: list[HalError | None] = []
    journal.submit(batch, results.append)
    until(lambda: bool(results))
    return results[0]


def test_a_damaged_file_is_refused_with_words_and_left_alone(opened, path, until) -> None:
    journal = opened()
    for number in range(50):
        assert commit(journal, until, put(f"key{number}", os.urandom(2000))) is None
    journal.close()
    data = bytearray(path.read_bytes())
    assert len(data) > 40_000
    for start in range(4096, len(data), 4096):  # every page but the first
        data[start : start + 64] = os.urandom(64)
    path.write_bytes(data)
    with pytest.raises(StoreFailed, match=r"damaged.*left as it is.*Restore"):
        opened()
    assert path.read_bytes() == data


def test_damage_among_the_decisions_alone_is_found_at_the_open(opened, path, until) -> None:
    journal = opened()
    commit(journal, until, *[put(f"key{n}", bytes(100)) for n in range(300)])
    journal.close()
    data = bytearray(path.read_bytes())
    data[-4096:-4000] = bytes(96)  # one leaf: the schema, and what says the version, are whole
    path.write_bytes(data)
    with pytest.raises(StoreFailed, match="damaged"):
        opened()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
def test_after_a_full_disk_smaller_batches_go_on(loop, until, tmp_path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], check=True)
    journal = SqliteJournal(tmp_path / "journal.db", loop)
    try:
        assert commit(journal, until, put("a", b"1")) is None
        big = [put("a", b"2"), *[put(f"big{n}", bytes(400_000)) for n in range(4)]]
        assert isinstance(commit(journal, until, *big), StoreFull)
        assert commit(journal, until, put("b", b"3")) is None
        assert isinstance(commit(journal, until, *big), StoreFull)
        assert journal.load() == [put("a", b"1"), put("b", b"3")]
    finally:
        journal.close()
        subprocess.run(["umount", "-l", tmp_path], check=True)


@pytest.mark.parametrize("content", [b"", b"this is no database at all" * 100])
def test_what_is_no_database_is_refused_and_never_recreated(opened, path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(StoreFailed, match="damaged"):
        opened()
    assert path.read_bytes() == content


def test_a_cut_file_is_refused(opened, path, until) -> None:
    journal = opened()
    commit(journal, until, *[put(f"key{n}", bytes(3000)) for n in range(20)])
    journal.close()
    os.truncate(path, path.stat().st_size // 2 // 4096 * 4096)
    with pytest.raises(StoreFailed, match="damaged"):
        opened()


def test_a_log_without_its_file_is_damage(opened, path) -> None:
    path.parent.mkdir()
    Path(f"{path}-wal").write_bytes(b"x")
    with pytest.raises(StoreFailed, match="is gone"):
        opened()
    assert not path.exists()


def test_another_programs_database_is_refused(opened, path) -> None:
    path.parent.mkdir()
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE x (y)")
    other.close()
    with pytest.raises(Refused, match="another program"):
        opened()


def set_meta(path: Path, **values: int) -> None:
    connection = sqlite3.connect(path)
    with connection:
        for name, value in values.items():
            connection.execute("REPLACE INTO meta VALUES (?, ?)", (name, value))
    connection.close()


@pytest.mark.parametrize(
    "versions", [{"schema": 3}, {"schema": 2, "oldest_reader": 2}, {"schema": 99}]
)
def test_a_newer_journal_is_refused_with_words(opened, path, versions) -> None:
    opened().close()
    set_meta(path, **versions)
    with pytest.raises(Refused, match="newer program"):
        opened()


def test_the_next_versions_journal_is_read_when_it_says_so(opened, path, until) -> None:
    journal = opened()
    commit(journal, until, put("a"))
    journal.close()
    set_meta(path, schema=2, oldest_reader=1)
    again = opened()
    assert again.load() == [put("a")]
    assert commit(again, until, put("b")) is None


def test_a_version_that_cannot_be_read_is_damage(opened, path) -> None:
    opened().close()
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("DELETE FROM meta")
    connection.close()
    with pytest.raises(StoreFailed, match="version"):
        opened()


def test_a_half_made_journal_is_made_again(opened, path) -> None:
    path.parent.mkdir()
    Path(f"{path}.new").write_bytes(b"half")
    assert opened().load() == []
    assert not Path(f"{path}.new").exists()


def test_a_second_daemon_is_kept_out(opened, path, monkeypatch) -> None:
    from hal.linux import journal_file

    monkeypatch.setattr(journal_file, "_BUSY_S", 0.05)
    opened()
    with pytest.raises(Unavailable, match="another process"):
        opened()


def test_a_place_that_cannot_be_reached_is_unavailable(loop) -> None:
    with pytest.raises(Unavailable):
        SqliteJournal("/proc/nowhere/journal.db", loop)


@pytest.mark.parametrize(
    "record",
    [put("k" * 2000), put("x", bytes((1 << 20) + 1)), put("bad\udcff"), put("x", kind="k" * 2000)],
)
def test_a_record_that_no_journal_holds_is_refused_and_the_rest_goes_on(
    opened, until, record
) -> None:
    journal = opened()
    assert isinstance(commit(journal, until, put("good"), record), Refused)
    assert journal.load() == []
    assert commit(journal, until, put("good")) is None


def test_a_full_queue_is_store_full_at_once_and_loses_nothing(opened, until, monkeypatch) -> None:
    journal = opened(waiting_limit=5)
    gate = threading.Event()
    plain = SqliteJournal._commit

    def slow(self, group):
        gate.wait(20)
        return plain(self, group)

    monkeypatch.setattr(SqliteJournal, "_commit", slow)
    results: dict[int, HalError | None] = {}
    for number in range(20):
        journal.submit([put(f"k{number}")], lambda r, n=number: results.__setitem__(n, r))
    gate.set()
    until(lambda: len(results) == 20)
    full = [n for n, result in results.items() if isinstance(result, StoreFull)]
    assert 14 <= len(full) <= 15  # five wait; one more may have been taken by the writer
    assert len(journal.load()) == 20 - len(full)


def test_too_many_bytes_in_the_queue_are_store_full(opened, until, monkeypatch) -> None:
    monkeypatch.setattr(journal_module, "WAITING_LIMIT_BYTES", 1000)
    journal = opened()
    assert isinstance(commit(journal, until, put("a", bytes(1001))), StoreFull)
    assert commit(journal, until, put("a", bytes(500))) is None


def test_a_failed_write_ends_the_store_for_ever(opened, until, monkeypatch) -> None:
    journal = opened()
    assert commit(journal, until, put("a")) is None
    broken = sqlite3.OperationalError("disk I/O error")
    broken.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
    broken.sqlite_errorname = "SQLITE_IOERR_FSYNC"

    class Broken:
        in_transaction = False

        def execute(self, *_):
            raise broken

        def close(self) -> None:
            pass

    real = journal._connection
    journal._connection = Broken()
    first = commit(journal, until, put("b"))
    assert isinstance(first, StoreFailed)
    assert "SQLITE_IOERR_FSYNC" in str(first)
    journal._connection = real
    assert isinstance(commit(journal, until, put("c")), StoreFailed)
    assert journal.load() == [put("a")]


def test_a_writer_that_ends_by_a_bug_is_told_to_all_who_wait_and_raised_on_the_loop(
    opened, loop, until, monkeypatch
) -> None:
    journal = opened()
    results: list[HalError | None] = []

    def broken(_group) -> HalError | None:
        journal.submit([put("b")], results.append)  # comes while the writer is busy
        raise ZeroDivisionError("a bug of ours")

    monkeypatch.setattr(journal, "_commit", broken)
    journal.submit([put("a")], results.append)
    with pytest.raises(ZeroDivisionError):
        loop.run()
    until(lambda: len(results) == 2)
    assert all(isinstance(result, StoreFailed) for result in results)
    assert "ZeroDivisionError" in str(results[0])
    assert isinstance(commit(journal, until, put("c")), StoreFailed)


def test_a_log_that_cannot_be_looked_at_fails_the_store_and_not_the_batch(
    opened, until, monkeypatch
) -> None:
    journal = opened()

    def refused(_path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(journal_module.os, "stat", refused)
    assert commit(journal, until, put("a")) is None
    answers = []
    until(lambda: answers.append(commit(journal, until, put("b"))) or answers[-1] is not None)
    assert isinstance(answers[-1], StoreFailed)
    assert "Permission denied" in str(answers[-1])


def test_after_close_nothing_is_taken(opened, until) -> None:
    journal = opened()
    journal.close()
    assert isinstance(commit(journal, until, put("a")), StoreFailed)


def test_a_completion_that_raises_does_not_cost_the_others_theirs(opened, loop, until) -> None:
    journal = opened()
    results: list[object] = []

    def broken(result) -> None:
        raise ZeroDivisionError("a bug of ours")

    journal.submit([put("a")], broken)
    journal.submit([put("b")], results.append)
    with pytest.raises(ZeroDivisionError):
        loop.run()
    until(lambda: bool(results))
    assert results == [None]


def test_an_opening_moves_what_a_killed_holder_left_in_its_log_into_the_file(
    opened, path, until, loop
) -> None:
    assert commit(opened(), until, put("a")) is None
    left = path.with_name("left")  # as it is on the disk now: nobody has closed it
    for end in ("", "-wal"):
        shutil.copyfile(f"{path}{end}", f"{left}{end}")
    assert os.path.getsize(f"{left}-wal") > 0
    journal = SqliteJournal(left, loop)
    try:
        assert os.path.getsize(f"{left}-wal") == 0
        assert [record.key for record in journal.load()] == ["a"]
    finally:
        journal.close()


def test_the_log_is_bounded_and_emptied_when_idle(opened, path, until) -> None:
    journal = opened(wal_limit_bytes=200_000, idle_s=0.05)
    sizes = []
    for number in range(60):
        assert commit(journal, until, put("same", os.urandom(20_000) + bytes([number]))) is None
        sizes.append(os.stat(f"{path}-wal").st_size)
    assert max(sizes) < 400_000
    until(lambda: os.stat(f"{path}-wal").st_size == 0)


def test_group_commit_takes_all_that_waits_into_one_transaction(opened, until, monkeypatch) -> None:
    journal = opened()
    groups: list[int] = []
    plain = SqliteJournal._commit

    def counted(self, group):
        groups.append(len(group))
        return plain(self, group)

    monkeypatch.setattr(SqliteJournal, "_commit", counted)
    order: list[int] = []
    for number in range(500):
        journal.submit([put("last", b"%d" % number)], lambda _, n=number: order.append(n))
    until(lambda: len(order) == 500)
    assert order == list(range(500))
    assert sum(groups) == 500
    assert len(groups) < 250
    assert journal.load() == [put("last", b"499")]
