"""firmware.profile_histogram: log-spaced bins, and weights that fade by half-lives."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware.profile_histogram import (
    BINS,
    MAX_VALUE,
    MAX_WEIGHT,
    STEPS,
    WEIGHTS,
    Histogram,
    bin_of,
    upper_edge,
)

SECOND = 1_000_000_000
HALF_LIFE = 64 * SECOND
values = st.integers(-5, 1 << 40)
times = st.integers(0, 40 * HALF_LIFE)
samples = st.lists(st.tuples(values, times), max_size=60)


def histogram(pairs: list[tuple[int, int]]) -> Histogram:
    found = Histogram(HALF_LIFE)
    for value, at_ns in pairs:
        found.add(value, at_ns)
    return found


def test_the_example_of_the_docstring_by_hand() -> None:
    found = histogram([(100, 0), (200, 32 * SECOND)])
    assert (found.first, found.weights[0], found.weights[-1], found.total) == (36, 256, 362, 618)
    assert (found.percentile(90), found.percentile(40)) == (200, 103)
    found.add(100, 64 * SECOND)
    assert (found.weights[0], found.weights[-1]) == (384, 181)
    assert found.percentile(60) == 103
    assert found.percentile(70) == 200


def test_the_weights_are_powers_of_two_to_the_last_digit() -> None:
    assert WEIGHTS[:3] == (256, 259, 262)  # 256, 258.79, 261.60
    assert (WEIGHTS[STEPS // 4], WEIGHTS[STEPS // 2], WEIGHTS[-1]) == (304, 362, 506)


def test_a_sample_weighs_half_as_much_after_a_half_life() -> None:
    one = histogram([(8, 5 * SECOND)])
    fresh = one.total
    one.decay(69 * SECOND)
    assert one.total == fresh // 2


def test_a_single_sample_is_forgotten_after_nine_half_lives() -> None:
    one = histogram([(8, 0)])
    one.decay(8 * HALF_LIFE)
    assert (one.total, one.highest) == (1, 8)
    one.decay(9 * HALF_LIFE)
    assert (one.total, one.highest, len(one.weights)) == (0, 0, 0)
    assert one.percentile(90) == 0


def test_a_peak_that_grows_takes_the_place_of_what_it_was() -> None:
    found = histogram([(100, 10), (7, 10)])
    found.move(100, 5000, 10)
    assert [(low, high) for low, high, _ppm in found.shares()] == [(7, 7), (4608, 5000)]
    assert found.total == 512


def test_many_samples_fill_no_bin_to_the_brim() -> None:
    found = histogram([(3, 0)])
    found.weights[0] = found.total = MAX_WEIGHT
    found.add(9, 0)
    assert found.total == sum(found.weights) == MAX_WEIGHT // 2 + 256
    assert found.highest == 9


@given(st.integers(0, MAX_VALUE))
def test_a_value_lies_in_its_bin_and_the_bin_is_narrow(value: int) -> None:
    index = bin_of(value)
    assert 0 <= index < BINS
    assert value <= upper_edge(index) <= value + value // 8
    assert index == 0 or upper_edge(index - 1) < value


@given(samples, times, st.integers(1, 100))
def test_decay_never_makes_a_percentile_pass_the_peak(
    pairs: list[tuple[int, int]], at_ns: int, percent: int
) -> None:
    found = histogram(pairs)
    peak = found.highest
    assert peak <= max([min(max(value, 0), MAX_VALUE) for value, _at_ns in pairs], default=0)
    assert found.percentile(percent) <= peak
    found.decay(at_ns)
    assert found.percentile(percent) <= found.highest <= peak


@given(samples)
def test_a_histogram_stays_bounded_and_its_sum_is_right(pairs: list[tuple[int, int]]) -> None:
    found = histogram(pairs)
    assert found.total == sum(found.weights) <= MAX_WEIGHT
    assert len(found.weights) <= BINS
    assert not found.weights or (found.weights[0] and found.weights[-1])
    assert found.percentile(50) <= found.percentile(90) <= found.percentile(100) == found.highest


@given(samples)
def test_what_is_written_is_read_back_to_the_last_weight(pairs: list[tuple[int, int]]) -> None:
    found = histogram(pairs)
    back = Histogram.from_json(json.loads(json.dumps(found.to_json())), HALF_LIFE)
    if found.total:
        assert back.to_json() == found.to_json()
        assert back.total == found.total
    else:
        assert back.total == 0


@given(samples, samples)
def test_a_merge_is_what_one_histogram_would_have_learned(
    one: list[tuple[int, int]], other: list[tuple[int, int]]
) -> None:
    """Within what rounding down at each half-life may take away."""
    whole = histogram(sorted(one + other, key=lambda pair: pair[1]))
    merged = histogram(sorted(one, key=lambda pair: pair[1]))
    merged.merge(histogram(sorted(other, key=lambda pair: pair[1])))
    assert abs(merged.total - whole.total) <= 2 * len(one + other)
    assert merged.total == sum(merged.weights)
    if merged.total and whole.total:
        assert merged.epoch == whole.epoch


@given(st.lists(values, max_size=20), st.integers(0, HALF_LIFE - 1), st.randoms())
def test_the_order_of_samples_of_one_time_does_not_matter(
    found: list[int], at_ns: int, rng: object
) -> None:
    before = histogram([(value, at_ns) for value in found])
    rng.shuffle(found)  # type: ignore[attr-defined]
    after = histogram([(value, at_ns) for value in found])
    assert before.to_json() == after.to_json()


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": -1},
        {"epoch": 1 << 40},
        {"first": BINS},
        {"first": 250, "weights": [1] * 7},
        {"highest": -1},
        {"highest": True},
        {"weights": []},
        {"weights": "11"},
        {"weights": [0, 0]},
        {"weights": [-1, 9]},
        {"weights": [1.5]},
        {"weights": [MAX_WEIGHT, 1]},
    ],
    ids=str,
)
def test_a_record_that_can_not_be_is_read_as_empty(change: dict[str, object]) -> None:
    good = histogram([(100, 0)]).to_json()
    assert Histogram.from_json(good, HALF_LIFE).total == 256
    assert Histogram.from_json({**good, **change}, HALF_LIFE).total == 0
