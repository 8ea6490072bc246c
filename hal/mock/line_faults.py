"""What can go wrong with bytes on a line (faults L1 to L12 of the reference's catalogue).

The unit of a fault is what one `write` handed over: the hardware knows no frames. A one-shot
fault waits in `LineFaults.once` for the next write; a plan draws one for each write.
"""

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Final, TypeAlias

Pieces: TypeAlias = list[tuple[int, bytes]]  # (extra delay in ns, bytes), in order of arrival
Fault: TypeAlias = Callable[[bytes], Pieces]

MS: Final = 1_000_000
ONCE_LIMIT: Final = 4096  # waiting one-shot faults; a test that needs more has lost count


def drop() -> Fault:
    """L1: nothing arrives."""
    return lambda _: []


def drop_bytes(offset: int, count: int = 1) -> Fault:
    """L7: some bytes in the middle are lost."""
    return lambda data: [(0, data[:offset] + data[offset + count :])]


def truncate(length: int) -> Fault:
    """L7: only the first `length` bytes arrive."""
    return lambda data: [(0, data[:length])]


def duplicate() -> Fault:
    """L2: it arrives twice."""
    return lambda data: [(0, data), (0, data)]


def delay(by_ns: int) -> Fault:
    """L4: it and all that follows arrive later; a line keeps its order."""
    return lambda data: [(by_ns, data)]


def flip(offset: int, mask: int = 0x01) -> Fault:
    """L5: bits of one byte turn over. `offset` counts from the start, or from the end if < 0."""

    def apply(data: bytes) -> Pieces:
        out = bytearray(data)
        if out:
            out[offset % len(out)] ^= mask
        return [(0, bytes(out))]

    return apply


def burst(offset: int, noise: bytes) -> Fault:
    """L6: a run of bytes is overwritten."""
    return lambda data: [(0, (data[:offset] + noise + data[offset + len(noise) :])[: len(data)])]


def garbage(noise: bytes, *, after: bool = False) -> Fault:
    """L9: bytes that nobody sent come before it (or after it)."""
    return lambda data: [(0, data + noise if after else noise + data)]


def split(at: int, gap_ns: int) -> Fault:
    """L8: it comes in two reads, `gap_ns` apart."""
    return lambda data: [(0, data[:at]), (gap_ns, data[at:])]


def replace(with_bytes: bytes) -> Fault:
    """L10, L11, L12: something else arrives: an empty frame, one of full length, a forged one."""
    return lambda _: [(0, with_bytes)]


@dataclass(slots=True, kw_only=True)
class LinePlan:
    """Chances per write, each 0 to 1; at most one fault is drawn for a write."""

    drop: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0  # L3: changes places with the next write
    delay: float = 0.0
    flip: float = 0.0
    burst: float = 0.0
    truncate: float = 0.0
    garbage: float = 0.0
    split: float = 0.0
    delay_max_ns: int = 50 * MS

    def __post_init__(self) -> None:
        total = sum(getattr(self, f.name) for f in fields(self) if f.name != "delay_max_ns")
        if not 0.0 <= total <= 1.0:
            raise ValueError(f"chances of a line plan add up to {total}, want 0 to 1")


@dataclass(slots=True, kw_only=True)
class LineFaults:
    """The faults of one direction of one line. Change it at any time."""

    plan: LinePlan | None = None
    once: deque[Fault] = field(default_factory=deque)
    cut: bool = False  # bytes vanish and nobody is told: a broken wire has no hang-up
    counts: dict[str, int] = field(default_factory=dict)  # what the plan did
    held: bytes | None = None  # what a reorder keeps back for the next write

    @property
    def idle(self) -> bool:
        """True when nothing can happen to the next write."""
        return self.plan is None and not self.once and not self.cut and self.held is None

    def next(self, fault: Fault) -> None:
        """Do this to the next write that no earlier one-shot fault has."""
        if len(self.once) >= ONCE_LIMIT:
            raise ValueError(f"{ONCE_LIMIT} one-shot faults wait already")
        self.once.append(fault)

    def apply(self, data: bytes, rng: random.Random) -> Pieces:
        """What arrives instead of `data`."""
        if self.cut:
            self._count("cut")
            return []
        if self.once:
            self._count("once")
            return self.once.popleft()(data)
        name = self._draw(rng)
        if name == "reorder" and self.held is None:
            self._count(name)
            self.held = data
            return []
        pieces = self._planned(name, data, rng)
        if self.held is not None:
            pieces.append((0, self.held))
            self.held = None
        return pieces

    def _draw(self, rng: random.Random) -> str | None:
        plan = self.plan
        if plan is None:
            return None
        drawn = rng.random()
        for name in _KINDS:
            drawn -= getattr(plan, name)
            if drawn < 0.0:
                return name
        return None

    def _planned(self, name: str | None, data: bytes, rng: random.Random) -> Pieces:
        if name is None or name == "reorder" or not data:
            return [(0, data)]
        self._count(name)
        at = rng.randrange(len(data))
        assert self.plan is not None
        match name:
            case "drop":
                return []
            case "duplicate":
                return duplicate()(data)
            case "delay":
                return delay(rng.randint(1, self.plan.delay_max_ns))(data)
            case "flip":
                return flip(at, 1 << rng.randrange(8))(data)
            case "burst":
                return burst(at, rng.randbytes(rng.randint(2, 16)))(data)
            case "truncate":
                return truncate(at)(data)
            case "garbage":
                return garbage(rng.randbytes(rng.randint(1, 32)))(data)
            case _:
                return split(at, rng.randint(1, self.plan.delay_max_ns))(data)

    def _count(self, name: str) -> None:
        self.counts[name] = self.counts.get(name, 0) + 1


_KINDS: Final = tuple(f.name for f in fields(LinePlan) if f.name != "delay_max_ns")
