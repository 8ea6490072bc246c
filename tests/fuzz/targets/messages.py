"""APF messages, and the endpoint that they are for."""

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from firmware.endpoint import (
    ATTEMPTS,
    REPLIES_KEPT,
    TAGS,
    TIMEOUT_MS,
    WAITING_LIMIT,
    Deferred,
    Endpoint,
)
from protocol.apf import (
    BODIES,
    HEADER_WIRE,
    MAX_MESSAGE_BYTES,
    NOTICES,
    PAIRS,
    VENDOR_ID,
    Body,
    Kind,
    Refusal,
    RefusalReason,
    StatusRequest,
    UnknownBody,
    VerifyReply,
    VerifyRequest,
    VerifyState,
    decode,
    decode_header,
    encode,
    hot_notice,
)
from protocol.errors import ProtocolError
from protocol.mctp.control import ControlState, Responder
from protocol.mctp.reassembly import Message
from tests.fuzz.reader import Reader
from tests.fuzz.samples import sample_bodies
from tests.fuzz.target import Check, Target
from tests.unit.firmware.window_fakes import MS, FakeReactor, SeededEntropy

KEYS = sorted(BODIES, key=lambda key: (key[1], key[0]))
VENDOR = VENDOR_ID.to_bytes(2, "big")


def header(kind: int, opcode: int, message_id: int = 1, status: int = 0) -> bytes:
    fields = opcode.to_bytes(2, "little"), message_id.to_bytes(4, "little"), bytes([status])
    return b"\x7e" + VENDOR + b"\x01" + bytes([kind]) + b"".join(fields)


def _message(data: bytes) -> bytes:
    """Bytes that begin with 7E are a message; others a body under a header that is right."""
    if not data or data[0] == 0x7E:
        return data
    if data[0] == 0xFF:
        return header(Kind.REPLY, 0x0101, status=1) + data[1:]
    kind, opcode = KEYS[data[0] % len(KEYS)]
    return header(kind, opcode) + data[1:]


def apf(_scratch: Path) -> Check:
    def check(data: bytes) -> bool:
        wire = _message(data)
        try:
            message = decode(wire)
        except ProtocolError as exc:
            assert exc.frame == wire
            _same_refusal(wire, exc)
            return False
        raw = HEADER_WIRE.parse(wire)
        assert (raw.flags, raw.opcode) == (message.kind, message.opcode)
        body = message.body
        if isinstance(body, UnknownBody):
            assert body.data == wire[12:]
            return False
        declared = type(body).declared(wire[12:])
        assert declared == body
        assert repr(declared) == repr(body), "of the same types, too"
        assert body.to_bytes() == body.declared_bytes() == wire[12:]
        hot = hot_notice(wire, VENDOR_ID)
        assert hot is None or hot == body
        if message.version == 1 and message.status <= 1:
            again = encode(
                body,
                kind=message.kind,
                message_id=message.message_id,
                opcode=message.opcode if isinstance(body, Refusal) else None,
            )
            assert again == wire
        return True

    return check


def _same_refusal(wire: bytes, exc: ProtocolError) -> None:
    """What a fast path refuses, the declaration refuses too."""
    if exc.code != "bad_body":
        return
    head = decode_header(wire)
    kind = Refusal if head.status else BODIES[head.kind, head.opcode]
    try:
        kind.declared(wire[12:])
    except ProtocolError as declared:
        assert declared.code == exc.code
        return
    raise AssertionError(f"{kind.__name__}: the declaration takes what was refused: {exc}")


class Line:
    """What an endpoint needs of `firmware.link.Link`."""

    def __init__(self) -> None:
        self.peer_eid = 0
        self.on_message: Any = None
        self.sent: list[tuple[bytes, int, bool]] = []
        self.down = False

    def send_message(self, data: bytes, *, tag: int, to: bool, urgent: bool = False) -> bool:
        assert 0 <= tag <= 7
        assert len(data) <= MAX_MESSAGE_BYTES
        if not self.down:
            self.sent.append((data, tag, to))
        return not self.down


SAMPLES = sample_bodies()


class Bench:
    """One endpoint that serves every request, driven by a program of bytes."""

    def __init__(self, data: bytes) -> None:
        self.reader = Reader(data)
        self.reactor = FakeReactor()
        self.line = Line()
        self.end = Endpoint(
            self.reactor,
            self.line,  # type: ignore[arg-type]
            entropy=SeededEntropy(1),
            name="fuzzed",
            answer_control=Responder(ControlState(uuid=b"u" * 16)).answer,
        )
        self.asked = self.answered = self.served = self.heard = 0
        self.open: list[tuple[Deferred, type[Body]]] = []
        for request, reply in PAIRS:
            self.end.serve(request, lambda _body, reply=reply: self._serve(reply))  # type: ignore[misc]
        for notice in NOTICES:
            self.end.on_notice(notice, self._hear)

    def _hear(self, _body: Body) -> None:
        self.heard += 1

    def _serve(self, reply: type[Body]) -> Body | Deferred:
        self.served += 1
        if self.served % 3 == 0:
            self.open.append((Deferred(), reply))
            return self.open[-1][0]
        if self.served % 5 == 0:
            return Refusal(reason=RefusalReason.BUSY, retry_after_ms=1)
        return SAMPLES[reply]

    def _done(self, _result: object) -> None:
        self.answered += 1

    def step(self) -> None:
        reader = self.reader
        action = reader.byte() % 12
        if action < 4:
            self._receive(reader.byte(), reader.byte(), _message(reader.piece()))
        elif action == 4:
            request, _ = reader.choice(PAIRS)
            self.asked += 1
            self.end.request(SAMPLES[request], self._done)
        elif action == 5:
            self.asked += 1
            self.end.control(reader.byte(), reader.piece(), self._done)
        elif action in (6, 7):
            self._reply(action)
        elif action == 8:
            self.reactor.advance(reader.byte() * 20 * MS)
        elif action == 9 and self.open:
            deferred, reply = self.open.pop(0)
            deferred.complete(SAMPLES[reply])
        elif action == 10:
            self.line.down = not self.line.down
        elif action == 11 and reader.byte() > 200:
            self.end.abandon("gone")

    def _receive(self, who: int, bits: int, data: bytes) -> None:
        if data:
            message = Message(9, 8 + who % 4, bool(bits & 8), bits & 7, data[0] & 0x7F, False, data)
            self.line.on_message(message._replace(ic=bits & 0x80 != 0))

    def _reply(self, action: int) -> None:
        """To the oldest request that waits: header as it must be, body as it comes."""
        pending = next(iter(self.end._pending.values()), None)
        if pending is None:
            return
        if pending.message_id == 0:
            data = b"\0" + bytes([pending.body.iid, pending.body.command]) + self.reader.piece()
        elif action == 6:
            reply = dict(PAIRS)[type(pending.body)]
            body = self.reader.piece() or SAMPLES[reply].to_bytes()
            data = header(0, pending.body.OPCODE, pending.message_id) + body
        else:
            body = self.reader.piece() or Refusal(reason=RefusalReason.BUSY).to_bytes()
            data = header(0, pending.body.OPCODE, pending.message_id, 1) + body
        self._receive(0, pending.tag, data)

    def check_bounds(self) -> None:
        end = self.end
        assert len(end._pending) <= TAGS
        assert len(end._waiting) <= WAITING_LIMIT
        assert len(end._replies) <= REPLIES_KEPT
        assert sorted([*end._free_tags, *end._pending]) == list(range(TAGS))


def endpoint(_scratch: Path) -> Check:
    def check(data: bytes) -> bool:
        bench = Bench(data)
        while bench.reader.left:
            bench.step()
            bench.check_bounds()
        bench.line.down = False
        for deferred, reply in bench.open:
            deferred.complete(SAMPLES[reply])
        rounds = -(-bench.asked // TAGS) + 1
        bench.reactor.advance(rounds * ATTEMPTS * TIMEOUT_MS * MS + 7_000 * MS)
        assert bench.answered == bench.asked, "a request has one end"
        good = bench.heard + bench.served > 0
        del bench.line.sent[:]
        bench.served = 0
        ask = encode(VerifyRequest(transfer_id=1), kind=Kind.REQUEST, message_id=0xFFFFFFFF)
        bench._receive(0, 8 | 5, ask)
        reply = VerifyReply(state=VerifyState.GOOD)
        wire = encode(reply, kind=Kind.REPLY, message_id=0xFFFFFFFF)
        assert bench.line.sent == [(wire, 5, False)]
        return good

    return check


def _seeds() -> Iterable[bytes]:
    for key in KEYS:
        yield encode(SAMPLES[BODIES[key]], kind=key[0], message_id=7)
        yield bytes([KEYS.index(key)]) + SAMPLES[BODIES[key]].to_bytes()
    refusal = Refusal(reason=RefusalReason.BUSY, retry_after_ms=5, text="later")
    yield encode(refusal, kind=Kind.REPLY, message_id=3, opcode=0x0101)
    yield b"\xff" + refusal.to_bytes()
    yield header(0x80, 0xF123) + b"later versions"


def _programs() -> Iterable[bytes]:
    ask = encode(StatusRequest(cursor=0), kind=Kind.REQUEST, message_id=7)
    yield b"".join(b"\0\0\x08" + bytes([len(ask)]) + ask for _ in range(5)) + b"\x09\x08\xff"
    yield bytes([4, 0, 6, 0, 4, 5, 7, 0, 5, 2, 0, 6, 2, 0, 9, 8, 30, 4, 1, 8, 255])
    draw = random.Random(3)
    for body in [*_seeds()][: 2 * len(KEYS) : 2]:
        if len(body) < 256:
            tag = draw.randrange(16)
            yield bytes([draw.randrange(4), draw.randrange(4), tag, len(body)]) + body + b"\x08\x10"


TARGETS = (
    Target(
        name="apf",
        text="APF messages: header, every body, hot paths against the declaration, re-encoded",
        make=apf,
        seeds=_seeds,
        max_bytes=1024,
    ),
    Target(
        name="endpoint",
        text="messages, replies, requests and time into an endpoint; then a good request",
        make=endpoint,
        seeds=_programs,
        max_bytes=2048,
    ),
)
