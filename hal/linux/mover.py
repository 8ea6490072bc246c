"""The owner's side of a mover: it starts it, restarts it, and has the window that it serves.

A mover (`firmware.mover`, DESIGN D11) alone touches a BAR. Its owner, the card daemon or a module's
agent, has a window of sealed shared memory with it. When the mover dies (SIGBUS, all ones, a bug)
every access to that window raises DeviceGone with the cause, and the doorbell rings so that it is
met at once; a new mover is started after a pause that doubles with each death.

Its control stream brings lines, at most 1 KiB each: `up` once the BAR is open, `down CAUSE` before
it ends by itself, `alive` each second. It ends when the stream does, so it never outlives its
owner. One that is silent for SILENT_NS hangs (a read that nothing answers): it is killed.
"""

import contextlib
import os
import signal
from collections.abc import Callable, Sequence
from typing import Final

from hal.errors import Absent, DeadlinePassed, DeviceGone, HalError, LinkDown, Unavailable
from hal.linux.shm import EventfdDoorbell, ShmWindow, create_window_memfd
from hal.ports import (
    Buffer,
    ByteStream,
    Done,
    Doorbell,
    Event,
    Process,
    ProcessSpec,
    Reactor,
    Spawner,
    Window,
)

MS: Final = 1_000_000
NEAR_BYTES: Final = 2 * (4096 + 64 * 65_536)  # two halves: a ring of 64 slots of 64 KiB in each
BACKOFF_FIRST_NS: Final = 100 * MS
BACKOFF_MOST_NS: Final = 10_000 * MS
ABSENT_NS: Final = 200 * MS
STEADY_NS: Final = 30_000 * MS  # one that was up so long was no failure to start with
SILENT_NS: Final = 15_000 * MS
START_NS: Final = 60_000 * MS  # until its first word: an emulated processor starts Python in 20 s
STOP_NS: Final = 2_000 * MS  # from the end of its stream until it is killed
LINE_LIMIT: Final = 1024
WAITING_LIMIT: Final = 16
WORDS: Final = {
    -int(signal.SIGBUS): "SIGBUS: the device vanished while its memory was read or written",
    -int(signal.SIGSEGV): "SIGSEGV",
    -int(signal.SIGKILL): "SIGKILL",
}

ArgvOf = Callable[[str, str, int], Sequence[str]]  # window, "memfd,bell,bell", control descriptor


class Mover:
    """One window's mover. Loop thread only."""

    def __init__(
        self,
        window: str,
        spawner: Spawner,
        reactor: Reactor,
        argv_of: ArgvOf,
        *,
        log_path: str | None = None,
        say: Callable[[str], None] = lambda text: None,
        absent: Callable[[], str] = lambda: "",
    ) -> None:
        """`window`: the spec string that the mover opens. `say` gets each death's cause.
        `absent()` says why there is nothing to open (an empty slot), "" when there is: until then
        no process is started, and it is asked again each ABSENT_NS."""
        self.window = window
        self.failure: HalError | None = None
        self.restarts = 0
        self.pid: int | None = None
        self._spawner, self._reactor, self._argv_of = spawner, reactor, argv_of
        self._log_path, self._say, self._absent = log_path, say, absent
        self._memfd = create_window_memfd("mover", NEAR_BYTES)
        flags = os.EFD_CLOEXEC | os.EFD_NONBLOCK
        self._to_owner, self._to_mover = os.eventfd(0, flags), os.eventfd(0, flags)
        self._process: Process | None = None
        self._stream: ByteStream | None = None
        self._received = b""
        self._up = self._closed = False
        self._last_words = ""
        self._backoff_ns = BACKOFF_FIRST_NS
        self._up_ns = self._heard_ns = 0
        self._cancel_timer: Callable[[], None] = lambda: None
        self._waiting: list[Callable[[HalError | None], None]] = []
        self._start()

    @property
    def up(self) -> bool:
        return self._up

    def pair(self) -> tuple[Window, Doorbell]:
        """The owner's end, now, whether the mover is up or not."""
        window = ShmWindow(os.dup(self._memfd), "card")
        bell = EventfdDoorbell(os.dup(self._to_owner), os.dup(self._to_mover))
        return _MovedWindow(window, self), _MovedBell(bell, self)

    def submit_open(self, deadline_ns: int, done: Done[tuple[Window, Doorbell]]) -> None:
        """The owner's end as soon as the mover is up, or why it is not."""

        def ended(error: HalError | None) -> None:
            cancel()
            done(self.pair() if error is None else error)

        def late() -> None:
            if ended in self._waiting:
                self._waiting.remove(ended)
                done(DeadlinePassed(f"the mover of {self.window} is not up yet"))

        if self._up:
            # by then it may have ended, or been closed
            self._reactor.post(lambda: done(self.failure or self.pair()))
        elif self._process is None or len(self._waiting) >= WAITING_LIMIT:
            error = self.failure or Unavailable(f"the mover of {self.window} is not running")
            self._reactor.post(lambda: done(error))
        else:
            cancel = self._reactor.call_at(deadline_ns, late)
            self._waiting.append(ended)

    def close(self) -> None:
        """End it in order. Twice is fine; windows that were given out raise from now on."""
        if self._closed:
            return
        self._closed = True
        self.failure = Unavailable(f"the mover of {self.window} was stopped")
        self._cancel_timer()
        self._hang_up()
        process = self._process
        if process is not None:
            self._reactor.call_at(
                self._reactor.now_ns() + STOP_NS, lambda: process.kill(signal.SIGKILL)
            )
        self._answer(self.failure)
        for fd in (self._memfd, self._to_owner, self._to_mover):
            os.close(fd)

    # --- its life ---

    def _start(self) -> None:
        why = self._absent()
        if why:
            self.failure = Absent(f"{self.window}: {why}")
            self._cancel_timer()
            self._cancel_timer = self._reactor.call_at(
                self._reactor.now_ns() + ABSENT_NS, self._start
            )
            self._answer(self.failure)
            return
        stream, control = self._spawner.stream_pair()
        fds = (self._memfd, self._to_mover, self._to_owner)
        spec = ProcessSpec(
            argv=self._argv_of(self.window, ",".join(map(str, fds)), control),
            env=dict(os.environ),
            pass_fds=(*fds, control),
            log_path=self._log_path,
        )
        try:
            self._process = self._spawner.spawn(spec, self._on_exit)
        except HalError as exc:
            stream.close()
            self._fail(f"it can't be started: {exc}")
            return
        self.pid = self._process.pid
        self._stream, self._received, self._last_words = stream, b"", ""
        self._heard_ns = self._reactor.now_ns()
        self._reactor.watch(stream.handle, Event.READ, self._on_stream)
        self._watch_silence()

    def _on_exit(self, status: int) -> None:
        self._process = None
        self._read_stream()  # its last words may still lie there
        self._hang_up()
        if not self._closed:
            words = WORDS.get(status, f"signal {-status}" if status < 0 else f"status {status}")
            self._fail(self._last_words or words)

    def _fail(self, cause: str) -> None:
        now_ns = self._reactor.now_ns()
        if self._up and now_ns - self._up_ns >= STEADY_NS:
            self._backoff_ns = BACKOFF_FIRST_NS
        self._up = False
        pause_ns = self._backoff_ns
        self._backoff_ns = min(2 * pause_ns, BACKOFF_MOST_NS)
        self.failure = DeviceGone(
            f"the mover of {self.window} ended: {cause}; the next one starts {pause_ns // MS} ms "
            "after that"
        )
        self._say(str(self.failure))
        self._cancel_timer()
        self._cancel_timer = self._reactor.call_at(now_ns + pause_ns, self._restart)
        self._answer(self.failure)
        os.eventfd_write(self._to_owner, 1)  # whoever has the window looks now

    def _restart(self) -> None:
        self.restarts += 1
        self._start()

    def _answer(self, error: HalError | None) -> None:
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            call(error)

    # --- its words ---

    def _on_stream(self, _events: Event) -> None:
        if not self._read_stream():
            self._hang_up()
            process = self._process
            if process is not None and not self._closed:  # it can't live without
                process.kill(signal.SIGKILL)

    def _read_stream(self) -> bool:
        """False at its end."""
        if self._stream is None:
            return False
        try:
            self._received += self._stream.read()
        except LinkDown:
            return False
        *lines, self._received = self._received[-4 * LINE_LIMIT :].split(b"\n")
        self._received = self._received[-LINE_LIMIT:]
        for line in lines:
            self._on_line(line[:LINE_LIMIT].decode(errors="replace"))
        return True

    def _on_line(self, line: str) -> None:
        self._heard_ns = self._reactor.now_ns()
        word, _, rest = line.partition(" ")
        if word == "up" and not self._closed:
            self._up, self._up_ns, self.failure = True, self._heard_ns, None
            self._watch_silence()
            self._answer(None)
        elif word == "down":
            self._last_words = rest

    def _watch_silence(self) -> None:
        self._cancel_timer()
        limit_ns = SILENT_NS if self._up else START_NS
        self._cancel_timer = self._reactor.call_at(
            self._heard_ns + limit_ns, lambda: self._on_silence(limit_ns)
        )

    def _on_silence(self, limit_ns: int) -> None:
        if self._reactor.now_ns() - self._heard_ns < limit_ns:
            self._watch_silence()
        elif self._process is not None:
            self._last_words = f"it said nothing for {limit_ns // MS} ms: the device hangs"
            self._process.kill(signal.SIGKILL)

    def _hang_up(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            self._reactor.unwatch(stream.handle)
            stream.close()


class _MovedWindow:
    """The owner's end, as long as its mover lives."""

    def __init__(self, window: ShmWindow, mover: Mover) -> None:
        self._window, self._mover = window, mover

    @property
    def tx_bytes(self) -> int:
        return self._window.tx_bytes

    @property
    def rx_bytes(self) -> int:
        return self._window.rx_bytes

    def write(self, offset: int, data: Buffer) -> None:
        self._check()
        self._window.write(offset, data)

    def read(self, offset: int, length: int) -> memoryview:
        self._check()
        return self._window.read(offset, length)

    def publish(self, offset: int, value: int) -> None:
        self._check()
        self._window.publish(offset, value)

    def acquire(self, offset: int) -> int:
        self._check()
        return self._window.acquire(offset)

    def close(self) -> None:
        self._window.close()

    def _check(self) -> None:
        if self._mover.failure is not None:
            raise self._mover.failure


class _MovedBell:
    def __init__(self, bell: EventfdDoorbell, mover: Mover) -> None:
        self._bell, self._mover = bell, mover

    @property
    def handle(self) -> int:
        return self._bell.handle

    def ring(self) -> None:
        self._bell.ring()

    def clear(self) -> None:
        self._bell.clear()
        if self._mover.failure is not None:
            raise self._mover.failure

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._bell.close()
