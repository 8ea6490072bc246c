"""A plan is what a submit then does, and an explanation is what the card has done."""

import random
from collections.abc import Generator
from typing import Any

import pytest

from firmware import placement_api
from firmware.planning import Choice, choice_steps
from hal.mock.instance import Behaviour
from tools.sim.documents import component, volume, workload
from tools.sim.world import RpcFailure, World

MIB = 1 << 20
SEEDS = range(12)


@pytest.fixture
def world() -> World:
    world = World(seed=11)
    world.boot()
    return world


def some_workload(rng: random.Random) -> dict[str, Any]:
    """Up to six components that ask for this and that, perhaps more than the card has."""
    names = [f"c{number}" for number in range(rng.randint(1, 6))]
    parts = []
    for number, name in enumerate(names):
        placement: dict[str, Any] = {
            "spread": rng.random() < 0.3,
            "max_per_cnm": rng.choice((0, 0, 0, 1)),
        }
        if number and rng.random() < 0.3:
            placement["together"] = [rng.choice(names[:number])]
        mounts = [volume(rng.choice(("v", "w")))] if rng.random() < 0.3 else []
        needs = {
            "cpu_milli": rng.choice((100, 500, 2000, 5000)),
            "memory_bytes": rng.choice((16, 256, 1024)) * MIB,
        }
        parts.append(
            component(
                name,
                resources=needs,
                replicas=rng.randint(1, 3),
                placement=placement,
                volumes=mounts,
            )
        )
    return workload("shop", *parts)


def accepted(world: World, document: dict[str, Any]) -> bool:
    """Submit it; False when a part of it could never fit."""
    answers = world.begin("workload.submit", workload=document)
    world.run_until(lambda: bool(answers), 10, "an answer")
    refused = "error" in answers[0]
    assert not refused or answers[0]["error"]["data"]["code"] == "never_fits"
    return not refused


def places(world: World) -> dict[str, str | None]:
    return {name: row["cnm"] for name, row in world.ps().items()}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_plan_is_what_a_submit_then_does_on_an_idle_card(seed: int) -> None:
    world = World(seed=seed)
    world.boot()
    document = some_workload(random.Random(seed))
    plan = world.call("workload.plan", workload=document)
    assert world.ps() == {}, "nothing was made"
    if not accepted(world, document):
        assert not plan["fits"]
        return
    planned = {row["instance"]: row["cnm"] for row in plan["instances"]}
    waiting = {name for name, cnm in planned.items() if cnm is None}

    def decided() -> bool:
        rows = world.ps()
        return rows.keys() == planned.keys() and all(
            row["cnm"] is not None or row["pending"] for row in rows.values()
        )

    world.run_until(decided, 10, "every instance placed, or said to wait")
    assert places(world) == planned
    assert plan["fits"] == (not waiting)
    assert {name for name, row in world.ps().items() if row["pending"]} == waiting


def test_a_plan_for_a_card_that_is_in_use_keeps_off_what_is_taken(world: World) -> None:
    whole = {"cpu_milli": 8000, "memory_bytes": MIB}
    world.submit(workload("full", component("a", replicas=3, resources=whole)))
    world.settle()
    before, books = world.ps(), world.card.placer.state.instances()
    plan = world.call(
        "workload.plan", workload=workload("more", component("b", replicas=2, resources=whole))
    )
    first, second = plan["instances"]
    assert first["cnm"] not in places(world).values()
    assert (first["cnm"] is None, second["cnm"]) == (False, None)
    assert not plan["fits"]
    assert second["pending"].keys() == {row["id"] for row in second["cnms"]}
    assert all(row["remedies"] for row in second["cnms"])
    assert world.ps() == before
    assert world.card.placer.state.instances() == books, "the books are as they were"


def test_a_name_that_is_taken_and_an_image_that_is_missing_are_said_beside_the_plan(
    world: World,
) -> None:
    world.submit(workload("shop"))
    world.settle()
    document = workload("shop", component("web"), component("db", image="nobody/has:1"))
    plan = world.call("workload.plan", workload=document)
    assert [row["instance"] for row in plan["instances"]] == ["shop/web/0", "shop/db/0"]
    assert plan["fits"]
    assert [item["code"] for item in plan["refusals"]] == ["name_taken", "image_missing"]


def test_what_no_module_can_ever_hold_is_said_beside_the_plan_in_the_words_of_the_refusal(
    world: World,
) -> None:
    fits = component("a", resources={"cpu_milli": 8000, "memory_bytes": MIB})
    never = component("b", resources={"cpu_milli": 8001, "memory_bytes": MIB})
    assert world.call("workload.plan", workload=workload("w", fits))["refusals"] == []
    plan = world.call("workload.plan", workload=workload("w", fits, never))
    with pytest.raises(RpcFailure) as refused:
        world.call("workload.submit", workload=workload("w", fits, never))
    (said,) = plan["refusals"]
    assert not plan["fits"]
    assert (said["code"], said["text"]) == (refused.value.code, str(refused.value))


def test_a_large_plan_lets_the_card_go_on_in_between(world: World) -> None:
    small = {"cpu_milli": 1, "memory_bytes": MIB}
    document = workload("many", component("a", replicas=200, resources=small))
    answers = world.begin("workload.plan", workload=document)
    assert not answers, "not in one turn"
    world.run_until(lambda: bool(answers), 10, "the plan")
    assert len(answers[0]["result"]["instances"]) == 200


def test_too_many_plans_at_once_are_refused(world: World) -> None:
    small = {"cpu_milli": 1, "memory_bytes": MIB}
    document = workload("many", component("a", replicas=200, resources=small))
    answers = [world.begin("workload.plan", workload=document) for _ in range(5)]
    world.run_until(lambda: all(answers), 10, "all answers")
    refused = [answer[0]["error"]["data"]["code"] for answer in answers if "error" in answer[0]]
    assert refused == ["too_many_plans"]
    assert world.call("workload.plan", workload=document)["fits"], "and then there is room again"


def test_explanations_are_made_in_turns_and_a_few_at_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement_api, "STEPS_A_TURN", 1)  # four modules are few
    world.submit(workload("shop"))
    world.settle()
    asked = [world.begin("instance.explain", instance="shop/web/0") for _ in range(5)]
    assert [bool(answers) for answers in asked] == [False] * 4 + [True], "not in one turn"
    assert asked[4][0]["error"]["data"]["code"] == "too_many_explanations"
    world.run_until(lambda: all(asked), 10, "all answers")
    assert all(answers[0]["result"]["best"] for answers in asked[:4])
    assert world.call("instance.explain", instance="shop/web/0")["best"], "there is room again"


def test_an_explanation_is_of_the_moment_in_which_it_was_asked_for(world: World) -> None:
    world.submit(workload("shop"))
    world.settle()
    placer = world.card.placer
    record = world.card.decisions.workloads["shop"].workload
    question = (placer, "shop", record.components[0], "shop/web/0")
    wanted = all_at_once(choice_steps(*question))
    steps = choice_steps(*question)
    next(steps)
    world.remove("shop")
    for cnm in world.modules:
        world.call("cnm.drain", id=cnm)
    assert all_at_once(steps) == wanted
    assert all_at_once(choice_steps(*question)) != wanted


def all_at_once(steps: Generator[None, None, Choice]) -> Choice:
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]


@pytest.mark.parametrize("seed", SEEDS)
def test_every_instance_is_explained_where_it_is_and_why_it_waits(seed: int) -> None:
    world = World(seed=seed)
    world.boot()
    document = some_workload(random.Random(seed))
    if not accepted(world, document):
        return
    world.run(5)
    for name, row in world.ps().items():
        found = world.call("instance.explain", instance=name)
        assert found["cnm"] == row["cnm"]
        assert found["waits"] == (row["phase"] == "PENDING")
        assert len(found["cnms"]) == 4
        here = [one for one in found["cnms"] if one["here"]]
        assert [one["id"] for one in here] == ([row["cnm"]] if row["cnm"] else [])
        if row["phase"] == "PENDING":
            assert found["best"] is None
            assert {one["id"]: one["reason"] for one in found["cnms"]} == row["pending"]
            assert all(one["remedies"] for one in found["cnms"])
        else:
            # without itself it would fit where it is; only those who came later may be elsewhere
            for why in filter(None, here[0]["reason"].split("; ")):
                assert why.startswith("together: "), (name, why)


def test_what_shares_a_volume_is_told_where_the_volume_is_in_use(world: World) -> None:
    world.submit(workload("a", component("db", volumes=[volume("data")])))
    world.wait_running("a/db/0")
    here = world.ps()["a/db/0"]["cnm"]
    whole = {"cpu_milli": 8000, "memory_bytes": MIB}
    world.submit(workload("b", component("db", volumes=[volume("data")], resources=whole)))
    world.run(2)
    found = world.call("instance.explain", instance="b/db/0")
    assert (found["waits"], found["pinned_to"]) == (True, [here])
    for one in found["cnms"]:
        if one["id"] == here:
            assert one["reason"].startswith("cpu:")
            assert one["releases"] == ["a/db/0"]
        else:
            assert one["reason"] == f"its volume is in use on {here}"
            assert one["remedies"][0]["kind"] == "volume"


def test_what_has_ended_is_nowhere_and_waits_for_nothing(world: World) -> None:
    world.kernel.behaviours.add("job", Behaviour(runs_ns=3_000_000_000))
    world.submit(workload("shop", component("job", restart={"policy": "no"})))
    world.run_until(lambda: world.ps()["shop/job/0"]["phase"] == "STOPPED", 10, "its end")
    found = world.call("instance.explain", instance="shop/job/0")
    assert (found["ended"], found["waits"], found["cnm"]) == ("exited with status 0", False, None)
    assert [one["id"] for one in found["cnms"] if one["here"]] == []


def test_nobody_is_explained_who_is_not_wanted(world: World) -> None:
    world.submit(workload("shop"))
    for name in ("shop/web/1", "shop/db/0", "x/y/0", "nonsense", "shop/web/00", "shop/web/٠"):
        with pytest.raises(RpcFailure, match="is wanted") as refused:
            world.call("instance.explain", instance=name)
        assert refused.value.code == "unknown_instance"


@pytest.mark.parametrize(
    ("method", "nothing"), [("instance.migrate", "nothing to move"), ("instance.logs", "no log")]
)
def test_what_waits_for_its_first_place_is_known_and_has_nothing_yet(
    world: World, method: str, nothing: str
) -> None:
    whole = {"cpu_milli": 8000, "memory_bytes": MIB}
    world.submit(workload("full", component("a", replicas=5, resources=whole)))
    world.run(5)
    late = next(row for row in world.ps().values() if row["phase"] == "PENDING")
    name = late["instance"]
    assert f"`apf explain {name}`" in late["reason"]
    assert "`pending`" in late["reason"]
    with pytest.raises(RpcFailure, match=f"not placed yet: {nothing}; see `apf explain") as refused:
        world.call(method, instance=name)
    assert refused.value.code == "not_placed"
    for name in ("full/a/5", "full/b/0", "x/y/0", "nonsense", f"{late['instance']}/0", "full/a/00"):
        with pytest.raises(RpcFailure, match="there is no instance") as refused:
            world.call(method, instance=name)
        assert refused.value.code == "unknown_instance"


def test_top_and_history_show_what_is_reserved_and_what_is_used(world: World) -> None:
    world.submit(workload("shop", component(replicas=2)))
    world.settle()
    world.run(25)
    top = world.call("card.top", cnms=2, components=5)
    rows = {row["resource"]: row for row in top["resources"]}
    used = sum(row["used"]["cpu_milli"] for row in world.call("cnm.list"))
    assert (rows["cpu"]["reserved"], rows["cpu"]["total"]) == (used, 32_000)
    assert (len(top["cnms"]), top["cnms_known"]) == (2, 4)
    assert top["cnms"][0]["fullest_permille"] >= top["cnms"][1]["fullest_permille"]
    assert [row["component"] for row in top["components"]] == ["web"]
    assert top["components"][0]["instances"] == 2
    history = world.call("card.history", since_ms=30_000)
    assert (history["columns"], history["step_ms"], history["next"]) == (3, 10_000, None)
    for row in history["cnms"]:
        node = world.card.placer.state.nodes[row["id"]]
        assert row["permille"]["cpu"][-1] == node.used[0] * 1000 // node.total[0]
        assert row["permille"]["cpu_used"][-1] is not None
