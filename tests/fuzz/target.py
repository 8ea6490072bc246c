"""What is fuzzed: a function over bytes, and what it must never do.

A check takes one input, feeds it to one parser or state machine, and swallows the typed errors that
this parser may raise. Anything else that it raises is a bug: an untyped error, or one of its own
assertions (what was accepted reads back equal, bounds hold, a good input afterwards is taken).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

Check: TypeAlias = Callable[[bytes], bool]  # True: the input was accepted, not refused


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One row of the table in `tests.fuzz.table`."""

    name: str
    text: str  # what is fed, and with what
    make: Callable[[Path], Check]  # with a scratch directory of its own
    seeds: Callable[[], Iterable[bytes]]  # from our own encoders
    words: tuple[bytes, ...] = ()  # tokens that a mutation may insert
    max_bytes: int = 4096
