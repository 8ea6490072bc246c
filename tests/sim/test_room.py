"""Others move so that what waits fits: at last, within the budget, and for nothing less."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from firmware import room_maker
from firmware.allocator import AllocatorState
from firmware.allocator.plan_room import RoomPlanner
from firmware.allocator.plan_types import MAX_CHAIN, Rules, Want
from firmware.board_types import Board
from firmware.chain_runner import HOUR_NS
from firmware.events import EventCode
from firmware.loop import MS
from firmware.room_maker import WANTS_MOST
from firmware.workload import Component
from tools.sim.documents import component, image, layer, volume, workload
from tools.sim.world import BOARD, World

ZONE_B = {"labels": {"zone": "b"}}  # cnm2 and cnm3


def cores(number: int) -> dict[str, Any]:
    return {"resources": {"cpu_milli": number * 1000, "memory_bytes": 1 << 20}}


def crowded(seed: int, board: Board = BOARD) -> World:
    """Four modules of eight cores, each with three taken."""
    world = World(seed=seed, board=board)
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
    assert (told["cost_bytes"], told["downtime"]) == (0, "none")  # three others go on meanwhile


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


def test_no_more_moves_in_an_hour_than_the_board_allows() -> None:
    world = crowded(seed=44)
    runner = world.card.rebalancer.runner
    while runner.left() > 0:
        runner.spend()
    world.submit(workload("large", component(**cores(6))))
    world.run(30)
    assert "large/web/0" not in world.running()


def test_what_waits_is_looked_at_again_when_the_oldest_move_is_an_hour_old() -> None:
    world = crowded(seed=47)
    runner, now_ns = world.card.rebalancer.runner, world.card.loop.now_ns()
    assert runner.left() == 120
    runner._spent.extend([now_ns - HOUR_NS + 20_000 * MS] * 120)
    world.submit(workload("large", component(**cores(6))))
    world.run(16)
    assert runner._refill is not None
    assert "large/web/0" not in world.running()
    timers = len(world.card.loop._timers)
    for _ in range(50):
        runner.await_refill()
    assert len(world.card.loop._timers) == timers, "one is enough"
    world.run_until(lambda: "large/web/0" in world.running(), 12)
    assert runner._refill is None
    assert runner.left() == 119


def test_a_board_that_allows_no_moves_waits_for_none() -> None:
    limits = replace(BOARD.thresholds, moves_per_hour=0)
    world = crowded(seed=48, board=replace(BOARD, thresholds=limits))
    world.submit(workload("large", component(**cores(6))))
    world.run(10)
    assert "large/web/0" not in world.running()
    assert world.card.rebalancer.runner._refill is None


def test_nobody_moves_for_a_drain_that_was_called_off() -> None:
    world = crowded(seed=45)
    world.submit(workload("large", component(**cores(6))))
    world.run(15)
    before = world.running()
    world.card.rebalancer.room.leaving("large/web/0")  # its module takes new instances again
    world.run(30)
    assert "large/web/0" in before
    assert world.running() == before


# --- whose turn it is ---


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """How many of each want, for each plan that was made."""
    made: list[list[int]] = []

    class Noted(RoomPlanner):
        def __init__(self, state: AllocatorState, wants: Sequence[Want], rules: Rules) -> None:
            made.append([want.count for want in wants])
            super().__init__(state, wants, rules)

    monkeypatch.setattr(room_maker, "RoomPlanner", Noted)
    return made


def helpable(seed: int) -> World:
    """Room for six cores can be made in zone a, for seven in zone b nowhere."""
    world = World(seed=seed)
    world.boot()
    for number, size in enumerate((3, 3, 5, 5)):
        tied = {"volumes": [volume(f"data{number}")], "placement": ZONE_B} if size == 5 else {}
        world.submit(workload(f"w{number}", component(**cores(size), **tied)))
        world.wait_running(f"w{number}/web/0")
        if world.where(f"w{number}/web/0") != f"cnm{number}":
            world.migrate(f"w{number}/web/0", f"cnm{number}")
        world.settle()
    return world


def hopeless(name: str, replicas: int = 1) -> dict[str, Any]:
    """Goes before others: it is larger."""
    return workload(name, component(replicas=replicas, placement=ZONE_B, **cores(7)))


def test_equal_instances_are_one_want(plans: list[list[int]]) -> None:
    world = helpable(seed=50)
    world.submit(hopeless("large", replicas=WANTS_MOST + 6))
    world.run(12)
    world.submit(workload("medium", component(**cores(6))))
    world.run_until(lambda: "medium/web/0" in world.running(), 30)
    assert plans[0] == [WANTS_MOST + 6]
    assert [WANTS_MOST + 6, 1] in plans


def test_one_of_each_component_is_looked_at_for_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    world = helpable(seed=55)
    world.submit(hopeless("large", replicas=100))
    world.submit(hopeless("other", replicas=100))
    world.run(2)
    card = world.card
    asked: list[str] = []
    tightness = card.placer.tightness

    def noted(instance: str) -> int:
        asked.append(instance)
        return tightness(instance)

    monkeypatch.setattr(card.placer, "tightness", noted)
    wants, more = card.rebalancer.room._wants(card.reconciler.placements.pending, set())
    assert [want.count for want in wants] == [100, 100]
    assert len(asked) == 2
    assert not more


def test_the_queue_asks_once_for_all_of_a_component(monkeypatch: pytest.MonkeyPatch) -> None:
    world = helpable(seed=56)
    world.submit(hopeless("large", replicas=100))
    world.submit(hopeless("other", replicas=100))
    world.run(2)
    card = world.card
    waiting = list(card.reconciler.placements.pending)
    asked: list[str] = []
    component_of = card.decisions.component

    def noted(instance: str) -> Component | None:
        asked.append(instance)
        return component_of(instance)

    monkeypatch.setattr(card.decisions, "component", noted)
    order = card.placer.in_order(card.placer.tightest_first(waiting[::-1]))
    assert len(waiting) == 200
    assert order == waiting[::-1], "equals stay in their order"
    assert len(asked) == 2 * 2


def test_nobody_waits_behind_what_can_not_be_helped(
    plans: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room_maker, "WANTS_MOST", 4)
    world = helpable(seed=51)
    for number in range(9):
        world.submit(hopeless(f"large{number}"))
    world.submit(workload("medium", component(**cores(6))))
    world.run_until(lambda: "medium/web/0" in world.running(), 30)
    assert plans[:3] == [[1] * 4, [1] * 4, [1] * 2]
    world.run(60)  # the moves have changed something: each has one turn more
    made = len(plans)
    assert made <= 9
    world.run(60)
    assert len(plans) == made, "and then all is still"


def test_what_changes_while_a_plan_is_made_is_seen_by_the_next_one(
    plans: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = helpable(seed=52)
    room = world.card.rebalancer.room
    run = RoomPlanner.run

    def run_while_something_changes(planner: RoomPlanner) -> Iterator[None]:
        if len(plans) == 1:
            room.look()
        yield from run(planner)

    monkeypatch.setattr(room_maker.RoomPlanner, "run", run_while_something_changes)
    world.submit(hopeless("large"))
    world.run(30)
    assert len(plans) == 2
    assert room.idle


def test_all_that_can_not_leave_has_its_turn(
    plans: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room_maker, "WANTS_MOST", 4)
    world = World(seed=54)
    world.boot()
    for cnm in ("cnm0", "cnm1", "cnm3"):
        world.call("cnm.drain", id=cnm)
    for number in range(6):
        world.submit(workload(f"w{number}", component(placement=ZONE_B, **cores(1))))
    world.settle()
    world.call("cnm.undrain", id="cnm3")
    world.submit(workload("full", component(placement=ZONE_B, **cores(8))))
    world.settle()
    world.call("cnm.drain", id="cnm2")
    world.run(70)
    assert plans[:4] == [[1] * 4, [1] * 2] * 2


def test_what_can_not_leave_does_not_hold_up_what_waits() -> None:
    world = helpable(seed=53)
    world.call("cnm.drain", id="cnm3")
    world.submit(workload("medium", component(**cores(6))))
    for _ in range(8):  # as often as a drain of a busy card tries
        world.card.rebalancer.room.leaving("w3/web/0")
        world.run(BOARD.thresholds.room_ms * 0.8 / 1000)
    assert "medium/web/0" in world.running()


def test_who_has_rested_is_forgotten() -> None:
    """Names come and go, and no module is ever loaded."""
    world = World(seed=49, board=replace(BOARD, thresholds=replace(BOARD.thresholds, rest_ms=1)))
    world.boot()
    for turn in range(3):
        spread = component(replicas=4, placement={"spread": True}, **cores(3))
        world.submit(workload(f"small{turn}", spread))
        world.settle()
        world.submit(workload(f"large{turn}", component(**cores(6))))
        world.run_until(lambda n=turn: f"large{n}/web/0" in world.running(), 15)
        world.remove(f"large{turn}")
        world.remove(f"small{turn}")
        world.settle()
    moved = {e.instance for e in world.events if e.code == EventCode.INSTANCE_MIGRATING}
    assert len(moved) == 3
    assert len(world.card.rebalancer._moved_ns) == 1


# --- what a move costs ---


def told_of(world: World, instance: str) -> dict[str, Any]:
    """What was said last of a move of it."""
    moved = [
        e for e in world.events if e.code == EventCode.INSTANCE_MIGRATING and e.instance == instance
    ]
    return dict(moved[-1].data)


def drained(world: World, instance: str) -> dict[str, Any]:
    cnm = world.where(instance)
    world.call("cnm.drain", id=cnm)
    world.settle()
    world.call("cnm.undrain", id=cnm)
    return told_of(world, instance)


def test_a_move_says_what_it_costs_by_what_is_known() -> None:
    world = World(seed=45)
    world.boot()
    ours = [layer({"bin/app": bytes(9_000)}), layer({"lib/app": bytes(5_000)})]
    world.import_image(image("app:latest", *ours), ours)
    alone = component("alone", image="app")
    pair = component("pair", replicas=2, image="app")
    db = component("db", image="app", volumes=[volume()])
    world.submit(workload("shop", alone, db))
    world.settle()
    world.modules[str(world.where("shop/db/0"))].write_volume("data", "table", b"x" * 700)
    world.call("volume.flush", name="data")
    size = sum(map(len, ours))
    found = drained(world, "shop/db/0")
    assert (found["downtime"], found["cost_bytes"]) == ("data", size + 700)
    assert drained(world, "shop/alone/0")["downtime"] == "brief"
    world.submit(workload("two", pair))
    world.settle()
    first, second = (world.where(f"two/pair/{n}") for n in range(2))
    if first == second:
        world.migrate("two/pair/1")
        world.settle()
    assert drained(world, "two/pair/0")["downtime"] == "none"


def test_layers_that_the_target_has_are_not_counted() -> None:
    world = World(seed=46, slots=2)
    world.boot()
    ours, theirs = layer({"bin/app": bytes(9_000)}), layer({"bin/app": bytes(3_000)})
    world.import_image(image("app:latest", ours, theirs), [ours, theirs])
    world.import_image(image("base:latest", ours), [ours])
    world.submit(workload("a", component(image="app")))
    world.settle()
    here = world.where("a/web/0")
    assert drained(world, "a/web/0")["cost_bytes"] == len(ours) + len(theirs)
    there = world.where("a/web/0")
    world.submit(workload("b", component(image="base")))
    world.settle()
    if world.where("b/web/0") != here:
        world.migrate("b/web/0", here)
        world.settle()
    assert world.where("b/web/0") != there
    assert drained(world, "a/web/0")["cost_bytes"] == len(theirs)
