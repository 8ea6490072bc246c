"""A histogram with log-spaced bins whose samples fade: half of their weight in each half-life.

As the Kubernetes vertical pod autoscaler has it (autoscaler/vertical-pod-autoscaler,
pkg/recommender/util/decaying_histogram.go): not the old weights shrink, new samples weigh more, by
2^(time / half-life), and all weights are scaled down at whole half-lives. Here in integers, so that
equal samples give equal answers everywhere: a sample weighs 256 to 506 by the 64th of its
half-life, and all weights are halved, rounded down, as each half-life begins. So one sample alone
is gone after nine half-lives, which bounds how long a single peak is remembered by the bins.

Bins: 0 to 7 have one each, then eight to an octave (a value is known to 12.5 %), 256 in all, to
2^34 - 1 of whatever unit the caller counts in. Only the span between the lowest and the highest
bin with a weight is stored, four bytes a bin.

Example, half-life 64 s: value 100 at 0 s weighs 256 in bin 36 (96 to 103); value 200 at 32 s
weighs 256 * 2^(1/2) = 362 in bin 44 (192 to 207). 90 % of 618 is 556.2, reached in bin 44, whose
upper edge is 207, more than was ever seen: the answer is 200. 40 % is 247.2, reached in bin 36:
103. At 64 s the weights are 128 and 181; value 100 again adds 256: 384 of 565 in bin 36, so 60 %
(339) is now 103.
"""

from array import array
from collections.abc import Mapping, Sequence
from math import isqrt
from typing import Final, Self

BINS: Final = 256
MAX_VALUE: Final = (1 << 34) - 1  # telemetry comes from a module: absurd values are cut here
MAX_WEIGHT: Final = (1 << 32) - 1  # of all bins together: four bytes hold any of them
STEPS: Final = 64  # of a half-life
UNIT_WEIGHT: Final = 256
LAST_SHIFT: Final = 32  # half-lives after which nothing can be left


def _weights() -> tuple[int, ...]:
    """256 * 2^(k / 64), rounded; the root by integers, for the same digits on every machine."""
    root = 2 << 128
    for _ in range(6):  # six square roots are the 64th root
        root = isqrt(root << 128)
    found, power = [], UNIT_WEIGHT << 128
    for _ in range(STEPS):
        found.append((power + (1 << 127)) >> 128)
        power = (power * root) >> 128
    return tuple(found)


WEIGHTS: Final = _weights()


def bin_of(value: int) -> int:
    """The bin of a value; what is below 0 or too large goes to the first or the last."""
    value = min(max(value, 0), MAX_VALUE)
    if value < 8:
        return value
    octave = value.bit_length() - 1
    return 8 * (octave - 2) + ((value >> (octave - 3)) & 7)


def upper_edge(index: int) -> int:
    """The largest value of a bin."""
    if index < 8:
        return index
    return ((9 + index % 8) << (index // 8 - 1)) - 1


class Histogram:
    """Weights by bin, and the exact highest value while its bin has weight."""

    __slots__ = ("epoch", "first", "half_life_ns", "highest", "total", "weights")

    def __init__(self, half_life_ns: int) -> None:
        self.half_life_ns = half_life_ns
        self.epoch = 0  # the half-life that the weights are of
        self.first = 0  # bin of weights[0]
        self.weights = array("I")
        self.total = 0
        self.highest = 0

    def add(self, value: int, at_ns: int) -> None:
        """One sample. A time before the newest one is right too: it weighs less."""
        value = min(max(value, 0), MAX_VALUE)
        weight = self._weight(at_ns)
        if weight == 0:
            return
        if self.total + weight > MAX_WEIGHT:
            self._shift(1)  # of very many samples in one half-life the old ones fade sooner
        self._add(bin_of(value), weight)
        self.highest = max(self.highest, value)

    def move(self, old: int, new: int, at_ns: int) -> None:
        """A sample that was added for `at_ns` turns out to be larger: `new` takes its place."""
        index = bin_of(old) - self.first
        if 0 <= index < len(self.weights):
            gone = min(self._weight(at_ns), self.weights[index])
            self.weights[index] -= gone
            self.total -= gone
        self.add(new, at_ns)
        self._trim()

    def decay(self, at_ns: int) -> None:
        """Let it fade to this time. Percentiles do not need it, sizes on disk do."""
        self._weight(at_ns)

    def percentile(self, percent: int) -> int:
        """The upper edge of the bin that holds it, at most the highest value; 0 without samples."""
        seen = 0
        for place, weight in enumerate(self.weights):
            seen += weight
            if seen * 100 >= self.total * percent and seen:
                return min(upper_edge(self.first + place), self.highest)
        return 0

    def merge(self, other: "Histogram") -> None:
        """Add all samples of another one of the same half-life."""
        assert other.half_life_ns == self.half_life_ns
        if not other.total:
            return
        self._weight(other.epoch * self.half_life_ns)
        behind = self.epoch - other.epoch
        for place, weight in enumerate(other.weights):
            weight >>= min(behind, LAST_SHIFT)
            if weight:
                while self.total + weight > MAX_WEIGHT:
                    self._shift(1)
                    weight >>= 1
                self._add(other.first + place, weight)
        top = upper_edge(self.first + len(self.weights) - 1) if self.weights else 0
        self.highest = min(max(self.highest, other.highest), top)

    def shares(self) -> list[tuple[int, int, int]]:
        """(lowest value, highest value, millionths of the weight) of each bin that has weight."""
        return [
            (
                upper_edge(index - 1) + 1 if index else 0,
                min(upper_edge(index), self.highest),
                weight * 1_000_000 // self.total,
            )
            for index, weight in enumerate(self.weights, self.first)
            if weight
        ]

    # --- inside ---

    def _weight(self, at_ns: int) -> int:
        epoch, rest = divmod(max(at_ns, 0), self.half_life_ns)
        if epoch > self.epoch:
            self._shift(epoch - self.epoch)
            self.epoch = epoch
        weight = WEIGHTS[rest * STEPS // self.half_life_ns]
        return weight >> min(self.epoch - epoch, LAST_SHIFT)

    def _shift(self, halvings: int) -> None:
        if halvings >= LAST_SHIFT:
            self.weights = array("I")
        else:
            self.weights = array("I", [weight >> halvings for weight in self.weights])
        self.total = sum(self.weights)
        self._trim()

    def _trim(self) -> None:
        """No bins without weight at the ends; the highest value goes with its bin."""
        end = len(self.weights)
        while end and not self.weights[end - 1]:
            end -= 1
        start = 0
        while start < end and not self.weights[start]:
            start += 1
        if end - start < len(self.weights):
            self.weights = self.weights[start:end]
            self.first += start
        if not self.weights:
            self.first = self.highest = 0
        else:
            self.highest = min(self.highest, upper_edge(self.first + len(self.weights) - 1))

    def _add(self, index: int, weight: int) -> None:
        if not self.weights:
            self.first, self.weights = index, array("I", [0])
        elif index < self.first:
            self.weights = array("I", [0] * (self.first - index)) + self.weights
            self.first = index
        elif index >= self.first + len(self.weights):
            self.weights.extend([0] * (index - self.first - len(self.weights) + 1))
        self.weights[index - self.first] += weight
        self.total += weight

    # --- on disk ---

    def to_json(self) -> dict[str, object]:
        """{"epoch", "first", "highest", "weights"}: exactly what it is."""
        return {
            "epoch": self.epoch,
            "first": self.first,
            "highest": self.highest,
            "weights": list(self.weights),
        }

    @classmethod
    def from_json(cls, value: object, half_life_ns: int) -> Self:
        """What can't be used gives an empty one: a profile is an estimate, not a decision."""
        found = cls(half_life_ns)
        if not isinstance(value, Mapping):
            return found
        epoch, first, highest = (value.get(name) for name in ("epoch", "first", "highest"))
        weights = value.get("weights")
        if not (
            type(epoch) is int
            and 0 <= epoch < 1 << 32
            and type(first) is int
            and 0 <= first < BINS
            and type(highest) is int
            and 0 <= highest <= MAX_VALUE
            and isinstance(weights, Sequence)
            and 0 < len(weights) <= BINS - first
            and all(type(weight) is int and 0 <= weight <= MAX_WEIGHT for weight in weights)
            and 0 < sum(weights) <= MAX_WEIGHT
        ):
            return found
        found.epoch, found.first, found.highest = epoch, first, highest
        found.weights = array("I", weights)
        found.total = sum(weights)
        found._trim()
        return found
