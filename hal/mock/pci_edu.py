"""QEMU's "edu" device, register by register.

Ref: QEMU, docs/specs/edu.rst. 1234:11e8, one BAR of 1 MiB, INTx and one MSI. Below 80h only
accesses of 4 bytes are defined, from there on 4 or 8.

    00h RO  identification, 010000EDh: version 1.0
    04h RW  liveness: gives the inverse of what was written
    08h RW  factorial: computes of what was written, in 32 bits
    20h RW  status: 01h computing (RO), 80h raise an interrupt when done
    24h RO  interrupt status: what has raised it
    60h WO  interrupt raise: or-ed into the status
    64h WO  interrupt acknowledge: cleared from the status
    80h RW  DMA source address          88h RW  DMA destination address
    90h RW  DMA transfer count          98h RW  DMA command: 01h start, 02h from the device,
    40000h  its buffer of 4 KiB (DMA)           04h raise an interrupt (100h) when done

Where the document leaves the time open, it takes 10 us a factor and 1 ms a transfer. A transfer
that leaves the buffer is not done here (QEMU ends itself then).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hal.mock.pci_device import PciModel
from hal.pci_ports import InterruptKind

if TYPE_CHECKING:
    from hal.mock.kernel import VirtualKernel

VENDOR_ID: Final = 0x1234
DEVICE_ID: Final = 0x11E8
REVISION: Final = 0x10
CLASS_OTHERS: Final = 0x00FF00
BAR_BYTES: Final = 1 << 20
DMA_BITS: Final = 28  # the property dma_mask of the device
BUFFER_AT: Final = 0x4_0000
BUFFER_BYTES: Final = 4096
IDENTIFICATION: Final = 0x0100_00ED

REG_ID: Final = 0x00
REG_LIVENESS: Final = 0x04
REG_FACTORIAL: Final = 0x08
REG_STATUS: Final = 0x20
REG_IRQ_STATUS: Final = 0x24
REG_IRQ_RAISE: Final = 0x60
REG_IRQ_ACK: Final = 0x64
REG_DMA_SOURCE: Final = 0x80
REG_DMA_DESTINATION: Final = 0x88
REG_DMA_COUNT: Final = 0x90
REG_DMA_COMMAND: Final = 0x98
WIDE_FROM: Final = 0x80

STATUS_COMPUTING: Final = 0x01
STATUS_IRQ: Final = 0x80
IRQ_FACTORIAL: Final = 0x001
IRQ_DMA: Final = 0x100
DMA_START: Final = 0x1
DMA_FROM_DEVICE: Final = 0x2
DMA_IRQ: Final = 0x4
_FACTOR_NS: Final = 10_000
_DMA_NS: Final = 1_000_000
_ONES32: Final = 0xFFFF_FFFF
_FACTORS_LIMIT: Final = 34  # 34! and all above are 0 in 32 bits


class MockEdu(PciModel):
    """The device."""

    def __init__(self, kernel: VirtualKernel, name: str, address: str = "0000:01:00.0") -> None:
        super().__init__(
            kernel,
            name,
            address,
            vendor_id=VENDOR_ID,
            device_id=DEVICE_ID,
            class_code=CLASS_OTHERS,
            revision=REVISION,
            bars={0: BAR_BYTES},
            vectors={InterruptKind.INTX: 1, InterruptKind.MSI: 1},
            dma_bits=DMA_BITS,
        )
        self._life = 0  # grows with each reset: what was begun before it ends nowhere
        self.power_on()

    def power_on(self) -> None:
        self._life += 1
        self._liveness = self._factorial = 0
        self._status = self._irq_status = 0
        self._dma = {REG_DMA_SOURCE: 0, REG_DMA_DESTINATION: 0, REG_DMA_COUNT: 0}
        self._dma_command = 0
        self._buffer = bytearray(BUFFER_BYTES)

    def line(self) -> bool:
        return self.answers and self._irq_status != 0

    def read(self, bar: int, offset: int, width: int) -> int:
        if width == 8 and offset < WIDE_FROM:
            return _ONES32 << 32 | _ONES32  # not defined
        match offset:
            case 0x00:
                return IDENTIFICATION
            case 0x04:
                return self._liveness
            case 0x08:
                return self._factorial
            case 0x20:
                return self._status
            case 0x24:
                return self._irq_status
            case 0x80 | 0x88 | 0x90:
                return self._dma[offset]
            case 0x98:
                return self._dma_command
            case _:
                return _ONES32 << 32 | _ONES32  # no register there

    def write(self, bar: int, offset: int, width: int, value: int) -> None:
        if width == 8 and offset < WIDE_FROM:
            return
        match offset:
            case 0x04:
                self._liveness = ~value & _ONES32
            case 0x08:
                self._compute(value)
            case 0x20:
                self._status = self._status & STATUS_COMPUTING | value & STATUS_IRQ
            case 0x60:
                self._raise(value)
            case 0x64:
                self._irq_status &= ~value
            case 0x80 | 0x88 | 0x90:
                if not self._dma_command & DMA_START:  # a running transfer keeps its own
                    self._dma[offset] = value
            case 0x98:
                self._start_dma(value)

    def _raise(self, bits: int) -> None:
        self._irq_status |= bits & _ONES32
        if self._irq_status:
            self.interrupt()

    def _compute(self, number: int) -> None:
        if self._status & STATUS_COMPUTING:
            return
        self._status |= STATUS_COMPUTING
        self._factorial = number
        life = self._life

        def finish() -> None:
            if life != self._life:
                return
            result = 1
            for factor in range(1, min(number, _FACTORS_LIMIT) + 1):
                result = result * factor & _ONES32
            self._factorial = result
            self._status &= ~STATUS_COMPUTING
            if self._status & STATUS_IRQ:
                self._raise(IRQ_FACTORIAL)

        self.kernel.after(_FACTOR_NS * max(1, min(number, _FACTORS_LIMIT)), finish)

    def _start_dma(self, command: int) -> None:
        if self._dma_command & DMA_START:
            return
        self._dma_command = command
        if not command & DMA_START:
            return
        life = self._life

        def finish() -> None:
            if life != self._life:
                return
            self._transfer(command)
            self._dma_command &= ~DMA_START
            if command & DMA_IRQ:
                self._raise(IRQ_DMA)

        self.kernel.after(_DMA_NS, finish)

    def _transfer(self, command: int) -> None:
        source, destination = self._dma[REG_DMA_SOURCE], self._dma[REG_DMA_DESTINATION]
        count = self._dma[REG_DMA_COUNT]
        inside = source if command & DMA_FROM_DEVICE else destination
        at = inside - BUFFER_AT
        if not 0 <= at <= BUFFER_BYTES - count:
            self.kernel.note(self.name, "dma_out_of_buffer", f"{inside:#x} {count}")
        elif command & DMA_FROM_DEVICE:
            self.dma_write(destination, bytes(self._buffer[at : at + count]))
        else:
            self._buffer[at : at + count] = self.dma_read(source, count)
