"""A disk's faults: S1 to S8, and what a cut leaves of a journal."""

import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware.loop import MS, Loop
from hal.errors import HalError, Refused, StoreFailed, StoreFull, Unavailable
from hal.mock.blobs import MockBlobs
from hal.mock.disk import SYNC_NS, Disk
from hal.mock.files import MockFiles
from hal.mock.journal import WAITING_LIMIT, MockJournal
from hal.mock.kernel import VirtualKernel
from hal.mock.tree import Dir, File, Link, MemoryTree
from hal.mock.trees import MockTrees
from hal.ports import JournalRecord

SECOND = 1000 * MS


def put(key: str, value: bytes | None = b"1") -> JournalRecord:
    return JournalRecord(kind="k", key=key, value=value)


class Card:
    def __init__(self, seed: int = 1, **options: int) -> None:
        self.kernel = VirtualKernel(seed)
        self.kernel.attach("card", Loop(self.kernel.node("card").clock))
        self.node = self.kernel.node("card")
        self.disk = Disk(self.kernel, "disk", **options)
        self.journal = MockJournal(self.node, self.disk)
        self.answers: list[HalError | None] = []

    def submit(self, *batch: JournalRecord) -> None:
        self.journal.submit(batch, self.answers.append)

    def restart(self) -> set[str]:
        """Kill the daemon, start it again; the keys that are in its journal then."""
        self.kernel.kill("card")
        self.kernel.attach("card", Loop(self.node.clock))
        self.journal = MockJournal(self.node, self.disk)
        return {record.key for record in self.journal.load()}


# --- journal ---


def test_a_batch_is_acknowledged_only_after_the_sync() -> None:
    card = Card()
    card.submit(put("a"))
    card.kernel.run_for(SYNC_NS - 1)
    assert card.answers == []
    assert card.disk.journal.durable == {}
    card.kernel.run_for(1)
    assert card.answers == [None]
    assert card.disk.journal.durable == {("k", "a"): b"1"}


def test_batches_that_wait_during_a_sync_share_the_next() -> None:
    card = Card()
    card.submit(put("first"))
    card.kernel.run_for(SYNC_NS // 2)
    for number in range(100):
        card.submit(put(str(number)))
    card.kernel.run_for(SYNC_NS)
    assert len(card.answers) == 1
    card.kernel.run_for(SYNC_NS)
    assert len(card.answers) == 101


@given(seed=st.integers(0, 10_000), before=st.integers(0, 3))
def test_a_kill_leaves_all_that_was_acknowledged_and_a_prefix_of_the_rest(
    seed: int, before: int
) -> None:
    card = Card(seed)
    for number in range(8):
        card.submit(put(f"a{number}"), put(f"b{number}"))
        if number < before:
            card.kernel.run_for(SYNC_NS)
    acknowledged = len(card.answers)
    keys = card.restart()
    whole = [number for number in range(8) if f"a{number}" in keys]
    assert whole == list(range(len(whole)))
    assert {key for key in keys if key.startswith("b")} == {f"b{number}" for number in whole}
    assert len(whole) >= acknowledged


def test_both_outcomes_for_an_unacknowledged_batch_come_up() -> None:
    def kept(seed: int) -> bool:
        card = Card(seed)
        card.submit(put("a"))
        return bool(card.restart())

    assert {kept(seed) for seed in range(20)} == {True, False}


def test_a_failed_sync_fails_all_that_waits_and_the_store_stays_failed() -> None:
    card = Card()
    card.disk.fail_sync = True
    card.submit(put("a"))
    card.submit(put("b"))
    card.kernel.run_for(SECOND)
    card.submit(put("c"))
    card.kernel.run_for(SECOND)
    assert [type(answer) for answer in card.answers] == [StoreFailed] * 3
    assert "c" not in card.restart()
    card.submit(put("d"))
    card.kernel.run_for(SECOND)
    assert card.answers[-1] is None, "a fresh opening starts afresh"


def test_a_full_disk_takes_batches_again_when_there_is_room() -> None:
    card = Card()
    card.disk.full = True
    card.submit(put("a"))
    card.kernel.run_for(MS)
    card.disk.full = False
    card.submit(put("b"))
    card.kernel.run_for(MS)
    assert isinstance(card.answers[0], StoreFull)
    assert card.answers[1] is None


def test_waiting_batches_are_bounded() -> None:
    card = Card()
    card.disk.sync_ns = SECOND
    for number in range(WAITING_LIMIT + 5):
        card.submit(put(str(number)))
    card.kernel.run_for(MS)
    assert [type(answer) for answer in card.answers] == [StoreFull] * 5


def test_a_read_only_disk_fails_every_write() -> None:
    card = Card()
    files = MockFiles(card.disk)
    files.write("a", b"1")
    card.disk.read_only = True
    with pytest.raises(StoreFailed, match="read-only"):
        files.write("a", b"2")
    card.submit(put("a"))
    card.kernel.run_for(MS)
    assert isinstance(card.answers[0], StoreFailed)
    assert files.read("a") == b"1"


def test_failing_reads_fail_every_read() -> None:
    card = Card()
    files, blobs = MockFiles(card.disk), MockBlobs(card.node, card.disk)
    files.write("a", b"1")
    digest = blobs.put(b"x")
    card.disk.fail_reads = True
    for read in (lambda: files.read("a"), lambda: blobs.read(digest, 0, 1), card.journal.load):
        with pytest.raises(StoreFailed, match="I/O error"):
            read()


# --- files and blobs ---


def test_a_write_that_does_not_fit_leaves_what_was_there() -> None:
    card = Card(capacity_bytes=100)
    files = MockFiles(card.disk)
    files.write("a", b"x" * 40)
    with pytest.raises(StoreFull, match="60 are free"):
        files.write("a", b"y" * 101)
    assert files.read("a") == b"x" * 40
    files.remove("a")
    assert files.free_bytes() == 100


def test_a_partial_blob_holds_its_room_until_it_is_dropped() -> None:
    card = Card(capacity_bytes=1000)
    blobs = MockBlobs(card.node, card.disk)
    blobs.begin(b"d" * 32, 900)
    assert card.disk.free_bytes() == 100
    with pytest.raises(Refused, match="900"):
        blobs.begin(b"d" * 32, 800)
    blobs.drop(b"d" * 32)
    assert card.disk.free_bytes() == 1000


def test_a_finish_takes_time_by_size_and_its_deadline_counts() -> None:
    card = Card()
    blobs = MockBlobs(card.node, card.disk)
    data = bytes(1 << 20)
    digest = hashlib.sha256(data).digest()
    blobs.begin(digest, len(data))
    out: list[Any] = []
    blobs.submit_finish(digest, card.kernel.now_ns + 100_000, out.append)
    card.kernel.run_for(100_000)
    assert type(out[0]).__name__ == "DeadlinePassed"
    blobs.submit_finish(digest, card.kernel.now_ns + SECOND, out.append)
    card.kernel.run_for(SYNC_NS + len(data) - 1)
    assert len(out) == 1
    card.kernel.run_for(1)
    assert out[1] is None


def test_work_that_a_dead_node_had_begun_is_not_done() -> None:
    card = Card()
    blobs = MockBlobs(card.node, card.disk)
    digest = hashlib.sha256(b"data").digest()
    blobs.begin(digest, 4)
    blobs.write_chunk(digest, 0, b"data")
    blobs.submit_finish(digest, card.kernel.now_ns + SECOND, lambda result: None)
    card.restart()
    card.kernel.run_for(SECOND)
    assert card.disk.blobs == {}
    assert card.disk.partials[digest].data == b"data", "it can still be finished"


def test_bit_rot_is_silent_and_a_hash_finds_it() -> None:
    card = Card()
    blobs = MockBlobs(card.node, card.disk)
    digest = blobs.put(b"precious")
    card.disk.rot(digest, 3)
    data = blobs.read(digest, 0, 100)
    assert len(data) == 8
    assert hashlib.sha256(data).digest() != digest


def test_a_power_cut_may_take_pages_of_a_partial_blob() -> None:
    card = Card()
    blobs = MockBlobs(card.node, card.disk)
    data = b"\xaa" * 65_536
    blobs.begin(b"d" * 32, len(data))
    blobs.write_chunk(b"d" * 32, 0, data)
    card.disk.power_cut()
    assert card.disk.partials[b"d" * 32].data == data
    card.disk.loses_partials = True
    card.disk.power_cut()
    assert card.disk.partials[b"d" * 32].data != data
    assert len(card.disk.partials[b"d" * 32].data) == len(data)


def test_an_ingest_takes_a_stream_handle_too_and_closes_it() -> None:
    from hal.mock.line import stream_pair

    card = Card()
    blobs = MockBlobs(card.node, card.disk)
    ours, theirs = stream_pair(card.kernel, "p", card.node, card.node)
    data = bytes(10_000)
    ours.write(data)
    card.kernel.run_for(MS)
    out: list[Any] = []
    digest = hashlib.sha256(data).digest()
    deadline_ns = card.kernel.now_ns + SECOND
    blobs.submit_ingest(theirs.handle, len(data), digest, deadline_ns, out.append)
    card.kernel.run_for(SECOND)
    assert out == [None]
    assert theirs.handle not in card.kernel.handles
    blobs.submit_ingest(theirs.handle, 1, digest, deadline_ns + SECOND, out.append)
    card.kernel.run_for(SECOND)
    assert isinstance(out[1], Unavailable)


def test_a_zstd_layer_is_said_to_be_unreadable_here() -> None:
    card = Card()
    digest = MockBlobs(card.node, card.disk).put(b"\x28\xb5\x2f\xfd rest")
    out: list[Any] = []
    trees = MockTrees(card.node, card.disk)
    trees.submit_unpack([digest], "t", card.kernel.now_ns + SECOND, out.append)
    card.kernel.run_for(SECOND)
    assert isinstance(out[0], Unavailable)
    assert "zstd" in str(out[0])


# --- the tree ---

PATHS = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map("/".join)


@given(st.lists(st.tuples(PATHS, st.sampled_from(["file", "link", "dir", "remove"]), st.binary())))
def test_the_size_of_a_tree_is_the_sum_of_its_files(
    steps: list[tuple[str, str, bytes]],
) -> None:
    tree = MemoryTree()
    for path, what, data in steps:
        try:
            if what == "remove":
                tree.remove(path)
            elif what == "dir":
                tree.directory(path)
            else:
                tree.put(path, File(data) if what == "file" else Link("x"))
        except HalError:
            continue
    total = sum(len(entry.data) for _, entry in tree.walk("") if isinstance(entry, File))
    assert tree.used_bytes == total
    paths = [path for path, _ in tree.walk("")]
    assert paths == sorted(paths)
    assert all(tree.find(path) is entry for path, entry in tree.walk(""))


def test_a_tree_never_follows_its_links() -> None:
    tree = MemoryTree()
    tree.put("door", Link(".."))
    with pytest.raises(Unavailable):
        tree.put("door/x", File(b"1"))
    assert tree.find("door/x") is None
    assert isinstance(tree.find(""), Dir)
