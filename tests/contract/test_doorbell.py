"""`hal.ports.Doorbell`: a hint that coalesces and never blocks."""

import pytest

from hal.errors import PeerGone
from hal.ports import Event
from tests.contract.results import need
from tests.contract.rigs import DoorbellRig, World

PORT = "doorbell"
MANY = 10_000


def count_wakes(world: World, rig: DoorbellRig) -> list[Event]:
    """Watches b and clears it at each wake, as a user of the bell does."""
    wakes: list[Event] = []

    def woken(events: Event) -> None:
        wakes.append(events)
        rig.b.clear()

    world.reactor.watch(rig.b.handle, Event.READ, woken)
    return wakes


def test_a_ring_wakes_the_far_end_once(rig: DoorbellRig, world: World) -> None:
    wakes = count_wakes(world, rig)
    world.run_for(0.01)
    assert wakes == []
    rig.a.ring()
    world.run_until(lambda: bool(wakes))
    world.run_for(0.02)
    assert len(wakes) == 1


def test_a_ring_does_not_wake_the_ringer(rig: DoorbellRig, world: World) -> None:
    own: list[Event] = []
    world.reactor.watch(rig.a.handle, Event.READ, own.append)
    rig.a.ring()
    world.run_for(0.02)
    assert own == []


def test_rings_that_nobody_cleared_coalesce_and_never_block(rig: DoorbellRig, world: World) -> None:
    for _ in range(MANY):
        rig.a.ring()
    wakes = count_wakes(world, rig)
    world.run_until(lambda: bool(wakes))
    world.run_for(0.02)
    assert 1 <= len(wakes) < MANY


def test_a_ring_before_the_watch_is_not_lost(rig: DoorbellRig, world: World) -> None:
    rig.a.ring()
    world.run_for(0.01)
    wakes = count_wakes(world, rig)
    world.run_until(lambda: bool(wakes))


def test_a_ring_after_the_clear_wakes_again(rig: DoorbellRig, world: World) -> None:
    wakes = count_wakes(world, rig)
    for turn in range(1, 6):
        rig.a.ring()
        world.run_until(lambda turn=turn: len(wakes) == turn)


def test_clearing_a_silent_bell_does_nothing(rig: DoorbellRig) -> None:
    rig.a.clear()
    rig.b.clear()


def test_both_ways_are_independent(rig: DoorbellRig, world: World) -> None:
    wakes = count_wakes(world, rig)
    rig.b.ring()
    world.run_for(0.02)
    assert wakes == []
    rig.a.clear()


def test_the_death_of_the_far_end_is_seen(rig: DoorbellRig, world: World) -> None:
    drop = need(rig.drop_b, "let the far end die")
    seen: list[Event] = []

    def ready(events: Event) -> None:
        seen.append(events)
        world.reactor.unwatch(rig.a.handle)

    world.reactor.watch(rig.a.handle, Event.READ, ready)
    drop()
    world.run_until(lambda: bool(seen))
    with pytest.raises(PeerGone):
        rig.a.clear()


def test_closing_twice_is_harmless(rig: DoorbellRig) -> None:
    rig.a.close()
    rig.a.close()
