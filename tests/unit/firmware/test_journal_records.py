"""The journal's records, read to the last field: what is damaged is named, nothing is guessed."""

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware.assignments import Assignment, Ending, Eviction, Place
from firmware.decisions import Decisions, WorkloadDecision
from firmware.journal import Journal, JournalError, Kind, encode
from firmware.workload import Workload
from hal.ports import JournalRecord

WORKLOAD = Workload.from_json(
    {"schema": "apf-workload/1", "name": "shop", "components": [{"name": "a", "image": "b"}]}
)
PLACE = Place(cnm="cnm0", boot_id=b"b" * 16, generation=7)
RECORDS: dict[tuple[Kind, str], dict[str, Any]] = {
    (Kind.META, "epoch"): {"value": 3},
    (Kind.META, "generation"): {"value": 9},
    (Kind.META, "card_uuid"): {"value": "ab" * 16},
    (Kind.WORKLOAD, "shop"): WorkloadDecision(workload=WORKLOAD).to_json(),
    (Kind.ASSIGNMENT, "shop/a/0"): Assignment(
        instance="shop/a/0",
        workload="shop",
        component="a",
        index=0,
        place=PLACE,
        target=Place(cnm="cnm1", boot_id=b"c" * 16, generation=12),
        ending=Ending(failed=True, status=1, text="gone"),
        volumes=("data",),
    ).to_json(),
    (Kind.ASSIGNMENT, "shop/a/1"): Assignment(
        instance="shop/a/1",
        workload="shop",
        component="a",
        index=1,
        place=PLACE,
        evict=Eviction(by="shop/a/0", cnm="cnm0", generation=7, at_ms=5),
    ).to_json(),
    (Kind.CNM, "cnm0"): {"uuid": "cd" * 16, "boot_id": "62" * 16, "state": "LEASED"},
    (Kind.CNM, "cnm1"): {"draining": True},
    (Kind.VOLUME, "data"): {
        "manifest": "ee" * 32,
        "generation": 7,
        "flushed_wall_ms": None,
        "bytes": 2**64 - 1,
        "files": 0,
    },
    (Kind.IMAGE, "b:latest"): {
        "manifest": {
            "schema": "apf-image/1",
            "ref": "b",
            "arch": "amd64",
            "config": {},
            "layers": [{"digest": "ff" * 32, "size_bytes": 1}],
        }
    },
}


class Store:
    """A journal's store that holds what it is given."""

    def __init__(self, records: dict[tuple[Kind, str], dict[str, Any]]) -> None:
        self._records = [
            JournalRecord(kind=kind, key=key, value=json.dumps({"v": 1, **value}).encode())
            for (kind, key), value in records.items()
        ]

    def load(self) -> list[JournalRecord]:
        return self._records

    def submit(self, *_args: object) -> None:
        raise AssertionError

    def close(self) -> None: ...


def load(records: dict[tuple[Kind, str], dict[str, Any]]) -> Decisions:
    journal = Journal(Store(records))
    journal.load()
    decisions = Decisions(journal, None, None)  # type: ignore[arg-type]
    decisions.load()
    return decisions


def test_what_was_written_is_read() -> None:
    found = load(RECORDS)
    assert found.workloads["shop"].workload == WORKLOAD
    assert found.assignments["shop/a/0"].place == PLACE
    assert found.concerned("cnm1") == ["shop/a/0"]
    assert found.next_generation() == 13, "above every place, also a target's"


def test_a_record_from_before_attempts_were_counted_has_spent_all_its_restarts() -> None:
    records = copy.deepcopy(RECORDS)
    old = records[Kind.ASSIGNMENT, "shop/a/0"]
    old["restarts"] = 3
    del old["attempts"]
    assert load(records).assignments["shop/a/0"].attempts == 3
    assert load(RECORDS).assignments["shop/a/0"].attempts == 0


@pytest.mark.parametrize(
    ("kind", "key", "field", "value"),
    [
        (Kind.META, "epoch", "value", "3"),
        (Kind.META, "epoch", "value", -1),
        (Kind.META, "generation", "value", 2**64),
        (Kind.META, "card_uuid", "value", "ab"),
        (Kind.META, "card_uuid", "value", 5),
        (Kind.WORKLOAD, "shop", "workload", {"schema": "other"}),
        (Kind.ASSIGNMENT, "shop/a/0", "why", None),
        (Kind.ASSIGNMENT, "shop/a/0", "index", -1),
        (Kind.ASSIGNMENT, "shop/a/0", "attempts", -1),
        (Kind.ASSIGNMENT, "shop/a/0", "instance", "shop/b/0"),
        (Kind.ASSIGNMENT, "shop/a/0", "place", 7),
        (Kind.ASSIGNMENT, "shop/a/0", "place", {"cnm": "cnm0", "boot_id": "zz", "generation": 1}),
        (Kind.ASSIGNMENT, "shop/a/0", "place", {"cnm": "cnm0", "boot_id": "ab", "generation": 1}),
        (Kind.ASSIGNMENT, "shop/a/0", "volumes", [1]),
        (Kind.ASSIGNMENT, "shop/a/0", "ending", {"failed": 1}),
        (Kind.ASSIGNMENT, "shop/a/1", "evict", {"by": "shop/a/0"}),
        (Kind.ASSIGNMENT, "shop/a/1", "evict", 7),
        (Kind.CNM, "cnm0", "boot_id", "xyz"),
        (Kind.CNM, "cnm0", "draining", "no"),
        (Kind.VOLUME, "data", "manifest", "ee"),
        (Kind.VOLUME, "data", "bytes", None),
        (Kind.IMAGE, "b:latest", "manifest", {"schema": "apf-image/1"}),
    ],
)
def test_a_damaged_field_stops_the_start_and_is_named(
    kind: Kind, key: str, field: str, value: object
) -> None:
    records = copy.deepcopy(RECORDS)
    records[kind, key][field] = value
    with pytest.raises(JournalError) as refused:
        load(records)
    assert (refused.value.code, refused.value.kind, refused.value.key) == ("corrupt", kind, key)


@given(st.sampled_from(sorted(RECORDS)), st.data())
def test_a_field_that_is_missing_is_a_default_or_is_named(
    at: tuple[Kind, str], data: st.DataObject
) -> None:
    records = copy.deepcopy(RECORDS)
    field = data.draw(st.sampled_from(sorted(records[at].keys() - {"v"})))
    del records[at][field]
    if at[0] is Kind.CNM or field in ("deleted", "evict", "attempts"):
        load(records)
        return
    with pytest.raises(JournalError) as refused:
        load(records)
    assert (refused.value.code, refused.value.key) == ("corrupt", at[1])


def test_keys_that_a_later_version_adds_are_left_alone() -> None:
    records = {at: {**value, "later": [1]} for at, value in RECORDS.items()}
    load(records)
    for (kind, key), value in records.items():
        encode(kind, key, value)
