"""`apf bench resync`: frames that one damaged byte of a serial line costs, by dialect.

Every damage of `tools.bench.resync_streams` is done once, and what the deframer then takes is held
against what was sent. The deframer adapts (it may go over to another dialect), as a CNM's does, so
that a damage which moved the line would show. The baseline is the receiver that most of the
field has, without the frames that are longer than it takes (one of them makes it deaf). What is
counted has no noise: two runs give the same figures.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, Protocol

from protocol.mctp.serial import SerialDeframer
from protocol.mctp.serial_frame import Dialect
from tools.bench.figures import NONE, Figure, Goal
from tools.bench.measure import Bench
from tools.bench.resync_linux import MAX_COUNT, LinuxReceiver
from tools.bench.resync_streams import Case, Kind, damaged

FRAMES_LOST: Final = Goal(must=2, aim=1)  # the damaged one and the next; the damaged one alone
_LINUX: Final = "Linux mctp-serial, modelled"
_UNITS: Final[dict[str, tuple[str, Goal | None]]] = {
    "cases": ("damages", None),
    "above_two": ("damages", NONE),
    "deaf": ("damages", NONE),
    "moved": ("damages", NONE),
    "wrong_packets": ("packets", None),  # once in 65,536 of random damage: it can't be never
}
_MODELLED: Final = (Dialect.A, Dialect.D)  # the new Linux, the old one


class Receiver(Protocol):
    """What is measured."""

    def feed(self, data: bytes) -> list[bytes]: ...


@dataclass(slots=True)
class Tally:
    """What many damages cost. Frames are counted by how many one damage cost."""

    lost: dict[Kind, Counter[int]] = field(
        default_factory=lambda: {kind: Counter() for kind in Kind}
    )
    wrong: int = 0  # packets taken that nobody sent
    deaf: int = 0  # damages after which not even the last frame was taken
    moved: int = 0  # damages after which another dialect was read

    @property
    def cases(self) -> int:
        return sum(counts.total() for counts in self.lost.values())

    @property
    def worst(self) -> int:
        return max(max(counts) for counts in self.lost.values() if counts)

    @property
    def above_two(self) -> int:
        return sum(
            cases for counts in self.lost.values() for frames, cases in counts.items() if frames > 2
        )

    def mean(self, kind: Kind) -> float:
        counts = self.lost[kind]
        return sum(frames * cases for frames, cases in counts.items()) / counts.total()

    def add(self, case: Case, got: list[bytes]) -> None:
        """One damage. What comes out of order, or twice, was not sent either."""
        left = iter(case.sent)
        taken = sum(any(packet == sent for sent in left) for packet in got)
        self.lost[case.kind][len(case.sent) - taken] += 1
        self.wrong += len(got) - taken
        self.deaf += not got or got[-1] != case.sent[-1]


def measured(cases: Iterable[Case], receiver: Callable[[], Receiver]) -> Tally:
    """Each damage on a line of its own."""
    tally = Tally()
    for case in cases:
        line = receiver()
        before = _dialect(line)
        tally.add(case, line.feed(case.stream))
        tally.moved += _dialect(line) is not before
    return tally


def adaptive(dialect: Dialect) -> SerialDeframer:
    """As at a CNM's end that was taught this dialect."""
    return SerialDeframer(dialect=dialect, adopt=lambda _dialect, _frames: True)


def run(bench: Bench) -> list[Figure]:
    """All rows, of all dialects."""
    return [figure for dialect in Dialect for figure in _rows(dialect, bench)]


def _rows(dialect: Dialect, bench: Bench) -> Iterator[Figure]:
    quick = bench.quick
    own = measured(damaged(dialect, shared=False, quick=quick), lambda: adaptive(dialect))
    shared = measured(damaged(dialect, shared=True, quick=quick), lambda: adaptive(dialect))
    linux: dict[str, float] = {}
    if dialect in _MODELLED:
        cases = damaged(dialect, shared=False, quick=quick, limit_bytes=MAX_COUNT)
        linux = _figures(measured(cases, lambda: LinuxReceiver(dialect)))
    ours, others = _figures(own), _figures(shared)
    ours["shared_flags_worst"] = others["worst"]
    for what in ("cases", "above_two", "deaf", "moved", "wrong_packets"):
        ours[what] += others[what]
    for what, value in ours.items():
        unit, goal = _UNITS.get(what, ("frames", FRAMES_LOST))
        yield Figure(
            name=f"resync.{dialect.lower()}.{what}",
            value=value,
            unit=unit,
            goal=goal,
            baseline=linux.get(what),
            baseline_name=_LINUX if what in linux else None,
        )


def _figures(tally: Tally) -> dict[str, float]:
    """By the names of the rows."""
    return {str(kind): tally.mean(kind) for kind in Kind} | {
        "worst": tally.worst,
        "cases": tally.cases,
        "above_two": tally.above_two,
        "deaf": tally.deaf,
        "moved": tally.moved,
        "wrong_packets": tally.wrong,
    }


def _dialect(line: Receiver) -> Dialect | None:
    return line.dialect if isinstance(line, SerialDeframer) else None
