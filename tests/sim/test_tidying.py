"""Accelerators are tidied up ahead of time: where the board says so, at rest, and not for ever."""

from dataclasses import replace
from typing import Any

import pytest

from firmware.board_types import BoardAccelerator
from firmware.events import EventCode
from tools.sim.documents import component, workload
from tools.sim.world import BOARD, World

TIDY_MS = 5000
PAIR = BoardAccelerator(kind="gpu", model="sim-t4", count=2, scope="local")


def gpus(count: int) -> dict[str, Any]:
    return {
        "resources": {
            "cpu_milli": 500,
            "memory_bytes": 1 << 20,
            "accelerators": [{"kind": "gpu", "count": count}],
        }
    }


def untidy(seed: int, *, tidy_ms: int = TIDY_MS, hourly: int = 120) -> World:
    """Two modules of two accelerators have one of them taken each, and pairs are what is usually
    asked for."""
    slots = tuple(
        replace(slot, module=replace(slot.module, accelerators=(PAIR,))) for slot in BOARD.slots[:2]
    )
    limits = replace(BOARD.thresholds, tidy_ms=tidy_ms, rest_ms=3000, moves_per_hour=hourly)
    world = World(seed=seed, board=replace(BOARD, slots=slots, thresholds=limits))
    world.boot()
    for turn in range(20):
        world.submit(workload(f"pair{turn}", component(**gpus(2))))
        world.wait_running(f"pair{turn}/web/0")
        world.remove(f"pair{turn}")
        world.run_until(lambda: not world.running(), 10)
    for name, slot in zip("ab", slots, strict=True):
        world.submit(workload(name, component(**gpus(1))))
        world.wait_running(f"{name}/web/0")
        if world.where(f"{name}/web/0") != slot.id:
            world.migrate(f"{name}/web/0", slot.id)
        world.run_until(lambda n=name, c=slot.id: world.where(f"{n}/web/0") == c, 10)
    return world


def places(world: World) -> set[str]:
    return {where[0] for where in world.running().values()}


def test_what_is_of_no_use_is_brought_together_by_one_move_and_then_all_is_still() -> None:
    world = untidy(seed=71)
    before = len(world.events)
    assert len(places(world)) == 2
    world.run_until(lambda: len(places(world)) == 1, 30)
    world.settle()
    at_rest = world.running()
    world.run(60)
    assert world.running() == at_rest
    (told,) = [e for e in world.events[before:] if e.code == EventCode.INSTANCE_MIGRATING]
    assert told.data["why"] == "makes room for what is usually asked for"
    assert told.data["gain"] >= 1000
    runner = world.card.rebalancer.runner
    assert runner.left() == world.board.thresholds.moves_per_hour - 1


@pytest.mark.parametrize("changed", [{"tidy_ms": 0}, {"hourly": 0}])
def test_a_board_that_does_not_want_it_has_nothing_moved(changed: dict[str, int]) -> None:
    world = untidy(seed=72, **changed)
    before = world.running()
    world.run(40)
    assert world.running() == before


def test_nothing_is_tidied_while_anything_waits_drains_or_is_loaded() -> None:
    world = untidy(seed=73)
    world.submit(workload("large", component(**gpus(2))))  # fits nowhere until one moves
    world.run(2)
    assert "large/web/0" not in world.running()
    tidying = world.card.rebalancer.tidying
    assert not tidying._at_rest()
    world.remove("large")
    world.run_until(lambda: "large" not in world.card.decisions.workloads, 5)
    world.run_until(tidying._at_rest, 10)
    world.modules["cnm0"].busy_milli = 8000
    world.run_until(lambda: not tidying._at_rest(), 10)
    world.modules["cnm0"].busy_milli = 0
    world.run_until(tidying._at_rest, 20)
    tidying.enabled = False
    world.call("cnm.drain", id=world.where("a/web/0"))
    world.run(0.01)
    assert not tidying._at_rest()


def test_what_has_just_come_is_let_be_for_a_whole_interval() -> None:
    world = untidy(seed=74, tidy_ms=20_000)
    world.run_until(lambda: world.card.rebalancer.tidying._seen == world.card.placer.state.changes)
    assert len(places(world)) == 2, "seen for the first time"
    world.submit(workload("new", component(**gpus(1))))
    world.wait_running("new/web/0")
    world.run(21)
    assert not [
        e
        for e in world.events
        if e.code == EventCode.INSTANCE_MIGRATING and "usually" in e.data["why"]
    ]
