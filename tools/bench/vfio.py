"""`apf bench vfio`: registers of a real function through the helper, and its interrupt.

The function is QEMU's edu (1234:11e8, docs/specs/edu): a register that may be read and written at
will (4), and one whose write raises an interrupt (0x60). It is taken from its driver while it is
measured, and given back. Elsewhere the rows say that there is none; `make hil` has one.

    read32, write32       beside the same accesses in a loop of C, so that only our part is in it
    interrupt_to_handler  from the store that raises an MSI to the handler on the loop, beside an
                          eventfd that this process writes itself
"""

import os
from collections.abc import Callable
from contextlib import ExitStack
from statistics import median
from typing import Final

from firmware.loop import Loop
from hal.errors import HalError
from hal.linux.clock import LinuxClock
from hal.linux.pci_bus import LinuxPciBus
from hal.linux.vfio import VfioFunction, VfioHost
from hal.linux.vfio_region import MappedRegion
from hal.pci_ports import InterruptKind, PciAddress
from hal.ports import Event
from tools.bench.figures import Figure, Unmeasured
from tools.bench.measure import Bench, cpu_us_per_call

EDU: Final = (0x1234, 0x11E8)
DRIVER: Final = "vfio-pci"
LIVENESS: Final = 0x04
IRQ_RAISE: Final = 0x60
IRQ_ACK: Final = 0x64
WAIT_NS: Final = 2_000_000_000
NAMES: Final = {"read32": "us", "write32": "us", "interrupt_to_handler": "us"}


def run(bench: Bench) -> list[Figure]:
    """All rows; without a function each says why."""
    clock = LinuxClock()
    loop = Loop(clock)
    with ExitStack() as undo:
        undo.callback(clock.close)
        undo.callback(loop.close)
        try:
            function = _open(loop, undo)
            region = function.map(0)
            if not isinstance(region, MappedRegion):
                return _none("its BAR 0 can't be mapped: each access would be a call to the kernel")
            rows = _registers(region, bench)
            rows.append(_interrupt(function, region, loop, clock, bench))
        except (HalError, Unmeasured) as exc:
            return _none(str(exc))
    return rows


def _none(why: str) -> list[Figure]:
    return [Figure(name=f"vfio.{name}", unit=unit, error=why) for name, unit in NAMES.items()]


def _open(loop: Loop, undo: ExitStack) -> VfioFunction:
    """Raises Unmeasured, HalError."""
    bus = LinuxPciBus(loop)
    undo.callback(bus.close)
    found = [d for d in bus.scan() if (d.vendor_id, d.device_id) == EDU]
    if not found:
        raise Unmeasured("no edu function (QEMU's 1234:11e8) on this machine: `make hil` has one")
    address: PciAddress = found[0].address
    bus.bind(address, DRIVER)
    undo.callback(bus.restore)
    function = VfioHost(loop).open(address)
    undo.callback(function.close)
    return function


def _registers(region: MappedRegion, bench: Bench) -> list[Figure]:
    count, repeats = bench.pick(20_000, 2_000), bench.pick(9, 3)

    def read() -> int:
        for _ in range(count):
            region.read32(LIVENESS)
        return count

    def write() -> int:
        for _ in range(count):
            region.write32(LIVENESS, 0x1234_5678)
        return count

    def read_in_c() -> int:
        region.words.read32_loop(LIVENESS, count)
        return count

    def write_in_c() -> int:
        region.words.write32_loop(LIVENESS, 0x1234_5678, count)
        return count

    return [
        Figure(
            name=f"vfio.{name}",
            value=cpu_us_per_call(ours, repeats),
            unit=NAMES[name],
            baseline=cpu_us_per_call(loop, repeats),
            baseline_name="the same in a loop of C",
        )
        for name, ours, loop in (("read32", read, read_in_c), ("write32", write, write_in_c))
    ]


def _interrupt(
    function: VfioFunction, region: MappedRegion, loop: Loop, clock: LinuxClock, bench: Bench
) -> Figure:
    (interrupt,) = function.interrupts(InterruptKind.MSI, 1)
    count = bench.pick(200, 30)

    def raise_msi() -> None:
        region.write32(IRQ_RAISE, 1)

    def heard() -> None:
        interrupt.clear()
        region.write32(IRQ_ACK, 1)

    own = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        device_us = _delay_us(loop, clock, interrupt.handle, raise_msi, heard, count)
        own_us = _delay_us(
            loop,
            clock,
            own,
            lambda: os.eventfd_write(own, 1),
            lambda: _drain(own),
            count,
        )
    finally:
        os.close(own)
        interrupt.close()
    return Figure(
        name="vfio.interrupt_to_handler",
        value=device_us,
        unit="us",
        baseline=own_us,
        baseline_name="an eventfd that we write ourselves",
    )


def _drain(fd: int) -> None:
    os.eventfd_read(fd)


def _delay_us(
    loop: Loop,
    clock: LinuxClock,
    handle: int,
    cause: Callable[[], None],
    heard: Callable[[], None],
    count: int,
) -> float:
    """Median time from `cause` to the handler. Raises Unmeasured when none comes."""
    found: list[int] = []
    start_ns = 0

    def on_ready(_events: Event) -> None:
        found.append(clock.now_ns() - start_ns)
        heard()

    loop.watch(handle, Event.READ, on_ready)
    try:
        for number in range(count):
            start_ns = clock.now_ns()
            cause()
            while len(found) <= number:
                if clock.now_ns() - start_ns > WAIT_NS:
                    raise Unmeasured(f"no interrupt within {WAIT_NS // 1_000_000} ms")
                loop.step()
    finally:
        loop.unwatch(handle)
    return median(found) / 1000
