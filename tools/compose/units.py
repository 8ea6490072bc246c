"""Sizes, durations and processor shares as Compose writes them.

Ref: compose-spec 11-extension.md "Specifying byte values", "Specifying durations"; the readers of
Docker are go-units RAMInBytes (all powers of 1024) and Go's time.ParseDuration.
"""

import math
import re
from decimal import Decimal, InvalidOperation
from typing import Final

from firmware.workload import MAX_BYTES, MAX_CPU_MILLI

_SIZE: Final = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,9})?) ?([kKmMgGtTpP]?)(?:[iI]?[bB])?")
_DURATION: Final = re.compile(
    r"([0-9]{1,15}(?:\.[0-9]{0,9})?|\.[0-9]{1,9})(ns|us|µs|μs|ms|s|m|h|d|w)"
)
_UNIT_NS: Final = {
    "ns": 1,
    "us": 1000,
    "µs": 1000,
    "μs": 1000,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
    "d": 86_400 * 10**9,
    "w": 7 * 86_400 * 10**9,
}
MAX_DURATION_MS: Final = 10 * 366 * 86_400_000


class UnitError(ValueError):
    """The text is no such quantity; the message says what was wanted."""


def parse_size(text: str) -> int:
    """`512m`, `1.5G`, `64 KiB` in bytes."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UnitError(f"wanted a size such as 512m or 1.5g, found {text[:60]!r}")
    value = int(Decimal(match[1]) * 1024 ** " kmgtp".index(match[2].lower() or " "))
    if value > MAX_BYTES:
        raise UnitError(f"wanted at most {MAX_BYTES} bytes, found {text[:60]!r}")
    return value


def parse_duration_ms(text: str) -> int:
    """`1m30s`, `500ms` in ms, rounded up: a time that is there never becomes none."""
    text = text.strip()
    if text == "0":
        return 0
    total = Decimal(0)
    place = 0
    while place < len(text):
        match = _DURATION.match(text, place)
        if match is None:
            break
        total += Decimal(match[1]) * _UNIT_NS[match[2]]
        place = match.end()
    if place != len(text) or not text:
        raise UnitError(f"wanted a duration such as 10s or 1m30s, found {text[:60]!r}")
    value = math.ceil(total / 10**6)
    if value > MAX_DURATION_MS:
        raise UnitError(f"wanted at most {MAX_DURATION_MS} ms, found {text[:60]!r}")
    return value


def parse_cpu_milli(text: str) -> int:
    """`0.5` processors are 500 milli; what is there is at least 1."""
    try:
        value = Decimal(text.strip())
    except InvalidOperation as exc:
        raise UnitError(f"wanted a number of processors such as 0.5, found {text[:60]!r}") from exc
    if not value.is_finite() or not 0 <= value <= MAX_CPU_MILLI // 1000:
        raise UnitError(f"wanted 0 to {MAX_CPU_MILLI // 1000} processors, found {text[:60]!r}")
    return math.ceil(value * 1000)
