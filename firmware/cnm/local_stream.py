"""The stream between a CNM's init and its agent: JSON, one object a line. Both ends are ours.

    {"id": 7, "op": "start", "args": {...}}      a request
    {"id": 7, "ok": {...}}                       its answer
    {"id": 7, "refused": {"reason", "retry_after_ms", "text"}}
    {"op": "status_changed", "args": {...}}      a notice, never answered

Bounds: a line LINE_LIMIT, unsent bytes UNSENT_LIMIT, open requests REQUESTS_LIMIT. Whoever breaks
one is broken itself, and the stream ends: init then starts another agent.
"""

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, TypeAlias

from firmware.cnm.records import RefusedError, number_of
from hal.errors import LinkDown
from hal.ports import READ_LIMIT_BYTES, ByteStream, Event, Reactor
from protocol.apf import RefusalReason

LINE_LIMIT: Final = 1 << 20  # a page of 16 status entries takes 10 kB, the biggest spec 600
UNSENT_LIMIT: Final = 4 << 20
REQUESTS_LIMIT: Final = 512
READS_A_TURN: Final = 4
U32_MAX: Final = 0xFFFF_FFFF
ALIVE_LINE: Final = b'{"op":"ping","args":{}}\n'

Args: TypeAlias = Mapping[str, Any]
Answer: TypeAlias = "Args | RefusedError"
Reply: TypeAlias = Callable[[Answer], None]


class LocalPeer:
    """One end. Set the three `on_` hooks before the first turn. Loop thread only."""

    def __init__(self, reactor: Reactor, stream: ByteStream) -> None:
        self.on_request: Callable[[str, Args, Reply], None] = lambda _op, _args, reply: reply(
            RefusedError(RefusalReason.UNKNOWN_OPCODE, "nothing is served here")
        )
        self.on_notice: Callable[[str, Args], None] = lambda _op, _args: None
        self.on_lost: Callable[[str], None] = lambda _text: None
        self._reactor = reactor
        self._stream: ByteStream | None = stream
        self._received = bytearray()
        self._unsent = bytearray()
        self._writing = False  # and waiting for room
        self._next_id = 0
        self._pending: dict[int, Reply] = {}
        reactor.watch(stream.handle, Event.READ, self._on_event)

    @property
    def up(self) -> bool:
        return self._stream is not None

    def request(self, op: str, args: Args, done: Reply) -> None:
        """`done` once: the answer, or a RefusedError (INTERNAL when the stream ended)."""
        if self._stream is None or len(self._pending) >= REQUESTS_LIMIT:
            why = "the stream is down" if self._stream is None else "too many open requests"
            error = RefusedError(RefusalReason.BUSY, f"init: {why}", retry_after_ms=100)
            self._reactor.post(lambda: done(error))
            return
        self._next_id += 1
        self._pending[self._next_id] = done
        self._send({"id": self._next_id, "op": op, "args": args})

    def notify(self, op: str, args: Args) -> None:
        self._send({"op": op, "args": args})

    def alive(self) -> None:
        """A sign of life and nothing else, many times a minute: no JSON is made or read for it."""
        self._put(ALIVE_LINE)

    def close(self, text: str = "closed") -> None:
        """End it; `on_lost` is called once, and every open request is answered."""
        stream, self._stream = self._stream, None
        if stream is None:
            return
        self._reactor.unwatch(stream.handle)
        stream.close()
        pending, self._pending = list(self._pending.values()), {}
        for done in pending:
            done(RefusedError(RefusalReason.INTERNAL, f"init: {text}"))
        self.on_lost(text)

    def _send(self, message: Args) -> None:
        self._put(json.dumps(message, separators=(",", ":")).encode() + b"\n")  # in ASCII

    def _put(self, line: bytes) -> None:
        if self._stream is None:
            return
        if len(line) > LINE_LIMIT or len(self._unsent) + len(line) > UNSENT_LIMIT:
            self.close(f"line of {len(line)} B after {len(self._unsent)} B unsent: over the limit")
            return
        self._unsent += line
        self._flush()

    def _flush(self) -> None:
        stream = self._stream
        if stream is None:
            return
        try:
            while self._unsent:
                taken = stream.write(self._unsent)
                if not taken:
                    break
                del self._unsent[:taken]
        except LinkDown as exc:
            self._reactor.post(partial(self.close, str(exc)))
            return
        if bool(self._unsent) != self._writing:
            self._writing = bool(self._unsent)
            events = Event.READ | Event.WRITE if self._writing else Event.READ
            self._reactor.watch(stream.handle, events, self._on_event)

    def _on_event(self, events: Event) -> None:
        if events != Event.READ and events & Event.WRITE:
            self._flush()
        for _ in range(READS_A_TURN):
            if self._stream is None:
                return
            try:
                data = self._stream.read()
            except LinkDown as exc:
                self.close(str(exc))
                return
            if not data:
                return
            self._received += data
            self._take_lines()
            if len(data) < READ_LIMIT_BYTES:
                return  # that was all, or its end: the next event tells

    def _take_lines(self) -> None:
        while self._stream is not None:
            line, newline, rest = self._received.partition(b"\n")
            if not newline:
                if len(self._received) > LINE_LIMIT:
                    self.close(f"a line of more than {LINE_LIMIT} B")
                return
            self._received = rest
            self._take(bytes(line))

    def _take(self, line: bytes) -> None:
        if line == ALIVE_LINE[:-1]:
            self.on_notice("ping", {})
            return
        try:
            message = json.loads(line)
            args = message.get("args", {})
            op, number = message.get("op"), message.get("id")
        except (ValueError, AttributeError, RecursionError) as exc:
            self.close(f"a line that is no message: {exc}")
            return
        if isinstance(op, str) and isinstance(args, dict):
            if number is None:
                self.on_notice(op, args)
            else:
                self.on_request(op, args, lambda answer: self._answer(number, answer))
        elif type(number) is int and (done := self._pending.pop(number, None)):
            done(_answer_of(message))

    def _answer(self, number: int, answer: Answer) -> None:
        if isinstance(answer, RefusedError):
            refused = {
                "reason": int(answer.reason),
                "retry_after_ms": answer.retry_after_ms,
                "text": answer.text,
            }
            self._send({"id": number, "refused": refused})
        else:
            self._send({"id": number, "ok": answer})


def _answer_of(message: Args) -> Answer:
    ok = message.get("ok")
    if isinstance(ok, dict):
        return ok
    try:
        refused = message["refused"]
        return RefusedError(
            RefusalReason(refused["reason"]),
            str(refused["text"]),
            retry_after_ms=number_of(refused, "retry_after_ms", U32_MAX),
        )
    except (KeyError, TypeError, ValueError):
        return RefusedError(RefusalReason.INTERNAL, "an answer that can't be read")
