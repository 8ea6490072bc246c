"""firmware.allocator: no replica is left without those that it must be together with."""

from itertools import permutations

from hypothesis import given
from hypothesis import strategies as st

from firmware.allocator import AllocatorState, Capacity, CnmView, Placement, place
from firmware.profiler import InstanceNeed, Profiler, analyze_workload
from firmware.workload import Workload

RUNTIMES = frozenset({"process"})


def card(modules: int, cores: int) -> AllocatorState:
    state = AllocatorState()
    for number in range(modules):
        capacity = Capacity(cpu_milli=cores * 1000, memory_bytes=64 << 30)
        view = CnmView(
            id=f"m{number}", arch="amd64", capacity=capacity, labels={}, runtimes=RUNTIMES
        )
        state.add_cnm(view)
    return state


def needs_of(
    replicas: dict[str, int], placements: dict[str, dict[str, object]]
) -> list[InstanceNeed]:
    """Components of a core each, all of them together with the first."""
    first = next(iter(replicas))
    parts = [
        {
            "name": name,
            "image": "host",
            "replicas": count,
            "resources": {"cpu_milli": 1000, "memory_bytes": 1 << 20},
            "placement": {
                **placements.get(name, {}),
                **({} if name == first else {"together": [first]}),
            },
        }
        for name, count in replicas.items()
    ]
    document = {"schema": "apf-workload/1", "name": "w", "components": parts}
    return analyze_workload(Workload.from_json(document), Profiler())


def place_all(state: AllocatorState, needs: list[InstanceNeed]) -> dict[str, str]:
    """In this order; what waits is offered again as long as that helps."""
    placed: dict[str, str] = {}
    waiting = list(needs)
    while waiting:
        before = len(waiting)
        for need in list(waiting):
            answer = place(state, need.demand, need.constraints)
            if isinstance(answer, Placement):
                state.commit(need.instance, answer.cnm, need.demand, need.constraints)
                placed[need.instance] = answer.cnm
                waiting.remove(need)
        if len(waiting) == before:
            break
    return placed


def alone(placed: dict[str, str], names: list[str]) -> list[str]:
    on = {n: {cnm for i, cnm in placed.items() if i.split("/")[1] == n} for n in names}
    return [i for i, cnm in placed.items() if any(cnm not in on[name] for name in names)]


@given(
    st.lists(st.integers(1, 3), min_size=2, max_size=3),
    st.lists(st.sampled_from([{}, {"spread": True}, {"max_per_cnm": 1}]), min_size=3, max_size=3),
    st.integers(1, 4),
    st.integers(1, 10),
    st.randoms(use_true_random=False),
)
def test_when_all_are_placed_nobody_is_alone_in_whatever_order_they_came(
    counts: list[int], placements: list[dict[str, object]], modules: int, cores: int, rng: object
) -> None:
    names = list("abc"[: len(counts)])
    needs = needs_of(
        dict(zip(names, counts, strict=True)), dict(zip("abc", placements, strict=True))
    )
    rng.shuffle(needs)  # type: ignore[attr-defined]
    placed = place_all(card(modules, cores), needs)
    if len(placed) == len(needs):
        assert alone(placed, names) == []


def test_on_a_card_with_room_all_are_placed_in_any_order() -> None:
    needs = needs_of({"a": 2, "b": 2, "c": 1}, {"a": {"spread": True}})
    for order in permutations(needs):
        placed = place_all(card(3, 8), list(order))
        assert len(placed) == len(needs)
        assert alone(placed, ["a", "b", "c"]) == []


def test_pairs_that_must_not_share_a_module_are_pairs_on_different_modules() -> None:
    once: dict[str, object] = {"max_per_cnm": 1}
    needs = needs_of({"a": 3, "b": 3}, {"a": once, "b": once})
    for order in permutations(needs):
        placed = place_all(card(3, 2), list(order))
        assert alone(placed, ["a", "b"]) == []


def test_partners_go_where_they_are_missed_when_no_more_are_to_come() -> None:
    needs = needs_of({"a": 2, "b": 2}, {"a": {"spread": True}})
    state = card(2, 8)
    placed = place_all(state, needs)
    assert len(set(placed.values())) == 2
    assert alone(placed, ["a", "b"]) == []
    needs = needs_of({"a": 2, "b": 3}, {"a": {"spread": True}})
    placed = place_all(card(2, 8), needs)
    assert [placed[f"w/b/{n}"] for n in range(3)] == ["m0", "m0", "m1"], "the best, while it may"
