"""Asking the keeper: `KeeperClient` on an event loop, `KeeperControl` blocking for tools, tests.

Answers come in any order; they are matched by id, and a late one is counted and its descriptors
closed. When the connection ends, everything that waits fails with PeerGone, and `on_lost` is told:
the keeper's death is the card's power loss, so there is no reconnecting here.
"""

import itertools
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hal.errors import DeadlinePassed, HalError, PeerGone, Refused
from hal.local import wire
from hal.local.wire import JsonObject
from hal.ports import Done, Event, Reactor

OUTGOING_LIMIT: Final = 64  # packets that wait for the socket; more are refused
_PACKETS_A_TURN: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class KeeperReply:
    """The descriptors are the receiver's to close."""

    result: JsonObject
    fds: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pending:
    done: Done[KeeperReply]
    cancel: Callable[[], None]


class KeeperClient:
    """Non-blocking, on the thread of `reactor`. Raises Unavailable when there is no keeper."""

    def __init__(self, run_dir: Path, reactor: Reactor) -> None:
        self.late_answers = 0
        self._reactor = reactor
        self._sock = wire.connect(run_dir)
        self._sock.setblocking(False)
        self._ids = itertools.count(1)
        self._pending: dict[int, _Pending] = {}
        self._outgoing: deque[bytes] = deque()
        self._on_event: list[Callable[[JsonObject], None]] = []
        self._on_lost: list[Callable[[HalError], None]] = []
        self._lost: HalError | None = None
        self._watch()

    @property
    def connected(self) -> bool:
        return self._lost is None

    def request(
        self, op: str, arguments: JsonObject, deadline_ns: int, done: Done[KeeperReply]
    ) -> None:
        """`done` once, later, with the answer, or with Refused, Unavailable, DeadlinePassed or
        PeerGone."""
        number = next(self._ids)
        error: HalError | None = self._lost
        if len(self._pending) >= wire.PENDING_LIMIT or len(self._outgoing) >= OUTGOING_LIMIT:
            error = Refused(f"{op}: {len(self._pending)} requests wait for the keeper already")
        if error is None:
            try:
                data = wire.encode({**arguments, "id": number, "op": op})
                self._send(data)
            except HalError as exc:
                error = exc
        if error is not None:
            failure = error
            self._reactor.post(lambda: done(failure))
            return

        def on_deadline() -> None:
            self._finish(number, DeadlinePassed(f"the keeper did not finish {op} in time"))

        cancel = self._reactor.call_at(deadline_ns, on_deadline)
        self._pending[number] = _Pending(done=done, cancel=cancel)

    def on_event(self, call: Callable[[JsonObject], None]) -> None:
        """Call with every event, in order."""
        self._on_event.append(call)

    def on_lost(self, call: Callable[[HalError], None]) -> None:
        """Call once when the connection is gone."""
        self._on_lost.append(call)

    def close(self) -> None:
        """Nothing is told; what waits is forgotten."""
        for pending in self._pending.values():
            pending.cancel()
        self._pending.clear()
        self._on_lost.clear()
        self._lose(PeerGone("the keeper's client was closed on this side"))

    def _send(self, data: bytes) -> None:
        if self._outgoing or not wire.send(self._sock, data):
            self._outgoing.append(data)
            self._watch()

    def _watch(self) -> None:
        events = Event.READ | Event.WRITE if self._outgoing else Event.READ
        self._reactor.watch(self._sock.fileno(), events, self._on_ready)

    def _on_ready(self, event: Event) -> None:
        try:
            if event & Event.WRITE:
                while self._outgoing and wire.send(self._sock, self._outgoing[0]):
                    self._outgoing.popleft()
                self._watch()
            for _ in range(_PACKETS_A_TURN):
                if self._lost is not None or not self._take():
                    break
        except HalError as exc:
            self._lose(exc)

    def _take(self) -> bool:
        received = wire.receive(self._sock)
        if received is None:
            return False
        message, fds = received
        if "event" in message:
            wire.close_all(fds)
            for call in self._on_event:
                call(message)
            return True
        number = message.get("id")
        if not isinstance(number, int) or number not in self._pending:
            wire.close_all(fds)
            if number is None and message.get("ok") is False:  # we were not let in
                raise PeerGone(f"the keeper refuses us: {wire.result_of(message)}")
            self.late_answers += 1
            return True
        result = wire.result_of(message)
        if isinstance(result, HalError):
            wire.close_all(fds)
            self._finish(number, result)
        else:
            self._finish(number, KeeperReply(result=result, fds=tuple(fds)))
        return True

    def _finish(self, number: int, result: KeeperReply | HalError) -> None:
        pending = self._pending.pop(number)
        pending.cancel()
        pending.done(result)

    def _lose(self, error: HalError) -> None:
        if self._lost is not None:
            return
        self._lost = error
        self._reactor.unwatch(self._sock.fileno())
        self._sock.close()
        self._outgoing.clear()
        for number in list(self._pending):
            self._finish(number, error)
        for call in self._on_lost:
            call(error)


class KeeperControl:
    """Blocking, one request at a time. Events that come meanwhile are kept in `events`."""

    def __init__(self, run_dir: Path, *, timeout_s: float = 10.0) -> None:
        self.events: deque[JsonObject] = deque(maxlen=256)  # the oldest go first
        self._sock = wire.connect(run_dir)
        self._sock.settimeout(timeout_s)
        self._ids = itertools.count(1)

    def call(self, op: str, **arguments: object) -> JsonObject:
        """The result. Raises the error that the keeper gave, or DeadlinePassed."""
        reply = self.call_with_fds(op, **arguments)
        wire.close_all(reply.fds)
        return reply.result

    def call_with_fds(self, op: str, **arguments: object) -> KeeperReply:
        """As `call`; the descriptors are the caller's."""
        number = next(self._ids)
        wire.send(self._sock, wire.encode({**arguments, "id": number, "op": op}))
        while True:
            message, fds = self._receive(op)
            if "event" in message:
                wire.close_all(fds)
                self.events.append(message)
            elif message.get("id") in (number, None):
                result = wire.result_of(message)
                if isinstance(result, HalError):
                    wire.close_all(fds)
                    raise result
                return KeeperReply(result=result, fds=tuple(fds))
            else:
                wire.close_all(fds)

    def wait_event(self) -> JsonObject:
        """The next event, kept or new."""
        if self.events:
            return self.events.popleft()
        message, fds = self._receive("an event")
        wire.close_all(fds)
        return message

    def close(self) -> None:
        self._sock.close()

    def _receive(self, what: str) -> tuple[JsonObject, list[int]]:
        return receive_in_time(self._sock, what)


def receive_in_time(sock: socket.socket, what: str) -> tuple[JsonObject, list[int]]:
    """The next packet of a socket with a time-out. Raises DeadlinePassed and PeerGone."""
    try:
        received = wire.receive(sock)
    except PeerGone as exc:
        if isinstance(exc.__cause__, TimeoutError):
            raise DeadlinePassed(f"{what}: no answer in {sock.gettimeout()} s") from exc
        raise
    if received is None:
        raise DeadlinePassed(f"{what}: no answer in {sock.gettimeout()} s")
    return received
