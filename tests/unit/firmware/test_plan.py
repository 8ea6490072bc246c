"""firmware.allocator.plan*: moves that fit at every step, bring what they promise, and end."""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace

import pytest
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
    fragmentation_milli,
)
from firmware.allocator.plan_books import Sketch
from firmware.allocator.plan_check import objection
from firmware.allocator.plan_drain import constrained_first, plan_drain
from firmware.allocator.plan_pack import Tidier, TidyPlanner, outcome, rebalance
from firmware.allocator.plan_room import RoomPlanner, plan_room
from firmware.allocator.plan_shed import ShedPlanner
from firmware.allocator.plan_types import Chain, Move, Plan, Rules, Want

GIB = 1 << 30


def module(name: str, cpu: int = 8, memory: int = 16, gpus: int = 0, load: int = 0) -> CnmView:
    pools = (AcceleratorPool(kind="gpu", model="x", count=gpus),) if gpus else ()
    capacity = Capacity(cpu_milli=cpu * 1000, memory_bytes=memory * GIB, accelerators=pools)
    return CnmView(id=name, arch="arm64", capacity=capacity, labels={}, load_cpu_milli=load)


def demand(cpu: int, memory: int = 1, milli: int = 0, count: int = 1) -> Demand:
    wanted = (AcceleratorDemand(kind="gpu", count=count, milli=milli),) if milli else ()
    return Demand(cpu_milli=cpu * 1000, memory_bytes=memory * GIB, accelerators=wanted)


def card(*modules: CnmView) -> AllocatorState:
    state = AllocatorState()
    for view in modules:
        state.add_cnm(view)
    return state


def books(state: AllocatorState) -> object:
    """All that can be seen of them."""
    return {
        cnm: (
            node.used,
            {key: list(units) for key, units in node.free_milli.items()},
            dict(node.holds),
            {part: count for part, count in node.components.items() if count},
        )
        for cnm, node in sorted(state.nodes.items())
    }


def carry_out(state: AllocatorState, moves: tuple[Move, ...]) -> None:
    """As the card does it: the target is booked, then the source is freed. Raises DoesNotFit."""
    for move in moves:
        hold = state.hold_of(move.instance, move.source)
        assert hold is not None
        state.commit(move.instance, move.target, hold.demand, hold.constraints)
        assert state.release(move.instance, move.source)
        for node in state.nodes.values():
            assert all(left >= 0 for left in node.free)
            assert all(unit >= 0 for units in node.free_milli.values() for unit in units)


def place_all(state: AllocatorState, wants: list[Want]) -> int:
    """Offer everything in turn, to the first that has place; what that is worth."""
    worth = 0
    for turn, want in enumerate(wants):
        for number in range(want.count):
            sketch = Sketch(state)
            assert list(sketch.read()) is not None
            kind = sketch.kind(want.demand, want.constraints)
            room = next((room for room in sketch.rooms if room.fits(kind)), None)
            if room is None:
                break
            state.commit(f"w/{turn}/{number}", room.id, want.demand, want.constraints)
            worth += want.worth
    return worth


modules = st.builds(
    lambda cpu, memory, gpus: (cpu, memory, gpus),
    st.integers(2, 12),
    st.integers(2, 16),
    st.integers(0, 3),
)
demands = st.builds(
    demand,
    st.integers(1, 6),
    st.integers(1, 6),
    st.sampled_from([0, 0, 300, 500, 700, 1000]),
)


@st.composite
def cards(draw: st.DrawFn) -> AllocatorState:
    """Some modules, filled at random."""
    shapes = draw(st.lists(modules, min_size=2, max_size=6))
    state = card(*(module(f"m{i}", *shape) for i, shape in enumerate(shapes)))
    for number, wanted in enumerate(draw(st.lists(demands, max_size=24))):
        sketch = Sketch(state)
        for _ in sketch.read():
            pass
        kind = sketch.kind(wanted, Constraints())
        fitting = [room.id for room in sketch.rooms if room.fits(kind)]
        if fitting:
            at = draw(st.integers(0, len(fitting) - 1))
            state.commit(f"i/{number}", fitting[at], wanted)
    return state


wants_of = st.lists(
    st.builds(
        lambda d, worth, count: Want(demand=d, worth=worth, count=count),
        demands,
        st.integers(1, 5),
        st.integers(1, 2),
    ),
    min_size=1,
    max_size=4,
)


# --- properties ---


@given(cards(), wants_of, st.integers(0, 6), st.booleans())
def test_a_plan_never_overcommits_at_any_step_and_keeps_to_its_budget(
    state: AllocatorState, wants: list[Want], budget: int, largest_first: bool
) -> None:
    before = books(state)
    plan = plan_room(state, wants, Rules(budget=budget, largest_first=largest_first))
    assert books(state) == before
    assert len(plan.moves) <= budget
    assert all(chain.gain >= len(chain.moves) for chain in plan.chains)
    assert objection(state, plan.moves) == ""
    assert books(state) == before
    carry_out(state, plan.moves)


@given(cards(), wants_of)
def test_nobody_moves_twice_and_the_planner_finds_nothing_on_its_own_result(
    state: AllocatorState, wants: list[Want]
) -> None:
    plan = plan_room(state, wants, Rules(budget=100))
    names = [move.instance for move in plan.moves]
    assert len(names) == len(set(names))
    carry_out(state, plan.moves)
    again = plan_room(state, wants, Rules(budget=100, pinned=frozenset(names)))
    assert again == Plan()


@given(cards(), wants_of)
def test_who_is_pinned_stays(state: AllocatorState, wants: list[Want]) -> None:
    pinned = frozenset(list(state.instances())[::2])
    plan = plan_room(state, wants, Rules(budget=9, pinned=pinned))
    assert pinned.isdisjoint(move.instance for move in plan.moves)
    asked = plan_room(state, wants, Rules(budget=9, may_move=lambda name: name not in pinned))
    assert asked == plan


@given(cards())
def test_a_move_on_paper_taken_back_restores_the_books(state: AllocatorState) -> None:
    sketch = Sketch(state)
    for _ in sketch.read():
        pass

    def seen() -> object:
        return [
            (list(r.free), {k: list(u) for k, u in r.units.items()}, dict(r.holds))
            for r in sketch.rooms
        ]

    before = seen()
    for source in sketch.rooms:
        for hold in list(source.holds.values()):
            for target in sketch.rooms:
                move = sketch.move(hold, source, target)
                if move is not None:
                    assert seen() != before
                    sketch.undo(move, hold)
                    assert seen() == before


@given(cards())
def test_a_drain_leaves_behind_only_what_it_names(state: AllocatorState) -> None:
    plan, stuck = plan_drain(state, "m0", Rules(budget=200))
    carry_out(state, plan.moves)
    assert tuple(sorted(state.nodes["m0"].holds)) == stuck
    assert all(move.target != "m0" for move in plan.moves)


@given(st.lists(demands, max_size=12))
def test_a_drain_of_a_card_with_an_empty_twin_empties_it(wanted: list[Demand]) -> None:
    state = card(module("a", 99, 99, 12), module("b", 99, 99, 12))
    for number, each in enumerate(wanted):
        state.commit(f"i/{number}", "a", each)
    plan, stuck = plan_drain(state, "a", Rules(budget=99))
    assert stuck == ()
    carry_out(state, plan.moves)
    assert not state.nodes["a"].holds


@given(cards(), wants_of, st.integers(1, 3))
def test_tidying_up_stops_by_itself_when_nothing_arrives_or_leaves(
    state: AllocatorState, mix: list[Want], budget: int
) -> None:
    tidier, moved = Tidier(), 0
    for _ in range(40):
        moves = tidier.migrate(state, mix, budget)
        assert len(moves) <= budget
        carry_out(state, moves)
        if not moves:
            break
        moved += len(moves)
    else:
        pytest.fail(f"{moved} moves, and it goes on")


@given(
    cards(),
    st.lists(demands, min_size=1, max_size=4),
    st.integers(1, 3),
    st.sampled_from([1, 200, 500]),
)
def test_tidying_lowers_fragmentation_by_what_it_promises_and_moves_nothing_on_its_own_result(
    state: AllocatorState, asked: list[Demand], budget: int, least_milli: int
) -> None:
    for number in range(16):  # enough for a mix
        state.observe(asked[number % len(asked)])
    left_milli = fragmentation_milli(state)
    for _ in range(200):
        before = books(state)
        planner = TidyPlanner(state, Rules(budget=budget), least_milli)
        for _ in planner.run():
            pass
        assert books(state) == before
        if planner.chain is None:
            break
        moves = planner.chain.moves
        assert 1 <= len(moves) <= budget
        carry_out(state, moves)
        now_milli = fragmentation_milli(state)
        assert abs(left_milli - now_milli - planner.chain.gain) <= 1  # rounded apart
        assert planner.chain.gain >= least_milli * len(moves)
        left_milli = now_milli
    else:
        pytest.fail("it goes on and on")


# --- cases by hand ---


def test_one_move_makes_room_for_what_waits() -> None:
    state = card(module("a"), module("b", cpu=3))
    state.commit("big", "a", demand(5))
    state.commit("small", "a", demand(2))
    plan = plan_room(state, [Want(demand=demand(3, 10))], Rules(budget=5))
    assert plan == Plan()  # it fits on b as it is
    wants = [Want(demand=demand(3, 10), worth=2, count=2)]
    plan = plan_room(state, wants, Rules(budget=5))
    assert plan == Plan()  # small would take the place of one to make place for the other
    state.add_cnm(module("c", cpu=2))
    plan = plan_room(state, wants, Rules(budget=5))
    assert plan.moves == (Move(instance="small", source="a", target="c"),)
    assert plan.gain == 2
    carry_out(state, plan.moves)
    assert place_all(state, wants) == 4


def test_a_chain_of_two_where_no_single_move_helps() -> None:
    state = card(module("a", 6), module("b", 5), module("c", 3))
    state.commit("x", "a", demand(4))  # has to leave; fits nowhere
    state.commit("y", "b", demand(2))  # has to make room for it, on c
    plan = plan_room(state, [Want(demand=demand(6), worth=3)], Rules(budget=3))
    assert [(m.instance, m.source, m.target) for m in plan.moves] == [
        ("y", "b", "c"),
        ("x", "a", "b"),
    ]
    assert plan_room(state, [Want(demand=demand(6), worth=3)], Rules(budget=1)) == Plan()
    assert (
        plan_room(state, [Want(demand=demand(6), worth=3)], Rules(budget=3, least_gain=2)) == Plan()
    )


def test_two_that_leave_together_make_room_for_a_large_one() -> None:
    state = card(module("a", 8), module("b", 4), module("c", 4))
    for name in ("x", "y"):
        state.commit(name, "a", demand(3))
    wants = [Want(demand=demand(8), worth=5)]
    plan = plan_room(state, wants, Rules(budget=3))
    carry_out(state, plan.moves)
    assert len(plan.moves) == 2
    assert place_all(state, wants) == plan.gain == 5


def test_a_wish_that_has_room_moves_nobody() -> None:
    state = card(module("a"), module("b"))
    state.commit("x", "a", demand(7))
    assert rebalance(state, [Want(demand=demand(8))], 50) == ()


def test_an_open_place_is_passed_on_to_where_more_comes_of_it() -> None:
    """b has a whole accelerator free and no processor left; a has both, but for less."""
    state = card(module("a", 8, 16, 1), module("b", 8, 16, 2))
    state.commit("heavy", "b", demand(8, 1, 1000))
    wants = [Want(demand=demand(4, 1, 1000), worth=1000, count=3)]
    assert outcome(state, Plan(), wants) == 1000
    moves = rebalance(state, wants, 3)
    carry_out(state, moves)
    assert [m.instance for m in moves] == ["heavy"]
    assert place_all(state, wants) == 2000


def test_a_plan_that_time_has_overtaken_is_objected_to() -> None:
    state = card(module("a", 6), module("b", 5), module("c", 3))
    state.commit("x", "a", demand(4))
    state.commit("y", "b", demand(2))
    moves = plan_room(state, [Want(demand=demand(6), worth=3)], Rules(budget=3)).moves
    assert objection(state, moves) == ""
    assert objection(state, moves[::-1]) == "x does not fit on b then"
    assert objection(state, (moves[0], moves[0])) == "y is not on b"
    state.set_schedulable("c", "draining")
    assert objection(state, moves) == "y does not fit on c then"
    state.release("y")
    assert objection(state, moves) == "y is not on b"
    assert objection(state, [replace(moves[1], target="z")]) == "x: z is not known"


def test_what_must_stay_together_is_not_torn_apart() -> None:
    state = card(module("a"), module("b", cpu=3))
    tied = Constraints(workload="w", component="x", together=frozenset({"y"}))
    state.commit("w/x/0", "a", demand(2), tied)
    assert plan_room(state, [Want(demand=demand(8))], Rules(budget=3)) == Plan()


# --- load ---


def shed(state: AllocatorState, use: Mapping[str, int], budget: int = 3) -> Plan:
    planner = ShedPlanner(
        state,
        "hot",
        lambda cnm, instance: use[instance],
        Rules(budget=budget),
        high_percent=85,
        low_percent=60,
    )
    for _ in planner.run():
        pass
    return planner.plan


def test_load_goes_by_the_one_that_relieves_most_to_the_coolest() -> None:
    views = (module("hot", load=7500), module("warm", load=4000), module("cool", load=1000))
    state = card(*views)
    for name in ("p", "q", "r"):
        state.commit(name, "hot", demand(1))
    plan = shed(state, {"p": 900, "q": 2500, "r": 600})
    assert [(m.instance, m.target) for m in plan.moves] == [("q", "cool")]
    assert plan.gain == 2500


def test_nobody_is_made_hot_to_cool_another() -> None:
    state = card(module("hot", load=7500), module("warm", load=6000))
    for name in ("p", "q"):
        state.commit(name, "hot", demand(1))
    assert shed(state, {"p": 3000, "q": 3000}) == Plan()


def test_where_there_is_no_room_the_busy_one_is_swapped_for_an_idle_one() -> None:
    state = card(module("hot", load=7500), module("cool", load=500))
    state.commit("busy", "hot", demand(4))
    state.commit("other", "hot", demand(2))
    state.commit("idle", "cool", demand(2))
    state.commit("more", "cool", demand(4))
    plan = shed(state, {"busy": 4000, "other": 1, "idle": 100, "more": 400})
    assert [(m.instance, m.target) for m in plan.moves] == [("idle", "hot"), ("busy", "cool")]
    assert objection(state, plan.moves) == ""
    plan = shed(state, {"busy": 4000, "other": 1, "idle": 100, "more": 400}, budget=1)
    assert [(m.instance, m.target) for m in plan.moves] == [("other", "cool")]


# --- the same everywhere ---

SCRIPT = """
import sys
from tests.unit.firmware.test_plan import *
order = sys.argv[1] == "up"
names = [f"m{i:02}" for i in range(12)]
state = AllocatorState()
for name in names if order else names[::-1]:
    state.add_cnm(module(name, 9, 16, 3))
puts = [(f"i/{n}", names[n * 7 % 12], demand(1 + n % 3, 1 + n % 2, (0, 300, 700)[n % 3]))
        for n in range(30)]
for put in puts if order else puts[::-1]:
    state.commit(*put)
wants = [Want(demand=demand(6, 8, 1000, 2), worth=9, count=3), Want(demand=demand(7), count=9)]
plan = plan_room(state, wants, Rules(budget=9))
print([(m.instance, m.source, m.target) for m in plan.moves])
"""


def test_plans_are_equal_in_every_process_and_for_every_order_of_the_books() -> None:
    told = {
        subprocess.run(
            [sys.executable, "-c", SCRIPT, order],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": "."},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("0", "1")
        for order in ("up", "down")
    }
    assert len(told) == 1
    assert "i/" in told.pop()


def test_a_search_goes_in_steps() -> None:
    state = card(*(module(f"m{i:03}") for i in range(100)))
    for i in range(100):
        state.commit(f"i{i}", f"m{i:03}", demand(5))
    planner = RoomPlanner(state, [Want(demand=demand(8))], Rules(budget=3))
    assert sum(1 for _ in planner.run()) > 100
    assert planner.plan == Plan()  # five and five do not fit into eight


def test_tidying_leaves_alone_what_nobody_asks_for_and_what_is_of_use() -> None:
    def chain() -> object:
        planner = TidyPlanner(state, Rules(budget=3), 500)
        for _ in planner.run():
            pass
        return planner.chain

    state = card(module("a", gpus=2), module("b", gpus=2))
    for name in ("a", "b"):
        state.commit(f"i/{name}", name, demand(1, 1, 1000))
    assert chain() is None, "nothing is known yet"
    for _ in range(16):
        state.observe(demand(1, 1, 1000))
    assert chain() is None, "those fit as it is"
    for _ in range(200):
        state.observe(demand(1, 1, 1000, 2))
    found = chain()
    assert isinstance(found, Chain)
    assert len(found.moves) == 1
    carry_out(state, found.moves)
    assert chain() is None


def test_the_most_constrained_come_first_by_places_then_by_size() -> None:
    state = card(module("a", 8), module("b", 4), module("c", 4, gpus=1))
    anywhere = [("small", demand(1), Constraints()), ("medium", demand(4), Constraints())]
    large = ("large", demand(5), Constraints())
    gpu = ("gpu", demand(1, 1, 500), Constraints())
    never = ("never", demand(99), Constraints())
    asks = [*anywhere, gpu, large, never]
    wanted = ["never", "gpu", "large", "medium", "small"]
    assert constrained_first(state, asks) == wanted
    assert constrained_first(state, asks[::-1]) == wanted
    assert constrained_first(state, []) == []
