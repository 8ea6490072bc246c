"""QEMU's machine protocol on a UNIX socket. Ref: QEMU, docs/interop/qmp-spec.rst.

QmpError          a command that QEMU refused: its class and text
MachineGone       the socket closed: QEMU has ended
MachineSilent     nothing came in time
"""

import contextlib
import json
import socket
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from hal.linux.clock import LinuxClock

_EVENTS_KEPT: Final = 1_000  # a hundred hot-plugs leave a few hundred; the oldest go first
_LINE_BYTES: Final = 4 * 1024 * 1024  # query-qmp-schema answers with 1 MiB


class MachineGone(Exception):
    """QEMU has closed its end."""


class MachineSilent(Exception):
    """Nothing came in time."""


class QmpError(Exception):
    """A command was refused; `kind` is QEMU's error class."""

    def __init__(self, command: str, kind: str, text: str) -> None:
        super().__init__(f"{command}: {text} ({kind})")
        self.kind = kind


class Lines:
    """JSON objects, one a line, on a connected socket; every read has a deadline."""

    def __init__(self, link: socket.socket, name: str) -> None:
        self._link, self._name = link, name
        self._clock = LinuxClock()
        self._rest = bytearray()

    def send(self, message: Mapping[str, Any]) -> None:
        """Raises MachineGone, or MachineSilent when the far end does not read."""
        try:
            self._link.settimeout(10)
            self._link.sendall(json.dumps(message).encode() + b"\n")
        except TimeoutError as exc:
            raise MachineSilent(f"{self._name}: takes no message") from exc
        except OSError as exc:
            raise MachineGone(f"{self._name}: {exc}") from exc

    def receive(self, timeout_s: float) -> dict[str, Any]:
        """The next object. Raises MachineSilent, MachineGone, ValueError (not JSON, too long)."""
        until_ns = self._clock.now_ns() + int(timeout_s * 1e9)
        while (end := self._rest.find(b"\n")) < 0:
            left_s = (until_ns - self._clock.now_ns()) / 1e9
            if left_s <= 0:
                raise MachineSilent(f"{self._name}: nothing within {timeout_s:g} s")
            if len(self._rest) > _LINE_BYTES:
                raise ValueError(f"{self._name}: a line longer than {_LINE_BYTES} B")
            self._link.settimeout(left_s)
            with contextlib.suppress(TimeoutError):
                self._read()
        line = bytes(self._rest[:end])
        del self._rest[: end + 1]
        message = json.loads(line)
        if not isinstance(message, dict):
            raise TypeError(f"{self._name}: an object was expected, found {line[:80]!r}")
        return message

    def _read(self) -> None:
        try:
            data = self._link.recv(65536)
        except ConnectionError as exc:
            raise MachineGone(f"{self._name}: {exc}") from exc
        if not data:
            raise MachineGone(f"{self._name}: closed by the other end")
        self._rest += data

    def close(self) -> None:
        self._clock.close()
        self._link.close()


def connect(path: Path, name: str) -> Lines:
    """Lines on a UNIX socket. Raises OSError."""
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        link.settimeout(10)
        link.connect(str(path))
    except OSError:
        link.close()
        raise
    return Lines(link, name)


class Qmp:
    """Commands and events of one machine."""

    def __init__(self, lines: Lines) -> None:
        """Raises MachineSilent, MachineGone, QmpError."""
        self._lines = lines
        self._events: deque[dict[str, Any]] = deque(maxlen=_EVENTS_KEPT)
        self._lines.receive(30)  # the greeting
        self.command("qmp_capabilities")

    def command(self, name: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """What QEMU returns. Raises QmpError, MachineSilent, MachineGone."""
        message: dict[str, Any] = {"execute": name}
        if arguments:
            message["arguments"] = dict(arguments)
        self._lines.send(message)
        while True:  # ends: each turn takes an event, or raises when nothing comes
            answer = self._lines.receive(30)
            if "event" in answer:
                self._events.append(answer)
            elif "error" in answer:
                error = answer["error"]
                raise QmpError(name, error["class"], error["desc"])
            else:
                return answer["return"]

    def wait_event(self, event: str, timeout_s: float, **data: Any) -> dict[str, Any]:
        """The first event of that name whose data has these values, kept or still to come; it is
        taken out. Raises MachineSilent, MachineGone."""
        for kept in self._events:
            if _is(kept, event, data):
                self._events.remove(kept)
                return dict(kept.get("data", {}))
        while True:  # ends: `receive` raises in the end, a machine does not send events for ever
            answer = self._lines.receive(timeout_s)
            if _is(answer, event, data):
                return dict(answer.get("data", {}))
            self._events.append(answer)

    def close(self) -> None:
        self._lines.close()


def _is(answer: Mapping[str, Any], event: str, data: Mapping[str, Any]) -> bool:
    found = answer.get("data", {})
    return answer.get("event") == event and all(found.get(key) == data[key] for key in data)
