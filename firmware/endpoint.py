"""Requests, answers and notices over one link (protocol/SPEC.md, sections on messages and timing).

    request    keeps its message id over all attempts; its answer is matched on tag, opcode and
               id, so that a late one is never taken for the next one's
    notice     is sent once and never answered
    far end    keeps its answers for as long as an id may be retried (MT4 of DSP0237, 6 s), so
               that a repeated request is answered, not carried out again

Time-outs: ATTEMPTS x TIMEOUT_MS (1.5 s) stay below every deadline that is built on a request, and
below REPLY_KEEP_MS. `BUSY` answers use up time, not attempts (the budget is the same total).
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias, TypeVar

from firmware.link import Link
from firmware.loop import MS
from hal.ports import Entropy, Reactor
from protocol.apf import (
    VENDOR_ID,
    ApfMessage,
    Body,
    Kind,
    Refusal,
    RefusalReason,
    UnknownBody,
    decode,
    decode_header,
    encode,
    encode_notice,
    hot_notice,
)
from protocol.errors import ProtocolError
from protocol.mctp.reassembly import Message

TYPE_CONTROL: Final = 0x00
TYPE_VENDOR_PCI: Final = 0x7E
TAGS: Final = 7  # requests outstanding to one peer; DSP0236 has 8 tags
NOTICE_TAG: Final = 7  # of its own: an urgent grant may go out between the packets of a request
TIMEOUT_MS: Final = 500
ATTEMPTS: Final = 3
REPLY_KEEP_MS: Final = 6_000
MOST_PATIENCE: Final = (REPLY_KEEP_MS - 1) // (ATTEMPTS * TIMEOUT_MS)
REPLIES_KEPT: Final = 128
WAITING_LIMIT: Final = 256
BUSY_RETRY_MS: Final = 20
CONTROL_IIDS: Final = 32  # DSP0236 11.4: five bits

B = TypeVar("B", bound=Body)


class RequestError(Exception):
    """A request that was not answered as wished."""


class RequestRefused(RequestError):
    """The far end said no; `refusal` says why."""

    def __init__(self, name: str, refusal: Refusal) -> None:
        try:
            reason = RefusalReason(refusal.reason).name
        except ValueError:
            reason = f"reason {refusal.reason}"
        super().__init__(f"{name} refused: {reason}: {refusal.text}")
        self.refusal = refusal


class RequestTimedOut(RequestError):
    """All attempts went unanswered."""


class RequestLost(RequestError):
    """The endpoint was closed or reset, or its queue was full."""


class Deferred:
    """A handler's promise to answer later; `complete` sends the answer, once."""

    def __init__(self) -> None:
        self._send: Callable[[Body], None] | None = None
        self._body: Body | None = None

    def complete(self, body: Body) -> None:
        """Answer with a reply body or a `Refusal`."""
        assert self._body is None, "answered twice"
        self._body = body
        if self._send is not None:
            self._send(body)

    def bind(self, send: Callable[[Body], None]) -> None:
        """Endpoint's side: where the answer goes."""
        self._send = send
        if self._body is not None:
            send(self._body)


Answer: TypeAlias = Callable[[Any], None]


@dataclass(slots=True)
class _Pending:
    body: Any
    done: Answer
    timeout_ns: int
    deadline_ns: int
    attempts_left: int
    message_id: int = 0
    tag: int = -1
    data: bytes = b""
    cancel: Callable[[], None] = field(default=lambda: None)


class Endpoint:
    """One end of one link. Loop thread only."""

    def __init__(
        self,
        reactor: Reactor,
        link: Link,
        *,
        entropy: Entropy,
        name: str,
        vendor_id: int = VENDOR_ID,
        answer_control: Callable[[bytes], bytes | None] | None = None,
        patience: int = 1,
    ) -> None:
        """`answer_control(message)` answers MCTP control requests, type byte included. Every
        time-out is `patience` times as long, at most MOST_PATIENCE: for a far end that is slow by
        nature, and keeps its replies as long as any."""
        self.name = name
        self._patience = min(patience, MOST_PATIENCE)
        self.link = link
        self.counters: Counter[str] = Counter()
        self._reactor = reactor
        self._vendor_id = vendor_id
        self._answer_control = answer_control
        # a random start: a restarted daemon must not meet answers kept for its last life
        self._next_id = int.from_bytes(entropy.random_bytes(4), "little")
        self._next_iid = 0
        self._free_tags = list(range(TAGS))  # short lists: an empty deque has 760 bytes
        self._pending: dict[int, _Pending] = {}  # by tag, at most TAGS
        self._waiting: list[_Pending] = []  # at most WAITING_LIMIT
        self._handlers: dict[int, Callable[[Any], Body | Deferred]] = {}
        self._notices: dict[int, Callable[[Any], None]] = {}
        self._replies: dict[tuple[int, bytes], tuple[int, bytes | None]] = {}  # oldest first
        link.on_message = self._on_message

    # --- asking ---

    def request(
        self,
        body: "Body | _Control",
        done: Answer,
        *,
        timeout_ms: int = TIMEOUT_MS,
        attempts: int = ATTEMPTS,
    ) -> None:
        """Send a request body; `done` gets the reply body or a `RequestError`, once, later."""
        wait_ns = timeout_ms * self._patience * MS
        until_ns = self._reactor.now_ns() + wait_ns * attempts
        pending = _Pending(body, done, wait_ns, until_ns, attempts)
        if len(self._waiting) >= WAITING_LIMIT:
            self.counters["tx_requests_full"] += 1
            error = RequestLost(f"{self.name}: {WAITING_LIMIT} requests are waiting already")
            self._reactor.post(lambda: done(error))
            return
        self._waiting.append(pending)
        self._start_waiting()

    def control(
        self,
        command: int,
        data: bytes,
        done: Callable[[bytes | RequestError], None],
        *,
        timeout_ms: int = TIMEOUT_MS,
        attempts: int = ATTEMPTS,
    ) -> None:
        """Send an MCTP control request; `done` gets its answer from the completion code on."""
        iid = self._next_iid
        self._next_iid = (iid + 1) % CONTROL_IIDS
        self.request(_Control(command, iid, data), done, timeout_ms=timeout_ms, attempts=attempts)

    def notify(self, body: Body, *, urgent: bool = False) -> bool:
        """Send a notice; False when the line could not take it."""
        data = encode_notice(body, message_id=self._take_id(), vendor_id=self._vendor_id)
        return self.link.send_message(data, tag=NOTICE_TAG, to=True, urgent=urgent)

    def abandon(self, text: str) -> None:
        """End all requests with `RequestLost`: the peer is known to be gone or new."""
        lost = [*self._pending.values(), *self._waiting]
        self._pending.clear()
        self._waiting.clear()
        self._free_tags = list(range(TAGS))
        for pending in lost:
            pending.cancel()
            pending.done(RequestLost(f"{self.name}: {text}"))

    # --- answering ---

    def serve(self, request: type[B], handler: Callable[[B], Body | Deferred]) -> None:
        """`handler(body)` returns a reply body, a `Refusal` or a `Deferred`."""
        self._handlers[request.OPCODE] = handler

    def on_notice(self, notice: type[B], handler: Callable[[B], None]) -> None:
        """`handler(body)` for each notice of this kind."""
        self._notices[notice.OPCODE] = handler

    # --- inside ---

    def _take_id(self) -> int:
        self._next_id = (self._next_id + 1) & 0xFFFF_FFFF
        return self._next_id

    def _start_waiting(self) -> None:
        while self._waiting and self._free_tags:
            pending = self._waiting.pop(0)
            pending.tag = self._free_tags.pop(0)
            if isinstance(pending.body, _Control):
                pending.data = pending.body.to_bytes()
            else:
                pending.message_id = self._take_id()
                pending.data = encode(
                    pending.body,
                    kind=Kind.REQUEST,
                    message_id=pending.message_id,
                    vendor_id=self._vendor_id,
                )
            self._pending[pending.tag] = pending
            # the budget runs from here: time in our own queue is not the peer's fault
            pending.deadline_ns = (
                self._reactor.now_ns() + pending.timeout_ns * pending.attempts_left
            )
            self._attempt(pending)

    def _attempt(self, pending: _Pending) -> None:
        now_ns = self._reactor.now_ns()
        if pending.attempts_left == 0 or now_ns >= pending.deadline_ns:
            self.counters["tx_timeouts"] += 1
            self._finish(
                pending,
                RequestTimedOut(
                    f"{self.name}: no answer to {_name(pending.body)} within "
                    f"{pending.timeout_ns // MS} ms, all attempts used"
                ),
            )
            return
        pending.attempts_left -= 1
        self.link.send_message(pending.data, tag=pending.tag, to=True)
        pending.cancel = self._reactor.call_at(
            now_ns + pending.timeout_ns, lambda: self._attempt(pending)
        )

    def _finish(self, pending: _Pending, result: object) -> None:
        pending.cancel()
        del self._pending[pending.tag]
        self._free_tags.append(pending.tag)  # the tag freed longest ago is used next
        pending.done(result)
        self._start_waiting()

    def _on_message(self, message: Message) -> None:
        if message.ic:
            self.counters["rx_integrity_check"] += 1
        elif message.type == TYPE_VENDOR_PCI:
            self._on_vendor(message)
        elif message.type == TYPE_CONTROL:
            self._on_control(message)
        else:
            self.counters["rx_unknown_type"] += 1

    def _on_control(self, message: Message) -> None:
        data = message.data
        if len(data) < 3:
            self.counters["rx_control_short"] += 1
            return
        if data[1] & 0x80:
            self._learn_peer(message)
            answer = self._answer_control(data) if self._answer_control else None
            if answer is not None:
                self.link.send_message(answer, tag=message.tag, to=False)
            return
        pending = self._pending.get(message.tag) if not message.to else None
        body = pending.body if pending is not None else None
        if (
            pending is None
            or not isinstance(body, _Control)
            or data[1] & 0x1F != body.iid
            or data[2] != body.command
            or len(data) < 4
        ):
            self.counters["rx_stray_reply"] += 1
            return
        self._finish(pending, data[3:])

    def _learn_peer(self, message: Message) -> None:
        """The bus owner's EID is learned from its first control request."""
        if message.src_eid and not self.link.peer_eid:
            self.link.peer_eid = message.src_eid

    def _on_vendor(self, message: Message) -> None:
        try:
            hot = hot_notice(message.data, self._vendor_id)
            if hot is not None:
                self._on_notice(hot.OPCODE, hot)
                return
            apf = decode(message.data, vendor_id=self._vendor_id)
        except ProtocolError as exc:
            self.counters[f"rx_{exc.code}"] += 1
            self._refuse_malformed(message, exc)
            return
        if apf.kind is Kind.REPLY:
            self._on_reply(message, apf)
        elif apf.kind is Kind.REQUEST:
            self._on_request(message, apf)
        else:
            self._on_notice(apf.opcode, apf.body)

    def _on_notice(self, opcode: int, body: Body) -> None:
        handler = self._notices.get(opcode)
        if handler is None:
            self.counters["rx_unknown_notice"] += 1
        else:
            handler(body)

    def _on_reply(self, message: Message, apf: ApfMessage) -> None:
        pending = None if message.to else self._pending.get(message.tag)
        if (
            pending is None
            or isinstance(pending.body, _Control)
            or apf.message_id != pending.message_id
            or apf.opcode != pending.body.OPCODE
        ):
            self.counters["rx_stray_reply"] += 1
            return
        if not isinstance(apf.body, Refusal):
            self._finish(pending, apf.body)
            return
        if apf.body.reason == RefusalReason.BUSY:
            wait_ns = (apf.body.retry_after_ms or BUSY_RETRY_MS) * MS
            if self._reactor.now_ns() + wait_ns < pending.deadline_ns:
                self.counters["rx_busy"] += 1
                pending.cancel()
                pending.attempts_left += 1
                pending.cancel = self._reactor.call_at(
                    self._reactor.now_ns() + wait_ns, lambda: self._attempt(pending)
                )
                return
        self._finish(pending, RequestRefused(_name(pending.body), apf.body))

    def _on_request(self, message: Message, apf: ApfMessage) -> None:
        now_ns = self._reactor.now_ns()
        self._forget_replies(now_ns)
        key = (message.src_eid, message.data)
        if key in self._replies:
            self.counters["rx_repeated"] += 1
            kept = self._replies[key][1]
            if kept is not None:  # else it is being worked on: the answer will come
                self.link.send_message(kept, tag=message.tag, to=False)
            return
        if len(self._replies) >= REPLIES_KEPT and not self._evict_reply():
            text = f"{REPLIES_KEPT} requests are being worked on"
            busy = Refusal(reason=RefusalReason.BUSY, retry_after_ms=BUSY_RETRY_MS, text=text)
            self._reply(message, apf, busy)
            return
        handler = self._handlers.get(apf.opcode)
        if handler is None or isinstance(apf.body, UnknownBody):
            self.counters["rx_unknown_opcode"] += 1
            text = f"opcode 0x{apf.opcode:04x} is not known here"
            self._reply(message, apf, Refusal(reason=RefusalReason.UNKNOWN_OPCODE, text=text))
            return
        self._replies[key] = (now_ns + REPLY_KEEP_MS * MS, None)
        answer = handler(apf.body)
        if isinstance(answer, Deferred):
            answer.bind(lambda body: self._answer(key, message, apf, body))
        else:
            self._answer(key, message, apf, answer)

    def _answer(
        self, key: tuple[int, bytes], message: Message, apf: ApfMessage, body: Body
    ) -> None:
        data = self._reply(message, apf, body)
        self._replies.pop(key, None)
        if not (isinstance(body, Refusal) and body.reason == RefusalReason.BUSY):
            # a refusal for the moment must not be repeated from here
            self._replies[key] = (self._reactor.now_ns() + REPLY_KEEP_MS * MS, data)

    def _reply(self, message: Message, apf: ApfMessage, body: Body) -> bytes:
        return self._send_reply(message, apf.opcode, apf.message_id, body)

    def _send_reply(self, message: Message, opcode: int, message_id: int, body: Body) -> bytes:
        data = encode(
            body,
            kind=Kind.REPLY,
            message_id=message_id,
            vendor_id=self._vendor_id,
            opcode=opcode,
        )
        self.link.send_message(data, tag=message.tag, to=False)
        return data

    def _refuse_malformed(self, message: Message, exc: ProtocolError) -> None:
        """Answer a request whose header can be read; stay silent to anything else."""
        try:
            header = decode_header(message.data, vendor_id=self._vendor_id)
        except ProtocolError:
            return
        if header.kind is not Kind.REQUEST:
            return
        version = exc.code == "version"
        reason = RefusalReason.VERSION if version else RefusalReason.MALFORMED
        self._send_reply(
            message, header.opcode, header.message_id, Refusal(reason=reason, text=exc.detail[:200])
        )

    def _forget_replies(self, now_ns: int) -> None:
        while self._replies:
            key, (until_ns, _data) = next(iter(self._replies.items()))
            if until_ns > now_ns:
                return
            del self._replies[key]

    def _evict_reply(self) -> bool:
        for key, (_until_ns, data) in self._replies.items():
            if data is not None:
                del self._replies[key]
                return True
        return False


@dataclass(frozen=True, slots=True)
class _Control:
    command: int
    iid: int
    data: bytes

    def to_bytes(self) -> bytes:
        # DSP0236 11.4: type, Rq=1 D=0 iid, command, data
        return bytes((TYPE_CONTROL, 0x80 | self.iid, self.command)) + self.data


def _name(body: object) -> str:
    if isinstance(body, _Control):
        return f"MCTP control command 0x{body.command:02x}"
    return type(body).__name__
