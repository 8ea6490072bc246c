"""What is asked for of late: the kinds of requests and how often each came, in a decaying window.

Integers only. Every request counts WEIGHT; after WINDOW requests all counts are halved, so what
came n requests ago weighs about 2^-(n / WINDOW). `revision` changes when the learned mix should be
read anew: after 16 requests, then whenever the number seen has doubled, later every REREAD.
"""

from dataclasses import dataclass
from typing import Final

from firmware.allocator.types import AcceleratorDemand, Demand

WEIGHT: Final = 256
WINDOW: Final = 2048  # requests
FIRST: Final = 16  # fewer say nothing yet
REREAD: Final = 1024
CLASSES: Final = 512  # kept at most; the rarest are forgotten


@dataclass(frozen=True, slots=True, order=True)
class RequestClass:
    """Requests that are alike: amounts by dimension, and what of which accelerator."""

    vector: tuple[int, ...]
    kind: str = ""
    model: str = ""  # "" is any
    count: int = 0
    milli: int = 0

    @property
    def wanted_milli(self) -> int:
        return self.count * self.milli


def class_of(demand: Demand) -> RequestClass:
    """By its largest demand for accelerators; the others are left out."""
    main = main_accelerator(demand)
    if main is None:
        return RequestClass(demand.vector)
    return RequestClass(demand.vector, main.kind, main.model or "", main.count, main.milli)


def main_accelerator(demand: Demand) -> AcceleratorDemand | None:
    if not demand.accelerators:
        return None
    if len(demand.accelerators) == 1:
        return demand.accelerators[0]
    return max(
        demand.accelerators, key=lambda a: (a.count * a.milli, a.kind, a.model or "", a.milli)
    )


class RequestMix:
    """The card's own mix. Equal requests in equal order give an equal mix."""

    def __init__(self) -> None:
        self.revision = 0
        self._counts: dict[RequestClass, int] = {}
        self._seen = 0
        self._next = FIRST

    def observe(self, demand: Demand) -> None:
        """One request came."""
        key = class_of(demand)
        self._counts[key] = self._counts.get(key, 0) + WEIGHT
        self._seen += 1
        if self._seen % WINDOW == 0:
            halved = {k: n // 2 for k, n in self._counts.items()}
            self._counts = {k: n for k, n in halved.items() if n}
        if len(self._counts) > 2 * CLASSES:
            self._counts = {k: n for n, k in self._ranked()[:CLASSES]}
        if self._seen >= self._next:
            self._next = self._seen + min(self._seen, REREAD)
            self.revision += 1

    def classes(self) -> list[tuple[RequestClass, int]]:
        """(class, weight), the heaviest first, at most CLASSES; none before the first revision."""
        if not self.revision:
            return []
        return [(key, count) for count, key in self._ranked()[:CLASSES]]

    def _ranked(self) -> list[tuple[int, RequestClass]]:
        pairs = [(count, key) for key, count in self._counts.items()]
        return sorted(pairs, key=lambda pair: (-pair[0], pair[1]))

    def copy(self) -> "RequestMix":
        twin = RequestMix()
        twin.revision, twin._seen, twin._next = self.revision, self._seen, self._next
        twin._counts = dict(self._counts)
        return twin
