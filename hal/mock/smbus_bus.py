"""One SMBus in the virtual world: models at addresses, muxes between them, and what breaks.

    bus = kernel.add_smbus(MockSmbusBus(kernel, "board"))
    bus.attach(Mux(0x70))
    bus.attach(Tmp75(0x48), path=((0x70, 2),))

Faults, each for as long as it is set: `hold_sda` (B1), `hold_scl` (B2), `stretch_ns` (B3),
`nack_addresses` (B4), `lose_arbitration` (B7); of the models: `refused` (B5), `wrong_pec` (B6),
`wrong_count` (B8), `frozen`; of a mux: `stuck`, and `control` itself, which a test may set. A
device that is detached is absent.

What it does not model: single clock edges (a transfer is done at once and takes its time), two
controllers that talk at once (the second one waits; lost arbitration is a fault that is set),
rise times, the alert line, host notify.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fastcrc import crc8

from hal.errors import Absent, Refused
from hal.mock.smbus_model import Model
from hal.smbus_ports import (
    KERNEL_BLOCK_BYTES,
    ArbitrationLost,
    BusHeld,
    DataNack,
    MuxPath,
    PecWrong,
    SmbusFunctions,
    SmbusKind,
    SmbusTransfer,
    WrongCount,
)

if TYPE_CHECKING:
    from hal.mock.kernel import VirtualKernel

T_TIMEOUT_NS: Final = 35_000_000  # SMBus 3.1, table 10: 25 to 35 ms of a low clock
T_TIMEOUT_MIN_NS: Final = 25_000_000
CLOCKS_TO_FREE: Final = 9  # UM10204, 3.1.16
ALL_FUNCTIONS: Final = SmbusFunctions(sum(SmbusFunctions))
_SINGLE: Final = {  # kinds that read so many bytes
    SmbusKind.RECEIVE_BYTE: 1,
    SmbusKind.READ_BYTE: 1,
    SmbusKind.READ_WORD: 2,
    SmbusKind.PROCESS_CALL: 2,
}


class Mux(Model):
    """PCA9546A (4 channels), PCA9548A (8). NXP PCA9548A, section 7.3: the control register."""

    def __init__(self, address: int, *, channels: int = 8) -> None:
        super().__init__(address)
        self.mask = (1 << channels) - 1
        self.control = 0
        self.stuck = False  # writes are acknowledged and change nothing
        self.behind: dict[int, list[Model]] = {channel: [] for channel in range(channels)}
        self._written: int | None = None

    def begin(self, read: bool) -> bool:
        self._written = None
        return True

    def put(self, byte: int) -> bool:
        self._written = byte
        return True

    def get(self) -> int:
        return self.control

    def end(self) -> None:
        if self._written is not None and not self.stuck:  # it takes effect with the stop: 7.3
            self.control = self._written & self.mask
        self._written = None


class MockSmbusBus:
    """The wires and what hangs on them. Nodes use it through `hal.mock.smbus.MockSmbusSegment`."""

    def __init__(
        self,
        kernel: VirtualKernel,
        name: str,
        *,
        clock_khz: int = 100,
        functions: SmbusFunctions = ALL_FUNCTIONS,
    ) -> None:
        self.kernel = kernel
        self.name = name
        self.functions = functions
        self.bit_ns = 1_000_000 // clock_khz
        self.devices: list[Model] = []
        self.free_ns = kernel.now_ns  # when whoever talks now has ended
        self.transfers = 0
        self.scl_held = False
        self.sda_clocks: int | None = None  # clocks until a held SDA is let go; -1: never
        self.stretch_ns: dict[int, int] = {}  # address -> how long it stretches the clock
        self.nack_addresses: dict[int, int] = {}  # address -> how often it is not acknowledged
        self.lose_arbitration = 0
        self.met: dict[str, int] = {}  # fault -> how often a transfer met it

    # --- building ---

    def attach(self, model: Model, path: MuxPath = ()) -> None:
        """Solder it on. Raises Refused where there is no such mux or channel."""
        self._place(path).append(model)

    def detach(self, model: Model, path: MuxPath = ()) -> None:
        """Take it off: from now on its address is not acknowledged."""
        place = self._place(path)
        if model in place:
            place.remove(model)

    def _place(self, path: MuxPath) -> list[Model]:
        place = self.devices
        for address, channel in path:
            mux = next((m for m in place if isinstance(m, Mux) and m.address == address), None)
            if mux is None or channel not in mux.behind:
                raise Refused(f"{self.name}: no mux {address:#04x} with a channel {channel}")
            place = mux.behind[channel]
        return place

    # --- faults ---

    def hold_sda(self, clocks: int = CLOCKS_TO_FREE) -> None:
        """A device holds SDA for so many more clocks; -1 for ever (B1)."""
        self.sda_clocks = clocks

    def hold_scl(self) -> None:
        """The clock is held low, until `release` (B2)."""
        self.scl_held = True

    def release(self) -> None:
        """Whoever held a line is gone."""
        self.scl_held, self.sda_clocks = False, None

    def meet(self, fault: str) -> None:
        """Count that a transfer met a fault of the catalogue."""
        self.met[fault] = self.met.get(fault, 0) + 1

    # --- the wire; each gives the time that it took ---

    def visible(self) -> list[Model]:
        """Who hears the bus now, muxes as they are."""
        found: list[Model] = []
        places = [self.devices]
        while places:
            for model in places.pop():
                found.append(model)
                if isinstance(model, Mux):
                    places.extend(
                        behind for bit, behind in model.behind.items() if model.control >> bit & 1
                    )
        return found

    def free(self) -> int:
        """Nine clocks and a stop. Raises BusHeld."""
        if self.sda_clocks is not None and not self.scl_held and self.sda_clocks >= 0:
            self.sda_clocks = max(0, self.sda_clocks - CLOCKS_TO_FREE) or None
        self._need_lines()
        return (CLOCKS_TO_FREE + 1) * self.bit_ns

    def _need_lines(self) -> None:
        if self.scl_held:
            self.meet("B2")
            raise BusHeld(f"{self.name}: SCL is held low")
        if self.sda_clocks is not None:
            self.meet("B1")
            raise BusHeld(f"{self.name}: SDA is held low")

    def transfer(self, item: SmbusTransfer) -> tuple[bytes, int]:
        """Do it. What was read, and how many bytes went over the wire. Raises as the port."""
        self.transfers += 1
        self._need_lines()
        if self.lose_arbitration:
            self.lose_arbitration -= 1
            self.meet("B7")
            raise ArbitrationLost(f"{self.name}: {item}: another controller has the bus")
        if self.nack_addresses.get(item.address):
            self.nack_addresses[item.address] -= 1
            self.meet("B4")
            raise Absent(f"{self.name}: {item}: the address is not acknowledged")
        there = [model for model in self.visible() if model.address == item.address]
        if there and self.stretch_ns.get(item.address, 0) > T_TIMEOUT_MIN_NS:
            self.meet("B3")
            raise BusHeld(f"{self.name}: {item}: the clock is stretched for more than 25 ms")
        talk = _Talk(self, item, there)
        try:
            return talk.run(), talk.wire_bytes
        finally:
            for model in there:
                model.end()


class _Talk:
    """One transfer with the models at its address."""

    def __init__(self, bus: MockSmbusBus, item: SmbusTransfer, there: list[Model]) -> None:
        self._bus, self._item, self._there = bus, item, there
        self.wire_bytes = 0
        self._crc = 0

    def run(self) -> bytes:
        item = self._item
        out = _out_bytes(item)
        reads = item.kind in _READING or bool(item.read_bytes)
        if out or not reads:
            self._start(read=False)
            for at, byte in enumerate(out):
                self._put(byte, at)
            if item.pec and not reads:
                self._put(self._crc, len(out))
        if not reads:
            return b""
        self._start(read=True)
        return self._read()

    def _read(self) -> bytes:
        item = self._item
        block = item.kind in (SmbusKind.READ_BLOCK, SmbusKind.BLOCK_PROCESS_CALL)
        wanted = _SINGLE.get(item.kind, item.read_bytes)
        if block:
            room = item.read_bytes or KERNEL_BLOCK_BYTES
            wanted = self._get()
            if not 0 < wanted <= room:
                self._bus.meet("B8")
                raise WrongCount(f"{self._bus.name}: {item}: a block of {wanted}, room {room}")
        data = bytes(self._get() for _ in range(wanted))
        if item.pec:
            want, came = self._crc, self._get()
            if came != want:
                self._bus.meet("B6")
                raise PecWrong(f"{self._bus.name}: {item}: PEC {came:#04x}, want {want:#04x}")
        return data

    def _start(self, *, read: bool) -> None:
        self.wire_bytes += 1
        first = self._item.address << 1 | int(read)
        self._crc = crc8.smbus(bytes([first]), self._crc)
        if not sum([model.begin(read) for model in self._there]):  # all of them hear it
            raise Absent(f"{self._bus.name}: {self._item}: nobody acknowledges the address")

    def _put(self, byte: int, at: int) -> None:
        self.wire_bytes += 1
        self._crc = crc8.smbus(bytes([byte]), self._crc)
        if not sum([model.put(byte) for model in self._there]):
            self._bus.meet("B5")
            raise DataNack(f"{self._bus.name}: {self._item}: byte {at} is not acknowledged")

    def _get(self) -> int:
        self.wire_bytes += 1
        byte = 0xFF
        for model in self._there:
            byte &= model.get()  # open drain: who pulls low wins
        self._crc = crc8.smbus(bytes([byte]), self._crc)
        return byte


_READING: Final = frozenset(
    {*_SINGLE, SmbusKind.READ_BLOCK, SmbusKind.BLOCK_PROCESS_CALL, SmbusKind.READ_I2C_BLOCK}
)
_NO_COMMAND: Final = frozenset({SmbusKind.QUICK, SmbusKind.RECEIVE_BYTE, SmbusKind.RAW})
_COUNTED: Final = frozenset({SmbusKind.WRITE_BLOCK, SmbusKind.BLOCK_PROCESS_CALL})


def _out_bytes(item: SmbusTransfer) -> bytes:
    """What the controller sends after the address: SMBus 3.1, 6.5.1 to 6.5.8."""
    command = b"" if item.kind in _NO_COMMAND else bytes([item.command])
    count = bytes([len(item.data)]) if item.kind in _COUNTED else b""
    return command + count + item.data
