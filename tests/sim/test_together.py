"""`together` holds for every replica, whatever is placed first, and after a module is lost."""

import random
from typing import Any

import pytest

from tools.sim.documents import component, workload
from tools.sim.world import World


def part(name: str, cores: int, replicas: int = 1, **placement: Any) -> dict[str, Any]:
    resources = {"cpu_milli": cores * 1000, "memory_bytes": 1 << 20}
    return component(name, resources=resources, replicas=replicas, placement=placement)


def torn(world: World) -> list[str]:
    """Instances of `a` or `b` on a module where none of the other component is."""
    on: dict[str, set[str]] = {"a": set(), "b": set()}
    for name, row in world.ps().items():
        if row["cnm"] is not None:
            on[name.split("/")[1]].add(row["cnm"])
    if not on["a"] or not on["b"]:
        return []
    return [
        name
        for name, row in world.ps().items()
        if row["cnm"] is not None
        and row["cnm"] not in on["b" if name.split("/")[1] == "a" else "a"]
    ]


def booted(seed: int) -> World:
    world = World(seed=seed)
    world.boot()
    return world


@pytest.mark.parametrize("wide", [{"spread": True}, {}])
def test_replicas_that_come_before_their_partner_are_where_it_can_come(wide: Any) -> None:
    world = booted(91)
    world.submit(workload("shop", part("a", 3, replicas=2, **wide), part("b", 2, together=["a"])))
    world.settle()
    assert set(world.running()) == {"shop/a/0", "shop/a/1", "shop/b/0"}
    assert torn(world) == []


def test_a_replica_that_fits_only_elsewhere_waits_and_says_for_whom() -> None:
    world = booted(92)
    world.submit(workload("shop", part("a", 5, replicas=2), part("b", 2, together=["a"])))
    world.settle()
    assert torn(world) == []
    rows = world.ps()
    assert {name for name in rows if rows[name]["cnm"]} == {"shop/a/0", "shop/b/0"}
    why = rows["shop/a/1"]["pending"]
    assert any("together" in text for text in why.values())


@pytest.mark.parametrize("seed", range(6))
def test_what_is_together_is_together_again_after_its_module_was_lost(seed: int) -> None:
    rng = random.Random(seed)
    world = booted(93 + seed)
    parts = [
        part("a", rng.choice((1, 2)), replicas=rng.randint(1, 2)),
        part("b", 1, replicas=rng.randint(1, 2), together=["a"]),
    ]
    rng.shuffle(parts)
    world.submit(workload("shop", *parts))
    world.settle()
    assert torn(world) == []
    count = len(world.running())
    world.modules[str(world.where("shop/a/0"))].slot.pull()
    world.settle()
    assert len(world.running()) == count
    assert torn(world) == []
