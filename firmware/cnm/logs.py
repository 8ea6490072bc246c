"""Output of instances in bounded files, addressed by offset (DESIGN D5).

A log is the stream of all bytes that an instance ever wrote, over its generations on this CNM.
It lies in segments `<log key>/<offset of its first byte, 20 digits>`: when the newest holds
SEGMENT_BYTES a new one is begun, and all but the newest SEGMENTS are deleted. So what is kept
begins at the first name and ends at the last name plus its size; init writes, the agent reads.

One turn of the loop reads at most 4 KiB from one instance, and the next read of it comes
PAUSE_NS later: at most 4 MiB/s, so that a chatty instance can neither starve the heartbeats nor
burn the module's processor. What it can't get rid of waits in its pipe, as with any slow reader.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from hal.errors import HalError, LinkDown, Unavailable
from hal.ports import ByteStream, Event, Files, Reactor

SEGMENT_BYTES: Final = 4 << 20
SEGMENTS: Final = 2
PAUSE_NS: Final = 1_000_000
NAME_DIGITS: Final = 20
READ_TRIES: Final = 3  # a segment may be rotated away between the listing and the read


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSlice:
    """`data` begins at `start`; `start` above the wanted offset shows a gap."""

    start: int
    end: int  # bytes ever logged
    data: bytes


class LogFiles:
    """The segments of all logs below one root."""

    def __init__(
        self, files: Files, *, segment_bytes: int = SEGMENT_BYTES, segments: int = SEGMENTS
    ) -> None:
        self._files = files
        self._segment_bytes = segment_bytes
        self._segments = segments

    def append(self, log: str, data: bytes) -> None:
        """Raises HalError with nothing appended."""
        starts = self._starts(log)
        newest = starts[-1] if starts else 0
        size = self._size(log, newest)
        if size >= self._segment_bytes:
            newest += size
            starts.append(newest)
        self._files.append(_path(log, newest), data)
        for old in starts[: -self._segments]:
            self._files.remove(_path(log, old))

    def bounds(self, log: str) -> tuple[int, int]:
        """Offset of the first byte that is kept, and of the end."""
        starts = self._starts(log)
        if not starts:
            return 0, 0
        return starts[0], starts[-1] + self._size(log, starts[-1])

    def read(self, log: str, offset: int, max_bytes: int) -> LogSlice:
        """From `offset`, or from the first byte that is kept; nothing at or past the end."""
        for _ in range(READ_TRIES):
            try:
                return self._read(log, offset, max_bytes)
            except Unavailable:  # rotated away meanwhile: the next look sees the gap
                continue
        start, end = self.bounds(log)
        return LogSlice(start=max(start, offset), end=end, data=b"")

    def remove(self, log: str) -> None:
        """Absent is a success."""
        self._files.remove(log)

    def logs(self) -> list[str]:
        return list(self._files.names(""))

    def _read(self, log: str, offset: int, max_bytes: int) -> LogSlice:
        starts = self._starts(log)
        first, end = self.bounds(log)
        start = min(max(offset, first), end)
        wanted, at, parts = min(max_bytes, end - start), start, []
        for index, begin in enumerate(starts):
            until = starts[index + 1] if index + 1 < len(starts) else end
            if wanted and begin <= at < until:
                part = self._files.read(_path(log, begin), at - begin, min(wanted, until - at))
                parts.append(part)
                at, wanted = at + len(part), wanted - len(part)
        return LogSlice(start=start, end=end, data=b"".join(parts))

    def _starts(self, log: str) -> list[int]:
        names = self._files.names(log)
        return sorted(int(name) for name in names if len(name) == NAME_DIGITS and name.isdigit())

    def _size(self, log: str, start: int) -> int:
        return self._files.size_bytes(_path(log, start)) or 0


def _path(log: str, start: int) -> str:
    return f"{log}/{start:0{NAME_DIGITS}d}"


class LogCapture:
    """Moves what instances write into their logs. Loop thread only; one stream per started
    instance, so their number is bounded by the table of instances."""

    def __init__(
        self, reactor: Reactor, files: LogFiles, open_output: Callable[[int], ByteStream]
    ) -> None:
        """`open_output` makes a stream of an `InstanceHandle.output_fd` and owns it then."""
        self.counters: Counter[str] = Counter()
        self._reactor = reactor
        self._files = files
        self._open_output = open_output
        self._open: dict[int, tuple[str, ByteStream]] = {}  # by handle: log and stream

    def attach(self, log: str, output_fd: int) -> None:
        """Capture until the last writer is gone. -1: this runtime has no output to give."""
        if output_fd < 0:
            return
        try:
            stream = self._open_output(output_fd)
        except HalError:
            self.counters["open_failed"] += 1
            return
        self._open[stream.handle] = log, stream
        self._watch(log, stream)

    def forget(self, log: str) -> None:
        """What comes from now on is not wanted: the log is being deleted."""
        for opened, stream in list(self._open.values()):
            if opened == log:
                self._close(stream)

    def _watch(self, log: str, stream: ByteStream) -> None:
        if self._open.get(stream.handle) == (log, stream):
            self._reactor.watch(stream.handle, Event.READ, lambda _: self._receive(log, stream))

    def _receive(self, log: str, stream: ByteStream) -> None:
        try:
            data = stream.read()
        except LinkDown:
            self._close(stream)
            return
        if data:
            try:
                self._files.append(log, data)
            except HalError:
                self.counters["dropped_bytes"] += len(
                    data
                )  # the disk is full: the instance goes on
        self._reactor.unwatch(stream.handle)
        self._reactor.call_at(self._reactor.now_ns() + PAUSE_NS, lambda: self._watch(log, stream))

    def _close(self, stream: ByteStream) -> None:
        self._reactor.unwatch(stream.handle)
        self._open.pop(stream.handle, None)
        stream.close()

    def close(self) -> None:
        for _log, stream in list(self._open.values()):
            self._close(stream)
