"""What a seed draws."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware.board import load_board
from firmware.board_types import TIMING_LIMITS, Timing
from tools.sim.faults import FAULTS, Fault, Site, chosen
from tools.sim.plan import ASKED, SWITCHES, Plan, Style, at_rate, draw
from tools.sim.run import sim_board

BOARD = load_board("mock_32", run_dir="/run/apf", host_arch="arm64")
SEEDS = st.integers(min_value=0, max_value=1 << 32)


def nothing(_site: Site) -> None:
    return None


MODELLED = [
    Fault(id=name, text="x", inject=nothing) for name in ("L1", "L2", "C1", "S5", "D1", "X1")
]


def drawn(seed: int, **changes: object) -> Plan:
    wanted: dict = {"board": BOARD, "hours": 0.25, "heartbeat_hz": 1.0, "faults": MODELLED}
    return draw(seed, **{**wanted, **changes})


@given(seed=SEEDS)
@settings(max_examples=50)
def test_a_seed_draws_the_same_plan_each_time(seed: int) -> None:
    assert drawn(seed) == drawn(seed)


@given(seed=SEEDS, heartbeat_hz=st.sampled_from((0.1, 0.5, 1.0, 3.0, 10.0, 100.0)))
@settings(max_examples=100)
def test_every_plan_is_lawful(seed: int, heartbeat_hz: float) -> None:
    plan = drawn(seed, heartbeat_hz=heartbeat_hz)
    timing = plan.board.timing
    assert timing.lease_ms >= timing.lease_min_rounds_ms  # DESIGN section 4, rule 6
    assert timing.lease_ms >= timing.lease_min_restart_ms
    assert timing.suspect_ms >= 2 * timing.heartbeat_ms
    assert timing.heartbeat_ms == round(1000 / heartbeat_hz)
    for name, (least, most) in TIMING_LIMITS.items():
        assert least <= getattr(timing, name) <= most, name
    assert all(abs(rate) <= timing.clock_rate_ppm for rate in plan.rates_ppm.values())
    assert set(plan.fences) == {slot.id for slot in plan.board.slots}
    assert 1 <= len(plan.board.slots) <= len(BOARD.slots)
    assert sum(plan.rounds_ns) < plan.total_ns
    assert 0 < plan.haste <= 1
    assert plan.steps
    assert [step.number for step in plan.steps] == list(range(len(plan.steps)))
    assert [step.at_ns for step in plan.steps] == sorted(step.at_ns for step in plan.steps)
    assert plan.steps[-1].at_ns < plan.total_ns
    known = {fault.id for fault in MODELLED} | ASKED.keys() | SWITCHES.keys()
    assert {step.what for step in plan.steps} <= known
    assert len(plan.switched) == len(plan.rounds_ns)
    assert set(plan.switched) <= {None, *(slot.id for slot in plan.board.slots)}


def test_seeds_differ_in_everything() -> None:
    plans = [drawn(seed) for seed in range(200)]
    assert {plan.style for plan in plans} == set(Style)
    sizes = [len(plan.board.slots) for plan in plans]
    assert {1, 2, 3, 32} <= set(sizes)
    assert sorted(sizes)[len(sizes) // 2] <= 4  # small ones mostly
    assert {len(plan.rounds_ns) for plan in plans} == {1, 2, 3}
    assert len({plan.baud for plan in plans}) > 2
    assert len({plan.board.timing for plan in plans}) > 10
    assert {kind.value for plan in plans for kind in plan.fences.values()} == {"power", "lease"}
    off = [plan for plan in plans if any(step.what == "off" for step in plan.steps)]
    assert 20 < len(off) < 100
    assert any(name is not None for plan in off for name in plan.switched)


def test_one_class_of_faults_means_one() -> None:
    plans = [plan for plan in map(drawn, range(100)) if plan.style is Style.ONE_CLASS]
    assert plans
    for plan in plans:
        letters = {step.what[0] for step in plan.steps if step.what in FAULTS}
        assert len(letters) == 1


def test_a_fault_that_is_not_modelled_is_not_drawn() -> None:
    silent = dataclasses.replace(FAULTS["P4"], inject=None, not_modelled="nothing to break")
    plan = drawn(1, faults=[silent])
    assert not any(step.what == "P4" for step in plan.steps)
    assert {step.what for step in plan.steps} <= ASKED.keys() | SWITCHES.keys()


def test_a_fault_of_what_a_board_does_not_have_is_not_drawn_and_changes_nothing() -> None:
    others = [fault for name, fault in FAULTS.items() if name[0] != "B"]
    for seed in range(20):
        assert drawn(seed, faults=list(FAULTS.values())) == drawn(seed, faults=others)
    rev_a = sim_board("rev_a")
    plans = [drawn(seed, board=rev_a, faults=[FAULTS["B1"]]) for seed in range(5)]
    assert any(step.what == "B1" for plan in plans for step in plan.steps)


def test_no_fault_at_all_is_a_plan_too() -> None:
    assert {step.what for step in drawn(1, faults=[]).steps} <= ASKED.keys() | SWITCHES.keys()


def test_a_board_with_one_slot_has_plans() -> None:
    small = dataclasses.replace(BOARD, slots=BOARD.slots[:1])
    for seed in range(50):
        assert len(drawn(seed, board=small).board.slots) == 1


def test_the_boards_own_lease_stays_where_it_is_long_enough() -> None:
    assert at_rate(Timing(), 10.0) == Timing()
    assert at_rate(Timing(), 1.0).lease_ms == 10_000


@pytest.mark.parametrize("heartbeat_hz", [0.0, 0.01, 1000.0, -1.0, float("nan")])
def test_a_heartbeat_rate_that_no_board_may_have_is_refused(heartbeat_hz: float) -> None:
    with pytest.raises(ValueError, match="heartbeat rate"):
        drawn(1, heartbeat_hz=heartbeat_hz)


@pytest.mark.parametrize("hours", [0.0, -1.0, 1e9, float("nan")])
def test_a_time_out_of_range_is_refused(hours: float) -> None:
    with pytest.raises(ValueError, match="hours"):
        drawn(1, hours=hours)


def test_the_whole_catalogue_can_be_drawn() -> None:
    for board in (BOARD, sim_board("rev_a")):
        real = {f.id for f in chosen("all") if f.inject is not None and f.fits(board)}
        found: set[str] = set()
        for seed in range(60):
            found |= {step.what for step in drawn(seed, board=board, faults=chosen("all")).steps}
        assert real <= found
