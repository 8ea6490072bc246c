"""Faults into a world: each is injected, watched for what it does, and healed when its time is up.

A fault counts only once its own evidence shows that it acted (`Injection.seen`), looked at often at
first and then less, for half a minute. Two classes count as a pair when a fault of each that acted
was there at the same time, or up to `AFTER_NS` after it was healed.
"""

import heapq
from collections import Counter
from dataclasses import dataclass
from typing import Final

from tools.sim.faults import Fault, Injection, Site
from tools.sim.world import SECOND, World

LOOKS_NS: Final = tuple(
    int(after_s * SECOND) for after_s in (0.25, 0.5, 0.75, 1, 1.5, 2, 4, 8, 16, 30)
)
AFTER_NS: Final = 5 * SECOND
SHORTEST_NS: Final = 1_000_000  # what lasts, lasts at least so long, however hasty the seed is


@dataclass(slots=True, eq=False)
class _Watched:
    """An injection, until it was seen to act or half a minute has passed."""

    injection: Injection
    seen: bool = False
    healed_ns: int | None = None

    def look(self) -> None:
        self.seen = self.seen or self.injection.seen()


class Injector:
    """Owns what is broken at present. Raises nothing of its own."""

    def __init__(self, world: World, *, haste: float = 1.0) -> None:
        """`haste`: lasting faults last so much of their time."""
        self.injected: Counter[str] = Counter()
        self._world = world
        self._kernel = world.kernel
        self._haste = haste
        self._all: list[_Watched] = []
        self._heals: list[tuple[int, int, _Watched]] = []  # (when, order, what lasts)

    def inject(self, fault: Fault, site: Site) -> Injection | None:
        """None: there was nothing to break just now."""
        assert fault.inject is not None, fault.not_modelled
        injection = fault.inject(site)
        if injection is None:
            return None
        if injection.lasts_ns:
            injection.lasts_ns = max(SHORTEST_NS, int(injection.lasts_ns * self._haste))
            injection.cut_short = self._haste < 1
        self.injected[injection.id] += 1
        self._kernel.note("sim", "inject", f"{injection.id} {injection.text}")
        watched = _Watched(injection)
        self._all.append(watched)
        if injection.lasts_ns:
            heal_ns = injection.at_ns + injection.lasts_ns
            heapq.heappush(self._heals, (heal_ns, len(self._all), watched))
        else:
            watched.healed_ns = injection.at_ns
        self._world.judge.injected(injection)
        self._look_later(watched, 0)
        return injection

    def run_until(self, at_ns: int) -> None:
        """Let the world go on until then, healing what is due. Raises what the world raises."""
        while self._heals and self._heals[0][0] <= at_ns:
            heal_ns, _, watched = heapq.heappop(self._heals)
            self._run_to(heal_ns)
            self._heal(watched)
        self._run_to(at_ns)

    def heal(self) -> None:
        """Everything, now; and the judge is told."""
        while self._heals:
            self._heal(heapq.heappop(self._heals)[2])
        self._world.judge.faults_over(self._kernel.now_ns)

    @property
    def seen(self) -> Counter[str]:
        """By id: how many were injected and seen to act."""
        return Counter(watched.injection.id for watched in self._all if watched.seen)

    @property
    def pairs(self) -> set[tuple[str, str]]:
        """Classes, in the order of the alphabet, of which two faults acted at the same time."""
        points: list[tuple[int, int, str]] = []
        for watched in self._all:
            if watched.seen:
                healed_ns = watched.healed_ns
                end_ns = self._kernel.now_ns if healed_ns is None else healed_ns
                points.append((watched.injection.at_ns, 1, watched.injection.id[0]))
                points.append((end_ns + AFTER_NS, -1, watched.injection.id[0]))
        active: Counter[str] = Counter()
        found: set[tuple[str, str]] = set()
        for _, change, letter in sorted(points):
            active[letter] += change
            if change > 0:
                for other, count in active.items():
                    if count > 0 and other != letter:
                        found.add((min(letter, other), max(letter, other)))
        return found

    def _run_to(self, at_ns: int) -> None:
        if at_ns > self._kernel.now_ns:
            self._kernel.run_for(at_ns - self._kernel.now_ns)

    def _heal(self, watched: _Watched) -> None:
        watched.look()
        watched.injection.heal()
        watched.healed_ns = self._kernel.now_ns
        self._kernel.note("sim", "heal", watched.injection.id)

    def _look_later(self, watched: _Watched, index: int) -> None:
        def look() -> None:
            watched.look()
            if not watched.seen and index + 1 < len(LOOKS_NS):
                self._look_later(watched, index + 1)

        self._kernel.at(watched.injection.at_ns + LOOKS_NS[index], look)
