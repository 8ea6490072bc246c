"""A PCI function as the hardware under a driver: config space, regions, interrupts, DMA, a link.

A `PciModel` is made by whoever builds the virtual world and lives in the kernel; it outlives those
who open it. A device is a subclass with its registers (`pci_edu.py`). Faults are methods here:

    remove, link          gone for good or for a while: all ones, writes vanish (faults P1 to P3)
    bars                  entries may be taken out or made smaller: another module than described
    lose_writes           the next writes to a region vanish (a lost doorbell, fault P7)
    lose_interrupts       the next interrupts vanish
    storm                 interrupts out of nowhere
    error                 the AER capability counts one (faults P4 to P6)
    group                 an IOMMU group that it shares with functions of other drivers
    fail_reset            the next reset does not help

Not modelled: posted writes (a write has arrived when it returns), completion time-outs, byte
enables, memory types, peer-to-peer DMA, power states.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Protocol

from hal.pci_ports import (
    AerCounts,
    InterruptKind,
    PciAddress,
    PciDevice,
    PciEvent,
    PciEventKind,
    PciLink,
)

if TYPE_CHECKING:
    from hal.mock.kernel import VirtualKernel
    from hal.mock.pci_bus import PciTree

CONFIG_SHORT_BYTES: Final = 256
STORM_LIMIT: Final = 1_000_000  # interrupts of one storm
COMMAND: Final = 0x04  # PCI 3.0, 6.2.2
COMMAND_MASTER: Final = 1 << 2
VFIO_DRIVER: Final = "vfio-pci"
RESET_NS: Final = 100_000_000  # PCI Express Base 6.6.1: a device needs up to 100 ms
_IDS: Final = struct.Struct("<HHHHB3s")  # vendor, device, command, status, revision, class


class Holder(Protocol):
    """Who has the function open: `MockPciFunction`."""

    def interrupt(self, kind: InterruptKind, vector: int) -> None: ...

    def dma_read(self, iova: int, length: int) -> bytes | None: ...

    def dma_write(self, iova: int, data: bytes) -> bool: ...

    def want_removed(self) -> None: ...


class PciModel:
    """One function. Registers are the subclass's: `read` and `write`."""

    def __init__(
        self,
        kernel: VirtualKernel,
        name: str,
        address: str,
        *,
        vendor_id: int,
        device_id: int,
        class_code: int,
        revision: int = 0,
        bars: dict[int, int],
        vectors: dict[InterruptKind, int],
        dma_bits: int = 64,
        config_bytes: int = CONFIG_SHORT_BYTES,
    ) -> None:
        """`bars` is index -> bytes; `vectors` how many of each kind it can raise."""
        self.kernel, self.name = kernel, name
        self.address = PciAddress.parse(address)
        self.bars, self.vectors, self.dma_bits = dict(bars), dict(vectors), dma_bits
        self.present = True
        self.link_up = True
        self.ejecting = False
        self.holder: Holder | None = None
        self.tree: PciTree | None = None  # set when it is put in
        self.group = 0  # of the IOMMU; the tree's number unless functions share one
        self.driver = VFIO_DRIVER
        self.parent: PciAddress | None = None
        self.slot = ""
        self.trained: PciLink | None = None
        self.aer = AerCounts()
        self.resets = 0
        self.fail_reset = False
        self.lost_writes = 0
        self.lost_interrupts = 0
        self.dma_faults = 0  # accesses to addresses that were not mapped
        self.enabled: InterruptKind | None = None  # what the holder has switched on
        self._lose_writes = 0
        self._lose_interrupts = 0
        self.config = bytearray(config_bytes)
        _IDS.pack_into(
            self.config, 0, vendor_id, device_id, 0, 0, revision, class_code.to_bytes(3, "little")
        )

    # --- registers: the subclass's ---

    def read(self, bar: int, offset: int, width: int) -> int:
        """One access of 4 or 8 bytes within the BAR."""
        raise NotImplementedError

    def write(self, bar: int, offset: int, width: int, value: int) -> None:
        raise NotImplementedError

    def power_on(self) -> None:
        """Registers as after a reset."""
        raise NotImplementedError

    def line(self) -> bool:
        """Does it hold its INTx line up?"""
        return False

    # --- what happens to it ---

    @property
    def answers(self) -> bool:
        return self.present and self.link_up

    def remove(self) -> None:
        """Pulled out without a word."""
        if self.present:
            self.present = False
            self.kernel.note(self.name, "remove")
            self._tell(PciEventKind.REMOVED)

    def insert(self) -> None:
        """Another one of its kind is put in."""
        self.present = self.link_up = True
        self.power_on()
        self.kernel.note(self.name, "insert")
        self._tell(PciEventKind.ADDED)

    def eject(self) -> None:
        """An orderly removal: its holder is asked, and it goes when it has been closed."""
        if self.holder is None:
            self.remove()
        else:
            self.ejecting = True
            self.holder.want_removed()

    def link(self, up: bool) -> None:
        """The link goes down, or comes up again. What is in the device stays as it is."""
        self.link_up = up
        self.kernel.note(self.name, "link", str(up))
        self._tell(PciEventKind.LINK, text="up" if up else "down")

    def train(self, speed_mts: int, width: int) -> None:
        """The link settles at another speed or width, as a bad contact makes it."""
        best = self.trained
        if best is None:
            raise ValueError(f"{self.name} has no link")
        self.trained = PciLink(
            speed_mts=speed_mts,
            width=width,
            max_speed_mts=best.max_speed_mts,
            max_width=best.max_width,
        )
        self.kernel.note(self.name, "train", f"{speed_mts} x{width}")
        self._tell(PciEventKind.LINK, text=f"{speed_mts} MT/s x{width}")

    def error(self, kind: PciEventKind, count: int = 1) -> None:
        """The link tells errors: AER_CORRECTABLE, AER_NONFATAL or AER_FATAL."""
        field = kind.value.removeprefix("aer_")
        self.aer = replace(self.aer, **{field: getattr(self.aer, field) + count})
        self.kernel.note(self.name, kind.value, str(count))
        self._tell(kind, count=count)

    def lose_writes(self, count: int) -> None:
        """So many of the next writes to any region vanish."""
        self._lose_writes = count

    def lose_interrupts(self, count: int) -> None:
        """So many of its next interrupts vanish."""
        self._lose_interrupts = count

    def storm(self, vector: int, period_ns: int, count: int) -> Callable[[], None]:
        """Interrupts out of nowhere; returns what ends them."""
        if not 0 < count <= STORM_LIMIT or period_ns <= 0:
            raise ValueError(
                f"a storm of {count} interrupts every {period_ns} ns; want 1..{STORM_LIMIT}"
            )
        left = [count]

        def blow() -> None:
            if left[0] > 0:
                left[0] -= 1
                self.interrupt(vector)
                self.kernel.after(period_ns, blow)

        def stop() -> None:
            left[0] = 0

        self.kernel.note(self.name, "storm", f"{vector} {count}")
        self.kernel.after(period_ns, blow)
        return stop

    # --- for its holder ---

    def access(self, bar: int, offset: int, width: int, value: int | None) -> int:
        """One read, or write of `value`, as the fabric carries it: all ones if nobody is there."""
        ones: int = (1 << 8 * width) - 1
        if value is None:
            return self.read(bar, offset, width) & ones if self.answers else ones
        if self._lose_writes > 0 or not self.answers:
            self._lose_writes = max(0, self._lose_writes - 1)
            self.lost_writes += 1
        else:
            self.write(bar, offset, width, value)
        return 0

    def read_config(self, offset: int, width: int) -> int:
        if not self.answers:
            return (1 << 8 * width) - 1
        return int.from_bytes(self.config[offset : offset + width], "little")

    def write_config(self, offset: int, width: int, value: int) -> None:
        """The command register alone can be written; the rest is as it is on a real function
        under VFIO for what we use."""
        if self.answers and offset == COMMAND and width == 2:
            self.config[COMMAND : COMMAND + 2] = value.to_bytes(2, "little")

    def reset(self) -> bool:
        """False when the device did not come back."""
        if not self.answers or self.fail_reset:
            self.fail_reset = False
            return False
        self.resets += 1
        self.power_on()
        self.kernel.note(self.name, "reset")
        return True

    # --- for the subclass ---

    def interrupt(self, vector: int = 0) -> None:
        """Raise one, of the kind that is switched on."""
        kind = self.enabled
        if self.holder is None or kind is None or not self.answers:
            return
        if kind is not InterruptKind.INTX and not self._master:
            return  # a message is a write of its own
        if self._lose_interrupts > 0:
            self._lose_interrupts -= 1
            self.lost_interrupts += 1
            return
        self.holder.interrupt(kind, vector)

    def dma_read(self, iova: int, length: int) -> bytes:
        """From the host's memory; all ones for what isn't mapped."""
        data = None
        if self.holder is not None and self._may_dma(iova, length):
            data = self.holder.dma_read(iova, length)
        if data is None:
            self.dma_faults += 1
            return b"\xff" * length
        return data

    def dma_write(self, iova: int, data: bytes) -> None:
        """Into the host's memory; lost for what isn't mapped."""
        may = self.holder is not None and self._may_dma(iova, len(data))
        if not may or self.holder is None or not self.holder.dma_write(iova, data):
            self.dma_faults += 1

    def _may_dma(self, iova: int, length: int) -> bool:
        return self.answers and self._master and iova + length <= 1 << self.dma_bits

    # --- for the bus ---

    def group_members(self) -> list[PciModel]:
        """All that share its IOMMU group, itself among them."""
        return [self] if self.tree is None else self.tree.group(self.group)

    def described(self) -> PciDevice:
        """As a scan finds it."""
        ids = _IDS.unpack_from(self.config, 0)
        here = self.trained
        if here is not None and not self.link_up:
            here = replace(here, speed_mts=0, width=0)
        return PciDevice(
            address=self.address,
            vendor_id=ids[0],
            device_id=ids[1],
            subsystem_vendor_id=0,
            subsystem_device_id=0,
            class_code=int.from_bytes(ids[5], "little"),
            revision=ids[4],
            driver=self.driver,
            iommu_group=self.group,
            numa_node=None,
            parent=self.parent,
            link=here,
            slot=self.slot,
            bar_bytes=tuple(self.bars.get(index, 0) for index in range(6)),
            aer=self.aer if len(self.config) > CONFIG_SHORT_BYTES else None,
        )

    def released(self) -> None:
        """Its holder has closed it."""
        self.holder = None
        if self.ejecting:
            self.ejecting = False
            self.remove()

    def _tell(self, kind: PciEventKind, *, text: str = "", count: int = 1) -> None:
        if self.tree is not None:
            self.tree.tell(
                PciEvent(kind=kind, address=self.address, slot=self.slot, count=count, text=text)
            )

    @property
    def _master(self) -> bool:
        return bool(self.config[COMMAND] & COMMAND_MASTER)
