"""The trace ring and the dumps of the last crashes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware.crash_store import DUMP_LIMIT_BYTES, DUMPS_LIMIT, CrashStore
from firmware.flight_recorder import (
    HEAD,
    LEAST_BYTES,
    RING_BYTES,
    TEXT_LIMIT_BYTES,
    FlightRecorder,
    Recording,
    Trace,
    read_ring,
)
from hal.errors import Refused
from hal.mock.disk import Disk
from hal.mock.files import MockFiles
from hal.mock.kernel import VirtualKernel
from hal.mock.trace_memory import MockTraceMemory

SIZE = LEAST_BYTES


def recorder(kept: bytearray) -> FlightRecorder:
    made = FlightRecorder(MockTraceMemory(kept), lambda: 7_000_000)
    made.begin(pid=42, wall_ns=1_000, text="started")
    return made


def found(kept: bytearray) -> Recording:
    read = read_ring(bytes(kept))
    assert read is not None
    return read


def test_entries_are_read_back_in_order_with_all_that_they_say() -> None:
    kept = bytearray(SIZE)
    writer = recorder(kept)
    writer.note(Trace.EVENT, "cnm.leased cnm0 grüße")
    writer.note(Trace.COMMAND, "start shop/web/0 g3 on cnm0")
    read = found(kept)
    assert (read.pid, read.started_wall_ns, read.running) == (42, 1_000, True)
    assert [entry.text for entry in read.entries] == [
        "started",
        "cnm.leased cnm0 grüße",
        "start shop/web/0 g3 on cnm0",
    ]
    assert read.entries[1].to_json() == {
        "seq": 2,
        "mono_ms": 7,
        "kind": "event",
        "text": "cnm.leased cnm0 grüße",
    }


def test_who_ended_well_says_so_and_who_did_not_has_left_its_last_words() -> None:
    kept = bytearray(SIZE)
    recorder(kept).end("ends with status 0")
    assert not found(kept).running
    assert found(kept).entries[-1].text == "ends with status 0"
    recorder(kept)
    assert found(kept).running
    assert [entry.text for entry in found(kept).entries] == ["started"], "a life of its own"


def test_a_full_ring_keeps_the_newest_without_a_gap() -> None:
    kept = bytearray(SIZE)
    writer = recorder(kept)
    for number in range(3_000):
        writer.note(Trace.EVENT, f"event {number} " + "x" * (number % 97))
    entries = found(kept).entries
    assert entries[-1].text.startswith("event 2999 ")
    numbers = [entry.number for entry in entries]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert len(entries) > 100


@given(
    st.lists(st.text(max_size=200), max_size=300),
    st.integers(HEAD.size, SIZE - 1),
    st.integers(1, 600),
)
@settings(max_examples=150, deadline=None)
def test_whatever_is_cut_the_rest_is_read_and_nothing_false(
    texts: list[str], at: int, count: int
) -> None:
    kept = bytearray(SIZE)
    writer = recorder(kept)
    for text in texts:
        writer.note(Trace.COMMIT, text)
    whole = {entry.number: entry for entry in found(kept).entries}
    MockTraceMemory(kept).tear(at, count)
    for entry in found(kept).entries:
        assert whole[entry.number] == entry


@given(st.binary(max_size=400), st.integers(0, SIZE - 400))
@settings(max_examples=100, deadline=None)
def test_no_bytes_raise_anything(noise: bytes, at: int) -> None:
    kept = bytearray(SIZE)
    recorder(kept)
    kept[at : at + len(noise)] = noise
    read_ring(bytes(kept))
    read_ring(noise)


@pytest.mark.parametrize("cut", range(0, 64, 7))
def test_a_kill_in_the_middle_of_an_entry_costs_that_entry(cut: int) -> None:
    kept = bytearray(SIZE)
    writer = recorder(kept)
    writer.note(Trace.EVENT, "before")
    before = bytes(kept)
    writer.note(Trace.EVENT, "the one that is cut, and is long enough to be")
    torn = bytearray(before)
    start = next(index for index in range(SIZE) if before[index] != kept[index])
    torn[start : start + cut] = kept[start : start + cut]
    assert [entry.text for entry in found(torn).entries] == ["started", "before"]


def test_a_text_is_cut_to_its_limit_and_a_traceback_keeps_its_end() -> None:
    kept = bytearray(SIZE)
    writer = recorder(kept)
    writer.note(Trace.EVENT, "y" * 5_000)
    with pytest.raises(ValueError, match="on purpose") as caught:
        int("on purpose")
    assert writer.on_fault(caught.value) is False, "it ends the process as before"
    writer.note_fault(caught.value)
    entries = found(kept).entries
    assert len(entries[1].text) == TEXT_LIMIT_BYTES
    assert entries[2].kind == Trace.FAULT
    assert entries[2].text.endswith("base 10: 'on purpose'\n")
    assert len(entries) == 3, "one fault is noted once"


def test_a_memory_that_is_too_small_is_refused_and_a_strange_one_is_none_of_ours() -> None:
    with pytest.raises(Refused):
        FlightRecorder(MockTraceMemory(bytearray(100)), lambda: 0)
    assert read_ring(bytes(SIZE)) is None
    assert read_ring(b"") is None


# --- the dumps ---


def crashed(text: str) -> bytes:
    kept = bytearray(RING_BYTES)
    recorder(kept).note(Trace.EVENT, text)
    return bytes(kept)


@pytest.fixture
def files() -> MockFiles:
    return MockFiles(Disk(VirtualKernel(1), "disk"), "state")


def test_the_last_crash_is_found_again_by_the_next_daemon(files: MockFiles) -> None:
    store = CrashStore(files)
    assert store.last() is None
    taken = store.take(crashed("the end"), wall_ns=5_000, reason="signal 9", stack="File x")
    assert taken is not None
    assert store.last() == taken
    again = CrashStore(files).last()
    assert again == taken
    document = taken.to_json()
    assert (document["pid"], document["reason"], document["stack"]) == (42, "signal 9", "File x")
    assert document["entries"][-1]["text"] == "the end"


def test_who_ended_well_is_no_crash(files: MockFiles) -> None:
    kept = bytearray(RING_BYTES)
    recorder(kept).end("good")
    store = CrashStore(files)
    assert store.take(bytes(kept), wall_ns=1, reason="", stack="") is None
    assert store.take(bytes(RING_BYTES), wall_ns=1, reason="", stack="") is None, "the first start"
    assert store.count() == 0


def test_dumps_are_few_and_small(files: MockFiles) -> None:
    store = CrashStore(files)
    for number in range(DUMPS_LIMIT + 4):
        store.take(
            crashed(f"life {number}"),
            wall_ns=1_000 + number,
            reason="r" * 5_000,
            stack="s" * 90_000,
        )
    assert store.error == ""
    assert store.count() == DUMPS_LIMIT
    sizes = [files.size_bytes(name) or 0 for name in files.names("")]
    assert max(sizes) <= DUMP_LIMIT_BYTES
    assert sum(sizes) <= 1_000_000
    last = CrashStore(files).last()
    assert last is not None
    assert last.recording.entries[-1].text == f"life {DUMPS_LIMIT + 3}"


def test_a_full_disk_costs_the_file_but_not_what_is_known(files: MockFiles) -> None:
    store = CrashStore(MockFiles(Disk(VirtualKernel(1), "small", capacity_bytes=4_096), "state"))
    taken = store.take(crashed("the end"), wall_ns=1, reason="", stack="")
    assert taken is not None
    assert store.error
    assert store.last() == taken


def test_a_dump_that_was_damaged_is_passed_over(files: MockFiles) -> None:
    store = CrashStore(files)
    store.take(crashed("good"), wall_ns=1, reason="", stack="")
    files.write("crash-00000000000000000009", b"not a dump")
    found_again = CrashStore(files).last()
    assert found_again is not None
    assert found_again.recording.entries[-1].text == "good"


@pytest.mark.parametrize("when", ["Infinity", "1e400", "-1", str(1 << 70), '"5"', "1.5", "null"])
def test_a_dump_of_a_time_that_cannot_be_is_passed_over(files: MockFiles, when: str) -> None:
    head = f'{{"found_wall_ns": {when}, "reason": "", "stack": ""}}\n'.encode()
    files.write("crash-00000000000000000009", head + crashed("strange"))
    assert CrashStore(files).last() is None
