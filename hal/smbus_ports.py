"""The seam between our code and an SMBus: one segment, with the muxes and devices on it.

Ref: System Management Bus Specification 3.1 (transactions: section 6.5; time-outs: 3.1.3); the
kernel's Documentation/i2c/smbus-protocol.rst and fault-codes.rst, which the Linux backend goes
through; NXP PCA9548A, section 7.3, for the control register of a mux.

A segment is one bus with everything behind its muxes: one worker, one transfer at a time. A
transfer names the muxes on its way; the segment selects them for this transfer and deselects
them after it, whatever came of it. Data and results are bytes in the order of the wire, so a
word is `int.from_bytes(result, "little")` (or "big", where the device's makers did so).

    Absent                nobody acknowledged the address
    SmbusFault            the transfer broke after somebody did
    +- DataNack           a later byte was not acknowledged: the device refuses the command
    +- PecWrong           the packet error code does not fit what came
    +- ArbitrationLost    another controller had the bus, also on the last attempt
    +- WrongCount         a block with a byte count that can't be
    +- MuxStuck           a mux keeps a channel selected: nothing can be said of who would answer
    +- BusHeld            SDA or SCL is held low, or a clock was stretched for too long: the whole
                          bus is dead, and will be tried again later
    Unavailable           the adapter can't do this kind of transfer, or a kernel driver has the
                          device, or the queue is full
    DeadlinePassed        it was not finished in time; it may still take effect

A whole-bus fault is told once, by `on_event`, not once for each device on it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, IntFlag
from typing import Final, Protocol, TypeAlias

from hal.errors import HalError, Refused
from hal.ports import Done

ADDRESS_FIRST: Final = 0x08  # 0x00-0x07 and 0x78-0x7f are reserved: SMBus 3.1, appendix C
ADDRESS_LAST: Final = 0x77
BLOCK_LIMIT_BYTES: Final = 255  # SMBus 3.1, 6.5.7; 32 before version 3.0
KERNEL_BLOCK_BYTES: Final = 32  # I2C_SMBUS_BLOCK_MAX of uapi/linux/i2c.h
RAW_LIMIT_BYTES: Final = 4096  # of one part; i2c-dev itself takes 8192
MUX_DEPTH_LIMIT: Final = 4
GAP_LIMIT_US: Final = 1_000_000
QUEUE_LIMIT: Final = 256  # transfers that wait on one segment

MuxPath: TypeAlias = tuple[tuple[int, int], ...]  # (address, channel), from the adapter outwards


class SmbusFault(HalError):
    """The transfer was begun and broke."""


class DataNack(SmbusFault):
    """A byte after the address was not acknowledged."""


class PecWrong(SmbusFault):
    """The packet error code is wrong."""


class ArbitrationLost(SmbusFault):
    """Another controller won the bus."""


class WrongCount(SmbusFault):
    """The device said that its block has 0 bytes, or more than there is room for."""


class MuxStuck(SmbusFault):
    """A mux does not let go of a channel."""


class BusHeld(SmbusFault):
    """SDA or SCL is low and stays so."""


class SmbusKind(Enum):
    """SMBus 3.1, 6.5.1 to 6.5.8, and two that are plain I2C."""

    QUICK = "quick"  # 6.5.1, with the write bit
    SEND_BYTE = "send_byte"  # 6.5.2; the byte is `command`
    RECEIVE_BYTE = "receive_byte"  # 6.5.3; `command` is not sent
    READ_BYTE = "read_byte"  # 6.5.5
    WRITE_BYTE = "write_byte"  # 6.5.4
    READ_WORD = "read_word"  # 6.5.5
    WRITE_WORD = "write_word"  # 6.5.4
    READ_BLOCK = "read_block"  # 6.5.7; `read_bytes` above 32 where a longer block may come
    WRITE_BLOCK = "write_block"  # 6.5.7
    PROCESS_CALL = "process_call"  # 6.5.6; two bytes each way
    BLOCK_PROCESS_CALL = "block_process_call"  # 6.5.8
    READ_I2C_BLOCK = "read_i2c_block"  # command, restart, `read_bytes` bytes without a count
    WRITE_I2C_BLOCK = "write_i2c_block"  # command, bytes without a count
    RAW = "raw"  # `data` out (if any), restart, `read_bytes` in (if any); `command` is not sent


_DATA_BYTES: Final = {  # least and most of `data`
    SmbusKind.QUICK: (0, 0),
    SmbusKind.SEND_BYTE: (0, 0),
    SmbusKind.RECEIVE_BYTE: (0, 0),
    SmbusKind.READ_BYTE: (0, 0),
    SmbusKind.WRITE_BYTE: (1, 1),
    SmbusKind.READ_WORD: (0, 0),
    SmbusKind.WRITE_WORD: (2, 2),
    SmbusKind.READ_BLOCK: (0, 0),
    SmbusKind.WRITE_BLOCK: (1, BLOCK_LIMIT_BYTES),
    SmbusKind.PROCESS_CALL: (2, 2),
    SmbusKind.BLOCK_PROCESS_CALL: (1, BLOCK_LIMIT_BYTES),
    SmbusKind.READ_I2C_BLOCK: (0, 0),
    SmbusKind.WRITE_I2C_BLOCK: (1, BLOCK_LIMIT_BYTES),
    SmbusKind.RAW: (0, RAW_LIMIT_BYTES),
}
_WANT_READ: Final = frozenset({SmbusKind.READ_I2C_BLOCK})
_MAY_READ: Final = frozenset({SmbusKind.READ_BLOCK, SmbusKind.BLOCK_PROCESS_CALL, SmbusKind.RAW})
_NO_PEC: Final = frozenset({SmbusKind.QUICK})


@dataclass(frozen=True, slots=True, kw_only=True)
class SmbusTransfer:
    """One transfer. Raises Refused when it could not be one.

    `gap_us` is what the device wants between the end of this transfer and its next one (EEPROM
    write cycles, slow firmware): the segment serves others meanwhile.
    """

    address: int  # 7 bits
    kind: SmbusKind
    command: int = 0
    data: bytes = b""
    read_bytes: int = 0
    pec: bool = False
    mux: MuxPath = ()
    gap_us: int = 0

    def __post_init__(self) -> None:
        low, high = _DATA_BYTES[self.kind]
        if not ADDRESS_FIRST <= self.address <= ADDRESS_LAST:
            raise Refused(
                f"{self}: address {self.address:#x} is outside "
                f"{ADDRESS_FIRST:#04x}..{ADDRESS_LAST:#04x}"
            )
        if not 0 <= self.command <= 0xFF:
            raise Refused(f"{self}: command {self.command} is not a byte")
        if not low <= len(self.data) <= high:
            raise Refused(f"{self}: {len(self.data)} bytes of data; want {low} to {high}")
        self._check_reading()
        if self.pec and self.kind in _NO_PEC:
            raise Refused(f"{self}: a quick command has no packet error code")
        if len(self.mux) > MUX_DEPTH_LIMIT or any(
            not ADDRESS_FIRST <= address <= ADDRESS_LAST or not 0 <= channel <= 7
            for address, channel in self.mux
        ):
            raise Refused(f"{self}: mux path {self.mux}; want (address, channel 0..7) each")
        if not 0 <= self.gap_us <= GAP_LIMIT_US:
            raise Refused(f"{self}: a gap of {self.gap_us} us; want 0 to {GAP_LIMIT_US}")

    def _check_reading(self) -> None:
        most = RAW_LIMIT_BYTES if self.kind is SmbusKind.RAW else BLOCK_LIMIT_BYTES
        if self.kind in _WANT_READ:
            fits = 1 <= self.read_bytes <= most
        elif self.kind in _MAY_READ:
            fits = 0 <= self.read_bytes <= most
        else:
            fits = self.read_bytes == 0
        if not fits:
            raise Refused(f"{self}: {self.read_bytes} bytes to read")
        if self.kind is SmbusKind.RAW and not self.data and not self.read_bytes:
            raise Refused(f"{self}: nothing to write and nothing to read")

    def __str__(self) -> str:
        path = "".join(f"{address:#04x}.{channel}/" for address, channel in self.mux)
        sent = self.kind not in (SmbusKind.RAW, SmbusKind.RECEIVE_BYTE, SmbusKind.QUICK)
        command = f" {self.command:#04x}" if sent else ""
        return f"{path}{self.address:#04x} {self.kind.value}{command}"


class SmbusFunctions(IntFlag):
    """What an adapter can do: the bits of the ioctl I2C_FUNCS (uapi/linux/i2c.h)."""

    I2C = 0x0000_0001
    PEC = 0x0000_0008
    TARGET = 0x0000_0020  # I2C_FUNC_SLAVE: can itself be addressed (MCTP needs it)
    BLOCK_PROCESS_CALL = 0x0000_8000
    QUICK = 0x0001_0000
    READ_BYTE = 0x0002_0000
    WRITE_BYTE = 0x0004_0000
    READ_BYTE_DATA = 0x0008_0000
    WRITE_BYTE_DATA = 0x0010_0000
    READ_WORD_DATA = 0x0020_0000
    WRITE_WORD_DATA = 0x0040_0000
    PROCESS_CALL = 0x0080_0000
    READ_BLOCK_DATA = 0x0100_0000
    WRITE_BLOCK_DATA = 0x0200_0000
    READ_I2C_BLOCK = 0x0400_0000
    WRITE_I2C_BLOCK = 0x0800_0000


@dataclass(frozen=True, slots=True, kw_only=True)
class SmbusCapabilities:
    """What stands behind a segment."""

    adapter: str  # its own name, e.g. "SMBus I801 adapter at 0700"
    functions: SmbusFunctions
    driver: str = ""  # the kernel's driver of it, where there is one

    def missing(self, transfer: SmbusTransfer) -> str:
        """Why this adapter can't do that transfer; "" when it can."""
        plain_i2c = SmbusFunctions.I2C in self.functions
        long = max(len(transfer.data), transfer.read_bytes) > KERNEL_BLOCK_BYTES
        if transfer.kind is SmbusKind.RAW or long:
            if plain_i2c:
                return ""
            what = "plain I2C" if transfer.kind is SmbusKind.RAW else "blocks above 32 bytes"
            return f"{self.adapter} can't do {what} (no I2C_RDWR)"
        if transfer.pec and not plain_i2c and SmbusFunctions.PEC not in self.functions:
            return f"{self.adapter} has no packet error codes"
        if plain_i2c and transfer.kind in _BY_I2C:
            return ""
        if _NEEDS[transfer.kind] & ~self.functions:
            return f"{self.adapter} has no {transfer.kind.value.replace('_', ' ')}"
        return ""


_BY_I2C: Final = frozenset(  # what I2C_RDWR does where the adapter has no command of its own
    {
        SmbusKind.READ_BLOCK,
        SmbusKind.WRITE_BLOCK,
        SmbusKind.PROCESS_CALL,
        SmbusKind.BLOCK_PROCESS_CALL,
        SmbusKind.READ_I2C_BLOCK,
        SmbusKind.WRITE_I2C_BLOCK,
    }
)
_NEEDS: Final = {
    SmbusKind.QUICK: SmbusFunctions.QUICK,
    SmbusKind.SEND_BYTE: SmbusFunctions.WRITE_BYTE,
    SmbusKind.RECEIVE_BYTE: SmbusFunctions.READ_BYTE,
    SmbusKind.READ_BYTE: SmbusFunctions.READ_BYTE_DATA,
    SmbusKind.WRITE_BYTE: SmbusFunctions.WRITE_BYTE_DATA,
    SmbusKind.READ_WORD: SmbusFunctions.READ_WORD_DATA,
    SmbusKind.WRITE_WORD: SmbusFunctions.WRITE_WORD_DATA,
    SmbusKind.READ_BLOCK: SmbusFunctions.READ_BLOCK_DATA,
    SmbusKind.WRITE_BLOCK: SmbusFunctions.WRITE_BLOCK_DATA,
    SmbusKind.PROCESS_CALL: SmbusFunctions.PROCESS_CALL,
    SmbusKind.BLOCK_PROCESS_CALL: SmbusFunctions.BLOCK_PROCESS_CALL,
    SmbusKind.READ_I2C_BLOCK: SmbusFunctions.READ_I2C_BLOCK,
    SmbusKind.WRITE_I2C_BLOCK: SmbusFunctions.WRITE_I2C_BLOCK,
    SmbusKind.RAW: SmbusFunctions.I2C,
}


class SmbusEventKind(Enum):
    BUS_HELD = "bus_held"  # recovery was tried and did not help; all transfers fail at once
    BUS_FREE = "bus_free"  # it is back
    MUX_LEFT_SELECTED = "mux_left_selected"  # and was deselected
    MUX_STUCK = "mux_stuck"  # it could not be deselected
    MUX_FREE = "mux_free"  # it could, after all


@dataclass(frozen=True, slots=True, kw_only=True)
class SmbusEvent:
    """Something about the segment as a whole, told once."""

    kind: SmbusEventKind
    text: str
    address: int | None = None  # of the mux


class SmbusSegment(Protocol):
    """One segment. Transfers to one device take effect in the order of `submit`."""

    @property
    def capabilities(self) -> SmbusCapabilities: ...

    def submit(self, transfer: SmbusTransfer, deadline_ns: int, done: Done[bytes]) -> None:
        """What was read, b"" for a transfer that reads nothing. Lost arbitration, and a wrong
        packet error code of a reading transfer, are tried again a few times; nothing else is."""
        ...

    def check_muxes(
        self, muxes: Sequence[tuple[MuxPath, int]], deadline_ns: int, done: Done[Sequence[int]]
    ) -> None:
        """Look at the control registers of these muxes (the path to each, and its address):
        the addresses of those that had a channel selected. These are deselected, and told by
        `on_event`. A mux that does not answer is left out."""
        ...

    def recover(self, deadline_ns: int, done: Done[None]) -> None:
        """Try at once to free a bus that is held low. BusHeld when it still is; a bus that is
        free is a success."""
        ...

    def on_event(self, call: Callable[[SmbusEvent], None]) -> None:
        """Be told, on the loop's thread, about the segment as a whole."""
        ...

    def close(self) -> None:
        """Let go of it; transfers that wait complete with Unavailable. Twice is fine."""
        ...


class SmbusTarget(Protocol):
    """A controller's other half: it is itself addressed, and others write to it. MCTP over SMBus
    (DSP0237) needs it in both ends. Few adapters have it; those without raise Unavailable."""

    @property
    def handle(self) -> int:
        """Ready when `receive` has something."""
        ...

    def receive(self) -> Sequence[bytes]:
        """Whole writes that came, without the address byte, oldest first; a bounded number."""
        ...

    def close(self) -> None: ...
