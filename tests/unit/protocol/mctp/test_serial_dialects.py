"""Serial lines of any dialect: what is taken, what moves a line, and what never does."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.crc import fcs16, fcs16_seed0, fcs16_x25
from protocol.mctp.serial import MAX_FRAME_BYTES, SerialDeframer
from protocol.mctp.serial_frame import Dialect, framer, inspect_frame

A, B, C, D = Dialect
GET_EID = bytes.fromhex("01 00 08 c8 00 80 02")
OTHERS = [B, C, D]

wire_bytes = st.lists(
    st.sampled_from([0x7E, 0x7D, 0x5E, 0x5D, 0x01, 0x00, 0x02, 0x05]) | st.integers(0, 255),
    max_size=300,
).map(bytes)
packets = wire_bytes.filter(lambda data: 1 <= len(data) <= 255 and len(data) not in (125, 126))
dialects = st.sampled_from(list(Dialect))
frames = st.tuples(dialects, packets).map(lambda pair: framer(pair[0])(pair[1]))
streams = st.lists(wire_bytes | frames, max_size=6).map(b"".join)


def eager(_dialect: Dialect, _frames: int) -> bool:
    """Two frames are enough: what a CNM's end does."""
    return True


def fed(
    stream: bytes, dialect: Dialect, cuts: Sequence[int] = (), *, adapts: bool = True
) -> tuple[list[bytes], Counter[str], Dialect]:
    deframer = SerialDeframer(dialect=dialect, adopt=eager if adapts else None)
    edges = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    got = [packet for begin, end in pairwise(edges) for packet in deframer.feed(stream[begin:end])]
    return got, deframer.drops, deframer.dialect


def by_hand(packet: bytes, dialect: Dialect) -> bytes:
    """Byte by byte from the table of reference 4.2."""

    def stuffed(data: bytes) -> bytes:
        return b"".join(
            bytes((0x7D, byte ^ 0x20)) if byte in (0x7D, 0x7E) else bytes((byte,)) for byte in data
        )

    head = bytes((1, len(packet)))
    sums = {A: fcs16, B: fcs16_x25, C: fcs16_x25, D: fcs16_seed0}
    tail = sums[dialect](head + packet).to_bytes(2, "big")
    return b"\x7e" + head + stuffed(packet) + (stuffed(tail) if dialect is B else tail) + b"\x7e"


def packets_with(dialect: Dialect, *, special: bool) -> list[bytes]:
    """Packets whose sum in this dialect holds a 7D or a 7E, or holds none."""
    found = []
    for value in range(4000):
        packet = GET_EID + value.to_bytes(2, "big")
        tail = by_hand(packet, C if dialect is B else dialect)[-3:-1]
        if special is bool({0x7D, 0x7E} & set(tail)):
            found.append(packet)
    return found


PLAIN = packets_with(B, special=False)
TELLING = packets_with(B, special=True)  # B and C differ in these

# --- sending ---


@given(dialects, packets)
def test_a_frame_of_each_dialect_is_that_of_the_table_and_comes_back(
    dialect: Dialect, packet: bytes
) -> None:
    wire = framer(dialect)(packet)
    assert wire == by_hand(packet, dialect)
    assert len(wire) <= MAX_FRAME_BYTES
    assert fed(wire, dialect) == ([packet], Counter(), dialect)


@pytest.mark.parametrize("dialect", Dialect)
@pytest.mark.parametrize("count", [0, 125, 126, 256])
def test_lengths_that_must_not_be_sent_are_refused_in_every_dialect(
    dialect: Dialect, count: int
) -> None:
    with pytest.raises(ValueError, match="125 or 126"):
        framer(dialect)(bytes(count))


def test_no_length_makes_two_of_the_three_sums_equal() -> None:
    """The difference of two sums depends on the length alone, not on the bytes."""
    for count in range(256):
        covered = bytes((1, count)) + bytes(count)
        assert len({fcs16(covered), fcs16_x25(covered), fcs16_seed0(covered)}) == 3


@given(packets)
def test_no_frame_fits_two_dialects_but_those_of_b_and_c_that_are_the_same_bytes(
    packet: bytes,
) -> None:
    for dialect in Dialect:
        wire = by_hand(packet, dialect)
        verdict = inspect_frame(wire, 0, 255)
        assert verdict is not None
        assert set(verdict.fits) == {other for other in Dialect if by_hand(packet, other) == wire}


def test_an_unescaped_flag_behind_an_escaped_one_is_no_sum_of_b() -> None:
    packet = next(
        data
        for data in (value.to_bytes(3, "big") for value in range(1 << 24))
        if fcs16_x25(b"\x01\x03" + data) == 0x7E7E
    )
    half = b"\x7e\x01\x03" + packet + b"\x7d\x5e\x7e\x7e"
    assert 0x7D not in packet
    assert 0x7E not in packet
    assert fed(half, B)[0] == []
    assert fed(by_hand(packet, B), B)[0] == [packet]


# --- what moves a line ---


@pytest.mark.parametrize("other", OTHERS)
def test_two_frames_in_a_row_move_the_line_and_the_second_is_taken(other: Dialect) -> None:
    first, second, third = (by_hand(packet, other) for packet in PLAIN[:3])
    name = "dialect_d" if other is D else "dialect_b"  # B and C are the same bytes here
    got, drops, dialect = fed(first + second + third, A)
    assert got == PLAIN[1:3]
    assert drops == {name: 1}
    assert dialect is (B if other is C else other)
    assert fed(first, A) == ([], Counter({name: 1}), A)


@pytest.mark.parametrize("present", Dialect)
@pytest.mark.parametrize("other", Dialect)
def test_a_line_moves_from_each_dialect_to_each_other_and_back(
    present: Dialect, other: Dialect
) -> None:
    many = [*PLAIN[:3], *TELLING[:3]]
    there = b"".join(by_hand(packet, other) for packet in many)
    back = b"".join(by_hand(packet, present) for packet in many)
    got, _drops, dialect = fed(there, present)
    assert dialect is other
    assert set(got) >= {TELLING[2], TELLING[1]}
    assert fed(there + back, present)[2] is present


BETWEEN = {
    "a good frame": by_hand(GET_EID, A),
    "garbage": b"\x00\xff",
    "a damaged frame": by_hand(GET_EID, A)[:5] + b"\x55" + by_hand(GET_EID, A)[6:],
    "a frame cut off": by_hand(GET_EID, A)[:6],
    "an empty frame": by_hand(b"", D),
    "a frame of a third dialect": by_hand(GET_EID, D),
}


@pytest.mark.parametrize("between", BETWEEN)
def test_anything_between_two_frames_of_another_dialect_ends_the_run(between: str) -> None:
    wire = BETWEEN[between]
    stream = b"".join(by_hand(packet, B) + wire for packet in PLAIN[:20])
    got, drops, dialect = fed(stream, A)
    assert dialect is A
    assert drops["dialect_b"] == 20
    assert set(got) <= {GET_EID}


@pytest.mark.parametrize("idle", [b"", b"\x7e", b"\x7e" * 9])
def test_flags_between_two_frames_say_nothing(idle: bytes) -> None:
    stream = idle.join(by_hand(packet, D) for packet in PLAIN[:3])
    assert fed(stream, A)[2] is D
    shared = b"\x7e" + b"".join(by_hand(packet, D)[1:] for packet in PLAIN[:3])
    assert fed(shared, A)[:1] == (PLAIN[1:3],)


def test_without_an_adopter_a_line_stays_what_it_is_whatever_comes() -> None:
    stream = b"".join(by_hand(packet, other) for other in OTHERS for packet in PLAIN[:50])
    got, drops, dialect = fed(stream, A, adapts=False)
    assert (got, dialect) == ([], A)
    assert drops == {"dialect_b": 100, "dialect_d": 50}


def test_an_adopter_is_asked_at_each_frame_of_a_run_but_the_first() -> None:
    asked: list[tuple[Dialect, int]] = []

    def adopt(dialect: Dialect, count: int) -> bool:
        asked.append((dialect, count))
        return count >= 4

    deframer = SerialDeframer(adopt=adopt)
    got = deframer.feed(b"".join(by_hand(packet, D) for packet in PLAIN[:5]))
    assert asked == [(D, 2), (D, 3), (D, 4)]
    assert got == PLAIN[3:5]
    assert deframer.drops == {"dialect_d": 3}


# --- B and C ---


@pytest.mark.parametrize(("present", "other"), [(B, C), (C, B)])
def test_frames_that_are_both_b_and_c_are_taken_and_move_nothing(
    present: Dialect, other: Dialect
) -> None:
    stream = b"".join(by_hand(packet, other) for packet in PLAIN)
    assert fed(stream, present) == (PLAIN, Counter(), present)


@pytest.mark.parametrize(("present", "other"), [(B, C), (C, B)])
def test_two_frames_that_only_the_other_sends_tell_b_from_c_with_any_between(
    present: Dialect, other: Dialect
) -> None:
    name = f"dialect_{other.lower()}"
    one, two = (by_hand(packet, other) for packet in TELLING[:2])
    common = b"".join(by_hand(packet, other) for packet in PLAIN[:60])
    damaged = b"\x7e\x01\x05noise\x7e"
    got, drops, dialect = fed(common + one + common + damaged + common + two, present)
    assert dialect is other
    assert got == [*PLAIN[:60] * 3, TELLING[1]]
    assert drops[name] == 1
    mine = by_hand(TELLING[2], present)
    got, drops, dialect = fed((one + mine) * 20, present)
    assert (got, dialect) == ([TELLING[2]] * 20, present)
    assert drops == {name: 20}


def test_after_a_latch_nothing_of_another_dialect_is_taken() -> None:
    for present in Dialect:
        for other in Dialect:
            for packet in [*PLAIN[:200], *TELLING]:
                wire = by_hand(packet, other)
                taken = wire == by_hand(packet, present)
                assert fed(wire, present, adapts=False)[0] == ([packet] if taken else [])


# --- any bytes ---


@given(streams, dialects, st.lists(st.integers(0, 9999), max_size=12))
def test_any_bytes_give_the_same_in_every_dialect_however_they_are_cut(
    stream: bytes, dialect: Dialect, cuts: list[int]
) -> None:
    assert fed(stream, dialect, cuts) == fed(stream, dialect)
    assert fed(stream, dialect, range(len(stream))) == fed(stream, dialect)


@given(st.lists(streams, max_size=5), dialects)
def test_no_bytes_raise_or_keep_more_than_a_frame_in_any_dialect(
    pieces: list[bytes], dialect: Dialect
) -> None:
    deframer = SerialDeframer(dialect=dialect, adopt=eager)
    for piece in pieces:
        for packet in deframer.feed(piece):
            assert 1 <= len(packet) <= 255
        assert len(deframer._rest) <= MAX_FRAME_BYTES + 2


@pytest.mark.parametrize("dialect", Dialect)
@pytest.mark.parametrize("idle", [b"\x7e", b"\x7d", b"\x00", b"\x01", b"\x7e\x01\xff", b"\x7e\x01"])
def test_an_hour_of_idle_garbage_keeps_the_memory_bounded_and_the_next_frame_is_read(
    dialect: Dialect, idle: bytes
) -> None:
    deframer = SerialDeframer(dialect=dialect, adopt=eager)
    for _ in range(2000):
        assert deframer.feed(idle * 50) == []
        assert len(deframer._rest) <= MAX_FRAME_BYTES + 2
    wire = by_hand(GET_EID, dialect)
    assert deframer.feed(wire + wire)[-1:] == [GET_EID]
    assert deframer.dialect is dialect


@settings(max_examples=300)
@given(dialects, st.lists(packets, min_size=2, max_size=5), st.data())
def test_a_damaged_frame_costs_itself_in_every_dialect(
    dialect: Dialect, sent: list[bytes], data: st.DataObject
) -> None:
    wires = [by_hand(packet, dialect) for packet in sent]
    hurt = data.draw(st.integers(0, len(sent) - 2))
    at = data.draw(st.integers(1, len(wires[hurt]) - 2))
    value = data.draw(st.integers(1, 255))
    wires[hurt] = wires[hurt][:at] + bytes((wires[hurt][at] ^ value,)) + wires[hurt][at + 1 :]
    got, _drops, found = fed(b"".join(wires), dialect)
    left = iter(got)
    assert all(packet in left for packet in sent[:hurt] + sent[hurt + 1 :])
    assert found is dialect
