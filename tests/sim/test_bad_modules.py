"""Modules that lie, speak another language or report what nobody ordered: one fault, one module."""

from dataclasses import replace
from typing import Any

import pytest

from firmware.cnm.records import Instance
from protocol.apf import InstanceState
from tools.sim.documents import component, volume, workload
from tools.sim.world import SECOND, World

BAD = "cnm2"


def with_module(seed: int = 31, **claims: Any) -> World:
    world = World(seed)
    module = world.modules[BAD]
    module.config = replace(module.config, module=replace(module.config.module, **claims))
    world.start_daemon()
    world.wait_leased(*(name for name in world.modules if name != BAD))
    world.run(2)
    return world


def state_of(world: World) -> tuple[str, str]:
    row = next(row for row in world.call("cnm.list") if row["id"] == BAD)
    return row["state"], row["reason"]


@pytest.mark.parametrize(
    ("claims", "word"),
    [
        ({"cores_milli": 0xFFFF_FFFF}, "cores_milli"),
        ({"memory_bytes": 1 << 60}, "memory_bytes"),
        ({"nvme_bytes": 1 << 62}, "nvme_bytes"),
        ({"link_mbit": 0xFFFF_FFFF}, "link_mbit"),
        ({"cores_milli": 0}, "no processor"),
    ],
)
def test_absurd_capacity_is_quarantined_with_words_and_used_for_nothing(
    claims: dict[str, int], word: str
) -> None:
    world = with_module(**claims)
    state, reason = state_of(world)
    assert state == "QUARANTINED"
    assert word in reason
    world.submit(workload("shop", component(replicas=8)))
    world.settle()
    assert len(world.running()) == 8
    assert BAD not in {found[0] for found in world.running().values()}


@pytest.mark.parametrize(
    ("hello", "words"),
    [
        ({"version_min": 7, "version_current": 9}, "protocol versions 7 to 9"),
        ({"layout_hash": b"otherlay"}, "layouts"),
        ({"bound_card_uuid": b"F" * 16}, "bound to card"),
    ],
)
def test_another_version_layout_or_card_is_quarantined_with_words(
    hello: dict[str, Any], words: str
) -> None:
    world = World(seed=32)
    world.modules[BAD].hello = hello
    world.start_daemon()
    world.wait_leased(*(name for name in world.modules if name != BAD))
    world.run(2)
    state, reason = state_of(world)
    assert state == "QUARANTINED"
    assert words in reason
    codes = world.codes(cnm=BAD)
    assert codes.count("cnm.quarantined") == 1, "said once, not each time it is asked"
    world.modules[BAD].hello = {}
    world.modules[BAD].slot.lose_power()  # its next boot is looked at anew
    world.wait_leased(BAD)


def test_a_pending_component_names_the_quarantine_as_its_reason() -> None:
    world = with_module(cores_milli=0xFFFF_FFFF)
    world.submit(workload("shop", component(replicas=5, resources={"cpu_milli": 6000})))
    world.settle()
    waiting = [row for row in world.ps().values() if row["phase"] == "PENDING"]
    assert len(waiting) == 2
    assert all("quarantined" in row["pending"][BAD] for row in waiting)


def test_what_this_card_did_not_order_is_left_alone_and_reported() -> None:
    world = World(seed=33)
    world.boot()
    world.submit(workload("shop", component(replicas=2)))
    world.settle()
    before = world.running()
    table = world.modules[BAD].init.table
    for name in ("stranger/x/0", "no slashes", "a/b", "a/b/c", "////", "shop/web/999"):
        table._instances[name] = Instance(
            name=name,
            generation=9_999,
            key="stranger",
            spec_digest=bytes(32),
            state=InstanceState.STARTING,
        )
    table._change()
    world.settle()
    assert world.running() == before
    said = [e.text for e in world.events if e.code == "instance.quarantined"]
    assert len(said) == 6
    assert all("left alone" in text for text in said)
    world.restart_daemon()
    world.settle()
    assert world.running() == before


def test_a_storm_on_one_window_and_garbage_on_one_line_touch_no_other_module() -> None:
    world = World(seed=34)
    world.boot()
    world.submit(workload("shop", component(replicas=8), component("db", volumes=[volume()])))
    world.settle()
    before = world.running()
    module = world.modules[BAD]
    stop = module.window.storm("a", 1_000_000, 3_000)
    rng = world.kernel.rng("garbage")
    for _ in range(50):
        for line in module.lines.values():
            line.inject("a", rng.randbytes(rng.randrange(1, 300)))
        world.run(0.02)
    stop()
    world.settle()
    assert world.running() == before
    assert "cnm.suspect" not in world.codes()


def test_a_line_that_hangs_up_is_opened_again_and_nothing_is_fenced() -> None:
    world = World(seed=35)
    world.boot()
    world.submit(workload("shop", component(replicas=4)))
    world.settle()
    before = world.running()
    for module in world.modules.values():
        for line in module.lines.values():
            line.hang_up()
    world.run(0.15)
    for module in world.modules.values():
        for line in module.lines.values():
            line.plug()
    world.settle()
    assert world.running() == before
    assert "cnm.fencing" not in world.codes()


def test_a_module_whose_clock_is_off_by_one_in_a_thousand_is_still_fenced_safely() -> None:
    for ppm in (-1000, 1000):
        world = World(seed=36)
        world.boot()
        world.submit(workload("shop", component(replicas=4)))
        world.settle()
        for module in world.modules.values():
            world.kernel.nodes[module.init_node].clock.set_rate(ppm)
            module.slot.stuck_on = True
        module = world.modules[world.where("shop/web/0")]
        module.cut()
        world.run(7)
        module.cut(False)
        module.slot.stuck_on = False
        world.settle()
        assert len(world.running()) == 4


def test_a_counter_that_leaps_between_two_reports_is_cut_and_hurts_nobody() -> None:
    world = World(seed=2)
    world.boot()
    module = world.modules["cnm1"]
    clock = world.kernel.node(module.init_node).clock
    clock.skip(10**7 * SECOND)
    world.wait_leased("cnm1")
    world.run(3)
    module.busy_milli = 8000  # it was busy for months, says the counter all of a sudden
    world.run(3)
    assert not module.halted
