"""The CCI header, its MCTP type byte, and how broken ones are told."""

import contextlib
import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.cxl.message import (
    PAYLOAD_MAX_BYTES,
    TYPE_CCI,
    TYPE_FM_API,
    Category,
    CciMessage,
    from_mctp,
    mctp_type,
    to_mctp,
)
from protocol.cxl.switch import TunnelRequest, TunnelResponse
from protocol.decode import all_ok, decode
from protocol.errors import ProtocolError

BIND = bytes.fromhex("07 01 09 00 0152 060080 0100 0000 010203 00ffff")

MESSAGES = st.builds(
    CciMessage,
    category=st.sampled_from(Category),
    tag=st.integers(0, 255),
    opcode=st.integers(0, 0xFFFF),
    payload=st.binary(max_size=64),
    return_code=st.integers(0, 0xFFFF),
    background=st.booleans(),
    vendor_status=st.integers(0, 0xFFFF),
)


def test_an_answer_of_a_background_operation() -> None:  # figure 7-19, by hand
    kind, message = from_mctp(BIND)
    assert kind == TYPE_FM_API
    assert message == CciMessage(
        category=Category.RESPONSE,
        tag=9,
        opcode=0x5201,
        payload=bytes.fromhex("01020300ffff"),
        return_code=1,
        background=True,
    )
    assert to_mctp(message) == BIND


@given(message=MESSAGES)
def test_every_message_comes_back(message: CciMessage) -> None:
    assert CciMessage.from_bytes(message.to_bytes()) == message
    assert from_mctp(to_mctp(message))[1] == message


@given(data=st.binary(max_size=40) | st.binary(max_size=40).map(lambda tail: b"\x08\0" + tail))
def test_any_bytes_are_a_message_or_a_protocol_error_and_can_be_explained(data: bytes) -> None:
    shown = decode(data, "cci")
    assert isinstance(shown, dict)
    assert shown["layer"] == "cci"
    with contextlib.suppress(ProtocolError):
        from_mctp(data)
        assert shown["error"] is None or shown["error"]["code"] in ("short", "bad_value")


@pytest.mark.parametrize(
    ("text", "code", "offset"),
    [
        ("", "bad_type", 0),
        ("06 00 00 00 0100 000000 0000 0000", "bad_type", 0),
        ("08 00 00 00 0100 000000 0000", "short", 11),
        ("08 02 00 00 0100 000000 0000 0000", "bad_category", 1),
        ("08 00 00 00 0100 010000 0000 0000", "bad_length", 6),
        ("08 00 00 00 0100 000000 0000 0000 aa", "bad_length", 6),
    ],
)
def test_a_broken_header_is_told_with_its_place(text: str, code: str, offset: int) -> None:
    data = bytes.fromhex(text)
    with pytest.raises(ProtocolError) as caught:
        from_mctp(data)
    assert (caught.value.code, caught.value.offset) == (code, offset)


def test_an_answer_belongs_to_its_request_by_tag_and_opcode() -> None:
    request = CciMessage(category=Category.REQUEST, tag=3, opcode=0x4200)
    answer = CciMessage(category=Category.RESPONSE, tag=3, opcode=0x4200)
    assert answer.answers(request)
    assert not request.answers(answer)
    assert not dataclasses.replace(answer, tag=4).answers(request)
    assert not dataclasses.replace(answer, opcode=0x4201).answers(request)


def test_each_command_goes_by_the_mctp_type_of_its_set() -> None:
    assert (mctp_type(0x0001), mctp_type(0x4200)) == (TYPE_CCI, TYPE_CCI)
    assert (mctp_type(0x5100), mctp_type(0x5608)) == (TYPE_FM_API, TYPE_FM_API)


def test_what_is_too_long_or_of_no_cci_type_is_not_built() -> None:
    message = CciMessage(category=Category.REQUEST, opcode=1)
    with pytest.raises(ValueError, match="at most"):
        dataclasses.replace(message, payload=bytes(PAYLOAD_MAX_BYTES + 1)).to_bytes()
    with pytest.raises(ValueError, match="0x01"):
        to_mctp(message, 1)


def test_a_tunnel_in_a_tunnel_is_explained_to_its_end() -> None:
    inner = CciMessage(category=Category.REQUEST, tag=1, opcode=0x0001)
    middle = CciMessage(
        category=Category.REQUEST,
        opcode=0x5300,
        payload=TunnelRequest(port_or_ld=0, command=inner.to_bytes()).to_bytes(),
    )
    outer = CciMessage(
        category=Category.REQUEST,
        opcode=0x5300,
        payload=TunnelRequest(port_or_ld=4, command=middle.to_bytes()).to_bytes(),
    )
    shown = decode(to_mctp(outer))
    assert isinstance(shown, dict)
    assert all_ok(shown)
    assert shown["inner"]["inner"]["fields"]["opcode_name"] == "identify"


def test_a_tunnels_answer_holds_the_answer() -> None:  # table 7-38
    inner = CciMessage(category=Category.RESPONSE, tag=4, opcode=1, return_code=5)
    data = TunnelResponse(command=inner.to_bytes()).to_bytes()
    assert data == bytes.fromhex("0c00 0000 01 04 00 0100 000000 0500 0000")
    assert TunnelResponse.from_bytes(data).message == inner


def test_a_broken_payload_is_told_with_its_place_and_one_behind_an_error_is_not() -> None:
    short = decode(bytes.fromhex("08 01 00 00 0042 030000 0000 0000 010203"))
    assert isinstance(short, dict)
    assert (short["error"]["code"], short["error"]["offset"]) == ("short", 16)
    refused = decode(bytes.fromhex("08 01 00 00 0042 030000 0300 0000 010203"))
    assert isinstance(refused, dict)
    assert refused["ok"]
    assert refused["fields"]["return_code_name"] == "unsupported"


def test_a_cci_message_inside_of_mctp_packets_is_explained() -> None:
    packet = bytes.fromhex("01 0a 08 c8") + bytes.fromhex("08 00 01 00 0042 000000 0000 0000")
    shown = decode(packet)
    assert isinstance(shown, dict)
    assert (shown["layer"], shown["inner"]["layer"]) == ("mctp", "cci")
    assert shown["inner"]["fields"]["opcode_name"] == "get_health_info"
