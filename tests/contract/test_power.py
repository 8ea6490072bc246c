"""`hal.ports.SlotPower`: READ changes nothing, ON and OFF are idempotent, OFF comes with proof."""

import pytest

from hal.errors import HalError
from hal.ports import PowerAction, PowerRequest, SlotState
from tests.contract.results import Result, need, soon
from tests.contract.rigs import PowerRig, World

PORT = "power"


def ask(world: World, rig: PowerRig, action: PowerAction, slot: int | None = None) -> SlotState:
    result: Result[SlotState] = Result()
    request = PowerRequest(slot=rig.slot if slot is None else slot, action=action)
    rig.power.submit(request, soon(world), result)
    assert not result.came, "a submit completes through the mailbox, never inside the call"
    return result.wait(world)


def test_a_slot_starts_present_and_off(rig: PowerRig, world: World) -> None:
    state = ask(world, rig, PowerAction.READ)
    assert (state.slot, state.present, state.power_good) == (rig.slot, True, False)


def test_reading_never_changes_anything(rig: PowerRig, world: World) -> None:
    before = ask(world, rig, PowerAction.READ)
    for _ in range(5):
        assert ask(world, rig, PowerAction.READ).power_good == before.power_good
    on = ask(world, rig, PowerAction.ON)
    for _ in range(5):
        again = ask(world, rig, PowerAction.READ)
        assert (again.power_good, again.init_pid) == (True, on.init_pid)


def test_on_gives_power_good_and_the_cnm_runs(rig: PowerRig, world: World) -> None:
    assert ask(world, rig, PowerAction.ON).power_good
    if rig.running is not None:
        assert rig.running()


def test_on_twice_is_a_success_and_does_not_boot_twice(rig: PowerRig, world: World) -> None:
    first = ask(world, rig, PowerAction.ON)
    second = ask(world, rig, PowerAction.ON)
    assert second.power_good
    assert second.init_pid == first.init_pid


def test_off_completes_only_when_nothing_runs_any_more(rig: PowerRig, world: World) -> None:
    ask(world, rig, PowerAction.ON)
    alive_at_done: list[bool] = []
    result: Result[SlotState] = Result()

    def done(value: SlotState | HalError) -> None:
        if rig.running is not None:
            alive_at_done.append(rig.running())
        result(value)

    rig.power.submit(PowerRequest(slot=rig.slot, action=PowerAction.OFF), soon(world), done)
    state = result.wait(world)
    assert not state.power_good
    assert state.init_pid is None
    assert True not in alive_at_done
    assert state.text, "OFF says what its proof is"


def test_off_twice_is_a_success(rig: PowerRig, world: World) -> None:
    ask(world, rig, PowerAction.ON)
    assert not ask(world, rig, PowerAction.OFF).power_good
    assert not ask(world, rig, PowerAction.OFF).power_good


def test_off_and_on_again_is_a_new_boot(rig: PowerRig, world: World) -> None:
    first = ask(world, rig, PowerAction.ON)
    ask(world, rig, PowerAction.OFF)
    second = ask(world, rig, PowerAction.ON)
    assert second.power_good
    if first.init_pid is not None:
        assert second.init_pid != first.init_pid


def test_requests_on_one_slot_take_effect_in_order(rig: PowerRig, world: World) -> None:
    order: list[bool] = []

    def done(value: SlotState | HalError) -> None:
        assert isinstance(value, SlotState)
        order.append(value.power_good)

    for action in (PowerAction.ON, PowerAction.OFF, PowerAction.ON):
        rig.power.submit(PowerRequest(slot=rig.slot, action=action), soon(world), done)
    world.run_until(lambda: len(order) == 3, limit_s=30)
    assert order == [True, False, True]


def test_an_unknown_slot_is_an_error_that_names_it(rig: PowerRig, world: World) -> None:
    slot = need(rig.empty_slot, "name a slot that is not there")
    for action in PowerAction:
        result: Result[SlotState] = Result()
        rig.power.submit(PowerRequest(slot=slot, action=action), soon(world), result)
        assert str(slot) in str(result.error(world))


def test_a_module_that_dies_by_itself_is_reported(rig: PowerRig, world: World) -> None:
    die = need(rig.die, "let the module die")
    changes: list[SlotState] = []
    rig.power.on_change(changes.append)
    ask(world, rig, PowerAction.ON)
    die()
    world.run_until(lambda: any(not state.power_good for state in changes))
    assert changes[-1].slot == rig.slot
    assert not ask(world, rig, PowerAction.READ).power_good


def test_what_was_asked_for_is_not_reported_as_a_change(rig: PowerRig, world: World) -> None:
    changes: list[SlotState] = []
    rig.power.on_change(changes.append)
    ask(world, rig, PowerAction.ON)
    world.run_for(0.05)
    ask(world, rig, PowerAction.OFF)
    world.run_for(0.05)
    assert [state for state in changes if not state.power_good] == []


def test_a_deadline_that_has_passed_completes_with_an_error_or_the_truth(
    rig: PowerRig, world: World
) -> None:
    result: Result[SlotState] = Result()
    past_ns = world.reactor.now_ns() - 1
    rig.power.submit(PowerRequest(slot=rig.slot, action=PowerAction.ON), past_ns, result)
    world.run_until(lambda: result.came)
    value = result.values[0]
    if isinstance(value, SlotState):
        assert value.power_good
    with pytest.raises(AssertionError):
        result(value)  # the collector itself catches a second completion
