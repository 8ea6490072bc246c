"""How full each module was: a bounded history in memory, for `apf heatmap`.

For each module and series one number in thousandths, 0..1000 (more where more is reserved than a
module that has shrunk still has), at three resolutions:

    10 s x 60 (10 min)      as sampled
    1 min x 60 (1 h)        means of those
    15 min x 96 (24 h)      means of the minutes

One array of 16-bit words a module: 216 steps of 9 series are 3,888 B, 3.9 MB at 1,000 modules
(BYTES_PER_CNM). It is not kept over a restart of the daemon. Steps are numbered from the daemon's
start; a step that was slept through, or a module that was not there, is `UNKNOWN`.
"""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from firmware.allocator.types import DIMENSIONS, WHOLE_MILLI
from firmware.inventory import Cnm, Inventory
from firmware.loop import MS, Loop
from firmware.placer import Placer

SERIES: Final = (*DIMENSIONS, "accelerators", "cpu_used", "memory_used")  # reserved; then measured
UNKNOWN: Final = 0xFFFF
MOST_PERMILLE: Final = 0xFFFE
SAMPLE_MS: Final = 10_000
CNMS_A_TURN: Final = 128  # then the loop gets its turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One resolution."""

    step_ms: int
    steps: int
    finer: int  # steps of the level before that make one of this; 1 for the first

    @property
    def span_ms(self) -> int:
        return self.step_ms * self.steps


LEVELS: Final = (
    Level(step_ms=SAMPLE_MS, steps=60, finer=1),
    Level(step_ms=60_000, steps=60, finer=6),
    Level(step_ms=900_000, steps=96, finer=15),
)
BYTES_PER_CNM: Final = 2 * len(SERIES) * sum(level.steps for level in LEVELS)


class History:
    """The rings. All modules share the steps, so a ring needs no position of its own."""

    def __init__(self) -> None:
        self._rows: dict[str, array[int]] = {}
        self._bases: list[int] = []
        base = 0
        for level in LEVELS:
            self._bases.append(base)
            base += level.steps * len(SERIES)
        self._words = base
        # which step is in a slot: an old one means that the step asked for was never taken
        self._steps = [array("q", [-1]) * level.steps for level in LEVELS]
        self.last = -1  # newest whole step of the first level
        self._taken = -1  # the one that is being written
        self._closing: list[tuple[int, int]] = []  # (level, step)

    def begin(self, step: int) -> None:
        """A new step of the first level, greater than the last. It counts from `finish` on; till
        then `write` must be called for every module."""
        assert step > self.last
        self._taken = step
        self._closing = [
            (level, self._at(level, self.last))
            for level in range(1, len(LEVELS))
            if self.last >= 0 and self._at(level, self.last) != self._at(level, step)
        ]

    def write(self, cnm: str, values: Sequence[int | None] | None) -> None:
        """What a module's series are in the step that was begun, None when there is none of them.
        Coarser steps that are over are written down from the finer ones."""
        row = self._rows.get(cnm)
        if row is None:
            if values is None:
                return
            row = self._rows[cnm] = array("H", [UNKNOWN]) * self._words
        for level, step in self._closing:
            at = self._slot(level, step)
            row[at : at + len(SERIES)] = array("H", self._mean(row, level, step))
        at = self._slot(0, self._taken)
        row[at : at + len(SERIES)] = array("H", _NOTHING if values is None else map(_word, values))

    def finish(self) -> None:
        """The step that was begun is whole."""
        for level, step in [*self._closing, (0, self._taken)]:
            self._steps[level][step % LEVELS[level].steps] = step
        self.last = self._taken

    def cnms(self) -> list[str]:
        return sorted(self._rows)

    def read(self, cnm: str, level: int, first: int, count: int) -> dict[str, list[int | None]]:
        """A module's series over `count` steps of a level from `first` on; the newest step of a
        coarse level is the mean of what there is of it."""
        row = self._rows.get(cnm)
        columns = [
            self._step(row, level, step) if row is not None else _NOTHING
            for step in range(first, first + count)
        ]
        return {
            name: [None if column[index] == UNKNOWN else column[index] for column in columns]
            for index, name in enumerate(SERIES)
        }

    def newest(self, level: int) -> int:
        """The newest step of a level, perhaps still open; -1 before the first."""
        return self._at(level, self.last) if self.last >= 0 else -1

    # --- inside ---

    def _at(self, level: int, sample: int) -> int:
        for upper in LEVELS[1 : level + 1]:
            sample //= upper.finer
        return sample

    def _slot(self, level: int, step: int) -> int:
        return self._bases[level] + step % LEVELS[level].steps * len(SERIES)

    def _step(self, row: "array[int]", level: int, step: int) -> Sequence[int]:
        """One step, closed or still open; UNKNOWN where there is none."""
        if level and step == self.newest(level):
            return self._mean(row, level, step)
        if step < 0 or self._steps[level][step % LEVELS[level].steps] != step:
            return _NOTHING
        at = self._slot(level, step)
        return row[at : at + len(SERIES)]

    def _mean(self, row: "array[int]", level: int, step: int) -> list[int]:
        finer = LEVELS[level].finer
        parts = [self._step(row, level - 1, step * finer + part) for part in range(finer)]
        means: list[int] = []
        for values in zip(*parts, strict=True):
            known = [value for value in values if value != UNKNOWN]
            means.append((sum(known) + len(known) // 2) // len(known) if known else UNKNOWN)
        return means


_NOTHING: Final = (UNKNOWN,) * len(SERIES)


def _word(value: int | None) -> int:
    return UNKNOWN if value is None else min(max(value, 0), MOST_PERMILLE)


class HistoryKeeper:
    """Samples the books and the telemetry. Loop thread only."""

    def __init__(self, loop: Loop, inventory: Inventory, placer: Placer) -> None:
        self.history = History()
        self._loop = loop
        self._inventory = inventory
        self._placer = placer
        self._start_ns = loop.now_ns()
        self._busy = False

    def start(self) -> None:
        """One sample now, the others every SAMPLE_MS."""
        self._sample()
        self._loop.every(SAMPLE_MS * MS, self._sample)

    def level_for(self, since_ms: int) -> int:
        """The finest level that reaches back so far, else the one that reaches furthest."""
        for index, level in enumerate(LEVELS):
            if level.span_ms >= since_ms:
                return index
        return len(LEVELS) - 1

    def end_age_ms(self, level: int, step: int) -> int:
        """How long ago the step began."""
        began_ns = self._start_ns + step * LEVELS[level].step_ms * MS
        return max(0, self._loop.now_ns() - began_ns) // MS

    def _sample(self) -> None:
        step = (self._loop.now_ns() - self._start_ns) // (SAMPLE_MS * MS)
        if step > self.history.last and not self._busy:
            self._busy = True
            self.history.begin(step)
            self._some(iter(list(self._inventory)))

    def _some(self, cnms: Iterator[Cnm]) -> None:
        some = list(islice(cnms, CNMS_A_TURN))
        for cnm in some:
            self.history.write(cnm.id, self.values(cnm))
        if len(some) == CNMS_A_TURN:
            self._loop.post(lambda: self._some(cnms))
            return
        self._busy = False
        self.history.finish()

    def values(self, cnm: Cnm) -> list[int | None] | None:
        """A module's series now, in thousandths; None when it has not said what it is."""
        node = self._placer.state.nodes.get(cnm.id)
        if node is None or cnm.capabilities is None:
            return None
        found = [permille(used, total) for used, total in zip(node.used, node.total, strict=True)]
        report = cnm.telemetry
        found.append(accelerators_permille(node.free_milli))
        found.append(permille(report.reading("cpu_milli"), node.total[0]) if report else None)
        found.append(permille(report.reading("memory_bytes"), node.total[1]) if report else None)
        return found


def permille(part: int | None, whole: int) -> int | None:
    """Thousandths, rounded down; None where there is nothing to have a part of."""
    return None if part is None or whole <= 0 else part * 1000 // whole


def accelerators_permille(free_milli: Mapping[tuple[str, str], Sequence[int]]) -> int | None:
    """How much of a module's accelerators is reserved; None where it has none."""
    units = [milli for pool in free_milli.values() for milli in pool]
    return permille(len(units) * WHOLE_MILLI - sum(units), len(units) * WHOLE_MILLI)
