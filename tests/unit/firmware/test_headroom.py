"""firmware.headroom, and what becomes of telemetry: steps, not readings, reach the allocator."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware.allocator.score import is_strained
from firmware.allocator.state import Node
from firmware.board_hardware import Device, Place
from firmware.headroom import THERMAL_STEP_MC, below, in_steps, power_limit_mw
from protocol.apf import Kind, Telemetry, encode
from tests.fuzz.targets.card import BOOT, Bench

LIMIT_MW = 75_000


def meter(limit_mw: int | None, role: str = "power") -> Device:
    numbers = {} if limit_mw is None else {"power_high_mw": limit_mw}
    place = Place(segment="mod0", muxes=(), address=0x40)
    return Device(id="meter0", role=role, part="ina226", place=place, numbers=numbers)


@given(st.lists(st.integers(-(1 << 32), 1 << 32), min_size=1), st.integers(1, 5000))
def test_what_is_given_is_never_more_than_there_is_and_less_by_two_steps_at_most(
    readings: list[int], step: int
) -> None:
    known: int | None = None
    for reading in readings:
        known = in_steps(known, reading, step)
        assert known is not None
        assert known <= reading < known + 2 * step


@given(st.integers(-100_000, 100_000), st.lists(st.integers(0, 999), min_size=1))
def test_a_reading_that_trembles_by_less_than_a_step_changes_nothing_more(
    base: int, noise: list[int]
) -> None:
    given_ = [in_steps(None, base, 1000)]
    for more in noise:
        given_.append(in_steps(given_[-1], base + more, 1000))
    changes = sum(a != b for a, b in pairwise(given_))
    assert changes == 0


def test_what_is_not_known_is_not_made_up() -> None:
    assert in_steps(4000, None, 1000) is None
    assert below(None, 5) is below(5, None) is None
    assert below(5, 7) == -2
    assert power_limit_mw([]) is power_limit_mw([meter(None), meter(1, "temp")]) is None
    assert power_limit_mw([meter(9), meter(7)]) == 7


@pytest.fixture
def bench() -> Bench:
    """A card with one leased module."""
    made = Bench()
    for round_ in range(12):
        if round_ == 5:
            made.submit()
        for _ in range(8):
            made.answer()
        made.beat()
        made.loop.advance(100)
    made.cnm.config = replace(made.cnm.config, devices=(meter(LIMIT_MW),))
    return made


def report(bench: Bench, seq: int, **readings: int) -> Node:
    notice = encode(
        Telemetry.of(boot_id=BOOT, seq=seq, **readings), kind=Kind.NOTICE, message_id=seq
    )
    bench.tell("mc", notice)
    return bench.card.placer.state.nodes[bench.cnm.id]


def test_a_module_near_its_throttle_point_or_at_its_power_limit_is_strained(bench: Bench) -> None:
    high_mdegc = bench.card.board.thresholds.temp_high_mdegc
    node = report(bench, 2, temp_mdegc=high_mdegc - 20_000, power_mw=LIMIT_MW // 2)
    assert not is_strained(node)
    assert node.view.thermal_headroom_mc == 20_000
    assert node.view.power_headroom_mw is not None
    assert is_strained(report(bench, 3, temp_mdegc=high_mdegc - 1000, power_mw=LIMIT_MW // 2))
    assert not is_strained(report(bench, 4, temp_mdegc=40_000, power_mw=LIMIT_MW // 2))
    assert is_strained(report(bench, 5, temp_mdegc=40_000, power_mw=LIMIT_MW))
    node = report(bench, 6, cpu_milli=1)
    assert node.view.power_headroom_mw is node.view.thermal_headroom_mc is None


def test_a_new_boot_is_not_judged_by_what_the_last_one_reported(bench: Bench) -> None:
    node = report(bench, 2, temp_mdegc=bench.card.board.thresholds.temp_high_mdegc)
    assert is_strained(node)
    bench.card.monitor.forget(bench.cnm)
    assert not is_strained(node)


def test_telemetry_that_trembles_does_not_have_the_books_looked_at(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    high_mdegc = bench.card.board.thresholds.temp_high_mdegc
    state = bench.card.placer.state
    seen: list[object] = []
    real = state.set_headroom

    def counted(cnm: str, *, power_mw: int | None = None, thermal_mc: int | None = None) -> None:
        seen.append((power_mw, thermal_mc))
        real(cnm, power_mw=power_mw, thermal_mc=thermal_mc)

    monkeypatch.setattr(state, "set_headroom", counted)
    for seq in range(2, 60):
        temp_mdegc = high_mdegc - 20_000 - seq * 37 % THERMAL_STEP_MC
        report(bench, seq, temp_mdegc=temp_mdegc, power_mw=40_000 + seq * 11 % 1000)
    assert len(seen) == 1
