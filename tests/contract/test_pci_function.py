"""`PciFunction` on an edu device: the model here, QEMU's through VFIO where there is one."""

import itertools
import zlib
from typing import Any

import pytest

from hal.errors import Absent, DeviceGone, InterruptStorm, Refused, StoreFull, Unavailable
from hal.pci_ports import Interrupt, InterruptKind, PciEvent, PciEventKind
from hal.ports import Event
from tests.contract import edu
from tests.contract.edu import Edu
from tests.contract.results import Result, need, soon
from tests.contract.rigs import PciFunctionRig, World

PORT = "pci_function"
PAGE = 4096


def listen(world: World, interrupt: Interrupt) -> list[int]:
    """The counts of each time that the handle got ready."""
    counts: list[int] = []
    world.reactor.watch(
        interrupt.handle, Event.READ, lambda _events: counts.append(interrupt.clear())
    )
    return counts


def stop(world: World, interrupt: Interrupt) -> None:
    world.reactor.unwatch(interrupt.handle)
    interrupt.close()


def test_it_is_the_device_that_its_config_space_and_its_register_say(
    rig: PciFunctionRig, world: World
) -> None:
    assert rig.function.read_config(0, 4) == edu.IDS
    assert rig.function.read_config(2, 2) == edu.IDS >> 16
    assert rig.function.read_config(0, 1) == edu.IDS & 0xFF
    mmio = rig.function.map(0)
    assert mmio.read32(0) == edu.IDENTIFICATION
    assert mmio.size_bytes == rig.bar_bytes
    [bar] = [region for region in rig.function.regions() if region.index == 0]
    assert (bar.size_bytes, bar.readable, bar.writable) == (rig.bar_bytes, True, True)


def test_it_inverts_what_is_written(rig: PciFunctionRig, world: World) -> None:
    mmio = rig.function.map(0)
    for value in (0x1234_5678, 0xFFFF_FFFF, 0xA5A5_5A5A):
        mmio.write32(edu.LIVENESS, value)
        assert mmio.read32(edu.LIVENESS) == value ^ 0xFFFF_FFFF


def test_a_register_that_holds_all_ones_is_no_dead_device(
    rig: PciFunctionRig, world: World
) -> None:
    mmio = rig.function.map(0)
    mmio.write32(edu.LIVENESS, 0)
    assert mmio.read32(edu.LIVENESS) == 0xFFFF_FFFF
    assert mmio.copy_from(edu.LIVENESS, 4) == b"\xff" * 4


def test_an_access_out_of_bounds_or_unaligned_is_refused_and_does_nothing(
    rig: PciFunctionRig, world: World
) -> None:
    mmio = rig.function.map(0)
    mmio.write32(edu.LIVENESS, 1)
    for offset in (-4, rig.bar_bytes, rig.bar_bytes - 2, 2, 5):
        with pytest.raises(Refused):
            mmio.read32(offset)
        with pytest.raises(Refused):
            mmio.write32(offset, 0)
    for offset in (-8, rig.bar_bytes - 4, 4, 12):
        with pytest.raises(Refused):
            mmio.read64(offset)
        with pytest.raises(Refused):
            mmio.write64(offset, 0)
    for value in (-1, 1 << 32):
        with pytest.raises(Refused):
            mmio.write32(edu.LIVENESS, value)
    with pytest.raises(Refused):
        mmio.copy_from(2, 4)
    with pytest.raises(Refused):
        mmio.copy_to(0, b"abc")
    with pytest.raises(Refused):
        mmio.copy_from(rig.bar_bytes - 4, 8)
    assert mmio.read32(edu.LIVENESS) == 0xFFFF_FFFE


def test_config_accesses_are_checked(rig: PciFunctionRig, world: World) -> None:
    for offset, width in ((-4, 4), (1, 2), (2, 4), (0, 3), (4096, 4), (0, 8)):
        with pytest.raises(Refused):
            rig.function.read_config(offset, width)
    with pytest.raises(Refused):
        rig.function.write_config(4, 2, 1 << 16)


def test_a_bar_that_is_absent_or_smaller_than_described_is_told(
    rig: PciFunctionRig, world: World
) -> None:
    with pytest.raises(Absent, match="no such BAR"):
        rig.function.map(2)
    with pytest.raises(Unavailable, match=f"is {rig.bar_bytes} B"):
        rig.function.map(0, at_least_bytes=rig.bar_bytes + 1)
    with pytest.raises(Refused):
        rig.function.map(7)
    mmio = rig.function.map(0, at_least_bytes=rig.bar_bytes)
    with pytest.raises(Refused, match="mapped already"):
        rig.function.map(0)
    mmio.close()
    with pytest.raises(Refused, match="closed"):
        mmio.read32(0)
    rig.function.map(0).close()


def test_it_computes_a_factorial_and_tells_by_an_msi_in_the_loop(
    rig: PciFunctionRig, world: World
) -> None:
    device = Edu(rig.function.map(0))
    [interrupt] = rig.function.interrupts(InterruptKind.MSI, 1)
    counts = listen(world, interrupt)
    device.irq_when_computed(True)
    device.mmio.write32(edu.FACTORIAL, 10)
    world.run_until(lambda: bool(counts))
    assert counts == [1]
    assert device.mmio.read32(edu.FACTORIAL) == 3_628_800
    assert device.acknowledge() == 1
    device.irq_when_computed(False)
    device.mmio.write32(edu.FACTORIAL, 12)
    world.run_until(lambda: not device.computing())
    world.run_for(0.02)
    assert device.mmio.read32(edu.FACTORIAL) == 479_001_600
    assert counts == [1]
    stop(world, interrupt)


def test_a_masked_msi_is_silent_and_an_unmasked_one_comes_again(
    rig: PciFunctionRig, world: World
) -> None:
    device = Edu(rig.function.map(0))
    [interrupt] = rig.function.interrupts(InterruptKind.MSI, 1)
    interrupt.mask()
    device.mmio.write32(edu.IRQ_RAISE, 1)
    world.run_for(0.05)
    assert interrupt.clear() == 0
    interrupt.unmask()
    device.acknowledge()
    device.mmio.write32(edu.IRQ_RAISE, 2)
    counts = listen(world, interrupt)
    world.run_until(lambda: sum(counts) > 0)
    assert device.acknowledge() == 2
    stop(world, interrupt)


def test_a_level_interrupt_is_masked_until_the_device_was_told(
    rig: PciFunctionRig, world: World
) -> None:
    device = Edu(rig.function.map(0))
    [line] = rig.function.interrupts(InterruptKind.INTX, 1)
    counts = listen(world, line)
    device.mmio.write32(edu.IRQ_RAISE, 1)
    world.run_until(lambda: bool(counts))
    device.mmio.write32(edu.IRQ_RAISE, 2)
    world.run_for(0.05)
    assert counts == [1]  # the host has masked it
    line.unmask()  # without an acknowledgement: the line is still up
    world.run_until(lambda: len(counts) == 2)
    assert device.acknowledge() == 3
    line.unmask()
    world.run_for(0.05)
    assert counts == [1, 1]
    stop(world, line)


def test_data_goes_by_dma_to_the_device_and_back_with_its_checksum(
    rig: PciFunctionRig, world: World
) -> None:
    device = Edu(rig.function.map(0))
    buffer = rig.function.dma(2 * PAGE, edu.DMA_BITS)
    assert buffer.iova % PAGE == 0
    assert buffer.iova + buffer.size_bytes <= 1 << edu.DMA_BITS
    assert bytes(buffer.view) == bytes(2 * PAGE)
    size = edu.TRANSFER_LIMIT
    data = bytes((7 * i + 3) & 0xFF for i in range(size))
    buffer.view[:size] = data
    device.send(world, buffer, 0, size)
    buffer.view[:size] = bytes(size)
    device.fetch(world, buffer.iova + PAGE, size)
    assert zlib.crc32(buffer.view[PAGE : PAGE + size]) == zlib.crc32(data)
    assert bytes(buffer.view[:PAGE]) == bytes(PAGE)


def test_the_end_of_a_transfer_is_told_by_an_interrupt(rig: PciFunctionRig, world: World) -> None:
    device = Edu(rig.function.map(0))
    buffer = rig.function.dma(PAGE, edu.DMA_BITS)
    [interrupt] = rig.function.interrupts(InterruptKind.MSI, 1)
    counts = listen(world, interrupt)
    device.start(buffer.iova, edu.BUFFER, 64, edu.TO_DEVICE | edu.WITH_IRQ)
    world.run_until(lambda: bool(counts))
    assert device.acknowledge() == 0x100
    assert not device.transferring()
    stop(world, interrupt)


def test_memory_that_was_taken_back_is_out_of_reach_and_its_address_is_used_again(
    rig: PciFunctionRig, world: World
) -> None:
    device = Edu(rig.function.map(0))
    first = rig.function.dma(PAGE, edu.DMA_BITS)
    beside = rig.function.dma(PAGE, edu.DMA_BITS)
    first.view[:8] = b"original"
    device.send(world, first, 0, 8)
    iova = first.iova
    first.close()
    device.fetch(world, iova, 8)  # to an address that nothing is behind now
    again = rig.function.dma(PAGE, edu.DMA_BITS)
    assert again.iova == iova
    assert bytes(again.view) == bytes(PAGE)
    assert bytes(beside.view) == bytes(PAGE)
    device.fetch(world, iova, 8)
    assert bytes(again.view[:8]) == b"original"


def test_buffers_are_whole_pages_within_the_devices_reach(
    rig: PciFunctionRig, world: World
) -> None:
    for size_bytes in (0, -PAGE, 100, PAGE + 1):
        with pytest.raises(Refused, match="multiple"):
            rig.function.dma(size_bytes)
    with pytest.raises(StoreFull, match="2\\^12"):
        rig.function.dma(PAGE, 12)
    rig.function.dma(PAGE, 64).close()


def test_one_set_of_interrupts_at_a_time_and_no_more_than_there_are(
    rig: PciFunctionRig, world: World
) -> None:
    with pytest.raises(Unavailable, match="vectors wanted"):
        rig.function.interrupts(InterruptKind.MSI, 2)
    with pytest.raises(Unavailable):
        rig.function.interrupts(InterruptKind.MSI, 0)
    with pytest.raises(Unavailable):
        rig.function.interrupts(InterruptKind.MSIX, 1)
    [first] = rig.function.interrupts(InterruptKind.MSI, 1)
    with pytest.raises(Refused):
        rig.function.interrupts(InterruptKind.INTX, 1)
    first.close()
    first.close()
    [second] = rig.function.interrupts(InterruptKind.INTX, 1)
    second.close()


def test_a_storm_is_masked_and_told_and_can_be_let_in_again(
    rig: PciFunctionRig, world: World
) -> None:
    device = Edu(rig.function.map(0))
    [interrupt] = rig.function.interrupts(InterruptKind.MSI, 1)

    def storm() -> None:
        for _ in range(100 * rig.storm_limit.burst):
            device.mmio.write32(edu.IRQ_RAISE, 1)
            device.acknowledge()
            interrupt.clear()

    with pytest.raises(InterruptStorm, match="masked"):
        storm()
    device.mmio.write32(edu.IRQ_RAISE, 1)
    device.acknowledge()
    world.run_for(0.05)
    assert interrupt.clear() == 0
    interrupt.unmask()
    device.mmio.write32(edu.IRQ_RAISE, 1)
    world.run_until(lambda: interrupt.clear() == 1)
    device.acknowledge()


def test_parts_are_closed_in_any_order_and_it_opens_again(
    rig: PciFunctionRig, world: World
) -> None:
    function = rig.function
    for order in itertools.permutations(("map", "dma", "interrupt", "function")):
        parts: dict[str, Any] = {
            "map": function.map(0),
            "dma": function.dma(PAGE, edu.DMA_BITS),
            "interrupt": function.interrupts(InterruptKind.MSI, 1)[0],
            "function": function,
        }
        for name in (*order, *order):  # a second time is fine
            parts[name].close()
        with pytest.raises(Refused):
            function.map(0)
        function = rig.open()
        mmio = function.map(0)
        assert mmio.read32(0) == edu.IDENTIFICATION, order
        mmio.close()
    function.close()


def test_a_reset_is_waited_for_and_nothing_is_touched_meanwhile(
    rig: PciFunctionRig, world: World
) -> None:
    mmio = rig.function.map(0)
    mmio.write32(edu.LIVENESS, 5)
    result: Result[None] = Result()
    rig.function.submit_reset(soon(world), result)
    with pytest.raises(Unavailable, match="reset"):
        mmio.read32(0)
    with pytest.raises(Unavailable, match="reset"):
        rig.function.read_config(0, 4)
    result.wait(world)
    assert mmio.read32(0) == edu.IDENTIFICATION
    assert rig.function.read_config(0, 4) == edu.IDS
    if rig.resets_registers:
        assert mmio.read32(edu.LIVENESS) == 0
    device = Edu(mmio)
    device.acknowledge()
    [interrupt] = rig.function.interrupts(InterruptKind.MSI, 1)
    mmio.write32(edu.IRQ_RAISE, 4)
    world.run_until(lambda: interrupt.clear() == 1)
    assert device.acknowledge() == 4


def test_a_device_that_was_pulled_out_is_told_from_all_ones_and_released(
    rig: PciFunctionRig, world: World
) -> None:
    remove = need(rig.remove, "pull the device out without a word")
    events: list[PciEvent] = []
    rig.function.on_event(events.append)
    mmio = rig.function.map(0)
    buffer = rig.function.dma(PAGE)
    [interrupt] = rig.function.interrupts(InterruptKind.MSI, 1)
    remove()
    assert rig.function.read_config(0, 2) == 0xFFFF
    mmio.write32(edu.LIVENESS, 1)  # posted: nobody notices
    with pytest.raises(DeviceGone, match="vendor id"):
        mmio.read32(0)
    for touch in (
        lambda: mmio.read64(edu.DMA_COUNT),
        lambda: mmio.write32(edu.LIVENESS, 1),
        lambda: rig.function.read_config(0, 2),
        lambda: rig.function.dma(PAGE),
        lambda: rig.function.reset(),
    ):
        with pytest.raises(DeviceGone):
            touch()
    world.run_until(lambda: bool(events))
    assert [event.kind for event in events] == [PciEventKind.REMOVED]
    interrupt.close()
    buffer.close()
    rig.function.close()
    with pytest.raises(Absent):
        rig.open()


def test_an_orderly_removal_waits_until_it_was_closed(rig: PciFunctionRig, world: World) -> None:
    want_removed = need(rig.want_removed, "ask for an orderly removal")
    events: list[PciEvent] = []
    rig.function.on_event(events.append)
    mmio = rig.function.map(0)
    want_removed()
    world.run_until(lambda: bool(events))
    assert events[0].kind is PciEventKind.REMOVE_WANTED
    assert mmio.read32(0) == edu.IDENTIFICATION  # it is still ours
    rig.function.close()
    with pytest.raises(Absent):
        rig.open()
