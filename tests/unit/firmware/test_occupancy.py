"""firmware.occupancy: reserved, free, stranded and fragmented, by hand and by properties."""

from hypothesis import given
from hypothesis import strategies as st

from firmware.allocator import (
    AcceleratorDemand,
    AcceleratorPool,
    AllocatorState,
    Capacity,
    CnmView,
    Constraints,
    Demand,
)
from firmware.allocator.mix import FIRST
from firmware.occupancy import MIX_SHAPES, RESOURCES, mix_of, occupancy


def card(*capacities: Capacity) -> AllocatorState:
    state = AllocatorState()
    for number, capacity in enumerate(capacities):
        state.add_cnm(CnmView(id=f"cnm{number}", arch="arm64", capacity=capacity, labels={}))
    return state


def test_what_is_free_behind_an_exhausted_resource_is_stranded() -> None:
    state = card(*[Capacity(cpu_milli=1000, memory_bytes=1000)] * 2)
    state.commit("a", "cnm0", Demand(cpu_milli=1000, memory_bytes=200))
    found = occupancy(state)
    memory = found.card["memory"]
    assert (memory.total, memory.reserved, memory.free) == (2000, 200, 1800)
    assert (memory.stranded, memory.largest_free) == (800, 1000)
    assert found.cnms["cnm0"]["memory"].stranded == 800
    assert found.cnms["cnm1"]["memory"].stranded == 0
    assert memory.fragmented_permille == 800 * 1000 // 1800
    assert found.card["cpu"].stranded == 0, "none is free where it is exhausted"
    assert found.card["link"].fragmented_permille is None, "nobody wants it"


def test_what_one_demand_can_still_use_is_fragmented_by_the_weight_of_the_others() -> None:
    state = card(Capacity(cpu_milli=1000, memory_bytes=1000))
    for number in range(3):
        state.commit(f"big/{number}", "cnm0", Demand(cpu_milli=280, memory_bytes=100))
    state.commit("small", "cnm0", Demand(cpu_milli=10, memory_bytes=100))
    memory = occupancy(state).card["memory"]
    assert (memory.free, memory.stranded) == (600, 0)
    assert memory.fragmented_permille == 750, "three of four that come want 280 of 150 free"


def test_units_of_accelerators_are_counted_in_thousandths_and_fit_only_as_they_are() -> None:
    pool = AcceleratorPool(kind="gpu", model="a2", count=2)
    state = card(Capacity(cpu_milli=1000, memory_bytes=1000, accelerators=(pool,)))
    shares = AcceleratorDemand(kind="gpu", milli=600)
    for name in ("a", "b"):
        state.commit(name, "cnm0", Demand(cpu_milli=10, accelerators=(shares,)))
    units = occupancy(state).card["accelerators"]
    assert (units.total, units.reserved, units.free) == (2000, 1200, 800)
    assert units.stranded == 800, "400 on each of two, and 600 on one are wanted"


def test_what_takes_nothing_new_has_nothing_free_and_nothing_stranded() -> None:
    state = card(Capacity(cpu_milli=1000, memory_bytes=1000))
    state.commit("a", "cnm0", Demand(cpu_milli=1000, memory_bytes=200))
    state.set_schedulable("cnm0", "draining")
    memory = occupancy(state).card["memory"]
    assert (memory.total, memory.reserved, memory.free, memory.stranded) == (1000, 200, 0, 0)


def test_an_empty_card_strands_nothing_and_has_no_mix() -> None:
    found = occupancy(card(Capacity(cpu_milli=1000, memory_bytes=1000)))
    assert found.mix == ()
    assert [found.card[name].stranded for name in RESOURCES] == [0] * len(RESOURCES)


def test_the_mix_is_the_most_frequent_demands_whatever_their_order() -> None:
    def filled(numbers: list[int]) -> AllocatorState:
        state = card(Capacity(cpu_milli=10**6, memory_bytes=10**6))
        for number in numbers:
            wanted = Demand(cpu_milli=1 + number % 20)
            state.commit(f"i{number}", "cnm0", wanted, Constraints(workload=f"w{number}"))
        return state

    numbers = [*range(20), *range(100, 105)]
    mix = mix_of(filled(numbers))
    assert mix == mix_of(filled(numbers[::-1]))
    assert len(mix) == MIX_SHAPES
    assert [shape.weight for shape in mix] == [2] * 5 + [1] * (MIX_SHAPES - 5)


def test_what_was_asked_for_of_late_is_the_mix_once_enough_was_asked() -> None:
    pool = AcceleratorPool(kind="gpu", model="a2", count=2)
    state = card(Capacity(cpu_milli=1000, memory_bytes=1000, accelerators=(pool,)))
    state.commit("old", "cnm0", Demand(memory_bytes=10))
    half = AcceleratorDemand(kind="gpu", model="a2", milli=500)
    for number in range(FIRST):
        assert [shape.wants[1] for shape in mix_of(state)] == [10], "not yet enough"
        state.observe(Demand(cpu_milli=1001, accelerators=(half,)) if number % 4 else Demand())
    shape, empty = mix_of(state)
    assert (shape.wants[0], shape.wants[-1], shape.accelerators) == (1001, 500, (half,))
    assert (shape.weight, empty.wants) == (3 * empty.weight, (0,) * len(RESOURCES))
    found = occupancy(state)
    assert found.card["accelerators"].stranded == 2000, "not one of them would get its CPU"
    assert found.card["memory"].stranded == 0, "nobody asks for it"


amounts = st.integers(0, 4)
capacities = st.lists(
    st.builds(Capacity, cpu_milli=amounts, memory_bytes=amounts, nvme_bytes=amounts),
    min_size=1,
    max_size=3,
)
demands = st.lists(
    st.builds(Demand, cpu_milli=amounts, memory_bytes=amounts, nvme_bytes=amounts), max_size=8
)


@given(capacities, demands)
def test_the_card_is_the_sum_of_its_modules_and_no_share_leaves_its_bounds(
    found: list[Capacity], wanted: list[Demand]
) -> None:
    state = card(*found)
    for number, demand in enumerate(wanted):
        state.adopt(f"i{number}", f"cnm{number % len(found)}", demand)
    seen = occupancy(state)
    for name in RESOURCES:
        whole, rows = seen.card[name], [row[name] for row in seen.cnms.values()]
        for field in ("total", "reserved", "free", "stranded"):
            assert getattr(whole, field) == sum(getattr(row, field) for row in rows)
        for row in [whole, *rows]:
            assert 0 <= row.stranded <= row.free <= row.total
            assert row.fragmented_permille is None or 0 <= row.fragmented_permille <= 1000
            assert row.fragmented_permille in (None, 1000) or row.stranded < row.free
