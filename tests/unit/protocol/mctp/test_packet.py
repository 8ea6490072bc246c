"""Packet header: declaration and fast path say the same, bad ones are named."""

import construct as cs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ProtocolError
from protocol.mctp.packet import (
    HEADER_BYTES,
    PACKET_HEADER_WIRE,
    Packet,
    build_packet,
    header,
    parse_packet,
)

sources = st.sampled_from([0, 8, 9, 254]) | st.integers(8, 254)
destinations = sources | st.just(255)


@st.composite
def some_packets(draw: st.DrawFn) -> Packet:
    som = draw(st.booleans())
    return Packet(
        dest_eid=draw(destinations),
        src_eid=draw(sources),
        som=som,
        eom=draw(st.booleans()),
        seq=draw(st.integers(0, 3)),
        to=draw(st.booleans()),
        tag=draw(st.integers(0, 7)),
        payload=draw(st.binary(min_size=1 if som else 0, max_size=80)),
    )


def test_a_get_eid_request_reads_as_derived_by_hand() -> None:
    # 01 version; to EID 0 from 8; C8 = SOM, EOM, seq 0, TO, tag 0; 00 control, 80 Rq, 02 Get EID.
    data = bytes.fromhex("01 00 08 c8 00 80 02")
    packet = Packet(
        dest_eid=0,
        src_eid=8,
        som=True,
        eom=True,
        seq=0,
        to=True,
        tag=0,
        payload=bytes.fromhex("00 80 02"),
    )
    assert parse_packet(data) == packet
    assert build_packet(packet) == data


def test_a_last_packet_with_sequence_3_tag_5_reads_as_derived_by_hand() -> None:
    packet = parse_packet(bytes.fromhex("01 ff fe 75 aa"))
    assert (packet.dest_eid, packet.src_eid) == (255, 254)
    assert (packet.som, packet.eom, packet.seq, packet.to, packet.tag) == (0, 1, 3, 0, 5)


@given(some_packets())
def test_what_is_built_reads_back_and_equals_the_declaration(packet: Packet) -> None:
    data = build_packet(packet)
    assert parse_packet(data) == packet
    fields = {name: getattr(packet, name) for name in Packet.__slots__ if name != "payload"}
    assert PACKET_HEADER_WIRE.build(fields) == data[:HEADER_BYTES]


@given(st.binary(max_size=12) | st.binary(max_size=8).map(lambda tail: b"\x01\x08\x09" + tail))
def test_any_bytes_parse_as_declared_or_raise_protocol_error(data: bytes) -> None:
    try:
        parse_packet(data)
    except ProtocolError as exc:
        error = exc
    else:
        error = None
    if error is not None:
        assert error.frame == data
        assert error.code in {"short", "bad_version", "bad_dest", "bad_source", "no_type"}
        return
    packet = parse_packet(data)
    raw = PACKET_HEADER_WIRE.parse(bytes([data[0] & 0x0F]) + data[1:4])
    for name in Packet.__slots__:
        if name != "payload":
            assert getattr(packet, name) == raw[name]
    assert packet.payload == data[4:]


def test_the_high_nibble_of_the_version_is_ignored_and_the_low_one_must_be_1() -> None:
    for value in range(256):
        data = bytes([value, 8, 9, 0x40, 0])
        if value & 0x0F == 1:
            assert parse_packet(data).dest_eid == 8
        else:
            with pytest.raises(ProtocolError, match="version") as info:
                parse_packet(data)
            assert (info.value.code, info.value.offset) == ("bad_version", 0)
    with pytest.raises(cs.ConstError):
        PACKET_HEADER_WIRE.parse(b"\x02\x08\x09\x40")


@pytest.mark.parametrize(
    ("data", "code", "offset"),
    [
        ("", "short", 0),
        ("01 08 09", "short", 3),
        ("01 01 09 c8 00", "bad_dest", 1),
        ("01 07 09 c8 00", "bad_dest", 1),
        ("01 08 ff c8 00", "bad_source", 2),
        ("01 08 03 c8 00", "bad_source", 2),
        ("01 08 09 c8", "no_type", 4),
    ],
)
def test_each_bad_header_is_named_with_its_byte(data: str, code: str, offset: int) -> None:
    with pytest.raises(ProtocolError) as info:
        parse_packet(bytes.fromhex(data))
    assert (info.value.code, info.value.offset) == (code, offset)


@pytest.mark.parametrize(
    "change",
    [
        {"dest_eid": 7},
        {"dest_eid": 256},
        {"src_eid": 255},
        {"src_eid": 1},
        {"seq": 4},
        {"tag": 8},
        {"payload": b""},
    ],
)
def test_a_header_out_of_range_is_a_value_error_of_the_builder(change: dict) -> None:
    good = {"dest_eid": 9, "src_eid": 8, "som": True, "eom": True, "seq": 0, "to": True, "tag": 0}
    with pytest.raises(ValueError):
        build_packet(Packet(**({"payload": b"\0", **good} | change)))


def test_eids_that_are_no_bytes_are_a_value_error() -> None:
    with pytest.raises(ValueError, match="bytes"):
        header(dest_eid=300, src_eid=8, flags=0, seq=0, to=False, tag=0)
