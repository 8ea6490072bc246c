"""firmware.profile and firmware.profile_meter: from reports to what should be reserved next."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware.profile import (
    CPU,
    DAY_S,
    LINK,
    MEMORY,
    NVME,
    OOM_LEAST_BYTES,
    SECOND_NS,
    Profile,
    trusted_from_above,
    trusted_from_below,
    with_headroom,
)
from firmware.profile_meter import MEMORY_WINDOW_NS, WINDOW_NS, Meter, Window

MIB = 1 << 20
MINUTE_S = 60
counts = st.none() | st.integers(0, 1 << 50)


def measured(seconds: int, cpu_milli: int) -> Profile:
    """So many seconds in windows of ten, all alike."""
    found = Profile("busybox", "a")
    for end_s in range(10, seconds + 1, 10):
        found.add_window(end_s * SECOND_NS, WINDOW_NS, (cpu_milli, None, None))
    return found


# --- the published formula (recommender.go, estimator.go) ---


@pytest.mark.parametrize(
    ("seconds", "factor"),
    [(12 * 3600, "3.00"), (DAY_S, "2.00"), (7 * DAY_S, "1.14")],
)
def test_from_above_it_is_trusted_as_the_recommender_says(seconds: int, factor: str) -> None:
    assert f"{trusted_from_above(10**6, seconds) / 10**6:.2f}" == factor


@pytest.mark.parametrize(
    ("minutes", "factor"),
    [(0, "0.00"), (5, "0.60"), (30, "0.91"), (60, "0.95")],
)
def test_from_below_it_is_trusted_as_the_recommender_says(minutes: int, factor: str) -> None:
    assert f"{trusted_from_below(10**6, minutes * MINUTE_S) / 10**6:.2f}" == factor


def test_the_example_of_the_docstring_by_hand() -> None:
    found = measured(300, 200)
    assert (found.windows, found.confidence_s) == (30, 300)
    assert (found.percentile(CPU, 90), found.target(CPU)) == (200, 230)
    assert (found.lower(CPU), found.upper(CPU)) == (138, 66_470)


def test_the_target_is_the_ninetieth_percentile_and_head_room() -> None:
    found = measured(80, 100)  # eight windows of 100, two of 1,000
    for end_s in (90, 100):
        found.add_window(end_s * SECOND_NS, WINDOW_NS, (1000, None, None))
    assert (found.percentile(CPU, 50), found.percentile(CPU, 80)) == (103, 103)
    assert found.target(CPU) == 1150
    assert found.peak(CPU) == 1000


def test_a_target_follows_each_new_sample() -> None:
    found = measured(10, 100)
    assert found.target(CPU) == 115
    found.add_window(20 * SECOND_NS, WINDOW_NS, (400, None, None))
    assert found.target(CPU) == 460
    found.add_peak(0, MEMORY_WINDOW_NS, None, 100 * MIB)
    assert found.target(MEMORY) == 115 * MIB
    found.add_peak(0, MEMORY_WINDOW_NS, 100 * MIB, 200 * MIB)
    assert found.target(MEMORY) == 230 * MIB
    found.decay(10 * DAY_S * SECOND_NS)
    assert found.target(MEMORY) == 0


def test_confidence_is_the_shorter_of_what_was_covered_and_how_long_ago_it_began() -> None:
    found = Profile("busybox", "a")
    for _replica in range(50):
        found.add_window(20 * SECOND_NS, WINDOW_NS, (1, None, None))
    assert (found.covered_ns // SECOND_NS, found.confidence_s) == (500, 10)
    found.add_window(10_000 * SECOND_NS, WINDOW_NS, (1, None, None))
    assert found.confidence_s == 510


def test_nothing_is_known_without_a_sample() -> None:
    found = Profile("busybox", "a")
    for index in (CPU, MEMORY, NVME, LINK):
        assert (found.target(index), found.hint(index), found.lower(index)) == (0, 0, 0)
        assert found.upper(index) is None


def test_a_target_steers_no_choice_before_twenty_seconds() -> None:
    assert measured(10, 200).hint(CPU) == 0
    assert measured(20, 200).hint(CPU) == 230


# --- memory is never under-reserved twice ---


def test_a_peak_above_the_reservation_is_a_floor_for_ever() -> None:
    found = Profile("busybox", "a")
    found.add_peak(0, MEMORY_WINDOW_NS, None, 100 * MIB)
    assert not found.on_peak(100 * MIB, 100 * MIB)
    assert not found.on_peak(100 * MIB, 0)  # nobody knows what it reserved
    assert found.on_peak(100 * MIB, 99 * MIB)
    assert not found.on_peak(100 * MIB, 99 * MIB)
    assert (found.floor_bytes, found.urgent) == (115 * MIB, True)
    for day in range(1, 30):
        found.add_peak(day * DAY_S * SECOND_NS, day * DAY_S * SECOND_NS, None, MIB)
    assert found.peak(MEMORY) <= MIB + MIB // 8
    assert found.lower(MEMORY) == found.target(MEMORY) == found.hint(MEMORY) == 115 * MIB


def test_an_out_of_memory_kill_needs_a_hundred_mebibytes_more_or_a_fifth() -> None:
    small, large = Profile("busybox", "a"), Profile("busybox", "b")
    assert small.on_oom(100 * MIB)
    assert small.floor_bytes == 200 * MIB == 100 * MIB + OOM_LEAST_BYTES
    large.add_peak(0, MEMORY_WINDOW_NS, None, 2000 * MIB)
    assert large.on_oom(1000 * MIB)  # it had used more than it reserved
    assert large.floor_bytes == 2400 * MIB
    assert not large.on_oom(1000 * MIB)
    assert large.ooms == 2


@given(st.lists(st.tuples(st.integers(0, 1 << 52), st.integers(0, 1 << 40)), max_size=30))
def test_no_peak_is_above_the_next_reservation_once_it_was_above_one(
    reports: list[tuple[int, int]],
) -> None:
    found, most = Profile("busybox", "a"), 0
    for peak, reserved in reports:
        found.on_peak(peak, reserved)
        if peak > reserved > 0:
            most = max(most, min(peak, 1 << 49))
        assert found.lower(MEMORY) >= most


# --- the meter ---


def test_counters_become_rates_over_windows_of_ten_seconds() -> None:
    found, meter = Profile("busybox", "a"), Meter()
    for second in range(21):
        counters = (second * 250_000, second * 125_000, second * 1_250_000)
        meter.read(found, second * SECOND_NS, counters, None)
    assert (found.windows, found.confidence_s) == (2, 20)
    assert (found.peak(CPU), found.peak(NVME), found.peak(LINK)) == (250, 1000, 10_000)


def test_a_window_that_was_cut_short_counts_from_one_second_on() -> None:
    found, meter = Profile("busybox", "a"), Meter()
    meter.read(found, 0, (0, None, None), None)
    meter.read(found, SECOND_NS // 2, (100_000, None, None), None)
    meter.close(found)
    assert found.windows == 0
    meter.read(found, 3 * SECOND_NS, (600_000, None, None), None)
    meter.close(found)
    assert (found.windows, found.peak(CPU)) == (1, 200)


def test_a_counter_that_is_not_there_or_goes_back_is_no_sample() -> None:
    found, meter = Profile("busybox", "a"), Meter()
    for second, cpu_us in enumerate((None, 5_000_000, 1_000, 1_000_000 + 1_000, None)):
        meter.read(found, second * SECOND_NS, (cpu_us, None, None), None)
    meter.close(found)
    assert found.peak(CPU) == 1000  # of the one second that has a counter at both ends
    assert not found.usage[NVME].total


def test_time_that_stands_still_or_goes_back_tells_nothing() -> None:
    found, meter = Profile("busybox", "a"), Meter()
    for at_ns, cpu_us in ((5, 0), (5, 10), (3, 20), (5 + SECOND_NS, 1_000_020)):
        meter.read(found, at_ns, (cpu_us, None, None), 4 * MIB)
    meter.close(found)
    assert found.peak(CPU) == 1000


def test_a_memory_peak_is_one_sample_for_each_window() -> None:
    found, meter = Profile("busybox", "a"), Meter()
    for second, memory in enumerate((5, 80, 30, 81, 0)):
        meter.read(found, second * SECOND_NS, (None, None, None), memory * MIB)
    assert found.usage[MEMORY].total == 256  # at the first 64th of the half-life
    assert (found.percentile(MEMORY, 1), found.peak(MEMORY)) == (81 * MIB, 81 * MIB)
    meter.read(found, MEMORY_WINDOW_NS, (None, None, None), 7 * MIB)
    assert found.usage[MEMORY].total > 256
    assert found.percentile(MEMORY, 1) <= 7 * MIB + MIB


@given(
    st.lists(st.tuples(st.integers(1, 10**9), counts, counts, counts), min_size=1, max_size=12),
    st.randoms(),
)
def test_the_order_of_samples_in_one_window_does_not_matter(
    pieces: list[tuple[int, Any, Any, Any]], rng: Any
) -> None:
    rates = []
    for _turn in range(2):
        window = Window()
        for length_ns, cpu, nvme, link in pieces:
            window.add(length_ns, (cpu, nvme, link))
        rates.append((window.length_ns, window.rates()))
        rng.shuffle(pieces)
    assert rates[0] == rates[1]


@given(st.lists(st.integers(0, 1 << 40), min_size=1, max_size=20), st.randoms())
def test_nor_does_the_order_of_memory_levels(levels: list[int], rng: Any) -> None:
    found = []
    for _turn in range(2):
        profile, meter = Profile("busybox", "a"), Meter()
        for second, level in enumerate(levels):
            meter.read(profile, second * SECOND_NS, (None, None, None), level)
        found.append(profile.usage[MEMORY].to_json())
        rng.shuffle(levels)
    assert found[0] == found[1]


# --- what it says stays in order ---

reports = st.lists(
    st.tuples(
        st.integers(1, 3600), st.tuples(counts, counts, counts), st.none() | st.integers(0, 1 << 60)
    ),
    max_size=25,
)


@given(reports)
def test_percentiles_bounds_and_sizes_hold_whatever_a_module_reports(reports: Any) -> None:
    found, meter, at_s = Profile("busybox", "a"), Meter(), 0
    confidence = 0
    for step_s, counters, memory in reports:
        at_s += step_s
        meter.read(found, at_s * SECOND_NS, counters, memory)
        assert found.confidence_s >= confidence, "evidence only grows"
        confidence = found.confidence_s
    for index in (CPU, MEMORY, NVME, LINK):
        assert found.percentile(index, 50) <= found.percentile(index, 90) <= found.peak(index)
        assert len(found.usage[index].weights) <= 256
        upper = found.upper(index)
        assert upper is None or found.lower(index) <= found.target(index) <= upper
    back = Profile.from_json(json.loads(json.dumps(found.to_json())))
    assert back is not None
    assert back.to_json() == found.to_json()


def test_the_longer_the_evidence_the_closer_the_bounds() -> None:
    steps = [measured(seconds, 200) for seconds in (10, 60, 300, 3600)]
    for before, after in pairwise(steps):
        assert before.lower(CPU) < after.lower(CPU) <= after.target(CPU)
        assert (before.upper(CPU) or 0) > (after.upper(CPU) or 0) >= after.target(CPU)


def test_head_room_is_fifteen_percent() -> None:
    assert (with_headroom(100), with_headroom(0), with_headroom(1)) == (115, 0, 1)
