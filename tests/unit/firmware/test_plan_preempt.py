"""Whom to stop: against every possible set on small cards, and what is never done."""

from itertools import combinations

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
)
from firmware.allocator import plan_preempt as under_test
from firmware.allocator.filter import objections
from firmware.allocator.plan_books import Room
from firmware.allocator.plan_preempt import (
    PreemptPlanner,
    Victim,
    fits_without,
    plan_preemption,
)


def cnm(name, *, cpu=8, memory=8, gpus=0, labels=None, why_not=""):
    pools = (AcceleratorPool(kind="gpu", model="a", count=gpus),) if gpus else ()
    return CnmView(
        id=name,
        arch="arm64",
        capacity=Capacity(cpu_milli=cpu, memory_bytes=memory, accelerators=pools),
        labels=labels or {},
        why_not=why_not,
    )


def demand(cpu=0, memory=0, gpus=0):
    wanted = (AcceleratorDemand(kind="gpu", count=gpus),) if gpus else ()
    return Demand(cpu_milli=cpu, memory_bytes=memory, accelerators=wanted)


class Card:
    """Books, and who may be stopped at what priority."""

    def __init__(self, *views):
        self.state = AllocatorState()
        for view in views:
            self.state.add_cnm(view)
        self.victims = {}

    def put(self, name, where, want, priority=10, *, stateful=False, **constraints):
        self.state.commit(name, where, want, Constraints(**constraints))
        self.victims[name] = Victim(priority=priority, stateful=stateful)

    def plan(self, want, constraints=None, *, above=50, most=16):
        def victim(name):
            found = self.victims.get(name)
            return found if found is not None and found.priority < above else None

        return plan_preemption(self.state, want, constraints or Constraints(), victim, most)


def chosen(plan):
    return None if plan is None else (plan.cnm, plan.victims, plan.priority)


def test_the_lowest_priority_goes_even_where_fewer_would_do():
    card = Card(cnm("a"), cnm("b"))
    card.put("big", "a", demand(cpu=8), 20)
    for number in range(4):
        card.put(f"small{number}", "b", demand(cpu=2), 10)
    assert chosen(card.plan(demand(cpu=5))) == ("b", ("small0", "small1", "small2"), 10)


def test_of_one_priority_the_fewest_go_and_then_the_least_work():
    card = Card(cnm("a"), cnm("b"))
    card.put("six", "a", demand(cpu=6, memory=6))
    card.put("two", "a", demand(cpu=2))
    card.put("five", "b", demand(cpu=5, memory=7))
    card.put("three", "b", demand(cpu=3))
    assert chosen(card.plan(demand(cpu=5))) == ("a", ("six",), 10)
    assert chosen(card.plan(demand(cpu=3))) == ("b", ("three",), 10)


def test_what_has_data_of_its_own_goes_last():
    card = Card(cnm("a"))
    card.put("db", "a", demand(cpu=4), stateful=True)
    card.put("web", "a", demand(cpu=4, memory=8))
    assert chosen(card.plan(demand(cpu=4))) == ("a", ("web",), 10)


def test_where_there_is_room_nobody_is_stopped():
    card = Card(cnm("a"), cnm("b"))
    card.put("low", "a", demand(cpu=8))
    assert card.plan(demand(cpu=4)) is None


@pytest.mark.parametrize(
    ("want", "constraints"),
    [
        (demand(cpu=9), Constraints()),
        (demand(cpu=4), Constraints(arch="amd64")),
        (demand(cpu=4), Constraints(labels=(("zone", "b"),))),
        (demand(cpu=4), Constraints(exclude=frozenset({"a"}))),
        (demand(cpu=4, gpus=1), Constraints()),
    ],
)
def test_what_no_set_of_victims_helps_stops_nobody(want, constraints):
    card = Card(cnm("a"), cnm("closed", why_not="draining"))
    card.put("low", "a", demand(cpu=8))
    card.put("other", "closed", demand(cpu=8))
    assert card.plan(want, constraints) is None


def test_an_equal_priority_is_no_victim():
    card = Card(cnm("a"))
    card.put("equal", "a", demand(cpu=8), 50)
    assert card.plan(demand(cpu=4), above=50) is None
    assert chosen(card.plan(demand(cpu=4), above=51)) == ("a", ("equal",), 50)


def test_a_higher_victim_is_taken_where_there_may_not_be_more_of_the_lower_ones():
    card = Card(cnm("a", cpu=16))
    for number in range(8):
        card.put(f"small{number}", "a", demand(cpu=1), 10)
    card.put("big", "a", demand(cpu=8), 20)
    assert chosen(card.plan(demand(cpu=8), most=4)) == ("a", ("big",), 20)
    assert card.plan(demand(cpu=8), most=8).priority == 10
    assert card.plan(demand(cpu=9), most=0) is None


def test_a_component_that_it_must_be_together_with_is_no_victim():
    card = Card(cnm("a"), cnm("b"))
    card.put("w/db/0", "a", demand(cpu=4), 1, workload="w", component="db")
    card.put("low/x/0", "a", demand(cpu=4), 10, workload="low", component="x")
    card.put("low/x/1", "b", demand(cpu=8), 5, workload="low", component="x")
    together = Constraints(workload="w", component="web", together=frozenset({"db"}))
    assert chosen(card.plan(demand(cpu=4), together)) == ("a", ("low/x/0",), 10)
    assert card.plan(demand(cpu=5), together) is None


def test_room_is_made_for_those_that_must_come_along():
    card = Card(cnm("a"))
    for number in range(4):
        card.put(f"low{number}", "a", demand(cpu=2))
    group = Constraints(
        workload="w",
        component="web",
        together=frozenset({"db"}),
        companions=(("db", demand(cpu=3)),),
    )
    assert len(card.plan(demand(cpu=2), group).victims) == 3


def test_beyond_the_bound_the_set_still_makes_the_room_and_nobody_is_spare(monkeypatch):
    monkeypatch.setattr(under_test, "LOOKS_MOST", 3)
    card = Card(cnm("a", cpu=12, memory=12))
    for number in range(6):
        card.put(f"x{number}", "a", demand(cpu=1 + number % 3, memory=3 - number % 3))
    plan = card.plan(demand(cpu=7, memory=6))
    check_minimal(card.state, plan, demand(cpu=7, memory=6))


def check_minimal(state, plan, want):
    constraints = Constraints()
    assert fits_without(state, plan.cnm, want, constraints, plan.victims)
    for name in plan.victims:
        others = [other for other in plan.victims if other != name]
        assert not fits_without(state, plan.cnm, want, constraints, others)


AMOUNT = st.integers(0, 4)
INSTANCE = st.tuples(
    st.integers(0, 2), AMOUNT, AMOUNT, st.integers(0, 1), st.sampled_from([10, 10, 20, 60])
)


@settings(max_examples=150)
@given(st.lists(INSTANCE, max_size=14), st.tuples(st.integers(1, 8), AMOUNT, st.integers(0, 2)))
def test_it_finds_the_best_of_all_sets(instances, asked):
    card = Card(*(cnm(name, cpu=6, memory=6, gpus=2) for name in "abc"))
    for number, (where, cpu, memory, gpus, priority) in enumerate(instances):
        want = demand(cpu, memory, gpus)
        try:
            card.put(f"i{number}", "abc"[where], want, priority, stateful=number % 5 == 0)
        except DoesNotFit:
            continue
    want = demand(*asked)
    plan = card.plan(want)
    best = by_brute_force(card, want, above=50)
    if any(not objections(card.state, name, want, Constraints()) for name in "abc"):
        assert plan is None
        return
    assert chosen(plan) == best
    if plan is not None:
        check_minimal(card.state, plan, want)


def by_brute_force(card, want, above):
    found = []
    for name, node in card.state.nodes.items():
        low = [i for i in node.holds if card.victims[i].priority < above]
        for size in range(1, len(low) + 1):
            for group in combinations(sorted(low), size):
                after = card.state.copy()
                for instance in group:
                    after.release(instance)
                if objections(after, name, want, Constraints()):
                    continue
                holds = [node.holds[i] for i in group]
                cost = (
                    max(card.victims[i].priority for i in group),
                    size,
                    sum(card.victims[i].stateful for i in group),
                    sum(unit.milli for hold in holds for unit in hold.units),
                    sum(hold.demand.memory_bytes for hold in holds),
                    sum(hold.demand.cpu_milli for hold in holds),
                )
                found.append((cost, name, group))
    if not found:
        return None
    cost, name, group = min(found)
    return name, group, cost[0]


def test_each_step_asks_about_few_instances():
    card = Card(*(cnm(f"cnm{number:02}", cpu=50) for number in range(20)))
    for module in range(20):
        for number in range(50):
            card.put(f"m{module}/x/{number}", f"cnm{module:02}", demand(cpu=1), 60)
    asked, most = 0, 0

    def nobody(_name):
        nonlocal asked
        asked += 1

    planner = PreemptPlanner(card.state, demand(cpu=1), Constraints(), nobody, 16)
    for _ in planner.run():
        most, asked = max(most, asked), 0
    assert 0 < max(most, asked) < under_test.HOLDS_A_STEP + 50


def test_each_step_looks_at_few_sets_and_the_last_resort_is_taken_once_a_group(monkeypatch):
    """Forty small ones a module, of ten priorities; more must go than may: all looks are used."""
    card = Card(*(cnm(f"cnm{number:02}", cpu=40) for number in range(20)))
    for module in range(20):
        for number in range(40):
            card.put(f"m{module}/x/{number}", f"cnm{module:02}", demand(cpu=1), number // 4)
    looks = one_by_one = 0
    fits, last_resort = Room.fits, PreemptPlanner._one_by_one

    def counted_fits(room, kind):
        nonlocal looks
        looks += 1
        return fits(room, kind)

    def counted_last_resort(planner, room, group):
        nonlocal one_by_one
        one_by_one += 1
        return last_resort(planner, room, group)

    monkeypatch.setattr(Room, "fits", counted_fits)
    monkeypatch.setattr(PreemptPlanner, "_one_by_one", counted_last_resort)
    planner = PreemptPlanner(
        card.state, demand(cpu=20), Constraints(), card.victims.__getitem__, 16, looks=200
    )
    steps, most = 0, 0
    for _ in planner.run():
        steps, most, looks = steps + 1, max(most, looks), 0
    assert planner.plan is None
    groups = 6  # at which all that are no higher would make the room
    assert 0 < one_by_one <= 20 * groups
    assert steps >= one_by_one
    assert max(most, looks) <= under_test.LOOKS_A_STEP
