"""The loop on a virtual clock: readiness, timers and mailbox, in that order and bounded."""

from functools import partial
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware.loop import CANCELLED_KEPT, MAILBOX_LIMIT, MS, Loop, MailboxFullError
from hal.mock.kernel import BOOT_NS, VirtualKernel

SECOND: Final = 1000 * MS


@pytest.fixture
def kernel() -> VirtualKernel:
    return VirtualKernel(1)


@pytest.fixture
def loop(kernel: VirtualKernel) -> Loop:
    node = kernel.node("daemon")
    loop = Loop(node.clock)
    kernel.attach("daemon", loop)
    return loop


def test_timers_fire_in_order_and_never_before_their_time(
    kernel: VirtualKernel, loop: Loop
) -> None:
    start, fired = loop.now_ns(), []
    for delay_ms in (30, 10, 20):
        loop.call_later(delay_ms * MS, lambda d=delay_ms: fired.append((d, loop.now_ns() - start)))
    kernel.run_for(100 * MS)
    assert fired == [(10, 10 * MS), (20, 20 * MS), (30, 30 * MS)]


def test_a_cancelled_timer_does_not_fire_and_leaves_no_due_time(
    kernel: VirtualKernel, loop: Loop
) -> None:
    fired: list[int] = []
    loop.call_later(10 * MS, lambda: fired.append(1))()
    assert loop.next_due_ns() is None
    kernel.run_for(50 * MS)
    assert fired == []


def test_deadlines_that_were_met_do_not_fill_the_heap(kernel: VirtualKernel, loop: Loop) -> None:
    fired: list[int] = []
    for number in range(10):
        loop.call_later(SECOND, lambda number=number: fired.append(number))
    for _ in range(5000):
        loop.call_later(500 * MS, lambda: fired.append(-1))()
        assert len(loop._timers) <= 2 * 10 + CANCELLED_KEPT + 1
    kernel.run_for(2 * SECOND)
    assert fired == list(range(10))


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 2)), max_size=400))
def test_what_is_cancelled_whenever_never_fires_and_all_else_does_in_order(
    timers: list[tuple[int, int]],
) -> None:
    """Of each timer: when, and whether it is cancelled never, at once or at 25 ms."""
    kernel = VirtualKernel(1)
    loop = Loop(kernel.node("daemon").clock)
    kernel.attach("daemon", loop)
    fired: list[tuple[int, int]] = []
    wanted: list[tuple[int, int]] = []
    later = []
    for number, (at_ms, cancelled) in enumerate(timers):
        cancel = loop.call_later(at_ms * MS, partial(fired.append, (at_ms, number)))
        if cancelled == 1:
            cancel()
        elif cancelled == 2:
            later.append(cancel)
        if cancelled == 0 or (cancelled == 2 and at_ms < 25):
            wanted.append((at_ms, number))
    loop.call_at(BOOT_NS + 25 * MS - 1, lambda: [cancel() for cancel in later])
    kernel.run_for(100 * MS)
    assert fired == sorted(wanted)


def test_a_timer_armed_by_a_handler_for_now_waits_for_the_next_turn(loop: Loop) -> None:
    turns: list[int] = []

    def again() -> None:
        turns.append(1)
        loop.call_at(loop.now_ns(), again)

    loop.call_at(loop.now_ns(), again)
    loop.step()
    assert turns == [1]
    loop.step()
    assert turns == [1, 1]


def test_a_beat_that_was_missed_is_skipped_and_the_grid_is_kept(
    kernel: VirtualKernel, loop: Loop
) -> None:
    start, beats = loop.now_ns(), []
    cancel = loop.every(10 * MS, lambda: beats.append((loop.now_ns() - start) // MS))
    kernel.run_for(25 * MS)
    kernel.pause("daemon")
    kernel.run_for(40 * MS)
    kernel.resume("daemon")
    kernel.run_for(20 * MS)
    cancel()
    kernel.run_for(50 * MS)
    assert beats == [10, 20, 65, 70, 80]


def test_posted_calls_run_in_order_and_posting_from_one_waits_for_the_next_turn(
    loop: Loop,
) -> None:
    seen: list[str] = []
    loop.post(lambda: (seen.append("a"), loop.post(lambda: seen.append("c"))))
    loop.post(lambda: seen.append("b"))
    loop.step()
    assert seen == ["a", "b"]
    loop.step()
    assert seen == ["a", "b", "c"]


def test_a_full_mailbox_is_a_bug_of_ours_and_says_so(loop: Loop) -> None:
    for _ in range(MAILBOX_LIMIT):
        loop.post(lambda: None)
    with pytest.raises(MailboxFullError, match="65536"):
        loop.post(lambda: None)


def test_an_exception_of_a_handler_leaves_the_loop_unless_the_policy_says_go_on(
    kernel: VirtualKernel,
) -> None:
    node = kernel.node("n")
    strict, kept = Loop(node.clock), []
    strict.post(lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        strict.step()
    lenient = Loop(node.clock, on_fault=lambda exc: kept.append(exc) is None)
    lenient.post(lambda: 1 // 0)
    assert lenient.step()
    assert isinstance(kept[0], ZeroDivisionError)


def test_closing_from_a_handler_drops_everything_that_was_still_due(loop: Loop) -> None:
    seen: list[int] = []
    loop.post(loop.close)
    loop.post(lambda: seen.append(1))
    loop.call_later(0, lambda: seen.append(2))
    loop.call_later(MS, lambda: seen.append(3))
    loop.step()
    loop.step()
    assert 1 not in seen
    assert loop.next_due_ns() is None
