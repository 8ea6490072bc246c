"""The journal's bytes on a simulated disk: torn, lost and reordered sectors, and what is read."""

import random

from hypothesis import given
from hypothesis import strategies as st

from firmware.loop import MS, Loop
from hal.errors import HalError, StoreFailed, StoreFull
from hal.mock.disk import SYNC_NS, Disk
from hal.mock.journal import MockJournal
from hal.mock.kernel import VirtualKernel
from hal.mock.log_file import SECTOR_BYTES, after_cut, read_log, write_log
from hal.ports import JournalRecord

RECORDS = st.builds(
    JournalRecord,
    kind=st.text(max_size=8),
    key=st.text(max_size=20),
    value=st.none() | st.binary(max_size=1500),
)
BATCHES = st.lists(st.lists(RECORDS, min_size=1, max_size=4).map(tuple), max_size=6)
SALTS = st.integers(0, 2**32 - 1)


@given(BATCHES, SALTS)
def test_what_was_written_whole_is_read_whole(batches, salt) -> None:
    assert read_log(write_log(batches, salt), salt) == batches


@given(BATCHES, SALTS, st.integers(0, SECTOR_BYTES - 1), st.integers(0, 10_000))
def test_after_a_cut_the_batches_before_the_first_missing_sector_are_read(
    batches, salt, start, seed
) -> None:
    data = write_log(batches, salt)
    left = after_cut(data, start, random.Random(seed))
    assert len(left) == len(data)
    good = next((at for at in range(len(data)) if left[at] != data[at]), len(data))
    whole = [n for n in range(len(batches) + 1) if len(write_log(batches[:n], salt)) <= good]
    assert read_log(left, salt) == batches[: whole[-1]]


@given(BATCHES.filter(bool), SALTS, st.data())
def test_a_bit_that_turned_over_ends_the_reading_there(batches, salt, data) -> None:
    log = bytearray(write_log(batches, salt))
    at = data.draw(st.integers(0, len(log) - 1))
    log[at] ^= 1 << data.draw(st.integers(0, 7))
    found = read_log(bytes(log), salt)
    assert found == batches[: len(found)]
    assert len(write_log(batches[: len(found)], salt)) <= at


def test_what_an_older_run_of_the_log_left_behind_is_never_read() -> None:
    old = [(JournalRecord(kind="k", key="old", value=b"1"),)]
    assert read_log(write_log(old, salt=1), salt=2) == []


def test_a_cut_tears_loses_and_reorders() -> None:
    data = bytes(range(1, 251)) * 20
    kinds = set()
    for seed in range(200):
        left = after_cut(data, 0, random.Random(seed))
        there = tuple(
            left[at : at + SECTOR_BYTES] == data[at : at + SECTOR_BYTES]
            for at in range(0, len(data), SECTOR_BYTES)
        )
        kinds.add(
            "none"
            if not any(there)
            else "all"
            if all(there)
            else "torn"
            if list(there) == sorted(there, reverse=True)
            else "reordered"
            if list(there) == sorted(there)
            else "holes"
        )
    assert kinds == {"none", "all", "torn", "reordered", "holes"}


# --- the store on such a disk ---


def put(key: str, value: bytes | None = b"1") -> JournalRecord:
    return JournalRecord(kind="k", key=key, value=value)


class Card:
    def __init__(self, seed: int = 1) -> None:
        self.kernel = VirtualKernel(seed)
        self.node = self.kernel.node("card")
        self.disk = Disk(self.kernel, "disk")
        self.answers: list[HalError | None] = []
        self.open()

    def open(self) -> None:
        self.kernel.attach("card", Loop(self.node.clock))
        self.journal = MockJournal(self.node, self.disk)

    def submit(self, *keys: str) -> None:
        self.journal.submit([put(key) for key in keys], self.answers.append)

    def found(self) -> set[str]:
        return {record.key for record in self.journal.load()}


def killed_while_writing(*, cut: bool, seed: int) -> Card:
    card = Card(seed)
    card.submit("safe")
    card.kernel.run_for(SYNC_NS)
    card.submit("a")
    card.kernel.run_for(SYNC_NS // 2)
    card.kernel.kill("card")
    if cut:
        card.disk.power_cut()
    card.open()
    return card


def test_what_a_killed_writer_had_written_stays_for_as_long_as_the_power_does() -> None:
    found = set()
    for seed in range(40):
        card = killed_while_writing(cut=False, seed=seed)
        written = len(card.disk.journal.unsynced)
        assert card.found() == ({"safe", "a"} if written else {"safe"})
        assert not card.disk.journal.unsynced, "opening has made it safe"
        card.disk.power_cut()
        assert ("k", "a") in card.disk.journal.durable or not written
        found.add(written)
    assert found == {0, 1}


def test_a_cut_after_the_kill_may_take_it_and_never_takes_what_was_acknowledged() -> None:
    found = set()
    for seed in range(80):
        card = killed_while_writing(cut=True, seed=seed)
        keys = card.found()
        assert "safe" in keys
        found.add("a" in keys)
    assert found == {True, False}


def test_what_waits_for_its_turn_is_gone_with_its_process() -> None:
    for seed in range(40):
        card = Card(seed)
        card.submit("a")
        card.submit("waits")
        card.kernel.run_for(SYNC_NS // 2)
        card.kernel.kill("card")
        card.open()
        assert "waits" not in card.found()


def test_a_failed_sync_leaves_what_it_wrote_in_doubt_and_is_not_tried_again() -> None:
    card = Card()
    card.disk.fail_sync = True
    card.submit("a")
    card.kernel.run_for(SYNC_NS)
    card.submit("b")
    card.kernel.run_for(10 * MS)
    assert [type(answer) for answer in card.answers] == [StoreFailed] * 2
    assert card.disk.journal.durable == {}
    assert len(card.disk.journal.unsynced) == 1


def test_an_opening_that_can_not_make_safe_what_it_found_is_refused() -> None:
    card = killed_while_writing(cut=False, seed=next(s for s in range(40) if wrote(s)))
    card.disk.fail_sync = True
    try:
        card.journal.load()
    except StoreFailed:
        assert ("k", "a") not in card.disk.journal.durable
    else:
        raise AssertionError("it was believed")


def wrote(seed: int) -> bool:
    return bool(killed_while_writing(cut=False, seed=seed).disk.journal.unsynced)


def test_an_error_on_write_fails_the_store_for_good() -> None:
    card = Card()
    card.disk.fail_writes = True
    card.submit("a")
    card.disk.fail_writes = False
    card.submit("b")
    card.kernel.run_for(10 * MS)
    assert [type(answer) for answer in card.answers] == [StoreFailed] * 2
    assert card.disk.journal.durable == {}


def test_a_disk_that_fills_up_during_a_commit_takes_nothing_of_it_and_goes_on_later() -> None:
    card = Card()
    card.submit("a")
    card.disk.full = True
    card.kernel.run_for(10 * MS)
    card.disk.full = False
    card.submit("b")
    card.kernel.run_for(10 * MS)
    assert isinstance(card.answers[0], StoreFull)
    assert card.answers[1] is None
    assert card.found() == {"b"}


def test_a_closed_store_has_made_durable_what_waited() -> None:
    card = Card()
    card.submit("a")
    card.submit("b")
    card.journal.close()
    assert set(card.disk.journal.durable) == {("k", "a"), ("k", "b")}


def test_a_bit_that_turns_over_in_a_record_is_silent_and_can_be_turned_back() -> None:
    card = Card()
    card.submit("a")
    card.kernel.run_for(10 * MS)
    restore = card.disk.rot_record("k", "a")
    assert [record.value for record in card.journal.load()] == [b"0"]
    assert set(card.disk.journal.rotten) == {("k", "a")}
    restore()
    restore()
    assert [record.value for record in card.journal.load()] == [b"1"]
    assert not card.disk.journal.rotten


def test_a_damaged_record_that_is_written_anew_is_whole_again() -> None:
    card = Card()
    card.submit("a")
    card.kernel.run_for(10 * MS)
    restore = card.disk.rot_record("k", "a")
    card.submit("a")
    card.kernel.run_for(10 * MS)
    restore()
    assert [record.value for record in card.journal.load()] == [b"1"]
    assert not card.disk.journal.rotten
