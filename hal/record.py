"""Records every call on a port, with what came of it: `--record FILE`, one JSON object a line.

    {"recording": 1}
    {"n": 1, "t": 0, "root": 1, "open": "cxl", "spec": "cxl:mem0",
     "objects": [{"id": 1, "kind": "cxl", "properties": {"info": {...}}}]}
    {"n": 2, "t": 81042, "root": 1, "on": 1, "call": "submit", "args": {"command": {...}},
     "deadline_in_ns": 2000000000, "result": null}
    {"n": 3, "t": 903311, "root": 1, "done": 2, "result": {"is": "CxlReply", ...}}
    {"n": 4, "t": 955000, "root": 1, "event": 2, "value": {...}}          to a listener
    {"n": 5, "t": 960000, "root": 1, "raised": 2, "result": {...}}        by the call of that line
    {"n": 6, ..., "call": "read32", ..., "result": ..., "memory": [{"id": 4, "at": 0, "hex": ""}]}
    {"n": 9, "t": ..., "end": "full"}                    nothing after this was recorded

`n` is the line, `t` are ns since the start, `id` numbers the objects of a file, `root` the line
that opened the port. A result that is an error was raised, or given to `done`. `memory` holds what
had changed in DMA buffers, whoever wrote it, when the call or completion came; `after` what had
when the call returned. `hal.replay` plays a file back.

A recording must not disturb what it records: when the file is full (`limit_bytes`) or can't be
written, it ends, is counted, and the ports go on. Each line is written at once, in one piece.
"""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from hal.errors import HalError, Unavailable
from hal.record_shapes import APART, DEADLINE, DONE, LISTENER, PORTS, SHAPES, Shape
from hal.record_values import encode
from hal.registry import Spec

LIMIT_BYTES: Final = 64 << 20
LINE_LIMIT_BYTES: Final = 4 << 20  # one call: a window's half may be read at once, up to here
_END_ROOM: Final = 256  # for the line that says that it is full


class Recorder:
    """One file. `wrap` goes into `hal.registry.Registry`. Loop thread only."""

    def __init__(
        self, path: Path, now_ns: Callable[[], int], *, limit_bytes: int = LIMIT_BYTES
    ) -> None:
        """Begins a new file. Raises Unavailable when it can't be made."""
        self._path = path
        self._now_ns = now_ns
        self._limit = limit_bytes
        self._start_ns = now_ns()
        self._written = 0
        self._line = 0
        self._objects = 0
        self.ended = ""  # why nothing is recorded any more
        try:
            self._fd = os.open(
                path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600
            )
        except OSError as exc:
            raise Unavailable(f"recording to {path}: {exc.strerror}") from exc
        self._put({"recording": 1})

    def wrap(self, port: str, spec: Spec, opened: Any) -> Any:
        """What is opened, with a recorder around it. A port without a shape is handed through."""
        kinds = PORTS.get(port)
        if kinds is None:
            return opened
        made = opened if isinstance(opened, tuple) else (opened,)
        root = _Root(self)
        recorded = tuple(
            root.adopt(item, SHAPES[kind]) for item, kind in zip(made, kinds, strict=True)
        )
        root.number = self.line(
            {
                "open": port,
                "spec": spec.text,
                "objects": [item.apf_describe() for item in recorded],
            },
            None,
        )
        return recorded if isinstance(opened, tuple) else recorded[0]

    def close(self) -> None:
        """Twice is fine; the ports stay open and are no longer recorded."""
        if not self.ended:
            self._end("closed")

    # --- for the objects ---

    def line(self, body: dict[str, Any], root: int | None) -> int:
        """Write it; its number. `root` None: the line is one itself."""
        if self.ended:
            return 0
        self._line += 1
        number = self._line
        head = {
            "n": number,
            "t": self._now_ns() - self._start_ns,
            "root": number if root is None else root,
        }
        self._put(head | body)
        return number

    def next_object(self) -> int:
        self._objects += 1
        return self._objects

    def relative_ns(self, deadline_ns: int) -> int:
        return deadline_ns - self._now_ns()

    def _put(self, body: dict[str, Any]) -> None:
        data = json.dumps(body, separators=(",", ":")).encode() + b"\n"
        if len(data) > LINE_LIMIT_BYTES or self._written + len(data) > self._limit - _END_ROOM:
            self._end("full")
            return
        self._write(data)

    def _end(self, why: str) -> None:
        last = {"n": self._line + 1, "end": why}
        self._write(json.dumps(last, separators=(",", ":")).encode() + b"\n")
        if not self.ended:
            self.ended = why
            os.close(self._fd)

    def _write(self, data: bytes) -> None:
        try:
            done = os.write(self._fd, data)
        except OSError as exc:
            done, why = -1, exc.strerror or "write failed"
        else:
            why = "no space"
        self._written += len(data)
        if done != len(data) and not self.ended:
            self.ended = f"{self._path}: {why}"
            os.close(self._fd)


class _Root:
    """One port that was opened, and all objects that came of it."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.number = 0
        self._first = 0
        self._memories: dict[int, tuple[Any, bytearray]] = {}  # id -> buffer, what it held

    def adopt(self, item: Any, shape: Shape) -> "_Recorded":
        number = self.recorder.next_object()
        self._first = self._first or number
        if shape.has_memory:
            self._memories[number] = (item, bytearray(item.view))
        return _Recorded(self, item, shape, number)

    def changes(self) -> list[dict[str, Any]]:
        """Where memory differs from what it was, a run of bytes each."""
        found = []
        for number, (item, before) in self._memories.items():
            now = bytes(item.view)
            if now == before:
                continue
            for start, end in _runs(before, now):
                found.append({"id": number, "at": start, "hex": now[start:end].hex()})
            before[:] = now
        return found

    def forget(self, number: int) -> None:
        """An object was closed; with the one that was opened first all are."""
        if number == self._first:
            self._memories.clear()
        self._memories.pop(number, None)


class _Recorded:
    """Stands for one object: the calls of its shape, its properties, its handle and memory."""

    def __init__(self, root: _Root, item: Any, shape: Shape, number: int) -> None:
        self._root, self._item, self._shape, self._number = root, item, shape, number

    def __getattr__(self, name: str) -> Any:
        shape = self._shape
        if name in shape.calls:
            return lambda *args, **kwargs: self._call(name, args, kwargs)
        if name in shape.properties or (name == "handle" and shape.has_handle):
            return getattr(self._item, name)
        if name == "view" and shape.has_memory:
            return self._item.view
        raise AttributeError(f"a recorded {shape.kind} has no {name!r}, only what its port has")

    def apf_describe(self) -> dict[str, Any]:
        """For the line that hands it out."""
        properties = {name: _shown(getattr(self._item, name)) for name in self._shape.properties}
        return {"id": self._number, "kind": self._shape.kind, "properties": properties}

    def _call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        root, recorder = self._root, self._root.recorder
        given = self._shape.arguments(name, args, kwargs)
        body: dict[str, Any] = {
            "on": self._number,
            "call": name,
            "args": {key: _shown(item) for key, item in given.items() if key not in APART},
        }
        if DEADLINE in given:
            body["deadline_in_ns"] = recorder.relative_ns(given[DEADLINE])
        memory = root.changes()
        if memory:
            body["memory"] = memory
        for key, word in ((DONE, "done"), (LISTENER, "event")):
            if key in given:
                return self._begun(name, args, kwargs, given[key], word, body)
        try:
            result = self._let(name, args, kwargs)
        except HalError as exc:
            self._line(self._after(body | {"result": encode(exc)}))
            raise
        if name == "close":
            root.forget(self._number)
        return self._handed_out(name, body, result)

    def _handed_out(self, name: str, body: dict[str, Any], result: Any) -> Any:
        kind = self._shape.makes.get(name)
        if kind is None:
            self._line(self._after(body | {"result": _shown(result)}))
            return result
        many = isinstance(result, Sequence)
        items = [self._root.adopt(item, SHAPES[kind]) for item in (result if many else (result,))]
        self._line(body | {"objects": [item.apf_describe() for item in items], "many": many})
        return tuple(items) if many else items[0]

    def _begun(
        self,
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        told: Callable[[Any], None],
        word: str,
        body: dict[str, Any],
    ) -> None:
        """A call that is answered later: we stand between the port and who waits for it."""
        number = self._line(body | {"result": None})
        value = "result" if word == "done" else "value"

        def tell(result: Any) -> None:
            changed = self._root.changes()
            self._line(
                {word: number, value: _shown(result)} | ({"memory": changed} if changed else {})
            )
            told(result)

        try:  # as it was called, but for who is told
            self._let(
                name,
                tuple(tell if item is told else item for item in args),
                {key: tell if item is told else item for key, item in kwargs.items()},
            )
        except HalError as exc:  # refused at once, as a wrong request is
            self._line({"raised": number, "result": encode(exc)})
            raise

    def _let(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return getattr(self._item, name)(*args, **kwargs)

    def _after(self, body: dict[str, Any]) -> dict[str, Any]:
        changed = self._root.changes()
        return body | {"after": changed} if changed else body

    def _line(self, body: dict[str, Any]) -> int:
        return self._root.recorder.line(body, self._root.number)


def _shown(value: Any) -> Any:
    """A value that a port shouldn't have is noted by its type: who uses the port isn't to blame,
    and a replay refuses it."""
    try:
        return encode(value)
    except TypeError:
        return {"opaque": type(value).__name__}


def _runs(before: bytes | bytearray, now: bytes, gap: int = 16) -> list[tuple[int, int]]:
    """Where they differ; differences nearer than `gap` bytes are one run."""
    runs: list[list[int]] = []
    block = 4096
    for base in range(0, len(now), block):
        if now[base : base + block] == before[base : base + block]:
            continue
        for at in range(base, min(base + block, len(now))):
            if now[at] != before[at]:
                if runs and at - runs[-1][1] < gap:
                    runs[-1][1] = at + 1
                else:
                    runs.append([at, at + 1])
    return [(start, end) for start, end in runs]
