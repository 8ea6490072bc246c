"""The journal's records after damage: JSON, and typed decisions."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from firmware.decisions import Decisions
from firmware.journal import Journal, JournalError, Kind, decode, encode
from firmware.profile import Profile
from firmware.profile_histogram import BINS
from firmware.profiler import Profiler
from hal.ports import JournalRecord
from tests.fuzz.reader import Reader, all_keys, edited, json_text
from tests.fuzz.target import Check, Target
from tests.fuzz.targets.documents import IMAGE, SMALL

PLACE = {"cnm": "cnm0", "boot_id": "62" * 16, "generation": 7}
RECORDS: tuple[tuple[Kind, str, dict[str, Any]], ...] = (
    (Kind.META, "epoch", {"v": 1, "value": 3}),
    (Kind.META, "generation", {"v": 1, "value": 9}),
    (Kind.META, "card_uuid", {"v": 1, "value": "ab" * 16}),
    (Kind.WORKLOAD, "s", {"v": 1, "needs": 1, "workload": SMALL, "deleted": False}),
    (
        Kind.ASSIGNMENT,
        "s/a/0",
        {
            "v": 1,
            "instance": "s/a/0",
            "workload": "s",
            "component": "a",
            "index": 0,
            "place": PLACE,
            "target": None,
            "why": "",
            "restarts": 0,
            "ending": {"failed": True, "status": 1, "text": ""},
            "volumes": ["data"],
            "flushed": 0,
        },
    ),
    (
        Kind.CNM,
        "cnm0",
        {"v": 1, "uuid": "cd" * 16, "boot_id": "62" * 16, "state": "LEASED", "draining": False},
    ),
    (
        Kind.VOLUME,
        "data",
        {
            "v": 1,
            "manifest": "ee" * 32,
            "generation": 7,
            "flushed_wall_ms": None,
            "bytes": 1,
            "files": 0,
        },
    ),
    (Kind.IMAGE, "nginx:1", {"v": 1, "manifest": IMAGE}),
    (Kind.DELETION, "x", {"v": 1}),
    (
        Kind.PROFILE,
        "ab12 web",
        {
            "v": 1,
            "image": "nginx:1",
            "name": "web",
            "first_ns": 1,
            "seen_ns": 9_000_000_000,
            "covered_ns": 5_000_000_000,
            "windows": 3,
            "floor_bytes": 1 << 20,
            "ooms": 1,
            "cpu_milli": {"epoch": 0, "first": 36, "highest": 100, "weights": [256, 0, 3]},
            "memory_bytes": {"epoch": 0, "first": 8, "highest": 8, "weights": [256]},
        },
    ),
)
WORDS = all_keys(*(value for _, _, value in RECORDS))


class Disk:
    """A store that holds these records."""

    def __init__(self, records: Iterable[tuple[Kind, str, bytes]]) -> None:
        self._records = [JournalRecord(kind=k, key=key, value=v) for k, key, v in records]

    def load(self) -> list[JournalRecord]:
        return self._records

    def submit(self, *_args: object) -> None:
        raise AssertionError("a load writes nothing")

    def close(self) -> None: ...


def record(_scratch: Path) -> Check:
    """One record's bytes; the kind is in the first of them."""
    bases = [value for _, _, value in RECORDS]

    def check(data: bytes) -> bool:
        kind, key, _ = RECORDS[data[0] % len(RECORDS) if data else 0]
        raw = json_text(data, bases, WORDS)
        try:
            value = decode(kind, key, raw)
        except JournalError as exc:
            assert exc.code in ("corrupt", "too_new")
            return False
        try:
            wire = encode(kind, key, value)
        except JournalError as exc:
            assert exc.code == "bad_value", "NaN is read and never written"
            return False
        assert decode(kind, key, wire) == {"v": 1, **value}
        return True

    return check


def decisions(_scratch: Path) -> Check:
    """A whole journal of which some records were damaged, and still are JSON."""

    def check(data: bytes) -> bool:
        reader, records = Reader(data), []
        hurt = reader.byte() % len(RECORDS)
        for index, (kind, key, value) in enumerate(RECORDS):
            if index == hurt:
                if reader.byte() == 0:
                    key = f"{key}x"
                value = edited(value, Reader(reader.rest()), WORDS)
            records.append((kind, key, json.dumps(value).encode(errors="surrogatepass")))
        journal = Journal(Disk(records))
        cards = Decisions(journal, None, None)  # type: ignore[arg-type]
        try:
            journal.load()
            cards.load()
        except JournalError as exc:
            assert exc.code in ("corrupt", "too_new")
            assert exc.kind == RECORDS[hurt][0], "the record that is damaged is named"
            return False
        assert cards.next_generation() > 0
        for assignment in cards.assignments.values():
            again = type(assignment).from_json(assignment.to_json())
            assert again == assignment
        for decision in cards.workloads.values():
            encode(Kind.WORKLOAD, "s", decision.to_json())
        for kind in Kind:
            for name, value in journal.items(kind).items():
                if kind is Kind.CNM:
                    bytes.fromhex(str(value.get("boot_id", "")))
                assert kind is not Kind.PROFILE or Profile.from_json(value) or hurt == 9, name
        return True

    return check


def profile(_scratch: Path) -> Check:
    """A profile's record: whatever it says, what is made of it keeps its bounds."""
    base = RECORDS[-1][2]

    def check(data: bytes) -> bool:
        try:
            record = json.loads(json_text(data, [base], WORDS))
        except (ValueError, RecursionError):
            return False
        if not isinstance(record, dict):
            return False
        found = Profile.from_json(record)
        if found is None:
            return False
        for index in range(len(found.usage)):
            assert found.percentile(index, 50) <= found.percentile(index, 90) <= found.peak(index)
            assert len(found.usage[index].weights) <= BINS
            upper = found.upper(index)
            assert upper is None or 0 <= found.lower(index) <= upper
        table = Profiler()
        table.load({"x": record}, 0)
        written = found.to_json()
        again = Profile.from_json(json.loads(json.dumps(written)))
        assert again is not None
        assert again.to_json() == written
        encode(Kind.PROFILE, "x", written)
        return True

    return check


def _seeds() -> Iterable[bytes]:
    for index, (_, _, value) in enumerate(RECORDS):
        yield json.dumps(value).encode()
        yield bytes([index, 1])
        for place in range(12):
            yield bytes([index, place, 5, 1, place])
            yield bytes([index, 1, place, 5, 1, place])
            yield bytes([index, 1, place, place % 3, 4, 5, place])


TARGETS = (
    Target(
        name="journal_record",
        text="one record of the journal",
        make=record,
        seeds=_seeds,
        words=(*(json.dumps(word).encode() for word in WORDS), b'"v":1', b'"needs":'),
        max_bytes=1024,
    ),
    Target(
        name="decisions",
        text="a journal with a damaged record, read as decisions",
        make=decisions,
        seeds=_seeds,
        max_bytes=256,
    ),
    Target(
        name="profile_record",
        text="a profile's record of the journal, read as far as it is good",
        make=profile,
        seeds=_seeds,
        words=(*(json.dumps(word).encode() for word in WORDS), b'"weights":[1,2]'),
        max_bytes=1024,
    ),
)
