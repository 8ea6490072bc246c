"""`firmware.preempt_budget`: what one daemon has spent the next one knows, on either boot."""

import json
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from firmware.assignments import Assignment, Eviction, Place
from firmware.decisions import Decisions
from firmware.journal import Journal, JournalError, Kind, encode
from firmware.loop import MS
from firmware.preempt_budget import PreemptBudget
from hal.errors import HalError, StoreFull
from hal.ports import JournalRecord

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS
WEB = "low/web/0"
PLACE = Place(cnm="cnm0", boot_id=bytes(16), generation=7)


class Store:
    """Keeps what it is given, or has no room for it."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], JournalRecord] = {}
        self.full = False

    def load(self) -> Sequence[JournalRecord]:
        return list(self.kept.values())

    def submit(
        self, batch: Sequence[JournalRecord], done: Callable[[HalError | None], None]
    ) -> None:
        if not self.full:
            self.kept.update({(record.kind, record.key): record for record in batch})
        done(StoreFull("no room") if self.full else None)

    def close(self) -> None:
        pass


class Daemon:
    """One, from its start."""

    def __init__(self, store: Store, now_ms: int, per_hour: int = 3) -> None:
        self.now_ms = now_ms
        loop: Any = SimpleNamespace(
            now_ns=lambda: self.now_ms * MS, call_later=lambda *_: lambda: None
        )
        silent: Any = SimpleNamespace(emit=lambda *_words, **_more: None)
        journal = Journal(store)
        journal.load()
        self.decisions = Decisions(journal, loop, silent)
        self.decisions.load()
        self.budget = PreemptBudget(loop, self.decisions, per_hour)
        self.budget.restore()

    def stop(self, *names: str) -> None:
        changes = [
            Assignment(
                instance=name,
                workload="low",
                component="web",
                index=0,
                place=PLACE,
                evict=Eviction(by="high/web/0", cnm="cnm0", generation=7, at_ms=self.now_ms),
            )
            for name in names
        ]
        spent = self.budget.spend(len(changes), self.now_ms)

        def decided(good: bool) -> None:
            if not good:
                self.budget.give_back(len(changes), self.now_ms)

        self.decisions.assign(changes, decided, also=[spent])

    def rests_since_ms(self, name: str) -> int:
        evict = self.decisions.assignments[name].evict
        assert evict is not None
        return self.budget.at_ns(evict) // MS


def test_the_next_daemon_knows_what_was_spent_on_what_is_gone() -> None:
    store = Store()
    first = Daemon(store, 10 * MINUTE_MS)
    first.stop(WEB, "low/web/1")
    first.decisions.forget(WEB)
    first.decisions.forget("low/web/1")
    assert Daemon(store, 11 * MINUTE_MS).budget.left() == 1
    assert Daemon(store, 69 * MINUTE_MS).budget.left() == 1
    assert Daemon(store, 70 * MINUTE_MS).budget.left() == 3


def test_who_was_stopped_twice_counts_twice() -> None:
    store = Store()
    first = Daemon(store, MINUTE_MS)
    first.stop(WEB)
    first.now_ms += MINUTE_MS
    first.stop(WEB)
    second = Daemon(store, 3 * MINUTE_MS)
    assert second.budget.left() == 1
    assert second.rests_since_ms(WEB) == 2 * MINUTE_MS
    assert second.budget.more_ns() == (HOUR_MS + MINUTE_MS) * MS


def test_what_the_store_refused_was_not_spent() -> None:
    store = Store()
    daemon = Daemon(store, MINUTE_MS)
    daemon.stop(WEB)
    store.full = True
    daemon.stop("low/web/1")
    assert daemon.budget.left() == 2
    assert Daemon(store, 2 * MINUTE_MS).budget.left() == 2


def test_after_a_boot_of_the_card_what_was_before_it_ages_and_is_charged_once() -> None:
    store = Store()
    Daemon(store, 30 * DAY_MS).stop(WEB)
    for minutes in (1, 2, 59):
        booted = Daemon(store, minutes * MINUTE_MS)
        assert booted.budget.left() == 2
        assert booted.rests_since_ms(WEB) == 0
    booted.now_ms = HOUR_MS
    assert booted.budget.left() == 3
    assert Daemon(store, 2 * HOUR_MS).budget.left() == 3


def test_an_eviction_of_another_boot_that_is_taken_back_stays_one() -> None:
    store = Store()
    Daemon(store, 30 * DAY_MS).stop(WEB)
    booted = Daemon(store, MINUTE_MS)
    evict = booted.decisions.assignments[WEB].evict
    assert evict is not None
    back = Eviction(by=evict.by, cnm=evict.cnm, generation=0, at_ms=evict.at_ms)
    assert booted.budget.at_ns(back) == 0


def test_a_journal_without_such_a_record_is_read_by_its_assignments() -> None:
    store = Store()
    Daemon(store, 10 * MINUTE_MS).stop(WEB, "low/web/1")
    del store.kept["meta", "preempted"]
    assert Daemon(store, 11 * MINUTE_MS).budget.left() == 1
    assert Daemon(store, 71 * MINUTE_MS).budget.left() == 3


@pytest.mark.parametrize("value", [7, ["x"], [-1], [True], {"at_ms": 1}])
def test_times_that_are_none_are_refused_whole(value: object) -> None:
    store = Store()
    data = encode(Kind.META, "preempted", {"value": value})
    store.kept["meta", "preempted"] = JournalRecord(kind="meta", key="preempted", value=data)
    with pytest.raises(JournalError, match="corrupt"):
        Daemon(store, MINUTE_MS)


def test_the_record_is_no_longer_than_an_hour() -> None:
    store = Store()
    daemon = Daemon(store, MINUTE_MS)
    for _ in range(5):
        daemon.stop(WEB)
        daemon.now_ms += 25 * MINUTE_MS
    value = store.kept["meta", "preempted"].value
    assert value is not None
    assert len(json.loads(value)["value"]) == 3
