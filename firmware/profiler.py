"""What each component of a workload needs: declared, and corrected by what was measured.

A profile is kept for each component identity (image digest and name, in any workload) from the
telemetry of all its instances: how it learns is in `firmware.profile`, what is made of it in
`firmware.profile_needs`. Profiles outlive the daemon (`firmware.profile_store`); the profiler's
time goes on where the newest of them ended, so that a time in which nobody measured fades nothing.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from firmware.allocator import Constraints, Demand
from firmware.profile import Profile
from firmware.profile_meter import Counters, Meter
from firmware.profile_needs import (
    DEFAULT_CPU_MILLI,
    DEFAULT_MEMORY_BYTES,
    Level,
    by_level,
)
from firmware.workload import (
    HOST_IMAGE,
    Component,
    ProfileChoice,
    RuntimeChoice,
    Workload,
    instance_name,
)

__all__ = [
    "DEFAULT_CPU_MILLI",
    "DEFAULT_MEMORY_BYTES",
    "MAX_PROFILES",
    "InstanceNeed",
    "Level",
    "Profiler",
    "analyze_workload",
    "constraints_of",
    "runtimes_of",
]

MAX_PROFILES: Final = 4096
_NONE: Final[frozenset[str]] = frozenset()
_RUNTIMES: Final = {choice: frozenset({str(choice)}) for choice in RuntimeChoice}
DIGEST_DIGITS: Final = 32  # 128 bits of an image's digest tell images apart


class Profiler:
    """Profiles by identity; the longest unused one goes when the table is full."""

    def __init__(self, digest_of: Callable[[str], str] = lambda _ref: "") -> None:
        """`digest_of(ref)`: the hex digest of what an image reference means now; "" when it means
        nothing, and the reference itself then stands for it."""
        self._digest_of = digest_of
        self._profiles: OrderedDict[str, Profile] = OrderedDict()
        self._shift_ns = 0  # from the clock to the profiler's time

    def __len__(self) -> int:
        return len(self._profiles)

    def items(self) -> Iterator[tuple[str, Profile]]:
        """By identity, longest unused first."""
        yield from self._profiles.items()

    def time_ns(self, now_ns: int) -> int:
        """The profiler's time at this time of the clock."""
        return now_ns + self._shift_ns

    def identity(self, component: Component) -> str:
        """The same image under the same name is expected to behave alike, in any workload."""
        digest = self._digest_of(component.image)[:DIGEST_DIGITS]
        return f"{digest or component.image} {component.name}"

    def profile(self, component: Component) -> Profile | None:
        """None when nothing was measured, or the component wants none."""
        if component.profile is ProfileChoice.OFF:
            return None
        return self._profiles.get(self.identity(component))

    def demand(self, component: Component, level: Level = Level.MEASURED) -> Demand:
        """What the next instance of it reserves, with what was measured as a hint."""
        return by_level(component, self.profile(component))[level]

    def demands(self, component: Component) -> tuple[Demand, Demand, Demand]:
        """By level: the placer takes the first that fits."""
        return by_level(component, self.profile(component))

    # --- learning ---

    def observe(
        self,
        component: Component,
        meter: Meter,
        now_ns: int,
        counters: Counters,
        memory_bytes: int | None,
        reserved_bytes: int,
    ) -> bool:
        """A report of one instance: its counters (see `Meter`), its memory, and what it reserves of
        that (0: not known). True when its next reservation has just been raised."""
        if component.profile is ProfileChoice.OFF:
            return False
        profile = self._used(component)
        meter.read(profile, self.time_ns(now_ns), counters, memory_bytes)
        return memory_bytes is not None and profile.on_peak(memory_bytes, reserved_bytes)

    def ended(self, component: Component, meter: Meter) -> None:
        """The instance that this meter read runs no more."""
        if component.profile is not ProfileChoice.OFF:
            meter.close(self._used(component))

    def on_oom(self, component: Component, reserved_bytes: int) -> None:
        """An instance that reserved this was killed for want of memory."""
        if component.profile is not ProfileChoice.OFF:
            self._used(component).on_oom(reserved_bytes)

    def _used(self, component: Component) -> Profile:
        name = self.identity(component)
        profile = self._profiles.get(name)
        if profile is None:
            profile = self._profiles[name] = Profile(component.image, component.name)
            if len(self._profiles) > MAX_PROFILES:
                self._profiles.popitem(last=False)
        else:
            self._profiles.move_to_end(name)
            profile.image = component.image
        return profile

    # --- over a restart ---

    def load(self, records: Mapping[str, Mapping[str, object]], now_ns: int) -> None:
        """What was written down. Leaves out what it can't use; of too many the newest stay."""
        found = [(name, Profile.from_json(record)) for name, record in records.items()]
        known = [(name, profile) for name, profile in found if profile is not None]
        known.sort(key=lambda item: (item[1].seen_ns, item[0]))
        self._profiles = OrderedDict(known[-MAX_PROFILES:])
        newest_ns = max((profile.seen_ns for profile in self._profiles.values()), default=0)
        self._shift_ns = max(newest_ns - now_ns, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceNeed:
    """What one instance asks of the allocator."""

    instance: str
    component: str
    demand: Demand
    constraints: Constraints


def analyze_workload(
    workload: Workload, profiler: Profiler, level: Level = Level.MEASURED
) -> list[InstanceNeed]:
    """One need for each instance, in the order of components and replicas: what it reserves next,
    or as much of that as `level` says."""
    needs: list[InstanceNeed] = []
    for component in workload.components:
        constraints = constraints_of(workload, component, profiler, level)
        needs.extend(
            InstanceNeed(
                instance=instance_name(workload.name, component.name, index),
                component=component.name,
                demand=profiler.demand(component, level),
                constraints=constraints,
            )
            for index in range(component.replicas)
        )
    return needs


def constraints_of(
    workload: Workload,
    component: Component,
    profiler: Profiler,
    level: Level = Level.MEASURED,
) -> Constraints:
    """Where its instances may go. Components tied by `together` form one group: each member
    joins those that are placed and leaves room for one instance of those that are to come."""
    group = _group_of(workload.components, component.name)
    others = group - {component.name}
    placement = component.placement
    return Constraints(
        workload=workload.name,
        component=component.name,
        arch=component.resources.arch,
        runtimes=runtimes_of(component),
        labels=tuple(sorted(placement.labels.items())),
        spread=placement.spread,
        together=frozenset(others) if others else _NONE,
        companions=tuple(
            (other.name, profiler.demand(other, level))
            for other in workload.components
            if other.name in others
        ),
        group=tuple((c.name, c.replicas) for c in workload.components if c.name in group)
        if others
        else (),
        max_per_cnm=placement.max_per_cnm,
    )


def runtimes_of(component: Component) -> frozenset[str]:
    """`auto` is `oci`, or `process` for the CNM's own root filesystem."""
    if component.runtime is RuntimeChoice.AUTO:
        is_host = component.image == HOST_IMAGE
        return _RUNTIMES[RuntimeChoice.PROCESS if is_host else RuntimeChoice.OCI]
    return _RUNTIMES[component.runtime]


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
