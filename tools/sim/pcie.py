"""The PCIe of a simulated card: a port for each slot, and behind it what the slot's module shows.

A module's function is there while its power is good and its link is trained, as on a host whose
slots are hot-plug slots: it goes when the power goes and comes TRAIN_NS after it. What a fault does
to a link is done here, and the window (`hal.mock.window`), whose memory is behind that link, goes
with it.

Not modelled: buses that are numbered anew, the registers of BARs (windows are models of their own).
"""

from collections.abc import Sequence
from typing import Final

from firmware.board_hardware import SlotPcie
from firmware.board_types import Slot as BoardSlot
from hal.errors import Refused
from hal.mock.kernel import VirtualKernel
from hal.mock.node import Node
from hal.mock.pci_bus import MockPciBus, MockPort
from hal.mock.pci_device import PciModel
from hal.pci_ports import PciBus, PciEvent, PciEventKind, PciLink
from tools.sim.module import SimModule

MS: Final = 1_000_000
TRAIN_NS: Final = 100 * MS  # PCI Express Base 6.6.1: until a function must answer
FIRST_BUS: Final = 3  # of what is behind the first port
ENDPOINT_CLASS: Final = 0x120000  # a processing accelerator
CONFIG_BYTES: Final = 4096
AER_AT, DPC_AT = 0x100, 0x150  # in a port's config space
AER_HEADER: Final = 0x0001 | 2 << 16 | DPC_AT << 20  # 7.8.4: id, version, next
DPC_HEADER: Final = 0x001D | 1 << 16  # 7.9.15
UNCORRECTABLE_STATUS: Final = AER_AT + 0x04
UNCORRECTABLE_SEVERITY: Final = AER_AT + 0x0C
CORRECTABLE_STATUS: Final = AER_AT + 0x10
DPC_STATUS: Final = DPC_AT + 0x08
TRIGGERED_BY_FATAL: Final = 1 | 2 << 1  # 7.9.15.4: triggered, reason ERR_FATAL
SEVERITY_DEFAULT: Final = 0x0046_2030  # 7.8.4.4: what is fatal unless somebody says otherwise


class ModuleFunction(PciModel):
    """What a module shows on the bus. Nobody opens it: the daemon only watches."""

    def read(self, bar: int, offset: int, width: int) -> int:
        """Its window is a model of its own."""
        raise Refused(f"{self.name}: BAR {bar} is not modelled")

    def write(self, bar: int, offset: int, width: int, value: int) -> None:
        raise Refused(f"{self.name}: BAR {bar} is not modelled")

    def power_on(self) -> None:
        """Nothing of it is modelled that a power cycle would change."""


class SlotFabric:
    """One slot's port, its link and the function behind it."""

    def __init__(
        self, kernel: VirtualKernel, module: SimModule, pcie: SlotPcie, bus: int, window_bytes: int
    ) -> None:
        self._kernel, self._module, self._wanted = kernel, module, pcie
        self.port = MockPort(kernel, f"{module.id}-port", pcie.port, link=_idle(pcie))
        self._write(self.port, AER_AT, AER_HEADER)
        self._write(self.port, DPC_AT, DPC_HEADER)
        self._write(self.port, UNCORRECTABLE_SEVERITY, SEVERITY_DEFAULT)
        self.function = ModuleFunction(
            kernel,
            f"{module.id}-function",
            f"0000:{bus:02x}:00.0",
            vendor_id=0x1AF4,
            device_id=0x1110,
            class_code=ENDPOINT_CLASS,
            bars={2: window_bytes},
            vectors={},
            config_bytes=CONFIG_BYTES,
        )
        self.function.parent, self.function.driver = self.port.address, ""
        self.function.slot = str(module.slot.slot)
        self.function.present = False
        self.holds: set[str] = set()  # why the link is held down: ids of faults
        self._powered = 0  # how often; a link that trained for an earlier one is none
        kernel.pci.add(self.port)
        kernel.pci.add(self.function)
        kernel.pci.add_slot(self.function.slot, str(self.function.address))
        module.slot.on_power = self._on_power

    @property
    def up(self) -> bool:
        """Does the module answer on the bus?"""
        return self.function.answers and self._trained_now

    def _on_power(self, good: bool) -> None:
        self._powered += 1
        if good:
            count = self._powered
            self._kernel.after(TRAIN_NS, lambda: self._trained(count))
            return
        self.function.remove()
        self._train(False)

    def _trained(self, count: int) -> None:
        if count == self._powered and not self.holds:
            self._come()

    def _come(self) -> None:
        self._train(True)
        if not self.function.present:
            self.function.insert()
        self.function.link_up = True

    # --- faults ---

    def hold_down(self, why: str) -> None:
        """The link goes down and stays so until `let_go(why)`; the window is out of reach."""
        self.holds.add(why)
        self.function.link_up = False
        self._train(False)
        self._module.window.cut()

    def let_go(self, why: str) -> None:
        """The link trains again, unless something else holds it, or the module is off."""
        self.holds.discard(why)
        if self.holds:
            return
        self._module.window.cut(False)
        if self._module.slot.power_good:
            self._come()

    def contain(self, on: bool) -> None:
        """DPC: the port cuts off what is below it after a fatal error, or is released again."""
        value = TRIGGERED_BY_FATAL | self._requester << 16 if on else 0
        self._write(self.port, DPC_STATUS, value)

    def status(self, offset: int, bits: int) -> None:
        """A status register of the port's AER capability, as it reads from now on."""
        self._write(self.port, offset, bits)

    def tell(self, kind: PciEventKind, text: str = "", *, count: int = 1) -> None:
        """What the kernel says of the function."""
        function = self.function
        self._kernel.note(function.name, kind.value, str(count))
        self._kernel.pci.tell(
            PciEvent(
                kind=kind, address=function.address, slot=function.slot, count=count, text=text
            )
        )

    @property
    def _trained_now(self) -> bool:
        return self.port.trained is not None and self.port.trained.speed_mts > 0

    def _train(self, up: bool) -> None:
        """The port's link; the port itself answers, whatever that does."""
        if up is not self._trained_now:
            wanted = self._wanted
            self.port.train(wanted.speed_mtps if up else 0, wanted.width if up else 0)

    @property
    def _requester(self) -> int:
        at = self.function.address
        return at.bus << 8 | at.device << 3 | at.function

    def _write(self, model: PciModel, offset: int, value: int) -> None:
        model.config[offset : offset + 4] = value.to_bytes(4, "little")


def _idle(pcie: SlotPcie) -> PciLink:
    """Of a port with nothing behind it."""
    return PciLink(speed_mts=0, width=0, max_speed_mts=pcie.speed_mtps, max_width=pcie.width)


class SimPcie:
    """The slots' fabrics by their modules' ids."""

    def __init__(
        self, kernel: VirtualKernel, slots: Sequence[BoardSlot], modules: dict[str, SimModule]
    ) -> None:
        self._kernel = kernel
        self.fabrics = {
            slot.id: SlotFabric(
                kernel, modules[slot.id], slot.pcie, FIRST_BUS + index, slot.window_bytes
            )
            for index, slot in enumerate(slots)
            if slot.pcie is not None
        }

    def open(self, node: Node) -> PciBus:
        """The host's bus as that node sees it."""
        return MockPciBus(node, self._kernel.pci)
