"""PCI functions through VFIO, on QEMU's edu (docs/specs/edu): the same checks that the model of it
bears in tests/contract, and what only a kernel and a host can do: reset, orderly removal.

`edu0` of the machine is on the root bus, where nothing can reset it; those cases plug one into a
port, whose secondary bus reset reaches it.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NoReturn

from firmware.loop import Loop
from hal.errors import HalError, Unavailable
from hal.linux.clock import LinuxClock
from hal.linux.pci_bus import LinuxPciBus
from hal.linux.vfio import VfioHost
from hal.linux.vfio_group import VfioFds
from hal.local.functions import HeldFunctions
from hal.pci_ports import InterruptKind, PciAddress, PciEvent, PciEventKind
from hal.ports import Event
from tests.contract import edu
from tests.contract import test_pci_bus as bus_checks
from tests.contract import test_pci_function as checks
from tests.contract.backends_pci import DRIVER, linux_bus, linux_function
from tests.contract.edu import Edu
from tests.contract.worlds import RealWorld
from tests.hil.case import Context, Evidence, case, rig_case
from tests.hil.machines import CARD, device
from tests.hil.rig import Rig
from tools.rig.qemu import Machine

_EDU: Final = "1234:11e8"
_PORT: Final = "port3"
_SLOT: Final = "3"
_SCRATCH: Final = Path("/tmp")
_PAGE: Final = 4096
_ICS: Final = 0x00C8  # 82574L: interrupt cause set
_IMS: Final = 0x00D0  # interrupt mask set
_EIAC: Final = 0x00DC  # causes that are cleared as they are told
_IVAR: Final = 0x00E4  # vector allocation
_RDBAL: Final = 0x2800  # receive descriptor base
_RXQ0: Final = 1 << 20
_RXQ1: Final = 1 << 21
_TXQ0: Final = 1 << 22
_NO_REMAPPING: Final = Machine(
    name="no-remapping",
    memory_mib=768,
    options=(*("-device", "intel-iommu,intremap=off"), *device("edu,id=edu0,addr=3.0")),
    kernel_args="intel_iommu=on",
)
_DMAR: Final = r"DMAR:"  # the IOMMU tells of the access that it has stopped


def _run(ctx: Context, *wanted: Callable[..., None], rig: Any = linux_function) -> dict[str, int]:
    """Each check on a rig of its own, as the suite does it."""
    ctx.modprobe("vfio-pci")
    for check in wanted:
        world = RealWorld()
        made = rig(_SCRATCH, world.reactor)
        try:
            check(made, world)
        finally:
            made.close()
            world.close()
    return {"checks": len(wanted)}


def _evidence(ctx: Context, numbers: dict[str, Any]) -> Evidence:
    return Evidence(driver=DRIVER, device=ctx.pci(_EDU), numbers=numbers)


@case(on=CARD, smoke=True, deadline_s=120)
def edu_through_vfio(ctx: Context) -> Evidence:
    """Identification, inversion, factorial with its interrupt, DMA both ways: one device, opened
    once, with the figures of each step."""
    ctx.modprobe("vfio-pci")
    with _opened(ctx, PciAddress.parse(ctx.pci(_EDU))) as (loop, function, _told):
        device = Edu(function.map(0, at_least_bytes=1 << 20))
        assert device.mmio.read32(0) == edu.IDENTIFICATION
        device.mmio.write32(edu.LIVENESS, 0x1234_5678)
        assert device.mmio.read32(edu.LIVENESS) == 0xEDCB_A987
        [interrupt] = function.interrupts(InterruptKind.MSI, 1)
        counts: list[int] = []
        loop.watch(interrupt.handle, Event.READ, lambda _events: counts.append(interrupt.clear()))
        device.irq_when_computed(True)
        device.mmio.write32(edu.FACTORIAL, 10)
        msi_ms = ctx.wait(lambda: bool(counts), "the factorial's MSI", turn=loop.step)
        assert counts == [1]
        assert device.mmio.read32(edu.FACTORIAL) == 3_628_800
        assert device.acknowledge() == 1
        buffer = function.dma(2 * _PAGE, edu.DMA_BITS)
        buffer.view[:8] = b"over DMA"
        device.start(buffer.iova, edu.BUFFER, 8, edu.TO_DEVICE)
        ctx.wait(lambda: not device.transferring(), "the end of DMA to the device")
        device.start(edu.BUFFER, buffer.iova + _PAGE, 8, edu.FROM_DEVICE)
        dma_ms = ctx.wait(lambda: not device.transferring(), "the end of DMA from it")
        assert bytes(buffer.view[_PAGE : _PAGE + 8]) == b"over DMA"
        loop.unwatch(interrupt.handle)
    return _evidence(ctx, {"msi_ms": msi_ms, "dma_ms": dma_ms})


@case(on=CARD)
def edu_is_identified_and_inverts(ctx: Context) -> Evidence:
    return _evidence(
        ctx,
        _run(
            ctx,
            checks.test_it_is_the_device_that_its_config_space_and_its_register_say,
            checks.test_it_inverts_what_is_written,
            checks.test_a_register_that_holds_all_ones_is_no_dead_device,
            checks.test_an_access_out_of_bounds_or_unaligned_is_refused_and_does_nothing,
            checks.test_config_accesses_are_checked,
            checks.test_a_bar_that_is_absent_or_smaller_than_described_is_told,
        ),
    )


@case(on=CARD)
def edu_computes_a_factorial_and_tells_by_msi_through_eventfd(ctx: Context) -> Evidence:
    return _evidence(
        ctx,
        _run(
            ctx,
            checks.test_it_computes_a_factorial_and_tells_by_an_msi_in_the_loop,
            checks.test_a_masked_msi_is_silent_and_an_unmasked_one_comes_again,
            checks.test_one_set_of_interrupts_at_a_time_and_no_more_than_there_are,
        ),
    )


@case(on=CARD)
def edu_raises_intx_which_stays_masked_until_it_is_acknowledged(ctx: Context) -> Evidence:
    return _evidence(
        ctx, _run(ctx, checks.test_a_level_interrupt_is_masked_until_the_device_was_told)
    )


@case(on=CARD)
def an_interrupt_storm_is_masked_and_reported(ctx: Context) -> Evidence:
    return _evidence(ctx, _run(ctx, checks.test_a_storm_is_masked_and_told_and_can_be_let_in_again))


@case(on=CARD)
def dma_goes_both_ways_with_its_checksum(ctx: Context) -> Evidence:
    return _evidence(
        ctx,
        _run(
            ctx,
            checks.test_data_goes_by_dma_to_the_device_and_back_with_its_checksum,
            checks.test_the_end_of_a_transfer_is_told_by_an_interrupt,
            checks.test_buffers_are_whole_pages_within_the_devices_reach,
        ),
    )


@case(on=CARD)
def memory_that_was_unmapped_is_out_of_reach_and_used_again(ctx: Context) -> Evidence:
    ctx.allow(_DMAR)
    name = "test_memory_that_was_taken_back_is_out_of_reach_and_its_address_is_used_again"
    return _evidence(ctx, _run(ctx, getattr(checks, name)))


@case(on=CARD, deadline_s=180)
def everything_is_released_in_any_order(ctx: Context) -> Evidence:
    return _evidence(ctx, _run(ctx, checks.test_parts_are_closed_in_any_order_and_it_opens_again))


@case(on=CARD)
def a_function_is_bound_and_given_back(ctx: Context) -> Evidence:
    found = [value for name, value in vars(bus_checks).items() if name.startswith("test_")]
    known = [check for check in found if "coming_and_going" not in check.__name__]  # see hotplug
    return _evidence(ctx, _run(ctx, *known, rig=linux_bus))


@case(on=CARD)
def what_is_missing_on_the_way_to_a_function_is_said(ctx: Context) -> Evidence:
    """Bound to no driver, to another one, and opened twice."""
    ctx.modprobe("vfio-pci")
    ctx.modprobe("nvme")
    words = {}
    clock = LinuxClock()
    loop = Loop(clock)
    bus, host = LinuxPciBus(loop), VfioHost(loop)
    address = PciAddress.parse(ctx.pci(_EDU))
    try:
        for name, at in (
            ("no_driver", address),
            ("driver", PciAddress.parse(ctx.pci("1b36:0010"))),
        ):
            words[name] = _refusal(host, at)
        bus.bind(address, DRIVER)
        function = host.open(address)
        words["open"] = _refusal(VfioHost(loop), address)
        function.close()
    finally:
        bus.restore()
        bus.close()
        loop.close()
        clock.close()
    assert "bound to no driver" in words["no_driver"], words
    assert "bound to nvme" in words["driver"], words
    assert "open already" in words["open"], words
    return _evidence(ctx, words)


@case(on=CARD, deadline_s=120)
def a_function_behind_a_port_is_reset(ctx: Context) -> Evidence:
    ctx.modprobe("vfio-pci")
    with _plugged(ctx) as address, _opened(ctx, address) as (loop, function, _told):
        method = Path(f"/sys/bus/pci/devices/{address}/reset_method").read_text().strip()
        device = Edu(function.map(0))
        [interrupt] = function.interrupts(InterruptKind.MSI, 1)
        done: list[object] = []
        began_ns = time.monotonic_ns()
        function.submit_reset(loop.now_ns() + 30_000_000_000, done.append)
        ctx.wait(lambda: bool(done), "the end of the reset", turn=loop.step)
        took_ms = (time.monotonic_ns() - began_ns) // 1_000_000
        assert done == [None], done
        assert device.mmio.read32(0) == edu.IDENTIFICATION
        device.mmio.write32(edu.IRQ_RAISE, 4)  # the vectors live on
        ctx.wait(lambda: interrupt.clear() == 1, "an MSI after the reset")
        assert device.acknowledge() == 4
        numbers = {"method": method, "reset_ms": took_ms}
        return Evidence(driver=DRIVER, device=str(address), numbers=numbers)


@case(on=CARD, deadline_s=120)
def a_function_is_removed_in_order_while_vfio_holds_it(ctx: Context) -> Evidence:
    """The kernel's removal waits until we have let go; nothing is left of it then."""
    ctx.modprobe("vfio-pci")
    address = _plug(ctx)
    with _opened(ctx, address) as (loop, function, told):
        device = Edu(function.map(0))
        buffer = function.dma(_PAGE, edu.DMA_BITS)
        [_interrupt] = function.interrupts(InterruptKind.MSI, 1)
        ctx.host("device_del", {"id": "plugged"})
        asked_ms = ctx.wait(
            lambda: any(event.kind is PciEventKind.REMOVE_WANTED for event in told),
            "the host's request",
            turn=loop.step,
        )
        assert device.mmio.read32(0) == edu.IDENTIFICATION  # still ours, still there
        assert buffer.iova + buffer.size_bytes <= 1 << edu.DMA_BITS
        function.close()
        ctx.host_event("DEVICE_DELETED", device="plugged")
        gone = Path(f"/sys/bus/pci/devices/{address}")
        gone_ms = ctx.wait(lambda: not gone.exists(), f"{address} to go")
    numbers = {"asked_after_ms": asked_ms, "gone_after_ms": gone_ms}
    return Evidence(driver=DRIVER, device=str(address), numbers=numbers)


@case(on=CARD)
def a_group_that_the_kernel_drives_too_is_refused_with_its_names(ctx: Context) -> Evidence:
    """The chipset's LPC bridge, SATA and SMBus are one IOMMU group; SATA alone is given up."""
    ctx.modprobe("vfio-pci")
    ctx.modprobe("i2c-i801")
    sata = PciAddress.parse(ctx.pci("8086:2922"))
    smbus = ctx.pci("8086:2930")
    clock = LinuxClock()
    loop = Loop(clock)
    bus = LinuxPciBus(loop)
    try:
        bus.bind(sata, DRIVER)
        words = _refusal(VfioHost(loop), sata)
    finally:
        bus.restore()
        bus.close()
        loop.close()
        clock.close()
    assert "is not viable" in words, words
    assert f"{smbus} (i801_smbus)" in words, words
    return Evidence(driver=DRIVER, device=str(sata), numbers={"said": words})


@case(on=CARD, deadline_s=120)
def msix_vectors_reach_their_own_eventfds(ctx: Context) -> Evidence:
    """On an e1000e (Intel 82574L datasheet 3.4: 10.2.4.3 ICS, 10.2.4.5 IMS, 10.2.4.8 IVAR), whose
    registers a reset takes back, too (10.2.6.1 RDBAL)."""
    ctx.modprobe("vfio-pci")
    with _plugged(ctx, "e1000e") as address, _opened(ctx, address) as (loop, function, _told):
        mmio = function.map(0)
        vectors = function.interrupts(InterruptKind.MSIX, 3)
        counts = [0] * len(vectors)
        for number, vector in enumerate(vectors):
            loop.watch(vector.handle, Event.READ, _counter(counts, number, vector.clear))
        mmio.write32(_IVAR, 0x0000_0A98)  # RxQ0 to vector 0, RxQ1 to 1, TxQ0 to 2; bit 3: valid
        mmio.write32(_EIAC, _RXQ0 | _RXQ1 | _TXQ0)
        mmio.write32(_IMS, _RXQ0 | _RXQ1 | _TXQ0)
        for cause, want in ((_RXQ1, [0, 1, 0]), (_TXQ0, [0, 1, 1]), (_RXQ0, [1, 1, 1])):
            mmio.write32(_ICS, cause)
            ctx.wait(lambda want=want: counts == want, f"interrupts {want}", turn=loop.step)  # type: ignore[misc]
        vectors[1].mask()
        mmio.write32(_IMS, _RXQ0 | _RXQ1)  # telling a cause has masked it in the device
        mmio.write32(_ICS, _RXQ1)
        mmio.write32(_ICS, _RXQ0)
        ctx.wait(lambda: counts == [2, 1, 1], "one of two, the other masked", turn=loop.step)
        for vector in vectors:
            loop.unwatch(vector.handle)
            vector.close()
        mmio.write32(_RDBAL, 0xABCD_0000)
        assert mmio.read32(_RDBAL) == 0xABCD_0000
        function.reset()
        assert mmio.read32(_RDBAL) == 0
        numbers = {"vectors": len(vectors), "interrupts": sum(counts)}
        return Evidence(driver=DRIVER, device=str(address), numbers=numbers)


@case(on=CARD, deadline_s=120)
def a_daemon_that_is_killed_resets_no_function(ctx: Context) -> Evidence:
    """The keeper's half holds the descriptors; a daemon works on copies, is killed, and the next
    one finds the device as it was. When the keeper lets go, it is disabled."""
    ctx.modprobe("vfio-pci")
    clock = LinuxClock()
    loop = Loop(clock)
    bus = LinuxPciBus(loop)
    held = HeldFunctions(loop)
    with _plugged(ctx, "e1000e") as address:
        try:
            bus.bind(address, DRIVER)
            first = _kept(ctx, loop, held, address)
            pid = os.fork()
            if pid == 0:  # the daemon
                _work_and_die(first, address)
            assert os.waitpid(pid, 0)[1] == signal.SIGKILL
            function = VfioHost(loop).adopt(address, _copies(_kept(ctx, loop, held, address)))
            master_before = function.read_config(0x04, 2) >> 2 & 1
            value = function.map(0).read32(_RDBAL)
            buffer = function.dma(_PAGE)  # at an address that the dead one had in use
            again_at = buffer.iova
            function.close()
            assert (master_before, value) == (1, 0x5A5A_0000), (master_before, hex(value))
            held.release(address)
            function = VfioHost(loop).open(address)
            value_after, master_after = (
                function.map(0).read32(_RDBAL),
                function.read_config(0x04, 2) >> 2 & 1,
            )
            function.close()
            assert (master_after, value_after) == (0, 0), (master_after, hex(value_after))
        finally:
            held.close()
            bus.restore()
            bus.close()
            loop.close()
            clock.close()
    return Evidence(driver=DRIVER, device=str(address), numbers={"iova": hex(again_at)})


@rig_case(deadline_s=180)
def interrupt_remapping_that_is_off_is_said(rig: Rig) -> Evidence:
    [guest] = rig.boot(_NO_REMAPPING)
    words = guest.call(_try_to_open)
    assert "interrupt remapping is off" in words, words
    assert "allow_unsafe_interrupts is N" in words, words
    return Evidence(driver=DRIVER, device=_EDU, numbers={"said": words})


def _try_to_open(ctx: Context) -> str:
    ctx.modprobe("vfio-pci")
    address = PciAddress.parse(ctx.pci(_EDU))
    clock = LinuxClock()
    loop = Loop(clock)
    bus = LinuxPciBus(loop)
    try:
        bus.bind(address, DRIVER)
        return _refusal(VfioHost(loop), address)
    finally:
        bus.restore()
        bus.close()
        loop.close()
        clock.close()


# --- what the cases share ---


@contextlib.contextmanager
def _opened(ctx: Context, address: PciAddress) -> Iterator[tuple[Loop, Any, list[PciEvent]]]:
    """A loop, the function bound and open, and what it told."""
    clock = LinuxClock()
    loop = Loop(clock)
    bus = LinuxPciBus(loop)
    told: list[PciEvent] = []
    try:
        bus.bind(address, DRIVER)
        function = VfioHost(loop).open(address)
        function.on_event(told.append)
        try:
            yield loop, function, told
        finally:
            function.close()
    finally:
        bus.restore()
        bus.close()
        loop.close()
        clock.close()


def _counter(counts: list[int], number: int, clear: Callable[[], int]) -> Callable[[Event], None]:
    def ready(_events: Event) -> None:
        counts[number] += clear()

    return ready


def _kept(ctx: Context, loop: Loop, held: HeldFunctions, address: PciAddress) -> VfioFds:
    got: list[VfioFds | HalError] = []
    held.submit_fds(address, got.append)
    ctx.wait(lambda: bool(got), "the keeper's descriptors", turn=loop.step)
    assert isinstance(got[0], VfioFds), got
    return got[0]


def _copies(fds: VfioFds) -> VfioFds:
    """As SCM_RIGHTS makes them."""
    return replace(
        fds,
        container_fd=os.dup(fds.container_fd),
        group_fd=os.dup(fds.group_fd),
        device_fd=os.dup(fds.device_fd),
    )


def _work_and_die(fds: VfioFds, address: PciAddress) -> NoReturn:
    """A daemon's life, in a process of its own: registers, a buffer, interrupts, SIGKILL."""
    loop = Loop(LinuxClock())
    function = VfioHost(loop).adopt(address, _copies(fds))
    mmio = function.map(0)
    mmio.write32(_RDBAL, 0x5A5A_0000)
    function.dma(_PAGE)
    function.interrupts(InterruptKind.MSIX, 2)
    if mmio.read32(_RDBAL) == 0x5A5A_0000:
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(1)


def _plug(ctx: Context, driver: str = "edu") -> PciAddress:
    before = {path.name for path in Path("/sys/bus/pci/devices").iterdir()}
    ctx.host("device_add", {"driver": driver, "id": "plugged", "bus": _PORT})

    def new() -> list[str]:
        now = {path.name for path in Path("/sys/bus/pci/devices").iterdir()}
        return sorted(now - before)

    ctx.wait(lambda: bool(new()), "the plugged function")
    [name] = new()
    return PciAddress.parse(name)


@contextlib.contextmanager
def _plugged(ctx: Context, driver: str = "edu") -> Iterator[PciAddress]:
    address = _plug(ctx, driver)
    # QEMU's devices keep their registers over a change of the power state, which would be first
    Path(f"/sys/bus/pci/devices/{address}/reset_method").write_text("bus")
    try:
        yield address
    finally:
        ctx.host("device_del", {"id": "plugged"})
        Path(f"/sys/bus/pci/slots/{_SLOT}/power").write_text("0")
        ctx.host_event("DEVICE_DELETED", device="plugged")


def _refusal(host: VfioHost, address: PciAddress) -> str:
    try:
        host.open(address).close()
    except Unavailable as exc:
        return str(exc)
    raise AssertionError(f"{address} was opened")
