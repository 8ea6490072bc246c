"""A card on a host with CXL memory: `apf status` shows the devices, events tell of them."""

from firmware.board import load_board
from firmware.card import Card, CardPorts
from firmware.card_hardware import HardwarePorts
from hal.errors import Unavailable
from hal.mock.blobs import MockBlobs
from hal.mock.cxl import MockCxlBus, MockCxlMemdev
from hal.mock.cxl_device import MockCxlDevice
from hal.mock.disk import Disk
from hal.mock.entropy import MockEntropy
from hal.mock.journal import MockJournal
from hal.mock.power import MockPower
from hal.ports import ByteStream, Done, Doorbell, Window
from tests.contract.worlds import VirtualWorld


class NoModule:
    """A slot whose links can't be opened."""

    def open_mc(self) -> ByteStream:
        raise Unavailable("no line")

    def open_agent(self) -> ByteStream:
        raise Unavailable("no line")

    def open_window(self, deadline_ns: int, done: Done[tuple[Window, Doorbell]]) -> None:
        raise Unavailable("no window")


def card(world: VirtualWorld, *, with_cxl: bool) -> Card:
    node = world.kernel.node("suite")
    disk = Disk(world.kernel, "disk")
    board = load_board("mock_4", run_dir="/run")
    host = world.kernel.cxl
    made = Card(
        board,
        world.reactor,
        CardPorts(
            entropy=MockEntropy(node),
            power=MockPower(node),
            journal=MockJournal(node, disk),
            blobs=MockBlobs(node, disk),
            host=None,
            slots={slot.id: NoModule() for slot in board.slots},
            runc_roots={},
            wall_ns=lambda: 0,
            hardware=HardwarePorts(
                cxl=MockCxlBus(host) if with_cxl else None,
                memdev=lambda name: MockCxlMemdev(node, host, host.devices[name]),
            ),
        ),
        safe_mode=False,
    )
    made.start(lambda error: None)
    world.run_until(lambda: made.ready)
    return made


def texts(made: Card) -> list[str]:
    return [event.text for event in made.events.since(0) if event.code.value == "cxl.device"]


def test_memory_devices_of_the_host_are_shown_and_told_of() -> None:
    world = VirtualWorld()
    device = world.kernel.cxl.add_device(MockCxlDevice(world.kernel, "mem0"))
    made = card(world, with_cxl=True)
    world.run_for(1)
    [shown] = made.status()["cxl"]
    assert (shown["name"], shown["temp_mdegc"], shown["findings"]) == ("mem0", 41_000, [])
    device.health.temp_degc = 90
    world.run_for(11)
    assert made.status()["cxl"][0]["findings"][0]["severity"] == "critical"
    told = texts(made)
    assert told[0].startswith("mem0: mem0 at 0000:35:00.0")
    assert "90 degC" in told[-1]


def test_a_host_that_has_no_cxl_has_an_empty_list() -> None:
    made = card(VirtualWorld(), with_cxl=False)
    assert made.status()["cxl"] == []
    assert texts(made) == []
