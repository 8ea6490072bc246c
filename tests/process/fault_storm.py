"""A storm of random faults on a card: drawn from a seed, overlapping, healed after their time.

The draw of what is tried next is the seed's; what there is to break just then is not, so that two
runs of a seed are alike and not the same. All of it is in `diary`, for the report of a failure.
"""

import heapq
import itertools
import random
import time
from collections import Counter
from collections.abc import Sequence

from tests.process.fault_kinds import KINDS, Kind
from tests.process.fault_logs import LogWatch
from tests.process.fault_site import Injection, Site

POLL_S = 0.05


class Storm:
    """Call `blow`, then `calm`."""

    def __init__(self, site: Site, rng: random.Random, kinds: Sequence[str] = ()) -> None:
        self.diary: list[str] = []
        self.made: Counter[str] = Counter()  # that had an effect
        self.without_effect: Counter[str] = Counter()
        self.nothing_to_break: Counter[str] = Counter()
        self.logs = LogWatch(site.card)
        self._site, self._rng = site, rng
        self._kinds = [KINDS[name] for name in kinds or KINDS]
        self._begun_s = time.monotonic()
        self._last_s: dict[str, float] = {}
        self._order = itertools.count()
        self._lasting: list[tuple[float, int, Kind, Injection]] = []

    @property
    def total(self) -> int:
        return sum(self.made.values())

    def blow(self, faults: int, gap_s: tuple[float, float], limit_s: float) -> None:
        """Until so many faults had an effect; AssertionError when that takes longer than
        `limit_s`. Between two of them a time drawn from `gap_s`."""
        self._begun_s = time.monotonic()
        while self.total < faults:
            assert self._now_s() < limit_s, f"{self.total} of {faults} faults in {limit_s} s"
            self._inject(self._draw())
            until_s = self._now_s() + self._rng.uniform(*gap_s)
            self._heal(until_s)

    def calm(self) -> None:
        """Heal everything, in the order in which it would have ended."""
        while self._lasting:
            self._end(*heapq.heappop(self._lasting)[2:])
        for _ in range(200):
            if self._site.pay():
                break
            time.sleep(POLL_S)
        self._site.close()
        self._say("all healed")

    def report(self) -> str:
        """The faults that were made, by kind, and the diary."""
        rows = [f"{count:4d} {name}" for name, count in sorted(self.made.items())]
        return "\n".join([f"{self.total} faults:", *rows, *self.diary])

    def _draw(self) -> Kind:
        now_s = self._now_s()
        ready = [
            kind
            for kind in self._kinds
            if kind.name not in self._last_s or now_s - self._last_s[kind.name] >= kind.rest_s
        ]
        return self._rng.choices(ready, [kind.weight for kind in ready])[0]

    def _inject(self, kind: Kind) -> None:
        self._last_s[kind.name] = self._now_s()
        made = kind.inject(self._site)
        if made is None:
            self.nothing_to_break[kind.name] += 1
            return
        self._say(f"{kind.name}: {made.text}")
        if made.lasts_s:
            due_s = self._now_s() + made.lasts_s
            heapq.heappush(self._lasting, (due_s, next(self._order), kind, made))
        else:
            self._end(kind, made)

    def _heal(self, until_s: float) -> None:
        while True:
            while self._lasting and self._lasting[0][0] <= self._now_s():
                self._end(*heapq.heappop(self._lasting)[2:])
            self._site.pay()
            self.logs.look()
            left_s = until_s - self._now_s()
            if left_s <= 0:
                return
            time.sleep(min(left_s, POLL_S))

    def _end(self, kind: Kind, made: Injection) -> None:
        (self.made if made.seen() else self.without_effect)[kind.name] += 1
        made.heal()

    def _now_s(self) -> float:
        return time.monotonic() - self._begun_s

    def _say(self, words: str) -> None:
        self.diary.append(f"{self._now_s():7.2f} s  {words}")
