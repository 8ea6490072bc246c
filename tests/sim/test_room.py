"""Others move so that what waits fits: at last, within the budget, and for nothing less."""

from typing import Any

from firmware.allocator.plan_types import MAX_CHAIN
from firmware.events import EventCode
from tools.sim.documents import component, workload
from tools.sim.world import World


def cores(number: int) -> dict[str, Any]:
    return {"resources": {"cpu_milli": number * 1000, "memory_bytes": 1 << 20}}


def crowded(seed: int) -> World:
    """Four modules of eight cores, each with three taken."""
    world = World(seed=seed)
    world.boot()
    small = component(replicas=4, placement={"spread": True}, **cores(3))
    world.submit(workload("small", small))
    world.settle()
    assert len({where[0] for where in world.running().values()}) == 4
    return world


def test_one_moves_so_that_what_waits_fits_and_says_what_for() -> None:
    world = crowded(seed=41)
    world.submit(workload("large", component(**cores(6))))
    world.run(2)
    assert "large/web/0" not in world.running()
    world.run(15)
    assert "large/web/0" in world.running()
    assert len(world.running()) == 5
    moved = [e for e in world.events if e.code == EventCode.INSTANCE_MIGRATING]
    assert len(moved) == 1
    told = moved[0].data
    assert (told["why"], told["gain"]) == ("makes room for what waits", MAX_CHAIN)
    assert (told["cost_bytes"], told["downtime"]) == (1 << 20, "brief")


def test_nothing_moves_for_what_can_not_be_helped() -> None:
    world = crowded(seed=42)
    before = world.running()
    world.submit(workload("large", component(replicas=4, **cores(6))))
    world.run(60)
    running = world.running()
    assert sum(name.startswith("large/") for name in running) == 2  # the small ones, two by two
    again = {name: where for name, where in running.items() if name in before}
    world.run(120)
    assert {n: w for n, w in world.running().items() if n in before} == again


def test_what_can_not_leave_a_draining_module_is_let_out_by_others() -> None:
    world = World(seed=43)
    world.boot()
    world.submit(workload("large", component(**cores(8))))
    world.settle()
    cnm = world.where("large/web/0")
    world.submit(workload("pair", component(replicas=6, placement={"spread": True}, **cores(2))))
    world.settle()  # two on each other module: four cores are left on each
    world.remove("large")
    world.run_until(lambda: "large/web/0" not in world.running(), 5)
    world.submit(workload("medium", component(**cores(5))))
    world.settle()
    assert world.where("medium/web/0") == cnm
    world.call("cnm.drain", id=cnm)
    world.run(2)
    assert "can't leave" in world.ps()["medium/web/0"]["reason"]
    world.run(15)
    assert cnm not in {where[0] for where in world.running().values()}
    assert len(world.running()) == 7


def test_no_more_moves_in_an_hour_than_the_board_allows() -> None:
    world = crowded(seed=44)
    runner = world.card.rebalancer.runner
    while runner.left() > 0:
        runner.spend()
    world.submit(workload("large", component(**cores(6))))
    world.run(30)
    assert "large/web/0" not in world.running()
