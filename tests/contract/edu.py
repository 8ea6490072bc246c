"""The few steps of a driver for QEMU's edu device (docs/specs/edu), for suites and rigs.

Its registers are those that `hal.mock.pci_edu` cites; they are written out again here, so that
the model is judged by numbers that aren't its own.
"""

from dataclasses import dataclass
from typing import Final

from hal.pci_ports import DmaBuffer, Mmio
from tests.contract.rigs import World

IDS: Final = 0x11E8_1234
IDENTIFICATION: Final = 0x0100_00ED
LIVENESS: Final = 0x04
FACTORIAL: Final = 0x08
STATUS: Final = 0x20
IRQ_STATUS: Final = 0x24
IRQ_RAISE: Final = 0x60
IRQ_ACK: Final = 0x64
DMA_SOURCE: Final = 0x80
DMA_DESTINATION: Final = 0x88
DMA_COUNT: Final = 0x90
DMA_COMMAND: Final = 0x98
BUFFER: Final = 0x4_0000
# QEMU 7.2 takes a transfer that ends with the buffer for one that leaves it, and ends itself
TRANSFER_LIMIT: Final = 4092
DMA_BITS: Final = 28
TO_DEVICE: Final = 0x1
FROM_DEVICE: Final = 0x3
WITH_IRQ: Final = 0x4


@dataclass
class Edu:
    """One edu through its mapped BAR 0."""

    mmio: Mmio

    def irq_when_computed(self, on: bool) -> None:
        self.mmio.write32(STATUS, 0x80 if on else 0)

    def computing(self) -> bool:
        return bool(self.mmio.read32(STATUS) & 1)

    def acknowledge(self) -> int:
        """Take back all that has raised its interrupt; returns what it was."""
        bits = self.mmio.read32(IRQ_STATUS)
        self.mmio.write32(IRQ_ACK, bits)
        return bits

    def start(self, source: int, destination: int, count: int, command: int) -> None:
        self.mmio.write64(DMA_SOURCE, source)
        self.mmio.write64(DMA_DESTINATION, destination)
        self.mmio.write64(DMA_COUNT, count)
        self.mmio.write64(DMA_COMMAND, command)

    def transferring(self) -> bool:
        return bool(self.mmio.read64(DMA_COMMAND) & 1)

    def send(self, world: World, buffer: DmaBuffer, offset: int, count: int) -> None:
        """From our memory into the device's buffer; waits for the end."""
        self.start(buffer.iova + offset, BUFFER, count, TO_DEVICE)
        world.run_until(lambda: not self.transferring())

    def fetch(self, world: World, iova: int, count: int) -> None:
        """From the device's buffer into our memory; waits for the end."""
        self.start(BUFFER, iova, count, FROM_DEVICE)
        world.run_until(lambda: not self.transferring())
