"""A control link of the local board: two ptys, and a relay between them that keeps a UART's pace.

The keeper holds master and slave of both ptys open, so that neither end sees a hang-up when the
other comes or goes, and sets them raw before anybody uses them (cooked, a pty would answer and
eat bytes). Symlinks give the names.

Pace: 10 bits a byte (8N1), a token bucket that holds what the line carries in 4 ms, so that a
frame is at most that much too early and the average is the line's. Bounds: 4 KiB a direction wait
here; when that is full the relay stops reading, and the pty's own buffer (some 16 KiB, measured)
fills behind it until the writer gets "busy".

An unpowered CNM neither hears nor speaks: its bytes are dropped, and power edges flush its side.
Not modelled: overrun at a receiver that does not read, break, modem lines, parity.
"""

import errno
import os
import termios
import tty
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

from hal.errors import Unavailable
from hal.local.faults import NO_FAULTS, Damage, LinkFaults
from hal.ports import READ_LIMIT_BYTES, Event, Reactor

QUEUE_LIMIT_BYTES: Final = 4096  # waiting in one direction
_BITS_PER_BYTE: Final = 10
_NS_PER_S: Final = 1_000_000_000
_MS: Final = 1_000_000
_BUCKET_NS: Final = 4 * _MS
_BUCKET_MIN_BYTES: Final = 16.0
_BUSY_FIRST_NS: Final = 2 * _MS  # a sink that takes nothing is tried again, ever later
_BUSY_LAST_NS: Final = 50 * _MS


class Pty:
    """One pty, held open at both ends, raw, with a symlink to its slave.

    A hang-up of the slave (vhangup(2): a getty that was given the wrong line, an administrator)
    ends every descriptor of it, ours too, and may leave the master with EIO until somebody opens
    it again (tty_io.c, pty.c). So whoever meets EIO here opens the slave anew.
    """

    def __init__(self, link: Path) -> None:
        self.link = link
        try:
            self.master_fd, self.slave_fd = os.openpty()
        except OSError as exc:
            raise Unavailable(f"{link}: no pty: {exc}") from exc
        tty.setraw(self.slave_fd)
        os.set_blocking(self.master_fd, False)
        self._name = os.ttyname(self.slave_fd)
        self.hung_up = False  # and could not be opened again yet
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(self._name)

    def read(self, limit_bytes: int) -> bytes:
        """What the slave's user wrote; nothing when there is nothing."""
        try:
            return os.read(self.master_fd, limit_bytes)
        except BlockingIOError:
            return b""
        except OSError as exc:
            self._after_hang_up(exc)
            return b""

    def write(self, data: bytes) -> int:
        """How much the slave's buffer took."""
        try:
            return os.write(self.master_fd, data)
        except BlockingIOError:
            return 0
        except OSError as exc:
            self._after_hang_up(exc)
            return 0

    def flush(self) -> None:
        """Forget what waits in both directions."""
        try:
            termios.tcflush(self.slave_fd, termios.TCIOFLUSH)
        except termios.error as exc:
            self._after_hang_up(OSError(*exc.args))
            if not self.hung_up:
                termios.tcflush(self.slave_fd, termios.TCIOFLUSH)

    def _after_hang_up(self, exc: OSError) -> None:
        if exc.errno != errno.EIO:
            raise exc
        try:
            fresh = os.open(self._name, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError:  # no descriptor just now: whoever meets EIO next tries again
            self.hung_up = True
            return
        self.hung_up = False
        tty.setraw(fresh)
        os.close(self.slave_fd)
        self.slave_fd = fresh

    def close(self) -> None:
        self.link.unlink(missing_ok=True)
        os.close(self.master_fd)
        os.close(self.slave_fd)


class Direction:
    """Bytes from one pty to the other."""

    def __init__(self, loop: Reactor, name: str, source: Pty, sink: Pty, baud: int) -> None:
        self.counters: Counter[str] = Counter()
        self._loop, self._name, self._source, self._sink = loop, name, source, sink
        self._bytes_per_ns = baud / _BITS_PER_BYTE / _NS_PER_S
        self._bucket = max(_BUCKET_MIN_BYTES, _BUCKET_NS * self._bytes_per_ns)
        self._tokens, self._filled_ns = self._bucket, loop.now_ns()
        self._queue: deque[tuple[int, bytes]] = deque()  # (not before, bytes)
        self._queued_bytes = 0
        self._busy_ns = _BUSY_FIRST_NS
        self._timer_set = self._reading = self._powered = False
        self._cancel_timer: Callable[[], None] = lambda: None
        self.arm(NO_FAULTS)
        self._resume()

    def arm(self, faults: LinkFaults) -> None:
        self._faults = faults
        self._damage = Damage(faults, self._name, self.counters)
        # What a delayed line holds in flight comes on top: at most 10 s of 4 Mbaud, 4 MB.
        in_flight = int(faults.delay_ms * _MS * self._bytes_per_ns)
        self._limit_bytes = QUEUE_LIMIT_BYTES + in_flight

    def power(self, on: bool) -> None:
        self._powered = on
        self._queue.clear()
        self._queued_bytes = 0
        self._resume()

    def close(self) -> None:
        self._loop.unwatch(self._source.master_fd)
        self._cancel_timer()
        self._queue.clear()

    def _resume(self) -> None:
        if not self._reading:
            self._reading = True
            self._loop.watch(self._source.master_fd, Event.READ, self._on_readable)

    def _on_readable(self, _event: Event) -> None:
        room = self._limit_bytes - self._queued_bytes
        if room <= 0:  # back-pressure: the rest stays in the pty, whose writer gets "busy"
            self._reading = False
            self._loop.unwatch(self._source.master_fd)
            return
        data = self._source.read(min(room, READ_LIMIT_BYTES))
        if self._source.hung_up:  # its readiness would keep us busy with nothing
            self._reading = False
            self._loop.unwatch(self._source.master_fd)
            self._later(_BUSY_LAST_NS)
            return
        if not self._powered:
            self.counters["unpowered_bytes"] += len(data)
            return
        self.counters["in_bytes"] += len(data)
        data = self._damage.apply(data)
        if data:
            self._queue.append((self._loop.now_ns() + self._faults.delay_ms * _MS, data))
            self._queued_bytes += len(data)  # duplicates may pass the limit by as much again
            self._pump()

    def _pump(self) -> None:
        now_ns = self._loop.now_ns()
        gained = (now_ns - self._filled_ns) * self._bytes_per_ns
        self._tokens, self._filled_ns = min(self._bucket, self._tokens + gained), now_ns
        while self._queue:
            due_ns, data = self._queue[0]
            wanted = min(len(data), int(self._tokens))
            if due_ns > now_ns:
                self._later(due_ns - now_ns)
                break
            if not wanted:
                # wake for a worthwhile piece, not for every byte
                missing = min(len(data), self._bucket / 2) - self._tokens
                self._later(max(_MS, int(missing / self._bytes_per_ns)))
                break
            taken = self._sink.write(data[:wanted])
            if not taken:
                self._later(self._busy_ns)
                self._busy_ns = min(2 * self._busy_ns, _BUSY_LAST_NS)
                break
            self._busy_ns = _BUSY_FIRST_NS
            self._tokens -= taken
            self._queued_bytes -= taken
            self.counters["out_bytes"] += taken
            if taken == len(data):
                self._queue.popleft()
            else:
                self._queue[0] = (due_ns, data[taken:])
        if self._queued_bytes < self._limit_bytes:
            self._resume()

    def _later(self, delay_ns: int) -> None:
        if not self._timer_set:
            self._timer_set = True
            when_ns = self._loop.now_ns() + delay_ns
            self._cancel_timer = self._loop.call_at(when_ns, self._on_timer)

    def _on_timer(self) -> None:
        self._timer_set = False
        self._pump()


class Relay:
    """One control link: the card's pty, the CNM's pty, and both directions between them."""

    def __init__(self, loop: Reactor, card_link: Path, baud: int) -> None:
        self.faults = NO_FAULTS
        self.card = Pty(card_link)
        self.cnm = Pty(card_link.with_name(card_link.name + ".cnm"))
        self._to_cnm = Direction(loop, "to_cnm", self.card, self.cnm, baud)
        self._to_card = Direction(loop, "to_card", self.cnm, self.card, baud)

    def arm(self, faults: LinkFaults) -> None:
        """Replace the faults of both directions."""
        self.faults = faults
        self._to_cnm.arm(faults)
        self._to_card.arm(faults)

    def power(self, on: bool) -> None:
        """A power edge of the CNM."""
        self.cnm.flush()
        self._to_cnm.power(on)
        self._to_card.power(on)

    def counters(self) -> dict[str, dict[str, int]]:
        return {"to_cnm": dict(self._to_cnm.counters), "to_card": dict(self._to_card.counters)}

    def close(self) -> None:
        for direction in (self._to_cnm, self._to_card):
            direction.close()
        for pty in (self.card, self.cnm):
            pty.close()
