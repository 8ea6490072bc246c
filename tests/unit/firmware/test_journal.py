"""firmware.journal over a store in memory that answers when the test says so."""

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware.journal import (
    MAX_BATCH_CHANGES,
    MAX_IN_FLIGHT,
    MAX_VALUE_BYTES,
    Change,
    Journal,
    JournalError,
    Kind,
    decode,
    encode,
)
from hal.errors import HalError, StoreFailed, StoreFull
from hal.ports import Done, JournalRecord


class SlowStore:
    """Keeps batches until `answer`."""

    def __init__(self, records: Sequence[JournalRecord] = ()) -> None:
        self.disk = {(r.kind, r.key): r.value for r in records}
        self.waiting: list[tuple[Sequence[JournalRecord], Done[None]]] = []
        self.closed = False

    def load(self) -> Sequence[JournalRecord]:
        return [
            JournalRecord(kind=kind, key=key, value=value)
            for (kind, key), value in sorted(self.disk.items())
        ]

    def submit(self, batch: Sequence[JournalRecord], done: Done[None]) -> None:
        self.waiting.append((batch, done))

    def answer(self, error: HalError | None = None) -> None:
        batch, done = self.waiting.pop(0)
        if error is None:
            for record in batch:
                if record.value is None:
                    self.disk.pop((record.kind, record.key), None)
                else:
                    self.disk[record.kind, record.key] = record.value
        done(error)

    def close(self) -> None:
        self.closed = True


def put(key: str, cnm: str = "cnm0", generation: int = 1) -> Change:
    return Change(kind=Kind.ASSIGNMENT, key=key, value={"instance": cnm, "index": generation})


def test_a_decision_is_seen_only_when_the_store_has_acknowledged_it() -> None:
    store = SlowStore()
    journal, heard = Journal(store), []
    journal.commit([put("a/b/0")], heard.append)
    assert journal.get(Kind.ASSIGNMENT, "a/b/0") is None
    assert heard == []
    assert journal.in_flight == 1
    store.answer()
    assert heard == [None]
    assert journal.get(Kind.ASSIGNMENT, "a/b/0") == {"v": 1, "instance": "cnm0", "index": 1}
    assert (journal.in_flight, journal.commits) == (0, 1)


def test_batches_take_effect_in_the_order_they_were_given() -> None:
    store = SlowStore()
    journal = Journal(store)
    for generation in (1, 2, 3):
        journal.commit([put("i", generation=generation)], lambda _e: None)
    journal.commit([Change(kind=Kind.ASSIGNMENT, key="i", value=None)], lambda _e: None)
    seen = []
    while store.waiting:
        store.answer()
        seen.append((journal.get(Kind.ASSIGNMENT, "i") or {}).get("index"))
    assert seen == [1, 2, 3, None]


def test_a_refused_batch_changes_nothing_and_says_so() -> None:
    store = SlowStore()
    journal, heard = Journal(store), []
    journal.commit([put("i"), put("j")], heard.append)
    store.answer(StoreFull("no space"))
    assert isinstance(heard[0], JournalError)
    assert heard[0].code == "store"
    assert isinstance(heard[0].__cause__, StoreFull)
    assert dict(journal.items(Kind.ASSIGNMENT)) == {}
    journal.commit([put("i")], heard.append)  # full is not broken
    store.answer()
    assert heard[1] is None


def test_after_a_failed_store_nothing_more_is_taken() -> None:
    store = SlowStore()
    journal, heard = Journal(store), []
    journal.commit([put("i")], heard.append)
    store.answer(StoreFailed("fsync: EIO"))
    journal.commit([put("j")], heard.append)
    assert store.waiting == []
    assert [e.code for e in heard if e] == ["store", "failed"]
    assert journal.failed == "fsync: EIO"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (Change(kind=Kind.ASSIGNMENT, key="i", value={"instance": "c"}), "bad_value"),
        (
            Change(kind=Kind.ASSIGNMENT, key="i", value={"instance": "c", "index": True}),
            "bad_value",
        ),
        (Change(kind=Kind.CNM, key="i", value={"x": float("nan")}), "bad_value"),
        (Change(kind=Kind.CNM, key="i", value={"x": {1, 2}}), "bad_value"),
        (Change(kind=Kind.CNM, key="", value={}), "too_large"),
        (Change(kind=Kind.CNM, key="k" * 513, value={}), "too_large"),
        (Change(kind=Kind.CNM, key="i", value={"x": "y" * MAX_VALUE_BYTES}), "too_large"),
    ],
)
def test_a_bad_change_is_refused_before_the_store_sees_any_of_the_batch(
    change: Change, code: str
) -> None:
    store = SlowStore()
    journal, heard = Journal(store), []
    journal.commit([put("good"), change], heard.append)
    assert store.waiting == []
    assert heard[0].code == code


def test_the_number_and_size_of_waiting_batches_have_a_bound() -> None:
    store = SlowStore()
    journal, heard = Journal(store), []
    journal.commit([], heard.append)
    journal.commit([put(str(n)) for n in range(MAX_BATCH_CHANGES + 1)], heard.append)
    assert [e.code for e in heard] == ["too_large", "too_large"]
    for n in range(MAX_IN_FLIGHT):
        journal.commit([put(str(n))], lambda _e: None)
    journal.commit([put("one too many")], heard.append)
    assert heard[2].code == "busy"


def test_the_caller_may_change_its_own_dict_afterwards() -> None:
    store = SlowStore()
    journal = Journal(store)
    value: dict[str, object] = {"labels": ["a"]}
    journal.commit([Change(kind=Kind.CNM, key="c", value=value)], lambda _e: None)
    value["labels"] = ["b"]
    store.answer()
    assert journal.get(Kind.CNM, "c") == {"v": 1, "labels": ["a"]}


def test_unknown_keys_and_newer_writers_are_read_and_kept() -> None:
    data = json.dumps({"v": 7, "needs": 1, "instance": "c", "index": 4, "colour": "red"}).encode()
    journal = Journal(
        SlowStore(
            [
                JournalRecord(kind="assignment", key="i", value=data),
                JournalRecord(kind="kind_of_version_9", key="x", value=b"\xff"),
            ]
        )
    )
    journal.load()
    record = journal.get(Kind.ASSIGNMENT, "i")
    assert record is not None
    assert record["colour"] == "red"
    assert json.loads(encode(Kind.ASSIGNMENT, "i", record))["v"] == 7


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "corrupt"),
        (b"\x00\xff", "corrupt"),
        (b"[]", "corrupt"),
        (b'{"instance":"c","index":1}', "corrupt"),
        (b'{"v":1,"instance":"c","index":"1"}', "corrupt"),
        (b'{"v":2,"needs":2,"instance":"c","index":1}', "too_new"),
    ],
)
def test_a_bad_record_stops_the_load_and_is_named(data: bytes, code: str) -> None:
    good = encode(Kind.CNM, "c", {})
    journal = Journal(
        SlowStore(
            [
                JournalRecord(kind="cnm", key="c", value=good),
                JournalRecord(kind="assignment", key="shop/db/0", value=data),
            ]
        )
    )
    with pytest.raises(JournalError, match="assignment/shop/db/0") as caught:
        journal.load()
    assert (caught.value.code, caught.value.kind) == (code, "assignment")
    assert dict(journal.items(Kind.CNM)) == {}


def test_the_epoch_grows_at_every_start_and_the_identity_stays() -> None:
    store = SlowStore()
    for start in (1, 2, 3):
        journal = Journal(store)
        journal.load()
        assert journal.epoch == start - 1
        journal.begin_epoch(f"{start:032x}", lambda _e: None)
        store.answer()
        assert journal.epoch == start
        assert journal.card_uuid == f"{1:032x}"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=6).filter(lambda k: k not in ("v", "needs", "!crc")),
        json_values,
    )
)
def test_what_is_written_is_read_back_and_is_canonical(value: dict[str, object]) -> None:
    data = encode(Kind.CNM, "c", value)
    back = decode(Kind.CNM, "c", data)
    assert {k: v for k, v in back.items() if k != "v"} == value
    assert encode(Kind.CNM, "c", dict(reversed(list(value.items())))) == data


@given(
    st.dictionaries(st.text(min_size=1, max_size=6), json_values, max_size=4),
    st.integers(min_value=0),
)
def test_no_bit_of_a_record_turns_over_unnoticed(value: dict[str, object], at: int) -> None:
    data = bytearray(encode(Kind.CNM, "c", {**value, "v": 1, "needs": 1}))
    data[at // 8 % len(data)] ^= 1 << at % 8
    with pytest.raises(JournalError) as caught:
        decode(Kind.CNM, "c", bytes(data))
    assert caught.value.code == "corrupt"


def test_a_record_is_none_of_another_key_or_kind() -> None:
    data = encode(Kind.CNM, "c", {})
    assert decode(Kind.CNM, "c", data) == {"v": 1}
    for kind, key in ((Kind.CNM, "d"), (Kind.VOLUME, "c")):
        with pytest.raises(JournalError, match="checksum"):
            decode(kind, key, data)


def test_a_seal_that_an_older_version_has_carried_along_is_dropped() -> None:
    sealed = json.loads(encode(Kind.CNM, "c", {"state": "LEASED"}))
    carried = json.dumps({**sealed, "state": "FENCED"}, sort_keys=True, separators=(",", ":"))
    found = decode(Kind.CNM, "c", carried.encode())
    assert found == {"v": 1, "state": "FENCED"}
    assert decode(Kind.CNM, "c", encode(Kind.CNM, "c", found)) == found


@given(st.binary(max_size=40))
def test_any_bytes_decode_or_raise_a_journal_error(data: bytes) -> None:
    try:
        value = decode(Kind.ASSIGNMENT, "i", data)
    except JournalError:
        return
    assert value["v"]
