"""What the contract suite can't see of LinuxBlobStore: its files, its threads, silent sources."""

import hashlib
import os
from pathlib import Path

import pytest

from firmware.loop import MS
from hal.errors import DeadlinePassed, Refused, StoreFull, Unavailable
from hal.linux import blobs
from hal.linux.blobs import PARTIAL_LIMIT, LinuxBlobStore
from hal.linux.workers import Workers


@pytest.fixture
def store(tmp_path, loop, workers):
    made = LinuxBlobStore(tmp_path / "blobs", loop, workers)
    yield made
    workers.close()
    made.close()


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def partials(tmp_path: Path) -> list[str]:
    return os.listdir(tmp_path / "blobs/partial")


def test_an_object_lies_read_only_under_its_digest(store: LinuxBlobStore, tmp_path) -> None:
    name = store.put(b"hello").hex()
    path = tmp_path / "blobs/sha256" / name[:2] / name
    assert path.read_bytes() == b"hello"
    assert path.stat().st_mode & 0o777 == 0o400
    assert partials(tmp_path) == []


def test_strange_names_in_the_store_are_left_alone_and_counted_as_nothing(
    store: LinuxBlobStore, tmp_path
) -> None:
    digest = store.put(b"hello")
    top = tmp_path / "blobs/sha256"
    (top / "lost+found").mkdir()
    (top / "note").write_bytes(b"a person was here")
    (top / digest.hex()[:2] / ".nfs0001").write_bytes(b"")
    assert store.digests() == [digest]
    assert (top / "note").exists()


def test_scratch_of_a_crash_goes_and_partial_objects_stay_up_to_their_bound(
    store: LinuxBlobStore, tmp_path, loop, workers
) -> None:
    top = tmp_path / "blobs/partial"
    for number in range(PARTIAL_LIMIT + 5):
        path = top / sha(bytes([number])).hex()
        path.write_bytes(b"x")
        os.utime(path, (1000 + number, 1000 + number))
    (top / "ingest-3").write_bytes(b"x")
    (top / "put-0").write_bytes(b"x")
    LinuxBlobStore(tmp_path / "blobs", loop, workers)
    kept = {sha(bytes([number])).hex() for number in range(5, PARTIAL_LIMIT + 5)}
    assert set(os.listdir(top)) == kept


def test_more_partial_objects_than_the_bound_are_store_full(store: LinuxBlobStore) -> None:
    for number in range(PARTIAL_LIMIT):
        store.begin(sha(bytes([number])), 10)
    with pytest.raises(StoreFull, match="64"):
        store.begin(sha(b"one more"), 10)
    store.drop(sha(bytes([0])))
    store.begin(sha(b"one more"), 10)


def test_space_is_promised_once(store: LinuxBlobStore) -> None:
    info = os.statvfs("/tmp")
    free = info.f_bavail * info.f_frsize
    store.begin(sha(b"a"), free * 2 // 3)
    with pytest.raises(StoreFull, match="promised"):
        store.begin(sha(b"b"), free * 2 // 3)
    store.drop(sha(b"a"))
    store.begin(sha(b"b"), free * 2 // 3)
    with pytest.raises(Refused, match="size"):
        store.begin(sha(b"c"), -1)


def test_two_that_come_in_at_once_are_not_promised_the_same_space(
    store: LinuxBlobStore, loop, until
) -> None:
    info = os.statvfs("/tmp")
    size = info.f_bavail * info.f_frsize * 2 // 3
    results: list[object] = []
    reader, writer = os.pipe()
    store.submit_ingest(reader, size, sha(b"a"), loop.now_ns() + 10_000 * MS, results.append)
    other = os.open(os.devnull, os.O_RDONLY)
    store.submit_ingest(other, size, sha(b"b"), loop.now_ns() + 10_000 * MS, results.append)
    until(lambda: len(results) == 1)
    assert isinstance(results[0], StoreFull)
    assert "promised" in str(results[0])
    os.close(writer)  # the first one ends short of its size
    until(lambda: len(results) == 2)
    assert isinstance(results[1], Refused)
    other = os.open(os.devnull, os.O_RDONLY)
    store.submit_ingest(other, size, sha(b"b"), loop.now_ns() + 10_000 * MS, results.append)
    until(lambda: len(results) == 3)
    assert isinstance(results[2], Refused)  # there was room: it ended short as well


def test_a_silent_pipe_ends_at_the_deadline_and_is_closed(
    store: LinuxBlobStore, loop, until, tmp_path
) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"half")
    results: list[object] = []
    store.submit_ingest(reader, 8, sha(b"12345678"), loop.now_ns() + 150 * MS, results.append)
    until(lambda: bool(results))
    assert isinstance(results[0], DeadlinePassed)
    with pytest.raises(OSError):
        os.fstat(reader)
    os.close(writer)
    assert partials(tmp_path) == []


def test_a_source_that_says_nothing_for_long_gives_its_worker_back(
    store: LinuxBlobStore, until, soon, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs, "SILENCE_LIMIT_MS", 200)
    reader, writer = os.pipe()
    os.write(writer, b"half")
    results: list[object] = []
    store.submit_ingest(reader, 8, sha(b"12345678"), soon, results.append)
    until(lambda: bool(results))
    assert isinstance(results[0], Refused)
    assert "silent" in str(results[0])
    os.close(writer)
    assert partials(tmp_path) == []


def test_an_ingest_that_is_refused_at_once_still_closes_its_descriptor(
    store: LinuxBlobStore, until, soon
) -> None:
    known = store.put(b"known")
    for digest, size, kind in (
        (b"short", 1, Refused),
        (known, 5, type(None)),
        (sha(b"x"), -1, Refused),
        (sha(b"x"), 1 << 41, StoreFull),
    ):
        fd = os.open(os.devnull, os.O_RDONLY)
        results: list[object] = []
        store.submit_ingest(fd, size, digest, soon, results.append)
        assert results == []
        until(lambda results=results: bool(results))
        assert isinstance(results[0], kind)
        with pytest.raises(OSError):
            os.fstat(fd)


def test_a_finish_that_missed_its_deadline_can_be_asked_again(
    store: LinuxBlobStore, loop, until, soon
) -> None:
    data = bytes(3 << 20)
    store.begin(sha(data), len(data))
    for deadline_ns, kind in ((loop.now_ns() - 1, DeadlinePassed), (soon, type(None))):
        results: list[object] = []
        store.submit_finish(sha(data), deadline_ns, results.append)
        with pytest.raises(Refused, match="being checked"):
            store.write_chunk(sha(data), 0, b"x")
        until(lambda results=results: bool(results))
        assert isinstance(results[0], kind)
    assert store.has(sha(data)) == len(data)


def test_what_is_dropped_while_it_is_checked_does_not_come_back(
    store: LinuxBlobStore, until, soon, tmp_path
) -> None:
    data = bytes(8 << 20)
    store.begin(sha(data), len(data))
    results: list[object] = []
    store.submit_finish(sha(data), soon, results.append)
    store.drop(sha(data))
    until(lambda: bool(results))
    assert isinstance(results[0], Refused)
    assert store.has(sha(data)) is None
    assert partials(tmp_path) == []


def test_full_and_closing_workers_refuse(loop, until) -> None:
    workers = Workers(loop, threads=1, waiting_limit=1)
    results: list[object] = []
    for _ in range(3):
        workers.submit("job", lambda check: None, loop.now_ns() + 10_000 * MS, results.append)
    until(lambda: len(results) == 3)
    assert [type(result) for result in results].count(Unavailable) == 1
    workers.close()
    workers.submit("job", lambda check: None, loop.now_ns() + 10_000 * MS, results.append)
    until(lambda: len(results) == 4)
    assert "closing" in str(results[3])


def test_a_bug_in_a_job_is_raised_on_the_loop(loop, workers: Workers) -> None:
    def job(check) -> None:
        raise ZeroDivisionError("a bug of ours")

    workers.submit("job", job, loop.now_ns() + 10_000 * MS, lambda result: None)
    with pytest.raises(ZeroDivisionError):
        loop.run()
