"""Time, order, pause, kill, drift: the virtual kernel itself."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware.loop import MS, Loop
from hal.errors import LinkDown, Refused
from hal.mock.kernel import BOOT_NS, LivelockError, VirtualKernel
from hal.mock.line import stream_pair
from hal.ports import Event

SECOND = 1000 * MS


def node(kernel: VirtualKernel, name: str) -> Loop:
    loop = Loop(kernel.node(name).clock)
    kernel.attach(name, loop)
    return loop


def test_time_moves_from_event_to_event_and_ends_where_it_should() -> None:
    kernel = VirtualKernel(1)
    loop = node(kernel, "n")
    at: list[int] = []
    loop.call_later(3 * MS, lambda: at.append(kernel.now_ns))
    kernel.after(5 * MS, lambda: at.append(kernel.now_ns))
    kernel.run_for(4 * MS)
    assert at == [BOOT_NS + 3 * MS]
    assert kernel.now_ns == BOOT_NS + 4 * MS
    kernel.run_for(1 * MS)
    assert at[-1] == BOOT_NS + 5 * MS


def test_nodes_with_work_at_one_time_run_in_the_order_in_which_they_were_made() -> None:
    kernel = VirtualKernel(1)
    order: list[str] = []
    loops = {name: node(kernel, name) for name in ("zeta", "alpha", "mid")}
    for name in ("mid", "alpha", "zeta"):
        loops[name].call_at(BOOT_NS + MS, lambda name=name: order.append(name))
    kernel.run_for(MS)
    assert order == ["zeta", "alpha", "mid"]


def test_devices_events_at_one_time_keep_the_order_of_their_scheduling() -> None:
    kernel = VirtualKernel(1)
    order: list[int] = []
    for number in range(50):
        kernel.at(BOOT_NS + MS, lambda number=number: order.append(number))
    kernel.run_for(MS)
    assert order == list(range(50))


def test_a_cancelled_event_does_not_happen() -> None:
    kernel = VirtualKernel(1)
    seen: list[str] = []
    cancel = kernel.after(MS, lambda: seen.append("no"))
    kernel.after(MS, lambda: seen.append("yes"))
    cancel()
    kernel.run_for(2 * MS)
    assert seen == ["yes"]


def test_run_until_stops_at_the_event_that_made_it_true() -> None:
    kernel = VirtualKernel(1)
    loop = node(kernel, "n")
    beats: list[int] = []
    loop.every(MS, lambda: beats.append(1))
    assert kernel.run_until(lambda: len(beats) == 3, SECOND)
    assert kernel.now_ns == BOOT_NS + 3 * MS
    assert not kernel.run_until(lambda: False, 2 * MS)
    assert kernel.now_ns == BOOT_NS + 5 * MS


def test_posted_calls_run_before_time_moves() -> None:
    kernel = VirtualKernel(1)
    loop = node(kernel, "n")
    at: list[int] = []
    loop.post(lambda: loop.post(lambda: at.append(kernel.now_ns)))
    kernel.run_for(MS)
    assert at == [BOOT_NS]


def test_a_paused_node_does_nothing_while_time_goes_on_and_catches_up_later() -> None:
    kernel = VirtualKernel(1)
    loop = node(kernel, "n")
    at: list[int] = []
    loop.call_later(MS, lambda: at.append(loop.now_ns()))
    kernel.pause("n")
    kernel.run_for(10 * MS)
    assert at == []
    kernel.resume("n")
    kernel.run_for(0)
    assert at == [BOOT_NS + 10 * MS]


def test_a_killed_node_runs_no_more_and_its_handles_close() -> None:
    kernel = VirtualKernel(1)
    loop = node(kernel, "victim")
    other = node(kernel, "other")
    mine, theirs = stream_pair(kernel, "pair", kernel.node("victim"), kernel.node("other"))
    hung_up: list[Event] = []

    def ready(events: Event) -> None:
        hung_up.append(events)
        other.unwatch(theirs.handle)

    other.watch(theirs.handle, Event.READ, ready)
    ran: list[int] = []
    loop.every(MS, lambda: ran.append(1))
    kernel.run_for(2 * MS)
    kernel.kill("victim")
    kernel.kill("victim")
    kernel.run_for(5 * MS)
    assert len(ran) == 2
    assert mine.handle not in kernel.handles
    assert hung_up
    assert Event.HANGUP in hung_up[0]
    with pytest.raises(LinkDown):
        theirs.read()


def test_a_node_can_die_in_its_own_handler() -> None:
    kernel = VirtualKernel(1)
    loop = node(kernel, "n")
    after: list[int] = []

    def die() -> None:
        loop.call_later(0, lambda: after.append(1))
        kernel.kill("n")

    loop.call_later(MS, die)
    kernel.run_for(5 * MS)
    assert after == []
    fresh = node(kernel, "n")
    fresh.post(lambda: after.append(2))
    kernel.run_for(MS)
    assert after == [2]


def test_what_completes_for_a_dead_node_does_not_reach_its_successor() -> None:
    kernel = VirtualKernel(1)
    node(kernel, "n")
    late: list[str] = []
    post = kernel.node("n").poster()
    kernel.after(5 * MS, lambda: post(lambda: late.append("old")))
    kernel.kill("n")
    node(kernel, "n")
    kernel.run_for(10 * MS)
    assert late == []


def test_a_second_loop_on_a_running_node_is_an_error() -> None:
    kernel = VirtualKernel(1)
    node(kernel, "n")
    with pytest.raises(RuntimeError, match="runs already"):
        node(kernel, "n")


def test_a_livelock_is_named_and_not_waited_for() -> None:
    kernel = VirtualKernel(1, step_limit=500)
    loop = node(kernel, "spinner")

    def spin() -> None:
        loop.post(spin)

    loop.post(spin)
    with pytest.raises(LivelockError, match="spinner"):
        kernel.run_for(MS)


def test_events_that_breed_events_at_one_time_are_a_livelock_too() -> None:
    kernel = VirtualKernel(1, step_limit=500)

    def breed() -> None:
        kernel.after(0, breed)

    kernel.after(0, breed)
    with pytest.raises(LivelockError):
        kernel.run_for(MS)


def test_observers_see_every_step_in_which_something_was_noted() -> None:
    kernel = VirtualKernel(1)
    seen: list[str] = []
    loop = node(kernel, "n")
    kernel.observers.append(lambda stepped: seen.append(stepped.name))
    loop.every(MS, lambda: kernel.note("n", "beat"))
    kernel.run_for(5 * MS)
    assert seen.count("n") >= 5
    loop.close()
    loop.every(MS, lambda: None)
    seen.clear()
    kernel.run_for(5 * MS)
    assert not seen


def test_an_unknown_handle_is_refused_by_number() -> None:
    kernel = VirtualKernel(1)
    loop = node(kernel, "n")
    with pytest.raises(Refused, match="77"):
        loop.watch(77, Event.READ, lambda events: None)
    with pytest.raises(Refused, match="77"):
        kernel.open_stream(77)
    with pytest.raises(Refused, match="77"):
        kernel.give_handle(77, kernel.node("n"))


# --- clocks ---


def test_a_fast_clock_reaches_its_timers_sooner() -> None:
    kernel = VirtualKernel(1)
    kernel.node("fast").clock.set_rate(1000)  # 1e-3, the worst that DESIGN section 4 grants
    loops = {name: node(kernel, name) for name in ("fast", "true")}
    at: dict[str, int] = {}
    for name, loop in loops.items():
        loop.call_later(5 * SECOND, lambda name=name: at.setdefault(name, kernel.now_ns))
    kernel.run_for(6 * SECOND)
    assert at["true"] - BOOT_NS == 5 * SECOND
    assert at["fast"] - BOOT_NS == -(-5 * SECOND * 1_000_000 // 1_001_000)


@given(
    ppm=st.integers(-999_999, 5_000_000),
    elapsed=st.integers(0, 10**12),
    ahead=st.integers(1, 10**12),
)
def test_a_due_time_becomes_the_first_kernel_time_that_shows_it(
    ppm: int, elapsed: int, ahead: int
) -> None:
    kernel = VirtualKernel(1)
    clock = kernel.node("n").clock
    clock.set_rate(ppm)
    kernel.now_ns += elapsed
    due_ns = clock.now_ns() + ahead
    at_ns = clock.kernel_ns(due_ns)
    assert at_ns is not None
    kernel.now_ns = at_ns
    assert clock.now_ns() >= due_ns
    kernel.now_ns = at_ns - 1
    assert clock.now_ns() < due_ns


def test_a_change_of_rate_does_not_make_time_jump() -> None:
    kernel = VirtualKernel(1)
    clock = kernel.node("n").clock
    node(kernel, "n")
    kernel.run_for(SECOND)
    for ppm in (500, -500, 0, 1000):
        before = clock.now_ns()
        clock.set_rate(ppm)
        assert clock.now_ns() == before
        kernel.run_for(SECOND)
        assert clock.now_ns() - before == SECOND + ppm * 1000


def test_timers_follow_a_change_of_rate() -> None:
    kernel = VirtualKernel(1)
    loop = node(kernel, "n")
    at: list[int] = []
    loop.call_later(10 * SECOND, lambda: at.append(kernel.now_ns - BOOT_NS))
    kernel.run_for(SECOND)
    kernel.node("n").clock.set_rate(1_000_000)  # twice as fast for the 9 s that are left
    kernel.run_for(20 * SECOND)
    assert at == [SECOND + 9 * SECOND // 2]


def test_a_stopped_clock_never_comes_to_its_timers() -> None:
    kernel = VirtualKernel(1)
    loop = node(kernel, "n")
    clock = kernel.node("n").clock
    at: list[int] = []
    loop.call_later(SECOND, lambda: at.append(1))
    clock.set_rate(-1_000_000)
    kernel.run_for(3600 * SECOND)
    assert at == []
    assert clock.now_ns() == BOOT_NS
    clock.set_rate(0)
    kernel.run_for(SECOND)
    assert at == [1]


def test_a_skip_ages_the_node_at_once_and_time_cannot_go_back() -> None:
    kernel = VirtualKernel(1)
    loop = node(kernel, "n")
    clock = kernel.node("n").clock
    at: list[int] = []
    loop.call_later(3600 * SECOND, lambda: at.append(kernel.now_ns))
    clock.skip(3600 * SECOND)
    kernel.run_for(0)
    assert at == [BOOT_NS]
    with pytest.raises(ValueError, match="go back"):
        clock.skip(-1)
    with pytest.raises(ValueError, match="backwards"):
        clock.set_rate(-1_000_001)


def test_a_step_of_the_wall_clock_leaves_the_timers_alone() -> None:
    kernel = VirtualKernel(1)
    loop = node(kernel, "n")
    clock = kernel.node("n").clock
    wall = clock.wall_ns()
    at: list[int] = []
    loop.call_later(SECOND, lambda: at.append(kernel.now_ns))
    clock.step_wall(-365 * 24 * 3600 * SECOND)
    kernel.run_for(2 * SECOND)
    assert at == [BOOT_NS + SECOND]
    assert clock.wall_ns() < wall
