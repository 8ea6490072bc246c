"""firmware.allocator.index: the kept answers are the answers, compiled or not."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware.allocator import (
    AcceleratorDemand,
    AcceleratorPool,
    AllocatorState,
    Capacity,
    CnmView,
    Constraints,
    Demand,
    DoesNotFit,
    best_cnm,
    fits,
    fragmentation_milli,
    select_best_cnm,
    select_cnms,
)
from firmware.allocator.index import Index, index_of, is_simple
from hal import native_placement

GIB = 1 << 30

POOLS = st.lists(
    st.builds(
        AcceleratorPool,
        kind=st.sampled_from(["gpu", "npu"]),
        model=st.sampled_from(["a", "b"]),
        count=st.integers(1, 4),
    ),
    max_size=2,
)
CAPACITIES = st.builds(
    Capacity,
    cpu_milli=st.integers(1000, 16_000),
    memory_bytes=st.integers(1, 64).map(lambda n: n * GIB),
    nvme_bytes=st.sampled_from([0, 1 << 50]),
    nvme_mbit=st.integers(0, 4000),
    window_slots=st.integers(0, 3),
    accelerators=POOLS.map(tuple),
)
DEMANDS = st.builds(
    Demand,
    cpu_milli=st.integers(0, 6000),
    memory_bytes=st.integers(0, 8 * GIB),
    nvme_mbit=st.sampled_from([0, 0, 700]),
    window_slots=st.sampled_from([0, 0, 1]),
    hint_cpu_milli=st.sampled_from([0, 0, 5000]),
    accelerators=st.lists(
        st.builds(
            AcceleratorDemand,
            kind=st.sampled_from(["gpu", "npu"]),
            model=st.sampled_from([None, "a", "b", "a|b"]),
            count=st.integers(1, 3),
            milli=st.sampled_from([1000, 700, 300, 150]),
        ),
        max_size=1,
    ).map(tuple),
)
CONSTRAINTS = st.builds(
    Constraints,
    workload=st.just("w"),
    component=st.sampled_from(["x", "y"]),
    spread=st.booleans(),
    max_per_cnm=st.sampled_from([0, 0, 2]),
    exclude=st.sets(st.sampled_from(["cnm0", "cnm1"]), max_size=1).map(frozenset),
)


def books(capacities: Sequence[Capacity]) -> AllocatorState:
    state = AllocatorState()
    for number, capacity in enumerate(capacities):
        state.add_cnm(CnmView(id=f"cnm{number}", arch="any", capacity=capacity, labels={}))
    return state


def by_criteria(state: AllocatorState, demand: Demand, constraints: Constraints) -> str | None:
    """What the filter and the criteria say without anything that is kept."""
    found, _reasons = select_cnms(state, demand, constraints)
    return select_best_cnm(state, found, demand, constraints) if found else None


def content(state: AllocatorState) -> object:
    return {
        cnm: (node.used, node.free_milli, sorted(node.holds), dict(node.components))
        for cnm, node in state.nodes.items()
    }, dict(state.pool_free)


@pytest.mark.skipif(not native_placement.AVAILABLE, reason="hal._placement is not built")
@settings(max_examples=60, deadline=None)
@given(
    st.lists(CAPACITIES, min_size=1, max_size=6),
    st.lists(DEMANDS, min_size=1, max_size=4),
    st.lists(
        st.tuples(st.integers(0, 3), CONSTRAINTS, st.sampled_from("ppppprls"), st.integers(0, 40)),
        min_size=20,
        max_size=60,
    ),
)
def test_compiled_pure_and_unkept_answers_are_equal_while_all_changes(
    capacities: Sequence[Capacity],
    demands: Sequence[Demand],
    steps: Sequence[tuple[int, Constraints, str, int]],
) -> None:
    native, pure = books(capacities), books(capacities)
    index_of(pure, pure=True)
    for number in range(16):  # there is a mix from the first step on
        for state in (native, pure):
            state.observe(demands[number % len(demands)])
    held: list[str] = []
    for turn, (which, constraints, step, number) in enumerate(steps):
        demand = demands[which % len(demands)]
        cnm = f"cnm{number % len(capacities)}"
        assert is_simple(native, demand, constraints)
        expected = by_criteria(native, demand, constraints)
        assert index_of(native).best(native, demand, constraints) == expected
        assert index_of(pure, pure=True).best(pure, demand, constraints) == expected
        for state in (native, pure):
            if step == "p" and expected is not None:
                state.observe(demand)
                state.commit(f"i{turn}", expected, demand, constraints)
            elif step == "r" and held:
                state.release(held[number % len(held)])
            elif step == "l":
                state.set_load(cnm, cpu_milli=number * 300, memory_bytes=0)
            elif step == "s":
                state.set_schedulable(cnm, "DRAINING" if number % 2 else "")
        held = sorted(native.instances())


@given(st.lists(CAPACITIES, min_size=1, max_size=4), st.lists(DEMANDS, min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_commit_and_release_restore_the_books_and_a_fresh_index_agrees(
    capacities: Sequence[Capacity], demands: Sequence[Demand]
) -> None:
    state = books(capacities)
    for number, demand in enumerate(demands):
        state.observe(demand)
        cnm = best_cnm(state, demand)
        if cnm is not None:
            before, loss = content(state), fragmentation_milli(state)
            units = fits(state, cnm, demand)
            assert state.commit("try", cnm, demand) == units
            state.release("try")
            assert (content(state), fragmentation_milli(state)) == (before, loss)
            state.commit(f"i{number}", cnm, demand)
        fresh = Index(state.copy())
        assert fresh.best(state, demand, Constraints()) == best_cnm(state, demand)
        for node in state.nodes.values():
            assert min(node.free) >= 0
            assert all(0 <= left <= 1000 for units in node.free_milli.values() for left in units)


@given(st.lists(CAPACITIES, min_size=1, max_size=5), DEMANDS, st.randoms(use_true_random=False))
def test_what_fits_somewhere_is_placed_and_the_order_of_coming_does_not_matter(
    capacities: Sequence[Capacity], demand: Demand, rng: object
) -> None:
    state = books(capacities)
    found, _reasons = select_cnms(state, demand, Constraints())
    chosen = best_cnm(state, demand)
    assert (chosen in found) if found else chosen is None
    views = [node.view for node in state.nodes.values()]
    rng.shuffle(views)  # type: ignore[attr-defined]
    other = AllocatorState()
    for view in views:
        other.add_cnm(view)
    assert best_cnm(other, demand) == chosen


def gpu(milli: int = 1000, model: str | None = None, cpu_milli: int = 0) -> Demand:
    wanted = AcceleratorDemand(kind="gpu", model=model, milli=milli)
    return Demand(cpu_milli=cpu_milli, accelerators=(wanted,))


def test_a_scarce_model_is_kept_for_those_who_ask_for_it_by_name() -> None:
    small = Capacity(
        cpu_milli=8000,
        memory_bytes=GIB,
        accelerators=(AcceleratorPool(kind="gpu", model="rare", count=2),),
    )
    plenty = (AcceleratorPool(kind="gpu", model="usual", count=2),)
    state = books([small, replace(small, accelerators=plenty), replace(small, accelerators=plenty)])
    assert best_cnm(state, gpu()) == "cnm0"  # nothing is known yet: the least id
    for _ in range(16):
        state.observe(gpu())
        state.observe(gpu(model="rare"))
    assert best_cnm(state, gpu()) == "cnm1"
    for number in range(4):
        state.commit(f"i{number}", f"cnm{1 + number // 2}", gpu())
    assert best_cnm(state, gpu()) == "cnm0"  # kept, never refused


def test_exact_units_are_booked_or_refused_whole() -> None:
    capacity = Capacity(
        cpu_milli=8000,
        memory_bytes=GIB,
        accelerators=(AcceleratorPool(kind="gpu", model="a", count=2),),
    )
    state = books([capacity])
    state.commit("first", "cnm0", gpu(600))
    (unit,) = fits(state, "cnm0", gpu(600)) or ()
    assert unit.index == 1
    before = content(state)
    with pytest.raises(DoesNotFit, match="gpu/a 0: 600 milli are not free"):
        state.commit("second", "cnm0", gpu(600), units=(replace(unit, index=0),))
    assert content(state) == before
    assert state.commit("second", "cnm0", gpu(600), units=(unit,)) == (unit,)
