"""The card's other stores after a power cut: what was acknowledged is there, and is whole.

BlobStore    an object is durable when `put` returned, or `done(None)` came; whatever is under
             a digest has that digest. `drop` is not synced: what was dropped may come back,
             and garbage collection drops it again.
Files        what `write` replaced is durable when it returned; after a cut the file is the old
             or the new one. `append` (logs) and `remove` are not synced.
"""

import hashlib
import os
from collections.abc import Callable

import pytest

from firmware.loop import MS, Loop
from hal.errors import HalError
from hal.linux.blobs import LinuxBlobStore
from hal.linux.clock import LinuxClock
from hal.linux.files import LinuxFiles
from hal.linux.workers import Workers
from tools.sim.crash.events import Acknowledged, Log, Rename, Submitted, Sync
from tools.sim.crash.oscalls import recording_os
from tools.sim.crash.record import Recording
from tools.sim.crash.sweep import Tally, sweep


@pytest.fixture
def loop():
    clock = LinuxClock()
    made = Loop(clock)
    yield made
    made.close()
    clock.close()


@pytest.fixture
def workers(loop):
    made = Workers(loop)
    yield made
    made.close()


@pytest.fixture
def log(tmp_path) -> Log:
    return Log(str(tmp_path))


def wait(loop: Loop, begin: Callable[[Callable[[object], None]], None]) -> None:
    """Run the loop until `done` was called; it must be called with None."""
    results: list[object] = []

    def done(result: object) -> None:
        results.append(result)
        loop.stop()

    begin(done)
    loop.run()
    assert results == [None]


# --- blobs ---

OBJECTS = [os.urandom(700), b"x" * 3000, os.urandom(1500), b"again" * 200, os.urandom(600)]
DIGESTS = [hashlib.sha256(data).digest() for data in OBJECTS]


class BlobTrial:
    """Opens the store with the production's code; hashes all that it finds."""

    def __init__(self, loop: Loop, workers: Workers) -> None:
        self._loop, self._workers = loop, workers

    def judge(self, root: str, acknowledged: int, submitted: int) -> str:
        try:
            store = LinuxBlobStore(f"{root}/state/blobs", self._loop, self._workers)
        except HalError as exc:
            return f"it does not open: {exc}"
        try:
            found = store.digests()
            for digest in found:
                data = store.read(digest, 0, 1 << 20)
                if hashlib.sha256(data).digest() != digest:
                    return f"{digest.hex()} is not whole: {len(data)} B"
        finally:
            store.close()
        lost = set(DIGESTS[:acknowledged]) - set(found)
        return f"{len(lost)} objects were acknowledged and lost" if lost else ""

    def again(self, root: str, seed: int) -> None:
        return None


def record_blobs(log: Log, loop: Loop, workers: Workers) -> Recording:
    """An object by each of the ways in; the last one in the partial file of an earlier run."""
    deadline_ns = loop.now_ns() + 30_000 * MS
    steps: list[Callable[[LinuxBlobStore, bytes, bytes], None]] = []

    def put(store, data, digest) -> None:
        assert store.put(data) == digest

    def fill(store, data, digest) -> None:
        store.begin(digest, len(data))
        for offset in reversed(range(0, len(data), 1000)):
            store.write_chunk(digest, offset, data[offset : offset + 1000])
        wait(loop, lambda done: store.submit_finish(digest, deadline_ns, done))

    def ingest(store, data, digest) -> None:
        reader, writer = os.pipe()
        os.write(writer, data)
        os.close(writer)
        wait(loop, lambda done: store.submit_ingest(reader, len(data), digest, deadline_ns, done))

    steps = [put, fill, ingest, put, fill]
    with recording_os(log):
        store = LinuxBlobStore(f"{log.root}/state/blobs", loop, workers)
        for number, step in enumerate(steps, 1):
            log.add(Submitted(number))
            step(store, OBJECTS[number - 1], DIGESTS[number - 1])
            log.add(Acknowledged(number))
        store.close()
    return Recording(events=log.events, states=[], nodes={})


def test_every_cut_of_the_blob_store_leaves_whole_objects_and_all_acknowledged(
    log, loop, workers
) -> None:
    recording = record_blobs(log, loop, workers)
    tally = sweep(recording, BlobTrial(loop, workers))
    assert tally.violations == []
    assert tally.total > 250


# --- files ---

WRITES = [
    ("boot", b"1"),
    ("specs/shop/web.json", b"a" * 1500),
    ("specs/shop/web.json", b"b" * 700),
    ("specs/shop/db.json", b"c" * 100),
    ("boot", b"2" * 600),
]


class FilesTrial:
    def judge(self, root: str, acknowledged: int, submitted: int) -> str:
        if not os.path.isdir(f"{root}/state/files"):
            found = {}
        else:
            found = self._read(f"{root}/state/files")
        states = [dict(WRITES[:count]) for count in range(acknowledged, submitted + 1)]
        return "" if found in states else f"{found} is none of {states}"

    def _read(self, root: str) -> dict[str, bytes]:
        files = LinuxFiles(root)
        found = {}
        todo = files.names("")
        while todo:
            path, *todo = todo
            if files.size_bytes(path) is None:
                todo += [f"{path}/{name}" for name in files.names(path)]
            else:
                found[path] = files.read(path)
        files.close()
        return found

    def again(self, root: str, seed: int) -> None:
        return None


def record_files(log: Log) -> Recording:
    with recording_os(log):
        files = LinuxFiles(f"{log.root}/state/files")
        for number, (path, data) in enumerate(WRITES, 1):
            log.add(Submitted(number))
            files.write(path, data)
            log.add(Acknowledged(number))
        files.close()
    return Recording(events=log.events, states=[], nodes={})


def test_every_cut_of_small_files_leaves_the_old_or_the_new_one(log) -> None:
    tally = sweep(record_files(log), FilesTrial())
    assert tally.violations == []
    assert tally.total > 100


# --- that these sweeps bite ---


def cut(recording: Recording, trial: object, without: Callable[[int], bool]) -> Tally:
    """The same, had the program left some events out."""
    events = [event for number, event in enumerate(recording.events) if not without(number)]
    return sweep(Recording(events=events, states=[], nodes={}), trial)  # type: ignore[arg-type]


def syncs_before_renames(recording: Recording) -> set[int]:
    events = recording.events
    renamed = {event.node for event in events if isinstance(event, Rename)}
    return {
        number
        for number, event in enumerate(events)
        if isinstance(event, Sync) and event.file in renamed
    }


def test_a_store_that_renames_before_it_syncs_is_caught(log, loop, workers) -> None:
    recording = record_blobs(log, loop, workers)
    early = syncs_before_renames(recording)
    assert len(early) == len(OBJECTS)
    tally = cut(recording, BlobTrial(loop, workers), lambda number: number in early)
    assert any("not whole" in found.text for found in tally.violations)


@pytest.mark.parametrize("number", range(4))
def test_a_store_that_leaves_out_the_sync_of_a_directory_is_caught(number, tmp_path) -> None:
    log = Log(str(tmp_path))
    recording = record_files(log)
    kinds = [type(event).__name__ for event in recording.events]
    places = [at for at, kind in enumerate(kinds) if kind == "SyncDir"]
    assert len(places) == len(WRITES) + 4  # state, files, specs, specs/shop
    wanted = [at for at in places if at < kinds.index("Submitted")] + [
        at for at in places if kinds[at - 1] == "Name"
    ][2:]
    tally = cut(recording, FilesTrial(), lambda at: at == wanted[number])
    assert tally.violations
