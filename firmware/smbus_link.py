"""A control link over SMBus: MCTP messages in block writes between two controllers (DSP0237).

It has the face of `firmware.link.Link`, so an endpoint sits on either. Both ends write, and both
are targets: the adapter must be able to be addressed, which few can. An answer comes when the peer
likes; so a peer behind one of our own muxes, whose channels are open for our own transfers only,
is not for this link (a kernel with AF_MCTP holds the mux until the answer has come).
"""

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from firmware.loop import MS
from hal.errors import HalError
from hal.ports import Event, Reactor
from hal.smbus_ports import SmbusKind, SmbusSegment, SmbusTarget, SmbusTransfer
from protocol.errors import ProtocolError
from protocol.mctp.fragment import fragment
from protocol.mctp.reassembly import Message, Reassembler
from protocol.smbus.mctp import COMMAND_CODE, SmbusFrame

NULL_EID: Final = 0
QUEUE_PACKETS: Final = 64  # about half a second at 100 kHz
PACKET_DEADLINE_NS: Final = 100 * MS  # MT3: DSP0237 table 9, transmission delay
PACKET_ATTEMPTS: Final = 3  # of one packet; each one is itself tried again on lost arbitration
RETRY_NS: Final = 10 * MS
EXPIRE_NS: Final = 1_000 * MS


@dataclass(frozen=True, slots=True, kw_only=True)
class _Waiting:
    message: int  # packets of one message go down together
    packet: bytes


class SmbusLink:
    """Sends and receives whole MCTP messages. Loop thread only. `up` is False while the last
    packet could not be delivered."""

    def __init__(
        self,
        reactor: Reactor,
        segment: SmbusSegment,
        target: SmbusTarget,
        *,
        name: str,
        own_address: int,
        peer_address: int,
        local_eid: int = NULL_EID,
        peer_eid: int = NULL_EID,
    ) -> None:
        self.name = name
        self.peer_eid = peer_eid
        self.on_message: Callable[[Message], None] = lambda _message: None
        self.on_state: Callable[[bool, str], None] = lambda _up, _text: None
        self.counters: Counter[str] = Counter()
        self.up = True
        self.last_rx_ns: int | None = None
        self._reactor = reactor
        self._segment = segment
        self._target = target
        self._own_address = own_address
        self._peer_address = peer_address
        self._local_eid = local_eid
        self._reassembler = Reassembler(local_eid=local_eid or None)
        self._queue: deque[_Waiting] = deque()
        self._messages = 0
        self._sending = False
        self._closed = False
        self._cancel_expire: Callable[[], None] = lambda: None
        self._expiring = False
        reactor.watch(target.handle, Event.READ, self._on_event)

    @property
    def local_eid(self) -> int:
        """Our own EID on this link; 0 until it is assigned."""
        return self._local_eid

    @local_eid.setter
    def local_eid(self, eid: int) -> None:
        self._local_eid = eid
        self._reassembler.local_eid = eid or None

    @property
    def drops(self) -> Counter[str]:
        """What was dropped, by reason, beside what was taken."""
        return self._reassembler.drops + self.counters

    def send_message(self, data: bytes, *, tag: int, to: bool, urgent: bool = False) -> bool:
        """Queue a whole message, type byte first; False when the queue is full. An urgent one
        goes before all that is waiting."""
        if self._closed:
            self.counters["tx_line_down"] += 1
            return False
        packets = fragment(data, dest_eid=self.peer_eid, src_eid=self.local_eid, tag=tag, to=to)
        if len(self._queue) + len(packets) > QUEUE_PACKETS:
            self.counters["tx_queue_full"] += 1
            return False
        self._messages += 1
        waiting = [_Waiting(message=self._messages, packet=packet) for packet in packets]
        if urgent:
            self._queue.extendleft(reversed(waiting))
        else:
            self._queue.extend(waiting)
        self._send_next()
        return True

    def close(self) -> None:
        """Let go of the target's address for good. The segment is its owner's."""
        if self._closed:
            return
        self._closed = True
        self._cancel_expire()
        self._queue.clear()
        self._reactor.unwatch(self._target.handle)
        self._target.close()

    def _send_next(self) -> None:
        if self._sending or self._closed or not self._queue:
            return
        self._sending = True
        self._try(self._queue.popleft(), 1)

    def _try(self, item: _Waiting, attempt: int) -> None:
        if self._closed:
            return
        transfer = SmbusTransfer(
            address=self._peer_address,
            kind=SmbusKind.WRITE_BLOCK,
            command=COMMAND_CODE,
            data=bytes([self._own_address << 1 | 1]) + item.packet,
            pec=True,
        )

        def done(result: bytes | HalError) -> None:
            if isinstance(result, HalError):
                self._failed(item, attempt, result)
            else:
                self.counters["tx_packets"] += 1
                self._set_up(True, f"{self.name}: the peer takes packets")
                self._sending = False
                self._send_next()

        self._segment.submit(transfer, self._reactor.now_ns() + PACKET_DEADLINE_NS, done)

    def _failed(self, item: _Waiting, attempt: int, error: HalError) -> None:
        self.counters[f"tx_{type(error).__name__}"] += 1
        if attempt < PACKET_ATTEMPTS:
            at_ns = self._reactor.now_ns() + RETRY_NS
            self._reactor.call_at(at_ns, lambda: self._try(item, attempt + 1))
            return
        rest = [other for other in self._queue if other.message == item.message]
        for other in rest:
            self._queue.remove(other)
        self.counters["tx_dropped"] += 1 + len(rest)
        self._set_up(False, f"{self.name}: {error}")
        self._sending = False
        self._send_next()

    def _set_up(self, up: bool, text: str) -> None:
        if up != self.up:
            self.up = up
            self.on_state(up, text)

    def _on_event(self, _events: Event) -> None:
        for frame in self._target.receive():
            self._receive(frame)

    def _receive(self, data: bytes) -> None:
        try:
            frame = SmbusFrame.from_bytes(bytes([self._own_address << 1]) + data)
        except ProtocolError as exc:
            self.counters[exc.code] += 1
            return
        if frame.src_address != self._peer_address:
            self.counters["foreign"] += 1
            return
        self.counters["rx_packets"] += 1
        now_ns = self.last_rx_ns = self._reactor.now_ns()
        message = self._reassembler.feed(frame.packet, link=self.name, now_ns=now_ns)
        if message is not None:
            self.on_message(message)
        elif self._reassembler.open_messages and not self._expiring:
            self._expiring = True
            self._cancel_expire = self._reactor.call_at(now_ns + EXPIRE_NS, self._expire)

    def _expire(self) -> None:
        self._expiring = False
        now_ns = self._reactor.now_ns()
        self._reassembler.expire(now_ns)
        if self._reassembler.open_messages:
            self._expiring = True
            self._cancel_expire = self._reactor.call_at(now_ns + EXPIRE_NS, self._expire)
