"""Fewer steps that break the same."""

from hypothesis import given
from hypothesis import strategies as st

from tools.sim.shrink import shrink

NUMBERS = list(range(64))


@given(needed=st.sets(st.integers(0, 63), max_size=4))
def test_exactly_the_steps_that_matter_are_left(needed: set[int]) -> None:
    found = shrink(NUMBERS, lambda numbers: needed <= numbers, runs_most=10_000)
    assert found is not None
    assert set(found.numbers) == needed
    assert found.whole


@given(
    needed=st.sets(st.integers(0, 63), min_size=2, max_size=20),
    runs_most=st.integers(2, 40),
)
def test_what_is_left_breaks_it_however_few_runs_there_were(
    needed: set[int], runs_most: int
) -> None:
    runs: list[frozenset[int]] = []

    def breaks(numbers: frozenset[int]) -> bool:
        runs.append(numbers)
        return needed <= numbers

    found = shrink(NUMBERS, breaks, runs_most=runs_most)
    assert found is not None
    assert needed <= set(found.numbers)
    assert found.runs == len(runs) <= runs_most
    assert found.whole or found.runs == runs_most
    assert list(found.numbers) == sorted(found.numbers)


def test_no_subset_is_run_twice() -> None:
    runs: list[frozenset[int]] = []

    def breaks(numbers: frozenset[int]) -> bool:
        runs.append(numbers)
        return {3, 40} <= numbers

    shrink(NUMBERS, breaks)
    assert len(runs) == len(set(runs))


def test_what_breaks_with_no_step_needs_none() -> None:
    found = shrink(NUMBERS, lambda _numbers: True)
    assert found is not None
    assert found.numbers == ()
    assert found.runs == 1


def test_what_does_not_break_again_is_not_made_shorter() -> None:
    assert shrink(NUMBERS, lambda _numbers: False) is None


def test_no_processor_time_is_no_search() -> None:
    assert shrink(NUMBERS, lambda _numbers: True, cpu_most_s=-1.0) is None
