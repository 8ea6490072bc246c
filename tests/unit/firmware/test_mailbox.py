"""A control link through memory: real links at both ends, and what is lost on the way."""

from firmware.link import Link
from firmware.mailbox import QUEUE_PACKETS, MailboxRelay
from hal.errors import DeviceGone, LinkDown
from hal.ports import Event
from protocol.mctp.serial_frame import Dialect, framer
from tests.unit.firmware.window_fakes import SeededEntropy, WindowRig

MS = 1_000_000
PACKET = bytes.fromhex("01 00 08 c8 00 81 02")


class Stream:
    """One end of a local pair, without an end to its room."""

    def __init__(self, reactor, handle):
        self._reactor, self.handle = reactor, handle
        self.peer, self.data, self.down, self.room = None, b"", False, 1 << 20

    def read(self):
        data, self.data = self.data[:4096], self.data[4096:]
        if not self.data:
            self._reactor.ready.pop(self.handle, None)
        if not data and self.down:
            raise LinkDown("hung up")
        return data

    def write(self, data):
        if self.down:
            raise LinkDown("hung up")
        taken = bytes(data)[: self.room]
        self.peer.data += taken
        if taken:
            self._reactor.ready[self.peer.handle] = Event.READ
        return len(taken)

    def close(self):
        self.down = self.peer.down = True
        self._reactor.ready[self.peer.handle] = Event.READ


class Bench:
    """link - stream - relay - memory - relay - stream - link"""

    def __init__(self):
        self.rig = WindowRig(half_bytes=16384)
        self.reactor = self.rig.reactor
        self.ends, self.relays, self.windows, self.outer = [], [], [], []
        for side in (0, 1):
            inner, outer = (Stream(self.reactor, 200 + 2 * side + n) for n in (0, 1))
            inner.peer, outer.peer = outer, inner
            window = self.rig.window(side)
            relay = MailboxRelay(
                inner,
                window,
                self.rig.bells[side],
                self.reactor,
                SeededEntropy(side),
                on_end=self.ends.append,
            )
            relay.start()
            self.windows.append(window)
            self.relays.append(relay)
            self.outer.append(outer)

    def links(self):
        links = [
            Link(self.reactor, lambda s=stream: s, name=str(n), dialect=Dialect.A)
            for n, stream in enumerate(self.outer)
        ]
        self.reactor.run_until(lambda: all(relay.channel.connected for relay in self.relays))
        return links

    def packets(self, side):
        """What a relay has given to its stream."""
        return self.outer[side].data.count(framer(Dialect.A)(PACKET))


def test_messages_of_any_size_go_both_ways():
    bench = Bench()
    left, right = bench.links()
    got = []
    right.on_message = lambda message: got.append(("right", bytes(message.data)))
    left.on_message = lambda message: got.append(("left", bytes(message.data)))
    for length in (1, 64, 65, 1000, 8000):
        assert left.send_message(bytes([0x7E]) + bytes([7]) * length, tag=1, to=True)
        assert right.send_message(bytes([0x7E]) + bytes([9]) * length, tag=2, to=True)
        bench.reactor.run_until(lambda n=length: len(got) >= 2)
        assert {(who, len(data)) for who, data in got} == {
            ("left", length + 1),
            ("right", length + 1),
        }
        got.clear()
    assert bench.ends == []


def test_a_bad_entry_costs_itself_and_nothing_behind_it():
    bench = Bench()
    bench.reactor.run_until(lambda: all(relay.channel.connected for relay in bench.relays))
    bench.relays[1].channel.hold(True)
    bench.outer[0].write(framer(Dialect.A)(PACKET) * 3)
    bench.reactor.advance(10 * MS)
    bench.rig.halves[0][0x1000 + 256] ^= 1  # the second one's first byte
    bench.relays[1].channel.hold(False)
    bench.reactor.advance(2_000 * MS)
    assert bench.packets(1) == 2
    assert bench.relays[1].channel.counters["rx_data_crc"] == 1


def test_an_entry_that_is_no_packet_is_counted_and_dropped():
    bench = Bench()
    bench.reactor.run_until(lambda: all(relay.channel.connected for relay in bench.relays))
    assert bench.relays[0].channel.send(1, 0, 0, PACKET)
    assert bench.relays[0].channel.send(3, 0, 0, PACKET[:4])
    bench.outer[0].write(framer(Dialect.A)(PACKET))
    bench.reactor.advance(2_000 * MS)
    assert bench.packets(1) == 1
    counters = bench.relays[1].counters
    assert (counters["rx_kind"], counters["rx_short"], counters["rx_packets"]) == (1, 1, 1)


def test_a_peer_that_takes_nothing_costs_a_bounded_queue_and_the_newest_are_kept():
    bench = Bench()
    bench.reactor.run_until(lambda: all(relay.channel.connected for relay in bench.relays))
    bench.relays[1].channel.hold(True)
    for number in range(300):
        packet = PACKET[:6] + bytes([number % 256])
        bench.outer[0].write(framer(Dialect.A)(packet))
        bench.reactor.advance(1 * MS)
    relay = bench.relays[0]
    assert len(relay._queue) == QUEUE_PACKETS
    assert relay.counters["tx_queue_full"] == 300 - 32 - QUEUE_PACKETS
    assert relay._queue[-1] == PACKET[:6] + bytes([299 % 256])


def test_what_waited_for_a_peer_that_is_no_more_is_not_sent_to_the_next_one():
    bench = Bench()
    bench.reactor.run_until(lambda: all(relay.channel.connected for relay in bench.relays))
    bench.relays[1].channel.hold(True)
    bench.outer[0].write(framer(Dialect.A)(PACKET) * 40)
    bench.reactor.advance(10 * MS)
    bench.relays[1].channel.close()
    bench.reactor.advance(2_000 * MS)
    assert bench.relays[0].counters["tx_dropped_at_disconnect"] == 8
    bench.relays[1].channel.hold(False)
    bench.relays[1].channel.attach()
    bench.reactor.run_until(lambda: bench.relays[0].channel.connected)
    bench.reactor.advance(2_000 * MS)
    assert bench.packets(1) == 0


def test_a_stream_that_hangs_up_and_a_memory_that_is_gone_end_the_relay():
    bench = Bench()
    bench.outer[0].close()
    bench.reactor.run_until(lambda: bool(bench.ends))
    assert bench.ends == ["hung up"]
    bench.windows[1].dead = DeviceGone("removed")
    bench.reactor.run_until(lambda: len(bench.ends) == 2)
    assert "removed" in bench.ends[1]
    bench.reactor.advance(60_000 * MS)
    assert len(bench.ends) == 2


def test_a_slow_stream_gets_all_of_it_in_the_end():
    bench = Bench()
    bench.reactor.run_until(lambda: all(relay.channel.connected for relay in bench.relays))
    inner = bench.outer[1].peer
    inner.room = 0
    bench.outer[0].write(framer(Dialect.A)(PACKET) * 20)
    bench.reactor.advance(100 * MS)
    assert bench.packets(1) == 0
    inner.room = 7
    for _ in range(100):
        bench.reactor.ready[inner.handle] = Event.READ | Event.WRITE
        bench.reactor.advance(1 * MS)
    assert bench.packets(1) == 20
