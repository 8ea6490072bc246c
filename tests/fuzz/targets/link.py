"""Both ends of a control link over one line that a program damages: framing, dialects, reassembly.

The end that leads asks, the other answers, as a card and its module do. Whatever is injected, lost
or hung up: once the line is left alone, they understand each other again.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from firmware.link import QUEUE_PACKETS, Link
from firmware.link_dialect import HOLD_NS, STALE_NS
from hal.errors import LinkDown, Unavailable
from hal.ports import Event
from protocol.mctp.reassembly import Message
from protocol.mctp.serial_frame import Dialect, framer
from tests.fuzz.reader import Reader
from tests.fuzz.target import Check, Target
from tests.fuzz.targets.links import GOOD, PACKETS
from tests.unit.firmware.window_fakes import MS, FakeReactor

ASK_NS: Final = 500 * MS
SHORT: Final = b"\x7easking"
LONG: Final = b"\x7elong" * 30
KEPT_LIMIT: Final = 4096  # bytes on the way, as a driver's buffer


class End:
    """One end's stream; what is written is at once in the other's inbox."""

    def __init__(self, line: "Line", side: int) -> None:
        self._line, self._side = line, side
        self.handle = 10 + side

    def read(self) -> bytes:
        if not self._line.up:
            raise LinkDown("hung up")
        inbox = self._line.inboxes[self._side]
        data = bytes(inbox[:4096])
        del inbox[:4096]
        self._line.reactor.ready.pop(self.handle, None)
        return data

    def write(self, data: memoryview) -> int:
        if not self._line.up:
            raise LinkDown("hung up")
        taken = bytes(data[: self._line.room])
        self._line.put(1 - self._side, taken)
        return len(taken)

    def close(self) -> None: ...


class Line:
    """The wire, and the two links on it."""

    def __init__(self, dialects: tuple[Dialect | None, Dialect | None]) -> None:
        self.reactor = FakeReactor()
        self.up = True
        self.room = 1 << 20
        self.inboxes = bytearray(), bytearray()
        self.links: list[Link] = []
        self.heard: tuple[list[Message], list[Message]] = ([], [])
        for side, dialect in enumerate(dialects):
            link = Link(
                self.reactor,
                lambda side=side: self._open(side),  # type: ignore[misc]
                name=f"end{side}",
                leads=side == 0,
                dialect=dialect,
            )
            link.on_message = lambda message, side=side: self._hear(side, message)  # type: ignore[misc]
            self.links.append(link)

    def _open(self, side: int) -> End:
        if not self.up:
            raise Unavailable("nothing there")
        return End(self, side)

    def put(self, side: int, data: bytes) -> None:
        self.inboxes[side].extend(data[: max(0, KEPT_LIMIT - len(self.inboxes[side]))])
        self.reactor.ready[10 + side] = Event.READ

    def _hear(self, side: int, message: Message) -> None:
        self.heard[side].append(message)
        del self.heard[side][:-50]
        if side == 1 and message.to and message.data == SHORT:
            self.links[1].send_message(SHORT, tag=message.tag, to=False)

    def pump(self) -> None:
        for side in (0, 1, 0, 1):
            handle = 10 + side
            while self.inboxes[side] and handle in self.reactor.watches and self.up:
                self.reactor.watches[handle](Event.READ)
        self.reactor.ready.clear()

    def advance(self, span_ns: int) -> None:
        """Time in steps of a question each."""
        for _ in range(max(1, span_ns // ASK_NS)):
            self.links[0].send_message(SHORT, tag=1, to=True)
            self.pump()
            self.reactor.advance(ASK_NS)
            self.pump()


def _act(line: Line, reader: Reader) -> None:
    action = reader.byte() % 10
    side = reader.byte() & 1
    if action < 2:
        line.put(side, reader.piece())
    elif action == 2:
        dialect = reader.choice(list(Dialect))
        for _ in range(1 + reader.byte() % 12):
            line.put(side, framer(dialect)(PACKETS[reader.byte() % len(PACKETS)]))
    elif action == 3:
        line.put(side, GOOD[reader.byte() & 1])
    elif action == 4:
        line.links[side].send_message(LONG, tag=2, to=True, urgent=bool(reader.byte() & 1))
    elif action == 5:
        line.inboxes[side][: reader.byte()] = b""
    elif action == 6:
        line.up = False
        for end in line.links:
            if end._stream is not None and end._stream.handle in line.reactor.watches:
                line.reactor.watches[end._stream.handle](Event.HANGUP)
        line.reactor.advance(reader.byte() * 10 * MS)
        line.up = True
    elif action == 7:
        line.advance(reader.byte() * 20 * MS)
    elif action == 8:
        line.links[side].local_eid = reader.choice((0, 9, 12))
        line.links[side].local_eid = 0
    line.pump()


FIXED: Final = (None, None), (None, Dialect.B), (None, Dialect.D), (Dialect.A, None)


def link(_scratch: Path) -> Check:
    def check(data: bytes) -> bool:
        reader = Reader(data)
        line = Line(FIXED[reader.byte() % len(FIXED)])
        while reader.left:
            _act(line, reader)
            for end in line.links:
                assert len(end._queue) <= QUEUE_PACKETS
                assert end._reassembler.open_messages <= 16
        got = bool(line.heard[0])
        line.advance(HOLD_NS + 2 * STALE_NS)
        del line.heard[0][:], line.heard[1][:]
        assert line.links[0].dialect.value in "ABCD"
        assert line.links[0].send_message(LONG, tag=3, to=True)
        assert line.links[1].send_message(LONG, tag=4, to=True)
        line.pump()
        assert [m.tag for m in line.heard[1] if m.data == LONG] == [3]
        assert [m.tag for m in line.heard[0] if m.data == LONG] == [4]
        return got

    return check


def _seeds() -> Iterable[bytes]:
    for fixed in range(len(FIXED)):
        yield bytes([fixed, 7, 0, 60, 4, 0, 0, 4, 1, 1])
        for dialect in range(4):
            yield bytes([fixed, 7, 0, 30, 2, 0, dialect, 11, *[0] * 12, 7, 0, 100])
            yield bytes([fixed, 2, 1, dialect, 11, *[0] * 12, 7, 0, 100, 4, 1, 0])
        yield bytes([fixed, 0, 0, 9]) + b"\x7e\x01\xffgarbage"[:9] + bytes([6, 0, 30, 7, 0, 90])
        yield bytes([fixed, 4, 1, 0, 5, 0, 40, 3, 1, 0, 1, 1, 4]) + b"\x7e\x01\x7d\x7e"


TARGETS = (
    Target(
        name="link",
        text="both ends of a serial link, any dialect, over a line that is damaged and left alone",
        make=link,
        seeds=_seeds,
        words=(b"\x7e\x01", GOOD[1]),
        max_bytes=512,
    ),
)
