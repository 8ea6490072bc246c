"""Something waits, and others are stopped for it: whom, when, and what comes of it."""

from dataclasses import replace
from typing import Any

import pytest

from firmware.assignments import Eviction
from firmware.board_types import Board
from firmware.events import EventCode
from firmware.lease import LeaseState
from hal.mock.instance import Behaviour
from tools.sim.documents import component, image, layer, volume, workload
from tools.sim.world import BOARD, World

APP = layer({"bin/app": bytes(100_000)})


def cores(number: int, **more: Any) -> dict[str, Any]:
    return {"resources": {"cpu_milli": number * 1000, "memory_bytes": 1 << 20}, **more}


def board(per_hour: int = 10, tenants: dict[str, int] | None = None, **thresholds: int) -> Board:
    changed = replace(BOARD.thresholds, preemptions_per_hour=per_hour, **thresholds)
    return replace(BOARD, thresholds=changed, tenants=tenants)


def full(seed: int, of: Board, *, priority: int = 10, **changes: Any) -> World:
    """Four modules of eight cores, all taken by instances of four."""
    world = World(seed=seed, board=of)
    world.kernel.behaviours.add("stubborn", Behaviour(ignores_term=True))
    world.boot()
    low = component(replicas=8, **cores(4, priority=priority), **changes)
    world.submit(workload("low", low))
    world.settle()
    assert len(world.running()) == 8
    return world


def high(number: int = 1, *, size: int = 4, priority: int = 80) -> dict[str, Any]:
    return workload("high", component(replicas=number, **cores(size, priority=priority)))


def preempted(world: World) -> list[Any]:
    return [e for e in world.events if e.code == EventCode.INSTANCE_PREEMPTED]


def test_by_default_nobody_is_stopped_for_anybody() -> None:
    world = full(seed=1, of=BOARD)
    before = world.running()
    world.submit(high())
    world.run(60)
    assert world.running() == before
    found = world.call("instance.explain", instance="high/web/0")["preemption"]
    assert found["text"] == "nobody is stopped for it: preemptions_per_hour is 0"


def test_one_of_the_lower_is_stopped_with_its_grace_and_waits() -> None:
    world = full(seed=2, of=board())
    world.submit(high())
    world.run(2)
    assert "high/web/0" not in world.running()
    assert not preempted(world)  # room_ms first
    told = world.call("instance.explain", instance="high/web/0")["preemption"]
    assert "will be stopped for it" in told["text"]
    assert (told["left"], told["per_hour"], len(told["victims"])) == (10, 10, 1)
    world.run(10)
    assert "high/web/0" in world.running()
    (event,) = preempted(world)
    assert event.instance == told["victims"][0]
    assert event.data["for"] == "high/web/0"
    assert (event.data["priority"], event.data["for_priority"]) == (10, 80)
    row = world.ps()[event.instance]
    assert (row["phase"], row["restarts"]) == ("PENDING", 0)
    assert len(world.running()) == 8
    world.remove("high")
    world.settle()
    assert event.instance in world.running()  # as soon as there is room


def test_others_move_rather_than_that_anybody_is_stopped() -> None:
    world = World(seed=3, board=board())
    world.boot()
    spread = component(replicas=4, placement={"spread": True}, **cores(3, priority=10))
    world.submit(workload("low", spread))
    world.settle()
    world.submit(high(size=6))
    world.run(20)
    assert "high/web/0" in world.running()
    assert len(world.running()) == 5
    assert not preempted(world)


def test_the_lowest_are_taken_and_no_more_than_are_needed() -> None:
    world = World(seed=4, board=board())
    world.boot()
    for name, priority in (("a", 30), ("b", 20), ("c", 40), ("d", 30)):
        world.submit(workload(name, component(replicas=4, **cores(2, priority=priority))))
        world.settle()
    where = world.where("b/web/0")
    world.submit(high(size=3))
    world.run(15)
    assert {e.instance.split("/")[0] for e in preempted(world)} == {"b"}
    assert len(preempted(world)) == 2
    assert world.where("high/web/0") == where


def test_an_equal_priority_waits() -> None:
    world = full(seed=5, of=board(), priority=80)
    world.submit(high())
    world.run(60)
    assert not preempted(world)
    text = world.call("instance.explain", instance="high/web/0")["preemption"]["text"]
    assert text == "nobody of a lower priority could make room by going"


def test_what_nothing_helps_stops_nobody() -> None:
    world = full(seed=6, of=board())
    world.submit(workload("pinned", component(**cores(4, priority=20))))
    world.run(20)
    count = len(preempted(world))
    assert count == 1
    vast = component(**cores(8, priority=15))
    world.submit(workload("vast", vast, component("x", **cores(1, priority=5))))
    world.run(20)
    assert "vast/x/0" not in world.running()  # above nobody


def test_there_are_no_more_victims_in_an_hour_than_the_board_allows() -> None:
    world = full(seed=7, of=board(per_hour=2))
    world.submit(high(4))
    world.run(60)
    assert len(preempted(world)) == 2
    assert sum(name.startswith("high/") for name in world.running()) == 2
    waiting = next(n for n, row in world.ps().items() if "high" in n and row["phase"] == "PENDING")
    told = world.call("instance.explain", instance=waiting)["preemption"]
    assert told["left"] == 0
    assert "would have to be stopped; left are 0" in told["text"]
    world.restart_daemon()
    world.wait_leased()
    world.run(60)
    assert len(preempted(world)) == 2  # the next daemon knows what the last one has spent
    world.run(3600)
    assert len(preempted(world)) == 4


def test_who_needs_more_victims_than_are_left_gets_them_when_the_hour_is_over() -> None:
    world = full(seed=18, of=board(per_hour=2))
    world.submit(high())
    world.run(15)
    world.submit(workload("vast", component(**cores(8, priority=70))))
    world.run(60)
    assert len(preempted(world)) == 1
    world.run(3600)
    assert len(preempted(world)) == 3
    assert {"high/web/0", "vast/web/0"} <= world.running().keys()


def test_one_after_the_other_gets_its_room() -> None:
    world = full(seed=19, of=board())
    for name, priority in (("third", 60), ("first", 90), ("second", 80)):
        world.submit(workload(name, component(**cores(4, priority=priority))))
        world.run(0.5)
    world.run(30)
    assert {f"{name}/web/0" for name in ("first", "second", "third")} <= world.running().keys()
    assert len(preempted(world)) == 3


def test_a_victim_rests_before_it_is_one_again() -> None:
    world = World(seed=8, slots=1, board=board(rest_ms=60_000))
    world.boot()
    world.submit(workload("low", component(**cores(8, priority=10))))
    world.settle()
    world.submit(high(size=8))
    world.run(10)
    assert [e.instance for e in preempted(world)] == ["low/web/0"]
    world.remove("high")
    world.settle()
    assert "low/web/0" in world.running()
    world.submit(high(size=8))
    world.run(20)
    assert len(preempted(world)) == 1
    assert (
        "rest since" in world.call("instance.explain", instance="high/web/0")["preemption"]["text"]
    )
    world.run(40)
    assert len(preempted(world)) == 2
    assert "high/web/0" in world.running()


def test_the_victims_data_comes_home_first_and_goes_on_elsewhere() -> None:
    world = World(seed=9, slots=2, board=board())
    world.boot()
    world.import_image(image("app:latest", APP), [APP])
    db = component("db", image="app", volumes=[volume()], **cores(6, priority=10))
    world.submit(workload("low", db))
    world.settle()
    world.modules[world.where("low/db/0")].write_volume("data", "table", b"written")
    first = world.where("low/db/0")
    world.submit(workload("other", component(**cores(6, priority=60))))
    world.settle()
    world.submit(high(size=6))
    world.run(12)
    assert world.where("high/web/0") == first
    world.remove("other")
    world.settle()
    assert world.where("low/db/0") not in (None, first)
    assert world.modules[world.where("low/db/0")].volume_file("data", "table") == b"written"
    assert "volume.stale" not in world.codes()


def test_what_shares_a_volume_is_no_victim() -> None:
    world = World(seed=10, slots=1, board=board())
    world.boot()
    world.import_image(image("app:latest", APP), [APP])
    parts = [
        component(name, image="app", volumes=[volume()], **cores(4, priority=10))
        for name in ("one", "two")
    ]
    world.submit(workload("low", *parts))
    world.settle()
    world.submit(high())
    world.run(30)
    assert not preempted(world)


def test_what_is_needed_is_not_stopped_for_who_needs_it() -> None:
    world = World(seed=11, slots=1, board=board())
    world.boot()
    needs = [{"component": "db", "condition": "started"}]
    world.submit(
        workload(
            "w",
            component("web", depends_on=needs, **cores(5, priority=90)),
            component("db", **cores(5, priority=10)),
        )
    )
    world.run(30)
    assert not preempted(world)


@pytest.mark.parametrize("after_ms", [*range(6000, 7600, 100)])
def test_a_daemon_that_dies_anywhere_in_between_loses_nothing(after_ms: int) -> None:
    world = full(seed=after_ms, of=board())
    world.submit(high())
    world.run(after_ms / 1000)
    world.restart_daemon()
    world.wait_leased()
    world.settle()
    assert "high/web/0" in world.running()
    assert len(world.running()) == 8
    assert len({e.instance for e in preempted(world)}) <= 1  # or it died before it could say so


@pytest.mark.parametrize("after_ms", [*range(6000, 7600, 200)])
def test_a_module_that_dies_in_between_costs_nobody_for_good(after_ms: int) -> None:
    world = full(seed=after_ms, of=board(per_hour=4))
    world.submit(high())
    world.run(after_ms / 1000)
    event = next(iter(preempted(world)), None)
    world.modules[event.cnm if event else "cnm0"].slot.lose_power()
    world.settle()
    world.run(60)
    world.settle()
    assert "high/web/0" in world.running()
    assert len(world.running()) == 8


@pytest.mark.parametrize("after_ms", [*range(6000, 7600, 200)])
def test_who_was_to_be_stopped_for_what_is_removed_meanwhile_goes_on(after_ms: int) -> None:
    world = full(seed=after_ms, of=board(), stop_grace_ms=5000)
    world.submit(high())
    world.run(after_ms / 1000)
    world.remove("high")
    world.settle()
    assert len(world.running()) == 8
    assert all(row["phase"] == "RUNNING" for row in world.ps().values())


def test_the_room_that_is_freed_is_kept_for_whom_it_is_freed() -> None:
    world = full(seed=12, of=board(), stop_grace_ms=8000, argv=["stubborn"])
    world.submit(high())
    world.run_until(lambda: preempted(world), 10)
    world.submit(workload("new", component(**cores(4, priority=80))))
    world.run(3)
    row = world.ps()["new/web/0"]
    cnm = preempted(world)[0].cnm
    assert row["pending"][cnm].startswith("its room is being freed for high/web/0 (priority 80)")
    world.run(10)
    assert world.where("high/web/0") == cnm


@pytest.mark.parametrize("seed", [31, 32, 33])
def test_room_is_not_kept_for_a_job_that_has_ended(seed: int) -> None:
    world = full(seed=seed, of=board())
    world.kernel.behaviours.add("job", Behaviour(runs_ns=1_000_000))
    job = component("job", restart={"policy": "no"}, **cores(4, priority=80))
    world.submit(workload("high", job))
    world.wait_phase("high/job/0", "STOPPED")
    world.run(3)
    assert len(world.running()) == 8  # the victim runs again


def test_a_victim_that_is_removed_meanwhile_is_gone_and_its_room_used() -> None:
    world = full(seed=13, of=board(), stop_grace_ms=5000, argv=["stubborn"])
    world.submit(high())
    world.run_until(lambda: preempted(world), 10)
    world.remove("low")
    world.settle()
    assert sorted(world.running()) == ["high/web/0"]


def test_what_was_ready_to_be_started_is_a_victim_too() -> None:
    world = World(seed=14, slots=1, board=board())
    world.boot()
    needs = [{"component": "vast", "condition": "started"}]
    world.submit(
        workload(
            "low",
            component("web", depends_on=needs, **cores(4, priority=10)),
            component("vast", **cores(8, priority=10)),
        )
    )
    world.run(5)
    assert world.ps()["low/web/0"]["reason"].startswith("waits for vast")
    world.submit(high(size=8))
    world.run(15)
    assert world.running().keys() == {"high/web/0"}


def test_between_tenants_nobody_is_stopped() -> None:
    world = full(seed=15, of=board(tenants={"acme": 2}))
    world.submit(high() | {"tenant": "acme"})
    world.run(30)
    assert not preempted(world)
    world.remove("high")
    world.settle()
    world.submit(high())
    world.run(15)
    assert len(preempted(world)) == 1


def test_two_tenants_get_room_by_their_weights() -> None:
    world = World(seed=16, board=board(0, tenants={"acme": 3}))
    world.boot()
    world.submit(workload("block", component(replicas=4, **cores(8))))
    world.settle()
    for tenant in ("acme", "zoo"):
        parts = workload(tenant, component(replicas=16, **cores(2)))
        world.submit(parts | {"tenant": tenant})
    world.run(3)
    world.remove("block")
    world.settle()
    running = [name.split("/")[0] for name in world.running()]
    assert (running.count("acme"), running.count("zoo")) == (12, 4)
    shown = {row["tenant"]: row for row in world.call("card.top")["tenants"]}
    assert (shown["acme"]["weight"], shown["acme"]["running"], shown["acme"]["waiting"]) == (
        3,
        12,
        4,
    )
    assert (shown["zoo"]["resource"], shown["zoo"]["share_percent"]) == ("cpu", 25)


def test_without_tenants_the_higher_priority_gets_the_room_that_comes_up() -> None:
    world = World(seed=17, board=board(0))
    world.boot()
    world.submit(workload("block", component(replicas=4, **cores(8))))
    world.settle()
    world.submit(workload("low", component(replicas=4, **cores(8, priority=40))))
    world.submit(workload("high", component(replicas=4, **cores(7, priority=60))))
    world.run(3)
    world.remove("block")
    world.settle()
    assert {name.split("/")[0] for name in world.running()} == {"high"}


def test_the_next_daemon_knows_what_was_spent_on_those_that_are_gone() -> None:
    world = full(seed=20, of=board(per_hour=2))
    world.submit(high(2))
    world.run(30)
    world.remove("low")
    world.settle()
    world.submit(workload("other", component(replicas=6, **cores(4, priority=10))))
    world.settle()
    world.restart_daemon()
    world.wait_leased()
    assert world.card.preemptor.left() == 0
    world.submit(workload("more", component(replicas=2, **cores(4, priority=80))))
    world.run(30)
    assert len(preempted(world)) == 2


def test_who_was_stopped_before_the_card_was_booted_can_be_stopped_again() -> None:
    """The card's clock began anew: what is on the disk is of a time that is to come."""
    world = full(seed=21, of=board(rest_ms=60_000))
    month_ms = 30 * 24 * 3_600_000
    before = Eviction(by="x/y/0", cnm="cnm0", generation=1000, at_ms=month_ms)
    decisions = world.card.decisions
    decisions.assign([replace(a, evict=before) for a in decisions.assignments.values()])
    world.run(60)
    world.restart_daemon()
    world.wait_leased()
    assert world.card.preemptor.left() == 2
    world.submit(high())
    world.run(15)
    assert len(preempted(world)) == 1
    assert "high/web/0" in world.running()


@pytest.mark.parametrize("helpless", [15, 16, 40])
def test_nobody_waits_behind_what_nothing_helps(helpless: int) -> None:
    world = World(seed=22, slots=1, board=board(moves_per_hour=0))
    world.boot()
    world.submit(workload("top", component(**cores(4, priority=90))))
    world.settle()
    world.submit(workload("low", component(**cores(4, priority=10))))
    world.settle()
    for number in range(helpless):
        world.submit(workload(f"vast{number}", component(**cores(8, priority=90))))
    world.submit(workload("mid", component(**cores(4, priority=60))))
    world.run(30)
    assert world.running().keys() == {"top/web/0", "mid/web/0"}


def test_who_was_helpless_when_a_round_began_is_tried_again_after_it() -> None:
    """Its room comes up when others of the same round are being tried."""
    world = World(seed=23, slots=1, board=board(moves_per_hour=0))
    world.boot()
    world.submit(workload("top", component(**cores(4, priority=95))))
    world.settle()
    world.submit(workload("low", component(**cores(4, priority=10))))
    world.settle()
    for number in range(20):
        priority = 90 - number if number < 16 else 5
        world.submit(workload(f"vast{number}", component(**cores(8, priority=priority))))
    world.run(15)
    planner = world.card.preemptor
    assert not planner._tried
    world.submit(workload("next", component(**cores(1, priority=5))))  # a round begins
    world.run_until(lambda: bool(planner._tried) and not planner._planning, 5)
    world.remove("top")
    world.run(5)
    assert "vast0/web/0" in world.running()


@pytest.mark.parametrize("how", ["lost", "drained"])
def test_a_promise_on_a_module_that_is_out_of_use_holds_nobody_back(how: str) -> None:
    """Its victims have five minutes to stop; elsewhere there is room at once, or soon."""
    world = World(seed=24, slots=2, board=board())
    world.kernel.behaviours.add("stubborn", Behaviour(ignores_term=True))
    world.boot()
    low = component(replicas=4, argv=["stubborn"], stop_grace_ms=300_000, **cores(4, priority=10))
    world.submit(workload("low", low))
    world.settle()
    world.submit(high())
    world.run_until(lambda: preempted(world), 10)
    cnm = preempted(world)[0].cnm
    if how == "lost":
        world.modules[cnm].slot.pull()
    else:
        world.call("cnm.drain", id=cnm)
    world.run_until(lambda: len(preempted(world)) > 1, 60)
    assert preempted(world)[1].cnm != cnm
    assert preempted(world)[1].data["for"] == "high/web/0"
    world.run(320)
    assert "high/web/0" in world.running()


def test_a_module_that_is_silent_for_a_moment_keeps_what_it_promised() -> None:
    world = full(seed=25, of=board(), stop_grace_ms=8000, argv=["stubborn"])
    world.submit(high())
    world.run_until(lambda: preempted(world), 10)
    cnm = preempted(world)[0].cnm
    world.modules[cnm].cut(links=("mc",))
    world.run_until(lambda: world.lease(cnm) is LeaseState.SUSPECT, 5)
    world.run(0.5)
    world.modules[cnm].cut(False)
    world.run(15)
    assert "cnm.fenced" not in world.codes()
    assert world.where("high/web/0") == cnm
    assert len(preempted(world)) == 1


@pytest.mark.parametrize("priority", [80, 20, 10])
def test_nobody_is_stopped_for_a_group_who_goes_before_one_of_it(priority: int) -> None:
    """Else that room would be taken back before the whole group has come."""
    world = World(seed=26, slots=1, board=board())
    world.boot()
    world.submit(workload("low", component(replicas=2, **cores(4, priority=20))))
    world.settle()
    web = component("web", placement={"together": ["db"]}, **cores(4, priority=80))
    world.submit(workload("g", web, component("db", **cores(4, priority=priority))))
    world.run(60)
    group, low = {"g/web/0", "g/db/0"}, {"low/web/0", "low/web/1"}
    assert world.running().keys() == (group if priority > 20 else low)
    assert len(preempted(world)) == (2 if priority > 20 else 0)


def test_what_waits_again_waits_as_long_as_the_first_time() -> None:
    world = World(seed=27, slots=1, board=board(moves_per_hour=0))
    world.boot()
    world.submit(workload("block", component(**cores(8, priority=90))))
    world.settle()
    world.submit(high(size=8))
    world.run(20)
    world.remove("block")
    world.settle()
    assert "high/web/0" in world.running()
    world.remove("high")
    world.settle()
    world.submit(workload("low", component(**cores(8, priority=10))))
    world.settle()
    world.run(60)
    assert not world.card.preemptor._since
    world.submit(high(size=8))
    world.run(2)
    assert not preempted(world)
    world.run(10)
    assert len(preempted(world)) == 1


def test_whether_others_are_stopped_is_explained_in_short_steps() -> None:
    world = World(seed=28, board=board())
    world.boot()
    small = {"cpu_milli": 400, "memory_bytes": 1 << 20}
    world.submit(workload("low", component(replicas=80, priority=10, resources=small)))
    world.settle()
    world.submit(high())
    world.run(1)
    assert any(True for _ in world.card.preemptor.explain("high/web/0"))
    told = world.call("instance.explain", instance="high/web/0")["preemption"]
    assert "will be stopped for it" in told["text"]
