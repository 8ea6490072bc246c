"""Modules whose serial lines speak another dialect than the card begins with."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from hal.mock.line_faults import LinePlan
from protocol.mctp.serial_frame import Dialect
from tools.sim.documents import component, volume, workload
from tools.sim.module import LINKS
from tools.sim.world import World

ODD = "cnm2"
OTHERS = [Dialect.B, Dialect.C, Dialect.D]


def speak(world: World, dialect: Dialect | None, name: str = ODD) -> None:
    """What this module's firmware speaks from its next boot on; None: it follows the card."""
    module = world.modules[name]
    module.config = replace(module.config, module=replace(module.config.module, dialect=dialect))


def links(world: World, name: str = ODD) -> Mapping[str, Mapping[str, Any]]:
    """The links of `apf cnm show`."""
    return {link["name"]: link for link in world.call("cnm.show", id=name)["links"]}


def spoken(world: World, name: str = ODD) -> set[str]:
    return {link["dialect"] for link in links(world, name).values()}


def changes(world: World, name: str = ODD) -> list[tuple[str, str, str]]:
    """What the events say, without B for C, which takes hundreds of frames to tell."""
    found = [e for e in world.events if e.code == "link.dialect" and e.cnm == name]
    moves = [(e.data["link"], e.data["from"], e.data["to"]) for e in found]
    return [(link, old, new) for link, old, new in moves if family(old) != family(new)]


def family(dialect: str) -> str:
    """B and C are the same but for one frame of 64."""
    return "B or C" if dialect in ("B", "C") else dialect


@pytest.mark.parametrize("dialect", OTHERS)
def test_a_module_that_speaks_only_another_dialect_is_found_leased_and_used(
    dialect: Dialect,
) -> None:
    world = World(seed=81)
    speak(world, dialect)
    world.boot()
    assert {family(word) for word in spoken(world)} == {family(dialect)}
    assert [(link, old) for link, old, _new in changes(world)][:2] == [("mc", "A"), ("agent", "A")]
    for link in links(world).values():
        assert link["counters"]["dialect_changes"] >= 1
        dropped = link["counters"].keys() & {f"dialect_{word}" for word in "abcd"}
        assert family(dialect) in {family(word[-1].upper()) for word in dropped}
    world.submit(workload("shop", component(replicas=4), component("db", volumes=[volume()])))
    world.settle()
    for name in ("shop/web/0", "shop/db/0"):
        world.migrate(name, to=ODD)
    world.settle()
    assert world.where("shop/web/0") == world.where("shop/db/0") == ODD
    world.migrate("shop/db/0", to="cnm1")
    world.settle()
    assert world.where("shop/db/0") == "cnm1"
    world.remove("shop")
    world.settle()
    assert world.modules[ODD].leftovers() == set()
    for name in world.modules.keys() - {ODD}:
        assert spoken(world, name) == {"A"}
        assert changes(world, name) == []


def test_c_is_told_from_b_by_the_frames_that_only_it_sends() -> None:
    world = World(seed=86)
    speak(world, Dialect.C)
    world.boot()
    world.run(60)
    assert links(world)["mc"]["dialect"] == "C"
    counters = links(world)["mc"]["counters"]
    assert counters["dialect_changes"] == 2
    world.run(60)
    assert links(world)["mc"]["counters"]["dialect_changes"] == 2
    assert links(world)["mc"]["counters"]["dialect_c"] == counters["dialect_c"], "none is lost now"


@pytest.mark.parametrize("dialect", OTHERS)
def test_a_daemon_that_starts_again_finds_the_dialect_before_the_module_counts_as_silent(
    dialect: Dialect,
) -> None:
    world = World(seed=82)
    speak(world, dialect)
    world.boot()
    world.submit(workload("shop", component(replicas=2)))
    world.settle()
    world.migrate("shop/web/0", to=ODD)
    world.settle()
    before = world.running()
    world.restart_daemon()
    world.wait_leased()
    world.settle()
    assert world.running() == before
    assert not {"cnm.fencing", "cnm.fenced"} & set(world.codes(cnm=ODD))


def test_firmware_of_other_dialects_may_follow_on_each_other_in_one_slot() -> None:
    world = World(seed=83)
    world.boot()
    for dialect in (Dialect.B, Dialect.A, Dialect.D, Dialect.C, None, Dialect.A):
        speak(world, dialect)
        world.modules[ODD].slot.lose_power()
        world.run(0.5)
        world.wait_leased(ODD)
        world.run(5)
        if dialect is not None:
            assert {family(word) for word in spoken(world)} == {family(dialect)}
        count = len(changes(world))
        world.run(30)
        assert len(changes(world)) == count, "the two ends chase each other"


@pytest.mark.parametrize("dialect", OTHERS)
def test_a_module_that_follows_comes_along_with_a_card_in_any_dialect(dialect: Dialect) -> None:
    """The card was taught another dialect by firmware that was replaced."""
    world = World(seed=84)
    speak(world, dialect)
    world.boot()
    speak(world, None)
    world.modules[ODD].slot.lose_power()
    world.run(0.5)
    world.wait_leased(ODD)
    world.run(5)
    agreed = spoken(world)
    count = len(changes(world))
    world.run(60)
    assert spoken(world) == agreed
    assert len(changes(world)) == count
    assert world.modules[ODD].init is not None
    assert family(world.modules[ODD].init.endpoint.link.dialect) in {family(w) for w in agreed}


@pytest.mark.parametrize("dialect", [None, *OTHERS])
def test_noise_costs_frames_but_moves_no_link_to_another_dialect(dialect: Dialect | None) -> None:
    world = World(seed=85)
    speak(world, dialect)
    world.boot()
    world.run(20)
    before = {link["name"]: link["dialect"] for link in links(world).values()}
    for name in LINKS:
        line = world.modules[ODD].lines[name]
        for direction in (line.a_to_b, line.b_to_a):
            direction.faults.plan = LinePlan(flip=0.1, burst=0.1, truncate=0.05, garbage=0.05)
    world.run(120)
    for name in LINKS:
        line = world.modules[ODD].lines[name]
        line.a_to_b.faults.plan = line.b_to_a.faults.plan = None
    world.wait_leased(ODD)
    after = {link["name"]: link["dialect"] for link in links(world).values()}
    assert {name: family(word) for name, word in after.items()} == {
        name: family(word) for name, word in before.items()
    }
