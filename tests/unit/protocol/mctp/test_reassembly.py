"""Fragmentation and reassembly: what goes in comes out, everything else is counted."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.mctp.fragment import fragment
from protocol.mctp.packet import parse_packet
from protocol.mctp.reassembly import Message, Reassembler

SECOND_NS = 1_000_000_000


def cut(size: int, **change: object) -> list[bytes]:
    """A type 7E message of `size` bytes from 9 to 8, tag 3, as packets."""
    message = bytes([0x7E]) + bytes(index & 0xFF for index in range(size - 1))
    route = {"dest_eid": 8, "src_eid": 9, "tag": 3, "to": True}
    return fragment(message, **(route | change))


def put(reassembler: Reassembler, packets: list[bytes], now_ns: int = 0) -> list[bytes]:
    got = [reassembler.feed(packet, link="x", now_ns=now_ns) for packet in packets]
    return [message.data for message in got if message is not None]


def test_130_bytes_become_three_packets_as_derived_by_hand() -> None:
    packets = cut(130, first_seq=3)
    assert [len(packet) for packet in packets] == [68, 68, 6]  # 64 + 64 + 2, four of header each
    # SOM seq 3 TO tag 3; seq 0; EOM seq 1
    assert [packet[3] for packet in packets] == [0xBB, 0x0B, 0x5B]
    assert packets[0][:5] == bytes.fromhex("01 08 09 bb 7e")


@pytest.mark.parametrize(("size", "count"), [(1, 1), (64, 1), (65, 2), (128, 2), (129, 3)])
def test_the_type_byte_counts_in_the_64(size: int, count: int) -> None:
    assert len(cut(size)) == count


@given(
    st.binary(min_size=1, max_size=1000),
    st.integers(0, 3),
    st.integers(64, 250),
    st.booleans(),
    st.integers(0, 7),
)
def test_what_is_cut_comes_back_whole(
    message: bytes, first_seq: int, unit_bytes: int, to: bool, tag: int
) -> None:
    packets = fragment(
        message,
        dest_eid=8,
        src_eid=9,
        tag=tag,
        to=to,
        first_seq=first_seq,
        unit_bytes=unit_bytes,
    )
    assert all(len(packet) == unit_bytes + 4 for packet in packets[:-1])
    assert [parse_packet(packet).som for packet in packets] == [True] + [False] * (len(packets) - 1)
    reassembler = Reassembler()
    got = [reassembler.feed(packet, link=1, now_ns=0) for packet in packets]
    assert got[:-1] == [None] * (len(packets) - 1)
    assert got[-1] == Message(
        dest_eid=8,
        src_eid=9,
        to=to,
        tag=tag,
        type=message[0] & 0x7F,
        ic=message[0] >= 0x80,
        data=message,
    )
    assert reassembler.drops == Counter()
    assert reassembler.open_messages == 0


@pytest.mark.parametrize(
    "change",
    [{"dest_eid": 1}, {"src_eid": 255}, {"tag": 8}, {"unit_bytes": 63}, {"dest_eid": 255}],
)
def test_a_message_that_must_not_be_sent_is_a_value_error(change: dict) -> None:
    with pytest.raises(ValueError):
        cut(65, **change)
    with pytest.raises(ValueError, match="65536"):
        fragment(b"", dest_eid=8, src_eid=9, tag=0, to=True)


@given(st.permutations(range(4)), st.data())
def test_messages_that_differ_in_any_part_of_the_key_do_not_mix(
    order: list[int], data: st.DataObject
) -> None:
    streams = [
        [("x", packet) for packet in cut(200)],
        [("y", packet) for packet in cut(201)],
        [("x", packet) for packet in cut(202, to=False)],
        [("x", packet) for packet in cut(203, src_eid=10)],
    ]
    left = [streams[index] for index in order]
    reassembler = Reassembler()
    sizes = []
    while any(left):
        stream = data.draw(st.sampled_from([stream for stream in left if stream]))
        link, packet = stream.pop(0)
        message = reassembler.feed(packet, link=link, now_ns=0)
        if message is not None:
            sizes.append(len(message.data))
    assert sorted(sizes) == [200, 201, 202, 203]
    assert reassembler.drops == Counter()


def test_a_wrong_sequence_number_loses_the_message_at_once() -> None:
    first, middle, last = cut(192)
    reassembler = Reassembler()
    assert put(reassembler, [first, last, middle, last]) == []
    assert reassembler.drops == {"bad_seq": 1, "no_start": 2}
    assert put(reassembler, [first, middle, last]) == [first[4:] + middle[4:] + last[4:]]


def test_a_second_first_packet_starts_anew() -> None:
    reassembler = Reassembler()
    packets = cut(100)
    assert put(reassembler, [packets[0], *packets]) == [packets[0][4:] + packets[1][4:]]
    assert reassembler.drops == {"restarted": 1}


def test_a_single_packet_message_is_delivered_and_the_open_one_lost() -> None:
    reassembler = Reassembler()
    first, last = cut(100)
    assert put(reassembler, [first, cut(10)[0], last]) == [cut(10)[0][4:]]
    assert reassembler.drops == {"superseded": 1, "no_start": 1}


def test_a_middle_packet_of_another_size_and_a_larger_last_one_lose_the_message() -> None:
    first, middle, last = cut(192)
    reassembler = Reassembler()
    assert put(reassembler, [first, middle[:-1], last]) == []
    assert reassembler.drops == {"bad_size": 1, "no_start": 1}
    reassembler = Reassembler()
    assert put(reassembler, [first, middle, last + b"\0"]) == []
    assert reassembler.drops == {"bad_size": 1}


def test_an_open_message_expires_six_seconds_after_its_last_packet() -> None:
    reassembler = Reassembler()
    first, middle, last = cut(192)
    put(reassembler, [first], 0)
    put(reassembler, [middle], 5 * SECOND_NS)
    assert reassembler.expire(11 * SECOND_NS - 1) == 0
    assert reassembler.expire(11 * SECOND_NS) == 1
    assert reassembler.open_messages == 0
    assert put(reassembler, [last], 11 * SECOND_NS) == []
    assert reassembler.drops == {"expired": 1, "no_start": 1}


def test_feeding_expires_too_so_that_lost_tails_never_make_it_deaf() -> None:
    # 17 lost tails made a libmctp build deaf for good (reference, finding 3).
    reassembler = Reassembler()
    for src_eid in range(8, 8 + 40):
        put(reassembler, cut(100, src_eid=src_eid)[:1])
    assert reassembler.open_messages == 16
    assert reassembler.drops == {"evicted": 24}
    assert put(reassembler, cut(100), 7 * SECOND_NS)
    assert reassembler.drops == {"evicted": 24, "expired": 16}


def test_one_peer_can_not_push_out_the_messages_of_another() -> None:
    reassembler = Reassembler()
    others = cut(100, src_eid=20)
    put(reassembler, others[:1])
    for tag in range(8):
        for to in (False, True):
            put(reassembler, cut(100, tag=tag, to=to)[:1])
    assert reassembler.open_messages == 5
    assert reassembler.drops == {"peer_quota": 12}
    assert reassembler.drops_by_peer == {("x", 9): {"peer_quota": 12}}
    assert put(reassembler, others[1:]) == [others[0][4:] + others[1][4:]]


def test_when_all_is_full_the_message_that_was_quiet_longest_goes() -> None:
    reassembler = Reassembler(max_contexts=2)
    one, two, three = (cut(192, src_eid=eid) for eid in (9, 10, 11))
    put(reassembler, [one[0], two[0], one[1], three[0]])
    assert put(reassembler, [two[1], one[2]]) == [b"".join(packet[4:] for packet in one)]
    assert reassembler.drops_by_peer == {("x", 10): {"evicted": 1, "no_start": 1}}


def test_a_message_above_the_limit_is_lost_and_the_limit_itself_is_not() -> None:
    reassembler = Reassembler(max_message_bytes=192)
    assert [len(data) for data in put(reassembler, cut(192))] == [192]
    assert put(reassembler, cut(193)) == []
    assert reassembler.drops == {"too_long": 1}


def test_a_type_may_have_a_smaller_limit() -> None:
    reassembler = Reassembler(max_bytes_by_type={0x7E: 100})
    assert [len(data) for data in put(reassembler, cut(100))] == [100]
    assert put(reassembler, cut(101)) == []
    assert put(reassembler, cut(101, unit_bytes=200)) == []
    assert reassembler.drops == {"too_long": 2}


@pytest.mark.parametrize(
    ("packet", "reason", "src_eid"),
    [
        ("", "short", None),
        ("01 08 09", "short", None),
        ("01 08 09 c8", "short", 9),
        ("02 08 09 c8 00", "bad_version", 9),
        ("01 03 09 c8 00", "bad_dest", 9),
        ("01 08 ff c8 00", "bad_source", 255),
        ("01 08 01 c8 00", "bad_source", 1),
        ("01 0b 09 c8 00", "not_local", 9),
        ("01 ff 09 c8 7e", "broadcast", 9),
        ("01 08 09 08 00", "no_start", 9),
    ],
)
def test_each_drop_is_counted_by_reason_and_by_peer(
    packet: str, reason: str, src_eid: int | None
) -> None:
    reassembler = Reassembler(local_eid=8)
    assert put(reassembler, [bytes.fromhex(packet)]) == []
    assert reassembler.drops == {reason: 1}
    assert reassembler.drops_by_peer == {("x", src_eid): {reason: 1}}


@pytest.mark.parametrize("dest", ["00", "08", "ff"])
def test_null_local_and_broadcast_control_messages_are_taken(dest: str) -> None:
    reassembler = Reassembler(local_eid=8)
    assert put(reassembler, [bytes.fromhex(f"01 {dest} 09 c8 00 80 02")]) == [b"\x00\x80\x02"]


def test_a_link_that_went_away_leaves_nothing_behind() -> None:
    reassembler = Reassembler()
    put(reassembler, [*cut(100)[:1], b""])
    reassembler.forget_link("x")
    assert reassembler.open_messages == 0
    assert reassembler.drops_by_peer == {}


def test_limits_below_one_are_a_value_error() -> None:
    with pytest.raises(ValueError):
        Reassembler(max_contexts=0)


@given(
    st.lists(
        st.builds(
            lambda head, flags, tail: head + bytes([flags]) + tail,
            st.sampled_from([b"\x01\x08\x09", b"\x01\x08\x0a", b"\x01\xff\x09", b"\x02\x08\x09"]),
            st.integers(0, 255),
            st.binary(max_size=6),
        )
        | st.binary(max_size=8),
        max_size=60,
    )
)
def test_any_packets_are_taken_without_raising_and_within_the_bounds(
    packets: list[bytes],
) -> None:
    reassembler = Reassembler(
        max_message_bytes=16, max_contexts=3, max_contexts_per_peer=2, expiry_ns=5
    )
    for index, packet in enumerate(packets):
        message = reassembler.feed(packet, link="x", now_ns=index)
        assert message is None or 1 <= len(message.data) <= 16
        assert reassembler.open_messages <= 3
    assert sum(reassembler.drops.values()) == sum(
        sum(drops.values()) for drops in reassembler.drops_by_peer.values()
    )
