"""The program in a guest: takes calls from the host, and runs each in a process of its own.

    host -> guest   {"call": "module:function", "arguments": {...}, "deadline_s": 60, "keep": false}
    guest -> host   {"ready": kernel release}                          once, after the boot
                    {"ask": "qmp"|"event"|"log", ...} -> {"answer": ...} or {"refused": text}
                    {"returned": ..., "health": {...}} or {"failed"|"skipped": text, ...}

One JSON object a line on a virtio-serial port.
"""

import contextlib
import faulthandler
import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from tests.hil.case import Case, Context, Evidence, Skipped
from tests.hil.health import Health, KernelLog, kernel_complaints, leftovers
from tools.polls import polls
from tools.rig.qemu_guest import CHANNEL_PORT

_OUTPUT: Final = Path("/tmp/call.out")  # the guest's own, in its memory
_OUTPUT_BYTES: Final = 8_000
_LINE: Final = 400  # characters of a traceback's line
_SETTLE_STEPS: Final = 60
_SETTLE_STEP_S: Final = 0.05


class HostRefused(Exception):
    """The host could not do what it was asked."""


class Channel:
    """The port to the host; also `tests.hil.case.Host`."""

    def __init__(self) -> None:
        self._file = _find_port().open("r+b", buffering=0)
        self._rest = b""

    def send(self, message: Mapping[str, Any]) -> None:
        data = json.dumps(message).encode() + b"\n"
        while data:
            data = data[self._file.write(data) or 0 :]

    def receive(self) -> dict[str, Any]:
        """Raises EOFError when the host has gone."""
        while b"\n" not in self._rest:
            data = self._file.read(65536)
            if not data:
                raise EOFError("the host closed the channel")
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def ask(self, what: str, body: Mapping[str, Any]) -> Any:
        """What the host answers. Raises HostRefused."""
        self.send({"ask": what, **body})
        answer = self.receive()
        if "refused" in answer:
            raise HostRefused(answer["refused"])
        return answer["answer"]


def main() -> None:
    """Serve calls until the host closes the channel."""
    channel = Channel()
    channel.send({"ready": os.uname().release})
    with contextlib.suppress(EOFError):
        while True:
            _serve(channel, channel.receive())


def _serve(channel: Channel, request: Mapping[str, Any]) -> None:
    """Fork, and say what became of it when the child could not."""
    try:
        function = _resolve(request["call"])
    except Exception:  # noqa: BLE001 - whatever a module does when imported goes into the report
        channel.send({"failed": traceback.format_exc()})
        return
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setsid()
            _run(channel, function, request)
            status = 0
        finally:
            os._exit(status)
    _, wait_status = os.waitpid(pid, 0)
    status = os.waitstatus_to_exitcode(wait_status)
    if status:
        how = signal.Signals(-status).name if status < 0 else f"status {status}"
        channel.send({"failed": f"the process of the call ended by {how}\n{_output()}"})
    channel.send({"left": [] if request["keep"] else leftovers(pid)})


def _run(channel: Channel, function: Callable[..., Any], request: Mapping[str, Any]) -> None:
    """In the child: the call, its judgement, one message."""
    with _OUTPUT.open("wb") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    context = Context(channel)
    before, log = Health.now(), KernelLog()
    faulthandler.enable()
    faulthandler.dump_traceback_later(max(1.0, request["deadline_s"] - 2), exit=True)
    message: dict[str, Any]
    try:
        value = function(context, **request["arguments"])
        message = {"returned": asdict(value) if isinstance(value, Evidence) else value}
        del value
    except Skipped as exc:
        message = {"skipped": str(exc)}
    except BaseException as exc:  # noqa: BLE001 - the report is where it goes
        message = {"failed": _with_locals(exc)}
    faulthandler.cancel_dump_traceback_later()
    complaints = kernel_complaints(log.since(), context.allowed)
    if not request["keep"]:
        # what ends by itself soon after (a worker on its way out, a device being taken away)
        for _ in range(_SETTLE_STEPS):
            if not before.worse(Health.now()):
                break
            time.sleep(_SETTLE_STEP_S)
        complaints += before.worse(Health.now())
    message["complaints"] = complaints
    message["health"] = {**Health.now().figures(before), **context.health}
    message["output"] = _output()
    channel.send(message)


def _with_locals(error: BaseException) -> str:
    """The traceback, with what the variables held: an `assert` says no more than that."""
    if error.__traceback__ and error.__traceback__.tb_next:
        error.__traceback__ = error.__traceback__.tb_next  # without our own frame
    trace = traceback.TracebackException.from_exception(error, capture_locals=True)
    return "\n".join(line[:_LINE] for text in trace.format() for line in text.splitlines())


def _output() -> str:
    sys.stdout.flush()
    return _OUTPUT.read_bytes()[-_OUTPUT_BYTES:].decode(errors="replace")


def _resolve(name: str) -> Callable[..., Any]:
    module, _, function = name.partition(":")
    found = getattr(importlib.import_module(module), function)
    run: Callable[..., Any] = found.run if isinstance(found, Case) else found
    return run


def _find_port() -> Path:
    ports = Path("/sys/class/virtio-ports")
    for _ in polls(10_000, step_ms=20):
        for name in ports.glob("*/name"):
            if name.read_text().strip() == CHANNEL_PORT:
                return Path("/dev") / name.parent.name
    raise RuntimeError(f"no virtio-serial port {CHANNEL_PORT} in {ports}")


if __name__ == "__main__":
    main()
