"""`replay:FILE`: plays a recording of `hal.record` back, for any port that can be recorded.

The calls on a port must be the recorded ones, in their order and with their arguments (times and
deadlines apart); the first that differs raises ReplayMismatch with the line, what it wants and
what came. A completion or event is given on the loop once every call before it in the file has
been made, as soon as possible: time is not played. A handle is ready when its read is the next
call. DMA memory is set to what it held. `finished` tells whether everything was played.

Two openings of one port in one world get the file's first and second of that port.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from hal.errors import HalError, Refused, Unavailable
from hal.ports import Reactor
from hal.record_shapes import APART, DONE, LISTENER, PORTS, SHAPES, Shape
from hal.record_values import decode, encode
from hal.replay_lines import MEMORY_LIMIT_BYTES, check_line

FILE_LIMIT_BYTES: Final = 64 << 20
SHOWN: Final = 160  # characters of a call in an error


class ReplayMismatch(HalError):
    """The calls are not those of the recording; what was played until then stays as it was."""


@dataclass(kw_only=True)
class Signal:
    """What a replayed handle waits on: an event descriptor, or a handle of the virtual kernel."""

    handle: int
    set: Callable[[bool], None]
    close: Callable[[], None]


@dataclass(frozen=True, slots=True)
class _Line:
    number: int  # in the file, from 1
    body: Mapping[str, Any]


@dataclass(kw_only=True)
class _Opening:
    port: str
    first: _Line
    lines: list[_Line] = field(default_factory=list)  # all others of this root, in order
    taken: bool = False


class Recording:
    """One file, read as a whole."""

    def __init__(self, path: Path) -> None:
        """Raises Unavailable (it can't be read) and Refused (it is no recording; says the line)."""
        self.path = path
        self.name = path.name
        self._openings: list[_Opening] = []
        self._roots: list[Replay] = []
        self.complete = True  # False where the recorder ran into its limit
        self._memory_bytes = 0
        try:
            if path.stat().st_size > FILE_LIMIT_BYTES:
                raise Refused(f"{path}: more than {FILE_LIMIT_BYTES} bytes")
            data = path.read_bytes()
        except OSError as exc:
            raise Unavailable(f"replaying {path}: {exc.strerror}") from exc
        by_root: dict[int, _Opening] = {}
        for number, text in enumerate(data.splitlines(), start=1):
            self._take(_Line(number, self._parsed(number, text)), by_root)
        if not self._openings:
            raise Refused(f"{path}: nothing was opened in it")

    def open(self, port: str, reactor: Reactor, make_signal: Callable[[], Signal]) -> Any:
        """The next opening of that port: an object, or a tuple of them. Raises Unavailable when
        the file has no more of them."""
        for opening in self._openings:
            if opening.port == port and not opening.taken:
                opening.taken = True
                root = Replay(self, opening, reactor, make_signal)
                self._roots.append(root)
                made = root.make(opening.first.body["objects"], opening.first)
                return made if len(PORTS[port]) > 1 else made[0]
        held = ", ".join(opening.port for opening in self._openings)
        raise Unavailable(f"{self.path}: no (further) {port} was opened in it, only: {held}")

    @property
    def finished(self) -> bool:
        """Every opening was used and every call of it was made."""
        return all(opening.taken for opening in self._openings) and all(
            root.left == 0 for root in self._roots
        )

    def check_finished(self) -> None:
        """Raises ReplayMismatch that names the first call which was not made."""
        for opening in self._openings:
            if not opening.taken:
                line = opening.first
                raise ReplayMismatch(f"{self.name}:{line.number}: {opening.port} never opened")
        for root in self._roots:
            root.check_finished()

    def _take(self, line: _Line, by_root: dict[int, _Opening]) -> None:
        body = line.body
        if line.number == 1:
            if body.get("recording") != 1:
                raise Refused(f"{self.path}:1: no recording of version 1: {_short(body)}")
            return
        if "end" in body:
            self.complete = body["end"] == "closed"
            return
        where = f"{self.path}:{line.number}"
        try:
            self._memory_bytes += check_line(body)
        except Refused as exc:
            raise Refused(f"{where}: {exc} in {_short(body)}") from exc
        if self._memory_bytes > MEMORY_LIMIT_BYTES:
            raise Refused(f"{where}: more than {MEMORY_LIMIT_BYTES} B of memory in all its buffers")
        if "open" in body:
            opening = _Opening(port=body["open"], first=line)
            by_root[body["n"]] = opening
            self._openings.append(opening)
            return
        root = body.get("root")
        if not isinstance(root, int) or root not in by_root:
            raise Refused(f"{where}: root {root!r:.40}: no line before it opened that")
        by_root[root].lines.append(line)

    def _parsed(self, number: int, text: bytes) -> Mapping[str, Any]:
        try:
            body = json.loads(text)
        except (ValueError, RecursionError) as exc:
            raise Refused(f"{self.path}:{number}: not JSON: {exc}") from exc
        if not isinstance(body, dict):
            raise Refused(f"{self.path}:{number}: want an object, found {_short(body)}")
        return body


class Replay:
    """One opened port of a recording, and all objects that come of it."""

    def __init__(
        self,
        recording: Recording,
        opening: _Opening,
        reactor: Reactor,
        make_signal: Callable[[], Signal],
    ) -> None:
        self._recording = recording
        self._lines = opening.lines
        self._reactor = reactor
        self._make_signal = make_signal
        self._objects: dict[int, _Replayed] = {}
        self._waiting: dict[int, Callable[[Any], None]] = {}  # line -> who is told
        self._at = 0  # the next line that was neither played nor given
        self._broken = ""

    @property
    def left(self) -> int:
        """Lines that were not played."""
        return len(self._lines) - self._at

    def check_finished(self) -> None:
        """Raises ReplayMismatch that names the first call which was not made."""
        if self.left:
            line = self._lines[self._at]
            raise ReplayMismatch(
                f"{self._where(line)}: wanted {_called(line.body)}, found the end; {self.left} "
                "lines of this port were not played"
            )

    def make(self, described: Any, line: _Line) -> tuple[Any, ...]:
        """The objects that a line hands out."""
        made = []
        for entry in described:
            shape = SHAPES[entry["kind"]]
            signal = self._make_signal() if shape.has_handle else None
            item = _Replayed(self, shape, entry["id"], entry["properties"], signal)
            self._objects[item.apf_id] = item
            made.append(item)
        self._show_ready()
        return tuple(made)

    def play(self, item: "_Replayed", name: str, given: dict[str, Any]) -> Any:
        """One call. Raises ReplayMismatch, and what the recorded call raised."""
        if self._broken:
            if name == "close":
                return None  # let who cleans up do so: the first error is the one to read
            raise ReplayMismatch(f"{self._broken}; nothing can be played after that")
        args = {key: encode(value) for key, value in given.items() if key not in APART}
        line = self._lines[self._at] if self.left else None
        found = _called({"on": item.apf_id, "call": name, "args": args})
        if line is None or "call" not in line.body:
            want = "no more call" if line is None else "to be given " + _short(line.body)
            raise self._mismatch(line, want, found)
        want = _called(line.body)
        if (line.body.get("on"), line.body["call"], line.body.get("args")) != (
            item.apf_id,
            name,
            args,
        ):
            raise self._mismatch(line, want, found)
        self._at += 1
        self._store(line, "memory")
        self._store(line, "after")
        return self._played(item, line, given)

    def _played(self, item: "_Replayed", line: _Line, given: dict[str, Any]) -> Any:
        body = line.body
        for key in (DONE, LISTENER):
            if key in given:
                self._waiting[body["n"]] = given[key]
        following = self._lines[self._at] if self.left else None
        if following is not None and following.body.get("raised") == body["n"]:
            self._at += 1
            body = following.body
        self._give_due()
        self._show_ready()
        if "objects" in body:
            made = self.make(body["objects"], line)
            return made if body["many"] else made[0]
        result = decode(body.get("result"))
        if isinstance(result, HalError):
            raise result
        if not item.apf_is_view(line.body["call"]):
            return result
        if not isinstance(result, bytes):
            raise Refused(f"{self._where(line)}: want bytes as what was read, found {result!r:.40}")
        return memoryview(result)

    def _give_due(self) -> None:
        """Completions and events stand before the next call: give them, in order."""
        while self.left:
            line = self._lines[self._at]
            number = line.body.get("done", line.body.get("event"))
            if number is None:
                return
            self._at += 1
            told = self._waiting.get(number)
            if told is None:
                raise Refused(f"{self._where(line)}: completes line {number}, which is no call")
            value = decode(line.body["result" if "done" in line.body else "value"])
            if "done" in line.body:
                del self._waiting[number]
            self._reactor.post(partial(self._give, line, told, value))

    def _give(self, line: _Line, told: Callable[[Any], None], value: Any) -> None:
        self._store(line, "memory")
        told(value)

    def _store(self, line: _Line, key: str) -> None:
        for change in line.body.get(key, ()):
            item, data = self._objects.get(change["id"]), bytes.fromhex(change["hex"])
            if item is None or not item.apf_store(change["at"], data):
                raise Refused(
                    f"{self._where(line)}: {len(data)} B at {change['at']} of object "
                    f"{change['id']}, which has no such memory"
                )

    def _show_ready(self) -> None:
        body = self._lines[self._at].body if self.left else {}
        for item in self._objects.values():
            item.apf_ready(body.get("on") == item.apf_id and body.get("call"))

    def _mismatch(self, line: _Line | None, want: str, found: str) -> ReplayMismatch:
        where = self._recording.name + (":end" if line is None else f":{line.number}")
        self._broken = f"{where}: wanted {want}, found {found}"
        for item in self._objects.values():
            item.apf_ready(None)
        return ReplayMismatch(self._broken)

    def _where(self, line: _Line) -> str:
        return f"{self._recording.name}:{line.number}"


class _Replayed:
    """Stands for one object of a recording."""

    def __init__(
        self,
        root: Replay,
        shape: Shape,
        number: int,
        properties: Mapping[str, Any],
        signal: Signal | None,
    ) -> None:
        self._root, self._shape, self._signal = root, shape, signal
        self.apf_id = number
        self._properties = {name: decode(value) for name, value in properties.items()}
        size = self._properties.get("size_bytes", 0) if shape.has_memory else 0
        self._memory = bytearray(size)

    def __getattr__(self, name: str) -> Any:
        shape = self._shape
        if name in shape.calls:
            return lambda *args, **kwargs: self._call(name, args, kwargs)
        if name in shape.properties:
            return self._properties[name]
        if name == "handle" and self._signal is not None:
            return self._signal.handle
        if name == "view" and shape.has_memory:
            return memoryview(self._memory)
        raise AttributeError(f"a replayed {shape.kind} has no {name!r}, only what its port has")

    def apf_store(self, at: int, data: bytes) -> bool:
        """Memory as it was when the next call came. False for what is outside of it."""
        if at + len(data) > len(self._memory):
            return False
        self._memory[at : at + len(data)] = data
        return True

    def apf_is_view(self, call: object) -> bool:
        """A window's `read` is a view, as the port has it."""
        return (self._shape.kind, call) == ("window", "read")

    def apf_ready(self, call: object) -> None:
        """`call` is what is wanted of this object next, if anything is."""
        if self._signal is not None:
            self._signal.set(call in self._shape.ready_calls)

    def _call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = self._shape.arguments(name, args, kwargs)
        try:
            return self._root.play(self, name, given)
        finally:
            if name == "close" and self._signal is not None:
                self._signal.close()


def _called(body: Mapping[str, Any]) -> str:
    args = ", ".join(f"{name}={_short(value)}" for name, value in body.get("args", {}).items())
    return f"{body.get('call')}({args}) on object {body.get('on')}"


def _short(value: Any) -> str:
    text = json.dumps(value, separators=(",", ":"))
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
