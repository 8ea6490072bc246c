"""Streams of serial frames, and the damage that is done to them, for `apf bench resync`.

A stream's packets are all different, so that each can be told from every other one. They are
those that framing has most to do with: full of flags and escapes, of every kind of length, with
sums that hold a flag or an escape, and with bytes that look like the head of a frame.
"""

import random
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import Final, NamedTuple

from protocol.crc import FCS16_XOROUT_X25, fcs16, fcs16_seed0
from protocol.mctp.serial_frame import (
    ESCAPE,
    FLAG,
    MAX_PACKET_BYTES,
    REVISION,
    Dialect,
    escape,
)

LATER: Final = 5  # frames behind the damaged one: what is lost at the last of them is lost for good
SEED: Final = 1
PACKET_BYTES: Final = 64 + 4  # DSP0236: the unit that every endpoint takes, and its header
AMBIGUOUS_COUNTS: Final = (0x7D, 0x7E)  # which we don't send, but a peer may
_SMALL: Final = 9
_QUICK_STEP: Final = 9  # of the frames, when only whether it works is asked


class Kind(StrEnum):
    """What happens to one byte of a stream."""

    LOST = "lost_byte"
    FLIPPED = "flipped_bit"
    INSERTED = "inserted_byte"


class Case(NamedTuple):
    """One damage: the bytes that arrive instead, and the packets that were sent."""

    kind: Kind
    stream: bytes
    sent: Sequence[bytes]


def fcs_of(packet: bytes, dialect: Dialect) -> int:
    """Its frame's sum, computed apart from the code that is measured."""
    covered = bytes((REVISION, len(packet))) + packet
    if dialect is Dialect.D:
        return fcs16_seed0(covered)
    return fcs16(covered) ^ (0 if dialect is Dialect.A else FCS16_XOROUT_X25)


def framed(packet: bytes, dialect: Dialect) -> bytes:
    """The frame of a packet of any length, also of those that `frame_serial` refuses to send."""
    tail = fcs_of(packet, dialect).to_bytes(2, "big")
    if dialect is Dialect.B:
        tail = escape(tail)
    flag = bytes((FLAG,))
    return flag + bytes((REVISION, len(packet))) + escape(packet) + tail + flag


def packets(dialect: Dialect, *, limit_bytes: int = MAX_PACKET_BYTES) -> list[bytes]:
    """The packets of a stream, none longer; those of special sums are special in this dialect."""
    rng = random.Random(SEED)  # noqa: S311  the same stream each time
    full = PACKET_BYTES - 1
    bodies = [
        b"\x7e" * full,
        b"\x7d" * full,
        b"\x7d\x5e" * (full // 2),
        b"\x5e\x5d" * (full // 2),
        b"\x7e\x01\x05" * (full // 3),  # after a flag that is made up: the head of a frame
        b"\x01" * full,
        bytes(full),
        rng.randbytes(full),
        b"",
        b"\x7e",
        rng.randbytes(4),
        rng.randbytes(0x5D - 1),
        rng.randbytes(0x5E - 1),
        *(rng.randbytes(count - 1) for count in AMBIGUOUS_COUNTS),
        *(rng.randbytes(rng.randint(1, full)) for _ in range(12)),
    ]
    made = [bytes((number,)) + body for number, body in enumerate(bodies)]
    for high, low in ((FLAG, None), (None, FLAG), (ESCAPE, None), (None, ESCAPE), (FLAG, FLAG)):
        made.append(_with_sum(dialect, high, low, len(made), rng))
    return [packet for packet in made if len(packet) <= limit_bytes]


def damaged(
    dialect: Dialect,
    *,
    shared: bool,
    quick: bool = False,
    limit_bytes: int = MAX_PACKET_BYTES,
) -> Iterator[Case]:
    """Every byte of every frame lost, each of its bits flipped, 7E, 7D and another inserted before
    it. `shared`: a closing flag is the next frame's opening flag."""
    rng = random.Random(SEED)  # noqa: S311  the same stream each time
    sent = packets(dialect, limit_bytes=limit_bytes)
    for index in range(0, len(sent), _QUICK_STEP if quick else 1):
        around = [sent[(index + place) % len(sent)] for place in range(-1, LATER + 1)]
        frames = [framed(packet, dialect) for packet in around]
        if shared:
            frames = [frames[0], *(frame[1:] for frame in frames[1:])]
        begin = len(frames[0])
        stream = b"".join(frames)
        for at in range(begin, begin + len(frames[1])):
            head, byte, tail = stream[:at], stream[at], stream[at + 1 :]
            yield Case(Kind.LOST, head + tail, around)
            for bit in range(8):
                yield Case(Kind.FLIPPED, head + bytes((byte ^ 1 << bit,)) + tail, around)
            for value in (FLAG, ESCAPE, rng.randrange(256)):
                yield Case(Kind.INSERTED, head + bytes((value,)) + stream[at:], around)


def _with_sum(
    dialect: Dialect, high: int | None, low: int | None, number: int, rng: random.Random
) -> bytes:
    """A short packet whose sum has these bytes; one is found after 256 or 65,536 tries."""
    while True:
        packet = bytes((number,)) + rng.randbytes(_SMALL)
        found = fcs_of(packet, dialect)
        if high in (None, found >> 8) and low in (None, found & 0xFF):
            return packet
