"""The last crashes of the daemon, kept on disk: at most 5 dumps, 200 KB each and 1 MB in all.

A dump is a line of JSON (when, which process, why the supervisor started another one, the stack of
one that was aborted) and then the ring of `firmware.flight_recorder` as it was found.
"""

import json
from dataclasses import dataclass
from typing import Any, Final

from firmware.events import iso_ms
from firmware.flight_recorder import Recording, read_ring
from hal.errors import HalError
from hal.ports import Files

DUMPS_LIMIT: Final = 5
DUMP_LIMIT_BYTES: Final = 200_000
STACK_LIMIT_CHARS: Final = 8_000
REASON_LIMIT_CHARS: Final = 500
PREFIX: Final = "crash-"
WALL_LIMIT_NS: Final = 1 << 64  # as in a ring: until the year 2554


@dataclass(frozen=True, slots=True, kw_only=True)
class Crash:
    """One life of the daemon that did not end well."""

    found_wall_ns: int
    reason: str
    stack: str
    recording: Recording

    def to_json(self) -> dict[str, Any]:
        return {
            "found_at": iso_ms(self.found_wall_ns),
            "started_at": iso_ms(self.recording.started_wall_ns),
            "pid": self.recording.pid,
            "reason": self.reason,
            "stack": self.stack,
            "entries": [entry.to_json() for entry in self.recording.entries],
        }


class CrashStore:
    """Reads and writes on the spot: a dump is small, and there is one a start at most."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._last: Crash | None = None  # of this start, even if the disk did not take it
        self.error = ""  # why the last one could not be kept

    def take(self, ring: bytes, *, wall_ns: int, reason: str, stack: str) -> Crash | None:
        """Look at the ring that the daemon before has left: keep it if that one did not end well.
        A disk that takes nothing costs the file only."""
        recording = read_ring(ring)
        if recording is None or not recording.running:
            return None
        crash = self._last = Crash(
            found_wall_ns=wall_ns,
            reason=reason[:REASON_LIMIT_CHARS],
            stack=stack[:STACK_LIMIT_CHARS],
            recording=recording,
        )
        head = {"found_wall_ns": wall_ns, "reason": crash.reason, "stack": crash.stack}
        data = json.dumps(head).encode() + b"\n" + ring
        try:
            self._make_room()
            if len(data) <= DUMP_LIMIT_BYTES:
                self._files.write(f"{PREFIX}{wall_ns:020d}", data)
            else:
                self.error = f"a dump of {len(data)} B is larger than {DUMP_LIMIT_BYTES}"
        except HalError as exc:
            self.error = str(exc)
        return crash

    def last(self) -> Crash | None:
        """The newest one that can be read."""
        if self._last is not None:
            return self._last
        try:
            for name in reversed(self._names()):
                crash = _parse(self._files.read(name))
                if crash is not None:
                    return crash
        except HalError as exc:
            self.error = str(exc)
        return None

    def count(self) -> int:
        try:
            return len(self._names())
        except HalError:
            return 0

    def _names(self) -> list[str]:
        return [name for name in self._files.names("") if name.startswith(PREFIX)]

    def _make_room(self) -> None:
        names = self._names()
        for name in names[: max(0, len(names) - DUMPS_LIMIT + 1)]:
            self._files.remove(name)


def _parse(data: bytes) -> Crash | None:
    line, _, ring = data.partition(b"\n")
    recording = read_ring(ring)
    try:
        head = json.loads(line)
        found_wall_ns = head["found_wall_ns"]
        if recording is None or not isinstance(found_wall_ns, int):
            return None
        if not 0 <= found_wall_ns < WALL_LIMIT_NS:
            return None
        return Crash(
            found_wall_ns=found_wall_ns,
            reason=str(head["reason"]),
            stack=str(head["stack"]),
            recording=recording,
        )
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
