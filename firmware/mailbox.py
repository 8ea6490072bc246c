"""A control link through memory: serial frames here, a mailbox there. protocol/SPEC.md section 17.

    Link <-- byte stream (DSP0253 frames) --> MailboxRelay <-- mailbox --> the far end's relay

So the stack above knows one kind of carrier, and the memory is read by a process of its own, as
bulk windows are (`firmware.mover_app`): a device that vanishes only hangs the stream up.

What is lost with a connection, or found no room, is lost as on any link: counted, and repaired by
MCTP's reassembly and by whoever waits for an answer. Loop thread only.
"""

from collections import Counter, deque
from collections.abc import Callable
from typing import Final

from firmware.window import WindowChannel
from hal.errors import HalError, LinkDown
from hal.ports import ByteStream, Doorbell, Entropy, Event, Reactor, Window
from protocol.errors import ProtocolError
from protocol.mctp.mailbox import (
    ENTRY_ID,
    MAILBOX_ENTRIES,
    MAILBOX_SLOT_BYTES,
    packet_of_entry,
)
from protocol.mctp.serial import SerialDeframer
from protocol.mctp.serial_frame import Dialect, framer
from protocol.window import KIND_MCTP

QUEUE_PACKETS: Final = 128  # to the mailbox; beyond that the oldest give way
UNSENT_BYTES: Final = 64 * 1024  # to the stream; beyond that what comes is dropped


class MailboxRelay:
    """One end of a mailbox link. Window, doorbell and stream stay the caller's."""

    def __init__(
        self,
        stream: ByteStream,
        window: Window,
        doorbell: Doorbell,
        reactor: Reactor,
        entropy: Entropy,
        *,
        on_end: Callable[[str], None],
    ) -> None:
        """`on_end(why)` once: the stream hung up, or the memory is gone. Raises ValueError for a
        memory that is too small."""
        self.counters: Counter[str] = Counter()
        self._stream, self._reactor, self._on_end = stream, reactor, on_end
        self._deframer = SerialDeframer()
        self._frame = framer(Dialect.A)
        self._queue: deque[bytes] = deque()  # to the mailbox
        self._unsent = bytearray()  # to the stream
        self._ended = False
        self.channel = WindowChannel(
            window,
            doorbell,
            reactor,
            entropy,
            on_chunk=self._on_entry,
            on_space=self._pump,
            on_connect=self._pump,
            on_disconnect=self._forget,
            on_fault=self._on_fault,
            ring_entries=MAILBOX_ENTRIES,
            slot_bytes=MAILBOX_SLOT_BYTES,
        )

    def start(self) -> None:
        """Raises HalError."""
        self.channel.attach()
        self.channel.expect(True)
        self._reactor.watch(self._stream.handle, Event.READ, self._on_stream)

    def close(self) -> None:
        """Twice is fine; `on_end` is not called any more."""
        if not self._ended:
            self._ended = True
            self._reactor.unwatch(self._stream.handle)
            self.channel.close()

    # --- from the stream ---

    def _on_stream(self, events: Event) -> None:
        try:
            if events & Event.WRITE:
                self._flush()
            data = self._stream.read()
        except LinkDown as exc:
            self._end(str(exc))
            return
        for packet in self._deframer.feed(data):
            if len(self._queue) >= QUEUE_PACKETS:
                self._queue.popleft()
                self.counters["tx_queue_full"] += 1
            self._queue.append(packet)
        self._pump()

    def _pump(self) -> None:
        while self._queue and self.channel.send(KIND_MCTP, ENTRY_ID, ENTRY_ID, self._queue[0]):
            self._queue.popleft()
            self.counters["tx_packets"] += 1

    def _forget(self) -> None:
        """What waited was for a peer that is no more."""
        self.counters["tx_dropped_at_disconnect"] += len(self._queue)
        self._queue.clear()

    # --- to the stream ---

    def _on_entry(self, kind: int, transfer_id: int, chunk: int, data: bytes) -> None:
        try:
            packet = packet_of_entry(kind, transfer_id, chunk, data)
        except ProtocolError as exc:
            self.counters[f"rx_{exc.code}"] += 1
            return
        self.counters["rx_packets"] += 1
        frame = self._frame(packet)
        if len(self._unsent) + len(frame) > UNSENT_BYTES:
            self.counters["rx_stream_full"] += 1
            return
        self._unsent += frame
        try:
            self._flush()
        except LinkDown as exc:
            self._end(str(exc))

    def _flush(self) -> None:
        if self._unsent:
            del self._unsent[: self._stream.write(self._unsent)]
        events = Event.READ | Event.WRITE if self._unsent else Event.READ
        self._reactor.watch(self._stream.handle, events, self._on_stream)

    def _on_fault(self, text: str) -> None:
        self.counters["faults"] += 1
        if not self.channel.attached:
            self._end(text)

    def _end(self, why: str) -> None:
        if not self._ended:
            self.close()
            self._on_end(why)


def open_relay(
    stream: ByteStream,
    pair: tuple[Window, Doorbell],
    reactor: Reactor,
    entropy: Entropy,
    on_end: Callable[[str], None],
) -> MailboxRelay:
    """A relay that runs. Raises HalError, also for a memory that is too small."""
    try:
        relay = MailboxRelay(stream, *pair, reactor, entropy, on_end=on_end)
    except ValueError as exc:
        raise HalError(f"mailbox: {exc}") from exc
    relay.start()
    return relay
