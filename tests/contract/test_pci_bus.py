"""`PciBus`: the model's tree here, the host's own where it has an edu."""

from typing import Any

import pytest

from hal.errors import Absent, Unavailable
from hal.pci_ports import PciAddress, PciDevice, PciEvent, PciEventKind
from tests.contract import edu
from tests.contract.results import Result, need, soon
from tests.contract.rigs import PciBusRig, World

PORT = "pci_bus"
NOBODY = PciAddress(0, 0xFE, 31, 7)


def found(rig: PciBusRig) -> PciDevice:
    [device] = [device for device in rig.bus.scan() if device.address == rig.address]
    return device


def test_a_scan_is_in_order_and_finds_the_device_with_its_numbers(
    rig: PciBusRig, world: World
) -> None:
    devices = rig.bus.scan()
    addresses = [device.address for device in devices]
    assert addresses == sorted(addresses)
    device = found(rig)
    assert device.device_id << 16 | device.vendor_id == edu.IDS
    assert device.class_code == 0x00FF00
    assert device.bar_bytes == (1 << 20, 0, 0, 0, 0, 0)
    if device.parent is not None:
        [parent] = [d for d in devices if d.address == device.parent]
        assert parent.class_code >> 8 == 0x0604  # a PCI bridge


def test_a_scan_off_the_loop_finds_the_same(rig: PciBusRig, world: World) -> None:
    result: Result[Any] = Result()
    rig.bus.submit_scan(soon(world), result)
    assert not result.came
    assert list(result.wait(world)) == list(rig.bus.scan())


def test_config_space_begins_with_the_ids(rig: PciBusRig, world: World) -> None:
    config = rig.bus.config(rig.address)
    assert int.from_bytes(config[:4], "little") == edu.IDS
    with pytest.raises(Absent):
        rig.bus.config(NOBODY)


def test_a_function_is_given_to_a_driver_and_back(rig: PciBusRig, world: World) -> None:
    before = found(rig).driver
    assert before != rig.driver
    rig.bus.bind(rig.address, rig.driver)
    assert found(rig).driver == rig.driver
    rig.bus.bind(rig.address, rig.driver)  # bound already
    rig.bus.restore()
    assert found(rig).driver == before
    rig.bus.restore()
    assert found(rig).driver == before


def test_binding_off_the_loop_completes_once(rig: PciBusRig, world: World) -> None:
    result: Result[None] = Result()
    rig.bus.submit_bind(rig.address, rig.driver, soon(world), result)
    result.wait(world)
    assert found(rig).driver == rig.driver
    back: Result[None] = Result()
    rig.bus.submit_restore(soon(world), back)
    back.wait(world)
    assert found(rig).driver != rig.driver


def test_what_can_not_be_bound_is_told_and_nothing_changes(rig: PciBusRig, world: World) -> None:
    before = found(rig).driver
    with pytest.raises(Unavailable, match="modprobe"):
        rig.bus.bind(rig.address, "no-such-driver")
    with pytest.raises(Absent):
        rig.bus.bind(NOBODY, rig.driver)
    assert found(rig).driver == before


def test_an_unknown_slot_has_no_power_switch(rig: PciBusRig, world: World) -> None:
    with pytest.raises(Absent, match="known"):
        rig.bus.power_slot("no-such-slot", on=True)


def test_a_change_of_driver_is_told(rig: PciBusRig, world: World) -> None:
    events: list[PciEvent] = []
    rig.bus.on_event(events.append)
    rig.bus.bind(rig.address, rig.driver)
    world.run_until(lambda: any(e.kind is PciEventKind.BOUND for e in events))
    assert [e.address for e in events if e.kind is PciEventKind.BOUND][-1] == rig.address


def test_coming_and_going_is_told(rig: PciBusRig, world: World) -> None:
    add, remove = need(rig.add, "hot-plug"), need(rig.remove, "hot-unplug")
    events: list[PciEvent] = []
    rig.bus.on_event(events.append)
    address = add()
    world.run_until(lambda: bool(events))
    assert (events[0].kind, events[0].address) == (PciEventKind.ADDED, address)
    assert address in [device.address for device in rig.bus.scan()]
    events.clear()
    remove()
    world.run_until(lambda: bool(events))
    assert (events[0].kind, events[0].address) == (PciEventKind.REMOVED, address)
    assert address not in [device.address for device in rig.bus.scan()]
