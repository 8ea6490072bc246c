"""What a card of 1,000 modules must not do for each of them: shown by counting, never by time."""

from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from firmware import journal as journal_module
from firmware.assignments import Assignment, Place
from firmware.decisions import Decisions
from firmware.journal import Journal, Kind, encode
from firmware.link import Link
from firmware.placer import Placer
from firmware.profiler import Profiler
from firmware.reconciler import Reconciler
from hal.ports import READ_LIMIT_BYTES, Event, JournalRecord
from protocol.apf import CapabilitiesReply
from protocol.mctp.serial_frame import frame_serial
from tests.unit.firmware.fake_reactor import FakeReactor

MODULES = 50
BOOT_ID = b"b" * 16


def assignment(number: int) -> Assignment:
    place = Place(cnm=f"cnm{number}", boot_id=BOOT_ID, generation=number + 1)
    name = f"w{number}"
    return Assignment(instance=f"{name}/a/0", workload=name, component="a", index=0, place=place)


class Unscanned(dict[str, Assignment]):
    """Assignments that may be looked up, but not gone through."""

    def __iter__(self) -> Any:
        raise AssertionError("all assignments were gone through")

    values = items = keys = __iter__


class Store:
    """Each assignment once."""

    def __init__(self) -> None:
        kept = [assignment(number) for number in range(MODULES)]
        self.records = [
            JournalRecord(
                kind=Kind.ASSIGNMENT,
                key=item.instance,
                value=encode(Kind.ASSIGNMENT, item.instance, item.to_json()),
            )
            for item in kept
        ]

    def load(self) -> list[JournalRecord]:
        return self.records

    def submit(self, _batch: object, done: Any) -> None:
        done(None)

    def close(self) -> None: ...


def loaded() -> Decisions:
    journal = Journal(Store())
    journal.load()
    decisions = Decisions(journal, FakeReactor(), None)  # type: ignore[arg-type]
    decisions.load()
    return decisions


def test_a_start_decodes_each_record_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    real = journal_module.decode

    def counted(kind: Kind, key: str, data: bytes) -> dict[str, object]:
        calls.append(key)
        return real(kind, key, data)

    monkeypatch.setattr(journal_module, "decode", counted)
    decisions = loaded()
    assert len(decisions.assignments) == MODULES
    assert len(calls) == MODULES


def test_records_are_the_same_after_the_first_commit_as_before_it() -> None:
    journal = loaded().journal
    before = dict(journal.items(Kind.ASSIGNMENT))
    journal.begin_epoch("ab" * 16, lambda _error: None)
    after = journal.items(Kind.ASSIGNMENT)
    assert dict(after) == before
    assert len(after) == MODULES
    assert "w3/a/0" in after
    assert "w3/a/1" not in after
    assert journal.get(Kind.ASSIGNMENT, "w3/a/0") == before["w3/a/0"]
    assert journal.items(Kind.META)["epoch"]["value"] == 1


def test_a_module_that_comes_is_given_its_own_instances_without_a_look_at_all_others() -> None:
    decisions = loaded()
    decisions.assignments = Unscanned(decisions.assignments)
    synced: list[str] = []

    class Watched(Placer):
        def sync(self, assignment: Any, component: Any) -> None:
            synced.append(assignment.instance)

    placer = Watched(None, decisions, Profiler())  # type: ignore[arg-type]
    capabilities = CapabilitiesReply(
        arch="arm64",
        cores_milli=1000,
        memory_bytes=1 << 30,
        nvme_bytes=0,
        link_mbit=0,
        window_tx_bytes=0,
        window_rx_bytes=0,
    )
    config = SimpleNamespace(module=SimpleNamespace(nvme_mbit=0))
    cnm = SimpleNamespace(
        id="cnm7",
        config=config,
        capabilities=capabilities,
        quarantine="",
        draining=False,
        schedulable=True,
    )
    placer.update(cnm)  # type: ignore[arg-type]
    assert synced == ["w7/a/0"]


def reconciler_over(decisions: Decisions, reactor: FakeReactor, **placer: Any) -> Reconciler:
    parts: Mapping[str, Any] = {
        "inventory": None,
        "deployer": None,
        "volumes": None,
        "events": None,
        "placer": SimpleNamespace(**placer),
    }
    return Reconciler(loop=reactor, decisions=decisions, **parts)  # type: ignore[arg-type]


def test_a_workload_is_looked_after_without_a_look_at_the_instances_of_others() -> None:
    decisions, reactor = loaded(), FakeReactor()
    reconciler = reconciler_over(decisions, reactor)
    decisions.assignments = Unscanned(decisions.assignments)
    reconciler.kick_workload("w7")
    reconciler.finish_workload("w7")
    assert list(reconciler._dirty) == ["w7/a/0"]


def test_a_workload_has_no_instances_when_the_last_one_is_forgotten() -> None:
    decisions = loaded()
    assert decisions.of_workload("w7") == ["w7/a/0"]
    decisions.forget("w7/a/0")
    assert decisions.of_workload("w7") == []
    assert decisions.of_workload("w8") == ["w8/a/0"]


def test_what_waits_for_room_is_looked_at_once_for_all_modules_that_came() -> None:
    looked: list[str] = []

    def tightest_first(instances: Iterable[str]) -> list[str]:
        looked.extend(instances)
        return list(instances)

    reactor = FakeReactor()
    reconciler = reconciler_over(loaded(), reactor, tightest_first=tightest_first, in_order=list)
    reconciler.placements.pending.update({f"new/a/{n}": None for n in range(9)})  # type: ignore[misc]
    reconciler._posted = True  # no step is taken here
    for _ in range(MODULES):
        reconciler.kick_pending()
    reactor.run_posted()
    assert len(looked) == 9
    assert len(reconciler._dirty) == 9
    reconciler.kick_pending()
    reactor.run_posted()
    assert len(looked) == 18, "and again when more come"


class Flood:
    """A line that always has more."""

    handle = 5

    def __init__(self) -> None:
        self.reads = 0

    def read(self) -> bytes:
        self.reads += 1
        return frame_serial(b"\x01\x00\x09\xc8\x7f" + bytes(30)) * (READ_LIMIT_BYTES // 42)

    def write(self, data: Any) -> int:
        return len(data)

    def close(self) -> None: ...


def test_a_link_that_always_has_more_is_read_once_before_the_others_have_their_turn() -> None:
    reactor, stream = FakeReactor(), Flood()
    link = Link(reactor, lambda: stream, name="flood")
    for turn in range(1, 4):
        link._on_event(Event.READ)
        assert stream.reads == turn
    assert link.drops["rx_packets"] > 100
