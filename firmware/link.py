"""One control link: bytes of a serial line <-> MCTP messages (DSP0236 over DSP0253).

Above this file nobody knows what carries the messages. A link that hangs up is opened again, for
as long as it is wanted; what was queued for the old line, or in a dialect that the peer turns out
not to speak, is dropped and counted, because whoever waits for an answer retries with the same id.
"""

from collections import Counter
from collections.abc import Callable
from typing import Final

from firmware.link_dialect import STALE_NS, LinkDialect
from firmware.loop import MS
from hal.errors import HalError, LinkDown
from hal.ports import ByteStream, Event, Reactor
from protocol.mctp.fragment import fragment
from protocol.mctp.reassembly import Message, Reassembler
from protocol.mctp.serial_frame import Dialect

NULL_EID: Final = 0  # DSP0236 8.1: addressed by the link itself
QUEUE_PACKETS: Final = 512  # about 35 kB, 0.4 s at 921,600 baud
REOPEN_NS: Final = 200 * MS
EXPIRE_NS: Final = 1_000 * MS


class Link:
    """Sends and receives whole MCTP messages. Loop thread only.

    `local_eid` is 0 until it is assigned. The link has two ends, so until then every packet is
    ours; after that those addressed to it or to the null EID. `peer_eid` is where messages go.
    """

    def __init__(
        self,
        reactor: Reactor,
        open_stream: Callable[[], ByteStream],
        *,
        name: str,
        local_eid: int = NULL_EID,
        peer_eid: int = NULL_EID,
        leads: bool = False,
        dialect: Dialect | None = None,
    ) -> None:
        """`leads`: the card's end, which settles the dialect of the two. `dialect`: this one,
        whatever is heard; None finds it out, beginning with A."""
        self.name = name
        self.peer_eid = peer_eid
        self.on_message: Callable[[Message], None] = lambda _message: None
        self.on_state: Callable[[bool, str], None] = lambda _up, _text: None
        self.on_dialect: Callable[[Dialect, Dialect], None] = lambda _old, _new: None
        self.counters: Counter[str] = Counter()
        self._reactor = reactor
        self._open_stream = open_stream
        self._stream: ByteStream | None = None
        self._rx_bytes = self._rx_packets = 0  # plain: they grow with every packet
        self._tx_bytes = self._tx_packets = 0
        self._leads = leads
        self._dialect = LinkDialect(
            reactor.now_ns, self._understood_ns, self._changed, leads=leads, fixed=dialect
        )
        self._deframer = self._dialect.deframer()
        self._last_rx_ns: int | None = None  # of the last good packet
        self._opened_ns = 0
        self._reassembler = Reassembler(local_eid=local_eid or None)
        self._local_eid = local_eid
        self._queue: list[bytes] = []  # not a deque: an empty one has 760 bytes
        self._unsent = memoryview(b"")
        self._writing = False
        self._closed = False
        self._expiring = False  # a timer is set, which it is while messages are incomplete
        self._cancel_expire: Callable[[], None] = lambda: None
        self._open()

    @property
    def local_eid(self) -> int:
        """Our own EID on this link; 0 until it is assigned."""
        return self._local_eid

    @local_eid.setter
    def local_eid(self, eid: int) -> None:
        self._local_eid = eid
        self._reassembler.local_eid = eid or None

    @property
    def dialect(self) -> Dialect:
        """What is read and spoken on this link."""
        return self._dialect.current

    @property
    def last_rx_ns(self) -> int | None:
        """When something was last heard: a good packet, or frames of a dialect not ours. A peer
        that is not understood is not silent."""
        understood_ns, heard_ns = self._last_rx_ns, self._dialect.heard_ns
        if understood_ns is None or heard_ns is None:
            return heard_ns if understood_ns is None else understood_ns
        return max(understood_ns, heard_ns)

    @property
    def up(self) -> bool:
        """The line is open. That says nothing about who is at its other end."""
        return self._stream is not None

    @property
    def drops(self) -> Counter[str]:
        """What was dropped, by reason, over all layers of this link, beside what was taken."""
        moved = Counter(
            rx_bytes=self._rx_bytes,
            rx_packets=self._rx_packets,
            tx_bytes=self._tx_bytes,
            tx_packets=self._tx_packets,
        )
        return self._deframer.drops + self._reassembler.drops + self.counters + moved

    def send_message(self, data: bytes, *, tag: int, to: bool, urgent: bool = False) -> bool:
        """Queue a whole message, type byte first; False when the line is down or the queue full.

        An urgent one (a lease grant) goes before all that is waiting.
        """
        if self._stream is None:
            self.counters["tx_line_down"] += 1
            return False
        packets = fragment(data, dest_eid=self.peer_eid, src_eid=self.local_eid, tag=tag, to=to)
        frame = self._dialect.frame
        if len(packets) == 1:  # the usual case: a grant, and nothing waits
            wire = frame(packets[0])
            if self._leads and self._silent():
                wire += self._dialect.probe(packets[0])
            if not self._writing and not self._queue:
                self._write(self._stream, wire)
                return True
            frames = [wire]
        else:
            frames = [frame(packet) for packet in packets]
        if len(self._queue) + len(frames) > QUEUE_PACKETS:
            self.counters["tx_queue_full"] += 1
            return False
        if urgent:
            self._queue[:0] = frames
        else:
            self._queue.extend(frames)
        if not self._writing:
            self._flush()
        return True

    def close(self) -> None:
        """Close the line for good."""
        self._closed = True
        self._cancel_expire()
        self._drop_stream("closed")

    def _open(self) -> None:
        if self._closed:
            return
        try:
            self._stream = self._open_stream()
        except HalError as exc:
            self.on_state(False, f"{self.name}: {exc}")
            self._reactor.call_at(self._reactor.now_ns() + REOPEN_NS, self._open)
            return
        self._opened_ns = self._reactor.now_ns()
        self._reactor.watch(self._stream.handle, Event.READ, self._on_event)
        self.on_state(True, f"{self.name}: open")

    def _on_event(self, events: Event) -> None:
        if events == Event.READ:  # the usual case; `&` of two flags costs 0.8 us (measured)
            self._receive()
            return
        if events & (Event.READ | Event.HANGUP):
            self._receive()
        if events & Event.WRITE and self._stream is not None:
            self._flush()

    def _receive(self) -> None:
        """One read: what is left is told of by the next wait, so that no link holds up others."""
        if self._stream is None:
            return
        try:
            data = self._stream.read()
        except LinkDown as exc:
            self._lost(str(exc))
            return
        if not data:
            return
        self._rx_bytes += len(data)
        packets = self._deframer.feed(data)
        if not packets:
            return
        self._last_rx_ns = now_ns = self._reactor.now_ns()
        self._rx_packets += len(packets)
        for packet in packets:
            message = self._reassembler.feed(packet, link=self.name, now_ns=now_ns)
            if message is not None:
                self.on_message(message)
            elif self._reassembler.open_messages and not self._expiring:
                self._plan_expiry()

    def _write(self, stream: ByteStream, frame: bytes) -> None:
        """As `_flush` with this one frame in an empty queue."""
        try:
            taken = stream.write(frame)
        except LinkDown as exc:
            self._lost(str(exc))
            return
        self._tx_packets += 1
        self._tx_bytes += taken
        if taken < len(frame):
            self._unsent = memoryview(frame)[taken:]
            self._writing = True
            self._reactor.watch(stream.handle, Event.READ | Event.WRITE, self._on_event)

    def _flush(self) -> None:
        stream = self._stream
        assert stream is not None
        try:
            if self._unsent:
                taken = stream.write(self._unsent)
                self._tx_bytes += taken
                self._unsent = self._unsent[taken:]
            while self._queue and not self._unsent:
                frame = self._queue.pop(0)
                taken = stream.write(frame)
                self._tx_packets += 1
                self._tx_bytes += taken
                if taken < len(frame):
                    self._unsent = memoryview(frame)[taken:]
        except LinkDown as exc:
            self._lost(str(exc))
            return
        want = bool(self._unsent or self._queue)
        if want != self._writing:
            self._writing = want
            events = Event.READ | Event.WRITE if want else Event.READ
            self._reactor.watch(stream.handle, events, self._on_event)

    def _lost(self, text: str) -> None:
        self._drop_stream(text)
        if not self._closed:
            self._reactor.call_at(self._reactor.now_ns() + REOPEN_NS, self._open)

    def _drop_stream(self, text: str) -> None:
        stream, self._stream = self._stream, None
        if stream is None:
            return
        self.counters["tx_dropped_at_hangup"] += len(self._queue) + bool(self._unsent)
        self._queue.clear()
        self._unsent = memoryview(b"")
        self._writing = False
        self.counters.update(self._deframer.drops)  # what the old line dropped stays counted
        self._deframer = self._dialect.deframer()
        self._reassembler.forget_link(self.name)  # the rest of no message will come
        self._reactor.unwatch(stream.handle)
        stream.close()
        self.on_state(False, f"{self.name}: {text}")

    def _plan_expiry(self) -> None:
        self._expiring = True
        self._cancel_expire = self._reactor.call_at(
            self._reactor.now_ns() + EXPIRE_NS, self._expire
        )

    def _silent(self) -> bool:
        now_ns, taken_ns = self._reactor.now_ns(), self._last_rx_ns
        if taken_ns is not None and now_ns - taken_ns < STALE_NS:
            return False  # the usual case
        heard_ns = self._dialect.heard_ns
        return heard_ns is None or now_ns - heard_ns >= STALE_NS

    def _understood_ns(self) -> int | None:
        """When a packet was last taken on the line that is open."""
        taken_ns = self._last_rx_ns
        return taken_ns if taken_ns is not None and taken_ns >= self._opened_ns else None

    def _changed(self, old: Dialect, new: Dialect) -> None:
        """From within the deframer: whoever wants to know is told after it."""
        self.counters["dialect_changes"] += 1
        self.counters["tx_dropped_at_dialect"] += len(self._queue)
        self._queue.clear()
        self._reactor.post(lambda: self.on_dialect(old, new))

    def _expire(self) -> None:
        self._expiring = False
        self._reassembler.expire(self._reactor.now_ns())
        if self._reassembler.open_messages:
            self._plan_expiry()
