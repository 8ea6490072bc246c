"""Serial framing: any bytes, any split, any damage."""

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from protocol.crc import fcs16, fcs16_seed0, fcs16_x25
from protocol.mctp.serial import MAX_FRAME_BYTES, SerialDeframer, frame_serial
from protocol.mctp.serial_frame import Dialect, Verdict, inspect_frame

GET_EID = bytes.fromhex("01 00 08 c8 00 80 02")

# Bytes that mean something to framing come often, so that escapes and false flags do.
wire_bytes = st.lists(
    st.sampled_from([0x7E, 0x7D, 0x5E, 0x5D, 0x01, 0x00, 0x02, 0x05]) | st.integers(0, 255),
    max_size=300,
).map(bytes)
packets = wire_bytes.filter(lambda data: 1 <= len(data) <= 255 and len(data) not in (125, 126))


def deframe(stream: bytes, cuts: list[int] | None = None) -> tuple[list[bytes], Counter[str]]:
    deframer = SerialDeframer()
    edges = [0, *sorted(cut % (len(stream) + 1) for cut in cuts or []), len(stream)]
    got = [packet for begin, end in pairwise(edges) for packet in deframer.feed(stream[begin:end])]
    return got, deframer.drops


def in_dialect(packet: bytes, dialect: str) -> bytes:
    """Slow and separate from the code under test: written from the table of reference 4.2."""
    head = bytes([1, len(packet)])
    sums = {"A": fcs16, "B": fcs16_x25, "C": fcs16_x25, "D": fcs16_seed0}
    fcs = sums[dialect](head + packet).to_bytes(2, "big")

    def stuffed(data: bytes) -> bytes:
        return b"".join(
            bytes([0x7D, byte ^ 0x20]) if byte in (0x7D, 0x7E) else bytes([byte]) for byte in data
        )

    tail = stuffed(fcs) if dialect == "B" else fcs
    return b"\x7e" + head + stuffed(packet) + tail + b"\x7e"


def test_a_get_eid_request_is_framed_as_derived_by_hand() -> None:
    # flag, revision, count 7, seven bytes without 7D or 7E; FCS-16/MCRF4XX computed bit by bit.
    fcs = 0xFFFF
    for byte in bytes([1, 7]) + GET_EID:
        fcs ^= byte
        for _ in range(8):
            fcs = fcs >> 1 ^ (0x8408 if fcs & 1 else 0)
    wire = b"\x7e\x01\x07" + GET_EID + bytes([fcs >> 8, fcs & 0xFF]) + b"\x7e"
    assert frame_serial(GET_EID) == wire
    assert deframe(wire) == ([GET_EID], Counter())


@pytest.mark.parametrize("count", [0, 125, 126, 256])
def test_lengths_that_must_not_be_sent_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match="125 or 126"):
        frame_serial(bytes(count))


@pytest.mark.parametrize("count", [125, 126])
def test_a_peer_may_still_send_the_ambiguous_lengths_raw(count: int) -> None:
    assert deframe(in_dialect(bytes(count), "A")) == ([bytes(count)], Counter())


@given(packets)
def test_what_is_framed_comes_back_and_the_wire_form_is_that_of_the_specification(
    packet: bytes,
) -> None:
    wire = frame_serial(packet)
    assert wire == in_dialect(packet, "A")
    assert len(wire) <= MAX_FRAME_BYTES
    assert deframe(wire) == ([packet], Counter())


@given(st.lists(packets, min_size=1, max_size=5), st.lists(st.integers(0, 9999), max_size=9))
def test_flags_may_be_shared_or_repeated_and_the_stream_cut_anywhere(
    sent: list[bytes], cuts: list[int]
) -> None:
    shared = b"\x7e" + b"".join(frame_serial(packet)[1:] for packet in sent)
    repeated = b"\x7e\x7e".join(frame_serial(packet) for packet in sent) + b"\x7e\x7e"
    assert deframe(shared, cuts) == (sent, Counter())
    assert deframe(repeated, cuts) == (sent, Counter())


@given(
    st.lists(wire_bytes | packets.map(frame_serial), max_size=4).map(b"".join),
    st.lists(st.integers(0, 9999), max_size=12),
)
def test_any_bytes_give_the_same_packets_and_counts_however_they_are_cut(
    stream: bytes, cuts: list[int]
) -> None:
    assert deframe(stream, cuts) == deframe(stream)
    assert deframe(stream, list(range(len(stream)))) == deframe(stream)


@given(st.lists(wire_bytes, max_size=6))
def test_no_bytes_make_the_buffer_grow_beyond_one_frame(pieces: list[bytes]) -> None:
    deframer = SerialDeframer()
    for piece in pieces:
        deframer.feed(piece)
        assert len(deframer._rest) <= MAX_FRAME_BYTES + 2


damage = st.sampled_from(["flip", "lose", "insert", "cut"])


@settings(max_examples=300)
@given(
    st.lists(packets, min_size=3, max_size=6),
    st.data(),
    damage,
    st.integers(0, 255),
    st.integers(0, 9999),
    st.booleans(),
)
def test_a_damaged_frame_costs_at_most_itself_and_the_next(
    sent: list[bytes], data: st.DataObject, kind: str, value: int, where: int, share: bool
) -> None:
    hurt = data.draw(st.integers(0, len(sent) - 2))
    frames = [
        frame_serial(packet)[1 if share and index else 0 :] for index, packet in enumerate(sent)
    ]
    frame = frames[hurt]
    at = where % len(frame)
    frames[hurt] = {
        "flip": frame[:at] + bytes([frame[at] ^ (value or 1)]) + frame[at + 1 :],
        "lose": frame[:at] + frame[at + 1 :],
        "insert": frame[:at] + bytes([value]) + frame[at:],
        "cut": frame[:at],
    }[kind]
    got, _ = deframe(b"".join(frames))
    must = sent[:hurt] + sent[hurt + (2 if share else 1) :]
    left = iter(got)
    assert all(packet in left for packet in must)  # in order


def test_a_lost_revision_byte_does_not_make_the_line_deaf() -> None:
    # The stored Linux driver never recovers from this (reference 4.3).
    frame = frame_serial(GET_EID)
    got, drops = deframe(frame[:1] + frame[2:] + frame * 3)
    assert got == [GET_EID] * 3
    assert drops == {"bad_revision": 1}


def test_a_count_of_zero_is_an_empty_frame_and_the_next_one_is_read() -> None:
    got, drops = deframe(in_dialect(b"", "A") + frame_serial(GET_EID))
    assert (got, drops) == ([GET_EID], {"empty": 1})


def test_the_length_limit_of_the_link_holds() -> None:
    deframer = SerialDeframer(max_packet_bytes=68)
    assert deframer.feed(frame_serial(bytes(68)) + frame_serial(bytes(69))) == [bytes(68)]
    assert deframer.drops == {"too_long": 1}


def test_garbage_between_frames_is_counted_once_a_run() -> None:
    frame = frame_serial(GET_EID)
    got, drops = deframe(b"login: " + frame + b"noise" + frame + b"\x00\xff" + frame)
    assert got == [GET_EID] * 3
    assert drops == {"garbage": 3}


@pytest.mark.parametrize(
    ("hurt", "reason"),
    [
        (lambda wire: wire[:4] + bytes([wire[4] ^ 1]) + wire[5:], "bad_fcs"),
        (lambda wire: wire[:-1] + b"\x55", "no_end_flag"),
        (lambda wire: wire[:6] + b"\x7e" + wire[7:], "flag_in_body"),
        (lambda wire: wire[:6] + b"\x7d" + wire[7:], "bad_escape"),
        (lambda wire: wire[:1] + b"\x02" + wire[2:], "bad_revision"),
    ],
)
def test_each_kind_of_damage_is_counted_by_its_name(hurt, reason: str) -> None:
    got, drops = deframe(hurt(frame_serial(GET_EID)) + frame_serial(GET_EID))
    assert got == [GET_EID]
    assert drops == {reason: 1}


@pytest.mark.parametrize("dialect", ["B", "C", "D"])
@given(packet=packets)
@example(packet=b"\x00")
def test_frames_of_another_dialect_are_dropped_and_counted_by_its_name(
    dialect: str, packet: bytes
) -> None:
    wire = in_dialect(packet, dialect)
    verdict = inspect_frame(wire, 0, 255)
    assert isinstance(verdict, Verdict)
    if dialect == "C" and wire == in_dialect(packet, "B"):
        dialect = "B"  # the same bytes: nobody can tell
    assert verdict.dialect is Dialect(dialect)
    assert verdict.packet == packet
    assert deframe(wire) == ([], Counter({f"dialect_{dialect.lower()}": 1}))


def test_an_fcs_that_holds_flags_or_escapes_tells_b_from_c() -> None:
    found = {"B": 0, "C": 0}
    for value in range(65536):
        packet = value.to_bytes(2, "big")
        fcs = fcs16_x25(b"\x01\x02" + packet).to_bytes(2, "big")
        if 0x7E not in fcs and 0x7D not in fcs:
            continue
        for name in found:
            verdict = inspect_frame(in_dialect(packet, name) + b"\x7e\x7e", 0, 255)
            assert verdict is not None
            assert verdict.dialect is Dialect(name)
            found[name] += 1
    assert min(found.values()) > 900


@given(st.lists(wire_bytes | packets.map(frame_serial), max_size=4).map(b"".join))
def test_the_fast_path_takes_exactly_what_the_inspection_takes(stream: bytes) -> None:
    want, at = [], stream.find(b"\x7e")
    while at >= 0:
        verdict = inspect_frame(stream, at, 255)
        if verdict is None:
            break
        if verdict.reason is None:
            want.append(verdict.packet)
            at = verdict.end - 1
        else:
            at = stream.find(b"\x7e", at + 1)
    assert deframe(stream)[0] == want


def test_a_raw_escape_byte_is_refused_even_where_length_and_fcs_are_right() -> None:
    covered = b"\x01\x03\x01\x7d\xaa"
    wire = b"\x7e" + covered + fcs16(covered).to_bytes(2, "big") + b"\x7e"
    assert deframe(wire) == ([], Counter({"bad_escape": 1}))
