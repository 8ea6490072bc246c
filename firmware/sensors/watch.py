"""One part of the board as its monitor knows it: what it read last, and what is wrong with it.

Pure: times come in, verdicts go out. The verdict of a poll is a list of `Finding`s, each told
once when it begins and once when it ends.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from firmware.board_hardware import Device
from firmware.sensors.parts import Limit, limits_of
from firmware.sensors.steps import BadAnswer, Readings, WrongPart
from hal.errors import Absent, HalError

FAILURES: Final = 3  # polls in a row before it is told
STUCK_NS: Final = 900_000_000_000  # no reading moved at all for so long
STUCK_POLLS: Final = 100  # and not over so many polls
STALE_PERIODS: Final = 5
QUIET_ROLES: Final = frozenset({"gpio"})  # may well stay as they are for years


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that began or ended with this poll."""

    kind: str  # "absent", "wrong", "failed", "stuck" or the limit's name
    begins: bool
    text: str
    data: Mapping[str, int | str | None] = field(default_factory=dict)


class Watch:
    """One device."""

    def __init__(self, device: Device, period_ns: int) -> None:
        self.device = device
        self.period_ns = period_ns
        self.limits: tuple[Limit, ...] = limits_of(device)
        self.open: set[str] = set()  # findings that have begun: at most one of each kind
        self.known = False  # identified and configured since it last was away
        self.error: HalError | None = None
        self._readings: Readings | None = None
        self._read_ns = 0
        self._moved_ns = 0  # when any reading last was another
        self._same = 0
        self._failures = 0

    def readings(self, now_ns: int) -> Readings | None:
        """The last ones; None when they are too old to be believed."""
        if self._readings is None or now_ns - self._read_ns > STALE_PERIODS * self.period_ns:
            return None
        return self._readings

    def on_readings(self, readings: Readings, now_ns: int) -> list[Finding]:
        """A poll has gone well."""
        found = [
            Finding(kind=kind, begins=False, text=f"{self.device.id}: {kind} no more")
            for kind in ("absent", "wrong", "failed")
            if kind in self.open
        ]
        self.open -= {"absent", "wrong", "failed"}
        self._failures, self.error = 0, None
        if readings == self._readings:
            self._same += 1
        else:
            self._same, self._moved_ns = 0, now_ns
        self._readings, self._read_ns = readings, now_ns
        found += self._judge_stuck(now_ns)
        for limit in self.limits:
            found += self._judge_limit(limit, readings.get(limit.reading))
        return found

    def away(self) -> None:
        """Its module is off: what it read says nothing any more, and nothing is wrong."""
        self.known = False
        self.open.clear()
        self._readings, self._same, self._failures, self.error = None, 0, 0, None

    def on_error(self, error: HalError) -> list[Finding]:
        """A poll has failed for a reason that is the part's own."""
        self.error = error
        self.known = False
        self._failures += 1
        if isinstance(error, WrongPart | BadAnswer):
            kind = "wrong"
        else:
            kind = "absent" if isinstance(error, Absent) else "failed"
        if self._failures < FAILURES or kind in self.open:
            return []
        ended = [
            Finding(kind=other, begins=False, text=f"{self.device.id}: {other} no more")
            for other in ("absent", "wrong", "failed")
            if other in self.open
        ]
        self.open -= {"absent", "wrong", "failed"}
        self.open.add(kind)
        text = f"{self.device.id} ({self.device.part}): {kind}, {self._failures} times: {error}"
        return [*ended, Finding(kind=kind, begins=True, text=text)]

    def _judge_stuck(self, now_ns: int) -> list[Finding]:
        device = self.device
        if device.role in QUIET_ROLES:
            return []
        still_ns = now_ns - self._moved_ns
        stuck = self._same >= STUCK_POLLS and still_ns >= STUCK_NS
        if stuck and "stuck" not in self.open:
            self.open.add("stuck")
            text = f"{device.id} ({device.part}): no reading has moved for {still_ns // 10**9} s"
            return [Finding(kind="stuck", begins=True, text=text, data=dict(self._readings or {}))]
        if self._same == 0 and "stuck" in self.open:
            self.open.discard("stuck")
            return [Finding(kind="stuck", begins=False, text=f"{device.id}: moves again")]
        return []

    def _judge_limit(self, limit: Limit, value: int | None) -> list[Finding]:
        if value is None:
            return []
        data: dict[str, int | str | None]
        data = {"reading": limit.reading, "value": value, "limit": limit.value}
        if limit.name not in self.open and limit.broken(value):
            self.open.add(limit.name)
            text = f"{self.device.id}: {limit.reading} is {value}, {limit.name} is {limit.value}"
            return [Finding(kind=limit.name, begins=True, text=text, data=data)]
        if limit.name in self.open and limit.mended(value):
            self.open.discard(limit.name)
            text = f"{self.device.id}: {limit.reading} is {value} again"
            return [Finding(kind=limit.name, begins=False, text=text, data=data)]
        return []
