"""The window channel: delivery, back-pressure, handshake, misbehaving peers, lost hints."""

import struct
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware.window import (
    FAULT_BACKOFF_MAX_NS,
    POLL_BUSY_NS,
    POLL_IDLE_NS,
    POLL_QUIET_NS,
    WindowChannel,
)
from hal.errors import Unavailable
from hal.ports import Event
from protocol.window import OFF_ECHO, OFF_HEAD, OFF_SESSION, OFF_TAIL, geometry_for
from tests.unit.firmware.window_fakes import FakeWindow, SeededEntropy, WindowRig

SLOT = 256
RING = 4
DATA_AT = geometry_for(RING, SLOT, 1 << 16).data_offset


class End:
    """One channel with what it heard."""

    def __init__(self, rig: WindowRig, side: int, seed: int = 0) -> None:
        self.rig, self.side = rig, side
        self.window: FakeWindow = rig.window(side)
        self.chunks: list[tuple[int, int, int, bytes]] = []
        self.faults: list[str] = []
        self.spaces = self.connects = 0
        self.channel = WindowChannel(
            self.window,
            rig.bells[side],
            rig.reactor,
            SeededEntropy(seed * 2 + side),
            on_chunk=lambda *chunk: self.chunks.append(chunk),
            on_space=self._space,
            on_connect=self._connect,
            on_fault=self.faults.append,
            ring_entries=RING,
            slot_bytes=SLOT,
        )

    def _space(self) -> None:
        self.spaces += 1

    def _connect(self) -> None:
        self.connects += 1

    @property
    def half(self) -> bytearray:
        return self.rig.halves[self.side]

    def send(self, number: int, data: bytes = b"data") -> bool:
        return self.channel.send(1, 2, number, data)


def pair(seed: int = 0) -> tuple[WindowRig, End, End]:
    rig = WindowRig()
    ends = End(rig, 0, seed), End(rig, 1, seed)
    for end in ends:
        end.channel.attach()
    rig.reactor.settle()
    return rig, *ends


def numbers(end: End) -> list[int]:
    return [chunk for _, _, chunk, _ in end.chunks]


def word(half: bytearray, offset: int) -> int:
    return int(struct.unpack_from("<I", half, offset)[0])


def poke(half: bytearray, offset: int, value: int) -> None:
    struct.pack_into("<I", half, offset, value)


@pytest.mark.parametrize("first", [0, 1])
def test_either_end_may_attach_first(first: int) -> None:
    rig = WindowRig()
    ends = [End(rig, 0), End(rig, 1)]
    ends[first].channel.attach()
    rig.reactor.settle()
    assert not ends[first].channel.connected
    ends[1 - first].channel.attach()
    rig.reactor.settle()
    assert all(end.channel.connected and end.connects == 1 for end in ends)


def test_chunks_arrive_whole_and_in_order_both_ways() -> None:
    rig, card, cnm = pair()
    sent: dict[End, list[bytes]] = {card: [], cnm: []}
    for number in range(50):
        for end in (card, cnm):
            data = bytes([number, end.side]) * (number * 5 // 2)
            assert end.channel.send(number % 3, 7, number, data)
            sent[end].append(data)
        rig.reactor.settle()
    for end, peer in ((card, cnm), (cnm, card)):
        assert [data for _, _, _, data in peer.chunks] == sent[end]
        assert numbers(peer) == list(range(50))
        assert end.channel.tx_put == end.channel.tx_gone == 50


def test_a_full_ring_says_no_and_room_is_told_once() -> None:
    rig, card, cnm = pair()
    assert [card.send(number) for number in range(RING + 1)] == [True] * RING + [False]
    assert card.channel.tx_put - card.channel.tx_gone == RING
    rig.reactor.settle()
    assert card.spaces == 1
    assert numbers(cnm) == list(range(RING))
    assert card.channel.tx_gone == RING


def test_a_send_without_a_peer_is_refused_until_there_is_one() -> None:
    rig = WindowRig()
    card, cnm = End(rig, 0), End(rig, 1)
    card.channel.attach()
    assert not card.send(0)
    cnm.channel.attach()
    rig.reactor.settle()
    assert card.spaces == 1
    assert card.send(0)


def test_a_chunk_above_the_slot_is_our_own_mistake() -> None:
    _, card, _ = pair()
    with pytest.raises(ValueError, match="257 B"):
        card.send(0, bytes(SLOT + 1))


def test_one_handler_takes_a_bounded_number_of_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firmware.window.CHUNKS_PER_TURN", 2)
    rig, card, cnm = pair()
    for number in range(RING):
        card.send(number)
    seen = []
    while rig.reactor.step():
        seen.append(len(cnm.chunks))
    assert max(b - a for a, b in pairwise(seen)) <= 2
    assert numbers(cnm) == list(range(RING))


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("quietly", [False, True])
def test_an_end_that_starts_anew_meets_empty_rings(side: int, quietly: bool) -> None:
    rig, *ends = pair()
    old, other = ends[side], ends[1 - side]
    for number in range(10):
        old.send(number)
        other.send(number)
        rig.reactor.settle()
    other.send(90)  # in the ring when the old end dies: lost, and never given to the new one
    (old.channel._stop if quietly else old.channel.close)()
    new = End(rig, side, seed=9)
    new.channel.attach()
    rig.reactor.settle()
    assert new.channel.connected
    assert other.channel.connected
    assert other.connects == 2
    new.send(100)
    other.send(101)
    rig.reactor.settle()
    assert numbers(new) == [101]
    assert numbers(other) == [*range(10), 100]
    assert not new.faults
    assert not other.faults
    assert other.channel.tx_gone == other.channel.tx_put == 12


def test_close_is_seen_by_the_peer_and_may_be_repeated() -> None:
    rig, card, cnm = pair()
    card.channel.close()
    card.channel.close()
    rig.reactor.settle()
    assert not cnm.channel.connected
    assert not card.send(1)
    assert 100 not in rig.reactor.watches
    card.channel.attach()
    rig.reactor.settle()
    assert cnm.channel.connected


CORRUPT = {
    "rx_desc_crc": 0x100 + 28,
    "rx_data_crc": DATA_AT,
}


@pytest.mark.parametrize("counter", CORRUPT)
def test_a_corrupt_entry_is_dropped_and_counted_and_the_next_arrives(counter: str) -> None:
    rig, card, cnm = pair()
    card.send(0)
    card.send(1)
    card.half[CORRUPT[counter]] ^= 0x10
    rig.reactor.settle()
    assert numbers(cnm) == [1]
    assert cnm.channel.counters[counter] == 1
    assert not cnm.faults
    assert card.channel.tx_gone == 2


def test_an_entry_of_another_slot_is_stale() -> None:
    rig, card, cnm = pair()
    card.send(0)
    rig.reactor.settle()
    card.send(1)
    card.half[0x120:0x140] = card.half[0x100:0x120]  # entry 1 looks like entry 0 did
    rig.reactor.settle()
    assert numbers(cnm) == [0]
    assert cnm.channel.counters["rx_desc_seq"] == 1


@pytest.mark.parametrize("jump", [RING + 1, 2**31, 2**32 - 1])
def test_a_head_that_jumps_is_a_fault_and_a_good_peer_comes_back(jump: int) -> None:
    rig, card, cnm = pair()
    card.send(0)
    rig.reactor.settle()
    poke(card.half, OFF_HEAD, (1 + jump) % 2**32)
    rig.bells[0].ring()
    rig.reactor.settle()
    assert len(cnm.faults) == 1
    assert cnm.channel.counters["fault_head"] == 1
    assert not cnm.channel.connected
    rig.reactor.advance(2 * POLL_IDLE_NS)
    assert cnm.channel.connected
    assert card.channel.connected
    card.send(5)
    rig.reactor.settle()
    assert numbers(cnm) == [0, 5]


def test_a_tail_that_jumps_is_a_fault_of_the_peer() -> None:
    rig, card, cnm = pair()
    card.send(0)
    poke(cnm.half, OFF_TAIL, 7)
    card.channel._poll()
    assert card.channel.counters["fault_tail"] == 1
    rig.reactor.advance(2 * POLL_IDLE_NS)
    assert card.channel.connected


@pytest.mark.parametrize(
    ("offset", "value", "code"),
    [
        (0x00, 0, "bad_magic"),
        (0x04, 0x0100_0002, "bad_version"),
        (0x08, 3, "bad_geometry"),
        (0x08, 8192, "bad_geometry"),
        (0x0C, 1 << 30, "bad_geometry"),
        (0x10, 0, "bad_geometry"),
        (0x10, 1 << 16, "bad_geometry"),
    ],
)
def test_a_wrong_geometry_is_reported_and_never_used(offset: int, value: int, code: str) -> None:
    rig = WindowRig()
    card, cnm = End(rig, 0), End(rig, 1)
    card.channel.attach()
    rig.bells[0].deaf = rig.bells[1].deaf = True
    poke(card.half, offset, value)
    cnm.channel.attach()
    rig.reactor.settle()
    assert cnm.channel.counters[f"fault_{code}"] == 1
    assert len(cnm.faults) == 1
    assert not cnm.channel.connected


def test_faults_in_a_row_back_off() -> None:
    rig = WindowRig()
    cnm = End(rig, 1)
    rig.halves[0][0:20] = b"\x77" * 20  # a peer that is no APF window at all
    poke(rig.halves[0], OFF_SESSION, 5)
    cnm.channel.attach()
    rig.reactor.advance(10 * FAULT_BACKOFF_MAX_NS)
    assert 5 <= len(cnm.faults) <= 25


def test_a_device_that_reads_all_ones_is_gone_and_not_at_fault() -> None:
    rig, card, cnm = pair()
    cnm.window.all_ones = True
    rig.reactor.advance(2 * POLL_QUIET_NS)
    assert not cnm.channel.connected
    assert not cnm.faults
    cnm.window.all_ones = False
    rig.reactor.advance(2 * POLL_IDLE_NS)
    assert cnm.channel.connected
    assert card.channel.connected


def test_a_window_from_which_chunks_are_awaited_is_looked_at_more_often() -> None:
    rig, _, cnm = pair()
    cnm.channel.expect(True)
    cnm.window.all_ones = True
    rig.reactor.advance(2 * POLL_IDLE_NS)
    assert not cnm.channel.connected


def test_lost_rings_cost_time_and_no_data() -> None:
    rig, card, cnm = pair()
    cnm.channel.expect(True)
    rig.bells[0].deaf = rig.bells[1].deaf = True
    for number in range(3 * RING):
        rig.reactor.run_until(lambda number=number: card.send(number))  # type: ignore[misc]
    rig.reactor.advance(2 * POLL_IDLE_NS)
    assert numbers(cnm) == list(range(3 * RING))
    assert card.channel.tx_gone == 3 * RING


def test_a_handshake_without_any_bell_ends_too() -> None:
    rig = WindowRig()
    ends = End(rig, 0), End(rig, 1)
    rig.bells[0].deaf = rig.bells[1].deaf = True
    for end in ends:
        end.channel.attach()
    rig.reactor.advance(4 * POLL_IDLE_NS)
    assert all(end.channel.connected for end in ends)


@pytest.mark.parametrize("offset", [OFF_SESSION, OFF_ECHO, OFF_HEAD, OFF_TAIL, 0x00, 0x08])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_header_word_that_turns_over_heals(offset: int, when: str) -> None:
    rig = WindowRig()
    card, cnm = End(rig, 0), End(rig, 1)
    card.channel.attach()
    if when == "before":
        card.half[offset] ^= 0x40
    cnm.channel.attach()
    rig.reactor.settle()
    if when == "after":
        card.half[offset] ^= 0x40
    rig.reactor.advance(8 * POLL_IDLE_NS)
    assert card.channel.connected
    assert cnm.channel.connected
    card.send(1)
    cnm.send(2)
    rig.reactor.settle()
    assert numbers(cnm) == [1]
    assert numbers(card) == [2]


def test_timers_are_slow_when_nothing_is_outstanding() -> None:
    rig, card, _ = pair()
    looks: list[int] = []
    rig.reactor.advance(POLL_IDLE_NS)
    card.window.hook = lambda: looks.append(rig.reactor.now_ns())
    rig.reactor.advance(10 * POLL_IDLE_NS)
    assert len(set(looks)) <= 21  # ours, and the peer's ring
    rig.bells[0].deaf = True
    looks.clear()
    card.send(0)
    rig.reactor.advance(POLL_BUSY_NS + 1)
    assert len(set(looks)) == 2


def test_a_bell_whose_far_end_died_is_left_alone_until_it_is_back() -> None:
    rig, card, _ = pair()
    rig.bells[0].gone = True
    rig.reactor.ready[100] = Event.READ | Event.HANGUP
    rig.reactor.settle()  # would never settle while it is watched
    assert 100 not in rig.reactor.watches
    assert not card.faults
    rig.bells[0].gone = False
    rig.reactor.ready.clear()
    rig.reactor.advance(2 * POLL_IDLE_NS)
    assert 100 in rig.reactor.watches


def test_a_window_that_fails_ends_the_channel_with_a_report() -> None:
    rig, card, _ = pair()
    card.window.dead = Unavailable("the link is down")
    assert not card.send(1)
    assert card.faults == ["window: the link is down"]
    assert not card.channel.connected
    rig.reactor.advance(4 * POLL_IDLE_NS)
    assert len(card.faults) == 1
    card.window.dead = None
    card.channel.attach()
    rig.reactor.settle()
    assert card.channel.connected


def test_a_handler_may_close_the_channel() -> None:
    rig, card, cnm = pair()
    cnm.channel.on_chunk = lambda *chunk: cnm.channel.close()
    card.send(0)
    card.send(1)
    rig.reactor.settle()
    assert not cnm.channel.connected
    assert cnm.channel.counters["rx_chunks"] == 1


def test_indexes_go_on_over_the_end_of_32_bits() -> None:
    rig, card, cnm = pair()
    start = 2**32 - 3
    for end, peer in ((card, cnm), (cnm, card)):
        end.channel._tx._head = end.channel._tx._tail = start
        peer.channel._rx._head = peer.channel._rx._tail = start
        poke(end.half, OFF_HEAD, start)
        poke(peer.half, OFF_TAIL, start)
    for number in range(10):
        assert card.send(number)
        rig.reactor.settle()
    assert numbers(cnm) == list(range(10))
    assert word(card.half, OFF_HEAD) == 7


class Interleaving:
    """Two ends, and what they got over all their lives."""

    def __init__(self, seed: int) -> None:
        self.rig = WindowRig()
        self.seed = seed
        self.sent = 0
        self.received: list[list[int]] = [[], []]
        self.ends = [End(self.rig, 0, seed), End(self.rig, 1, seed)]
        for end in self.ends:
            end.channel.attach()
        self.rig.reactor.settle()
        self.left: list[tuple[int, str]] = []
        self.inside = False
        for end in self.ends:
            self.hook(end)

    def hook(self, end: End) -> None:
        end.window.hook = lambda: self.preempt(end.side)

    def preempt(self, side: int) -> None:
        """The other end does something between two accesses of this one."""
        if self.inside or not self.left:
            return
        gap, what = self.left[0]
        if gap:
            self.left[0] = gap - 1, what
            return
        del self.left[0]
        self.inside = True
        self.do(what, 1 - side)
        self.inside = False

    def do(self, what: str, side: int) -> None:
        if what == "send":
            number, self.sent = self.sent, self.sent + 1
            self.ends[side].send(number, b"%d" % number)
        elif what == "poll":
            self.ends[side].channel._poll()
        else:
            old = self.ends[side]
            old.channel._stop()
            assert not old.faults
            self.received[side] += numbers(old)
            self.seed += 1
            self.ends[side] = End(self.rig, side, self.seed)
            self.hook(self.ends[side])
            self.ends[side].channel.attach()


ACTS = st.sampled_from(["send", "poll", "attach"])


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.tuples(ACTS, st.integers(0, 1)), max_size=40),
    st.lists(st.tuples(st.integers(0, 9), ACTS), max_size=40),
    st.integers(0, 1000),
)
def test_no_interleaving_of_two_ends_delivers_stale_doubled_or_reordered_chunks(
    steps: list[tuple[str, int]], between: list[tuple[int, str]], seed: int
) -> None:
    both = Interleaving(seed)
    both.left = list(between)
    for what, side in steps:
        both.do(what, side)
    both.left.clear()
    both.rig.reactor.advance(4 * POLL_IDLE_NS)
    for side, end in enumerate(both.ends):
        got = both.received[side] + numbers(end)
        assert got == sorted(set(got))
        assert all(data == b"%d" % chunk for _, _, chunk, data in end.chunks)
        assert not end.faults
        assert not [name for name in end.channel.counters if name.startswith("rx_d")]
        assert end.channel.connected
        assert end.channel.tx_gone == end.channel.tx_put
    assert both.ends[0].send(both.sent)
    both.rig.reactor.settle()
    assert numbers(both.ends[1])[-1] == both.sent


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 0x100 + 32 * RING + 8), st.integers(0, 255)), max_size=30),
    st.integers(0, 100),
)
def test_a_peer_may_write_anything_and_harms_nobody(
    writes: list[tuple[int, int]], seed: int
) -> None:
    rig, card, cnm = pair(seed)
    for offset, value in writes:
        card.half[offset] = value
        card.send(1, b"x" * 9)
        rig.bells[0].ring()
        rig.reactor.settle()
    rig.reactor.advance(2 * FAULT_BACKOFF_MAX_NS)
    assert all(chunk == (1, 2, 1, b"x" * 9) for chunk in cnm.chunks)
    assert card.channel.connected
    assert cnm.channel.connected
