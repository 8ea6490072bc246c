"""Processes between ends: a mover's words, its bridge, a mailbox's relay, a BAR's layout."""

import signal
import struct
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from firmware.mailbox import QUEUE_PACKETS, UNSENT_BYTES, MailboxRelay
from firmware.mover import Bridge
from firmware.window import FAULT_BACKOFF_MAX_NS, POLL_IDLE_NS, WindowChannel
from hal.bar_layout import HEADER_BYTES, MAX_BYTES, MIN_BYTES, BarLayout
from hal.errors import LinkDown, Refused, Unavailable
from hal.linux.mover import BACKOFF_MOST_NS, LINE_LIMIT, SILENT_NS, START_NS, WAITING_LIMIT, Mover
from hal.ports import Event
from protocol.crc import crc32c
from protocol.errors import ProtocolError
from protocol.mctp.mailbox import (
    ENTRY_ID,
    HALF_MIN_BYTES,
    MAILBOX_ENTRIES,
    MAILBOX_SLOT_BYTES,
    mailbox_geometry,
    packet_of_entry,
)
from protocol.mctp.serial import frame_serial
from protocol.window import (
    DESCRIPTOR_BYTES,
    GEOMETRY_BYTES,
    KIND_MCTP,
    OFF_ECHO,
    OFF_HEAD,
    OFF_SESSION,
    OFF_TAIL,
    WORD,
    Descriptor,
    Geometry,
    geometry_for,
)
from tests.fuzz.reader import Reader
from tests.fuzz.target import Check, Target
from tests.unit.firmware.window_fakes import MS, FakeReactor, SeededEntropy, WindowRig

PACKET = bytes.fromhex("01 00 08 c8 00 81 02")
BACK_NS = FAULT_BACKOFF_MAX_NS + 8 * POLL_IDLE_NS  # when the worst peer is forgiven


class Process:
    """A mover that does what its program says; killed, it ends when the program gets there."""

    def __init__(self, on_exit: Callable[[int], None]) -> None:
        self.pid, self.on_exit, self.killed = 7, on_exit, False
        self.stream = Stream(99)

    def kill(self, _number: int) -> None:
        self.killed = True


class Stream:
    """`hal.ports.ByteStream`: what is fed is read; `room` is what a write takes."""

    def __init__(self, handle: int) -> None:
        self.handle, self.data, self.down, self.room = handle, b"", False, 1 << 20
        self.written = bytearray()
        self.closed = False

    def read(self) -> bytes:
        data, self.data = self.data[:4096], self.data[4096:]
        if not data and self.down:
            raise LinkDown("hung up")
        return data

    def write(self, data: bytes) -> int:
        if self.down:
            raise LinkDown("hung up")
        taken = bytes(data)[: self.room]
        self.written += taken
        return len(taken)

    def close(self) -> None:
        self.closed = True


class Owner:
    """`hal.linux.mover.Mover` whose processes are of a program of bytes."""

    def __init__(self) -> None:
        self.reactor = FakeReactor()
        self.running: list[Process] = []
        self.next = Stream(99)
        self.refuse = ""
        self.empty = ""
        self.said: list[str] = []
        self.asked = self.answered = 0
        self.mover = Mover(
            "pci:0000:01:00.0/bar2?side=a",
            self,  # type: ignore[arg-type]
            self.reactor,
            lambda window, _fds, _control: [window],
            say=self.said.append,
            absent=lambda: self.empty,
        )

    def stream_pair(self) -> tuple[Stream, int]:
        self.next = Stream(99)
        return self.next, 98

    def spawn(self, _spec: object, on_exit: Callable[[int], None]) -> Process:
        if self.refuse:
            raise Unavailable(self.refuse)
        assert not self.running, "one mover at a time touches a BAR"
        made = Process(on_exit)
        made.stream = self.next
        self.running.append(made)
        return made

    def step(self, reader: Reader) -> None:
        action = reader.byte() % 10
        process = self.running[0] if self.running else None
        if action < 3 and process is not None:
            self.feed(process, reader.piece())
        elif action == 3 and process is not None:
            word = reader.choice((b"up\n", b"down it broke\n", b"alive\n", b"up", b"x" * 200))
            self.feed(process, word * (1 + reader.byte() % 16))
        elif action == 4 and process is not None:
            process.stream.down = True
            self.feed(process, b"")
        elif action == 5 or (process is not None and process.killed):
            self.end(reader.byte() - 128)
        elif action == 6:
            self.reactor.advance(reader.number(2) * 2 * MS)
        elif action == 7:
            self.refuse = ("", "no more processes")[reader.byte() & 1]
            self.empty = ("", "the slot is empty")[reader.byte() & 1]
        elif action == 8:
            self.ask(reader.byte() * 100 * MS)
        elif action == 9 and reader.byte() > 250:
            self.mover.close()

    def feed(self, process: Process, data: bytes) -> None:
        process.stream.data += data
        watching = self.reactor.watches.get(process.stream.handle)
        if watching is not None and not process.stream.closed:
            watching(Event.READ)

    def end(self, status: int) -> None:
        if self.running:
            self.running.pop().on_exit(status)

    def ask(self, within_ns: int) -> None:
        def done(found: Any) -> None:
            self.answered += 1
            if isinstance(found, tuple):
                for part in found:
                    part.close()

        self.asked += 1
        self.mover.submit_open(self.reactor.now_ns() + within_ns, done)

    def check(self) -> None:
        mover = self.mover
        assert len(mover._received) <= LINE_LIMIT
        assert len(mover._waiting) <= WAITING_LIMIT
        assert len(mover._last_words) <= LINE_LIMIT
        assert all(len(text.encode(errors="replace")) <= 5 * LINE_LIMIT for text in self.said)
        assert len(mover.window) < LINE_LIMIT


def mover(_scratch: Path) -> Check:
    """Words, deaths and silence of any mover; then one that works."""

    def check(data: bytes) -> bool:
        owner, reader, was_up = Owner(), Reader(data), False
        while reader.left:
            owner.step(reader)
            owner.check()
            was_up |= owner.mover.up
        owner.refuse = owner.empty = ""
        closed = owner.mover._closed
        owner.reactor.advance(START_NS + SILENT_NS)
        assert owner.answered == owner.asked, "who asks is told once"
        owner.end(-signal.SIGKILL)
        owner.reactor.advance(2 * BACKOFF_MOST_NS)
        if not closed:
            [process] = owner.running
            owner.feed(process, b"up\n")
            assert owner.mover.up
            assert owner.mover.failure is None
            owner.mover.close()
        assert isinstance(owner.mover.failure, Unavailable)
        owner.end(0)
        return was_up

    return check


class Hostile:
    """The far half of a window, written by a program."""

    def __init__(self, rig: WindowRig, side: int, geometry: Geometry) -> None:
        self.rig, self.geometry = rig, geometry
        self.half, self.ours = rig.halves[side], rig.halves[1 - side]
        self.bell = rig.bells[side]

    def word(self, half: bytearray, offset: int) -> int:
        return int(struct.unpack_from("<I", half, offset)[0])

    def poke(self, offset: int, value: int) -> None:
        struct.pack_into("<I", self.half, offset, value & WORD)

    def step(self, reader: Reader) -> None:
        action = reader.byte() % 10
        if action == 0:
            self.poke(reader.number(2) % 0x60 * 4, reader.number(4))
        elif action == 1:
            self.half[:GEOMETRY_BYTES] = self.geometry.to_bytes()
            self.poke(OFF_HEAD, 0)
            self.poke(OFF_TAIL, 0)
            self.poke(OFF_SESSION, 1 + reader.byte())
        elif action == 2:
            self.poke(OFF_ECHO, self.word(self.ours, OFF_SESSION))
        elif action in (3, 4):
            self.produce(reader, good=action == 3)
        elif action == 5:
            self.poke(OFF_HEAD, self.word(self.half, OFF_HEAD) + reader.byte() - 8)
        elif action == 6:
            self.poke(OFF_TAIL, self.word(self.ours, OFF_HEAD) + reader.byte() % 3)
        elif action == 7:
            self.rig.reactor.advance(reader.byte() * 40 * MS)
        elif action == 8:
            at = reader.number(2) % len(self.half)
            piece = reader.piece()[: len(self.half) - at]
            self.half[at : at + len(piece)] = piece
        self.bell.ring()
        self.rig.reactor.settle()

    def produce(self, reader: Reader, *, good: bool) -> None:
        """An entry that is right, or right but for one field."""
        head = self.word(self.half, OFF_HEAD)
        data = reader.take(reader.byte() % 40)
        entry = Descriptor(
            seq=self.word(self.half, OFF_SESSION) + head & WORD,
            kind=KIND_MCTP if good else reader.byte(),
            transfer_id=ENTRY_ID,
            chunk=0 if good else reader.byte(),
            data_offset=self.geometry.slot_offset(head),
            length=len(data),
            crc32c=crc32c(data),
        )
        raw = bytearray(entry.to_bytes())
        if not good and reader.byte() & 1:
            raw[reader.byte() % DESCRIPTOR_BYTES] ^= reader.byte()
        self.half[entry.data_offset : entry.data_offset + len(data)] = data
        at = self.geometry.descriptor_offset(head)
        self.half[at : at + DESCRIPTOR_BYTES] = raw
        self.poke(OFF_HEAD, head + 1)


SLOT, RING, HALF = 256, 4, 1 << 15
Chunk = tuple[int, int, int, bytes]


def _end(rig: WindowRig, side: int, chunks: list[Chunk], entropy: int) -> WindowChannel:
    return WindowChannel(
        rig.window(side),
        rig.bells[side],
        rig.reactor,
        SeededEntropy(entropy),
        on_chunk=lambda *chunk: chunks.append(chunk),
        ring_entries=RING,
        slot_bytes=SLOT,
    )


def bridge(_scratch: Path) -> Check:
    """Both far halves of a mover's bridge written by a program; then honest ends on both sides."""
    geometry = geometry_for(RING, SLOT, HALF)

    def check(data: bytes) -> bool:
        reader = Reader(data)
        near, far = WindowRig(HALF), WindowRig(HALF)
        reactor = far.reactor = near.reactor
        for bell in far.bells:
            bell._reactor, bell.handle = reactor, bell.handle + 100
        ends: list[str] = []
        said: list[str] = []
        made = Bridge(
            (near.window(1), near.bells[1]),
            (far.window(0), far.bells[0]),
            reactor,
            SeededEntropy(9),
            on_end=ends.append,
            say=said.append,
            slot_bytes=SLOT,
        )
        made.start()
        peers = Hostile(near, 0, geometry), Hostile(far, 1, geometry)
        while reader.left:
            peers[reader.byte() & 1].step(reader)
        assert ends == [], "bytes of a peer end no mover"
        connected = made.near.connected
        here: list[Chunk] = []
        there: list[Chunk] = []
        daemon, module = _end(near, 0, here, 1), _end(far, 1, there, 2)
        daemon.attach()
        module.attach()
        reactor.advance(BACK_NS)
        assert daemon.connected
        assert module.connected
        del here[:], there[:]
        assert daemon.send(1, 5, 6, b"down")
        assert module.send(1, 7, 8, b"up")
        reactor.advance(10 * MS)
        assert (here, there) == ([(1, 7, 8, b"up")], [(1, 5, 6, b"down")])
        made.close()
        return connected

    return check


def mailbox(_scratch: Path) -> Check:
    """Bytes of any stream and entries of any peer into a relay; then an honest peer."""
    half = 16384
    geometry = mailbox_geometry(half)
    assert half >= HALF_MIN_BYTES

    def check(data: bytes) -> bool:
        reader = Reader(data)
        _one_entry(reader)
        rig = WindowRig(half)
        reactor = rig.reactor
        stream, ends = Stream(200), list[str]()
        relay = MailboxRelay(
            stream, rig.window(0), rig.bells[0], reactor, SeededEntropy(1), on_end=ends.append
        )
        relay.start()
        peer = Hostile(rig, 1, geometry)
        while reader.left:
            action = reader.byte()
            if action & 3 == 0:
                stream.data += reader.piece()
                _ready(reactor, stream)
            elif action & 3 == 1:
                stream.room = action >> 2
                _ready(reactor, stream, Event.WRITE | Event.READ)
            else:
                peer.step(reader)
            assert len(relay._queue) <= QUEUE_PACKETS
            assert len(relay._unsent) <= UNSENT_BYTES
        assert ends == [], "bytes of a peer end no link"
        got = relay.counters["rx_packets"] > 0
        _honest(rig, relay, stream)
        relay.close()
        return got

    return check


def _honest(rig: WindowRig, relay: MailboxRelay, stream: Stream) -> None:
    """A peer that keeps the rules gets a packet, and gives one."""
    chunks: list[Chunk] = []
    there = WindowChannel(
        rig.window(1),
        rig.bells[1],
        rig.reactor,
        SeededEntropy(2),
        on_chunk=lambda *chunk: chunks.append(chunk),
        ring_entries=MAILBOX_ENTRIES,
        slot_bytes=MAILBOX_SLOT_BYTES,
    )
    there.attach()
    rig.reactor.advance(BACK_NS)
    assert relay.channel.connected
    stream.room = 1 << 20
    _ready(rig.reactor, stream, Event.WRITE | Event.READ)
    rig.reactor.advance(10 * MS)
    del chunks[:], stream.written[:]
    stream.data = 2 * frame_serial(PACKET)  # rubbish before it may take the first along
    _ready(rig.reactor, stream)
    assert there.send(KIND_MCTP, ENTRY_ID, ENTRY_ID, PACKET)
    rig.reactor.advance(10 * MS)
    assert chunks[-1:] == [(KIND_MCTP, ENTRY_ID, ENTRY_ID, PACKET)]
    assert stream.written == frame_serial(PACKET)


def _ready(reactor: FakeReactor, stream: Stream, events: Event = Event.READ) -> None:
    watching = reactor.watches.get(stream.handle)
    if watching is not None:
        watching(events)
    reactor.settle()


def _one_entry(reader: Reader) -> None:
    kind, number = reader.byte() % 4, reader.byte() % 2
    data = reader.piece()
    try:
        assert packet_of_entry(kind, number, 0, data) == data
    except ProtocolError as exc:
        assert exc.frame == data
        assert exc.code in ("kind", "reserved", "short", "long", "version")


def bar_layout(_scratch: Path) -> Check:
    """A size, and a header as the other end wrote it."""

    def check(data: bytes) -> bool:
        reader = Reader(data)
        pages = reader.number(4)
        size = pages * 4096 + (reader.byte() if pages & 1 else 0)
        try:
            layout = BarLayout.of(size)
        except Refused:
            assert not MIN_BYTES <= size <= MAX_BYTES
            return False
        halves = layout.half_offset("a"), layout.half_offset("b")
        assert halves[0] % 4096 == halves[1] % 4096 == 0
        assert halves[1] + layout.half_bytes <= size
        header = bytearray(layout.header())
        assert layout.problem(bytes(header)) is None
        while reader.left:
            header[reader.byte() % HEADER_BYTES] = reader.byte()
            if not reader.byte() & 3:
                header[-4:] = crc32c(bytes(header[:-4])).to_bytes(4, "little")
        problem = layout.problem(bytes(header))
        assert (problem is None) is (bytes(header) == layout.header())
        return problem is None

    return check


def _mover_seeds() -> Iterable[bytes]:
    yield bytes([3, 0, 0, 8, 5, 6, 200, 0])
    yield bytes([0, 3]) + b"up\n" + bytes([8, 9, 3, 1, 0, 5, 121, 6, 255, 255, 8, 1])
    yield bytes([7, 1, 1, 5, 128, 6, 255, 0, 8, 3, 7, 0, 0, 6, 255, 0, 3, 0, 0])
    yield bytes([4, 6, 0, 60, 3, 4, 15, 3, 3, 8, 9, 255])
    yield bytes([6, 255, 255, 5, 0, 6, 255, 255, 0, 5]) + b"down\xff" + bytes([5, 129])


def _bridge_seeds() -> Iterable[bytes]:
    up = bytes([1, 1, 5, 1, 2])
    yield up + bytes([1, 3, 4, 1, 2, 3, 4])
    yield up + bytes([0, 1, 3, 0, 2, 0, 3, 3, 9, 9, 9, 1, 4, 5, 1, 2, 3, 4, 5, 7, 1, 4, 200])
    yield bytes([0, 1, 3, 0, 2, 1, 7, 100, 1, 8, 0, 0, 4, 1, 2, 3, 4, 1, 0, 3, 0, 1, 2, 3, 4])


def _mailbox_seeds() -> Iterable[bytes]:
    frame = frame_serial(PACKET)
    head = bytes([3, 0, len(PACKET)]) + PACKET
    up = bytes([2, 1, 5, 2, 2])
    yield head + bytes([0, len(frame)]) + frame + up + bytes([2, 3, len(PACKET)]) + PACKET
    yield bytes([0, 1, 0]) + up + bytes([2, 4, 3, 1, 2, 3, 9, 7, 1, 4, 0xFF, 5, 2, 7, 50])
    yield bytes([0, 0, 0, 1]) + up + bytes([2, 3, len(PACKET)]) + PACKET + bytes([0xF1, 1])


def _layout_seeds() -> Sequence[bytes]:
    return [
        *(pages.to_bytes(4, "little") for pages in (2, 3, 4, 65536, 1 << 21, (1 << 21) + 1)),
        b"\x04\0\0\0\x00\x01\x00",
        b"\x05\0\0\0\x07\x04\x02\x00",
        b"\x06\0\0\0\x08\x40\x01",
    ]


TARGETS = (
    Target(
        name="mover",
        text="a mover's words, deaths and silence at its owner; then one that works",
        make=mover,
        seeds=_mover_seeds,
        words=(b"up\n", b"down ", b"alive\n"),
        max_bytes=1024,
    ),
    Target(
        name="bridge",
        text="both far halves of a mover's bridge, written by a program; then honest ends",
        make=bridge,
        seeds=_bridge_seeds,
        max_bytes=1024,
    ),
    Target(
        name="mailbox",
        text="a stream and a peer that write what they like into a mailbox's relay",
        make=mailbox,
        seeds=_mailbox_seeds,
        words=(b"\x7e\x01", frame_serial(PACKET)),
        max_bytes=1024,
    ),
    Target(
        name="bar_layout",
        text="the layout of a shared memory, and its header as somebody wrote it",
        make=bar_layout,
        seeds=_layout_seeds,
        max_bytes=200,
    ),
)
