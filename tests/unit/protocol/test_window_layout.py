"""The window's layout: golden bytes by hand, and everything that is refused."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.crc import crc32c
from protocol.errors import ProtocolError
from protocol.window import (
    DESCRIPTOR_BYTES,
    DESCRIPTOR_WIRE,
    GEOMETRY_BYTES,
    HEADER_WIRE,
    Descriptor,
    Geometry,
    distance,
    geometry_for,
    parse_descriptor,
    parse_geometry,
)

GEOMETRY = Geometry(ring_entries=64, slot_bytes=65536, data_offset=0x1000)
U32 = st.integers(0, 2**32 - 1)


def test_the_header_is_the_bytes_of_the_specification() -> None:
    wire = bytes.fromhex("41504657 0100 0001 40000000 00000100 00100000")
    assert GEOMETRY.to_bytes() == wire
    assert parse_geometry(wire, 0x1000 + 64 * 65536) == GEOMETRY
    assert geometry_for(64, 65536, 0x1000 + 64 * 65536) == GEOMETRY


def test_a_descriptor_is_the_bytes_of_the_specification() -> None:
    # entry 66 of session 0xfffffff0 (seq wraps), slot 2, 5 bytes "hello"
    body = bytes.fromhex("32000000 01 00 0000 0d0c0b0a 07000000 00100200 05000000 4c1e719a")
    wire = body + struct.pack("<I", crc32c(body))
    descriptor = Descriptor(
        seq=0x32,
        kind=1,
        transfer_id=0x0A0B0C0D,
        chunk=7,
        data_offset=0x00021000,
        length=5,
        crc32c=0x9A711E4C,
    )
    assert descriptor.to_bytes() == wire
    parsed = parse_descriptor(wire, geometry=GEOMETRY, index=66, session=0xFFFF_FFF0)
    assert parsed == descriptor


def geometries() -> st.SearchStrategy[Geometry]:
    return st.builds(
        Geometry,
        ring_entries=st.integers(1, 12).map(lambda power: 1 << power),
        slot_bytes=st.integers(1, 64).map(lambda count: count * 64),
        data_offset=st.just(0x21000),
    )


@given(geometries())
def test_geometry_is_as_declared(geometry: Geometry) -> None:
    raw = HEADER_WIRE.parse(geometry.to_bytes())
    assert (raw.ring_entries, raw.slot_bytes) == (geometry.ring_entries, geometry.slot_bytes)
    assert raw.data_offset == geometry.data_offset
    assert HEADER_WIRE.sizeof() == GEOMETRY_BYTES
    assert parse_geometry(geometry.to_bytes(), 1 << 30) == geometry


@given(U32, st.integers(0, 255), U32, U32, st.integers(0, 65536), U32, U32)
def test_descriptors_are_as_declared_and_come_back(
    index: int, kind: int, transfer_id: int, chunk: int, length: int, crc: int, session: int
) -> None:
    descriptor = Descriptor(
        seq=(session + index) % 2**32,
        kind=kind,
        transfer_id=transfer_id,
        chunk=chunk,
        data_offset=GEOMETRY.slot_offset(index),
        length=length,
        crc32c=crc,
    )
    wire = descriptor.to_bytes()
    assert len(wire) == DESCRIPTOR_WIRE.sizeof() == DESCRIPTOR_BYTES
    raw = DESCRIPTOR_WIRE.parse(wire)
    for name in descriptor.__slots__:
        assert raw[name] == getattr(descriptor, name)
    assert raw.desc_crc == crc32c(wire[:28])
    assert parse_descriptor(wire, geometry=GEOMETRY, index=index, session=session) == descriptor


GOOD = Descriptor(
    seq=5, kind=1, transfer_id=2, chunk=3, data_offset=0x1000, length=9, crc32c=4
).to_bytes()


def with_crc(body: bytes) -> bytes:
    return body + struct.pack("<I", crc32c(body))


@pytest.mark.parametrize(
    ("wire", "code"),
    [
        (b"", "short"),
        (GOOD[:31], "short"),
        (GOOD[:20] + b"\xff" + GOOD[21:], "desc_crc"),
        (b"\xff" * 32, "desc_crc"),
        (with_crc(b"\x06" + GOOD[1:28]), "desc_seq"),
        (with_crc(GOOD[:5] + b"\x01" + GOOD[6:28]), "desc_reserved"),
        (with_crc(GOOD[:7] + b"\x01" + GOOD[8:28]), "desc_reserved"),
        (with_crc(GOOD[:16] + b"\x00\x00\x01\x00" + GOOD[20:28]), "desc_bounds"),
        (with_crc(GOOD[:20] + b"\x01\x00\x01\x00" + GOOD[24:28]), "desc_bounds"),
        (with_crc(GOOD[:20] + b"\xff\xff\xff\xff" + GOOD[24:28]), "desc_bounds"),
    ],
)
def test_a_bad_descriptor_is_refused_by_name(wire: bytes, code: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        parse_descriptor(wire, geometry=GEOMETRY, index=0, session=5)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({}, None),
        ({"magic": 0}, "bad_magic"),
        ({"version": 2}, "bad_version"),
        ({"header": 0x80}, "bad_version"),
        ({"ring": 0}, "bad_geometry"),
        ({"ring": 1}, "bad_geometry"),
        ({"ring": 63}, "bad_geometry"),
        ({"ring": 8192}, "bad_geometry"),
        ({"slot": 0}, "bad_geometry"),
        ({"slot": 65}, "bad_geometry"),
        ({"slot": 1 << 21}, "bad_geometry"),
        ({"data": 0x100}, "bad_geometry"),
        ({"data": 0x1001}, "bad_geometry"),
        ({"data": 0x2000}, "bad_geometry"),  # the last slot would end outside
        ({"ring": 128}, "bad_geometry"),
    ],
)
def test_a_geometry_that_does_not_fit_is_refused_by_name(
    change: dict[str, int], code: str | None
) -> None:
    values = {
        "magic": 0x57465041,
        "version": 1,
        "header": 0x100,
        "ring": 64,
        "slot": 1024,
        "data": 0x1000,
        **change,
    }
    wire = struct.pack("<IHHIII", *values.values())
    if code is None:
        parse_geometry(wire, 0x1000 + 64 * 1024)
        return
    with pytest.raises(ProtocolError) as caught:
        parse_geometry(wire, 0x1000 + 64 * 1024)
    assert caught.value.code == code


@given(st.binary(min_size=0, max_size=24), st.integers(0, 1 << 24))
def test_any_bytes_are_a_geometry_inside_the_half_or_refused(wire: bytes, half: int) -> None:
    try:
        geometry = parse_geometry(wire, half)
    except ProtocolError:
        return
    last = geometry.slot_offset(geometry.ring_entries - 1) + geometry.slot_bytes
    assert last <= half
    assert geometry.descriptor_offset(geometry.ring_entries - 1) + 32 <= geometry.data_offset


@given(st.binary(min_size=28, max_size=28), st.integers(0, 63))
def test_no_descriptor_points_outside_its_slot(body: bytes, index: int) -> None:
    session = int.from_bytes(body[:4], "little") - index
    try:
        entry = parse_descriptor(
            with_crc(body[:5] + b"\0\0\0" + body[8:]),
            geometry=GEOMETRY,
            index=index,
            session=session % 2**32,
        )
    except ProtocolError as exc:
        code = exc.code
    else:
        code = ""
        assert entry.data_offset == GEOMETRY.slot_offset(index)
        assert entry.length <= GEOMETRY.slot_bytes
    assert code in ("", "desc_bounds")


def test_a_geometry_of_ours_that_does_not_fit_is_our_own_mistake() -> None:
    with pytest.raises(ValueError, match="exceed"):
        geometry_for(64, 65536, 1 << 20)


@given(U32, st.integers(0, 4096))
def test_distance_goes_over_the_end_of_32_bits(older: int, count: int) -> None:
    assert distance((older + count) % 2**32, older) == count
