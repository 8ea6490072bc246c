"""A violation with as few steps as possible: delta debugging over the numbers of a plan's steps.

Ref: A. Zeller, R. Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", IEEE TSE 28(2),
2002, section 3 (ddmin). A subset counts when it breaks the same invariant. Bounded in runs and in
processor time; what is the shortest by then is the answer.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

RUNS_MOST: Final = 120
CPU_MOST_S: Final = 90.0

Breaks = Callable[[frozenset[int]], bool]  # does a run with these steps break the same?


@dataclass(frozen=True, slots=True, kw_only=True)
class Shrunk:
    """The steps that are left, and how many runs that took."""

    numbers: tuple[int, ...]
    runs: int
    whole: bool  # False: a bound was reached before no single step could be left out


def shrink(
    numbers: Sequence[int],
    breaks: Breaks,
    *,
    runs_most: int = RUNS_MOST,
    cpu_most_s: float = CPU_MOST_S,
) -> Shrunk | None:
    """None: all of them together don't break it again. Nothing at all is tried first, then the
    steps from the end, then parts of them."""
    search = _Search(breaks, runs_most, cpu_most_s)
    if search.breaks([]):
        return Shrunk(numbers=(), runs=search.runs, whole=True)
    if not search.breaks(numbers):
        return None
    left = _ddmin(list(numbers), search)
    return Shrunk(numbers=tuple(left), runs=search.runs, whole=not search.spent)


class _Search:
    """Counts what it costs; remembers what was tried."""

    def __init__(self, breaks: Breaks, runs_most: int, cpu_most_s: float) -> None:
        self.runs = 0
        self._breaks = breaks
        self._runs_most = runs_most
        self._end_s = time.process_time() + cpu_most_s
        self._known: dict[frozenset[int], bool] = {}  # at most runs_most

    @property
    def spent(self) -> bool:
        return self.runs >= self._runs_most or time.process_time() >= self._end_s

    def breaks(self, numbers: Sequence[int]) -> bool:
        """False once the budget is spent."""
        key = frozenset(numbers)
        if key not in self._known:
            if self.spent:
                return False
            self.runs += 1
            self._known[key] = self._breaks(key)
        return self._known[key]


def _ddmin(numbers: list[int], search: _Search) -> list[int]:
    parts = 2
    while len(numbers) >= 2 and not search.spent:
        size = -(-len(numbers) // parts)
        chunks = [numbers[at : at + size] for at in range(0, len(numbers), size)]
        for chunk in chunks:
            if len(chunks) > 2 and search.breaks(chunk):
                numbers, parts = chunk, 2
                break
            rest = [number for number in numbers if number not in chunk]
            if search.breaks(rest):
                numbers, parts = rest, max(parts - 1, 2)
                break
        else:
            if parts >= len(numbers):
                return numbers
            parts = min(len(numbers), parts * 2)
    return numbers
