"""The flight recorder wired into a daemon: what it hears of, and what it says at the next start."""

from collections.abc import Callable
from typing import Any, Final

from firmware.card import Card
from firmware.crash_store import Crash, CrashStore
from firmware.events import Event, EventCode
from firmware.flight_recorder import FlightRecorder, Trace
from firmware.loop import MS, Loop
from hal.ports import Files
from hal.service_ports import TraceMemory

NOBODY_SAID: Final = "nobody said why"
LAST_WORDS_CHARS: Final = 200


class BlackBox:
    """One life of the daemon. It is opened before anything that may fail."""

    def __init__(
        self,
        memory: TraceMemory,
        files: Files,
        *,
        now_ns: Callable[[], int],
        wall_ns: int,
        pid: int,
        reason: str,
        stack: str,
    ) -> None:
        """`reason`: why the supervisor started us; `stack`: what an abort of the life before has
        left. Raises HalError."""
        self.store = CrashStore(files)
        self.crash: Crash | None = self.store.take(
            memory.read(), wall_ns=wall_ns, reason=reason or NOBODY_SAID, stack=stack
        )
        self.recorder = FlightRecorder(memory, now_ns)
        self.recorder.begin(pid=pid, wall_ns=wall_ns, text=f"started: {reason or NOBODY_SAID}")

    def listen(self, loop: Loop, card: Card) -> None:
        """Hear of events, commands, commits and long turns."""
        note = self.recorder.note
        loop.on_long_turn = lambda spent_ns: note(
            Trace.TURN, f"a turn of the loop took {spent_ns // MS} ms"
        )
        card.events.tap = self._on_event
        card.deployer.trace = lambda text: note(Trace.COMMAND, text)
        card.journal.trace = lambda text: note(Trace.COMMIT, text)

    def on_signal(self, number: int) -> None:
        self.recorder.note(Trace.SIGNAL, f"signal {number}")

    def on_withheld(self) -> None:
        self.recorder.note(Trace.WATCHDOG, "a beat was withheld: the loop is behind")

    def say_crash(self, card: Card) -> None:
        """One event about the life before, if it did not end well."""
        crash = self.crash
        if crash is None:
            return
        last = crash.recording.entries[-1].text if crash.recording.entries else "nothing"
        kept = f" (not kept: {self.store.error})" if self.store.error else ""
        card.events.emit(
            EventCode.CARD_CRASHED,
            f"the daemon before, process {crash.recording.pid}, did not end well: {crash.reason}; "
            f"see apf events --last-crash{kept}",
            data={"pid": crash.recording.pid, "last": last[:LAST_WORDS_CHARS]},
        )

    def last_crash(self) -> dict[str, Any]:
        """For the control socket: {"found": False}, or the newest crash whole."""
        crash = self.store.last()
        if crash is None:
            return {"found": False, "kept": 0}
        return {"found": True, "kept": self.store.count(), **crash.to_json()}

    def _on_event(self, event: Event) -> None:
        who = event.instance or event.cnm or ""
        self.recorder.note(Trace.EVENT, f"{event.code} {who} {event.text}")
