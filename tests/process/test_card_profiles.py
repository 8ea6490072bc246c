"""Measured use on a real card: learned from real containers, and reserved at the next submit."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.process.local_card import BUSYBOX, LocalCard, a_card
from tools.demo import observe

pytestmark = [
    pytest.mark.process,
    pytest.mark.timeout(240),
    pytest.mark.skipif(os.geteuid() != 0, reason="containers and namespaces need root"),
    pytest.mark.skipif(not BUSYBOX, reason="busybox-static is not installed"),
]

MIB = 1 << 20
USED_MIB = 60  # in a tmpfs: memory that nobody can take back
SPIN = "while true; do i=0; while [ $$i -lt 20000 ]; do i=$$((i+1)); done; sleep 0.1; done"
EATS = f"dd if=/dev/zero of=/t/x bs=1M count={USED_MIB}; {SPIN}"


def eater(name: str, *lines: str, command: str = EATS) -> str:
    """A service that asks for 20 MiB and a twentieth of a core, and uses more of both."""
    text = (
        f'services:\n  {name}:\n    image: busybox\n    command: ["/bin/sh", "-c", "{command}"]\n'
    )
    text += "    tmpfs: ['/t']\n    stop_grace_period: 1s\n"
    text += "    deploy: {resources: {reservations: {memory: 20m, cpus: '0.05'}}}\n"
    return text + "".join(f"    {line}\n" for line in lines)


@pytest.fixture(scope="module")
def card() -> Iterator[LocalCard]:
    with a_card() as card:
        card.import_busybox()
        yield card


@pytest.fixture(autouse=True)
def empty_card(card: LocalCard) -> Iterator[None]:
    yield
    if card.ps():
        card.remove()


def row(card: LocalCard, component: str) -> dict[str, Any]:
    """The one row of `apf profile ls` that is about this component."""
    [found] = [one for one in card.apf("profile", "ls") if one["component"] == component]
    assert isinstance(found, dict)
    return found


def memory(card: LocalCard, component: str) -> dict[str, Any]:
    found: dict[str, Any] = row(card, component)["resources"]["memory_bytes"]
    return found


def learned(card: LocalCard, component: str) -> dict[str, Any]:
    """The row, once the whole of what it uses was reported."""

    def check() -> dict[str, Any] | None:
        found = row(card, component)
        peak = found["resources"]["memory_bytes"]["peak"] or 0
        return found if peak >= USED_MIB * MIB else None

    seen: dict[str, Any] = card.wait(f"{component} was measured", check, every_s=0.5)
    return seen


def reserved_on(card: LocalCard, instance: str) -> int:
    """What the card says is taken of the memory of the module that this instance is on."""
    module = card.cnms()[card.ps()[instance]["cnm"]]
    used: int = module["used"]["memory_bytes"]
    return used


def test_what_was_used_is_reserved_at_the_next_submit(card: LocalCard) -> None:
    rows = card.run_compose(eater("eat"), "one")
    assert reserved_on(card, "one/eat/0") == 20 * MIB
    pid = rows["one/eat/0"]["pid"]
    found = learned(card, "eat")
    used = int(Path(f"/proc/{pid}/root/t/x").stat().st_size)
    assert used == USED_MIB * MIB
    assert found["memory_floor_bytes"] >= used * 115 // 100
    assert found["resources"]["memory_bytes"]["reserved"] == 20 * MIB
    card.remove("one")
    card.run_compose(eater("eat"), "two")
    assert memory(card, "eat")["reserved"] >= used * 115 // 100
    assert reserved_on(card, "two/eat/0") >= used * 115 // 100


def test_processor_time_is_learned_in_windows_and_reserved_as_far_as_it_is_known(
    card: LocalCard,
) -> None:
    card.run_compose(eater("spin", command=SPIN), "busy")
    cgroup = card.ps()["busy/spin/0"]["cgroup"]
    assert cgroup

    def check() -> dict[str, Any] | None:
        cpu: dict[str, Any] = row(card, "spin")["resources"]["cpu_milli"]
        return cpu if cpu["peak"] else None

    cpu = card.wait("a window of ten seconds has ended", check, every_s=0.5)
    assert cpu["declared"] == cpu["reserved"] == 50
    assert 50 < cpu["p50"] <= cpu["p90"] <= cpu["peak"]
    assert cpu["lower"] < cpu["p90"] < cpu["upper"], "ten seconds are little evidence"
    assert cpu["next"] == max(50, cpu["lower"])


def test_a_limit_stays_the_law_and_off_is_off(card: LocalCard) -> None:
    card.submit(eater("capped", "mem_limit: 100m", "x-apf: {profile: on}"), "capped")
    card.submit(eater("silent", "x-apf: {profile: off}"), "silent")
    card.wait_running("capped/capped/0", "silent/silent/0")
    learned(card, "capped")
    assert memory(card, "capped")["next"] <= 100 * MIB
    silent = row(card, "silent")
    assert (silent["profile"], silent["samples"], silent["age_ms"]) == ("off", 0, None)
    assert silent["resources"]["memory_bytes"]["next"] == 20 * MIB


def test_an_out_of_memory_kill_raises_the_next_reservation(card: LocalCard) -> None:
    """The kernel kills it at its limit; without that limit it is to get what it needs."""
    hungry = "dd if=/dev/zero of=/dev/null bs=64M count=1"
    card.submit(eater("oom", "mem_limit: 24m", 'restart: "no"', command=hungry), "oom")
    card.wait("its end", lambda: card.ps()["oom/oom/0"]["phase"] == "FAILED")
    assert "memory" in card.ps()["oom/oom/0"]["reason"]
    found = row(card, "oom")
    assert found["ooms"] == 1
    assert found["memory_floor_bytes"] == 120 * MIB
    assert memory(card, "oom")["next"] == 24 * MIB, "the limit is the law"
    card.remove("oom")
    card.run_compose(eater("oom", command=SPIN), "more")
    assert memory(card, "oom")["reserved"] == 120 * MIB


def test_profiles_outlive_the_daemon(card: LocalCard) -> None:
    card.run_compose(eater("keep"), "keep")
    learned(card, "keep")
    pid = int((card.run / "daemon.pid").read_text())

    def on_disk() -> dict[str, Any] | None:
        """The row whose floor the journal has; it may rise between two looks, and by a page."""
        found = row(card, "keep")
        floor = f'"floor_bytes":{found["memory_floor_bytes"]},'.encode()
        stored = b"".join(path.read_bytes() for path in card.state.glob("journal.db*"))
        return found if floor in stored else None

    before = card.wait("its floor is on disk", on_disk, every_s=0.2)
    card.hang_up()
    os.kill(pid, signal.SIGKILL)
    card.wait("another daemon", lambda: (s := card.managing()) and s["daemon_pid"] != pid)
    after = row(card, "keep")
    assert after["digest"] == before["digest"]
    assert after["memory_floor_bytes"] >= before["memory_floor_bytes"]
    assert after["resources"]["memory_bytes"]["next"] >= USED_MIB * MIB
    assert card.status()["counters"]["profiles_unreadable"] == 0  # type: ignore[index]
    shown = card.apf("profile", "show", "keep/keep")
    assert shown[0]["bins"]["memory_bytes"]
    assert observe.start_ticks(card.ps()["keep/keep/0"]["pid"])
