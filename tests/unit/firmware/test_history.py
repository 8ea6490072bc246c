"""firmware.history: rings of fixed size, held to a model that forgets nothing."""

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from firmware.allocator import AcceleratorPool, AllocatorState, Capacity, CnmView, Demand
from firmware.history import (
    BYTES_PER_CNM,
    CNMS_A_TURN,
    LEVELS,
    MOST_PERMILLE,
    SAMPLE_MS,
    SERIES,
    UNKNOWN,
    History,
    HistoryKeeper,
    accelerators_permille,
    permille,
)
from firmware.loop import MS
from tests.unit.firmware.fake_reactor import FakeReactor

NOTHING = [None] * len(SERIES)


def take(history: History, step: int, **values: int | None) -> None:
    """One step: the first series of each module; the others are not known."""
    history.begin(step)
    for cnm, value in values.items():
        row = None if value is None else [value, *NOTHING[1:]]
        history.write(cnm, row)
    history.finish()


def first(history: History, level: int, count: int, cnm: str = "cnm0") -> list[int | None]:
    newest = history.newest(level)
    return history.read(cnm, level, newest - count + 1, count)[SERIES[0]]


def test_the_numbers_of_the_docstring_hold() -> None:
    assert [level.step_ms for level in LEVELS] == [SAMPLE_MS, 60_000, 900_000]
    assert [level.span_ms // 60_000 for level in LEVELS] == [10, 60, 24 * 60]
    for finer, coarser in pairwise(LEVELS):
        assert finer.step_ms * coarser.finer == coarser.step_ms
        assert coarser.finer <= finer.steps, "it closes from what is still there"
    assert (len(SERIES), sum(level.steps for level in LEVELS)) == (9, 216)
    assert BYTES_PER_CNM == 3888


def test_a_module_has_one_array_of_the_stated_size_however_long_it_runs() -> None:
    history = History()
    for step in range(3 * 90):
        take(history, step, cnm0=step % 1000)
    [row] = history._rows.values()
    assert row.itemsize * len(row) == BYTES_PER_CNM


def test_steps_are_kept_as_sampled_and_minutes_as_their_means() -> None:
    history = History()
    for step in range(14):
        take(history, step, cnm0=100 * step)
    assert first(history, 0, 3) == [1100, 1200, 1300]
    assert first(history, 1, 3) == [250, 850, 1250], "the last is the mean of what there is of it"


def test_what_was_slept_through_or_not_there_is_not_known() -> None:
    history = History()
    take(history, 0, cnm0=100)
    take(history, 3, cnm0=None, cnm1=500)
    take(history, 4, cnm0=300, cnm1=None)
    assert first(history, 0, 6) == [None, 100, None, None, None, 300]
    assert first(history, 0, 6, "cnm1") == [None, None, None, None, 500, None]
    assert first(history, 1, 1) == [200]
    assert first(history, 0, 2, "cnm9") == [None, None]


def test_a_step_counts_only_when_every_module_has_been_sampled() -> None:
    history = History()
    for step in range(60):
        take(history, step, cnm0=1)
    history.begin(60)  # its slot is that of step 0
    history.write("cnm0", [999, *NOTHING[1:]])
    assert history.newest(0) == 59
    assert first(history, 0, 3) == [1, 1, 1]
    history.finish()
    assert first(history, 0, 2) == [1, 999]


def test_values_that_no_word_can_hold_are_cut() -> None:
    history = History()
    take(history, 0, cnm0=1 << 40, cnm1=-5)
    assert first(history, 0, 1) == [MOST_PERMILLE]
    assert first(history, 0, 1, "cnm1") == [0]
    assert MOST_PERMILLE != UNKNOWN


gaps = st.sampled_from([1, 1, 1, 1, 2, 5, 6, 7, 61, 89, 91, 400])
samples = st.lists(st.tuples(gaps, st.none() | st.integers(0, 1000)), min_size=1, max_size=200)


@settings(max_examples=60)
@given(samples)
def test_rings_hold_what_a_model_without_limits_holds(steps: list[tuple[int, int | None]]) -> None:
    history, taken, step = History(), dict[int, int | None](), 0
    for gap, value in steps:
        step += gap
        take(history, step, cnm0=value)
        taken[step] = value

    def model(level: int, number: int) -> int | None:
        if level == 0:
            return taken.get(number)
        finer = LEVELS[level].finer
        parts = [model(level - 1, number * finer + part) for part in range(finer)]
        known = [part for part in parts if part is not None]
        return (sum(known) + len(known) // 2) // len(known) if known else None

    if all(value is None for value in taken.values()):
        return
    for level, shape in enumerate(LEVELS):
        newest = history.newest(level)
        wanted = [model(level, n) for n in range(newest - shape.steps + 1, newest + 1)]
        assert first(history, level, shape.steps) == wanted


# --- the keeper ---


class Reactor(FakeReactor):
    """Beats come when the test says so."""

    def every(self, period_ns: int, call: Any) -> None:
        assert period_ns == SAMPLE_MS * MS
        self.beat = call


def card(count: int) -> tuple[HistoryKeeper, Reactor, list[Any], AllocatorState]:
    reactor, state = Reactor(), AllocatorState()
    report = SimpleNamespace(reading={"cpu_milli": 250, "memory_bytes": None}.get)
    cnms = [
        SimpleNamespace(id=f"cnm{n}", capabilities=object(), telemetry=report) for n in range(count)
    ]
    pool = AcceleratorPool(kind="gpu", model="a2", count=2)
    for cnm in cnms:
        capacity = Capacity(cpu_milli=1000, memory_bytes=4000, accelerators=(pool,))
        state.add_cnm(CnmView(id=cnm.id, arch="arm64", capacity=capacity, labels={}))
    placer = SimpleNamespace(state=state)
    return HistoryKeeper(reactor, cnms, placer), reactor, cnms, state  # type: ignore[arg-type]


def test_a_sample_has_what_is_reserved_and_what_was_measured() -> None:
    keeper, _reactor, cnms, state = card(1)
    state.commit("a", "cnm0", Demand(cpu_milli=500, memory_bytes=1000))
    found = dict(zip(SERIES, keeper.values(cnms[0]) or [], strict=True))
    assert (found["cpu"], found["memory"], found["accelerators"]) == (500, 250, 0)
    assert (found["cpu_used"], found["memory_used"]) == (250, None)
    assert found["nvme"] is None, "it has none"
    cnms[0].capabilities = None
    assert keeper.values(cnms[0]) is None, "a module that has gone"


def test_many_modules_are_sampled_in_several_turns_and_count_together() -> None:
    keeper, reactor, cnms, _state = card(CNMS_A_TURN * 2 + 3)
    keeper.start()
    assert keeper.history.newest(0) == -1
    reactor.run_posted()
    assert keeper.history.newest(0) == 0
    assert len(keeper.history.cnms()) == len(cnms)


def test_the_finest_level_that_reaches_back_is_chosen() -> None:
    keeper, _reactor, _cnms, _state = card(1)
    minutes = {1: 0, 10: 0, 11: 1, 60: 1, 61: 2, 24 * 60: 2, 10_000: 2}
    for minute, level in minutes.items():
        assert keeper.level_for(minute * 60_000) == level


def test_thousandths_are_rounded_down_and_nothing_of_nothing_is_not_known() -> None:
    assert [permille(*pair) for pair in ((1, 3), (3, 3), (4, 3), (None, 3), (1, 0))] == [
        333, 1000, 1333, None, None,
    ]  # fmt: skip
    assert accelerators_permille({("gpu", "a"): [1000, 250], ("fpga", "b"): [0]}) == 583
    assert accelerators_permille({}) is None


def test_a_clock_that_jumps_gives_a_later_step_and_no_work_for_those_between() -> None:
    keeper, reactor, _cnms, _state = card(2)
    keeper.start()
    reactor.run_posted()
    reactor.time_ns += 3 * 86_400_000 * MS
    reactor.beat()
    reactor.run_posted()
    assert keeper.history.newest(0) == 3 * 8640
    found = keeper.history.read("cnm0", 0, 3 * 8640 - 59, 60)["cpu"]
    assert found == [None] * 59 + [0]
