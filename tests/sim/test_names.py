"""A workload's name is freed and taken in one order: what was acknowledged under it stays."""

import pytest

from tools.sim.documents import component, workload
from tools.sim.world import World


@pytest.fixture
def world() -> World:
    world = World(seed=7)
    world.boot()
    world.submit(workload("x"))
    world.settle()
    return world


def test_who_removes_once_more_does_not_take_what_was_submitted_since(world: World) -> None:
    world.remove("x")
    world.run_until(lambda: not world.card.decisions.of_workload("x"))
    assert "x" in world.card.decisions.workloads, "its last record is on its way to the disk"
    once_more = world.begin("workload.remove", name="x")
    world.run_until(lambda: "x" not in world.card.decisions.workloads)
    world.submit(workload("x"))
    world.run(5)
    assert once_more[0]["result"] == {"name": "x"}
    assert world.where("x/web/0") is not None


def test_who_removes_it_at_the_same_moment_gets_the_same_answer_and_it_goes_once(
    world: World,
) -> None:
    asked = [world.begin("workload.remove", name="x") for _ in range(3)]
    world.run_until(lambda: "x" not in world.card.decisions.workloads)
    world.submit(workload("x"))
    world.run(5)
    assert [answer[0]["result"] for answer in asked] == [{"name": "x"}] * 3
    assert world.codes().count("workload.removed") == 1
    assert world.where("x/web/0") is not None


def test_a_removal_that_is_asked_for_again_erases_a_waiting_workload_once(world: World) -> None:
    whole = {"cpu_milli": 8000, "memory_bytes": 1 << 20}
    world.submit(workload("full", component("c", replicas=4, resources=whole)))
    world.settle()
    world.submit(workload("y", component("c", resources=whole)))
    for _ in range(3):
        world.begin("workload.remove", name="y")
    world.run_until(lambda: "y" not in world.card.decisions.workloads)
    world.submit(workload("y"))
    world.run(2)
    assert world.codes().count("workload.removed") == 1
