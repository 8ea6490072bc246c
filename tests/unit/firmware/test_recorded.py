"""A card's ports with a recorder around them: what goes over them is in the file, by slot."""

import json
from pathlib import Path
from types import MappingProxyType
from typing import Any

from firmware.card import CardPorts
from firmware.card_hardware import HardwarePorts
from firmware.recorded import RecordedCnmPorts, open_recorder, recorded
from hal.errors import HalError, Unavailable
from hal.mock.cxl import MockCxlMemdev
from hal.mock.cxl_device import MockCxlDevice
from hal.mock.entropy import MockEntropy
from hal.mock.line import MockLine
from hal.mock.power import MockPower
from hal.mock.slot import Slot
from hal.mock.window import MockWindowPair
from hal.ports import ByteStream, Done, Doorbell, PowerAction, PowerRequest, SlotState, Window
from hal.registry import Registry, World
from tests.contract.results import Result, soon
from tests.contract.worlds import VirtualWorld


class OneSlot:
    """A slot of the virtual world; its second window can't be had."""

    def __init__(self, world: VirtualWorld) -> None:
        self.node = world.kernel.node("suite")
        self.line = MockLine(world.kernel, "mc", baud=115_200)
        self.pair = MockWindowPair(world.kernel, "window", ab_bytes=4096)
        self.world = world
        self.opened = 0

    def open_mc(self) -> ByteStream:
        return self.line.open("a", self.node)

    def open_agent(self) -> ByteStream:
        raise Unavailable("no agent")

    def open_window(self, deadline_ns: int, done: Done[tuple[Window, Doorbell]]) -> None:
        self.opened += 1
        found: tuple[Window, Doorbell] | HalError = Unavailable("no second window")
        if self.opened == 1:
            found = self.pair.open_window("a"), self.pair.open_doorbell("a", self.node)
        self.world.reactor.post(lambda: done(found))


def card_ports(world: VirtualWorld, slot: OneSlot) -> CardPorts:
    world.kernel.register_program("cnm-init", lambda launch: None)
    world.kernel.add_slot(Slot(world.kernel, slot=0, cnm_id="cnm0"))
    device = world.kernel.cxl.add_device(MockCxlDevice(world.kernel, "mem0"))
    return CardPorts(
        entropy=MockEntropy(slot.node),
        power=MockPower(slot.node),
        journal=None,  # type: ignore[arg-type]  # not one of those that are recorded
        blobs=None,  # type: ignore[arg-type]
        host=None,
        slots={"cnm0": slot},
        runc_roots=MappingProxyType({}),
        wall_ns=lambda: 0,
        hardware=HardwarePorts(
            memdev=lambda name: MockCxlMemdev(slot.node, world.kernel.cxl, device)
        ),
    )


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_links_windows_and_power_of_a_card_are_recorded_by_the_names_of_their_slots(
    tmp_path: Path,
) -> None:
    world = VirtualWorld()
    slot = OneSlot(world)
    path = tmp_path / "card.jsonl"
    recorder = open_recorder(path, world.reactor.now_ns)
    ports = recorded(card_ports(world, slot), recorder)
    mc = ports.slots["cnm0"].open_mc()
    mc.write(b"\x7e\x01")
    opened: Result[tuple[Window, Doorbell]] = Result()
    ports.slots["cnm0"].open_window(soon(world), opened)
    window, bell = opened.wait(world)
    window.publish(0, 5)
    bell.ring()
    state: Result[SlotState] = Result()
    ports.power.submit(PowerRequest(slot=0, action=PowerAction.ON), soon(world), state)
    assert state.wait(world).power_good
    assert ports.hardware.memdev is not None
    assert ports.hardware.memdev("mem0").opcodes()
    assert ports.hardware.smbus is None
    recorder.close()
    found = lines(path)
    specs = {line["spec"]: line["open"] for line in found if "open" in line}
    assert specs == {
        "card:power": "power",
        "card:cnm0/mc": "byte_stream",
        "card:cnm0/window": "window",
        "card:mem0": "cxl",
    }
    assert [line["call"] for line in found if "call" in line] == [
        "write",
        "publish",
        "ring",
        "submit",
        "opcodes",
    ]
    # and what was recorded can be played where there is no card
    far = VirtualWorld()
    made = Registry(World(reactor=far.reactor, node=far.kernel.node("suite")))
    power = made.open_power(f"replay:{path}")
    again: Result[SlotState] = Result()
    power.submit(PowerRequest(slot=0, action=PowerAction.ON), soon(far), again)
    assert again.wait(far) == state.values[0]


def test_a_port_that_cannot_be_had_is_an_error_as_before(tmp_path: Path) -> None:
    world = VirtualWorld()
    slot = OneSlot(world)
    slot.opened = 1
    recorder = open_recorder(tmp_path / "card.jsonl", world.reactor.now_ns)
    ports = RecordedCnmPorts(slot, "cnm0", recorder)
    opened: Result[tuple[Window, Doorbell]] = Result()
    ports.open_window(soon(world), opened)
    assert "second window" in str(opened.error(world))


def test_a_daemon_that_is_started_again_keeps_the_recording_before(tmp_path: Path) -> None:
    path = tmp_path / "card.jsonl"
    for _ in range(3):
        open_recorder(path, lambda: 0).close()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        "card.jsonl",
        "card.jsonl.before",
    ]
