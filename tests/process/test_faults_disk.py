"""No room left under the journal: new work is refused and said so, what runs is kept, and it
recovers by itself when there is room again (firmware/decisions.py; DESIGN D6).

Real ENOSPC, from a small tmpfs under APF_STATE; the modules' own stores lie on another one.
"""

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from hal.linux.reserve import PIECE_BYTES, PIECES
from tests.process.card_watch import CopyWatch, boottime_ms
from tests.process.fault_disk import SmallDisks, small_disks
from tests.process.local_card import LocalCard
from tools.demo import observe

pytestmark = [
    pytest.mark.process,
    pytest.mark.timeout(90),
    pytest.mark.skipif(os.geteuid() != 0, reason="mount(2) and namespaces need root"),
]

MIB = 1 << 20
STEADY = """
services:
  loop:
    image: host
    command: ["/bin/sh", "-c", "trap 'exit 0' TERM; while true; do sleep 0.5; done"]
    cpus: 0.1
    mem_limit: 32m
    restart: always
    stop_grace_period: 1s
    deploy:
      replicas: 4
      placement: {preferences: [{spread: node.id}]}
"""
LEASE_S = 5.0
KILLS = 3


@pytest.fixture(scope="module")
def places() -> Iterator[tuple[LocalCard, SmallDisks]]:
    card = LocalCard()
    with small_disks(card, card_bytes=4 * MIB, modules_bytes=16 * MIB) as disks:
        try:
            card.up()
            card.wait_leased()
            card.run_compose(STEADY, "steady")
            yield card, disks
        finally:
            disks.card.free()
            card.close()


@pytest.fixture
def full(places: tuple[LocalCard, SmallDisks]) -> Iterator[tuple[LocalCard, SmallDisks]]:
    """A card with a full disk: filled once the journal has given back the room of its log."""
    card, disks = places
    log = card.state / "journal.db-wal"
    card.wait("the journal is quiet", lambda: log.stat().st_size == 0)
    disks.card.fill()
    yield places
    disks.card.free()


def test_a_full_disk_refuses_new_work_in_words_and_touches_nothing_that_runs(
    full: tuple[LocalCard, SmallDisks],
) -> None:
    card, disks = full
    before, ps = card.first_processes(), card.ps()
    since_ms = boottime_ms()
    with CopyWatch(card) as watch:
        # A page may be left in what the journal has already: ask until it is used up.
        refusal = card.wait("refused", lambda: _submit(card), timeout_s=20, every_s=0)
        assert refusal["error"]["code"] == "journal_failed"
        assert "no space left" in refusal["error"]["text"], refusal
        assert card.submit(STEADY, "more", 3)["error"]["code"] == "journal_failed"  # exit status
        assert disks.card.filled
        assert card.managing(), "it grants leases all the time"
        said = [event for event in card.events("journal.failed") if event["mono_ms"] > since_ms]
        assert said
        assert "no space left" in said[0]["text"]
        assert card.status()["journal"]["failed"] is None  # it will be tried again
        assert card.first_processes() == before
        disks.card.free()
        card.run_compose(STEADY, "more")
        card.wait_running(*ps)
        assert not watch.violations, watch.violations
    after = card.first_processes()
    assert {name: after[name] for name in before} == before
    for name in {row["workload"] for row in card.ps().values()} - {"steady"}:
        card.remove(name)


def test_what_is_asked_for_while_the_disk_is_full_is_done_when_there_is_room(
    full: tuple[LocalCard, SmallDisks],
) -> None:
    """An instance that dies meanwhile needs a decision (its next generation): it is made later."""
    card, disks = full
    victim, row = next(iter(card.ps().items()))
    refusals = card.status()["journal"]["refused"]
    os.kill(row["pid"], signal.SIGKILL)
    card.wait("refused once", lambda: card.status()["journal"]["refused"] > refusals)
    assert observe.start_ticks(row["pid"]) != row["start_ticks"]
    disks.card.free()
    again = card.wait_running(victim)[victim]
    assert again["generation"] > row["generation"]
    assert card.status()["journal"]["failed"] is None


def test_a_daemon_killed_while_the_disk_is_full_comes_back_and_keeps_what_runs(
    full: tuple[LocalCard, SmallDisks],
) -> None:
    """Its next life needs an epoch on disk before its first grant (DESIGN section 4, rule 2):
    there is a reserve for that (hal/linux/reserve.py)."""
    card, disks = full
    before, status = card.first_processes(), card.managing()
    assert status is not None
    with CopyWatch(card) as watch:
        for number in range(1, KILLS + 1):
            os.kill(card.status()["daemon_pid"], signal.SIGKILL)
            after = card.wait("managing again", lambda number=number: _life(card, status, number))
            assert not after["safe_mode"]
            disks.card.fill()
        time.sleep(LEASE_S)  # longer than any lease of the first life
        assert card.managing()
        assert not watch.violations, watch.violations
    assert card.first_processes() == before
    reserve = card.state / "journal.db-reserve"
    assert reserve.stat().st_size < PIECES * PIECE_BYTES
    disks.card.free()
    card.apf("drain", "cnm0")  # any decision: the reserve is laid in after it
    card.apf("undrain", "cnm0")
    card.wait("laid in again", lambda: reserve.stat().st_size == PIECES * PIECE_BYTES)
    card.wait_running(*before)


def _life(card: LocalCard, first: dict[str, Any], number: int) -> dict[str, Any] | None:
    """The status of the daemon's life `number` after the first, once it manages the card."""
    status = card.managing()
    return status if status is not None and status["epoch"] == first["epoch"] + number else None


def _submit(card: LocalCard) -> dict[str, object] | None:
    """Another workload of nothing much, until one is refused."""
    number = card.status()["workloads"]
    found = card.apf("submit", "--name", f"w{number}", str(_hello(card)), code=None)
    return found if "error" in found else None


def _hello(card: LocalCard) -> os.PathLike[str]:
    file = card.place / "hello.yaml"
    file.write_text('services: {hello: {image: host, command: ["/bin/true"], restart: "no"}}\n')
    return file
