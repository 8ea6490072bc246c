"""What stands lowest: serial frames, captures, MCTP packets, reassembly, MCTP control."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from protocol.decode import LAYERS, decode, decode_packets
from protocol.errors import ProtocolError
from protocol.mctp.control import (
    REQUESTS,
    RESPONSES,
    ControlMessage,
    ControlState,
    Responder,
    VendorSupport,
)
from protocol.mctp.control_bodies import ControlBody, GetUuidRequest, SetEidRequest
from protocol.mctp.fragment import fragment
from protocol.mctp.packet import (
    PACKET_HEADER_WIRE,
    build_packet,
    is_destination,
    is_source,
    parse_packet,
)
from protocol.mctp.reassembly import Reassembler
from protocol.mctp.serial import MAX_FRAME_BYTES, SerialDeframer, frame_serial
from protocol.mctp.serial_capture import read_capture
from tests.fuzz.reader import Reader
from tests.fuzz.target import Check, Target

MESSAGE = bytes.fromhex("7e41500180 0101 07000000 00") + bytes(range(100))
PACKETS = fragment(MESSAGE, dest_eid=9, src_eid=8, tag=1, to=True)
SPECIAL = b"\x01\x08\x09\xc9" + bytes.fromhex("007d7e5d5e007e7d")
GOOD_PACKETS = PACKETS[0], b"\x01\x00\x08\xc8\x00\x80\x03"
GOOD = tuple(map(frame_serial, GOOD_PACKETS))


def _deframed(parts: Iterable[bytes]) -> tuple[list[bytes], dict[str, int], SerialDeframer]:
    deframer = SerialDeframer()
    packets = [packet for part in parts for packet in deframer.feed(part)]
    return packets, dict(deframer.drops), deframer


def serial(_scratch: Path) -> Check:
    def check(data: bytes) -> bool:
        step, stream = 1 + (data[0] % 16 if data else 0), data[1:]
        packets, drops, deframer = _deframed([stream])
        cut = _deframed([stream[at : at + step] for at in range(0, len(stream), step)])
        assert cut[:2] == (packets, drops), "it matters how the stream is cut"
        assert len(deframer._rest) <= MAX_FRAME_BYTES + 2
        assert sum(drops.values()) + len(packets) <= len(stream)
        after = [packet for frame in (*GOOD, *GOOD) for packet in deframer.feed(frame)]
        # wrong bytes whose FCS happens to be right may take the first of them along
        assert after[-3:] == [GOOD_PACKETS[1], *GOOD_PACKETS]
        return bool(packets)

    return check


def capture(_scratch: Path) -> Check:
    def check(data: bytes) -> bool:
        pieces = read_capture(data)
        assert pieces
        assert all(0 <= piece.start <= piece.end <= len(data) for piece in pieces)
        good = [p.verdict.packet for p in pieces if p.good]
        missing = list(good)
        for packet in SerialDeframer().feed(data):
            missing.remove(packet)  # raises when a link takes what a capture does not show
        layer = (None, *LAYERS)[data[0] % 5 if data else 0]
        json.dumps([decode(data, layer), decode(data[1:], layer)], allow_nan=False)
        json.dumps(decode_packets(data.split(b"|")[:64]), allow_nan=False)
        return bool(good)

    return check


def packet(_scratch: Path) -> Check:
    def check(data: bytes) -> bool:
        try:
            parsed = parse_packet(data)
        except ProtocolError as exc:
            assert exc.frame == data
            return False
        assert build_packet(parsed) == bytes([data[0] & 0x0F]) + data[1:]
        raw = PACKET_HEADER_WIRE.parse(data)
        for name in ("dest_eid", "src_eid", "som", "eom", "seq", "to", "tag"):
            assert getattr(parsed, name) == raw[name]
        assert is_source(parsed.src_eid)
        assert is_destination(parsed.dest_eid)
        return True

    return check


_LIMITS: dict[str, Any] = {
    "max_message_bytes": 600,
    "max_contexts": 4,
    "max_contexts_per_peer": 2,
    "max_bytes_by_type": {0: 80},
}


def reassembly(_scratch: Path) -> Check:
    """A program of packets, built or raw, and of time that goes by."""

    def check(data: bytes) -> bool:
        reader, now_ns, whole = Reader(data), 0, 0
        reassembler = Reassembler(**_LIMITS)
        while reader.left:
            action = reader.byte()
            link = action >> 7
            if action & 3 == 3:
                now_ns += reader.byte() * 50_000_000
                reassembler.expire(now_ns)
                continue
            if action & 3 == 2:
                wire = reader.piece()
            else:  # a header whose parts often fit together
                flags, who = reader.byte(), reader.byte()
                size = (1, 8, 64, 65)[flags >> 4 & 1 | (flags >> 3 & 2)]
                wire = bytes([1, 8 + (who & 1), 8 + (who >> 1 & 3), flags]) + bytes(size)
            message = reassembler.feed(wire, link=link, now_ns=now_ns)
            if message is not None:
                whole += 1
                assert 1 <= len(message.data) <= (80 if message.type == 0 else 600)
            assert reassembler.open_messages <= 4
            contexts = reassembler._contexts
            assert all(len(c.data) <= c.limit_bytes for c in contexts.values())
            assert len(reassembler.drops_by_peer) <= 2 * 257
        good = [reassembler.feed(part, link=0, now_ns=now_ns) for part in PACKETS]
        assert good[-1] is not None
        assert good[-1].data == MESSAGE
        return bool(whole)

    return check


BODIES = [*REQUESTS.values(), *RESPONSES.values()]


def _body(kind: type[ControlBody], data: bytes) -> bool:
    try:
        body = kind.from_body(data)
    except ProtocolError as exc:
        assert exc.code in ("bad_length", "bad_value")
        return False
    wire = body.to_body()
    assert len(wire) == len(data)
    assert kind.from_body(wire) == body  # reserved bits are not kept
    return True


def control(_scratch: Path) -> Check:
    vendors = (VendorSupport(vendor=0x4150, cmd_set=1),)

    def check(data: bytes) -> bool:
        good = any([_body(BODIES[data[0] % len(BODIES)], data[1:])] if data else [])
        try:
            message = ControlMessage.from_bytes(data)
        except ProtocolError:
            message = None
        else:
            assert ControlMessage.from_bytes(message.to_bytes()) == message
            if message.rq and message.cmd in REQUESTS:
                good |= _body(REQUESTS[message.cmd], message.body)
        state = ControlState(uuid=b"u" * 16, vendors=vendors)
        eids: list[int] = []
        responder = Responder(state, on_eid=eids.append)
        answer = responder.answer(data)
        if answer is not None:
            assert message is not None
            said = ControlMessage.from_bytes(answer)
            assert (said.rq, said.iid, said.cmd) == (False, message.iid, message.cmd)
            good |= said.cc == 0
        assert eids == ([state.eid] if state.eid else [])
        assert all(8 <= eid <= 254 for eid in eids)
        assert responder.answer(b"\0\x80\x03") == b"\0\0\x03\0" + b"u" * 16
        return good

    return check


def _stream_seeds() -> Iterable[bytes]:
    yield b"\0" + b"".join(map(frame_serial, PACKETS))
    yield b"\1" + b"noise" + frame_serial(SPECIAL) + frame_serial(b"\x01\x09\x08\xc8\0\x80\x02")[1:]
    yield b"\5" + GOOD[0][:20] + GOOD[1] + b"\x7e\x7e" + GOOD[1][1:]
    for count in range(1, 24):  # all kinds of FCS bytes
        yield bytes([count]) + frame_serial(bytes([1, 9, 8, 0xC8, 0x7E, count]) + bytes(count))


def _control_seeds() -> Iterable[bytes]:
    for kind in REQUESTS:
        yield bytes([0, 0x80, kind, 0, 0])
        yield bytes([0, 0x81, kind, 1])
        yield bytes([0, 0x82, kind])
        yield bytes([0, 0x02, kind, 0, 1, 2, 3, 4])
    yield b"\0\x83" + bytes([SetEidRequest.CMD]) + SetEidRequest(op=0, eid=12).to_body()
    yield bytes([GetUuidRequest.CMD])
    for index in range(len(BODIES)):
        yield bytes([index, 1, 1, 9, 0, 1, 5, 0, 1, 9])


def _program_seeds() -> Iterable[bytes]:
    yield b"".join(b"\2" + bytes([len(part)]) + part for part in PACKETS)
    yield bytes.fromhex("00 88 00 00 18 00 00 28 00 00 68 00 03 ff 80 c8 03")
    yield bytes.fromhex("00 88 01 00 89 02 00 8a 03 00 8b 04 00 8c 05 01 58 01 03 ff 03 ff")


TARGETS = (
    Target(
        name="serial",
        text="serial bytes, cut in two ways, into the deframer; good frames after them",
        make=serial,
        seeds=_stream_seeds,
        words=(b"\x7e\x01", b"\x7d\x5e", b"\x7d\x5d", b"\x7e", GOOD[1]),
        max_bytes=1024,
    ),
    Target(
        name="capture",
        text="a capture into `read_capture` and the decoder of people's captures, every layer",
        make=capture,
        seeds=lambda: [*_stream_seeds(), *_control_seeds(), *PACKETS, MESSAGE, b"|".join(PACKETS)],
        words=(b"\x7e\x01", b"\x7d\x5e", b"|", b"\x7e\x41\x50\x01", GOOD[1]),
        max_bytes=1024,
    ),
    Target(
        name="packet",
        text="one MCTP packet",
        make=packet,
        seeds=lambda: [*PACKETS, *(frame[3:-3] for frame in GOOD)],
        max_bytes=300,
    ),
    Target(
        name="reassembly",
        text="packets of several peers and steps of time into the reassembler; then a good message",
        make=reassembly,
        seeds=_program_seeds,
        max_bytes=2048,
    ),
    Target(
        name="control",
        text="MCTP control messages: header, every body, and the responder",
        make=control,
        seeds=_control_seeds,
        max_bytes=300,
    ),
)
