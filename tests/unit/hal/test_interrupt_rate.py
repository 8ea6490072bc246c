"""Too many interrupts, and just enough."""

from hypothesis import given
from hypothesis import strategies as st

from hal.interrupt_rate import InterruptRate, RateLimit

S = 1_000_000_000


def test_the_allowed_rate_goes_on_for_ever() -> None:
    rate = InterruptRate(RateLimit(per_s=1000, burst=10), 0)
    assert not any(rate.count(1, n * S // 1000) for n in range(10_000))
    assert (rate.total, rate.storms) == (10_000, 0)


def test_a_burst_is_allowed_and_one_more_is_not() -> None:
    rate = InterruptRate(RateLimit(per_s=1000, burst=10), 0)
    assert not rate.count(10, 0)
    assert rate.count(1, 0)
    assert rate.storms == 1
    assert not rate.count(10, 0)  # it was masked meanwhile: it begins anew


def test_a_loop_that_was_held_up_sees_no_storm() -> None:
    rate = InterruptRate(RateLimit(per_s=1000, burst=100), 0)
    assert not rate.count(1, 0)
    assert not rate.count(99, S // 10)


def test_a_clock_that_stands_or_steps_back_makes_no_room() -> None:
    rate = InterruptRate(RateLimit(per_s=10, burst=2), 5 * S)
    assert not rate.count(2, 5 * S)
    assert rate.count(1, 4 * S)


def test_the_words_of_a_storm_hold_the_numbers() -> None:
    rate = InterruptRate(RateLimit(per_s=10, burst=2), 0)
    rate.count(7, 0)
    assert "7 interrupts at once and 7 in all" in rate.text(7)
    assert "storm 1" in rate.text(7)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, S)), max_size=50))
def test_no_more_than_the_burst_and_the_rate_come_through(steps: list[tuple[int, int]]) -> None:
    limit = RateLimit(per_s=100, burst=20)
    rate = InterruptRate(limit, 0)
    now = through = since = 0
    for number, wait in steps:
        now += wait
        if rate.count(number, now):
            through, since = 0, now
        else:
            through += number
            assert through <= limit.burst + (now - since) * limit.per_s // S + 1
