"""The CXL memory devices of this host: which there are, how they fare, what happened to them.

At each turn the bus is scanned, new devices are opened and asked who they are, and every device's
health and event logs are read; one that has no such command is not asked for it again. Bounds:
DEVICE_LIMIT devices, one turn at a time, EVENTS_KEPT records each.
"""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from firmware.cxl import MS, CxlDevice, CxlFailed, Drained
from firmware.cxl_health import DEFAULT_LIMITS, Finding, HealthLimits, judge
from hal.cxl_ports import (
    Claimed,
    CxlBus,
    CxlInventory,
    CxlMemdev,
    CxlMemdevInfo,
    Disabled,
    NotOffered,
)
from hal.errors import DeviceGone, HalError, Unavailable
from hal.ports import Reactor
from protocol.cxl.codes import ReturnCode
from protocol.cxl.events import EventLog, EventRecord
from protocol.cxl.memory import (
    LIFE_NOT_REPORTED,
    TEMPERATURE_NOT_REPORTED,
    HealthInfo,
    IdentifyMemoryDevice,
)

DEVICE_LIMIT: Final = 64
EVENTS_KEPT: Final = 32  # of each device, the last ones
TURN_MS: Final = 10_000  # as others poll such devices (OpenBIC #2092)
ASK_MS: Final = 4_000  # for one command with its retries; one alone has 2 s (CXL 3.1, 9.20.2)
LOGS: Final = (EventLog.FATAL, EventLog.FAILURE, EventLog.WARNING, EventLog.INFORMATIONAL)

# Errors that say "never": such a command is not asked for again while the device is open.
_NEVER: Final = (NotOffered, Disabled, Claimed)


@dataclass(slots=True, kw_only=True)
class Watched:
    """One device. `None` beside an `..._error` was not read."""

    info: CxlMemdevInfo
    device: CxlDevice | None = None
    error: str = ""  # why it could not be opened or asked who it is
    identity: IdentifyMemoryDevice | None = None
    health: HealthInfo | None = None
    health_error: str = ""
    events_error: str = ""
    findings: list[Finding] = field(default_factory=list)
    events: deque[EventRecord] = field(default_factory=lambda: deque(maxlen=EVENTS_KEPT))
    overflows: int = 0  # events that the device could not keep
    no_health: bool = False
    no_events: bool = False


class CxlWatch:
    """Call `start` on the loop; `status` for `apf cnm show` and its like."""

    def __init__(
        self,
        bus: CxlBus,
        open_memdev: Callable[[str], CxlMemdev],
        reactor: Reactor,
        *,
        limits: HealthLimits = DEFAULT_LIMITS,
        turn_ms: int = TURN_MS,
        tell: Callable[[str, str, str], None] = lambda _name, _code, _text: None,
    ) -> None:
        """`open_memdev(name)`; `tell(name, code, text)` for each finding that is new, each event
        and each device that comes or goes."""
        self._bus, self._open, self._reactor = bus, open_memdev, reactor
        self._limits, self._turn_ns, self._tell = limits, turn_ms * MS, tell
        self.devices: dict[str, Watched] = {}  # by name, at most DEVICE_LIMIT
        self.inventory = CxlInventory()
        self.error = ""  # why there is no CXL here
        self.ignored = 0  # devices beyond the limit
        self.turns = 0
        self._asking = 0  # devices that this turn still waits for
        self._cancel: Callable[[], None] = lambda: None
        self._closed = False

    def start(self) -> None:
        """The first turn now."""
        self._turn()

    def close(self) -> None:
        """Twice is fine."""
        self._closed = True
        self._cancel()
        for watched in self.devices.values():
            if watched.device is not None:
                watched.device.close()
        self.devices.clear()

    def status(self) -> list[dict[str, Any]]:
        """One entry a device, for JSON: null beside `<key>_error` for what can't be read."""
        return [_shown(watched) for _, watched in sorted(self.devices.items())]

    def _turn(self) -> None:
        if self._closed:
            return
        self.turns += 1
        try:
            self.inventory, self.error = self._bus.scan(), ""
        except Unavailable as exc:
            self.inventory, self.error = CxlInventory(), str(exc)
        self._compare({info.name: info for info in self.inventory.memdevs})
        self._asking = 0
        for watched in list(self.devices.values()):
            if watched.device is not None:
                self._asking += 1
                self._ask(watched, watched.device)
        if not self._asking:
            self._next_turn()

    def _next_turn(self) -> None:
        if not self._closed:
            self._cancel = self._reactor.call_at(self._reactor.now_ns() + self._turn_ns, self._turn)

    def _compare(self, there: Mapping[str, CxlMemdevInfo]) -> None:
        for name in [name for name in self.devices if name not in there]:
            gone = self.devices.pop(name)
            if gone.device is not None:
                gone.device.close()
            self._tell(name, "cxl_gone", f"{name} at {gone.info.address} is gone")
        self.ignored = max(0, len(there) - DEVICE_LIMIT)
        for name, info in there.items():
            watched = self.devices.get(name)
            if watched is None:
                if len(self.devices) >= DEVICE_LIMIT:
                    continue
                watched = self.devices[name] = Watched(info=info)
                self._tell(name, "cxl_found", f"{name} at {info.address}")
            watched.info = info
            if watched.device is None:
                self._open_device(watched)

    def _open_device(self, watched: Watched) -> None:
        try:
            watched.device = CxlDevice(self._open(watched.info.name), self._reactor)
            watched.error = ""
        except HalError as exc:
            watched.error = str(exc)

    # --- one device's part of a turn: who it is, its health, its logs, one after another ---

    def _ask(self, watched: Watched, device: CxlDevice) -> None:
        if watched.identity is not None:
            self._ask_health(watched, device)
            return

        def identified(result: IdentifyMemoryDevice | HalError) -> None:
            if isinstance(result, HalError):
                watched.error = str(result)
            else:
                watched.identity, watched.error = result, ""
            if not self._lost(watched, device, result):
                self._ask_health(watched, device)

        device.identify(self._deadline(), identified)

    def _ask_health(self, watched: Watched, device: CxlDevice) -> None:
        if watched.no_health:
            self._ask_events(watched, device, 0)
            return

        def came(result: HealthInfo | HalError) -> None:
            if isinstance(result, HalError):
                watched.health, watched.health_error = None, str(result)
                watched.no_health = _never(result)
                watched.findings = []
            else:
                watched.health, watched.health_error = result, ""
                self._judge(watched, result)
            if not self._lost(watched, device, result):
                self._ask_events(watched, device, 0)

        device.health(self._deadline(), came)

    def _judge(self, watched: Watched, health: HealthInfo) -> None:
        known = {(finding.code, finding.severity) for finding in watched.findings}
        watched.findings = judge(health, self._limits)
        for finding in watched.findings:
            if (finding.code, finding.severity) not in known:
                self._tell(watched.info.name, finding.code, finding.text)

    def _ask_events(self, watched: Watched, device: CxlDevice, which: int) -> None:
        if watched.no_events or which >= len(LOGS):
            self._asked()
            return

        def came(result: Drained | HalError) -> None:
            if isinstance(result, HalError):
                watched.events_error = str(result)
                watched.no_events = _never(result)
            else:
                watched.events_error = result.not_cleared
                self._keep(watched, result)
            if not self._lost(watched, device, result):
                self._ask_events(watched, device, which + 1)

        device.drain_events(LOGS[which], self._deadline(), came)

    def _keep(self, watched: Watched, drained: Drained) -> None:
        watched.events.extend(drained.records)
        watched.overflows += drained.overflows
        name = watched.info.name
        if drained.overflows:
            self._tell(name, "cxl_overflow", f"{drained.overflows} events were lost: log full")
        for record in drained.records:
            kind = record.kind or record.uuid.hex()
            severity = record.severity.name.lower()
            self._tell(name, "cxl_event", f"{severity}: {kind}, handle {record.handle}")

    def _lost(self, watched: Watched, device: CxlDevice, result: object) -> bool:
        """A device that is gone is closed; if a scan still finds it, it is opened again."""
        if not isinstance(result, DeviceGone):
            return False
        watched.error = str(result)
        watched.device = None
        device.close()
        self._asked()
        return True

    def _asked(self) -> None:
        self._asking -= 1
        if self._asking == 0:
            self._next_turn()

    def _deadline(self) -> int:
        return self._reactor.now_ns() + ASK_MS * MS


def _never(error: HalError) -> bool:
    """Whether asking again is of no use."""
    if isinstance(error, CxlFailed):
        return error.return_code in (ReturnCode.UNSUPPORTED, ReturnCode.UNSUPPORTED_MAILBOX)
    return isinstance(error, _NEVER)


def _shown(watched: Watched) -> dict[str, Any]:
    info, health = watched.info, watched.health
    shown: dict[str, Any] = {
        "name": info.name,
        "address": info.address,
        "serial": info.serial,
        "driver": info.driver,
        "firmware": info.firmware_version,
        "volatile_bytes": info.volatile_bytes,
        "persistent_bytes": info.persistent_bytes,
        "label_bytes": info.label_bytes,
        "error": watched.error or None,
        "temp_mdegc": None,
        "life_used_percent": None,
        "media": None,
        "health_error": watched.health_error or None,
        "events_error": watched.events_error or None,
        "overflows": watched.overflows,
        "findings": [
            {"code": f.code, "severity": f.severity.value, "text": f.text} for f in watched.findings
        ],
        "events": [
            {
                "kind": record.kind,
                "severity": record.severity.name.lower(),
                "handle": record.handle,
                "time_ns": record.time_ns,
            }
            for record in watched.events
        ],
    }
    if health is not None:
        if health.temp_degc != TEMPERATURE_NOT_REPORTED:
            shown["temp_mdegc"] = health.temp_degc * 1000
        if health.life_used_percent != LIFE_NOT_REPORTED:
            shown["life_used_percent"] = health.life_used_percent
        shown["media"] = getattr(health.media_status, "name", str(health.media_status)).lower()
    return shown
