"""Serial lines and stream pairs: bytes in order, paced to the baud rate, in bounded buffers.

A byte takes 10 bit times (start, 8 data, stop). What one `write` took arrives as a whole when
its last bit is out. A full receiver holds the line back, as the local board's keeper does; with
`overrun=True` it loses bytes, as a UART without flow control does. A line outlives its ends:
what arrives while nobody has the far end open is lost, as on a UART.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from hal.errors import LinkDown, Refused
from hal.mock.line_faults import LineFaults
from hal.mock.node import HANGUP, READ, WRITE
from hal.ports import READ_LIMIT_BYTES, Buffer

if TYPE_CHECKING:
    from hal.mock.kernel import VirtualKernel
    from hal.mock.node import Node

BITS_PER_BYTE: Final = 10
BUFFER_BYTES: Final = 16_384  # of each direction and each stage; a Linux pty holds about 16 kB
SECOND_NS: Final = 1_000_000_000


class _Direction:
    """One way of a line: the sender's buffer, the wire, the receiver's buffer."""

    def __init__(self, line: MockLine, name: str) -> None:
        self.line = line
        self.name = name  # for rng and trace: "cnm0-mc a>b"
        self.faults = LineFaults()
        self.rng = line.kernel.rng(name)
        self.wire: deque[bytes] = deque()  # arrived at the far side, receiver full
        self.in_flight_bytes = 0  # taken from the sender, not yet in the receiver's buffer
        self.received = bytearray()
        self.free_ns = 0  # when the last bit of what was taken is out
        self.bytes_in = 0
        self.bytes_out = 0
        self.bytes_lost = 0
        self._whole = self._arrive_whole  # bound once: this is the hottest path of the world

    @property
    def room(self) -> int:
        return self.line.buffer_bytes - self.in_flight_bytes

    def send(self, data: bytes) -> None:
        line = self.line
        kernel = line.kernel
        size = len(data)
        self.bytes_in += size
        self.in_flight_bytes += size
        start_ns = self.free_ns
        if start_ns < kernel.now_ns:
            start_ns = kernel.now_ns
        if line.baud:
            start_ns += size * BITS_PER_BYTE * SECOND_NS // line.baud
        self.free_ns = start_ns
        if self.faults.idle:
            kernel.deliver(start_ns, self._whole, data)
            return
        pieces = self.faults.apply(data, self.rng)
        kernel.note(self.name, "fault", f"{len(data)}>{[len(piece) for _, piece in pieces]}")
        credit = len(data)  # leaves the flight with the first piece; doubles are not the sender's
        for extra_ns, piece in pieces:
            self.free_ns += extra_ns
            kernel.at(self.free_ns, lambda piece=piece, credit=credit: self._arrive(piece, credit))  # type: ignore[misc]
            credit = 0
        if not pieces:
            kernel.at(self.free_ns, lambda credit=credit: self._arrive(b"", credit))  # type: ignore[misc]

    def inject(self, data: bytes) -> None:
        """Bytes that nobody sent, at once."""
        self._arrive(data, 0)

    def _arrive_whole(self, data: bytes) -> None:
        """What one write took, unharmed: nearly all that ever comes."""
        line = self.line
        receiver = line.receiver(self)
        size = len(data)
        if (
            receiver is None
            or line.down
            or line.socket
            or self.wire
            or len(self.received) + size > line.buffer_bytes
        ):
            self._arrive(data, size)
            return
        self.in_flight_bytes -= size
        self.received += data
        self.bytes_out += size
        receiver.readable()
        line.tell_sender(self)

    def _arrive(self, data: bytes, credit: int) -> None:
        self.in_flight_bytes -= credit
        receiver = self.line.receiver(self)
        if receiver is None or self.line.down:
            self.bytes_lost += len(data)
        elif not self.wire and len(self.received) + len(data) <= self.line.buffer_bytes:
            self.received += data
            self.bytes_out += len(data)
            receiver.refresh()
        else:
            self.in_flight_bytes += len(data)
            self.wire.append(data)
            self.settle(receiver)
        self.line.tell_sender(self)

    def settle(self, receiver: MockStream) -> None:
        """Move what has arrived into the receiver's buffer, as far as there is room."""
        limit = self.line.buffer_bytes
        while self.wire:
            data = self.wire[0]
            room = limit - len(self.received)
            if room <= 0 and not self.line.overrun:
                break
            self.wire.popleft()
            self.received += data[:room]
            self.bytes_out += min(len(data), max(room, 0))
            self.in_flight_bytes -= min(len(data), room)
            if len(data) > room:
                if self.line.overrun:
                    self.bytes_lost += len(data) - room
                    self.in_flight_bytes -= len(data) - room
                else:
                    self.wire.appendleft(data[room:])
        receiver.refresh()

    def clear(self) -> None:
        self.received.clear()
        for data in self.wire:
            self.in_flight_bytes -= len(data)
        self.wire.clear()


class MockStream:
    """One open end of a line: the `ByteStream` port."""

    def __init__(self, line: MockLine, side: str, node: Node) -> None:
        self._line = line
        self.side = side
        self._in = line.towards(side)
        self._out = line.away_from(side)
        self._dead = False  # hung up; only close helps
        self._closed = False
        self._handle = line.kernel.open_handle(node, self, self.close)
        self.refresh()

    @property
    def handle(self) -> int:
        """What a loop waits on."""
        return self._handle.number

    def read(self) -> bytes:
        """At most 4 KiB of what has come. Raises LinkDown on hang-up, after what came before."""
        received = self._in.received
        if received:
            data = bytes(received[:READ_LIMIT_BYTES])
            del received[:READ_LIMIT_BYTES]
            if self._in.wire:
                self._in.settle(self)
                self._line.tell_sender(self._in)
            elif not received:
                ready = self._handle.ready
                if ready & HANGUP or self._line.socket:
                    self.refresh()
                else:
                    self._handle.set(ready & ~READ)
            return data
        self._check()
        return b""

    def write(self, data: Buffer) -> int:
        """Bytes taken, as far as the buffer has room. Raises LinkDown on hang-up."""
        self._check()
        out = self._out
        room = self._line.buffer_bytes - out.in_flight_bytes
        if type(data) is bytes and len(data) < room:
            if data:
                out.send(data)
            return len(data)
        taken = bytes(memoryview(data).cast("B")[: max(room, 0)])
        if taken:
            out.send(taken)
            if len(taken) >= room:
                self.refresh()
        return len(taken)

    def close(self) -> None:
        """Twice is fine."""
        if not self._closed:
            self._closed = True
            self._line.kernel.close_handle(self._handle)
            self._line.ended(self)

    @property
    def writable(self) -> bool:
        """For the line: does its handle say that it takes bytes?"""
        return bool(self._handle.ready & WRITE)

    def readable(self) -> None:
        """For the line: bytes have come, and nothing else is new."""
        handle = self._handle
        if not handle.ready & READ:
            handle.set(handle.ready | READ)

    def hang_up(self) -> None:
        """For the line: this end is dead from now on."""
        self._dead = True
        self.refresh()

    def refresh(self) -> None:
        """For the line: say again what this end is ready for."""
        ready = READ if self._in.received else 0
        if self._dead or (self._line.socket and self._line.peer_gone(self)):
            ready |= HANGUP | READ
        elif self._out.in_flight_bytes < self._line.buffer_bytes:
            ready |= WRITE
        if ready != self._handle.ready:
            self._handle.set(ready)

    def _check(self) -> None:
        if self._closed:
            raise LinkDown(f"{self._line.name} side {self.side}: used after its close")
        if self._dead:
            raise LinkDown(f"{self._line.name} side {self.side}: hung up")
        if self._line.socket and self._line.peer_gone(self):
            raise LinkDown(f"{self._line.name} side {self.side}: the far end closed")


class MockLine:
    """A cable with two sides, "a" and "b". Lives in the kernel; opened by nodes."""

    def __init__(
        self,
        kernel: VirtualKernel,
        name: str,
        *,
        baud: int = 0,
        buffer_bytes: int = BUFFER_BYTES,
        overrun: bool = False,
        socket: bool = False,
    ) -> None:
        """`baud` 0 is a line without pacing. `socket`: closing one end hangs the other up."""
        self.kernel = kernel
        self.name = name
        self.baud = baud
        self.buffer_bytes = buffer_bytes
        self.overrun = overrun
        self.socket = socket
        self.down = False
        self.a_to_b = _Direction(self, f"{name} a>b")
        self.b_to_a = _Direction(self, f"{name} b>a")
        self._ends: dict[str, MockStream] = {}
        self._ever: set[str] = set()

    def open(self, side: str, node: Node) -> MockStream:
        """Open one end, once at a time. Raises LinkDown while the line is unplugged."""
        if side not in ("a", "b"):
            raise Refused(f"{self.name}: side {side!r}; a line has sides a and b")
        if self.down:
            raise LinkDown(f"{self.name} side {side}: unplugged")
        if side in self._ends:
            raise Refused(f"{self.name} side {side}: open already")
        self._ever.add(side)
        stream = MockStream(self, side, node)
        self._ends[side] = stream
        self.kernel.note(self.name, "open", f"{side} {node.name}")
        return stream

    def wire_ns(self, length: int) -> int:
        """How long so many bytes take on the wire."""
        return length * BITS_PER_BYTE * SECOND_NS // self.baud if self.baud else 0

    # --- faults ---

    def cut(self, on: bool = True) -> None:
        """Bytes vanish both ways and nobody is told; `cut(False)` mends the wire."""
        self.a_to_b.faults.cut = self.b_to_a.faults.cut = on
        self.kernel.note(self.name, "cut", str(on))

    def hang_up(self) -> None:
        """Both open ends raise LinkDown from now on; the line can't be opened until `plug`."""
        self.down = True
        self.kernel.note(self.name, "hang_up")
        for direction in (self.a_to_b, self.b_to_a):
            direction.clear()
        for side in sorted(self._ends):
            self._ends[side].hang_up()

    def plug(self) -> None:
        """The line can be opened again."""
        self.down = False
        self.kernel.note(self.name, "plug")

    def inject(self, side: str, data: bytes) -> None:
        """Garbage reaches this side out of nowhere (fault L9)."""
        self.kernel.note(self.name, "inject", f"{side} {data[:16].hex()}")
        self.towards(side).inject(data)

    # --- for its ends ---

    def towards(self, side: str) -> _Direction:
        """The direction that this side receives."""
        return self.b_to_a if side == "a" else self.a_to_b

    def away_from(self, side: str) -> _Direction:
        """The direction that this side sends into; its faults are `line.away_from("a").faults`."""
        return self.a_to_b if side == "a" else self.b_to_a

    def receiver(self, direction: _Direction) -> MockStream | None:
        return self._ends.get("b" if direction is self.a_to_b else "a")

    def tell_sender(self, direction: _Direction) -> None:
        sender = self._ends.get("a" if direction is self.a_to_b else "b")
        if sender is not None and not sender.writable:
            sender.refresh()

    def peer_gone(self, end: MockStream) -> bool:
        """On a socket: is the far end closed, and has all that it sent come out of the wire?"""
        if not self.socket or self.towards(end.side).in_flight_bytes:
            return False
        far = "b" if end.side == "a" else "a"
        return far in self._ever and far not in self._ends

    def ended(self, end: MockStream) -> None:
        if self._ends.get(end.side) is not end:
            return
        del self._ends[end.side]
        self.towards(end.side).clear()
        self.kernel.note(self.name, "close", end.side)
        for other in self._ends.values():
            other.refresh()


def stream_pair(
    kernel: VirtualKernel, name: str, node_a: Node, node_b: Node
) -> tuple[MockStream, MockStream]:
    """A connected pair of local stream sockets, without pacing."""
    line = MockLine(kernel, name, socket=True)
    return line.open("a", node_a), line.open("b", node_b)
