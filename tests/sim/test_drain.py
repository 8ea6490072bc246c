"""A module is drained by one plan: nobody takes the only place of another one, others make room,
and what stays says why."""

from dataclasses import replace
from typing import Any

import pytest

from firmware import drainer
from firmware.allocator.plan_drain import DrainPlanner
from firmware.allocator.plan_types import Chain, Move, Weight
from firmware.events import EventCode
from tools.sim.documents import component, volume, workload
from tools.sim.world import BOARD, World

ZONE_B = {"labels": {"zone": "b"}}  # cnm2 and cnm3 of the board of four modules with eight cores


def cores(number: int) -> dict[str, Any]:
    return {"resources": {"cpu_milli": number * 1000, "memory_bytes": 1 << 20}}


def put(world: World, name: str, cnm: str, number: int, **changes: Any) -> str:
    """One instance with so many cores, on this module."""
    instance = f"{name}/web/0"
    world.submit(workload(name, component(**cores(number), **changes)))
    world.wait_running(instance)
    if world.where(instance) != cnm:
        world.migrate(instance, cnm)
    world.settle()
    assert world.where(instance) == cnm
    return instance


def moves(world: World, since: int = 0) -> list[tuple[str | None, str | None]]:
    """(instance, target) of those that were decided after the first `since` events."""
    told = [e for e in world.events[since:] if e.code == EventCode.INSTANCE_MIGRATING]
    return [(e.instance, e.cnm) for e in told]


def reason(world: World, instance: str) -> str:
    return str(world.ps()[instance]["reason"])


@pytest.fixture
def world() -> World:
    world = World(seed=61)
    world.boot()
    return world


def test_who_has_the_fewest_places_goes_first(world: World) -> None:
    put(world, "full", "cnm3", 5)
    big = put(world, "big", "cnm2", 3)  # would fit best on cnm3, beside what is there
    tied = put(world, "tied", "cnm2", 1, placement=ZONE_B)  # can go nowhere else
    before = len(world.events)
    world.call("cnm.drain", id="cnm2")
    world.settle()
    assert [name for name, _ in moves(world, before)] == [tied, big]
    assert world.where(tied) == "cnm3"
    assert world.where(big) not in ("cnm2", "cnm3", None)
    assert "cnm.drained" in world.codes(cnm="cnm2")


def blocked(world: World, **changes: Any) -> str:
    """Five cores on cnm0 that fit nowhere else, as long as nobody makes room."""
    leaver = put(world, "leaver", "cnm0", 5, **changes)
    for cnm in ("cnm1", "cnm2", "cnm3"):
        for half in "ab":
            put(world, f"{cnm}{half}", cnm, 2)
    return leaver


def test_others_make_room_at_once_and_none_of_it_is_taken_from_the_budget(world: World) -> None:
    leaver = blocked(world)
    runner = world.card.rebalancer.runner
    while runner.left() > 0:
        runner.spend()
    before = len(world.events)
    world.call("cnm.drain", id="cnm0")
    world.run(3)
    assert world.where(leaver) not in ("cnm0", None)
    (other, _), (last, _) = moves(world, before)
    assert other != leaver == last
    assert runner.left() == 0
    world.settle()


def test_what_shares_a_volume_or_must_stay_together_stays_and_says_why(world: World) -> None:
    data = [volume("data")]
    world.submit(workload("a", component("db", volumes=data)))
    world.wait_running("a/db/0")
    world.submit(workload("b", component("db", volumes=data)))
    pair = (component("one"), component("two", placement={"together": ["one"]}))
    world.submit(workload("pair", *pair))
    world.settle()
    for cnm in {world.where(name) for name in ("a/db/0", "pair/one/0")}:
        world.call("cnm.drain", id=cnm)
    world.run(5)
    for _ in range(4):  # as long as it drains
        assert reason(world, "a/db/0").startswith("can't leave: a/db/0 shares a volume with b/db/0")
        assert "together: one is on" in reason(world, "pair/two/0")
        world.run(0.7)
    for cnm in world.modules:
        world.call("cnm.undrain", id=cnm)
    world.settle()
    assert reason(world, "a/db/0") == reason(world, "pair/two/0") == ""


def test_what_stays_is_planned_anew_only_when_something_has_changed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans: list[str] = []

    class Counted(DrainPlanner):
        def __init__(self, state: Any, cnm: str, rules: Any) -> None:
            plans.append(cnm)
            super().__init__(state, cnm, rules)

    monkeypatch.setattr(drainer, "DrainPlanner", Counted)
    large = [put(world, f"large{n}", f"cnm{n}", 8) for n in range(4)]
    world.call("cnm.drain", id="cnm0")
    world.run(4)
    assert "cpu: wants 8 cores" in reason(world, large[0])
    first = len(plans)
    assert first >= 1
    world.run(10)
    assert len(plans) == first, "nothing has changed"
    world.remove("large3")
    world.run_until(lambda: world.where(large[0]) == "cnm3", 5)
    assert len(plans) == first + 1
    world.settle()


def test_a_plan_that_is_overtaken_is_made_anew(world: World) -> None:
    names = [put(world, f"w{n}", "cnm0", 2) for n in range(4)]
    before = len(world.events)
    world.call("cnm.drain", id="cnm0")
    world.run_until(lambda: moves(world, before), 5)
    first = {target for _, target in moves(world, before)}
    assert len(first) < 3
    for cnm in first:
        world.call("cnm.drain", id=cnm)  # where they were to go
    world.settle()
    assert {world.where(name) for name in names}.isdisjoint({"cnm0", *first})


def test_who_is_moved_by_one_chain_is_not_taken_by_another(world: World) -> None:
    instance = put(world, "one", "cnm0", 1)
    runner = world.card.rebalancer.runner
    ends: list[str] = []

    def begin(target: str) -> bool:
        move = Move(instance=instance, source="cnm0", target=target)
        chain = Chain(moves=(move,), gain=1, weight=Weight())
        return runner.run(chain, lambda name: None, counted=False, ended=ends.append)

    assert begin("cnm1")
    assert not begin("cnm2")
    assert runner.moving(instance)
    world.settle()
    assert (world.where(instance), ends) == ("cnm1", [""])
    assert not runner.moving(instance)


def test_replicas_that_are_spread_stay_spread_when_one_of_them_has_to_leave(world: World) -> None:
    world.submit(workload("wide", component(replicas=3, placement={"spread": True}, **cores(1))))
    world.settle()
    (cnm,) = {f"cnm{n}" for n in range(4)} - {w[0] for w in world.running().values()}
    put(world, "full", cnm, 4)  # any other module would be filled less
    leaves = next(iter(world.running().values()))[0]
    world.call("cnm.drain", id=leaves)
    world.settle()
    wide = [where[0] for name, where in world.running().items() if name.startswith("wide/")]
    assert len(set(wide)) == 3


def test_an_instance_removed_in_the_middle_of_its_drain_holds_nobody_up(world: World) -> None:
    names = [put(world, f"w{n}", "cnm0", 1) for n in range(5)]
    before = len(world.events)
    world.call("cnm.drain", id="cnm0")
    world.run_until(lambda: moves(world, before), 5)
    moving = [name for name, _ in moves(world, before)]
    assert 1 <= len(moving) < len(names)
    for name in moving:
        world.remove(str(name).split("/")[0])
    world.settle()
    assert len(world.running()) == len(names) - len(moving)
    assert "cnm0" not in {where[0] for where in world.running().values()}


# --- a module that is lost: the same order, and room for what fits nowhere ---


def test_of_what_a_lost_module_held_who_has_the_fewest_places_goes_first(world: World) -> None:
    put(world, "full", "cnm3", 5)
    big = put(world, "big", "cnm2", 3)
    tied = put(world, "tied", "cnm2", 1, placement=ZONE_B)
    before = len(world.events)
    world.modules["cnm2"].slot.pull()
    world.settle()
    told = [e for e in world.events[before:] if e.code == EventCode.INSTANCE_FAILOVER]
    assert [e.instance for e in told] == [tied, big]
    assert world.where(tied) == "cnm3"
    assert moves(world, before) == []


def test_room_for_what_was_lost_is_made_at_once(world: World) -> None:
    leaver = blocked(world)
    before = len(world.events)
    world.modules["cnm0"].slot.pull()
    lost = "instance.lost"
    world.run_until(lambda: lost in world.codes(instance=leaver), 10)
    wait_s = world.run_until(lambda: world.where(leaver) not in (None, "cnm0"), 10)
    assert wait_s < world.board.thresholds.room_ms / 1000 / 2
    assert len(moves(world, before)) == 1
    assert world.card.rebalancer.runner.left() == world.board.thresholds.moves_per_hour - 1
    world.settle()


def lose(world: World, instance: str) -> float:
    """Seconds from when it is said to be lost with its module until it is elsewhere."""
    cnm, before = str(world.where(instance)), len(world.events)
    world.modules[cnm].slot.pull()
    lost = (EventCode.INSTANCE_LOST, instance)
    world.run_until(lambda: lost in [(e.code, e.instance) for e in world.events[before:]], 10)
    wait_s = world.run_until(lambda: world.where(instance) not in (None, cnm), 20)
    world.settle()
    return wait_s


def test_what_is_lost_again_is_not_made_to_wait_for_having_been_lost_before(world: World) -> None:
    leaver = blocked(world)
    most_s = world.board.thresholds.room_ms / 1000 / 2
    assert lose(world, leaver) < most_s
    world.modules["cnm0"].slot.insert()
    world.wait_leased()
    put(world, "filler", "cnm0", 6)
    world.run(world.board.thresholds.rest_ms / 1000)  # who has made room may do so again
    assert lose(world, leaver) < most_s


def test_who_was_stopped_for_another_one_long_ago_is_lost_like_everybody_else() -> None:
    limits = replace(BOARD.thresholds, preemptions_per_hour=10)
    world = World(seed=62, board=replace(BOARD, thresholds=limits))
    world.boot()
    leaver = blocked(world, priority=10)
    runner = world.card.rebalancer.runner
    while runner.left() > 0:
        runner.spend()
    world.submit(workload("high", component(**cores(5), priority=80)))
    world.run_until(lambda: "high/web/0" in world.running(), 20)
    assert "instance.preempted" in world.codes(instance=leaver)
    world.remove("high")
    world.run_until(lambda: leaver in world.running(), 20)
    runner._spent.clear()  # an hour later
    assert lose(world, leaver) < limits.room_ms / 1000 / 2


def test_what_was_lost_and_can_not_be_helped_is_hurried_once(world: World) -> None:
    leaver = put(world, "leaver", "cnm0", 8)
    for cnm in ("cnm1", "cnm2", "cnm3"):
        put(world, cnm, cnm, 6)
    world.modules["cnm0"].slot.pull()
    world.run_until(lambda: "instance.lost" in world.codes(instance=leaver), 10)
    room = world.card.rebalancer.room
    world.run(0.3)
    assert room.idle, "looked at, and given up"
    world.remove("cnm1")
    world.run_until(lambda: world.where(leaver) == "cnm1", 10)
    world.settle()
