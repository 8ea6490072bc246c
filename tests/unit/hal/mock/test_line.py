"""Baud arithmetic, bounded buffers, and every fault of a line (L1 to L12)."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware.loop import MS, Loop
from hal.errors import LinkDown, Refused
from hal.mock import line_faults as lf
from hal.mock.kernel import BOOT_NS, VirtualKernel
from hal.mock.line import BITS_PER_BYTE, BUFFER_BYTES, MockLine, MockStream
from hal.mock.line_faults import LineFaults, LinePlan

SECOND = 1000 * MS


class Pair:
    """A line with both ends open."""

    def __init__(self, *, seed: int = 1, baud: int = 0, **options: bool) -> None:
        self.kernel = VirtualKernel(seed)
        for name in ("card", "cnm"):
            self.kernel.attach(name, Loop(self.kernel.node(name).clock))
        self.line = MockLine(self.kernel, "line", baud=baud, **options)
        self.a = self.line.open("a", self.kernel.node("card"))
        self.b = self.line.open("b", self.kernel.node("cnm"))
        self.faults = self.line.away_from("a").faults

    def run(self, duration_ns: int = SECOND) -> None:
        self.kernel.run_for(duration_ns)

    def carry(self, *pieces: bytes) -> bytes:
        """Send from a, and all that comes out at b."""
        for piece in pieces:
            assert self.a.write(piece) == len(piece)
        self.run()
        return drain(self.b)


def drain(stream: MockStream) -> bytes:
    out = b""
    while piece := stream.read():
        out += piece
    return out


# --- pacing and bounds ---


@pytest.mark.parametrize(("baud", "length"), [(115_200, 1), (115_200, 70), (921_600, 4096)])
def test_a_byte_takes_ten_bit_times(baud: int, length: int) -> None:
    pair = Pair(baud=baud)
    pair.a.write(bytes(length))
    due_ns = length * BITS_PER_BYTE * SECOND // baud
    pair.run(due_ns - 1)
    assert pair.b.read() == b""
    pair.run(1)
    assert len(drain(pair.b)) == length


def test_writes_queue_behind_each_other_on_the_wire() -> None:
    pair = Pair(baud=9600)
    at: list[int] = []
    for _ in range(3):
        pair.a.write(bytes(96))  # 100 ms each
    for _ in range(3):
        assert pair.kernel.run_until(lambda: bool(drain(pair.b)), SECOND)
        at.append((pair.kernel.now_ns - BOOT_NS) // MS)
    assert at == [100, 200, 300]


def test_both_ways_go_at_the_same_time() -> None:
    pair = Pair(baud=9600)
    pair.a.write(bytes(96))
    pair.b.write(bytes(96))
    pair.run(100 * MS)
    assert (len(drain(pair.a)), len(drain(pair.b))) == (96, 96)


def test_the_sender_is_held_back_by_its_buffer() -> None:
    pair = Pair(baud=9600)
    assert pair.a.write(bytes(2 * BUFFER_BYTES)) == BUFFER_BYTES
    assert pair.a.write(b"x") == 0


def test_a_full_receiver_holds_the_line_back_and_nothing_is_lost() -> None:
    pair = Pair()
    sent = 0
    for _ in range(100):
        sent += pair.a.write(bytes(1000))
        pair.run(MS)
    assert sent == 2 * BUFFER_BYTES
    assert pair.line.a_to_b.bytes_lost == 0
    assert len(drain(pair.b)) == sent


def test_a_uart_without_flow_control_overruns() -> None:
    pair = Pair(overrun=True)
    for _ in range(100):
        pair.a.write(bytes(1000))
        pair.run(MS)
    assert len(drain(pair.b)) == BUFFER_BYTES
    assert pair.line.a_to_b.bytes_lost == 100_000 - BUFFER_BYTES
    assert pair.a.write(bytes(1000)) == 1000


def test_what_arrives_where_nobody_listens_is_lost() -> None:
    pair = Pair()
    pair.b.close()
    pair.a.write(b"hello")
    pair.run()
    again = pair.line.open("b", pair.kernel.node("cnm"))
    assert again.read() == b""
    assert pair.line.a_to_b.bytes_lost == 5


def test_an_end_can_be_open_once() -> None:
    pair = Pair()
    with pytest.raises(Refused, match="open already"):
        pair.line.open("a", pair.kernel.node("card"))
    with pytest.raises(Refused, match="sides a and b"):
        pair.line.open("c", pair.kernel.node("card"))
    pair.a.close()
    pair.line.open("a", pair.kernel.node("card"))


def test_the_death_of_a_node_frees_its_end() -> None:
    pair = Pair()
    pair.kernel.kill("card")
    pair.line.open("a", pair.kernel.node("card"))


# --- one-shot faults ---


@pytest.mark.parametrize(
    ("fault", "arrives"),
    [
        (lf.drop(), b""),
        (lf.drop_bytes(1, 2), b"0345"),
        (lf.truncate(2), b"01"),
        (lf.duplicate(), b"012345012345"),
        (lf.flip(2, 0x80), b"01\xb2345"),
        (lf.flip(-1), b"012344"),
        (lf.burst(4, b"XYZ"), b"0123XY"),
        (lf.garbage(b"!!"), b"!!012345"),
        (lf.garbage(b"!!", after=True), b"012345!!"),
        (lf.split(3, MS), b"012345"),
        (lf.replace(b""), b""),
        (lf.replace(b"forged"), b"forged"),
    ],
)
def test_a_one_shot_fault_does_what_it_says_and_only_once(fault: lf.Fault, arrives: bytes) -> None:
    pair = Pair()
    pair.faults.next(fault)
    assert pair.carry(b"012345") == arrives
    assert pair.carry(b"012345") == b"012345"
    assert pair.kernel.trace.entries(what="fault")


def test_a_fault_hits_one_direction_only() -> None:
    pair = Pair()
    pair.faults.next(lf.drop())
    pair.b.write(b"back")
    pair.run()
    assert drain(pair.a) == b"back"
    assert pair.carry(b"x") == b""


def test_a_delay_holds_back_all_that_follows() -> None:
    pair = Pair()
    pair.faults.next(lf.delay(50 * MS))
    pair.a.write(b"one")
    pair.a.write(b"two")
    pair.run(50 * MS - 1)
    assert pair.b.read() == b""
    pair.run(1)
    assert drain(pair.b) == b"onetwo"


def test_a_split_comes_in_two_reads() -> None:
    pair = Pair()
    pair.faults.next(lf.split(3, 10 * MS))
    pair.a.write(b"012345")
    pair.run(MS)
    assert drain(pair.b) == b"012"
    pair.run(10 * MS)
    assert drain(pair.b) == b"345"


def test_lost_and_doubled_writes_give_the_sender_its_room_back() -> None:
    pair = Pair()
    for fault in (lf.drop(), lf.duplicate(), lf.split(1, MS), lf.truncate(0), lf.garbage(b"zz")):
        pair.faults.next(fault)
        pair.carry(bytes(100))
    assert pair.line.a_to_b.in_flight_bytes == 0
    assert pair.a.write(bytes(BUFFER_BYTES)) == BUFFER_BYTES


def test_waiting_faults_are_bounded() -> None:
    faults = LineFaults()
    for _ in range(lf.ONCE_LIMIT):
        faults.next(lf.drop())
    with pytest.raises(ValueError, match="wait already"):
        faults.next(lf.drop())


# --- drawn faults ---


def test_a_plan_draws_about_its_share_and_counts_it() -> None:
    pair = Pair()
    pair.faults.plan = LinePlan(drop=0.2)
    got = sum(len(pair.carry(b"x")) for _ in range(1000))
    assert 700 < got < 900
    assert pair.faults.counts == {"drop": 1000 - got}


def test_a_reorder_lets_the_next_write_overtake() -> None:
    pair = Pair()
    pair.faults.plan = LinePlan(reorder=1.0)
    assert pair.carry(b"first", b"second") == b"secondfirst"


def test_the_same_seed_draws_the_same_faults() -> None:
    def outcome(seed: int) -> bytes:
        pair = Pair(seed=seed)
        pair.faults.plan = LinePlan(drop=0.1, flip=0.1, garbage=0.1, truncate=0.1, burst=0.1)
        return b"".join(pair.carry(bytes([n])) for n in range(200))

    assert outcome(5) == outcome(5) != outcome(6)


def test_chances_that_add_up_to_more_than_one_are_refused() -> None:
    with pytest.raises(ValueError, match="add up"):
        LinePlan(drop=0.6, flip=0.6)


@given(data=st.binary(max_size=64), seed=st.integers(), kind=st.sampled_from(lf._KINDS))
def test_every_drawn_fault_survives_any_bytes(data: bytes, seed: int, kind: str) -> None:
    faults = LineFaults(plan=LinePlan(**{kind: 1.0}))
    for _ in range(3):
        for delay_ns, piece in faults.apply(data, random.Random(seed)):
            assert delay_ns >= 0
            assert isinstance(piece, bytes)


# --- the line as a whole ---


def test_a_cut_wire_loses_bytes_and_tells_nobody() -> None:
    pair = Pair()
    pair.line.cut()
    assert pair.carry(b"gone") == b""
    assert pair.a.read() == b""
    pair.line.cut(False)
    assert pair.carry(b"back") == b"back"


def test_a_hang_up_ends_both_ends_until_the_line_is_plugged_and_opened_again() -> None:
    pair = Pair(baud=9600)
    pair.a.write(b"in flight")
    pair.line.hang_up()
    for stream in (pair.a, pair.b):
        with pytest.raises(LinkDown):
            stream.read()
        with pytest.raises(LinkDown):
            stream.write(b"x")
        stream.close()
    with pytest.raises(LinkDown, match="unplugged"):
        pair.line.open("a", pair.kernel.node("card"))
    pair.run()
    pair.line.plug()
    a = pair.line.open("a", pair.kernel.node("card"))
    b = pair.line.open("b", pair.kernel.node("cnm"))
    a.write(b"again")
    pair.run()
    assert drain(b) == b"again"


def test_garbage_out_of_nowhere_reaches_one_side() -> None:
    pair = Pair()
    pair.line.inject("b", b"\x7e\x7e\x7d")
    pair.run()
    assert drain(pair.b) == b"\x7e\x7e\x7d"
    assert pair.a.read() == b""


def test_a_closed_socket_end_gives_what_it_had_sent_and_then_hangs_up() -> None:
    pair = Pair(socket=True)
    pair.a.write(b"last words")
    pair.a.close()
    pair.run()
    assert drain_until_down(pair.b) == b"last words"


def drain_until_down(stream: MockStream) -> bytes:
    out = b""
    for _ in range(100):
        try:
            out += stream.read()
        except LinkDown:
            return out
    pytest.fail("no LinkDown came")
