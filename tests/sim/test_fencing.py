"""Dead, silent and cut-off modules: who fences whom, when, and what runs afterwards.

The times are virtual, so they are asserted: DESIGN section 6, "dead CNM -> components running
again", with the 30 ms that a start takes on the mock.
"""

import pytest

from firmware.lease import LeaseState
from hal.mock.instance import START_NS, Behaviour
from hal.ports import FenceKind
from tools.sim.documents import component, workload
from tools.sim.module import fence_by
from tools.sim.world import SECOND, World

WEB = "shop/web/0"
START_S = START_NS / SECOND
POWER_FENCE_S = 1.5 + START_S
LEASE_FENCE_S = 6.5 + START_S


def running_world(seed: int = 3, fence: FenceKind = FenceKind.POWER, replicas: int = 1) -> World:
    world = World(seed)
    fence_by(list(world.modules.values()), fence)
    world.boot()
    world.submit(workload("shop", component(replicas=replicas)))
    world.settle()
    return world


Place = tuple[str, int, int]  # CNM, generation, pid


def moved_within(world: World, before: Place, limit_s: float) -> float:
    """Until it runs on another module than before; the seconds that it took."""

    def elsewhere() -> bool:
        found = world.running().get(WEB)
        return found is not None and found[0] != before[0]

    took_s = world.run_until(elsewhere, limit_s, f"{WEB} elsewhere")
    assert world.running()[WEB][1] > before[1]
    return took_s


def test_a_killed_init_is_fenced_and_its_components_run_elsewhere() -> None:
    world = running_world(replicas=8)
    before = world.running()[WEB]
    cnm = before[0]
    world.kernel.kill(world.modules[cnm].init_node)
    assert moved_within(world, before, POWER_FENCE_S) < 0.7
    world.settle()
    assert len(world.running()) == 8
    codes = world.codes(cnm=cnm)
    assert codes.index("cnm.fencing") < codes.index("cnm.fenced")
    assert world.call("status")["epoch"] == 1, "its power was cut: nothing can come back"
    assert world.lease(cnm) is LeaseState.LEASED  # switched on again


def test_sixteen_components_of_a_fenced_module_are_commanded_elsewhere_at_once() -> None:
    world = World(seed=16)
    world.boot()
    cnm, *others = world.modules
    for other in others:
        world.call("cnm.drain", id=other)
    world.submit(workload("shop", component(replicas=16)))
    world.settle()
    for other in others:
        world.call("cnm.undrain", id=other)
    world.modules[cnm].slot.lose_power()
    world.run_until(lambda: "cnm.fenced" in world.codes(cnm=cnm))
    world.run(0.25)
    staged = [e for e in world.events if e.code == "instance.staging" and e.cnm != cnm]
    assert len({event.instance for event in staged}) == 16
    world.settle()


def test_silence_on_both_links_is_fenced_by_power() -> None:
    world = running_world()
    before = world.running()[WEB]
    world.modules[before[0]].cut()
    took_s = moved_within(world, before, POWER_FENCE_S)
    assert took_s > 1.0  # suspect_ms


def test_silence_on_the_mc_link_alone_is_no_reason_to_cut_the_power_before_the_lease_ends() -> None:
    world = running_world()
    before = world.running()[WEB]
    world.modules[before[0]].cut(links=("mc",))
    world.run(4.5)
    assert world.running()[WEB] == before
    assert world.codes().count("cnm.suspect") == 1
    assert "cnm.returned" not in world.codes(), "the agent's answers are no heartbeats"
    moved_within(world, before, LEASE_FENCE_S - 4.5)


def test_a_fence_asks_for_the_power_once_before_the_hold_time_and_once_after_it() -> None:
    world = running_world()
    cnm = world.running()[WEB][0]
    world.modules[cnm].cut()
    world.run_until(lambda: "cnm.fenced" in world.codes(cnm=cnm), 10)
    asked = [e for e in world.kernel.trace.entries(what="power_off") if e.detail == cnm]
    assert len(asked) == 2


def test_without_switchable_power_the_lease_is_the_fence() -> None:
    world = running_world(fence=FenceKind.LEASE)
    cnm = world.where(WEB)
    world.modules[cnm].cut()
    died_s = world.run_until(lambda: world.where(WEB) is None, 6)
    assert 4.9 < died_s <= 5.5  # L, and less than S
    took_s = died_s + world.run_until(lambda: world.where(WEB) is not None, 3)
    assert 5.5 < took_s <= LEASE_FENCE_S
    assert world.where(WEB) != cnm
    assert world.call("status")["epoch"] == 2, "what was commanded before it is over"
    world.modules[cnm].cut(False)
    world.settle()
    assert world.lease(cnm) is LeaseState.LEASED
    assert not world.modules[cnm].slot.instances


def test_a_supply_that_is_stuck_is_outwaited() -> None:
    world = running_world()
    before = world.running()[WEB]
    module = world.modules[before[0]]
    module.slot.stuck_on = True
    module.cut()
    took_s = moved_within(world, before, LEASE_FENCE_S)
    assert took_s > 5.5
    assert world.call("status")["epoch"] == 2, "the wait was the fence"


@pytest.mark.parametrize("off_s", [4, 7, 20])
def test_a_supply_that_is_slower_than_any_deadline_is_looked_at_until_it_is_known(
    off_s: int,
) -> None:
    world = running_world()
    before = world.running()[WEB]
    module = world.modules[before[0]]
    module.slot.off_ns = off_s * SECOND
    module.cut()
    moved_within(world, before, LEASE_FENCE_S)
    world.run_until(lambda: not module.slot.power_good, 2 * off_s)
    module.cut(False)
    world.run_until(lambda: world.lease(before[0]) is LeaseState.LEASED, 3 * off_s)
    world.settle()


def test_a_pulled_module_is_fenced_at_once_and_comes_back_when_inserted() -> None:
    world = running_world()
    before = world.running()[WEB]
    cnm = before[0]
    world.modules[cnm].slot.pull()
    assert moved_within(world, before, POWER_FENCE_S) < 0.7
    world.settle()
    assert {c["id"]: c["state"] for c in world.call("cnm.list")}[cnm] in ("OFF", "FENCED")
    world.modules[cnm].slot.insert()
    world.wait_leased(cnm)


@pytest.mark.parametrize("cut_s", [0.2, 0.5, 0.9])
def test_a_short_silence_changes_nothing_that_runs(cut_s: float) -> None:
    world = running_world()
    before = world.running()
    module = world.modules[world.where(WEB)]
    module.cut()
    world.run(cut_s)
    module.cut(False)
    world.settle()
    assert world.running() == before
    assert "cnm.fencing" not in world.codes()
    assert world.ps()[WEB]["restarts"] == 0


@pytest.mark.parametrize("cut_ms", [*range(4850, 5800, 100), 6500])
def test_a_link_that_heals_around_the_fence_never_gives_two_copies_or_none(cut_ms: int) -> None:
    """Before the fence it returns with what it has; after it, it begins anew (rule 8)."""
    world = running_world(seed=cut_ms, fence=FenceKind.LEASE, replicas=3)
    module = world.modules[world.where(WEB)]
    module.cut()
    world.run(cut_ms / 1000)
    module.cut(False)
    world.settle()
    assert len(world.running()) == 3


@pytest.mark.parametrize("policy", ["no", "on-failure", "always"])
def test_what_the_end_of_a_lease_killed_is_started_again_whatever_its_policy(policy: str) -> None:
    """Rule 12, where the module is back before the card has fenced it."""
    world = World(seed=4)
    fence_by(list(world.modules.values()), FenceKind.LEASE)
    world.boot()
    world.submit(workload("shop", component(restart={"policy": policy})))
    world.settle()
    module = world.modules[world.where(WEB)]
    module.cut(links=("mc",))
    world.run_until(lambda: world.where(WEB) is None, 6)
    module.cut(False)
    world.settle()
    assert world.ps()[WEB]["phase"] == "RUNNING"
    assert len(world.judge.starts_of(WEB)) == 2
    assert "cnm.fencing" not in world.codes()


def test_what_was_only_prepared_when_the_lease_ended_is_started_too() -> None:
    world = World(seed=5)
    fence_by(list(world.modules.values()), FenceKind.LEASE)
    world.boot()
    slow = component("slow", restart={"policy": "no"})
    web = component(
        restart={"policy": "no"}, depends_on=[{"component": "slow", "condition": "completed"}]
    )
    world.kernel.behaviours.add("slow", Behaviour(runs_ns=20 * SECOND))
    world.submit(workload("shop", web, slow))
    world.run(2)
    for module in world.modules.values():
        module.cut(links=("mc",))
    world.run(5.3)
    for module in world.modules.values():
        module.cut(False)
    world.settle()
    assert world.ps()[WEB]["phase"] == "RUNNING"


def test_a_killed_agent_is_started_again_and_nothing_that_runs_is_touched() -> None:
    world = running_world(replicas=4)
    before = world.running()
    module = world.modules[world.where(WEB)]
    world.kernel.kill(module.agent_node)
    world.run_until(lambda: module.agents == 2, 5)
    world.submit(workload("more", component(replicas=4)))
    world.settle()
    assert {k: v for k, v in world.running().items() if k in before} == before
    assert len(world.running()) == 8
    assert "cnm.suspect" not in world.codes()


def test_an_agent_that_hangs_is_replaced_and_the_lease_lives_on() -> None:
    world = running_world()
    before = world.running()
    module = world.modules[world.where(WEB)]
    world.kernel.pause(module.agent_node)
    world.run_until(lambda: module.agents == 2, 20)
    world.settle()
    assert world.running() == before
    assert "cnm.suspect" not in world.codes()
    assert "cnm.agent_lost" in world.codes()
    assert world.codes()[-1] != "cnm.agent_lost"


def test_a_paused_init_is_powered_off_and_gives_no_second_copy() -> None:
    world = running_world(replicas=2)
    before = world.running()[WEB]
    module = world.modules[before[0]]
    world.kernel.pause(module.init_node)
    world.kernel.pause(module.agent_node)
    moved_within(world, before, POWER_FENCE_S)
    world.settle()
    assert len(world.running()) == 2


def test_a_paused_daemon_for_less_than_the_lease_changes_nothing() -> None:
    world = running_world()
    before = world.running()
    world.kernel.pause("daemon")
    world.run(4.0)
    world.kernel.resume("daemon")
    world.settle()
    assert world.running() == before


@pytest.mark.parametrize("pause_s", [4.9, 5.05, 5.2, 5.5, 5.7, 8.0, 30.0])
def test_a_daemon_that_was_paused_for_long_never_grants_the_past(pause_s: float) -> None:
    world = running_world(seed=int(pause_s * 10), fence=FenceKind.LEASE, replicas=3)
    world.kernel.pause("daemon")
    world.run(pause_s)
    world.kernel.resume("daemon")
    world.settle()
    assert len(world.running()) == 3


def test_a_module_that_resets_by_itself_is_another_boot_and_its_work_is_started_again() -> None:
    world = running_world(replicas=3)
    module = world.modules[world.where(WEB)]
    before = world.running()
    module.slot.reboot()
    assert world.run_until(lambda: world.where(WEB) is not None, 5) < 1.0
    world.settle()
    assert all(world.running()[name][1] > before[name][1] for name in before)


def test_switched_off_by_a_person_a_module_is_emptied_by_the_fence_and_stays_off() -> None:
    world = running_world()
    cnm = world.where(WEB)
    slot = world.modules[cnm].slot
    world.call("cnm.power", slot=slot.slot, action="off")
    world.settle()
    assert world.where(WEB) not in (None, cnm)
    world.restart_daemon()
    world.settle()
    world.run(10)
    assert not slot.power_good
    world.call("cnm.power", slot=slot.slot, action="on")
    world.wait_leased(cnm)


def test_switched_off_while_it_is_being_switched_on_a_module_ends_off() -> None:
    world = running_world()
    cnm = world.running()[WEB][0]
    slot = world.modules[cnm].slot
    slot.on_ns = 2 * SECOND
    slot.lose_power()
    world.run(0.8)
    assert not slot.power_good, "it is on its way"
    world.call("cnm.power", slot=slot.slot, action="off")
    world.run(20)
    assert not slot.power_good
    assert world.lease(cnm) is LeaseState.FENCED
    world.call("cnm.power", slot=slot.slot, action="on")
    world.wait_leased(cnm)


def test_switched_off_while_its_supply_is_stuck_a_module_is_not_used_and_goes_off_later() -> None:
    world = running_world()
    cnm = world.running()[WEB][0]
    slot = world.modules[cnm].slot
    slot.stuck_on = True
    world.call("cnm.power", slot=slot.slot, action="off")
    world.run(30)
    assert slot.power_good
    assert world.lease(cnm) is LeaseState.FENCED, "nothing new goes there"
    assert world.where(WEB) not in (None, cnm)
    slot.stuck_on = False
    world.run(5)
    assert not slot.power_good
    world.call("cnm.power", slot=slot.slot, action="on")
    world.wait_leased(cnm)


def test_a_wish_to_be_off_is_carried_out_by_the_next_daemon() -> None:
    world = running_world()
    cnm = world.running()[WEB][0]
    slot = world.modules[cnm].slot
    slot.stuck_on = True
    world.call("cnm.power", slot=slot.slot, action="off")
    world.restart_daemon()
    world.run(1)
    slot.stuck_on = False
    world.run_until(lambda: not slot.power_good, 30)
    world.run_until(lambda: world.where(WEB) not in (None, cnm), 30)
    world.run(10)
    assert not slot.power_good


@pytest.mark.parametrize("held_up_s", [0, 8])
def test_a_supply_that_was_stuck_once_is_not_outwaited_the_next_time(held_up_s: int) -> None:
    """The wait relies on the module's guard, which hangs here; its power can be cut again."""
    world = running_world()
    cnm = world.where(WEB)
    assert cnm is not None
    module = world.modules[cnm]
    module.slot.stuck_on = True
    module.cut()
    world.run_until(lambda: world.where(WEB) not in (None, cnm), LEASE_FENCE_S)
    module.slot.stuck_on = False
    module.cut(False)
    world.run_until(lambda: world.lease(cnm) is LeaseState.LEASED, 60)
    world.settle()
    world.migrate(WEB, cnm)
    world.settle()
    world.run(60)
    assert world.where(WEB) == cnm
    world.kernel.pause(module.init_node)
    world.kernel.pause(module.agent_node)
    if held_up_s:
        world.run(0.1)
        world.kernel.pause("daemon")
        world.run(held_up_s)
        world.kernel.resume("daemon")
    world.run_until(lambda: world.where(WEB) not in (None, cnm), 30)


def test_a_module_that_dies_again_and_again_is_switched_on_more_and_more_slowly() -> None:
    world = running_world()
    slot = world.modules["cnm3"].slot
    boots = slot.boots
    for _ in range(60):
        world.run(1)
        slot.lose_power()
    assert 3 <= slot.boots - boots <= 8


@pytest.mark.parametrize("after_ms", [1, 2, 20, 90, 110, 130])
def test_a_fence_that_was_decided_goes_on_after_the_daemon_was_killed_in_it(after_ms: int) -> None:
    world = running_world(seed=after_ms, replicas=3)
    world.modules[world.where(WEB)].slot.lose_power()
    world.run(after_ms / 1000)
    world.restart_daemon()
    world.settle()
    assert len(world.running()) == 3


def test_fenced_and_admitted_again_in_the_same_boot_is_granted_on_disk_anew() -> None:
    """Else a daemon that starts next takes the boot for fenced, and starts its work elsewhere."""
    world = running_world(fence=FenceKind.LEASE, replicas=2)
    module = world.modules[world.where(WEB)]
    others = [other for other in world.modules.values() if other is not module]
    module.cut()
    world.settle()
    module.cut(False)
    world.settle()
    for other in others:
        world.call("cnm.drain", id=other.id)
    world.settle()
    assert {found[0] for found in world.running().values()} == {module.id}
    before = world.running()
    for other in others:
        world.call("cnm.undrain", id=other.id)
    world.restart_daemon()
    world.settle()
    assert world.running() == before


def test_a_heartbeat_that_the_link_repeats_is_no_sign_of_life() -> None:
    world = running_world(fence=FenceKind.LEASE)
    cnm = world.card.inventory.get("cnm0")
    assert cnm is not None
    world.run(1)
    last = cnm.heartbeat
    assert last is not None
    world.modules["cnm0"].cut()
    for _ in range(20):
        world.card.fencing.on_heartbeat(cnm, last)
        world.run(0.05)
    assert world.lease("cnm0") is LeaseState.SUSPECT
