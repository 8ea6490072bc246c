"""Functions that come and go while the machine runs, through pciehp, the kernel's own driver of
hot-plug ports. Ref: PCI Express Base Specification, "PCI Express Hot-Plug Support"; kernel,
drivers/pci/hotplug/pciehp_ctrl.c.

QEMU's removal is orderly: `device_del` presses the slot's attention button, the kernel waits five
seconds for a second press, takes the driver off and the power away. Where a case can't wait so
long a hundred times, it asks for the power itself, as an operator at the slot would.
"""

import statistics
from typing import Final

from firmware.loop import Loop
from hal.linux.clock import LinuxClock
from hal.linux.pci_bus import LinuxPciBus
from hal.pci_ports import PciAddress, PciDevice, PciEvent, PciEventKind
from tests.hil.case import Context, Evidence, case
from tests.hil.health import Health
from tests.hil.machines import CARD

_PORT: Final = "0000:00:1c.1"  # port2 of the machine; its slot has the same number
_SLOT: Final = "2"
_EDU: Final = (0x1234, 0x11E8)  # QEMU, docs/specs/edu: the ids
_ADDRESS: Final = "0000:02:00.0"  # of what is in it: the second port's bus
_EDU_BAR_BYTES: Final = 1 << 20
_ROUNDS: Final = 100
_WARM: Final = 3  # rounds before memory is compared: caches and interned strings
_RSS_KIB: Final = 512  # what may come and go of an allocator's arenas; not a leak's 100 rounds


class _Bench:
    """A bus that is watched, and what it told."""

    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx
        self.clock = LinuxClock()
        self.loop = Loop(self.clock)
        self.bus = LinuxPciBus(self.loop)
        self.told: list[PciEvent] = []
        self.bus.on_event(self.told.append)

    def close(self) -> None:
        self.bus.close()
        self.loop.close()
        self.clock.close()

    def plug(self) -> tuple[PciDevice, int]:
        """The function as it was discovered, and how many ms that took after QEMU's answer."""
        self.told.clear()
        self.ctx.host("device_add", {"driver": "edu", "id": "plugged", "bus": "port2"})
        took_ms = self._until(PciEventKind.ADDED)
        address = self._about(PciEventKind.ADDED)
        device = next(d for d in self.bus.scan() if d.address == address)
        assert str(device.address) == _ADDRESS, device
        assert (device.vendor_id, device.device_id) == _EDU, device
        assert str(device.parent) == _PORT, device
        assert device.slot == _SLOT, device
        assert device.bar_bytes[0] == _EDU_BAR_BYTES, device
        return device, took_ms

    def unplug(self, *, by_button: bool) -> int:
        """Milliseconds from the request until its removal was told."""
        self.told.clear()
        self.ctx.host("device_del", {"id": "plugged"})
        if not by_button:
            self.bus.power_slot(_SLOT, on=False)
        took_ms = self._until(PciEventKind.REMOVED)
        address = self._about(PciEventKind.REMOVED)
        self.ctx.host_event("DEVICE_DELETED", device="plugged")
        assert address not in {d.address for d in self.bus.scan()}
        return took_ms

    def _until(self, kind: PciEventKind) -> int:
        return self.ctx.wait(
            lambda: any(event.kind == kind for event in self.told),
            f"an event {kind.value} of the bus (told: {[e.kind.value for e in self.told]})",
            turn=self.loop.step,
        )

    def _about(self, kind: PciEventKind) -> PciAddress:
        found = [event.address for event in self.told if event.kind == kind]
        assert len(found) == 1, f"told {len(found)} times that a function was {kind.value}: {found}"
        assert found[0] is not None
        return found[0]


@case(on=CARD, smoke=True)
def a_function_is_discovered_when_plugged_and_when_its_button_is_pressed(ctx: Context) -> Evidence:
    bench = _Bench(ctx)
    try:
        _, added_ms = bench.plug()
        removed_ms = bench.unplug(by_button=True)
    finally:
        bench.close()
    return Evidence(
        driver=f"{ctx.driver(_PORT)} (pciehp)",
        device=_ADDRESS,
        numbers={"discovered_ms": added_ms, "removed_ms": removed_ms},
    )


@case(on=CARD, deadline_s=420)
def a_function_comes_and_goes_a_hundred_times_and_leaves_nothing(ctx: Context) -> Evidence:
    bench = _Bench(ctx)
    added_ms: list[int] = []
    try:
        for _ in range(_WARM):
            bench.plug()
            bench.unplug(by_button=False)
        before = Health.at_rest()
        for number in range(1, _ROUNDS + 1):
            device, took_ms = bench.plug()
            added_ms.append(took_ms)
            assert device.iommu_group is not None
            bench.unplug(by_button=False)
            if number % 20 == 0:
                ctx.log(f"    {number} times")
        after = Health.at_rest()
    finally:
        bench.close()
    assert before.worse(after) == []
    grown_kib = after.rss_kib - before.rss_kib
    assert grown_kib <= _RSS_KIB, f"{grown_kib} KiB more after {_ROUNDS} rounds"
    return Evidence(
        driver=f"{ctx.driver(_PORT)} (pciehp)",
        device=_ADDRESS,
        numbers={
            "rounds": len(added_ms),
            "discovered_ms_median": int(statistics.median(added_ms)),
            "discovered_ms_max": max(added_ms),
            "descriptors": after.descriptors,
            "iommu_groups": after.groups,
            "rss_grown_kib": grown_kib,
        },
    )
