"""Reads the board's sensors, each at its own pace, and tells what is wrong with them.

A segment that can't be opened, or that is held low, is told once and tried again; the parts on it
only get stale. One poll of a part is under way at most, and one that is late costs its next beat:
a slow bus is never asked for more than it can do.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

from firmware.board_hardware import Device, Hardware, Mux
from firmware.events import EventCode, EventLog
from firmware.loop import MS
from firmware.sensors.eeprom import Eeprom, read_fru
from firmware.sensors.parts import PERIOD_MS, driver_of
from firmware.sensors.steps import At, Readings, SensorDriver, Steps, run_steps
from firmware.sensors.watch import Finding, Watch
from hal.errors import DeadlinePassed, HalError, Unavailable
from hal.ports import Reactor
from hal.smbus_ports import BusHeld, MuxStuck, SmbusEvent, SmbusEventKind, SmbusSegment
from protocol.fru import Fru

REOPEN_NS: Final = 30_000 * MS
START_GAP_NS: Final = 7 * MS  # between the first polls, so that they do not all come at once
FRU_DEADLINE_NS: Final = 30_000 * MS
FRU_ATTEMPTS: Final = 3
MAX_DEVICES: Final = 512

_CODES: Final = {
    "absent": EventCode.SENSOR_ABSENT,
    "wrong": EventCode.SENSOR_WRONG,
    "failed": EventCode.SENSOR_FAILED,
    "stuck": EventCode.SENSOR_STUCK,
}
_WHOLE_BUS: Final = (BusHeld, MuxStuck)  # told by the segment, once


class SensorMonitor:
    """The sensors of one card. Loop thread only."""

    def __init__(
        self,
        reactor: Reactor,
        open_segment: Callable[[str], SmbusSegment],
        hardware: Hardware,
        events: EventLog,
        *,
        slot_devices: Mapping[str, Sequence[Device]] | None = None,
        is_on: Callable[[str], bool] = lambda _cnm: True,
    ) -> None:
        """`open_segment(spec)`; `slot_devices` are those of each module, by its id, which are
        read while the module `is_on`."""
        self._reactor = reactor
        self._open_segment = open_segment
        self._hardware = hardware
        self._events = events
        self._is_on = is_on
        self._segments: dict[str, SmbusSegment] = {}
        self._watches: dict[str, Watch] = {}
        self._drivers: dict[str, SensorDriver] = {}
        self._busy: set[str] = set()
        self._cnm_of: dict[str, str] = {}
        self._down: set[str] = set()
        self._cancels: dict[str, Callable[[], None]] = {}  # a timer of each part and segment
        self.frus: dict[str, Fru] = {}
        self.counters: Counter[str] = Counter()
        devices = list(hardware.devices)
        for cnm, more in (slot_devices or {}).items():
            devices += more
            self._cnm_of.update((device.id, cnm) for device in more)
        if len(devices) > MAX_DEVICES:
            raise Unavailable(f"{len(devices)} parts on SMBus; at most {MAX_DEVICES} are read")
        self._devices = devices

    def start(self) -> None:
        """Open the segments and begin."""
        for segment in self._hardware.segments:
            self._open(segment.id, segment.bus)

    def close(self) -> None:
        """Let go of the segments. Twice is fine."""
        for cancel in self._cancels.values():
            cancel()
        self._cancels.clear()
        for segment in self._segments.values():
            segment.close()
        self._segments.clear()

    def readings(self, device: str) -> Readings | None:
        """What a part read last; None when it is not known, or too old."""
        watch = self._watches.get(device)
        return None if watch is None else watch.readings(self._reactor.now_ns())

    def wrong(self, device: str) -> frozenset[str]:
        """What is wrong with a part just now."""
        watch = self._watches.get(device)
        return frozenset(watch.open) if watch is not None else frozenset()

    def to_json(self) -> list[dict[str, object]]:
        """For `apf status`: each part, what it reads, and what is wrong with it."""
        now_ns = self._reactor.now_ns()
        found: list[dict[str, object]] = []
        for name, watch in self._watches.items():
            readings = watch.readings(now_ns)
            entry: dict[str, object] = {
                "id": name,
                "role": watch.device.role,
                "part": watch.device.part,
                "cnm": self._cnm_of.get(name),
                "readings": None if readings is None else dict(readings),
                "wrong": sorted(watch.open),
            }
            if readings is None:
                entry["readings_error"] = str(watch.error or "not read for too long")
            found.append(entry)
        return found

    # --- segments ---

    def _open(self, name: str, bus: str) -> None:
        try:
            segment = self._open_segment(bus)
        except HalError as exc:
            if name not in self._down:
                self._down.add(name)
                self._events.emit(EventCode.BUS_DOWN, f"SMBus {name}: {exc}")
            at_ns = self._reactor.now_ns() + REOPEN_NS
            self._cancels[name] = self._reactor.call_at(at_ns, partial(self._open, name, bus))
            return
        if name in self._down:
            self._down.discard(name)
            self._events.emit(EventCode.BUS_UP, f"SMBus {name}: {segment.capabilities.adapter}")
        self._segments[name] = segment
        segment.on_event(partial(self._on_segment, name))
        muxes = [mux for mux in self._hardware.muxes if mux.place.segment == name]
        wanted = [(mux.place.muxes, mux.place.address) for mux in sorted(muxes, key=_depth)]
        deadline_ns = self._reactor.now_ns() + FRU_DEADLINE_NS
        segment.check_muxes(wanted, deadline_ns, partial(self._checked, name))

    def _checked(self, name: str, result: Sequence[int] | HalError) -> None:
        """The muxes were looked at (or could not be: then each transfer sees to its own)."""
        if isinstance(result, HalError):
            self.counters["muxes_not_checked"] += 1
        for index, device in enumerate(d for d in self._devices if d.place.segment == name):
            self._begin(device, index)

    def _begin(self, device: Device, index: int) -> None:
        segment = self._segments.get(device.place.segment)
        if segment is None:
            return
        first_ns = self._reactor.now_ns() + (index + 1) * START_GAP_NS
        if device.role == "fru":
            call = partial(self._read_fru, device, FRU_ATTEMPTS)
            self._cancels[device.id] = self._reactor.call_at(first_ns, call)
            return
        driver = driver_of(device, segment.capabilities)
        if driver is None:
            self.counters["no_driver"] += 1
            return
        self._drivers[device.id] = driver
        self._watches[device.id] = Watch(device, PERIOD_MS[device.role] * MS)
        self._arm(device.id, first_ns)

    def _on_segment(self, name: str, event: SmbusEvent) -> None:
        codes = {
            SmbusEventKind.BUS_HELD: EventCode.BUS_DOWN,
            SmbusEventKind.BUS_FREE: EventCode.BUS_UP,
        }
        code = codes.get(event.kind, EventCode.BUS_MUX)
        data = {"segment": name, "kind": event.kind.value, "address": event.address}
        self._events.emit(code, f"SMBus {name}: {event.text}", data=data)

    # --- sensors ---

    def _arm(self, name: str, at_ns: int) -> None:
        self._cancels[name] = self._reactor.call_at(at_ns, partial(self._poll, name, at_ns))

    def _poll(self, name: str, due_ns: int) -> None:
        now_ns = self._reactor.now_ns()
        watch = self._watches[name]
        behind = max(0, now_ns - due_ns) // watch.period_ns
        self._arm(name, due_ns + (behind + 1) * watch.period_ns)
        segment = self._segments.get(watch.device.place.segment)
        if segment is None:
            return
        cnm = self._cnm_of.get(name)
        if cnm is not None and not self._is_on(cnm):
            watch.away()
            return
        if name in self._busy:
            self.counters["late"] += 1
            return
        self._busy.add(name)
        self.counters["polls"] += 1
        steps = _read(self._drivers[name], watch)
        run_steps(segment, now_ns, steps, now_ns + 2 * watch.period_ns, partial(self._came, name))

    def _came(self, name: str, result: Readings | HalError) -> None:
        self._busy.discard(name)
        watch = self._watches[name]
        if isinstance(result, _WHOLE_BUS):
            self.counters["whole_bus"] += 1
            return
        if isinstance(result, DeadlinePassed):  # the bus is slow; the part may be well
            self.counters["late"] += 1
            return
        if isinstance(result, HalError):
            self.counters["failures"] += 1
            findings = watch.on_error(result)
        else:
            findings = watch.on_readings(result, self._reactor.now_ns())
        for finding in findings:
            self._tell(watch.device, finding)

    def _tell(self, device: Device, finding: Finding) -> None:
        code = _CODES.get(finding.kind, EventCode.SENSOR_LIMIT)
        if not finding.begins:
            code = EventCode.SENSOR_GOOD
        data = {"device": device.id, "kind": finding.kind, **finding.data}
        self._events.emit(code, finding.text, cnm=self._cnm_of.get(device.id), data=data)

    # --- EEPROMs ---

    def _read_fru(self, device: Device, attempts: int) -> None:
        segment = self._segments.get(device.place.segment)
        if segment is None:
            return
        now_ns = self._reactor.now_ns()
        eeprom = Eeprom(
            at_of(device),
            size_bytes=device.numbers["size_bytes"],
            capabilities=segment.capabilities,
        )
        done = partial(self._fru_came, device, attempts - 1)
        run_steps(segment, now_ns, read_fru(eeprom), now_ns + FRU_DEADLINE_NS, done)

    def _fru_came(self, device: Device, left: int, result: Fru | HalError) -> None:
        if isinstance(result, Fru):
            self.frus[device.id] = result
            return
        if left:
            at_ns = self._reactor.now_ns() + REOPEN_NS
            call = partial(self._read_fru, device, left)
            self._cancels[device.id] = self._reactor.call_at(at_ns, call)
            return
        data = {"device": device.id}
        cnm = self._cnm_of.get(device.id)
        self._events.emit(EventCode.FRU_BAD, f"{device.id}: {result}", cnm=cnm, data=data)


def at_of(device: Device) -> At:
    """Where a part is."""
    return At(address=device.place.address, mux=device.place.muxes)


def _read(driver: SensorDriver, watch: Watch) -> Steps[Readings]:
    """One poll. A part that is new, or was away, is identified and set up first."""
    if not watch.known:
        yield from driver.identify()
        yield from driver.configure()
        watch.known = True
    return (yield from driver.read())


def _depth(mux: Mux) -> int:
    return len(mux.place.muxes)
