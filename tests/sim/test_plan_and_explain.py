"""A plan is what a submit then does, and an explanation is what the card has done."""

import random
from typing import Any

import pytest

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


def test_nobody_is_explained_who_is_not_wanted(world: World) -> None:
    world.submit(workload("shop"))
    for name in ("shop/web/1", "shop/db/0", "x/y/0", "nonsense"):
        with pytest.raises(RpcFailure, match="is wanted") as refused:
            world.call("instance.explain", instance=name)
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
