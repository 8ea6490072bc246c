"""What comes through a window: the layout, the channel, and transfers over both."""

import hashlib
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from firmware.endpoint import RequestRefused
from firmware.transfer import ChunkRoute, TransferError, TransferReceiver, TransferSender
from firmware.transfer_pull import EARLY_MAX_BYTES
from firmware.transfer_route import LISTENERS_MAX
from firmware.transfer_serve import GOOD_KEPT, PARTIALS_MAX
from firmware.window import FAULT_BACKOFF_MAX_NS, POLL_IDLE_NS, WindowChannel
from firmware.window_ring import RingBroken, RxRing
from protocol.apf import (
    CHUNK_MIN_BYTES,
    LOG_READ_MAX_BYTES,
    Body,
    CancelReply,
    CancelRequest,
    ChunkMapReply,
    ChunkMapRequest,
    HaveRequest,
    LogReadReply,
    LogReadRequest,
    OfferReply,
    OfferRequest,
    PullReply,
    PullRequest,
    Refusal,
    VerifyReply,
    VerifyRequest,
)
from protocol.crc import crc32c
from protocol.errors import ProtocolError
from protocol.window import (
    DESCRIPTOR_BYTES,
    DESCRIPTOR_WIRE,
    GEOMETRY_BYTES,
    HEADER_WIRE,
    KIND_BLOB,
    KIND_LOG,
    OFF_ECHO,
    OFF_HEAD,
    OFF_SESSION,
    OFF_TAIL,
    WORD,
    Descriptor,
    Geometry,
    geometry_for,
    parse_descriptor,
    parse_geometry,
)
from tests.fuzz.reader import Reader
from tests.fuzz.target import Check, Target
from tests.unit.firmware.transfer_fakes import CTX, FakeBlobs
from tests.unit.firmware.window_fakes import (
    MS,
    FakeReactor,
    SeededEntropy,
    WindowRig,
)

HALF, RING, SLOT = 8192, 4, 256
GEOMETRY = geometry_for(RING, SLOT, HALF)


def layout(_scratch: Path) -> Check:
    """A geometry and a half as the peer wrote them; then every entry that a ring would take."""

    def check(data: bytes) -> bool:
        reader = Reader(data)
        _parse_one(reader.take(DESCRIPTOR_BYTES))
        raw = reader.take(GEOMETRY_BYTES)
        try:
            geometry = parse_geometry(raw, HALF)
        except ProtocolError as exc:
            assert exc.frame == raw
            return False
        assert HEADER_WIRE.parse(raw).ring_entries == geometry.ring_entries
        assert geometry.to_bytes() == raw
        last = geometry.ring_entries - 1
        assert geometry.slot_offset(last) + geometry.slot_bytes <= HALF
        rig = WindowRig(HALF)
        rig.halves[1][0x80:] = reader.rest()[: HALF - 0x80].ljust(HALF - 0x80, b"\0")
        ring, taken = RxRing(rig.window(0)), 0
        ring.reset(7, geometry)
        try:
            waiting = ring.waiting()
        except RingBroken:
            return False
        assert waiting <= geometry.ring_entries
        for _ in range(waiting):
            try:
                _kind, _id, _chunk, chunk_bytes = ring.take()
            except ProtocolError:
                continue
            taken += 1
            assert len(chunk_bytes) <= geometry.slot_bytes
        return taken > 0

    return check


def _parse_one(raw: bytes) -> None:
    try:
        entry = parse_descriptor(raw, geometry=GEOMETRY, index=0, session=7)
    except ProtocolError as exc:
        assert exc.frame == raw
        return
    assert entry.to_bytes() == raw
    assert DESCRIPTOR_WIRE.parse(raw).chunk == entry.chunk


class Card:
    """Our end of a window whose other half is anybody's."""

    def __init__(self) -> None:
        self.rig = WindowRig(HALF)
        self.chunks: list[tuple[int, int, int, bytes]] = []
        self.faults: list[str] = []
        self.channel = self.end(0, self.chunks)
        self.channel.attach()
        self.rig.reactor.settle()

    def end(self, side: int, chunks: list[tuple[int, int, int, bytes]]) -> WindowChannel:
        return WindowChannel(
            self.rig.window(side),
            self.rig.bells[side],
            self.rig.reactor,
            SeededEntropy(side),
            on_chunk=lambda *chunk: chunks.append(chunk),
            on_fault=self.faults.append,
            ring_entries=RING,
            slot_bytes=SLOT,
        )

    def word(self, offset: int) -> int:
        """In our own half."""
        return int(struct.unpack_from("<I", self.rig.halves[0], offset)[0])

    def poke(self, offset: int, value: int) -> None:
        struct.pack_into("<I", self.rig.halves[1], offset, value & WORD)

    def peer_word(self, offset: int) -> int:
        return int(struct.unpack_from("<I", self.rig.halves[1], offset)[0])


def _attack(card: Card, reader: Reader) -> None:
    half = card.rig.halves[1]
    action = reader.byte() % 13
    if action == 0:
        card.poke(reader.number(2) % 0x60 * 4, reader.number(4))
    elif action == 1:
        geometry = Geometry(
            ring_entries=1 << reader.byte() % 14,
            slot_bytes=reader.byte() * 64,
            data_offset=reader.byte() * 64,
        )
        half[:GEOMETRY_BYTES] = geometry.to_bytes()
    elif action == 2:
        half[:GEOMETRY_BYTES] = GEOMETRY.to_bytes()
        card.poke(OFF_HEAD, 0)
        card.poke(OFF_TAIL, 0)
        card.poke(OFF_SESSION, 1 + reader.byte())
    elif action == 3:
        card.poke(OFF_ECHO, card.word(OFF_SESSION))
    elif action in (4, 5):
        _produce(card, reader, good=action == 4)
    elif action == 6:
        card.poke(OFF_HEAD, card.peer_word(OFF_HEAD) + reader.byte() - 8)
    elif action == 7:
        card.poke(OFF_TAIL, card.word(OFF_HEAD))
    elif action == 8:
        card.poke(OFF_TAIL, card.peer_word(OFF_TAIL) + reader.byte() - 8)
    elif action == 9:
        card.channel.send(1, 2, reader.byte(), bytes(reader.byte()))
    elif action == 10:
        card.rig.reactor.advance(reader.byte() * 40 * MS)
    elif action == 11:
        card.rig.bells[1].ring()
        card.rig.reactor.settle()
    else:
        at = reader.number(2) % HALF
        piece = reader.piece()[: HALF - at]
        half[at : at + len(piece)] = piece


def _produce(card: Card, reader: Reader, *, good: bool) -> None:
    """An entry that is right, or right but for one field."""
    head = card.peer_word(OFF_HEAD)
    data = reader.take(reader.byte() % 32)
    entry = Descriptor(
        seq=card.peer_word(OFF_SESSION) + head & WORD,
        kind=reader.byte(),
        transfer_id=2,
        chunk=reader.byte(),
        data_offset=GEOMETRY.slot_offset(head),
        length=len(data) if good else reader.number(4),
        crc32c=crc32c(data),
    )
    raw = bytearray(entry.to_bytes())
    if not good:
        raw[reader.byte() % DESCRIPTOR_BYTES] ^= reader.byte()
        if reader.byte() & 1:
            raw[28:] = struct.pack("<I", crc32c(bytes(raw[:28])))
    half = card.rig.halves[1]
    half[entry.data_offset : entry.data_offset + len(data)] = data
    at = GEOMETRY.descriptor_offset(head)
    half[at : at + DESCRIPTOR_BYTES] = raw
    card.poke(OFF_HEAD, head + 1)
    card.rig.bells[1].ring()
    card.rig.reactor.settle()


def window(_scratch: Path) -> Check:
    def check(data: bytes) -> bool:
        card, reader = Card(), Reader(data)
        while reader.left:
            _attack(card, reader)
            assert card.channel.attached
            assert card.channel._tx.outstanding <= RING
        assert all(len(chunk) <= SLOT for *_, chunk in card.chunks)
        assert len(card.faults) <= len(data)
        got = bool(card.chunks)
        del card.chunks[:]
        there: list[tuple[int, int, int, bytes]] = []
        peer = card.end(1, there)
        peer.attach()
        card.rig.reactor.advance(FAULT_BACKOFF_MAX_NS + 4 * POLL_IDLE_NS)
        assert card.channel.connected
        assert peer.connected
        del card.chunks[:]
        assert peer.send(1, 5, 6, b"good")
        assert card.channel.send(1, 7, 8, b"too")
        card.rig.reactor.settle()
        assert (card.chunks, there) == ([(1, 5, 6, b"good")], [(1, 7, 8, b"too")])
        return got

    return check


class Requests:
    """Both sides of an endpoint, without one: the program asks, and the program answers."""

    def __init__(self) -> None:
        self.handlers: dict[int, Any] = {}
        self.open: list[tuple[Body, Any]] = []

    def serve(self, request: type[Body], handler: Any) -> None:
        self.handlers[request.OPCODE] = handler

    def request(self, body: Body, done: Any, **_options: int) -> None:
        self.open.append((body, done))

    def ask(self, body: Body) -> Body:
        answer: Body = self.handlers[body.OPCODE](body)
        answer.to_bytes()  # raises where it has no wire form
        return answer


class Store(FakeBlobs):
    """4 KiB of room, so that no offer makes the test large."""

    def __init__(self, reactor: FakeReactor) -> None:
        super().__init__(reactor)
        self.free_bytes = 4096

    def check(self) -> None:
        for digest, data in self.whole.items():
            assert hashlib.sha256(data).digest() == digest
        assert len(self.partial) <= PARTIALS_MAX


BLOB = b"a blob of two chunks".ljust(SLOT, b".") + b"and a bit"
DIGEST = hashlib.sha256(BLOB).digest()
OTHER = hashlib.sha256(b"x" * 100).digest()
DIGESTS = (DIGEST, OTHER, bytes(32), *(bytes([n]) * 32 for n in range(1, 40)))


def transfers_in(_scratch: Path) -> Check:
    """A CNM's receiver under requests and chunks of any card; then an honest push."""

    def check(data: bytes) -> bool:
        reader = Reader(data)
        rig = WindowRig(HALF)
        reactor = rig.reactor
        channel = WindowChannel(
            rig.window(0),
            rig.bells[0],
            reactor,
            SeededEntropy(1),
            ring_entries=RING,
            slot_bytes=SLOT,
        )
        store, requests = Store(reactor), Requests()
        route = ChunkRoute(channel, reactor)
        receiver = TransferReceiver(requests, route, store, reactor, lambda _ctx: None)
        while reader.left:
            _card_acts(reader, requests, channel, reactor)
            store.check()
            assert len(receiver._partials) <= PARTIALS_MAX
            assert len(receiver._by_id) <= PARTIALS_MAX
            assert len(receiver._good) <= GOOD_KEPT
            assert len(route._listeners) <= LISTENERS_MAX
        got = bool(store.whole)
        reactor.advance(1_300_000 * MS)  # what is idle goes
        offer = OfferRequest(
            ctx=CTX, transfer_id=9, digest=DIGEST, size_bytes=len(BLOB), chunk_bytes=SLOT
        )
        requests.ask(offer)
        for chunk in range(2):
            channel.on_chunk(KIND_BLOB, 9, chunk, BLOB[chunk * SLOT : (chunk + 1) * SLOT])
        reactor.advance(100 * MS)
        assert store.whole.get(DIGEST) == BLOB
        store.check()
        return got

    return check


def _card_acts(
    reader: Reader, requests: Requests, channel: WindowChannel, reactor: FakeReactor
) -> None:
    action, transfer_id = reader.byte() % 9, reader.byte() % 8
    if action < 2:
        digest = reader.choice(DIGESTS)
        size = reader.number(1 + reader.byte() % 8) if action else len(BLOB)
        chunk_bytes = SLOT if action == 0 else CHUNK_MIN_BYTES << reader.byte() % 5
        offer = OfferRequest(
            ctx=CTX,
            transfer_id=transfer_id,
            digest=digest,
            size_bytes=size,
            chunk_bytes=chunk_bytes,
        )
        requests.ask(offer)
    elif action < 4:
        chunk = reader.byte() if action == 2 else reader.number(4)
        part = BLOB[chunk * SLOT : (chunk + 1) * SLOT] if reader.byte() & 1 else reader.piece()
        channel.on_chunk(KIND_BLOB, transfer_id, chunk, part)
    elif action == 4:
        first = reader.byte() * 8 if reader.byte() & 1 else reader.number(4)
        requests.ask(ChunkMapRequest(transfer_id=transfer_id, first_chunk=first))
    elif action == 5:
        requests.ask(VerifyRequest(transfer_id=transfer_id))
    elif action == 6:
        requests.ask(CancelRequest(transfer_id=transfer_id))
        requests.ask(HaveRequest(digests=DIGESTS[: reader.byte() % 40]))
    elif action == 7:
        channel.connected = bool(reader.byte() & 1)
        pull = PullRequest(
            ctx=CTX,
            transfer_id=transfer_id,
            digest=reader.choice(DIGESTS),
            first_chunk=reader.number(4),
            chunk_bytes=SLOT,
        )
        requests.ask(pull)
        channel.connected = False
    else:
        reactor.advance(reader.byte() * reader.byte() * 20 * MS)


REPLIES: dict[type[Body], type[Body]] = {
    OfferRequest: OfferReply,
    ChunkMapRequest: ChunkMapReply,
    VerifyRequest: VerifyReply,
    PullRequest: PullReply,
    LogReadRequest: LogReadReply,
    CancelRequest: CancelReply,
}


class Asking:
    """The card's transfers, answered by a program of bytes."""

    def __init__(self, data: bytes) -> None:
        self.reader = Reader(data)
        rig = WindowRig(HALF)
        self.reactor = rig.reactor
        self.channel = WindowChannel(
            rig.window(0),
            rig.bells[0],
            self.reactor,
            SeededEntropy(1),
            ring_entries=RING,
            slot_bytes=SLOT,
        )
        self.store, self.requests = Store(self.reactor), Requests()
        self.sender = TransferSender(
            self.requests,
            self.channel,
            self.store,
            self.reactor,
            lambda: CTX,
            entropy=SeededEntropy(2),
        )
        self.sender._next_id = 0
        self.store.put(BLOB)
        self.begun = self.ended = 0

    def _done(self, result: object) -> None:
        assert result is None or isinstance(result, TransferError) or hasattr(result, "data")
        self.ended += 1

    def step(self) -> None:
        reader = self.reader
        action = reader.byte() % 8
        if action == 0:
            self.begun += 1
            self.sender.push(DIGEST, self._done)
        elif action == 1:
            self.begun += 1
            self.sender.pull(reader.choice(DIGESTS[1:4]), self._done)
        elif action == 2:
            self.begun += 1
            self.sender.read_log("a/b/0", reader.number(2), reader.number(3), self._done)
        elif action < 5:
            self.answer(good=action == 3)
        elif action == 5:
            kind = KIND_LOG if reader.byte() & 1 else KIND_BLOB
            chunk = reader.byte() if reader.byte() & 1 else reader.number(4)
            self.channel.on_chunk(kind, reader.byte() % 8, chunk, reader.piece())
        elif action == 6:
            self.reactor.advance(reader.byte() * 10 * MS)
        else:
            self.channel.on_connect()

    def answer(self, *, good: bool) -> None:
        if not self.requests.open:
            return
        body, done = self.requests.open.pop(self.reader.byte() % len(self.requests.open))
        kind = REPLIES[type(body)] if good else Refusal
        size = 4 + self.reader.byte() % 40
        try:
            reply = kind.from_bytes(self.reader.take(size) if good else b"\x0a\0\1\0\0\0\0")
        except ProtocolError:
            reply = Refusal(reason=self.reader.byte(), text="no")
        done(RequestRefused("asked", reply) if isinstance(reply, Refusal) else reply)

    def check_bounds(self) -> None:
        self.store.check()
        for transfer in self.sender._puller._active.values():
            early = transfer._early  # type: ignore[attr-defined]
            assert sum(len(data) for _, data in early) <= EARLY_MAX_BYTES
            assert all(data for _, data in early), "pieces of nothing pile up"
        for read in self.sender._logs._open.values():
            assert read._bytes <= LOG_READ_MAX_BYTES
            assert all(read._parts.values())
        assert len(self.sender.route._listeners) <= LISTENERS_MAX


def transfers_out(_scratch: Path) -> Check:
    def check(data: bytes) -> bool:
        asking = Asking(data)
        while asking.reader.left:
            asking.step()
            asking.check_bounds()
        good = asking.ended > 0
        asking.sender.close("gone")
        asking.reactor.settle()
        assert asking.ended == asking.begun, "a transfer has one end"
        assert asking.sender.route._listeners == {}
        assert asking.store.whole.get(DIGEST) == BLOB
        return good

    return check


def _layout_seeds() -> Iterable[bytes]:
    entry = Descriptor(
        seq=7,
        kind=1,
        transfer_id=2,
        chunk=3,
        data_offset=GEOMETRY.slot_offset(0),
        length=5,
        crc32c=crc32c(b"bytes"),
    ).to_bytes()
    half = bytearray(HALF)
    struct.pack_into("<I", half, OFF_HEAD, 1)
    half[0x100:0x120] = entry
    half[4096:4101] = b"bytes"
    yield entry + GEOMETRY.to_bytes() + bytes(half[0x80:4101])
    yield entry + GEOMETRY.to_bytes() + bytes(half[0x80:0x120])
    small = Geometry(ring_entries=2, slot_bytes=64, data_offset=0x140)
    small_entry = Descriptor(
        seq=7, kind=1, transfer_id=2, chunk=3, data_offset=0x140, length=5, crc32c=crc32c(b"bytes")
    ).to_bytes()
    half[0x100:0x145] = small_entry.ljust(64, b"\0") + b"bytes"
    yield small_entry + small.to_bytes() + bytes(half[0x80:0x145])


def _window_seeds() -> Iterable[bytes]:
    meet = bytes([2, 5, 11, 3, 11])
    yield meet + bytes([4, 5]) + b"hello" + bytes([1, 7]) + bytes([9, 1, 20, 7, 11])
    yield meet + bytes([5, 2]) + b"ab" + bytes([1, 2, 9, 9, 9, 9, 5, 4, 1, 6, 9, 10, 20])
    yield meet + bytes(
        [12, 0, 0, 4, 1, 2, 3, 4, 10, 50, 8, 9, 11, 2, 9, 11, 3, 11, 1, 3, 4, 64, 11]
    )


def _in_seeds() -> Iterable[bytes]:
    yield bytes([0, 1, 0, 2, 1, 0, 1, 2, 1, 1, 1, 8, 5, 5, 5, 1, 7, 1, 0, 1, 0, 0, 0, 0])
    yield bytes([1, 1, 1, 0, 100, 0, 3, 1, 0, 0, 0, 0, 0, 100]) + b"x" * 100 + bytes([8, 0, 9, 9])
    yield b"".join(bytes([0, n % 8, n]) for n in range(42)) + bytes([4, 1, 1, 0, 6, 1, 30])


def _out_seeds() -> Iterable[bytes]:
    need = OfferReply(state=1, missing_chunks=2, first_missing=0).to_bytes()
    yield bytes([0, 6, 1, 3, 0, len(need) - 4]) + need + bytes([6, 1, 7, 6, 200, 4, 0, 6, 30])
    pull = PullReply(size_bytes=100, chunks=1).to_bytes()
    begin = bytes([1, 0, 6, 1, 3, 0, len(pull) - 4])
    yield begin + pull + bytes([5, 0, 1, 0, 0, 100]) + b"x" * 100 + bytes([6, 2])
    log = LogReadReply(start=0, end=9, length=3).to_bytes()
    begin = bytes([2, 0, 0, 9, 0, 0, 6, 1, 3, 0, len(log) - 4])
    yield begin + log + bytes([5, 1, 1, 0, 0, 3]) + b"log" + bytes([6, 250])


TARGETS = (
    Target(
        name="window_layout",
        text="geometry, descriptors and a ring's entries, as a peer wrote them",
        make=layout,
        seeds=_layout_seeds,
        max_bytes=4600,
    ),
    Target(
        name="window",
        text="a channel whose peer half is written by a program; then an honest peer",
        make=window,
        seeds=_window_seeds,
        max_bytes=1024,
    ),
    Target(
        name="transfers_in",
        text="offers, maps, chunks and pulls of any card into a CNM; then an honest push",
        make=transfers_in,
        seeds=_in_seeds,
        max_bytes=1024,
    ),
    Target(
        name="transfers_out",
        text="answers and chunks of any CNM into the card's pushes, pulls and log reads",
        make=transfers_out,
        seeds=_out_seeds,
        max_bytes=1024,
    ),
)
