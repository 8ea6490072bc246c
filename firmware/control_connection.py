"""One client of the control socket, and its limits (DESIGN D9; INTERFACES.md).

Above the stream port, below `firmware.rpc`. Every limit and its answer:

- A request line of 1 MiB; a longer one is told "request_too_large" and its connection closed.
- A half request that does not end within 10 s: told "request_timeout", closed.
- 500 requests a second and connection after a burst of 1,000: no more is read for a while, so
  that the sender waits; nothing is lost.
- 64 open answers a connection ("too_many_outstanding"); each is given up after 10 minutes
  ("deadline_passed").
- Answers that are not read: above 256 KiB no further request is taken and no notification is
  pushed (a subscription then shows a gap); a peer that reads nothing for 30 s, or lets 1 MiB
  stand while more is added, is cut off and counted.
- 4 descriptors that wait for their request; more close the connection.
"""

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

from firmware import rpc
from firmware.tokens import Tokens
from hal.errors import LinkDown, Refused
from hal.ports import Event, Reactor
from hal.service_ports import PeerCredentials, StreamConnection

MAX_LINE_BYTES: Final = 1 << 20
HALF_REQUEST_NS: Final = 10_000_000_000
RATE_PER_S: Final = 500
RATE_BURST: Final = 1000
MAX_OUTSTANDING: Final = 64
ANSWER_NS: Final = 600_000_000_000
BACKLOG_PAUSE_BYTES: Final = 256 << 10
BACKLOG_CUT_BYTES: Final = 1 << 20
WRITE_STALL_NS: Final = 30_000_000_000
MAX_WAITING_FDS: Final = 4
LINES_A_TURN: Final = 32  # requests of one connection in one turn of the loop


class Server(Protocol):
    """What a connection needs of `firmware.control_socket.ControlSocket`."""

    @property
    def reactor(self) -> Reactor: ...

    @property
    def dispatcher(self) -> rpc.Dispatcher: ...

    @property
    def counters(self) -> Counter[str]: ...

    def forget(self, connection: "Connection") -> None:
        """It is closed."""
        ...


class Connection:
    """One client (rpc.Caller). Loop thread only."""

    def __init__(
        self, server: Server, stream: StreamConnection, role: rpc.Role, now_ns: int
    ) -> None:
        self._server = server
        self._stream = stream
        self._role = role
        self._in = bytearray()
        self._scanned = 0  # bytes of `_in` known to hold no newline
        self._half_since_ns: int | None = None
        self._out: deque[memoryview] = deque()
        self._out_bytes = 0
        self._progress_ns = now_ns  # when the peer last took something, or had all
        self._fds: list[int] = []
        self._tokens = Tokens(now_ns, per_s=RATE_PER_S, burst=RATE_BURST)
        self._open: dict[int, tuple[rpc.Deferred, int]] = {}  # at most MAX_OUTSTANDING
        self._room_calls: list[Callable[[], None]] = []
        self._close_calls: list[Callable[[], None]] = []
        self._behind = False
        self._closing = False  # close as soon as everything is written
        self._closed = False
        self._ended = False  # the peer sends no more; what is open is still answered
        self._resume_due = False
        self._held = False  # complete lines wait until the backlog is read
        self._watched = Event(0)

    # --- rpc.Caller ---

    @property
    def role(self) -> rpc.Role:
        return self._role

    @property
    def peer(self) -> PeerCredentials:
        return self._stream.peer

    @property
    def closed(self) -> bool:
        return self._closed

    def notify(self, method: str, params: Mapping[str, object]) -> bool:
        if self._closed or self._closing:
            return False
        if self._out_bytes >= BACKLOG_PAUSE_BYTES:
            self._behind = True
            self._server.counters["notifications_held"] += 1
            return False
        self._send(rpc.notification_line(method, params))
        return not self._closed

    def discard(self, fds: Sequence[int]) -> None:
        self._stream.discard(fds)

    def on_room(self, call: Callable[[], None]) -> None:
        self._room_calls.append(call)

    def on_close(self, call: Callable[[], None]) -> None:
        self._close_calls.append(call)

    # --- from the socket ---

    def start(self) -> None:
        self._rewatch()

    def on_ready(self, events: Event) -> None:
        if events & Event.WRITE:
            self._flush()
        if not self._closed and events & (Event.READ | Event.HANGUP) and self._may_read():
            self._read()
        elif not self._closed and events & Event.HANGUP and self._closing:
            self.close()  # gone, and nothing of it is wanted

    def _may_read(self) -> bool:
        return not (self._closing or self._ended or self._resume_due or self._paused())

    def _paused(self) -> bool:
        return self._out_bytes >= BACKLOG_PAUSE_BYTES

    def _read(self) -> None:
        try:
            data, fds = self._stream.read()
        except LinkDown:
            self._end()
            return
        except Refused as exc:
            self.end_with(rpc.RpcError(rpc.INVALID_REQUEST, "too_many_descriptors", str(exc)))
            return
        self._fds.extend(fds)
        if len(self._fds) > MAX_WAITING_FDS:
            self.end_with(
                rpc.RpcError(
                    rpc.INVALID_REQUEST,
                    "too_many_descriptors",
                    f"{len(self._fds)} descriptors wait for a request, at most {MAX_WAITING_FDS}",
                )
            )
            return
        self._in += data
        self._take_lines()

    def _end(self) -> None:
        """The peer has closed its side, perhaps only that (`nc -U`): answer what is open."""
        self._ended = True
        self._in.clear()
        self._half_since_ns = None
        self._drop_fds()
        self._close_if_done()
        self._rewatch()

    def _close_if_done(self) -> None:
        if self._out or self._closed:
            return
        if self._closing or (self._ended and all(d.settled for d, _ in self._open.values())):
            self.close()

    def _take_lines(self) -> None:
        for _ in range(LINES_A_TURN):
            if self._closed or self._closing:
                break
            if self._paused():
                self._held = True
                break
            end = self._in.find(b"\n", self._scanned)
            if end < 0:
                self._scanned = len(self._in)
                break
            if end > MAX_LINE_BYTES:
                break
            now_ns = self._server.reactor.now_ns()
            if not self._tokens.take(now_ns):
                self._server.counters["throttled"] += 1
                self._resume_at(now_ns + 1_000_000_000 // RATE_PER_S)
                break
            line = bytes(self._in[:end])
            del self._in[: end + 1]
            self._scanned = 0
            self._half_since_ns = None
            self._take_line(line)
        else:
            self._resume_at(self._server.reactor.now_ns())  # others first, then the rest
        if self._closed:
            return
        self._judge_rest()
        self._rewatch()

    def _judge_rest(self) -> None:
        if not self._in:
            self._half_since_ns = None
            if self._fds and not self._closing:  # they came with no request that takes them
                self._server.counters["descriptors_unclaimed"] += len(self._fds)
                self._drop_fds()
            return
        if self._half_since_ns is None:
            self._half_since_ns = self._server.reactor.now_ns()
        if len(self._in) > MAX_LINE_BYTES and self._in.find(b"\n", 0, MAX_LINE_BYTES + 1) < 0:
            self._server.counters["too_large"] += 1
            self.end_with(
                rpc.RpcError(
                    rpc.INVALID_REQUEST,
                    "request_too_large",
                    f"a request has at most {MAX_LINE_BYTES} bytes",
                )
            )

    def _resume_at(self, when_ns: int) -> None:
        if not self._resume_due:
            self._resume_due = True
            self._server.reactor.call_at(when_ns, self._resume)

    def _resume(self) -> None:
        self._resume_due = False
        if not self._closed:
            self._take_lines()

    def _take_line(self, line: bytes) -> None:
        if not line.strip():
            return
        self._server.counters["requests"] += 1
        self._prune()
        if len(self._open) >= MAX_OUTSTANDING:
            self._refuse_outstanding(line)
            return
        deferred = self._server.dispatcher.dispatch(line, self, self._fds, self._send)
        if deferred is not None and not self._closed:
            due_ns = self._server.reactor.now_ns() + ANSWER_NS
            self._open[id(deferred)] = (deferred, due_ns)

    def _refuse_outstanding(self, line: bytes) -> None:
        request_id: rpc.RequestId = None
        try:
            value = rpc.parse(line)
            if isinstance(value, dict):
                request_id = rpc.read_id(value.get("id"))
            error = rpc.busy(
                "too_many_outstanding", f"{MAX_OUTSTANDING} requests are not answered yet"
            )
        except rpc.RpcError as exc:
            error = exc
        self._send(rpc.error_line(request_id, error))

    def _prune(self) -> None:
        if len(self._open) >= MAX_OUTSTANDING:
            self._open = {k: v for k, v in self._open.items() if not v[0].settled}

    # --- to the socket ---

    def _send(self, line: bytes) -> None:
        if self._closed or self._closing:
            return
        if self._out_bytes >= BACKLOG_CUT_BYTES:
            self._server.counters["slow_readers_cut"] += 1
            self.close()
            return
        if not self._out:
            self._progress_ns = self._server.reactor.now_ns()
        self._out.append(memoryview(line))
        self._out_bytes += len(line)
        self._flush()

    def _flush(self) -> None:
        try:
            while self._out:
                taken = self._stream.write(self._out[0])
                if taken == 0:
                    break
                self._progress_ns = self._server.reactor.now_ns()
                self._out_bytes -= taken
                if taken == len(self._out[0]):
                    self._out.popleft()
                else:
                    self._out[0] = self._out[0][taken:]
        except LinkDown:
            self.close()
            return
        self._close_if_done()
        self._rewatch()
        if self._behind and self._out_bytes < BACKLOG_PAUSE_BYTES // 2:
            self._behind = False
            self._server.reactor.post(self._tell_room)
        if self._held and not self._paused():
            self._held = False
            self._resume_at(self._server.reactor.now_ns())

    def _tell_room(self) -> None:
        for call in list(self._room_calls):
            if not self._closed:
                call()

    def _rewatch(self) -> None:
        wanted = Event(0)
        if self._may_read():
            wanted |= Event.READ
        if self._out:
            wanted |= Event.WRITE
        if self._closed or wanted == self._watched:
            return
        self._watched = wanted
        if wanted:
            self._server.reactor.watch(self._stream.handle, wanted, self.on_ready)
        else:  # a hang-up would be reported all the same, and again, and again
            self._server.reactor.unwatch(self._stream.handle)

    # --- ends ---

    def sweep(self, now_ns: int) -> None:
        """Give up what takes too long."""
        for key, (deferred, due_ns) in list(self._open.items()):
            if deferred.settled:
                del self._open[key]
            elif due_ns <= now_ns:
                del self._open[key]
                self._server.counters["answers_given_up"] += 1
                deferred.fail(
                    rpc.refused(
                        "deadline_passed", f"no answer within {ANSWER_NS // 1_000_000_000} s"
                    )
                )
        self._close_if_done()  # what was open may have been notifications: nothing is written
        if self._closed:
            return
        if self._out and now_ns - self._progress_ns >= WRITE_STALL_NS:
            self._server.counters["slow_readers_cut"] += 1
            self.close()
        elif (
            self._half_since_ns is not None
            and now_ns - self._half_since_ns >= HALF_REQUEST_NS
            and not self._resume_due
            and not self._held
        ):
            self._server.counters["half_requests"] += 1
            self.end_with(
                rpc.RpcError(
                    rpc.INVALID_REQUEST,
                    "request_timeout",
                    f"{len(self._in)} bytes of a request came, and no end of it",
                )
            )

    def end_with(self, error: rpc.RpcError) -> None:
        """Say why, then close."""
        self._send(rpc.error_line(None, error))
        self._closing = True
        self._in.clear()
        self._scanned = 0
        self._half_since_ns = None
        self._drop_fds()
        self._close_if_done()
        self._rewatch()

    def _drop_fds(self) -> None:
        fds, self._fds[:] = list(self._fds), []
        self._stream.discard(fds)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._server.reactor.unwatch(self._stream.handle)
        self._drop_fds()
        self._out.clear()
        self._out_bytes = 0
        self._in.clear()
        self._open.clear()
        self._stream.close()
        self._server.forget(self)
        for call in self._close_calls:
            call()
        self._close_calls.clear()
        self._room_calls.clear()
