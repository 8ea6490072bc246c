"""Faults of a control link, byte by byte and reproducible: the same seed and the same bytes give
the same damage, however the bytes were cut into reads."""

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from hal.errors import Refused

DELAY_LIMIT_MS: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkFaults:
    """Armed on both directions of a link. All zero: none."""

    drop: float = 0.0  # probability that a byte is lost
    duplicate: float = 0.0  # probability that a byte comes twice
    flip: float = 0.0  # probability that a bit is inverted
    delay_ms: int = 0  # everything comes this much later
    cut: bool = False  # nothing passes
    seed: int = 0

    @property
    def damages(self) -> bool:
        return bool(self.drop or self.duplicate or self.flip)


NO_FAULTS: Final = LinkFaults()


def faults_from(raw: Mapping[str, Any]) -> LinkFaults:
    """Raises Refused. What is not given is off."""
    known = asdict(NO_FAULTS)
    values: dict[str, Any] = {}
    for key, value in raw.items():
        if key not in known:
            raise Refused(f"fault {key!r} is unknown; known: {', '.join(known)}")
        values[key] = _checked(key, value)
    return LinkFaults(**values)


def _checked(key: str, value: object) -> object:
    if key == "cut":
        if isinstance(value, bool):
            return value
        raise Refused(f"fault cut: {value!r}, wanted true or false")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Refused(f"fault {key}: {value!r}, wanted a number")
    if key in ("delay_ms", "seed"):
        limit = DELAY_LIMIT_MS if key == "delay_ms" else 2**64 - 1
        if isinstance(value, int) and 0 <= value <= limit:
            return value
        raise Refused(f"fault {key}: {value!r}, wanted an integer in 0..{limit}")
    if 0 <= value <= 1:
        return float(value)
    raise Refused(f"fault {key}: {value!r}, wanted a probability in 0..1")


class Damage:
    """Applies `LinkFaults` to one direction and counts what it did."""

    def __init__(self, faults: LinkFaults, direction: str, counters: Counter[str]) -> None:
        self._faults, self._counters = faults, counters
        self._random = random.Random(f"{faults.seed}/{direction}")  # noqa: S311  (no secret)

    def apply(self, data: bytes) -> bytes:
        faults, rng, counters = self._faults, self._random, self._counters
        if faults.cut:
            counters["cut_bytes"] += len(data)
            return b""
        if not faults.damages:
            return data
        out = bytearray()
        byte_flip = 1 - (1 - faults.flip) ** 8  # at least one bit of the byte
        for byte in data:
            # Always three draws, so that one fault's rate does not move another's places.
            drop, duplicate, flip = rng.random(), rng.random(), rng.random()
            if drop < faults.drop:
                counters["dropped_bytes"] += 1
                continue
            value = byte
            if flip < byte_flip:
                counters["flipped_bytes"] += 1
                value ^= 1 << int(flip / byte_flip * 8)
            out.append(value)
            if duplicate < faults.duplicate:
                counters["duplicated_bytes"] += 1
                out.append(value)
        return bytes(out)
