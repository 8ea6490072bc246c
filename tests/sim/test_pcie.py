"""The PCIe of a simulated card: what the daemon says of the slots' links as they live and die."""

from typing import Any

from firmware.lease import LeaseState
from firmware.pcie import SlotLink
from tools.sim.documents import component, workload
from tools.sim.faults import FAULTS, Injection, Site
from tools.sim.run import sim_board
from tools.sim.world import World


def card(seed: int = 1) -> World:
    world = World(seed, board=sim_board("rev_a"), slots=3)
    world.boot(limit_s=60)
    world.run(1)
    return world


def link(world: World, cnm: str) -> SlotLink:
    links = world.card.hardware._links
    assert links is not None
    return links.links[cnm]


def said(world: World, cnm: str, since: int = 0) -> list[str]:
    return [e.text for e in world.events[since:] if str(e.code) == "slot.link" and e.cnm == cnm]


def inject(world: World, name: str) -> Injection:
    found = FAULTS[name].inject(Site(world, world.kernel.rng("faults")))  # type: ignore[misc]
    assert found is not None
    world.judge.injected(found)  # type: ignore[arg-type]
    return found


def test_a_function_goes_with_its_modules_power_and_comes_back_with_it() -> None:
    world = card()
    fabric, slot = world.pcie.fabrics["cnm1"], world.modules["cnm1"].slot  # type: ignore[union-attr]
    assert fabric.up
    slot.pull()
    assert not fabric.up
    world.run(1)
    assert str(link(world, "cnm1").verdict) == "absent"
    assert any("its PCI function is gone" in e.text for e in world.events)
    slot.insert()
    world.wait_leased("cnm1", limit_s=60)
    world.run(1)
    assert fabric.up
    assert str(link(world, "cnm1").verdict) == "good"
    assert [str(link(world, name).verdict) for name in ("cnm0", "cnm2")] == ["good", "good"]


def test_a_link_that_is_contained_makes_a_suspect_and_moves_nothing() -> None:
    world = card()
    world.submit(workload("shop", component(replicas=3)))
    world.settle()
    before = world.running()
    injection = inject(world, "P6")
    assert injection.cnm is not None
    world.run(0.5)
    assert link(world, injection.cnm).contained
    assert "cnm.suspect" in world.codes(cnm=injection.cnm)
    world.run(10)
    assert world.lease(injection.cnm) is LeaseState.LEASED, "its heartbeats are another link's"
    injection.heal()
    world.judge.faults_over(world.kernel.now_ns)
    world.settle(limit_s=60)
    assert injection.seen()
    assert not link(world, injection.cnm).contained
    assert str(link(world, injection.cnm).verdict) == "good"
    assert world.running() == before
    world.judge.finish()


def test_a_flap_of_the_fabric_is_a_link_that_was_down_and_is_good_again() -> None:
    world = card()
    world.submit(workload("shop", component(replicas=3)))
    world.settle()
    since = len(world.events)
    injection = inject(world, "P1")
    assert injection.cnm is not None
    world.run(0.6)
    injection.heal()
    world.judge.faults_over(world.kernel.now_ns)
    world.settle(limit_s=60)
    world.run(1)
    assert injection.seen()
    texts = said(world, injection.cnm, since)
    assert "is down" in texts[0]
    assert "trained to 32000 MT/s x4" in texts[-1]


def test_a_storm_in_one_slot_hides_nothing_that_another_has_to_tell() -> None:
    world = card()
    rng: Any = world.kernel.rng("faults")
    rng.choice = lambda items: items[0]  # cnm0, an event every 5 ms
    storm = inject(world, "P4")
    assert storm.cnm == "cnm0"
    world.run(15)
    rng.choice = lambda items: items[-1]
    fatal = inject(world, "P6")
    assert fatal.cnm == "cnm2"
    world.run(0.5)
    assert fatal.seen()
    assert storm.seen()
    assert len(said(world, "cnm0")) < 10
    assert world.card.events.suppressed == 0
