"""`apf bench codec`: a frame on a control link until it stands in the state table, in CPU time.

The way that is timed is the card's own: Link (SerialDeframer, Reassembler), Endpoint (decode and
dispatch), and the CNM's record. Only the system calls below `ByteStream.read` are left out; `apf
bench loop` has them.
"""

import struct
from collections.abc import Callable, Sequence
from typing import Final

from hal.ports import READ_LIMIT_BYTES, Event
from protocol.apf import Heartbeat
from protocol.apf.fields import HEADER_BYTES as APF_HEADER_BYTES
from protocol.apf.header import HEADER_WIRE
from protocol.crc import fcs16
from protocol.mctp.packet import HEADER_BYTES, PACKET_HEADER_WIRE
from protocol.mctp.serial import SerialDeframer
from tools.bench.figures import FRAME_US, SATURATION_PER_S, THOUSAND_CNMS_PERCENT, Figure
from tools.bench.measure import Bench, cpu_us_per_call
from tools.bench.state_table import (
    ESCAPED_BOOT_ID,
    FRAME_BYTES,
    PLAIN_BOOT_ID,
    FilledStream,
    HandReactor,
    StateTable,
    boot_id_of,
    heartbeat,
    notice_bytes,
    telemetry,
)

CNMS: Final = 1000
MESSAGES_PER_S: Final = 10  # a CNM
_CONSTRUCT: Final = "construct, interpreted"
# Flag, revision, count; MCTP header; APF header; heartbeat; FCS, flag. DSP0253, SPEC 2 and 7.
_WHOLE: Final = struct.Struct("<3B 4s B2sBBHIB 16sIBQIIIH 2sB")


def run(bench: Bench) -> list[Figure]:
    """All rows."""
    repeats = bench.pick(15, 3)
    frames = bench.pick(4000, 300)
    frame = notice_bytes(heartbeat(ESCAPED_BOOT_ID))
    plain = notice_bytes(heartbeat(PLAIN_BOOT_ID))
    assert len(frame) == FRAME_BYTES
    bare = plain.replace(b"\x7d\x5e", b"\x7e")
    assert len(bare) == _WHOLE.size
    two = notice_bytes(telemetry(PLAIN_BOOT_ID))
    construct_us = cpu_us_per_call(_by_construct(frame, bench.pick(400, 50)), repeats)
    frame_us = cpu_us_per_call(_by_link(frame, ESCAPED_BOOT_ID, frames), repeats)
    plain_us = cpu_us_per_call(_by_link(plain, PLAIN_BOOT_ID, frames), repeats)
    struct_us = cpu_us_per_call(_by_struct(bare, frames), repeats)
    telemetry_us = cpu_us_per_call(_by_link(two, PLAIN_BOOT_ID, frames), repeats)
    grant_us = cpu_us_per_call(_by_link(plain, PLAIN_BOOT_ID, frames, grants=True), repeats)
    full_us = cpu_us_per_call(_saturated(frame, ESCAPED_BOOT_ID, frames), repeats)
    thousand_us = cpu_us_per_call(_thousand(frames), repeats)
    per_s = CNMS * MESSAGES_PER_S
    return [
        Figure(
            name="codec.frame_70B",
            value=frame_us,
            unit="us",
            baseline=construct_us,
            baseline_name=_CONSTRUCT,
            goal=FRAME_US,
        ),
        Figure(
            name="codec.frame_66B",
            value=plain_us,
            unit="us",
            baseline=struct_us,
            baseline_name="struct only",
            goal=FRAME_US,
        ),
        Figure(
            name="codec.struct_only_65B",
            value=struct_us,
            unit="us",
            baseline=construct_us,
            baseline_name=_CONSTRUCT,
        ),
        Figure(
            name="codec.telemetry_2_packets",
            value=telemetry_us,
            unit="us",
            baseline=plain_us,
            baseline_name="heartbeat of one packet",
        ),
        Figure(
            name="codec.heartbeat_and_grant",
            value=grant_us,
            unit="us",
            baseline=plain_us,
            baseline_name="heartbeat alone",
        ),
        Figure(
            name="codec.saturation",
            value=1e6 / full_us,
            unit="msg/s",
            baseline=1e6 / construct_us,
            baseline_name=_CONSTRUCT,
            goal=SATURATION_PER_S,
        ),
        Figure(
            name="codec.1000_cnms_10_per_s",
            value=thousand_us * per_s / 1e4,
            unit="% of a core",
            baseline=construct_us * per_s / 1e4,
            baseline_name=_CONSTRUCT,
            goal=THOUSAND_CNMS_PERCENT,
        ),
    ]


def _by_link(
    frame: bytes, boot_id: bytes, count: int, *, grants: bool = False
) -> Callable[[], int]:
    """One frame a wake-up, as they come on a line at 10 Hz."""
    reactor, stream = HandReactor(), FilledStream(1)
    table = StateTable(reactor, grants=grants)
    table.add(stream, boot_id)
    wake = reactor.watches[stream.handle]

    def batch() -> int:
        before = table.updates
        for _ in range(count):
            stream.fill(frame)
            wake(Event.READ)
        assert table.updates - before == count
        return count

    return batch


def _saturated(frame: bytes, boot_id: bytes, count: int) -> Callable[[], int]:
    """A line that is never empty: reads of 4 KiB, cut where they happen to be cut."""
    reactor, stream = HandReactor(), FilledStream(1)
    table = StateTable(reactor)
    table.add(stream, boot_id)
    wake = reactor.watches[stream.handle]
    data = frame * count
    reads = [data[at : at + READ_LIMIT_BYTES] for at in range(0, len(data), READ_LIMIT_BYTES)]

    def batch() -> int:
        before = table.updates
        for piece in reads:
            stream.fill(piece)
        while table.updates - before < count:
            wake(Event.READ)
        return count

    return batch


def _thousand(count: int) -> Callable[[], int]:
    """A thousand CNMs in turn: their records and links do not all fit the processor's caches."""
    reactor = HandReactor()
    table = StateTable(reactor)
    ends: list[tuple[FilledStream, bytes]] = []
    for number in range(CNMS):
        boot_id = boot_id_of(number)
        stream = FilledStream(number)
        table.add(stream, boot_id)
        ends.append((stream, notice_bytes(heartbeat(boot_id))))
    rounds = max(1, count // CNMS)

    def batch() -> int:
        before = table.updates
        for _ in range(rounds):
            for stream, frame in ends:
                stream.fill(frame)
                reactor.watches[stream.handle](Event.READ)
        assert table.updates - before == rounds * CNMS
        return rounds * CNMS

    return batch


def _by_construct(frame: bytes, count: int) -> Callable[[], int]:
    """The same deframer, then each layer as its declaration parses it."""
    deframer = SerialDeframer()
    table: dict[bytes, Heartbeat] = {}

    def batch() -> int:
        for _ in range(count):
            for packet in deframer.feed(frame):
                PACKET_HEADER_WIRE.parse(packet[:HEADER_BYTES])
                message = packet[HEADER_BYTES:]
                HEADER_WIRE.parse(message[:APF_HEADER_BYTES])
                beat = Heartbeat.from_bytes(message[APF_HEADER_BYTES:])
                table[beat.boot_id] = beat
        assert len(table) == 1
        return count

    return batch


def _by_struct(frame: bytes, count: int) -> Callable[[], int]:
    """The least that Python can do: the frame is given whole, known to be a heartbeat, and without
    escapes; one `struct` for all layers, a tuple in a dictionary, nothing checked but the FCS."""
    table: dict[bytes, Sequence[object]] = {}

    def batch() -> int:
        for _ in range(count):
            fields = _WHOLE.unpack(frame)
            if int.from_bytes(fields[-2], "big") == fcs16(frame[1:-3]):
                table[fields[11]] = fields
        assert len(table) == 1
        return count

    return batch
