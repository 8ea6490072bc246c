"""`hal.pci_ports.PciFunction` on a model of a device (`pci_device.py`), as one node has it open.

Regions, DMA maps and interrupts live here; a node that dies leaves the device closed, as the end
of a process does. Bounds, order and errors are those of the Linux backend: one contract suite
judges both.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from hal.errors import Absent, DeviceGone, HalError, InterruptStorm, Refused, StoreFull, Unavailable
from hal.interrupt_rate import InterruptRate, RateLimit
from hal.iova import IovaAllocator
from hal.mock.later import run_later
from hal.mock.node import READ
from hal.mock.pci_device import COMMAND, COMMAND_MASTER, RESET_NS, VFIO_DRIVER, PciModel
from hal.pci_ports import (
    PAGE_BYTES,
    InterruptKind,
    PciAddress,
    PciEvent,
    PciEventKind,
    PciRegion,
)
from hal.ports import Buffer, Done

if TYPE_CHECKING:
    from hal.mock.node import Node

REGIONS: Final = 7  # BAR 0 to 5 and the ROM
IOVA_RANGES: Final = ((0, 0xFEDF_FFFF), (0xFEF0_0000, (1 << 39) - 1))  # as an Intel IOMMU of a q35
DMA_LIMIT_BYTES: Final = 64 << 20  # pinned memory of one function
COPY_BYTES: Final = 4
DEFAULT_LIMIT: Final = RateLimit()
HARMLESS: Final = frozenset({"", VFIO_DRIVER})  # what leaves an IOMMU group usable
_COMMAND_MEMORY: Final = 1 << 1


class MockRegion:
    """`hal.pci_ports.Mmio`: each access goes to the model."""

    def __init__(self, owner: MockPciFunction, bar: int, size_bytes: int) -> None:
        self._owner, self._bar, self._size = owner, bar, size_bytes
        self._name = f"{owner.address} BAR {bar}"
        self._open = True

    @property
    def size_bytes(self) -> int:
        return self._size if self._open else 0

    def read32(self, offset: int) -> int:
        return self._read(offset, 4)

    def write32(self, offset: int, value: int) -> None:
        self._write(offset, 4, value)

    def read64(self, offset: int) -> int:
        return self._read(offset, 8)

    def write64(self, offset: int, value: int) -> None:
        self._write(offset, 8, value)

    def barrier(self) -> None:
        """A write has arrived when it returns."""

    def copy_to(self, offset: int, data: Buffer) -> None:
        source = bytes(data)
        self._check("write", offset, len(source), COPY_BYTES)
        for at, (word,) in enumerate(struct.iter_unpack("<I", source)):
            self._owner.model.access(self._bar, offset + 4 * at, 4, word)

    def copy_from(self, offset: int, length: int) -> bytes:
        self._check("read", offset, length, COPY_BYTES)
        words = [
            self._owner.model.access(self._bar, offset + at, 4, None)
            for at in range(0, length, COPY_BYTES)
        ]
        data = struct.pack(f"<{len(words)}I", *words)
        if data and data.count(0xFF) == len(data):
            self._owner.check_present(f"{self._name}: {length} B at {offset:#x}")
        return data

    def close(self) -> None:
        if self._open:
            self._open = False
            self._owner.closed_region(self._bar)

    def _read(self, offset: int, width: int) -> int:
        self._check("read", offset, width, width)
        value = self._owner.model.access(self._bar, offset, width, None)
        if value == (1 << 8 * width) - 1:
            self._owner.check_present(f"{self._name}: read at {offset:#x}")
        return value

    def _write(self, offset: int, width: int, value: int) -> None:
        self._check("write", offset, width, width)
        if not 0 <= value < 1 << 8 * width:
            raise Refused(f"{self._name}: value {value:#x} does not fit {8 * width} bits")
        self._owner.model.access(self._bar, offset, width, value)

    def _check(self, what: str, offset: int, length: int, align: int) -> None:
        where = f"{self._name}: {what} of {length} B at offset {offset:#x}"
        if not self._open:
            raise Refused(f"{where}: it was closed")
        if self._owner.blocked:
            self._owner.refuse()
        if length < 0 or not 0 <= offset <= self._size - length:
            raise Refused(f"{where} is outside its {self._size} B")
        if offset % align or length % COPY_BYTES:
            raise Refused(f"{where}: not aligned to {align}")


class MockDmaBuffer:
    """`hal.pci_ports.DmaBuffer`."""

    def __init__(self, owner: MockPciFunction, iova: int, size_bytes: int) -> None:
        self._owner = owner
        self.iova, self.size_bytes = iova, size_bytes
        self.memory = bytearray(size_bytes)
        self.view = memoryview(self.memory)
        self._open = True

    def close(self) -> None:
        if self._open:
            self._open = False
            self._owner.closed_buffer(self)
            self.view.release()


class MockInterrupt:
    """`hal.pci_ports.Interrupt`."""

    def __init__(self, owner: MockPciFunction, kind: InterruptKind, vector: int) -> None:
        self._owner, self._kind, self._vector = owner, kind, vector
        node = owner.node
        self._handle = node.kernel.open_handle(node, self, self.close)
        self._rate = InterruptRate(owner.limit, node.clock.now_ns())
        self._came = 0
        self._open = True
        self.masked = False

    @property
    def handle(self) -> int:
        return self._handle.number

    @property
    def total(self) -> int:
        """All that were cleared since it was made."""
        return self._rate.total

    def clear(self) -> int:
        if not self._open:
            raise Refused(f"{self._owner.address} vector {self._vector}: it was closed")
        number, self._came = self._came, 0
        self._handle.set(0)
        if number and self._rate.count(number, self._owner.node.clock.now_ns()):
            self.mask()
            name = f"{self._owner.address} {self._kind.value} vector {self._vector}"
            raise InterruptStorm(f"{name}: {self._rate.text(number)}")
        return number

    def mask(self) -> None:
        self.masked = True

    def unmask(self) -> None:
        self.masked = False
        if self._kind is InterruptKind.INTX and self._owner.model.line():
            self.arrive()

    def close(self) -> None:
        if self._open:
            self._open = False
            self._owner.node.kernel.close_handle(self._handle)
            self._owner.closed_vector(self._vector)

    def arrive(self) -> None:
        """For the function: the device has raised it."""
        if self._open and not self.masked:
            self._came += 1
            self.masked = self._kind is InterruptKind.INTX  # the host masks a level
            self._handle.set(READ)


class MockPciFunction:
    """`hal.pci_ports.PciFunction`."""

    def __init__(self, node: Node, model: PciModel, limit: RateLimit = DEFAULT_LIMIT) -> None:
        """Raises Absent (nothing is there) and Unavailable: another driver has it or something
        else of its IOMMU group, or it is open already."""
        if not model.answers:
            raise Absent(f"{model.address}: no such PCI function")
        _check_viable(model)
        if model.holder is not None:
            raise Unavailable(f"{model.address} is open already; only one may drive it")
        self.node, self.model, self.limit = node, model, limit
        self.blocked = ""
        self._gone = False
        self._closed = False
        self._on_event: Callable[[PciEvent], None] = lambda _event: None
        self._regions: dict[int, MockRegion] = {}
        self._buffers: list[MockDmaBuffer] = []
        self._vectors: dict[int, MockInterrupt] = {}
        self._iova = IovaAllocator(IOVA_RANGES, PAGE_BYTES)
        model.holder = self
        node.on_death.append(self.close)
        self._set_command(_COMMAND_MEMORY)
        model.kernel.note(model.name, "open", node.name)

    @property
    def address(self) -> PciAddress:
        return self.model.address

    @property
    def config_bytes(self) -> int:
        """256, or 4096 of a PCI Express function."""
        return len(self.model.config)

    def read_config(self, offset: int, width: int) -> int:
        self._check_config(offset, width)
        return self.model.read_config(offset, width)

    def write_config(self, offset: int, width: int, value: int) -> None:
        self._check_config(offset, width)
        if not 0 <= value < 1 << 8 * width:
            raise Refused(f"{self.address}: config value {value:#x} does not fit {width} B")
        self.model.write_config(offset, width, value)

    def regions(self) -> Sequence[PciRegion]:
        self._check_open()
        return [
            PciRegion(index=index, size_bytes=size, readable=True, writable=True, mappable=True)
            for index, size in sorted(self.model.bars.items())
        ]

    def map(self, index: int, at_least_bytes: int = 0) -> MockRegion:
        self._check_free()
        if not 0 <= index < REGIONS:
            raise Refused(f"{self.address}: region {index}; want 0 to {REGIONS - 1}")
        if index in self._regions:
            raise Refused(f"{self.address}: BAR {index} is mapped already; close that first")
        size_bytes = self.model.bars.get(index)
        if size_bytes is None:
            raise Absent(f"{self.address} BAR {index}: this function has no such BAR")
        if size_bytes < at_least_bytes:
            raise Unavailable(
                f"{self.address} BAR {index} is {size_bytes} B, {at_least_bytes} B were described"
            )
        made = self._regions[index] = MockRegion(self, index, size_bytes)
        return made

    def dma(self, size_bytes: int, address_bits: int = 64) -> MockDmaBuffer:
        self._check_free()
        held = sum(buffer.size_bytes for buffer in self._buffers)
        iova = self._iova.allocate(size_bytes, address_bits)
        if held + size_bytes > DMA_LIMIT_BYTES:
            self._iova.free(iova)
            raise StoreFull(
                f"{size_bytes} B for DMA beside {held} B: at most {DMA_LIMIT_BYTES} B may be pinned"
            )
        self._set_command(COMMAND_MASTER)
        made = MockDmaBuffer(self, iova, size_bytes)
        self._buffers.append(made)
        return made

    def interrupts(self, kind: InterruptKind, count: int) -> Sequence[MockInterrupt]:
        self._check_free()
        if self._vectors:
            raise Refused(f"{self.address}: interrupts are enabled; close them first")
        has = self.model.vectors.get(kind, 0)
        if not 1 <= count <= has:
            raise Unavailable(
                f"{self.address} {kind.value}: {count} vectors wanted, this function has {has}"
            )
        if kind is not InterruptKind.INTX:
            self._set_command(COMMAND_MASTER)
        self._vectors = {vector: MockInterrupt(self, kind, vector) for vector in range(count)}
        self.model.enabled = kind
        made = list(self._vectors.values())
        if kind is InterruptKind.INTX and self.model.line():
            made[0].arrive()
        return made

    def on_event(self, call: Callable[[PciEvent], None]) -> None:
        self._on_event = call

    def reset(self) -> None:
        """Takes no virtual time; `submit_reset` takes what a device needs."""
        self._check_free()
        self._reset()

    def submit_reset(self, deadline_ns: int, done: Done[None]) -> None:
        self._check_free()
        self.blocked = "it is being reset"

        def finish(result: HalError | None) -> None:
            if not self._gone:
                self.blocked = ""
            done(result)

        run_later(self.node, RESET_NS, deadline_ns, self._reset, finish)

    def close(self) -> None:
        if self._closed:
            return
        parts: list[MockInterrupt | MockDmaBuffer | MockRegion] = [*self._vectors.values()]
        for part in [*parts, *self._buffers, *self._regions.values()]:
            part.close()
        self._closed = True
        self.blocked = self.blocked or "it was closed"
        if self.close in self.node.on_death:
            self.node.on_death.remove(self.close)
        self.model.write_config(COMMAND, 2, 0)  # as the kernel does at the last close
        self.model.kernel.note(self.model.name, "close", self.node.name)
        self.model.released()

    # --- for its parts ---

    def refuse(self) -> None:
        """Raise what `blocked` means."""
        if self._gone:
            raise DeviceGone(f"{self.address}: {self.blocked}")
        raise Unavailable(f"{self.address}: {self.blocked}")

    def check_present(self, what: str) -> None:
        """A read gave all ones. Raises DeviceGone unless config space answers."""
        if self.model.read_config(0, 2) != 0xFFFF:
            return
        self._gone = True
        self.blocked = f"gone: {what} gave all ones, and so does its vendor id"
        self._tell(PciEventKind.REMOVED, self.blocked)
        self.refuse()

    def closed_region(self, bar: int) -> None:
        self._regions.pop(bar, None)

    def closed_buffer(self, buffer: MockDmaBuffer) -> None:
        self._buffers.remove(buffer)
        self._iova.free(buffer.iova)

    def closed_vector(self, vector: int) -> None:
        self._vectors.pop(vector, None)
        if not self._vectors:
            self.model.enabled = None

    # --- for the model ---

    def interrupt(self, kind: InterruptKind, vector: int) -> None:
        found = self._vectors.get(vector)
        if found is not None:
            found.arrive()

    def dma_read(self, iova: int, length: int) -> bytes | None:
        found = self._at(iova, length)
        if found is None:
            return None
        buffer, at = found
        return bytes(buffer.memory[at : at + length])

    def dma_write(self, iova: int, data: bytes) -> bool:
        found = self._at(iova, len(data))
        if found is None:
            return False
        buffer, at = found
        buffer.memory[at : at + len(data)] = data
        return True

    def want_removed(self) -> None:
        self._tell(PciEventKind.REMOVE_WANTED, "the host wants to remove it")

    # --- inside ---

    def _at(self, iova: int, length: int) -> tuple[MockDmaBuffer, int] | None:
        for buffer in self._buffers:
            if buffer.iova <= iova and iova + length <= buffer.iova + buffer.size_bytes:
                return buffer, iova - buffer.iova
        return None

    def _reset(self) -> None:
        if not self.model.reset():
            raise Unavailable(f"{self.address}: reset: it did not come back")

    def _set_command(self, bit: int) -> None:
        command = self.model.read_config(COMMAND, 2)
        self.model.write_config(COMMAND, 2, command | bit)

    def _tell(self, kind: PciEventKind, text: str) -> None:
        event = PciEvent(kind=kind, address=self.address, text=text)
        self.node.poster()(lambda: self._on_event(event))

    def _check_open(self) -> None:
        if self._closed:
            raise Refused(f"{self.address}: it was closed")

    def _check_free(self) -> None:
        self._check_open()
        if self.blocked:
            self.refuse()

    def _check_config(self, offset: int, width: int) -> None:
        size = self.config_bytes
        if width not in (1, 2, 4) or offset % width or not 0 <= offset <= size - width:
            raise Refused(
                f"{self.address}: config access of {width} B at {offset:#x}; want 1, 2 or 4 B, "
                f"aligned, within {size} B"
            )
        self._check_free()


def _check_viable(model: PciModel) -> None:
    if model.driver != VFIO_DRIVER:
        what = f"bound to {model.driver}" if model.driver else "bound to no driver"
        raise Unavailable(f"{model.address}: {what}; want {VFIO_DRIVER} (bind it first)")
    others = [other for other in model.group_members() if other.driver not in HARMLESS]
    if others:
        names = ", ".join(f"{other.address} ({other.driver})" for other in others)
        raise Unavailable(
            f"{model.address}: IOMMU group {model.group} is not viable: the kernel itself drives "
            f"{names}; bind all of the group to {VFIO_DRIVER}"
        )
