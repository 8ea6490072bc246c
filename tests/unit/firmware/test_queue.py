"""Who is offered room first: priorities, and the shares of tenants (DRF)."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware.allocator import (
    AcceleratorDemand,
    AcceleratorPool,
    AllocatorState,
    Capacity,
    CnmView,
    Demand,
)
from firmware.allocator.queue import Waiting, by_priority, by_share, shares


def card(cpu=9_000, memory=18_000, modules=1, gpus=0):
    """The cluster of the paper's example, section 4.1: 9 processors, 18 GB."""
    state = AllocatorState()
    for number in range(modules):
        pools = (AcceleratorPool(kind="gpu", model="a", count=gpus),) if gpus else ()
        state.add_cnm(
            CnmView(
                id=f"cnm{number}",
                arch="arm64",
                capacity=Capacity(cpu_milli=cpu, memory_bytes=memory, accelerators=pools),
                labels={},
            )
        )
    return state


def many(tenant, count, cpu, memory, priority=50):
    return [
        Waiting(
            instance=f"{tenant}/x/{number}",
            tenant=tenant,
            priority=priority,
            demand=Demand(cpu_milli=cpu, memory_bytes=memory),
        )
        for number in range(count)
    ]


def owner(instance):
    return instance.split("/")[0]


def test_the_highest_priority_goes_first_and_equals_keep_their_order():
    waiting = [
        Waiting(instance=name, priority=priority)
        for name, priority in (("a", 50), ("b", 90), ("c", 50), ("d", 0), ("e", 90))
    ]
    assert by_priority(waiting) == ["b", "e", "a", "c", "d"]


def test_the_example_of_the_paper_comes_out_as_it_does_there():
    """Ghodsi et al., section 4.1: A asks for <1 CPU, 4 GB>, B for <3 CPU, 1 GB>; A gets three and B
    two of them when the processors are all given."""
    waiting = many("a", 9, 1_000, 4_000) + many("b", 9, 3_000, 1_000)
    order = by_share(waiting, {}, card(), owner)
    assert Counter(map(owner, order[:5])) == {"a": 3, "b": 2}


def test_a_tenant_of_three_times_the_weight_gets_three_times_as_much():
    waiting = many("acme", 40, 100, 0) + many("zoo", 40, 100, 0)
    order = by_share(waiting, {"acme": 3}, card(), owner)
    assert Counter(map(owner, order[:40])) == {"acme": 30, "zoo": 10}


def test_what_a_tenant_has_already_counts():
    state = card()
    state.commit("acme/old/0", "cnm0", Demand(cpu_milli=3_000))
    order = by_share(many("acme", 5, 1_000, 0) + many("zoo", 5, 1_000, 0), {}, state, owner)
    assert list(map(owner, order[:3])) == ["zoo"] * 3


def test_what_is_to_be_offered_room_anew_does_not_count_twice():
    state = card()
    state.commit("acme/x/0", "cnm0", Demand(cpu_milli=3_000))
    order = by_share(many("acme", 1, 3_000, 0) + many("zoo", 1, 1_000, 0), {}, state, owner)
    assert order == ["acme/x/0", "zoo/x/0"]


def test_what_can_have_no_room_does_not_hold_its_tenant_back():
    state = card(cpu=4_000, modules=2)
    waiting = [*many("acme", 1, 5_000, 0, priority=90), *many("acme", 3, 1_000, 0)]
    waiting += many("zoo", 3, 1_000, 0)
    order = by_share(waiting, {}, state, owner)
    assert Counter(map(owner, order[:3])) == {"acme": 2, "zoo": 1}


@pytest.mark.parametrize(
    "asked",
    [
        AcceleratorDemand(kind="gpu", count=2),
        AcceleratorDemand(kind="gpu", milli=700),
        AcceleratorDemand(kind="gpu", model="b", milli=100),
        AcceleratorDemand(kind="npu", milli=100),
    ],
    ids=["too many", "too much of one", "another model", "another kind"],
)
def test_what_can_have_no_devices_does_not_hold_its_tenant_back(asked):
    """Two modules, each with half of its one unit left: together it would be a whole one."""
    state = card(modules=2, gpus=1)
    half = Demand(accelerators=(AcceleratorDemand(kind="gpu", milli=500),))
    state.commit("kim/x/0", "cnm0", half)
    state.commit("kim/x/1", "cnm1", half)
    devices = Demand(cpu_milli=1_000, accelerators=(asked,))
    waiting = [
        Waiting(instance=f"acme/gpu/{number}", tenant="acme", priority=90, demand=devices)
        for number in range(3)
    ]
    waiting += [*many("acme", 3, 1_000, 0), *many("zoo", 3, 1_000, 0)]
    order = by_share(waiting, {}, state, owner)
    placed = [name for name in order if "gpu" not in name]
    assert Counter(map(owner, placed[:4])) == {"acme": 2, "zoo": 2}


def test_devices_that_a_module_has_count_for_their_tenant():
    state = card(modules=2, gpus=4)
    devices = Demand(accelerators=(AcceleratorDemand(kind="gpu", model="a", count=4),))
    waiting = [Waiting(instance="acme/gpu/0", tenant="acme", priority=90, demand=devices)]
    waiting += [*many("acme", 3, 1_000, 0), *many("zoo", 3, 1_000, 0)]
    order = by_share(waiting, {}, state, owner)
    assert list(map(owner, order[:4])) == ["acme", "zoo", "zoo", "zoo"]


def test_inside_a_tenant_the_priority_decides():
    low = Waiting(instance="acme/low/0", tenant="acme", priority=10)
    high = Waiting(instance="acme/high/0", tenant="acme", priority=90)
    other = Waiting(instance="zoo/x/0", tenant="zoo", priority=50)
    order = by_share([low, other, high], {}, card(), owner)
    assert order.index("acme/high/0") < order.index("acme/low/0")


def test_shares_name_the_dominant_resource():
    state = card(gpus=4)
    state.commit("acme/x/0", "cnm0", Demand(cpu_milli=3_000, memory_bytes=9_000))
    found = {share.tenant: share for share in shares(state, {"zoo": 2}, owner, ["kim"])}
    assert sorted(found) == ["acme", "kim", "zoo"]
    acme, zoo = found["acme"], found["zoo"]
    assert (acme.resource, acme.used, acme.total) == ("memory", 9_000, 18_000)
    assert (zoo.resource, zoo.used, zoo.weight) == ("", 0, 2)


SOME = st.lists(
    st.tuples(
        st.sampled_from("abc"), st.integers(0, 2), st.integers(0, 3_000), st.integers(0, 6_000)
    ),
    max_size=30,
)


@given(SOME, st.dictionaries(st.sampled_from("abc"), st.integers(1, 7)), st.integers(0, 1 << 30))
def test_how_the_tenants_are_mixed_in_what_waits_changes_nothing(asked, weights, seed):
    waiting = [
        Waiting(
            instance=f"{tenant}/x/{number}",
            tenant=tenant,
            priority=priority,
            demand=Demand(cpu_milli=cpu, memory_bytes=memory),
        )
        for number, (tenant, priority, cpu, memory) in enumerate(asked)
    ]
    turns = [one.tenant for one in waiting]
    random.Random(seed).shuffle(turns)
    queues = {tenant: iter([w for w in waiting if w.tenant == tenant]) for tenant in "abc"}
    mixed = [next(queues[tenant]) for tenant in turns]  # each tenant's own in their order
    order = by_share(waiting, weights, card(modules=3), owner)
    assert by_share(mixed, weights, card(modules=3), owner) == order
    assert sorted(order) == sorted(one.instance for one in waiting)  # all, and each once


@given(st.integers(1, 5), st.integers(1, 20), st.integers(1, 9), st.integers(1, 9))
def test_nobody_starves_and_nobody_is_ahead_by_more_than_one(tenants, count, weight, cpu):
    names = [f"t{number}" for number in range(tenants)]
    waiting = [one for name in names for one in many(name, count, cpu, 0)]
    order = by_share(waiting, {"t0": weight}, card(cpu=1 << 20), owner)
    for length in range(1, len(order) + 1):
        got = Counter(map(owner, order[:length]))
        left = [name for name in names if got[name] < count]
        for name in left:  # who still waits has no less than anybody else had before his last
            mine = got[name] * (weight if name != "t0" else 1)
            for other in names:
                its = (got[other] - 1) * (weight if other != "t0" else 1)
                assert its <= mine
