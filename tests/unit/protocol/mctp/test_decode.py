"""The decoder: every layer shown, what is wrong named, nothing ever raised on bytes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import apf
from protocol.decode import LAYERS, all_ok, decode, decode_packets, detect_layer
from protocol.mctp.fragment import fragment
from protocol.mctp.serial import SerialDeframer, frame_serial

GET_EID = bytes.fromhex("01 00 08 c8 00 80 02")
HEARTBEAT = apf.encode(
    apf.Heartbeat(
        boot_id=bytes(range(16)),
        seq=7,
        init_state=apf.InitState.READY,
        bound_epoch=3,
        lease_left_ms=4000,
        agent_age_ms=12,
        status_seq=1,
        instances=2,
    ),
    kind=apf.Kind.NOTICE,
    message_id=5,
)
STATUS = apf.encode(
    apf.StatusReply(
        boot_id=bytes(16),
        status_seq=1,
        total=1,
        next_cursor=apf.STATUS_END,
        entries=(
            apf.InstanceStatus(
                instance="shop/web/0",
                generation=9,
                state=apf.InstanceState.RUNNING,
                pid=77,
                start_ticks=4,
                cgroup="/i-1",
                health=apf.Health.HEALTHY,
                exit_reason=apf.ExitReason.NONE,
                exit_status=0,
                text="",
            ),
        ),
    ),
    kind=apf.Kind.REPLY,
    message_id=6,
)


def packets_of(message: bytes, tag: int = 0) -> list[bytes]:
    return fragment(message, dest_eid=8, src_eid=9, tag=tag, to=True)


def one(data: bytes, layer: str | None = None) -> dict:
    found = decode(data, layer)
    assert isinstance(found, dict)
    return found


def test_a_serial_frame_shows_every_layer_down_to_the_command() -> None:
    found = one(frame_serial(GET_EID))
    assert (found["layer"], found["ok"], found["error"]) == ("serial", True, None)
    assert found["fields"]["dialect"] == "A"
    assert found["fields"]["count"] == 7
    mctp = found["inner"]
    assert mctp["layer"] == "mctp"
    wanted = {"dest_eid": 0, "src_eid": 8, "som": 1, "eom": 1, "seq": 0, "to": 1, "tag": 0}
    assert wanted.items() <= mctp["fields"].items()
    control = mctp["inner"]
    assert control["layer"] == "control"
    assert {"rq": 1, "iid": 0, "cmd": 2, "cmd_name": "get_eid"}.items() <= control["fields"].items()
    assert control["inner"] is None


def test_an_apf_message_shows_its_header_and_each_field_of_its_body() -> None:
    apf_node = one(frame_serial(packets_of(HEARTBEAT)[0]))["inner"]["inner"]
    assert apf_node["layer"] == "apf"
    fields = apf_node["fields"]
    assert (fields["opcode"], fields["opcode_name"]) == (0x0201, "Heartbeat")
    assert (fields["kind_name"], fields["message_id"], fields["vendor"]) == ("notice", 5, 0x4150)
    assert fields["body"] == {
        "boot_id": "000102030405060708090a0b0c0d0e0f",
        "seq": 7,
        "init_state": 1,
        "init_state_name": "ready",
        "bound_epoch": 3,
        "lease_left_ms": 4000,
        "agent_age_ms": 12,
        "status_seq": 1,
        "instances": 2,
    }


def test_a_capture_is_a_list_and_a_message_of_several_packets_is_shown_with_its_last() -> None:
    frames = [frame_serial(packet) for packet in packets_of(STATUS)]
    assert len(frames) == 2
    found = decode(b"".join(frames) + frame_serial(GET_EID))
    assert isinstance(found, list)
    assert [node["fields"]["offset"] for node in found] == [
        0,
        len(frames[0]),
        sum(map(len, frames)),
    ]
    first, last, other = (node["inner"] for node in found)
    assert first["inner"] is None
    assert last["fields"]["message"] == STATUS.hex()
    entry = last["inner"]["fields"]["body"]["entries"][0]
    assert (entry["instance"], entry["state"], entry["state_name"]) == ("shop/web/0", 4, "running")
    assert other["inner"]["layer"] == "control"
    assert all_ok(found)


def test_a_bad_frame_between_good_ones_is_named_with_its_place() -> None:
    good = frame_serial(GET_EID)
    bad = bytearray(good)
    bad[5] ^= 1
    found = decode(good + bytes(bad) + good)
    assert isinstance(found, list)
    assert [node["ok"] for node in found] == [True, False, True]
    assert found[1]["error"]["code"] == "bad_fcs"
    assert found[1]["error"]["offset"] == len(good) + 10
    assert not all_ok(found)


def test_noise_before_and_a_frame_cut_off_at_the_end_are_named() -> None:
    found = decode(b"login: " + frame_serial(GET_EID) + frame_serial(GET_EID)[:-4])
    assert isinstance(found, list)
    assert [node["error"] and node["error"]["code"] for node in found] == [
        "garbage",
        None,
        "truncated",
    ]


def test_a_capture_that_begins_inside_a_message_is_not_bad_for_that() -> None:
    found = decode_packets([packets_of(STATUS)[1], GET_EID])
    assert [node["ok"] for node in found] == [True, True]
    assert found[0]["fields"]["lost_before"] == "no_start"


def test_a_packet_out_of_sequence_in_a_capture_is_bad() -> None:
    first, second = packets_of(STATUS)
    found = decode_packets([first, second[:3] + bytes([second[3] ^ 0x20]) + second[4:]])
    assert found[1]["error"]["code"] == "bad_seq"


@pytest.mark.parametrize(
    ("data", "layer", "code", "offset"),
    [
        ("", "mctp", "short", 0),
        ("", "serial", "truncated", 0),
        ("", "control", "short", 0),
        ("", "apf", "short", None),
        ("01 08 09", "mctp", "short", 3),
        ("02 08 09 c8 00", "mctp", "bad_version", 0),
        ("01 08 09 c8", "mctp", "no_type", 4),
        ("7e 02 07 00 7e", "serial", "bad_revision", 1),
        ("7e 01 09 01 02", "serial", "truncated", 5),
        ("80 80 02", "control", "ic_set", 0),
        ("00 80 02 00", "control", "bad_length", 3),
        ("05 02 00 09", "control", "bad_length", 3),  # without its type byte
        ("00 85 00", "control", "bad_command", 2),
        ("00 1f 02", "control", "no_cc", 3),
        ("7e 12 34 01", "apf", "bad_vendor", 1),
        ("7e 41", "vendor", None, None),
    ],
)
def test_what_is_wrong_is_named_with_its_byte(
    data: str, layer: str, code: str | None, offset: int | None
) -> None:
    if code is None:
        with pytest.raises(ValueError, match="none of serial, mctp"):
            decode(bytes.fromhex(data), layer)
        return
    found = one(bytes.fromhex(data), layer)
    assert not found["ok"]
    assert (found["layer"], found["error"]["code"]) == (layer, code)
    assert found["error"]["offset"] == offset
    assert found["error"]["text"]


def test_an_apf_message_with_an_unknown_opcode_or_a_short_body_is_bad() -> None:
    unknown = HEARTBEAT[:5] + b"\xee\xee" + HEARTBEAT[7:]
    assert one(unknown)["error"]["code"] == "unknown_opcode"
    short = one(HEARTBEAT[:-1])
    assert (short["error"]["code"], short["fields"]["opcode"]) == ("bad_body", 0x0201)


@pytest.mark.parametrize(
    ("data", "layer"),
    [
        (frame_serial(GET_EID), "serial"),
        (b"noise" + frame_serial(GET_EID), "serial"),
        (bytes.fromhex("7e 01 03 10 20"), "serial"),
        (bytes.fromhex("7e 55 66 77 7e"), "serial"),
        (GET_EID, "mctp"),
        (bytes.fromhex("f1 08 09 c8 00"), "mctp"),
        (bytes.fromhex("00 80 02"), "control"),
        (HEARTBEAT, "apf"),
        (bytes.fromhex("7e 14 14 00 01 00"), "vendor"),
        (b"\xff", "mctp"),
    ],
)
def test_the_outermost_layer_is_found(data: bytes, layer: str) -> None:
    assert detect_layer(data) == layer
    assert one(data)["layer"] == layer if layer != "serial" else decode(data)


def test_another_vendor_id_may_be_ours() -> None:
    message = HEARTBEAT[:1] + b"\x12\x34" + HEARTBEAT[3:]
    assert one(message)["layer"] == "vendor"
    found = decode(message, vendor_id=0x1234)
    assert isinstance(found, dict)
    assert (found["layer"], found["ok"]) == ("apf", True)


def test_a_dialect_that_can_not_be_told_from_another_says_so() -> None:
    found = one(bytes.fromhex("7e0104aabbccdd6da17e"), "serial")
    assert found["ok"]
    assert (found["fields"]["dialect"], found["fields"]["dialect_also"]) == ("B", "C")


@given(
    st.binary(max_size=120)
    | st.binary(max_size=80).map(lambda tail: b"\x7e\x01" + tail)
    | st.binary(max_size=80).map(lambda tail: b"\x00\x80" + tail)
    | st.binary(max_size=80).map(lambda tail: b"\x01\x08\x09\xc8\x7e\x41\x50\x01" + tail)
    | st.binary(max_size=80).map(lambda tail: HEARTBEAT[:7] + tail),
    st.sampled_from([None, *LAYERS]),
)
def test_any_bytes_are_explained_as_json_and_never_raise(data: bytes, layer: str | None) -> None:
    found = decode(data, layer)
    json.dumps(found)
    for item in found if isinstance(found, list) else [found]:
        while item is not None:
            assert item.keys() == {"layer", "ok", "error", "fields", "inner"}
            assert item["ok"] is (item["error"] is None)
            item = item["inner"]


@given(
    st.lists(
        st.binary(max_size=20)
        | st.binary(min_size=1, max_size=60).map(frame_serial)
        | st.just(b"\x7e"),
        max_size=6,
    ).map(b"".join)
)
def test_a_capture_shows_every_packet_that_a_link_would_take(data: bytes) -> None:
    found = decode(data, "serial")
    shown = [
        node["fields"]["packet"]
        for node in (found if isinstance(found, list) else [found])
        if node["ok"] and node["fields"]["dialect"] == "A"
    ]
    assert shown == [packet.hex() for packet in SerialDeframer().feed(data)]
