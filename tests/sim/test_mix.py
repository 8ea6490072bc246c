"""What the card learns of what is asked for: each request once, and over a restart."""

from typing import Any

from hal.mock.instance import Behaviour
from tools.sim.documents import component, workload
from tools.sim.world import SECOND, World


def cores(number: int) -> dict[str, Any]:
    return {"resources": {"cpu_milli": number * 1000, "memory_bytes": 1 << 20}}


def seen(world: World) -> dict[int, int]:
    """Requests by milli-cores, as they were counted; none of them old enough to weigh less."""
    mix = world.card.placer.state.mix
    return {key.vector[0]: count // 256 for key, count in mix._counts.items()}


def booted(seed: int) -> World:
    world = World(seed=seed)
    world.boot()
    return world


def test_an_instance_is_one_request_however_often_it_is_placed() -> None:
    world = booted(81)
    world.kernel.behaviours.add("flaky", Behaviour(runs_ns=2 * SECOND, exit_status=1))
    world.submit(workload("a", component("web", replicas=3, **cores(1))))
    world.submit(workload("b", component("flaky", **cores(2))))
    world.settle(stays_s=0.5)
    assert seen(world) == {1000: 3, 2000: 1}
    world.run(10)  # restarts
    assert world.ps()["b/flaky/0"]["restarts"] > 1
    cnm = world.where("a/web/0")
    world.migrate("a/web/0")
    world.run(2)
    world.modules[str(world.where("a/web/0"))].slot.lose_power()  # failover
    world.run(10)
    assert cnm is not None
    assert "instance.failover" in world.codes()
    assert seen(world) == {1000: 3, 2000: 1}


def test_what_waits_is_one_request_when_it_is_placed_at_last() -> None:
    world = booted(82)
    world.submit(workload("full", component(replicas=4, **cores(8))))
    world.settle()
    world.submit(workload("late", component(**cores(7))))
    world.run(2)
    for _ in range(3):  # it is tried again, in vain
        world.card.reconciler.kick_pending()
        world.run(1)
    assert seen(world) == {8000: 4}
    world.remove("full")
    world.wait_running("late/web/0")
    assert seen(world) == {8000: 4, 7000: 1}


def test_what_comes_before_the_modules_are_up_is_one_request() -> None:
    world = World(seed=83)
    world.start_daemon()
    world.run_until(lambda: world.card_or_none is not None and world.card.ready, 5)
    world.submit(workload("early", component(**cores(3))))
    world.wait_running("early/web/0")
    assert seen(world) == {3000: 1}


def test_a_question_and_a_plan_are_no_requests() -> None:
    world = booted(84)
    world.submit(workload("a", component(**cores(1))))
    world.settle()
    world.call("workload.plan", workload=workload("b", component(replicas=5, **cores(1))))
    world.call("instance.explain", instance="a/web/0")
    assert seen(world) == {1000: 1}


def test_a_daemon_that_starts_again_knows_the_mix_of_what_is_there() -> None:
    world = booted(85)
    world.submit(workload("a", component("one", replicas=18, **cores(1))))
    world.submit(workload("b", component("two", replicas=3, **cores(2))))
    world.kernel.behaviours.add("done", Behaviour(runs_ns=SECOND))
    world.submit(workload("c", component("done", restart={"policy": "no"}, **cores(3))))
    world.settle()
    assert seen(world) == {1000: 18, 2000: 3, 3000: 1}
    world.restart_daemon()
    world.run_until(lambda: world.card_or_none is not None and world.card.ready, 5)
    assert seen(world) == {1000: 18, 2000: 3}, "what has ended is not there"
    assert world.card.placer.state.mix.revision == 1, "from the first decision on"
    world.settle()
    assert seen(world) == {1000: 18, 2000: 3}, "nothing was counted again"
