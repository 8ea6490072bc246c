"""How much the card takes: what it was told of is counted, placed or not."""

import pytest

from firmware import api
from tools.sim.documents import component, workload
from tools.sim.world import RpcFailure, World

WHOLE = {"cpu_milli": 8000, "memory_bytes": 1 << 20}


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(api, "INSTANCES_LIMIT", 8)
    world = World(seed=3)
    world.boot()
    return world


def test_what_waits_for_a_place_counts_too(world: World) -> None:
    world.submit(workload("a", component(replicas=7, resources=WHOLE)))
    world.settle()
    assert len(world.running()) == 4, "three of them wait"
    with pytest.raises(RpcFailure, match="9 instances, at most 8") as refused:
        world.submit(workload("b", component(replicas=2)))
    assert refused.value.code == "too_many_instances"
    world.submit(workload("c", component()))


def test_what_is_on_its_way_to_the_disk_counts_too(world: World) -> None:
    asked = [
        world.begin("workload.submit", workload=workload(name, component(replicas=3)))
        for name in "abc"
    ]
    world.run_until(lambda: all(asked))
    assert ["result" in answer[0] for answer in asked] == [True, True, False]


def test_what_is_being_removed_counts_as_long_as_it_is_there(world: World) -> None:
    world.submit(workload("a", component(replicas=7, resources=WHOLE)))
    world.settle()
    world.remove("a")
    world.submit(workload("b", component(replicas=4)))
    with pytest.raises(RpcFailure, match="at most 8"):
        world.submit(workload("c", component()))
    world.settle()
    world.submit(workload("c", component(replicas=4)))
