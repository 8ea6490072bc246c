"""What damage on a serial line costs: frames lost for each byte that is lost, flipped or inserted.

    python -m tests.fuzz resync

The goal is the damaged frame and at most the next one, never the link.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from protocol.mctp.fragment import fragment
from protocol.mctp.serial import SerialDeframer, frame_serial

FRAMES: Final = 40
SIZES: Final = (5, 12, 64, 68, 124, 200, 255)
Damage = Callable[[bytearray, int, random.Random], None]


def _lose(stream: bytearray, at: int, _draw: random.Random) -> None:
    del stream[at]


def _flip(stream: bytearray, at: int, draw: random.Random) -> None:
    stream[at] ^= 1 << draw.randrange(8)


def _insert(stream: bytearray, at: int, draw: random.Random) -> None:
    stream.insert(at, draw.choice((0x7E, 0x7D, draw.randrange(256))))


def _burst(stream: bytearray, at: int, draw: random.Random) -> None:
    stream[at : at + 8] = draw.randbytes(8)


DAMAGES: Final[dict[str, Damage]] = {
    "lost": _lose,
    "flipped": _flip,
    "inserted": _insert,
    "burst of 8": _burst,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Over `rounds` streams, each damaged once."""

    damage: str
    rounds: int
    mean_frames: float
    most_frames: int
    ghosts: int  # packets that nobody sent


def measure(rounds: int, seed: int = 0) -> Iterator[Cost]:
    """The cost of each kind of damage."""
    for name, damage in DAMAGES.items():
        draw = random.Random(f"{name} {seed}")
        lost = [_one(damage, draw) for _ in range(rounds)]
        yield Cost(
            damage=name,
            rounds=rounds,
            mean_frames=sum(count for count, _ in lost) / rounds,
            most_frames=max(count for count, _ in lost),
            ghosts=sum(ghosts for _, ghosts in lost),
        )


def _one(damage: Damage, draw: random.Random) -> tuple[int, int]:
    """Frames lost, and packets that came and were never sent."""
    sent = []
    for number in range(FRAMES):
        body = number.to_bytes(2, "big") + draw.randbytes(draw.choice(SIZES) - 5)
        if draw.random() < 0.3:
            body = bytes(byte if draw.random() < 0.5 else 0x7E for byte in body)
        [packet] = fragment(b"\x7e" + body, dest_eid=9, src_eid=8, tag=1, to=True, unit_bytes=255)
        sent.append(packet[:124])
    stream = bytearray(b"".join(map(frame_serial, sent)))
    damage(stream, draw.randrange(len(stream) // 8, len(stream) * 7 // 8), draw)
    got = SerialDeframer().feed(bytes(stream))
    known = set(sent)
    return len(known - set(got)), sum(packet not in known for packet in got)
