"""Messages there and back, and everything that is refused."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.apf import (
    BODIES,
    HEADER_WIRE,
    LAYOUT_HASH,
    MAX_MESSAGE_BYTES,
    REPLY_OF,
    ApfMessage,
    Body,
    CancelRequest,
    CapabilitiesReply,
    Grant,
    HaveRequest,
    Heartbeat,
    HelloReply,
    HelloRequest,
    InstanceTelemetry,
    InstanceUsage,
    Kind,
    LogReadRequest,
    OfferReply,
    Refusal,
    RefusalReason,
    StartReply,
    StatusReply,
    Telemetry,
    UnknownBody,
    clip,
    common_version,
    decode,
    decode_header,
    encode,
    encode_notice,
    layout_text,
)
from protocol.errors import ProtocolError
from tests.unit.protocol.apf.strategies import of_body

ROOT = Path(__file__).resolve().parents[4]
HOT: dict[type[Body], Any] = {
    kind: of_body(kind) for kind in (Heartbeat, Grant, Telemetry, InstanceTelemetry)
}
IDS = st.integers(0, 2**32 - 1)
EVERY = sorted(BODIES.items(), key=lambda item: (item[0][1], item[0][0]))


@pytest.mark.parametrize(("key", "kind"), EVERY, ids=[body.__name__ for _, body in EVERY])
@settings(max_examples=10, deadline=None)
@given(data=st.data(), message_id=IDS)
def test_every_body_comes_back_as_it_went(
    key: tuple[Kind, int], kind: type[Body], data: st.DataObject, message_id: int
) -> None:
    body = data.draw(of_body(kind))
    wire = encode(body, kind=key[0], message_id=message_id)
    message = decode(wire)
    assert message.body == body
    assert type(message.body) is kind
    assert (message.kind, message.opcode, message.message_id) == (*key, message_id)
    assert encode(message.body, kind=key[0], message_id=message_id) == wire
    if key[0] is Kind.NOTICE:
        assert encode_notice(body, message_id=message_id) == wire
    else:
        with pytest.raises(ValueError, match="is not sent as NOTICE"):
            encode_notice(body, message_id=message_id)


@given(of_body(Refusal), IDS, st.integers(0, 2**16 - 1))
def test_a_refusal_comes_back_under_the_opcode_that_it_answers(
    body: Body, message_id: int, opcode: int
) -> None:
    wire = encode(body, kind=Kind.REPLY, message_id=message_id, opcode=opcode)
    message = decode(wire)
    assert message.body == body
    assert message.opcode == opcode
    assert message.status != 0


@pytest.mark.parametrize("kind", HOT)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_fast_paths_build_what_the_declaration_builds(
    kind: type[Body], data: st.DataObject
) -> None:
    body = data.draw(HOT[kind])
    fields = {name: getattr(body, name) for name in body.__slots__}
    assert body.to_bytes() == kind.WIRE.build(fields)
    assert decode(encode(body, kind=Kind.NOTICE, message_id=1)).body == kind.from_bytes(
        body.to_bytes()
    )


def outcome(call: Any) -> Any:
    try:
        return call()
    except ProtocolError as exc:
        return exc.code


@pytest.mark.parametrize("kind", HOT)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_fast_paths_take_and_refuse_what_the_declaration_does(
    kind: type[Body], data: st.DataObject
) -> None:
    good = bytearray(data.draw(HOT[kind]).to_bytes())
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)))):
        if at < len(good):
            good[at] = value
    cut = data.draw(st.integers(0, 3))
    raw = bytes(good[: len(good) - cut]) + data.draw(st.binary(max_size=2))
    header = bytes.fromhex("7e 4150 01 c0") + kind.OPCODE.to_bytes(2, "little") + bytes(5)
    assert outcome(lambda: decode(header + raw).body) == outcome(lambda: kind.declared(raw))


@pytest.mark.parametrize(("key", "kind"), EVERY, ids=[body.__name__ for _, body in EVERY])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_what_goes_past_construct_is_what_construct_says(
    key: tuple[Kind, int], kind: type[Body], data: st.DataObject
) -> None:
    body = data.draw(of_body(kind))
    good = body.declared_bytes()
    assert body.to_bytes() == good
    assert kind.from_bytes(good) == kind.declared(good) == kind.from_bytes(bytes(good))
    bad = bytearray(good)
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)))):
        if at < len(bad):
            bad[at] = value
    raw = bytes(bad[: len(bad) - data.draw(st.integers(0, 3))]) + data.draw(st.binary(max_size=2))
    found = outcome(lambda: kind.from_bytes(raw))
    assert found == outcome(lambda: kind.declared(raw))
    if isinstance(found, Body):
        assert [type(getattr(found, name)) for name in found.__slots__] == [
            type(getattr(kind.declared(raw), name)) for name in found.__slots__
        ]


def test_every_body_has_its_way_past_construct() -> None:
    assert [kind.__name__ for _, kind in EVERY if getattr(kind.WIRE, "fields", None) is None] == []


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=80)
    | st.tuples(
        st.sampled_from([0x00, 0x80, 0xC0]),
        st.sampled_from([opcode for _, opcode in BODIES]),
        st.sampled_from([0, 0, 0, 1, 255]),
        st.binary(max_size=300),
    ).map(
        lambda parts: (
            bytes.fromhex("7e 4150 01")
            + bytes([parts[0]])
            + parts[1].to_bytes(2, "little")
            + bytes(4)
            + bytes([parts[2]])
            + parts[3]
        )
    )
)
def test_any_bytes_decode_or_raise_protocol_error(wire: bytes) -> None:
    error: ProtocolError | None = None
    try:
        message = decode(wire)
    except ProtocolError as exc:
        error = exc
    if error is not None:
        assert error.frame == wire
        assert error.offset is None or 0 <= error.offset <= len(wire)
    elif message.status in (0, 1):
        again = encode(message.body, kind=message.kind, message_id=0, opcode=message.opcode)
        assert again == wire[:7] + bytes(4) + wire[11:]


@pytest.mark.parametrize(("key", "kind"), EVERY, ids=[body.__name__ for _, body in EVERY])
@settings(max_examples=5, deadline=None)
@given(data=st.data())
def test_a_byte_less_or_more_is_refused(
    key: tuple[Kind, int], kind: type[Body], data: st.DataObject
) -> None:
    wire = encode(data.draw(of_body(kind)), kind=key[0], message_id=1)
    for bad in [wire[:-1], wire + b"\0"]:
        with pytest.raises(ProtocolError) as caught:
            decode(bad)
        assert caught.value.code == ("short" if len(bad) < 12 else "bad_body")


def patched(wire: bytes, at: int, value: int) -> bytes:
    return wire[:at] + bytes([value]) + wire[at + 1 :]


CANCEL = encode(CancelRequest(transfer_id=1), kind=Kind.REQUEST, message_id=1)


@pytest.mark.parametrize(
    ("wire", "code"),
    [
        (b"", "short"),
        (CANCEL[:11], "short"),
        (CANCEL + bytes(MAX_MESSAGE_BYTES), "too_large"),
        (patched(CANCEL, 0, 0x7F), "bad_type"),
        (patched(CANCEL, 1, 0x42), "bad_vendor"),
        (patched(CANCEL, 3, 0), "version"),
        (patched(CANCEL, 3, 2), "version"),
        (patched(CANCEL, 4, 0x40), "bad_flags"),
        (patched(CANCEL, 4, 0x81), "bad_flags"),
        (patched(CANCEL, 11, 1), "bad_status"),
    ],
)
def test_a_broken_header_is_refused_by_name(wire: bytes, code: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode(wire)
    assert caught.value.code == code


@pytest.mark.parametrize("kind", HOT)
@pytest.mark.parametrize(("at", "value", "code"), [(3, 2, "version"), (1, 0, "bad_vendor")])
@settings(max_examples=3, deadline=None)
@given(data=st.data())
def test_fast_paths_look_at_the_header_too(
    kind: type[Body], at: int, value: int, code: str, data: st.DataObject
) -> None:
    wire = encode(data.draw(HOT[kind]), kind=Kind.NOTICE, message_id=0)
    with pytest.raises(ProtocolError) as caught:
        decode(patched(wire, at, value))
    assert caught.value.code == code


@given(st.sampled_from(Kind), st.integers(0, 255), st.integers(0, 65535), IDS, st.integers(0, 255))
def test_the_header_is_as_declared(
    kind: Kind, version: int, opcode: int, message_id: int, status: int
) -> None:
    wire = HEADER_WIRE.build(
        {
            "vendor_id": 0x4150,
            "version": version,
            "flags": kind,
            "opcode": opcode,
            "message_id": message_id,
            "status": status if kind is Kind.REPLY else 0,
        }
    )
    header = decode_header(wire)
    assert header.kind is kind
    assert (header.version, header.opcode, header.message_id) == (version, opcode, message_id)
    assert header.status == (status if kind is Kind.REPLY else 0)


@pytest.mark.parametrize("version", [0, 2, 255])
def test_a_hello_and_its_refusal_are_understood_in_every_version(version: int) -> None:
    hello = HelloRequest(
        card_uuid=bytes(16),
        epoch=1,
        version_min=version,
        version_current=version,
        layout_hash=bytes(8),
        software="later",
    )
    wire = patched(encode(hello, kind=Kind.REQUEST, message_id=3), 3, version)
    message = decode(wire)
    assert message.version == version
    assert message.body == hello
    refusal = Refusal(reason=RefusalReason.VERSION, text="1..1 here")
    wire = encode(refusal, kind=Kind.REPLY, message_id=3, opcode=HelloRequest.OPCODE)
    assert decode(patched(wire, 3, version)).body == refusal


def test_a_refused_version_still_has_a_header_to_answer() -> None:
    header = decode_header(patched(CANCEL, 3, 9))
    assert (header.version, header.opcode, header.message_id) == (9, 0x0604, 1)


@pytest.mark.parametrize(
    ("theirs", "ours", "common"),
    [((1, 1), (1, 1), 1), ((1, 3), (2, 2), 2), ((3, 4), (1, 2), None), ((1, 1), (2, 5), None)],
)
def test_the_common_version_is_the_newest_in_both_windows(
    theirs: tuple[int, int], ours: tuple[int, int], common: int | None
) -> None:
    assert common_version(*theirs, *ours) == common


def test_an_unknown_opcode_keeps_its_bytes_so_that_it_can_be_refused() -> None:
    wire = encode(UnknownBody(opcode=0x7777, data=b"abc"), kind=Kind.REQUEST, message_id=9)
    message = decode(wire)
    assert message.body == UnknownBody(opcode=0x7777, data=b"abc")
    assert message.opcode == 0x7777
    notice_as_request = patched(encode(of_heartbeat(), kind=Kind.NOTICE, message_id=0), 4, 0x80)
    assert isinstance(decode(notice_as_request).body, UnknownBody)


def of_heartbeat() -> Heartbeat:
    return Heartbeat(
        boot_id=bytes(16),
        seq=1,
        init_state=1,
        bound_epoch=0,
        lease_left_ms=0,
        agent_age_ms=0,
        status_seq=0,
        instances=0,
    )


def test_a_number_that_a_later_version_added_stays_visible() -> None:
    wire = bytearray(encode(StartReply(state=4, status_seq=1), kind=Kind.REPLY, message_id=0))
    wire[12] = 77
    body = decode(bytes(wire)).body
    assert isinstance(body, StartReply)
    assert body.state == 77


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (OfferReply(state=1, missing_chunks=-1, first_missing=0), Kind.REPLY),
        (HaveRequest(digests=(b"short",)), Kind.REQUEST),
        (HaveRequest(digests=(bytes(32),) * 65), Kind.REQUEST),
        (LogReadRequest(instance="", transfer_id=0, offset=0, max_bytes=1), Kind.REQUEST),
        (LogReadRequest(instance="a" * 129, transfer_id=0, offset=0, max_bytes=1), Kind.REQUEST),
        (LogReadRequest(instance="a\nb", transfer_id=0, offset=0, max_bytes=1), Kind.REQUEST),
        (LogReadRequest(instance="a", transfer_id=0, offset=0, max_bytes=2**21), Kind.REQUEST),
        (Grant(card_uuid=bytes(16), epoch=0, boot_id=bytes(16), seq=0, lease_ms=0), Kind.NOTICE),
        (Grant(card_uuid=bytes(9), epoch=0, boot_id=bytes(16), seq=0, lease_ms=1), Kind.NOTICE),
        (Grant(card_uuid=bytes(16), epoch=-1, boot_id=bytes(16), seq=0, lease_ms=1), Kind.NOTICE),
        (Telemetry(boot_id=bytes(16), seq=0, present=128), Kind.NOTICE),
        (Telemetry(boot_id=bytes(9), seq=0, present=0), Kind.NOTICE),
        (Telemetry(boot_id=bytes(16), seq=-1, present=0), Kind.NOTICE),
        (of_heartbeat(), Kind.REQUEST),
        (CancelRequest(transfer_id=1), Kind.REPLY),
        (Refusal(reason=1), Kind.REPLY),
        (UnknownBody(opcode=5, data=bytes(MAX_MESSAGE_BYTES)), Kind.REQUEST),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_we_must_not_send_is_a_value_error_of_ours(body: Body, kind: Kind) -> None:
    with pytest.raises(
        ValueError, match=r"can't be encoded|is not sent as|a Refusal is|above the limit"
    ):
        encode(body, kind=kind, message_id=0)
    if kind is Kind.NOTICE:
        with pytest.raises(ValueError, match=r"can't be encoded"):
            encode_notice(body, message_id=0)


def test_words_for_people_are_cut_between_characters_not_refused() -> None:
    assert clip("ä" * 100, 5) == "ää"
    assert clip("abc", 5) == "abc"
    body = Refusal(reason=1, text="é" * 500)
    message = decode(encode(body, kind=Kind.REPLY, message_id=0, opcode=1))
    assert message.body == Refusal(reason=1, text="é" * 80)


def test_what_utf_8_cannot_say_is_replaced_in_words_for_people() -> None:
    data = encode(
        Refusal(reason=1, text="/srv/\udcff: no such file"),
        kind=Kind.REPLY,
        message_id=0,
        opcode=1,
    )
    assert decode(data).body == Refusal(reason=1, text="/srv/?: no such file")


def largest() -> list[tuple[Kind, Body]]:
    from protocol.apf import Accelerator, InstanceStatus

    status = InstanceStatus(
        instance="i" * 128,
        generation=2**64 - 1,
        state=4,
        cgroup="c" * 160,
        text="t" * 160,
    )
    usage = InstanceUsage(instance="i" * 128, generation=0, present=0)
    return [
        (Kind.REPLY, StatusReply(boot_id=bytes(16), status_seq=0, total=0, entries=(status,) * 16)),
        (Kind.NOTICE, InstanceTelemetry(boot_id=bytes(16), seq=0, entries=(usage,) * 32)),
        (
            Kind.REPLY,
            CapabilitiesReply(
                arch="a" * 32,
                cores_milli=0,
                memory_bytes=0,
                nvme_bytes=0,
                link_mbit=0,
                window_tx_bytes=0,
                window_rx_bytes=0,
                accelerators=(Accelerator(kind="k" * 32, model="m" * 64, count=1, scope=0),) * 16,
                runtimes=("r" * 32,) * 8,
                labels=(("k" * 64, "v" * 64),) * 32,
            ),
        ),
        (Kind.REQUEST, HaveRequest(digests=(bytes(32),) * 64)),
    ]


@pytest.mark.parametrize(("kind", "body"), largest(), ids=lambda value: type(value).__name__)
def test_the_largest_of_each_list_still_fits_a_message(kind: Kind, body: Body) -> None:
    wire = encode(body, kind=kind, message_id=0)
    assert len(wire) <= MAX_MESSAGE_BYTES
    assert decode(wire).body == body


def test_readings_that_could_not_be_taken_are_none_not_zero() -> None:
    body = Telemetry.of(boot_id=bytes(16), seq=1, cpu_milli=0, temp_mdegc=None, power_mw=7)
    assert body.present == 0b1000001
    assert body.reading("cpu_milli") == 0
    assert body.reading("temp_mdegc") is None
    assert body.reading("power_mw") == 7
    usage = InstanceUsage.of(instance="a", generation=1, pids=3, io_bytes=None)
    assert usage.reading("pids") == 3
    assert usage.reading("io_bytes") is None


def test_messages_are_frozen_and_equal_by_value() -> None:
    wire = encode(of_heartbeat(), kind=Kind.NOTICE, message_id=0)
    first, second = decode(wire), decode(wire)
    assert first == second
    assert hash(first.body) == hash(second.body)
    assert type(first) is ApfMessage
    with pytest.raises(AttributeError):
        first.body.seq = 2  # type: ignore[attr-defined]
    with pytest.raises(AttributeError):
        first.opcode = 2  # type: ignore[misc]


def test_the_layout_hash_is_the_same_in_every_process_and_sees_every_field() -> None:
    code = "from protocol.apf import LAYOUT_HASH; print(LAYOUT_HASH.hex())"
    for seed in ("0", "1"):
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        out = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
        )
        assert out.stdout.strip() == LAYOUT_HASH.hex()
    text = layout_text()
    assert "None" not in text
    for body in BODIES.values():
        line = next(line for line in text.splitlines() if f" {body.__name__} " in line)
        for name in body.__slots__:
            assert f"{name}:" in line


def test_every_request_has_its_reply() -> None:
    requests = {body for (kind, _), body in BODIES.items() if kind is Kind.REQUEST}
    assert set(REPLY_OF) == requests
    assert all(request.OPCODE == reply.OPCODE for request, reply in REPLY_OF.items())
    assert REPLY_OF[HelloRequest] is HelloReply
