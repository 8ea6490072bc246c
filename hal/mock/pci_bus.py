"""The PCI functions of a virtual host: `hal.pci_ports.PciBus`, and the tree that it shows.

A `PciTree` is the host's; functions (`PciModel`) are put in and pulled out of it. Bridges are
functions too: they have no registers here, only an address, a link and what hangs below them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from hal.errors import Absent, Refused, Unavailable
from hal.mock.later import run_later
from hal.mock.pci_device import VFIO_DRIVER, PciModel
from hal.pci_ports import (
    PciAddress,
    PciDevice,
    PciEvent,
    PciEventKind,
    PciLink,
    PciSlot,
)
from hal.ports import Done

if TYPE_CHECKING:
    from hal.mock.kernel import VirtualKernel
    from hal.mock.node import Node

SCAN_NS: Final = 5_000_000
BIND_NS: Final = 20_000_000  # a driver's probe
BRIDGE_CLASS: Final = 0x060400
BRIDGE_DRIVER: Final = "pcieport"
GEN5: Final = PciLink(speed_mts=32_000, width=16, max_speed_mts=32_000, max_width=16)


class PciTree:
    """All functions of one host, present or not, and its slots."""

    def __init__(self) -> None:
        self.models: dict[str, PciModel] = {}  # by name
        self.slots: dict[str, PciSlot] = {}
        self.drivers = {VFIO_DRIVER, BRIDGE_DRIVER}  # that this host's kernel has
        self.buses: list[MockPciBus] = []

    def add(self, model: PciModel) -> PciModel:
        """Put a function in; it has an IOMMU group of its own. Raises Refused for a name or an
        address that is taken."""
        for other in self.models.values():
            if other.name == model.name or other.address == model.address:
                raise Refused(f"{model.name} at {model.address}: {other.name} is there already")
        model.tree, model.group = self, len(self.models)
        self.models[model.name] = model
        return model

    def add_slot(self, name: str, address: str) -> None:
        """A hot-plug slot for the function at that address."""
        at = PciAddress.parse(address)
        self.slots[name] = PciSlot(
            name=name, domain=at.domain, bus=at.bus, device=at.device, powered=True, present=None
        )

    def at(self, address: PciAddress) -> PciModel:
        """Raises Absent for an address where nothing answers."""
        for model in self.models.values():
            if model.address == address and model.present:
                return model
        raise Absent(f"{address}: no such PCI function")

    def group(self, number: int) -> list[PciModel]:
        return [model for model in self.models.values() if model.group == number]

    def tell(self, event: PciEvent) -> None:
        """To all who listen."""
        for bus in self.buses:
            bus.tell(event)


class MockPort(PciModel):
    """A root or downstream port: a bridge to one slot."""

    def __init__(
        self, kernel: VirtualKernel, name: str, address: str, *, link: PciLink = GEN5
    ) -> None:
        super().__init__(
            kernel,
            name,
            address,
            vendor_id=0x1B36,
            device_id=0x000C,  # QEMU's pcie-root-port
            class_code=BRIDGE_CLASS,
            bars={},
            vectors={},
            config_bytes=4096,
        )
        self.driver = BRIDGE_DRIVER
        self.trained = link

    def read(self, bar: int, offset: int, width: int) -> int:
        """It has no BAR."""
        raise Refused(f"{self.name} has no BAR {bar}")

    def write(self, bar: int, offset: int, width: int, value: int) -> None:
        raise Refused(f"{self.name} has no BAR {bar}")

    def power_on(self) -> None:
        """Nothing of it is lost."""


class MockPciBus:
    """`hal.pci_ports.PciBus` as one node sees it."""

    def __init__(self, node: Node, tree: PciTree) -> None:
        self._node, self._tree = node, tree
        self._call: Callable[[PciEvent], None] | None = None
        self._before: dict[PciAddress, str] = {}
        self.scans = 0

    def scan(self) -> Sequence[PciDevice]:
        self.scans += 1
        found = [model.described() for model in self._tree.models.values() if model.present]
        return sorted(found, key=lambda device: device.address)

    def submit_scan(self, deadline_ns: int, done: Done[Sequence[PciDevice]]) -> None:
        """What there is now, told when a host's files would have been read: what happens
        meanwhile is not in it."""
        found = self.scan()
        run_later(self._node, SCAN_NS, deadline_ns, lambda: found, done)

    def config(self, address: PciAddress) -> bytes:
        model = self._tree.at(address)
        return bytes(model.config) if model.answers else b"\xff" * len(model.config)

    def slots(self) -> Sequence[PciSlot]:
        return [
            replace(slot, present=self._in(slot) is not None)
            for _, slot in sorted(self._tree.slots.items())
        ]

    def power_slot(self, name: str, on: bool) -> None:
        slot = self._tree.slots.get(name)
        if slot is None:
            known = ", ".join(sorted(self._tree.slots)) or "none"
            raise Absent(f"slot {name!r}: no such slot; known: {known}")
        if slot.powered == on:
            return
        self._tree.slots[name] = replace(slot, powered=on)
        for model in self._tree.models.values():
            at = model.address
            if (at.domain, at.bus, at.device) == (slot.domain, slot.bus, slot.device):
                if on:
                    model.insert()
                else:
                    model.remove()
        self._tree.tell(
            PciEvent(kind=PciEventKind.SLOT, address=None, slot=name, text=f"powered {on}")
        )

    def on_event(self, call: Callable[[PciEvent], None]) -> None:
        if self._call is None:
            self._tree.buses.append(self)
            self._node.on_death.append(self.close)
        self._call = call

    def bind(self, address: PciAddress, driver: str) -> None:
        model = self._tree.at(address)
        if model.driver == driver:
            return
        if driver not in self._tree.drivers:
            raise Unavailable(f"{address}: no driver {driver} in this kernel: modprobe {driver}")
        self._before.setdefault(address, model.driver)
        self._give(model, driver)

    def submit_bind(
        self, address: PciAddress, driver: str, deadline_ns: int, done: Done[None]
    ) -> None:
        run_later(self._node, BIND_NS, deadline_ns, lambda: self.bind(address, driver), done)

    def restore(self) -> None:
        before, self._before = self._before, {}
        for model in self._tree.models.values():
            if model.present and model.address in before:
                self._give(model, before[model.address])

    def submit_restore(self, deadline_ns: int, done: Done[None]) -> None:
        """`restore`, off the loop's thread."""
        run_later(self._node, BIND_NS, deadline_ns, self.restore, done)

    def close(self) -> None:
        self._call = None
        if self in self._tree.buses:
            self._tree.buses.remove(self)
            if self.close in self._node.on_death:
                self._node.on_death.remove(self.close)

    def tell(self, event: PciEvent) -> None:
        """For the tree: completes on the loop, as an announcement of a kernel does."""
        self._node.poster()(lambda: self._call(event) if self._call is not None else None)

    def _give(self, model: PciModel, driver: str) -> None:
        if model.driver != driver:
            model.driver = driver
            model.kernel.note(model.name, "driver", driver)
            self._tree.tell(
                PciEvent(
                    kind=PciEventKind.BOUND, address=model.address, slot=model.slot, text=driver
                )
            )

    def _in(self, slot: PciSlot) -> PciModel | None:
        for model in self._tree.models.values():
            at = model.address
            if model.present and (at.domain, at.bus, at.device) == (
                slot.domain,
                slot.bus,
                slot.device,
            ):
                return model
        return None
