"""Control messages, asked and answered. Bytes by hand from DSP0236 (reference 6)."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ProtocolError
from protocol.mctp.control import (
    REQUESTS,
    RESPONSES,
    AllocateEidsRequest,
    AllocateEidsResponse,
    CompletionCode,
    ControlBody,
    ControlMessage,
    ControlState,
    GetEidRequest,
    GetEidResponse,
    GetRoutingTableRequest,
    GetRoutingTableResponse,
    GetTypesRequest,
    GetTypesResponse,
    GetUuidRequest,
    GetUuidResponse,
    GetVdmRequest,
    GetVdmResponse,
    GetVersionRequest,
    GetVersionResponse,
    Responder,
    RoutingEntry,
    SetEidRequest,
    SetEidResponse,
    VendorFormat,
    VendorSupport,
    build_request,
    match_response,
    read_response,
    version_text,
)

UUID = bytes(range(16))

# Each body with its bytes; requests after the command, responses after the completion code.
BODIES: list[tuple[ControlBody, str]] = [
    (SetEidRequest(op=1, eid=29), "01 1d"),
    (SetEidResponse(assignment_status=1, allocation_status=2, eid=29, pool=3), "12 1d 03"),
    (GetEidRequest(), ""),
    (GetEidResponse(eid=9, type_byte=0x12, medium=1), "09 12 01"),
    (GetUuidRequest(), ""),
    (GetUuidResponse(uuid=UUID), "00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f"),
    (GetVersionRequest(type_queried=0xFF), "ff"),
    (GetVersionResponse(entries=(b"\xf1\xf3\xf1\x00",)), "01 f1 f3 f1 00"),
    (GetTypesRequest(), ""),
    (GetTypesResponse(types=(0, 0x7E)), "02 00 7e"),
    (GetVdmRequest(selector=1), "01"),
    (GetVdmResponse(next_selector=255, format=0, vendor=0x1234, cmd_set=1), "ff 00 12 34 00 01"),
    (
        GetVdmResponse(next_selector=1, format=1, vendor=0xABCDEF12, cmd_set=0x3456),
        "01 01 ab cd ef 12 34 56",
    ),
    (AllocateEidsRequest(op=0, pool=4, first=9), "00 04 09"),
    (AllocateEidsResponse(status=1, pool=4, first=9), "01 04 09"),
    (GetRoutingTableRequest(handle=0), "00"),
    (
        GetRoutingTableResponse(
            next_handle=255,
            entries=(
                RoutingEntry(
                    eid_range=1, first_eid=9, type_byte=0x25, binding=5, medium=1, address=b"\x1d"
                ),
            ),
        ),
        "ff 01 01 09 25 05 01 01 1d",
    ),
]


def a_responder() -> Responder:
    vendors = (
        VendorSupport(vendor=0x4150, cmd_set=1),
        VendorSupport(vendor=0xABCDEF12, cmd_set=2, format=VendorFormat.IANA),
    )
    return Responder(ControlState(uuid=UUID, types=(0, 0x7E), vendors=vendors))


def ask(responder: Responder, message: str) -> str | None:
    answer = responder.answer(bytes.fromhex(message))
    return None if answer is None else answer.hex(" ")


@pytest.mark.parametrize(("body", "data"), BODIES)
def test_each_body_is_built_and_read_as_derived_by_hand(body: ControlBody, data: str) -> None:
    assert body.to_body() == bytes.fromhex(data)
    assert type(body).from_body(bytes.fromhex(data)) == body


@pytest.mark.parametrize(("body", "data"), BODIES)
def test_each_body_with_a_byte_more_or_less_is_a_bad_length(body: ControlBody, data: str) -> None:
    for wrong in {bytes.fromhex(data) + b"\0", bytes.fromhex(data)[:-1]} - {bytes.fromhex(data)}:
        with pytest.raises(ProtocolError) as info:
            type(body).from_body(wrong)
        assert info.value.code == "bad_length"


def test_reserved_bits_are_ignored() -> None:
    assert SetEidRequest.from_body(b"\x12\x34") == SetEidRequest(op=2, eid=0x34)
    got = SetEidResponse.from_body(b"\xe1\x33\x44")
    assert (got.assignment_status, got.allocation_status) == (2, 1)
    got_eid = GetEidResponse.from_body(b"\xbb\x9c\xcc")
    assert (got_eid.endpoint_type, got_eid.eid_type) == (1, 0)


def test_values_out_of_range_are_a_value_error() -> None:
    with pytest.raises(ValueError, match="SetEidRequest"):
        SetEidRequest(op=4, eid=9).to_body()
    with pytest.raises(ValueError, match="header"):
        build_request(GetEidRequest(), iid=32)
    with pytest.raises(ValueError, match="completion code"):
        ControlMessage(rq=True, iid=0, cmd=2, cc=0).to_bytes()
    with pytest.raises(ValueError, match="16 bytes"):
        ControlState(uuid=b"")


@pytest.mark.parametrize(
    ("message", "code", "offset"),
    [
        ("", "short", 0),
        ("00 80", "short", 2),
        ("80 80 02", "ic_set", 0),
        ("7e 80 02", "bad_type", 0),
        ("00 00 02", "no_cc", 3),
    ],
)
def test_each_bad_header_is_named_with_its_byte(message: str, code: str, offset: int) -> None:
    with pytest.raises(ProtocolError) as info:
        ControlMessage.from_bytes(bytes.fromhex(message))
    assert (info.value.code, info.value.offset) == (code, offset)


@pytest.mark.parametrize(
    ("request_hex", "response_hex"),
    [
        ("00 81 01 00 1d", "00 01 01 00 00 1d 00"),  # Set EID 29: accepted, no pool
        ("00 82 01 01 1d", "00 02 01 00 00 1d 00"),  # forced
        ("00 83 01 00 00", "00 03 01 02"),  # EID 0
        ("00 83 01 00 07", "00 03 01 02"),
        ("00 83 01 00 ff", "00 03 01 02"),
        ("00 84 01 02 00", "00 04 01 02"),  # reset: there is no static EID
        ("00 84 01 03 00", "00 04 01 02"),
        ("00 85 01 00", "00 05 01 03"),  # a byte short
        ("00 9f 02", "00 1f 02 00 00 00 00"),  # Get EID, none set
        ("00 80 02 00", "00 00 02 03"),
        ("00 80 03", "00 00 03 00 00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f"),
        ("00 80 04 ff", "00 00 04 00 01 f1 f3 f1 f0"),
        ("00 80 04 01", "00 00 04 80"),  # PLDM: not supported
        ("00 80 04", "00 00 04 03"),
        ("00 80 05", "00 00 05 00 02 00 7e"),
        ("00 80 06 00", "00 00 06 00 01 00 41 50 00 01"),
        ("00 80 06 01", "00 00 06 00 ff 01 ab cd ef 12 00 02"),
        ("00 80 06 02", "00 00 06 02"),
        ("00 80 07 09", "00 00 07 05"),  # Resolve EID: not for an endpoint
        ("00 80 08 00 04 09", "00 00 08 05"),
        ("00 a0 f0", "00 00 f0 05"),  # reserved bit ignored, unknown command refused
    ],
)
def test_each_request_is_answered_as_derived_by_hand(request_hex: str, response_hex: str) -> None:
    assert ask(a_responder(), request_hex) == response_hex


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("80 80 02", "ic_set"),
        ("7e 41 50 01", "bad_type"),
        ("00 80", "short"),
        ("00 00 02 00", "response"),
        ("00 c0 02", "datagram"),
    ],
)
def test_what_is_no_request_gets_no_answer_and_is_counted(message: str, reason: str) -> None:
    responder = a_responder()
    assert ask(responder, message) is None
    assert responder.drops == Counter({reason: 1})


def test_an_accepted_eid_is_told_kept_and_reported() -> None:
    told: list[int] = []
    responder = Responder(ControlState(uuid=UUID), on_eid=told.append)
    ask(responder, "00 81 01 00 1d")
    ask(responder, "00 81 01 00 03")
    assert told == [29]
    assert ask(responder, "00 80 02") == "00 00 02 00 1d 00 00"
    assert ask(responder, "00 80 06 00") == "00 00 06 02"  # no vendor protocol at all


def test_a_response_is_matched_on_instance_id_command_and_rq() -> None:
    request = build_request(GetEidRequest(), iid=5)
    assert request == bytes.fromhex("00 85 02")
    match = match_response(request, bytes.fromhex("00 05 02 00 09 00 00"))
    assert match is not None
    assert read_response(match) == GetEidResponse(eid=9)
    for other in (
        "00 04 02 00 09 00 00",  # another instance id
        "00 05 05 00 02 00 01",  # another command
        "00 85 02",  # a request
        "80 05 02 00 09 00 00",  # IC
        "7e 05 02 00 09 00 00",
        "00 05 02",  # no completion code
        "",
    ):
        assert match_response(request, bytes.fromhex(other)) is None


def test_an_error_response_may_stop_after_its_completion_code() -> None:
    match = match_response(bytes.fromhex("00 80 05"), bytes.fromhex("00 00 05 05"))
    assert match is not None
    assert match.cc == CompletionCode.UNSUPPORTED
    assert read_response(match) is None


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("00 80 02", "not_response"),
        ("00 00 0b 00", "unknown_command"),
        ("00 00 02 00 09", "bad_length"),
        ("00 00 06 00 ff 02 00 00 00 00", "bad_value"),
    ],
)
def test_a_response_that_can_not_be_read_is_named(message: str, code: str) -> None:
    with pytest.raises(ProtocolError) as info:
        read_response(ControlMessage.from_bytes(bytes.fromhex(message)))
    assert info.value.code == code


def test_version_entries_read_as_people_write_them() -> None:
    assert version_text(bytes.fromhex("f1f3f1f0")) == "1.3.1"
    assert version_text(bytes.fromhex("f1f0ff00")) == "1.0"
    assert version_text(bytes.fromhex("3710f161")) == "37.10.1a"


@given(st.binary(max_size=20) | st.binary(max_size=18).map(lambda tail: b"\0\x80" + tail))
def test_any_bytes_get_an_answer_that_matches_or_none(message: bytes) -> None:
    responder = a_responder()
    answer = responder.answer(message)
    if answer is None:
        assert sum(responder.drops.values()) == 1
        return
    assert match_response(message, answer) is not None


@given(st.sampled_from([*REQUESTS.values(), *RESPONSES.values()]), st.binary(max_size=24))
def test_any_bytes_are_a_body_or_a_protocol_error(kind: type[ControlBody], data: bytes) -> None:
    try:
        body = kind.from_body(data)
    except ProtocolError:
        return
    assert kind.from_body(body.to_body()) == body


@given(
    st.builds(
        ControlMessage,
        rq=st.just(True),
        d=st.booleans(),
        iid=st.integers(0, 31),
        cmd=st.integers(0, 255),
        body=st.binary(max_size=20),
    )
    | st.builds(
        ControlMessage,
        rq=st.just(False),
        iid=st.integers(0, 31),
        cmd=st.integers(0, 255),
        cc=st.integers(0, 255),
        body=st.binary(max_size=20),
    )
)
def test_what_is_built_reads_back(message: ControlMessage) -> None:
    assert ControlMessage.from_bytes(message.to_bytes()) == message
