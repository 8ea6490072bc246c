"""The host's side of machines: boot them, call functions in them, answer what they ask."""

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from hal.linux.clock import LinuxClock
from tests.hil.case import Case, Skipped
from tools.rig.qemu import Machine, Qemu
from tools.rig.qemu_qmp import MachineGone, MachineSilent, QmpError

ROOT: Final = Path(__file__).parents[2]
BOOT_S: Final = 120  # 6 s on an idle machine with two cores
_PROGRAM: Final = (str(ROOT / ".venv/bin/python"), "-m", "tests.hil.guest")
_SLACK_S: Final = 15  # a call's health checks, beyond its deadline
_CONSOLE_LINES: Final = 40

Tell = Callable[[str], None]


class GuestFailed(Exception):
    """A function in a guest failed; the text is its traceback, and what was unhealthy."""


class GuestLost(GuestFailed):
    """A guest is gone or does not answer: nothing more can be run in it."""


@dataclass(kw_only=True)
class Outcome:
    """What came back from a call."""

    value: Any = None
    failed: str = ""
    skipped: str = ""
    complaints: list[str] = field(default_factory=list)
    health: dict[str, int] = field(default_factory=dict)
    output: str = ""


class Guest:
    """One machine with our program in it."""

    def __init__(self, machine: Machine, tell: Tell) -> None:
        self.machine, self.tell = machine, tell
        self.vm = Qemu(machine, program=_PROGRAM, folder=ROOT)
        self.kernel = ""
        self.boot_s = 0.0
        self._clock = LinuxClock()

    def await_boot(self) -> None:
        """Raises GuestLost with the end of the console."""
        try:
            self.kernel = self.vm.lines.receive(BOOT_S)["ready"]
        except (MachineGone, MachineSilent) as exc:
            raise self._lost(f"it did not boot: {exc}") from exc
        self.boot_s = self.vm.age_s

    def qmp(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """A command of QEMU's. Raises QmpError, MachineSilent, GuestLost with QEMU's last words."""
        try:
            return self.vm.qmp.command(command, arguments)
        except MachineGone as exc:
            raise self._lost(f"{command}: {exc}; QEMU said: {self.vm.said()}") from exc

    def event(self, name: str, timeout_s: float = 20, **data: Any) -> dict[str, Any]:
        """Wait for an event of QEMU's. Raises MachineGone, MachineSilent."""
        return self.vm.qmp.wait_event(name, timeout_s, **data)

    def kill(self) -> None:
        """As if its power were cut."""
        self.vm.kill()

    def start(
        self,
        function: Callable[..., Any] | Case,
        *,
        deadline_s: float = 60,
        keep: bool = True,
        **arguments: Any,
    ) -> "Pending":
        """Begin a function(ctx, **arguments) in the guest. One at a time in each guest. `keep`:
        processes and devices that it leaves are meant to stay."""
        run = function.run if isinstance(function, Case) else function
        self.vm.lines.send(
            {
                "call": f"{run.__module__}:{run.__qualname__}",
                "arguments": arguments,
                "deadline_s": deadline_s,
                "keep": keep,
            }
        )
        return Pending(self, self._clock.now_ns() + int((deadline_s + _SLACK_S) * 1e9))

    def call(self, function: Callable[..., Any] | Case, **arguments: Any) -> Any:
        """What it returned. Raises GuestFailed, Skipped."""
        return self.start(function, **arguments).result()

    def receive(self, until_ns: int) -> dict[str, Any]:
        """The next message that is not a question. Raises GuestLost."""
        while True:  # ends at `until_ns`
            left_s = (until_ns - self._clock.now_ns()) / 1e9
            try:
                message = self.vm.lines.receive(max(0.001, left_s))
            except (MachineGone, MachineSilent) as exc:
                raise self._lost(str(exc)) from exc
            if "ask" not in message:
                return message
            try:
                self.vm.lines.send(self._answer(message))
            except (MachineGone, MachineSilent) as exc:
                raise self._lost(str(exc)) from exc

    def close(self) -> None:
        self.vm.stop()
        self._clock.close()

    def _answer(self, ask: Mapping[str, Any]) -> dict[str, Any]:
        try:
            if ask["ask"] == "qmp":
                return {"answer": self.qmp(ask["command"], ask["arguments"])}
            if ask["ask"] == "event":
                return {"answer": self.event(ask["event"], ask["timeout_s"], **ask["data"])}
            if ask["ask"] == "log":
                self.tell(ask["text"])
                return {"answer": None}
        except (QmpError, MachineSilent) as exc:
            return {"refused": str(exc)}
        return {"refused": f"unknown question {ask['ask']}"}

    def _lost(self, why: str) -> GuestLost:
        end = "\n".join(self.vm.console().splitlines()[-_CONSOLE_LINES:])
        return GuestLost(f"{self.machine.name}: {why}\nend of its console:\n{end}")


class Pending:
    """A function that runs in a guest."""

    def __init__(self, guest: Guest, until_ns: int) -> None:
        self._guest, self._until_ns = guest, until_ns
        self._outcome: Outcome | None = None

    def outcome(self) -> Outcome:
        """Wait for its end, whatever it is. Raises GuestLost."""
        if self._outcome is None:
            found = Outcome()
            while True:  # ends: the guest's program sends "left" once its process has ended
                message = self._guest.receive(self._until_ns)
                if "left" in message:
                    found.complaints += message["left"]
                    break
                found.value = message.get("returned", found.value)
                found.failed = message.get("failed", found.failed)
                found.skipped = message.get("skipped", found.skipped)
                found.complaints += message.get("complaints", [])
                found.health.update(message.get("health", {}))
                found.output = message.get("output", found.output)
            self._outcome = found
        return self._outcome

    def result(self) -> Any:
        """What it returned. Raises GuestFailed (also when the machine was left unhealthy),
        Skipped."""
        found = self.outcome()
        if found.skipped:
            raise Skipped(found.skipped)
        if found.failed or found.complaints:
            raise GuestFailed(why_failed(found, self._guest.machine.name))
        return found.value


def why_failed(found: Outcome, where: str) -> str:
    """In words."""
    parts = [found.failed.strip(), *found.complaints]
    if found.output.strip():
        parts.append("it printed:\n" + found.output.strip())
    return f"{where}: " + "\n".join(part for part in parts if part)


class Rig:
    """Machines of one case, all taken down in the end; `folder` is theirs, and goes with them."""

    def __init__(self, tell: Tell) -> None:
        self.tell = tell
        self._guests = contextlib.ExitStack()
        # in memory: sockets that join machines, files that are the memory of devices
        where = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.folder = Path(tempfile.mkdtemp(prefix="apf-rig-", dir=where))
        self._guests.callback(shutil.rmtree, self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._guests.close()

    def boot(self, *machines: Machine) -> list[Guest]:
        """Start them together and wait until all run. Raises GuestLost, GuestMissing."""
        guests = []
        for machine in machines:
            guest = Guest(machine, self.tell)
            self._guests.callback(guest.close)
            guests.append(guest)
        for guest in guests:
            guest.await_boot()
            self.tell(f"{guest.machine.name} is up after {guest.boot_s:.1f} s")
        return guests


def to_stderr(text: str) -> None:
    """A line for who watches."""
    print(text, file=sys.stderr, flush=True)
