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
MAX_COUNTERS: Final = 8192  # instances whose last CPU counter is kept
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Counter:
    generation: int
    at_ns: int
    cpu_us: int


def identity(component: Component) -> str:
    """The same image under the same name is expected to behave alike, in any workload."""
    return f"{component.image} {component.name}"


class ProfileTable:
    """Profiles by identity; the longest unused one goes when the table is full."""

    def __init__(self) -> None:
        self._profiles: OrderedDict[str, Profile] = OrderedDict()
        self._counters: OrderedDict[str, _Counter] = OrderedDict()

    def __len__(self) -> int:
        return len(self._profiles)

    def get(self, name: str) -> Profile | None:
        return self._profiles.get(name)

    def observe(
        self,
        name: str,
        *,
        instance: str,
        generation: int,
        at_ns: int,
        cpu_us: int | None,
        memory_bytes: int | None,
    ) -> None:
        """One entry of an instance's telemetry. `cpu_us` counts from the start of this
        generation, so the first report of each gives no CPU sample."""
        profile = self._profiles.get(name)
        if profile is None:
            profile = self._profiles[name] = Profile()
            if len(self._profiles) > MAX_PROFILES:
                self._profiles.popitem(last=False)
        self._profiles.move_to_end(name)
        if memory_bytes is not None:
            profile.memory_bytes.add(memory_bytes)
        if cpu_us is None:
            return
        before = self._counters.get(instance)
        self._counters[instance] = _Counter(generation=generation, at_ns=at_ns, cpu_us=cpu_us)
        self._counters.move_to_end(instance)
        if len(self._counters) > MAX_COUNTERS:
            self._counters.popitem(last=False)
        if before is None or before.generation != generation:
            return
        span_ns, used_us = at_ns - before.at_ns, cpu_us - before.cpu_us
        if span_ns > 0 and used_us >= 0:
            profile.cpu_milli.add(used_us * 1_000_000 // span_ns)  # us/ns -> cores/1000

    def forget_instance(self, instance: str) -> None:
        self._counters.pop(instance, None)

    def to_json(self) -> dict[str, object]:
        """The profiles, longest unused first; the CPU counters are not kept over a restart."""
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
        table = cls()
        entries = value.get("profiles") if isinstance(value, Mapping) else None
        for entry in entries[-MAX_PROFILES:] if isinstance(entries, list) else ():
            if isinstance(entry, list) and len(entry) == 3 and isinstance(entry[0], str):
                profile = Profile()
                profile.cpu_milli = Histogram.from_json(entry[1])
                profile.memory_bytes = Histogram.from_json(entry[2])
                table._profiles[entry[0]] = profile
        return table


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceNeed:
    """What one instance asks of the allocator."""

    instance: str
    component: str
    demand: Demand
    constraints: Constraints


def analyze_workload(workload: Workload, profiles: ProfileTable) -> list[InstanceNeed]:
    """One need for each instance, in the order of components and replicas."""
    demands = {c.name: demand_of(c, profiles.get(identity(c))) for c in workload.components}
    groups = _groups(workload.components)
    needs: list[InstanceNeed] = []
    for component in workload.components:
        others = groups[component.name] - {component.name}
        constraints = Constraints(
            workload=workload.name,
            component=component.name,
            arch=component.resources.arch,
            runtimes=runtimes_of(component),
            labels=tuple(sorted(component.placement.labels.items())),
            spread=component.placement.spread,
            together=frozenset(others),
            companions=tuple((name, demands[name]) for name in sorted(others)),
            max_per_cnm=component.placement.max_per_cnm,
        )
        needs.extend(
            InstanceNeed(
                instance=instance_name(workload.name, component.name, index),
                component=component.name,
                demand=demands[component.name],
                constraints=constraints,
            )
            for index in range(component.replicas)
        )
    return needs


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


def _groups(components: Sequence[Component]) -> dict[str, frozenset[str]]:
    """Components that `together` ties to each other, directly or through others."""
    groups = {component.name: frozenset({component.name}) for component in components}
    for component in components:
        for other in component.placement.together:
            joined = groups[component.name] | groups[other]
            for name in joined:
                groups[name] = joined
    return groups
