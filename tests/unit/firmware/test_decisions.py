"""`firmware.decisions`: what is decided of a module while another decision of it is on its way."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace

import pytest

from firmware.decisions import Decisions
from firmware.inventory import Cnm
from firmware.journal import Journal
from firmware.lease import LeaseState
from firmware.loop import Loop
from firmware.turns import ASKED_MOST, TURNS_MOST
from hal.errors import HalError, StoreFull
from hal.mock.kernel import VirtualKernel
from hal.ports import JournalRecord


class SlowStore:
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[HalError | None], None]] = []

    def load(self) -> Sequence[JournalRecord]:
        return []

    def submit(
        self, batch: Sequence[JournalRecord], done: Callable[[HalError | None], None]
    ) -> None:
        assert batch
        self.waiting.append(done)

    def answer(self, error: HalError | None = None) -> None:
        self.waiting.pop(0)(error)

    def close(self) -> None:
        pass


class Bench:
    def __init__(self) -> None:
        self.store = SlowStore()
        self.journal = Journal(self.store)
        self.journal.load()
        loop = Loop(VirtualKernel(1).node("card").clock)
        self.decisions = Decisions(self.journal, loop, Silent())  # type: ignore[arg-type]
        self.cnm = cnm("cnm0")
        self.answers: list[bool] = []

    def record(self) -> dict[str, object]:
        return self.decisions.cnm_record("cnm0")


def cnm(name: str) -> Cnm:
    """A module of which only its flags are looked at."""
    lease = SimpleNamespace(boot_id=bytes(16))
    return Cnm(name, None, lease, None, None, None)  # type: ignore[arg-type]


class Silent:
    def emit(self, *_words: object, **_more: object) -> None:
        pass


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_fence_that_follows_a_drain_at_once_keeps_it(bench: Bench) -> None:
    bench.decisions.keep(bench.cnm, bench.answers.append, draining=True)
    bench.decisions.begin_fence(bench.cnm, bench.answers.append, end_epoch=True)
    bench.store.answer()
    bench.store.answer()
    assert bench.answers == [True, True]
    assert bench.cnm.draining
    assert bench.record()["draining"] is True
    assert bench.record()["state"] == LeaseState.FENCING.value
    assert bench.journal.epoch == 1


def test_a_drain_that_the_disk_refuses_is_not_in_what_follows(bench: Bench) -> None:
    bench.decisions.keep(bench.cnm, bench.answers.append, draining=True)
    bench.decisions.fenced(bench.cnm, bench.answers.append)
    bench.store.answer(StoreFull("no space"))
    bench.store.answer()
    assert bench.answers == [False, True]
    assert not bench.cnm.draining
    assert bench.record()["draining"] is False


def test_changes_of_two_modules_do_not_wait_for_each_other(bench: Bench) -> None:
    bench.decisions.keep(bench.cnm, bench.answers.append, draining=True)
    bench.decisions.keep(cnm("cnm1"), bench.answers.append, draining=True)
    assert len(bench.store.waiting) == 2


def test_flags_that_wait_are_written_together_and_the_last_word_counts(bench: Bench) -> None:
    for draining in (True, False, True):
        bench.decisions.keep(bench.cnm, bench.answers.append, draining=draining)
    bench.decisions.keep(bench.cnm, bench.answers.append, power_wanted=False)
    bench.store.answer()
    assert bench.answers == [True]
    bench.store.answer()
    assert bench.answers == [True] * 4
    assert (bench.cnm.draining, bench.cnm.power_wanted) == (True, False)
    assert (bench.record()["draining"], bench.record()["power_wanted"]) == (True, False)
    assert bench.store.waiting == []


def test_what_waits_for_one_record_is_bounded_and_the_rest_is_refused(bench: Bench) -> None:
    for _ in range(TURNS_MOST + 2):
        bench.decisions.fenced(bench.cnm, bench.answers.append)
    assert bench.answers == [False]
    for _ in range(TURNS_MOST + 1):
        bench.store.answer()
    assert bench.answers == [False] + [True] * (TURNS_MOST + 1)
    assert bench.store.waiting == []


def test_who_asks_with_too_many_others_waits_for_the_next_turn(bench: Bench) -> None:
    for _ in range(ASKED_MOST + 2):
        bench.decisions.keep(bench.cnm, bench.answers.append, draining=True)
    for _ in range(3):
        bench.store.answer()
    assert bench.answers == [True] * (ASKED_MOST + 2)
    assert bench.store.waiting == []
