"""MCTP packets as entries of a mailbox: bytes from SPEC 17 by hand, and whatever else comes."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.crc import crc32c
from protocol.errors import ProtocolError
from protocol.mctp.mailbox import (
    HALF_MIN_BYTES,
    PACKET_MAX_BYTES,
    check_packet,
    mailbox_geometry,
    packet_of_entry,
)
from protocol.window import KIND_MCTP, Descriptor, parse_descriptor

PACKETS = st.binary(min_size=4, max_size=PACKET_MAX_BYTES - 1).map(lambda rest: b"\x01" + rest)
# DSP0236: Get Endpoint ID, request, from 8 to the null EID, instance 1 (reference "mctp", 3)
GET_EID = bytes.fromhex("01 00 08 c8 00 81 02")


def test_the_geometry_is_the_bytes_of_the_specification():
    wire = bytes.fromhex("41504657 0100 0001 20000000 00010000 00100000")
    geometry = mailbox_geometry(HALF_MIN_BYTES)
    assert geometry.to_bytes() == wire
    with pytest.raises(ValueError, match="exceed"):
        mailbox_geometry(HALF_MIN_BYTES - 64)


def test_an_entry_is_the_bytes_of_the_specification():
    """Entry 3 of session 0x11223344, in slot 3: seq, kind 3, no ids, where, length, two CRCs."""
    geometry = mailbox_geometry(HALF_MIN_BYTES)
    body = bytes.fromhex("47332211 03 00 0000 00000000 00000000 00130000 07000000")
    body += struct.pack("<I", crc32c(GET_EID))
    wire = body + struct.pack("<I", crc32c(body))
    descriptor = Descriptor(
        seq=0x11223347,
        kind=KIND_MCTP,
        transfer_id=0,
        chunk=0,
        data_offset=0x1000 + 3 * 256,
        length=7,
        crc32c=crc32c(GET_EID),
    )
    assert descriptor.to_bytes() == wire
    found = parse_descriptor(wire, geometry=geometry, index=3, session=0x11223344)
    assert packet_of_entry(found.kind, found.transfer_id, found.chunk, GET_EID) == GET_EID


@given(PACKETS)
def test_every_packet_that_may_be_sent_is_taken_as_it_is(packet):
    assert packet_of_entry(KIND_MCTP, 0, 0, check_packet(packet)) == packet


@given(
    st.integers(0, 255),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    st.binary(max_size=300),
)
def test_whatever_comes_is_a_packet_or_is_dropped_with_a_reason(kind, transfer_id, chunk, data):
    try:
        packet = packet_of_entry(kind, transfer_id, chunk, data)
    except ProtocolError as exc:
        error = exc
        assert error.code in {"kind", "reserved", "short", "long", "version"}
        assert error.frame == data
    else:
        assert packet == data
        assert (kind, transfer_id, chunk) == (3, 0, 0)
        assert 5 <= len(data) <= 255
        assert data[0] & 0x0F == 1


@pytest.mark.parametrize(
    ("entry", "code"),
    [
        ((1, 0, 0, GET_EID), "kind"),
        ((3, 1, 0, GET_EID), "reserved"),
        ((3, 0, 1, GET_EID), "reserved"),
        ((3, 0, 0, GET_EID[:4]), "short"),
        ((3, 0, 0, GET_EID + bytes(249)), "long"),
        ((3, 0, 0, b"\x02" + GET_EID[1:]), "version"),
    ],
)
def test_each_reason_is_told_apart(entry, code):
    with pytest.raises(ProtocolError) as refused:
        packet_of_entry(*entry)
    assert refused.value.code == code


def test_the_reserved_half_of_the_version_byte_is_ignored():
    assert packet_of_entry(3, 0, 0, b"\xf1" + GET_EID[1:]) == b"\xf1" + GET_EID[1:]


@pytest.mark.parametrize("length", [0, 4, 256])
def test_a_packet_that_no_mailbox_carries_is_a_slip_of_ours(length):
    with pytest.raises(ValueError, match=f"{length} B"):
        check_packet(b"\x01" * length)
