"""Bad hardware, on the model of a function (faults P1 to P7)."""

from collections.abc import Callable

import pytest

from firmware.loop import Loop
from hal.errors import Absent, DeviceGone, InterruptStorm, Refused, Unavailable
from hal.interrupt_rate import RateLimit
from hal.mock.kernel import VirtualKernel
from hal.mock.node import Node
from hal.mock.pci import MockPciFunction
from hal.mock.pci_bus import MockPciBus, MockPort
from hal.mock.pci_edu import MockEdu
from hal.pci_ports import InterruptKind, PciEventKind
from hal.ports import Event
from hal.registry import Registry, World
from tests.contract import edu
from tests.contract.edu import Edu

MS = 1_000_000
PAGE = 4096


class Rig:
    def __init__(self, limit: RateLimit = RateLimit()) -> None:  # noqa: B008
        self.kernel = VirtualKernel(3)
        self.loop = Loop(self.kernel.node("card").clock)
        self.node: Node = self.kernel.attach("card", self.loop)
        self.model = MockEdu(self.kernel, "edu")
        self.kernel.pci.add(self.model)
        self.limit = limit

    def open(self) -> MockPciFunction:
        return MockPciFunction(self.node, self.model, self.limit)

    def run(self, ms: int) -> None:
        self.kernel.run_for(ms * MS)


def test_a_link_that_was_down_for_a_moment_makes_the_function_dead_until_it_is_opened_again() -> (
    None
):
    rig = Rig()
    function = rig.open()
    mmio = function.map(0)
    mmio.write32(edu.LIVENESS, 7)
    rig.model.link(up=False)
    with pytest.raises(DeviceGone):
        mmio.read32(edu.LIVENESS)
    rig.model.link(up=True)
    with pytest.raises(DeviceGone):  # what it had been told meanwhile is lost: no going on
        mmio.read32(edu.LIVENESS)
    function.close()
    again = rig.open()
    assert again.map(0).read32(edu.LIVENESS) == 0xFFFF_FFF8


def test_a_device_that_vanishes_inside_a_transfer_leaves_memory_as_it_was() -> None:
    rig = Rig()
    function = rig.open()
    device = Edu(function.map(0))
    buffer = function.dma(PAGE, edu.DMA_BITS)
    buffer.view[:4] = b"kept"
    device.start(edu.BUFFER, buffer.iova, 4, edu.FROM_DEVICE | edu.WITH_IRQ)
    rig.model.remove()
    rig.run(10)
    assert bytes(buffer.view[:4]) == b"kept"
    with pytest.raises(DeviceGone):
        device.transferring()
    buffer.close()
    function.close()


def test_a_lost_doorbell_loses_what_it_asked_for_and_nothing_else() -> None:
    rig = Rig()
    function = rig.open()
    device = Edu(function.map(0))
    [interrupt] = function.interrupts(InterruptKind.MSI, 1)
    rig.model.lose_writes(1)
    device.mmio.write32(edu.IRQ_RAISE, 1)
    assert interrupt.clear() == 0
    assert device.acknowledge() == 0
    device.mmio.write32(edu.IRQ_RAISE, 1)
    assert interrupt.clear() == 1
    assert rig.model.lost_writes == 1


def test_a_lost_interrupt_leaves_its_cause_in_the_register() -> None:
    rig = Rig()
    function = rig.open()
    device = Edu(function.map(0))
    [interrupt] = function.interrupts(InterruptKind.MSI, 1)
    rig.model.lose_interrupts(1)
    device.mmio.write32(edu.IRQ_RAISE, 4)
    rig.run(10)
    assert interrupt.clear() == 0
    assert device.acknowledge() == 4  # who polls as well finds it


def test_a_storm_costs_a_bounded_number_of_turns_and_is_told_once() -> None:
    rig = Rig(RateLimit(per_s=1000, burst=50))
    function = rig.open()
    [interrupt] = function.interrupts(InterruptKind.MSI, 1)
    turns: list[int] = []
    storms: list[InterruptStorm] = []

    def ready(_events: Event) -> None:
        try:
            turns.append(interrupt.clear())
        except InterruptStorm as exc:
            storms.append(exc)

    rig.loop.watch(interrupt.handle, Event.READ, ready)
    function.dma(PAGE)  # bus master
    rig.model.storm(0, period_ns=10_000, count=100_000)
    rig.run(2000)
    assert len(storms) == 1
    assert sum(turns) <= 60
    interrupt.unmask()
    rig.model.storm(0, period_ns=2 * MS, count=5)  # half of what is allowed
    rig.run(100)
    assert len(storms) == 1


def test_a_function_without_the_bar_or_with_a_smaller_one_is_refused() -> None:
    rig = Rig()
    rig.model.bars[0] = 4096
    function = rig.open()
    with pytest.raises(Unavailable, match="4096 B"):
        function.map(0, at_least_bytes=1 << 20)
    with pytest.raises(Refused, match="outside"):
        function.map(0).read32(4096)
    rig.model.bars.clear()
    function.close()
    with pytest.raises(Absent):
        rig.open().map(0)


def test_a_group_that_another_driver_shares_is_not_viable_and_says_who() -> None:
    rig = Rig()
    other = MockPort(rig.kernel, "bridge", "0000:00:05.0")
    other.driver = "nvme"
    rig.kernel.pci.add(other)
    other.group = rig.model.group
    with pytest.raises(Unavailable, match=r"0000:00:05\.0 \(nvme\)"):
        rig.open()
    other.driver = ""
    rig.open()


def test_a_function_that_somebody_has_open_is_refused_until_he_dies() -> None:
    rig = Rig()
    rig.open().map(0)
    second = rig.kernel.node("second")
    rig.kernel.attach("second", Loop(second.clock))
    with pytest.raises(Unavailable, match="open already"):
        MockPciFunction(second, rig.model)
    rig.kernel.kill("card")
    assert MockPciFunction(second, rig.model).map(0).read32(0) == edu.IDENTIFICATION


def test_dma_needs_a_mapping_and_the_devices_reach() -> None:
    rig = Rig()
    function = rig.open()
    device = Edu(function.map(0))
    near, far = function.dma(16 * PAGE), function.dma(PAGE)
    assert (near.iova, far.iova) == (1 << 16, 1 << 17)
    device.start(edu.BUFFER, near.iova, 4, edu.FROM_DEVICE)
    rig.run(10)
    assert rig.model.dma_faults == 0
    device.start(edu.BUFFER, far.iova + PAGE - 2, 4, edu.FROM_DEVICE)  # runs out of it
    rig.run(10)
    assert rig.model.dma_faults == 1
    rig.model.dma_bits = 17
    device.start(edu.BUFFER, far.iova, 4, edu.FROM_DEVICE)  # mapped, and too far for it
    rig.run(10)
    assert rig.model.dma_faults == 2


def test_an_acknowledgement_takes_back_only_what_it_names() -> None:
    rig = Rig()
    mmio = rig.open().map(0)
    mmio.write32(edu.IRQ_RAISE, 3)
    mmio.write32(edu.IRQ_ACK, 1)
    assert mmio.read32(edu.IRQ_STATUS) == 2
    assert rig.model.line()


def test_a_reset_that_does_not_help_is_told() -> None:
    rig = Rig()
    function = rig.open()
    rig.model.fail_reset = True
    with pytest.raises(Unavailable, match="did not come back"):
        function.reset()
    function.reset()
    assert rig.model.resets == 1


def test_a_factorial_that_was_begun_before_a_reset_ends_nowhere() -> None:
    rig = Rig()
    function = rig.open()
    device = Edu(function.map(0))
    device.mmio.write32(edu.FACTORIAL, 12)
    function.reset()
    rig.run(10)
    assert device.mmio.read32(edu.FACTORIAL) == 0
    assert not device.computing()


@pytest.mark.parametrize(("number", "factorial"), [(0, 1), (1, 1), (12, 479001600), (40, 0)])
def test_factorials_are_those_of_32_bits(number: int, factorial: int) -> None:
    rig = Rig()
    device = Edu(rig.open().map(0))
    device.mmio.write32(edu.FACTORIAL, number)
    rig.run(10)
    assert device.mmio.read32(edu.FACTORIAL) == factorial


def test_the_power_of_a_slot_takes_the_module_out_and_puts_it_in() -> None:
    rig = Rig()
    rig.kernel.pci.add_slot("7", str(rig.model.address))
    bus = MockPciBus(rig.node, rig.kernel.pci)
    told: list[PciEventKind] = []
    bus.on_event(lambda event: told.append(event.kind))
    [slot] = bus.slots()
    assert (slot.powered, slot.present) == (True, True)
    bus.power_slot("7", on=False)
    [slot] = bus.slots()
    assert (slot.powered, slot.present) == (False, False)
    bus.power_slot("7", on=True)
    rig.run(1)
    added, removed, changed = PciEventKind.ADDED, PciEventKind.REMOVED, PciEventKind.SLOT
    assert told == [removed, changed, added, changed]


def test_a_spec_string_opens_a_function() -> None:
    rig = Rig()
    registry = Registry(World(reactor=rig.loop, node=rig.node))
    function = registry.open_function("mock:edu")
    assert function.read_config(0, 4) == edu.IDS
    function.close()
    with pytest.raises(Unavailable, match="known: edu"):
        registry.open_function("mock:eddy")
    with pytest.raises(Refused, match="PCI address"):
        registry.open_function("vfio:somewhere")
    with pytest.raises(Absent, match="no such PCI function"):
        registry.open_function("vfio:0000:fe:1f.7")


def run_once(play: Callable[[Rig], None]) -> str:
    rig = Rig()
    play(rig)
    return rig.kernel.trace.sha256()


def test_the_same_story_has_the_same_trace() -> None:
    def play(rig: Rig) -> None:
        function = rig.open()
        rig.model.storm(0, 1000, 100)
        rig.run(1)
        rig.model.remove()
        function.close()

    assert run_once(play) == run_once(play)
