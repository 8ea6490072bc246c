"""What a component needs: what it declares, and what it was measured to use.

Declared requirements are the law: a reservation, else the limit, else the small default below.
A profile is kept for each component identity (image and name) from the telemetry of all its
instances. It corrects *upward and as a hint only*: it steers the choice between CNMs that fit and
is shown to people; it never makes a component unplaceable and never changes a limit.

A profile is a histogram with four buckets to an octave (a value is known to 25 %), for CPU and for
memory. When 512 samples are in it, all counts are halved: at one sample a second the old ones fade
within some ten minutes. The hint is the 95th percentile's upper edge and 15 % headroom; fewer than
20 samples give none.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self

from firmware.allocator import AcceleratorDemand, Constraints, Demand
from firmware.workload import HOST_IMAGE, Component, RuntimeChoice, Workload, instance_name

MAX_PROFILES: Final = 4096
DEFAULT_CPU_MILLI: Final = 50  # of a component that declares nothing: it still takes room
DEFAULT_MEMORY_BYTES: Final = 32 << 20
PERCENTILE: Final = 95
HEADROOM_PERCENT: Final = 15
LEAST_SAMPLES: Final = 20
FADE_SAMPLES: Final = 512
MAX_VALUE: Final = 1 << 62  # telemetry comes from a CNM: absurd values are cut here


def bucket_of(value: int) -> int:
    """Four buckets to an octave; 0 has its own."""
    value = min(max(value, 0), MAX_VALUE)
    if value < 4:
        return value
    octave = value.bit_length() - 1
    return 4 * (octave - 1) + ((value >> (octave - 2)) & 3)


def upper_edge(bucket: int) -> int:
    """The largest value of a bucket."""
    if bucket < 4:
        return bucket
    octave, quarter = bucket // 4 + 1, bucket % 4
    return ((5 + quarter) << (octave - 2)) - 1


_LAST_BUCKET: Final = bucket_of(MAX_VALUE)


class Histogram:
    """Counts that fade; at most 250 buckets."""

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        self.total = 0
        self.last = 0

    def add(self, value: int) -> None:
        self.last = min(max(value, 0), MAX_VALUE)
        bucket = bucket_of(value)
        self.counts[bucket] = self.counts.get(bucket, 0) + 1
        self.total += 1
        if self.total >= FADE_SAMPLES:
            self.counts = {b: n // 2 for b, n in self.counts.items() if n > 1}
            self.total = sum(self.counts.values())

    def percentile(self, percent: int) -> int:
        """The upper edge of the bucket that holds it; 0 without samples."""
        seen = 0
        for bucket in sorted(self.counts):
            seen += self.counts[bucket]
            if seen * 100 >= self.total * percent:
                return upper_edge(bucket)
        return 0

    @property
    def peak(self) -> int:
        """Of what has not faded."""
        return upper_edge(max(self.counts)) if self.counts else 0

    @property
    def mean(self) -> int:
        return (
            sum(upper_edge(b) * n for b, n in self.counts.items()) // self.total
            if self.total
            else 0
        )

    def to_json(self) -> dict[str, object]:
        return {"counts": {str(b): n for b, n in sorted(self.counts.items())}, "last": self.last}

    @classmethod
    def from_json(cls, value: object) -> Self:
        """What can't be used is left out: a profile is an estimate, not a decision."""
        found = cls()
        if not isinstance(value, Mapping):
            return found
        counts, last = value.get("counts"), value.get("last")
        found.last = last if type(last) is int and 0 <= last <= MAX_VALUE else 0
        for key, count in counts.items() if isinstance(counts, Mapping) else ():
            known = isinstance(key, str) and key.isascii() and key.isdigit() and len(key) <= 3
            bucket = int(key) if known else MAX_VALUE
            if bucket <= _LAST_BUCKET and type(count) is int and 0 < count < FADE_SAMPLES:
                found.counts[bucket] = count
        found.total = sum(found.counts.values())
        while found.total >= FADE_SAMPLES:
            found.counts = {b: n // 2 for b, n in found.counts.items() if n > 1}
            found.total = sum(found.counts.values())
        return found


class Profile:
    """One component identity."""

    def __init__(self) -> None:
        self.cpu_milli = Histogram()
        self.memory_bytes = Histogram()
        self.seen_ns = 0  # CLOCK_BOOTTIME of the last sample

    @property
    def hint_cpu_milli(self) -> int:
        return _hint(self.cpu_milli)

    @property
    def hint_memory_bytes(self) -> int:
        return _hint(self.memory_bytes)

    def show(self) -> dict[str, object]:
        """For people; 0 hints mean: not enough samples yet."""
        return {
            "samples": self.memory_bytes.total,
            "cpu_mean_milli": self.cpu_milli.mean,
            "cpu_peak_milli": self.cpu_milli.peak,
            "cpu_hint_milli": self.hint_cpu_milli,
            "memory_mean_bytes": self.memory_bytes.mean,
            "memory_peak_bytes": self.memory_bytes.peak,
            "memory_hint_bytes": self.hint_memory_bytes,
        }


def _hint(histogram: Histogram) -> int:
    if histogram.total < LEAST_SAMPLES:
        return 0
    return histogram.percentile(PERCENTILE) * (100 + HEADROOM_PERCENT) // 100


def identity(component: Component) -> str:
    """The same image under the same name is expected to behave alike, in any workload."""
    return f"{component.image} {component.name}"


class Profiler:
    """Profiles by identity; the longest unused one goes when the table is full."""

    def __init__(self) -> None:
        self._profiles: OrderedDict[str, Profile] = OrderedDict()

    def __len__(self) -> int:
        return len(self._profiles)

    def profile(self, component: Component) -> Profile | None:
        return self._profiles.get(identity(component))

    def demand(self, component: Component) -> Demand:
        """What an instance of it reserves, with what was measured as a hint."""
        return demand_of(component, self.profile(component))

    def observe(
        self,
        component: Component,
        now_ns: int,
        cpu_milli: int | None,
        memory_bytes: int | None,
    ) -> None:
        """What one of its instances used over the last telemetry period; None: not readable."""
        name = identity(component)
        profile = self._profiles.get(name)
        if profile is None:
            profile = self._profiles[name] = Profile()
            if len(self._profiles) > MAX_PROFILES:
                self._profiles.popitem(last=False)
        self._profiles.move_to_end(name)
        profile.seen_ns = now_ns
        if cpu_milli is not None:
            profile.cpu_milli.add(cpu_milli)
        if memory_bytes is not None:
            profile.memory_bytes.add(memory_bytes)

    def show(self, component: Component, now_ns: int) -> dict[str, object] | None:
        """A profile for people, with its age; None when nothing was measured."""
        profile = self.profile(component)
        if profile is None:
            return None
        return {**profile.show(), "age_ms": max(now_ns - profile.seen_ns, 0) // 1_000_000}

    def to_json(self) -> dict[str, object]:
        """The profiles, longest unused first; their ages are not kept over a restart."""
        return {
            "v": 1,
            "profiles": [
                [name, profile.cpu_milli.to_json(), profile.memory_bytes.to_json()]
                for name, profile in self._profiles.items()
            ],
        }

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Leaves out what it can't use."""
        found = cls()
        entries = value.get("profiles") if isinstance(value, Mapping) else None
        for entry in entries[-MAX_PROFILES:] if isinstance(entries, list) else ():
            if isinstance(entry, list) and len(entry) == 3 and isinstance(entry[0], str):
                profile = Profile()
                profile.cpu_milli = Histogram.from_json(entry[1])
                profile.memory_bytes = Histogram.from_json(entry[2])
                found._profiles[entry[0]] = profile
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceNeed:
    """What one instance asks of the allocator."""

    instance: str
    component: str
    demand: Demand
    constraints: Constraints


def analyze_workload(workload: Workload, profiler: Profiler) -> list[InstanceNeed]:
    """One need for each instance, in the order of components and replicas."""
    needs: list[InstanceNeed] = []
    for component in workload.components:
        constraints = constraints_of(workload, component, profiler)
        needs.extend(
            InstanceNeed(
                instance=instance_name(workload.name, component.name, index),
                component=component.name,
                demand=profiler.demand(component),
                constraints=constraints,
            )
            for index in range(component.replicas)
        )
    return needs


def constraints_of(workload: Workload, component: Component, profiler: Profiler) -> Constraints:
    """Where its instances may go. Components tied by `together` form one group: each member
    joins those that are placed and leaves room for one instance of those that are to come."""
    others = _group_of(workload.components, component.name) - {component.name}
    placement = component.placement
    return Constraints(
        workload=workload.name,
        component=component.name,
        arch=component.resources.arch,
        runtimes=runtimes_of(component),
        labels=tuple(sorted(placement.labels.items())),
        spread=placement.spread,
        together=frozenset(others),
        companions=tuple(
            (other.name, profiler.demand(other))
            for other in workload.components
            if other.name in others
        ),
        max_per_cnm=placement.max_per_cnm,
    )


def demand_of(component: Component, profile: Profile | None) -> Demand:
    """Reservation, else limit, else default; and what was measured, as a hint."""
    wants = component.resources
    return Demand(
        cpu_milli=wants.cpu_milli or wants.cpu_limit_milli or DEFAULT_CPU_MILLI,
        memory_bytes=wants.memory_bytes or wants.memory_limit_bytes or DEFAULT_MEMORY_BYTES,
        nvme_bytes=wants.nvme_bytes,
        link_mbit=wants.link_mbit,
        accelerators=tuple(
            AcceleratorDemand(kind=a.kind, model=a.model, count=a.count, milli=a.milli)
            for a in wants.accelerators
        ),
        hint_cpu_milli=profile.hint_cpu_milli if profile else 0,
        hint_memory_bytes=profile.hint_memory_bytes if profile else 0,
    )


def runtimes_of(component: Component) -> frozenset[str]:
    """`auto` is `oci`, or `process` for the CNM's own root filesystem."""
    if component.runtime is not RuntimeChoice.AUTO:
        return frozenset({str(component.runtime)})
    return frozenset({"process" if component.image == HOST_IMAGE else "oci"})


def _group_of(components: Sequence[Component], name: str) -> set[str]:
    """All that `together` ties to a component, directly or through others, and itself."""
    ties = [(c.name, other) for c in components for other in c.placement.together]
    group, grown = {name}, True
    while grown:
        size = len(group)
        for one, other in ties:
            if one in group or other in group:
                group |= {one, other}
        grown = len(group) > size
    return group
