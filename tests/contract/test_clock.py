"""`hal.ports.Clock`: time that never goes back, and the wait."""

from hal.ports import Event
from tests.contract.rigs import ClockRig, World

PORT = "clock"


def test_time_never_goes_back(rig: ClockRig, world: World) -> None:
    last = rig.clock.now_ns()
    for _ in range(1000):
        now = rig.clock.now_ns()
        assert now >= last
        last = now
    world.run_for(0.01)
    assert rig.clock.now_ns() >= last


def test_the_wall_clock_is_a_time_after_2020(rig: ClockRig) -> None:
    assert rig.clock.wall_ns() > 1_577_836_800 * 1_000_000_000


def test_a_wait_until_a_time_that_has_passed_returns_at_once_with_nothing(rig: ClockRig) -> None:
    assert list(rig.clock.wait(rig.clock.now_ns())) == []
    assert list(rig.clock.wait(rig.clock.now_ns() - 1_000_000_000)) == []


def test_a_ready_handle_is_reported_for_as_long_as_it_is_ready(rig: ClockRig) -> None:
    rig.clock.watch(rig.handle, Event.READ)
    assert list(rig.clock.wait(rig.clock.now_ns())) == []
    rig.make_ready()
    for _ in range(3):  # level-triggered
        ready = list(rig.clock.wait(rig.clock.now_ns() + 1_000_000_000))
        assert [number for number, _ in ready] == [rig.handle]
        assert Event.READ in ready[0][1]


def test_a_handle_that_was_ready_before_the_watch_is_reported(rig: ClockRig) -> None:
    rig.make_ready()
    rig.clock.watch(rig.handle, Event.READ)
    assert [number for number, _ in rig.clock.wait(rig.clock.now_ns())] == [rig.handle]


def test_an_unwatched_handle_is_not_reported(rig: ClockRig) -> None:
    rig.clock.watch(rig.handle, Event.READ)
    rig.make_ready()
    rig.clock.unwatch(rig.handle)
    assert list(rig.clock.wait(rig.clock.now_ns())) == []


def test_watching_again_changes_the_events(rig: ClockRig) -> None:
    rig.clock.watch(rig.handle, Event.READ)
    rig.make_ready()
    rig.clock.watch(rig.handle, Event(0))
    assert list(rig.clock.wait(rig.clock.now_ns())) == []
    rig.clock.watch(rig.handle, Event.READ)
    assert [number for number, _ in rig.clock.wait(rig.clock.now_ns())] == [rig.handle]


def test_unwatching_an_unknown_handle_is_ignored(rig: ClockRig) -> None:
    rig.clock.unwatch(rig.handle)
    rig.clock.unwatch(987_654)


def test_a_wake_ends_the_present_or_the_next_wait(rig: ClockRig) -> None:
    rig.clock.wake()
    assert list(rig.clock.wait(rig.clock.now_ns() + 3_600_000_000_000)) == []


def test_timers_of_a_loop_on_it_fire_in_order_and_not_early(rig: ClockRig, world: World) -> None:
    start = world.reactor.now_ns()
    fired: list[tuple[int, int]] = []
    for delay_ms in (5, 1, 3):
        due = start + delay_ms * 1_000_000
        world.reactor.call_at(
            due,
            lambda due=due: fired.append((due, world.reactor.now_ns())),
        )
    world.run_until(lambda: len(fired) == 3)
    assert [due for due, _ in fired] == sorted(due for due, _ in fired)
    assert all(at >= due for due, at in fired)
