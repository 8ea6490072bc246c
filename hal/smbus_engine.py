"""What a segment does around each transfer, the same on every backend (the wire differs).

    muxes      selected for one transfer and deselected after it, also after errors; each is looked
               at before its first use, and one that was left selected is reported and mended
    attempts   lost arbitration, and a wrong packet error code of a reading transfer: 3 in all
    held low   3 attempts to free the bus, with growing pauses; then it counts as dead, is told
               once, and every transfer fails at once until the next attempt is due: after 1 s,
               then 2 s, 4 s, at most 30 s
    a mux that does not let go   told once; what is in front of it goes on (a board gives nothing
               behind a mux an address that is used in front of it), everything else waits until
               it can be deselected

Ref: NXP PCA9548A and PCA9546A, section 7.3: a write is the control register, a bit for each
channel; a read gives it. I2C-bus specification UM10204, 3.1.16 (nine clocks free a held SDA).
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from hal.errors import Absent, DeadlinePassed, HalError, Unavailable
from hal.smbus_ports import (
    ArbitrationLost,
    BusHeld,
    MuxPath,
    MuxStuck,
    PecWrong,
    SmbusCapabilities,
    SmbusEvent,
    SmbusEventKind,
    SmbusFault,
    SmbusKind,
    SmbusTransfer,
)

MS: Final = 1_000_000
ATTEMPTS: Final = 3  # of one transfer
RETRY_PAUSE_NS: Final = 1 * MS
RECOVERY_PAUSES_NS: Final = (0, 10 * MS, 40 * MS)  # before each attempt to free the bus
HELD_RETRY_NS: Final = 1_000 * MS
HELD_RETRY_LIMIT_NS: Final = 30_000 * MS
MUXES_LIMIT: Final = 64  # remembered; more are looked at again each time

READING: Final = frozenset(  # may be done twice without harm
    {
        SmbusKind.RECEIVE_BYTE,
        SmbusKind.READ_BYTE,
        SmbusKind.READ_WORD,
        SmbusKind.READ_BLOCK,
        SmbusKind.READ_I2C_BLOCK,
    }
)


class SmbusWire(Protocol):
    """An adapter, on the worker that may wait for it. Muxes, gaps and attempts are not its own."""

    @property
    def capabilities(self) -> SmbusCapabilities: ...

    def now_ns(self) -> int: ...

    def pause(self, duration_ns: int) -> None: ...

    def transfer(self, transfer: SmbusTransfer) -> bytes:
        """On the wire, once; packet error codes made and checked. Raises as `hal.smbus_ports`."""
        ...

    def free(self) -> None:
        """Do what this adapter can to free a held bus. Raises BusHeld when it is still held."""
        ...


class SmbusEngine:
    """One segment's policy. Called by its worker only; `tell` may be called from there."""

    def __init__(self, wire: SmbusWire, tell: Callable[[SmbusEvent], None]) -> None:
        self._wire = wire
        self._tell = tell
        self.counters: Counter[str] = Counter()
        self._looked_at: set[tuple[MuxPath, int]] = set()
        self._stuck: dict[tuple[MuxPath, int], bool] = {}  # may have a channel on -> was told
        self._held = False
        self._retry_ns = 0
        self._backoff_ns = HELD_RETRY_NS

    def run(self, transfer: SmbusTransfer, deadline_ns: int) -> bytes:
        """The whole of one transfer, muxes included."""
        missing = self._wire.capabilities.missing(transfer)
        if missing:
            raise Unavailable(f"{transfer}: {missing}")
        self.counters["transfers"] += 1
        try:
            self._need_free_bus()
            self._need_free_muxes(transfer)
            return self._routed(transfer, deadline_ns)
        except BusHeld as exc:
            self.counters["bus_held"] += 1
            if not self._held and self._freed():
                raise BusHeld(f"{exc}; it was freed: do it again") from exc
            raise
        except HalError as exc:
            self.counters[type(exc).__name__] += 1
            raise

    def check_muxes(self, muxes: Sequence[tuple[MuxPath, int]]) -> list[int]:
        """As `SmbusSegment.check_muxes`."""
        self._need_free_bus()
        found: list[int] = []
        stuck: MuxStuck | None = None
        for path, address in muxes:
            selected: list[tuple[MuxPath, int]] = []
            try:
                self._select(path, selected)
                if self._look(path, address):
                    found.append(address)
            except Absent:
                continue
            except MuxStuck as exc:
                stuck = exc  # the others are looked at all the same
            finally:
                self._release(selected)
        if stuck is not None:
            raise stuck
        return found

    def recover(self) -> None:
        """As `SmbusSegment.recover`."""
        if not self._freed():
            raise BusHeld(f"{self._name}: held low, also after {len(RECOVERY_PAUSES_NS)} attempts")

    # --- one transfer ---

    def _routed(self, transfer: SmbusTransfer, deadline_ns: int) -> bytes:
        selected: list[tuple[MuxPath, int]] = []
        try:
            self._select(transfer.mux, selected)
            return self._attempts(transfer, deadline_ns)
        finally:
            self._release(selected)

    def _attempts(self, transfer: SmbusTransfer, deadline_ns: int) -> bytes:
        for attempt in range(1, ATTEMPTS + 1):
            late_ns = self._wire.now_ns() - deadline_ns
            if late_ns >= 0:
                raise DeadlinePassed(f"{transfer}: not begun, {late_ns // MS} ms past deadline")
            try:
                return self._wire.transfer(transfer)
            except (ArbitrationLost, PecWrong) as exc:
                again = isinstance(exc, ArbitrationLost) or transfer.kind in READING
                if not again or attempt == ATTEMPTS:
                    raise
                self.counters["repeated"] += 1
                self._wire.pause(RETRY_PAUSE_NS)
        raise AssertionError("the last attempt returns or raises")

    # --- muxes ---

    def _select(self, path: MuxPath, selected: list[tuple[MuxPath, int]]) -> None:
        """Open the way, outermost last. `selected` is kept up to date for `_release`."""
        for depth, (address, channel) in enumerate(path):
            before = path[:depth]
            try:
                if (before, address) not in self._looked_at:
                    self._look(before, address)
                selected.append((before, address))
                self._control(address, 1 << channel)
            except Absent as exc:
                if (before, address) in selected:
                    selected.remove((before, address))  # nobody took it
                self._looked_at.discard((before, address))
                raise Absent(f"mux {address:#04x} does not answer: {exc}") from exc

    def _release(self, selected: Sequence[tuple[MuxPath, int]]) -> None:
        """Deselect, the farthest first. Never raises: what fails is remembered and mended."""
        for path, address in reversed(selected):
            try:
                left = self._deselect(address)
            except BusHeld:
                self._stuck.setdefault((path, address), False)  # the bus's own fault is told
            except HalError as exc:
                self._now_stuck(path, address, str(exc))
            else:
                if left:
                    self._now_stuck(path, address, f"its control register reads {left:#04x}")

    def _look(self, path: MuxPath, address: int) -> bool:
        """Whether it had a channel selected, which is then mended. Its way is open."""
        found = self._read_control(address)
        if len(self._looked_at) < MUXES_LIMIT:
            self._looked_at.add((path, address))
        if not found:
            return False
        self.counters["mux_left_selected"] += 1
        left = self._deselect(address)
        if left:
            self._now_stuck(path, address, f"its control register reads {left:#04x}")
            raise MuxStuck(f"{self._name}: mux {address:#04x} keeps {left:#04x} selected")
        text = f"{self._name}: mux {address:#04x} had channels {found:#04x} selected; deselected"
        self._tell(SmbusEvent(kind=SmbusEventKind.MUX_LEFT_SELECTED, text=text, address=address))
        return True

    def _need_free_muxes(self, transfer: SmbusTransfer) -> None:
        for path, address in list(self._stuck):
            if self._mended(path, address):
                continue
            if transfer.mux == path[: len(transfer.mux)]:
                continue  # it is in front of that mux
            raise MuxStuck(f"{transfer}: mux {address:#04x} does not deselect its channels")

    def _mended(self, path: MuxPath, address: int) -> bool:
        told = self._stuck.pop((path, address))
        selected: list[tuple[MuxPath, int]] = []
        try:
            self._select(path, selected)
            left = self._deselect(address)
        except BusHeld:
            self._stuck[path, address] = told
            raise
        except HalError:
            left = 0xFF
        finally:
            self._release(selected)
        if left:
            self._stuck[path, address] = told
            return False
        if told:
            text = f"{self._name}: mux {address:#04x} has let go"
            self._tell(SmbusEvent(kind=SmbusEventKind.MUX_FREE, text=text, address=address))
        return True

    def _now_stuck(self, path: MuxPath, address: int, why: str) -> None:
        self.counters["mux_stuck"] += 1
        if self._stuck.get((path, address)):
            return
        self._stuck[path, address] = True
        text = f"{self._name}: mux {address:#04x} can't be deselected: {why}"
        self._tell(SmbusEvent(kind=SmbusEventKind.MUX_STUCK, text=text, address=address))

    def _deselect(self, address: int) -> int:
        """What its control register reads after it was cleared."""
        self._control(address, 0)
        return self._read_control(address)

    def _control(self, address: int, value: int) -> None:
        self._once_more(SmbusTransfer(address=address, kind=SmbusKind.SEND_BYTE, command=value))

    def _read_control(self, address: int) -> int:
        read = SmbusTransfer(address=address, kind=SmbusKind.RECEIVE_BYTE)
        return self._once_more(read)[0]

    def _once_more(self, transfer: SmbusTransfer) -> bytes:
        """A mux's control register may be written twice; the deadline is not asked: what was
        selected must be deselected."""
        for _ in range(ATTEMPTS - 1):
            try:
                return self._wire.transfer(transfer)
            except (BusHeld, Absent):
                raise
            except SmbusFault:
                self.counters["repeated"] += 1
                self._wire.pause(RETRY_PAUSE_NS)
        return self._wire.transfer(transfer)

    # --- a bus that is held low ---

    def _need_free_bus(self) -> None:
        """A bus that counts as dead is tried again when that is due, else BusHeld at once."""
        if not self._held:
            return
        wait_ns = self._retry_ns - self._wire.now_ns()
        if wait_ns > 0:
            raise BusHeld(f"{self._name}: held low; next attempt in {wait_ns // MS} ms")
        if not self._freed():
            raise BusHeld(f"{self._name}: still held low")

    def _freed(self) -> bool:
        """Try to free it. The first failure is told, and the first success after that."""
        why = ""
        for pause_ns in RECOVERY_PAUSES_NS:
            if pause_ns:
                self._wire.pause(pause_ns)
            self.counters["recovery_attempts"] += 1
            try:
                self._wire.free()
            except BusHeld as exc:
                why = str(exc)
                continue
            if self._held:
                self._tell(SmbusEvent(kind=SmbusEventKind.BUS_FREE, text=f"{self._name}: free"))
            self._held, self._backoff_ns = False, HELD_RETRY_NS
            self._looked_at.clear()  # whoever held it may have left a mux as it was
            return True
        if self._held:
            self._backoff_ns = min(2 * self._backoff_ns, HELD_RETRY_LIMIT_NS)
        else:
            self._held = True
            text = f"{self._name}: all of it is dead: {why}"
            self._tell(SmbusEvent(kind=SmbusEventKind.BUS_HELD, text=text))
        self._retry_ns = self._wire.now_ns() + self._backoff_ns
        return False

    @property
    def _name(self) -> str:
        return self._wire.capabilities.adapter
