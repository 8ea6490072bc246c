"""Profiles for people: `apf profile ls` and `apf profile show` (INTERFACES.md, "JSON").

A row is one component of a workload with what was measured of it, or a profile that no workload
uses now. Units are in the names of the resources; null is "not measured", "not asked for", "no
limit" or "nothing runs", by the key.
"""

from collections.abc import Iterator
from typing import Any, Final

from firmware.decisions import Decisions
from firmware.loop import MS, Loop
from firmware.placer import Placer
from firmware.profile import CPU, LINK, MEMORY, RESOURCES, Profile
from firmware.profile_needs import KBIT
from firmware.profiler import Profiler
from firmware.workload import Component, instance_name

ASKED_BY_DIGEST: Final = 6  # digits of a digest that are enough to ask for it


class ProfileViews:
    """Reads only. Loop thread only."""

    def __init__(
        self, loop: Loop, decisions: Decisions, placer: Placer, profiler: Profiler
    ) -> None:
        self._loop = loop
        self._decisions = decisions
        self._placer = placer
        self._profiler = profiler

    def rows(self) -> list[dict[str, Any]]:
        """`profile.list`: by workload and component, those without a workload last."""
        return [row for _profile, row in self._rows()]

    def show(self, wanted: str) -> list[dict[str, Any]]:
        """`profile.show`: the rows that are meant by "workload/component", a component's name, or
        the begin of an image's digest, each with the bins of its histograms; [] for none."""
        found = []
        for profile, row in self._rows():
            names = {row["component"], f"{row['workload']}/{row['component']}"}
            by_digest = len(wanted) >= ASKED_BY_DIGEST and row["digest"].startswith(wanted)
            if wanted in names or by_digest:
                found.append({**row, "bins": _bins(profile)})
        return found

    def _rows(self) -> Iterator[tuple[Profile | None, dict[str, Any]]]:
        profiles = dict(self._profiler.items())
        used: set[str] = set()
        for name in sorted(self._decisions.workloads):
            for component in self._decisions.workloads[name].workload.components:
                identity = self._profiler.identity(component)
                used.add(identity)
                profile = self._profiler.profile(component)
                yield profile, self._row(identity, profile, name, component)
        for identity in sorted(profiles.keys() - used):
            yield profiles[identity], self._row(identity, profiles[identity], None, None)

    def _row(
        self,
        identity: str,
        profile: Profile | None,
        workload: str | None,
        component: Component | None,
    ) -> dict[str, Any]:
        digest, _space, name = identity.rpartition(" ")
        image = component.image if component else profile.image if profile else ""
        age_ms = None
        if profile is not None:
            now_ns = self._profiler.time_ns(self._loop.now_ns())
            age_ms = max(now_ns - profile.seen_ns, 0) // MS
        return {
            "workload": workload,
            "component": name,
            "image": image,
            "digest": "" if digest == image else digest,
            "profile": component.profile.value if component else None,
            "samples": profile.windows if profile else 0,
            "age_ms": age_ms,
            "measured_ms": profile.covered_ns // MS if profile else 0,
            "confidence_ms": profile.confidence_s * 1000 if profile else 0,
            "ooms": profile.ooms if profile else 0,
            "memory_floor_bytes": (profile.floor_bytes or None) if profile else None,
            "resources": self._resources(profile, workload, component),
        }

    def _resources(
        self, profile: Profile | None, workload: str | None, component: Component | None
    ) -> dict[str, dict[str, int | None]]:
        asked: list[int | None] = [None] * len(RESOURCES)
        limits, next_ones, reserved = list(asked), list(asked), list(asked)
        if component is not None:
            wants = component.resources
            asked[CPU] = wants.cpu_milli or wants.cpu_limit_milli or None
            asked[MEMORY] = wants.memory_bytes or wants.memory_limit_bytes or None
            asked[LINK] = wants.link_mbit * KBIT or None
            limits[CPU] = wants.cpu_limit_milli or None
            limits[MEMORY] = wants.memory_limit_bytes or None
            demand = self._profiler.demand(component)
            next_ones[CPU], next_ones[MEMORY] = demand.cpu_milli, demand.memory_bytes
            next_ones[LINK] = demand.link_mbit * KBIT or None
            held = self._held(workload, component)
            reserved[CPU] = max((demand.cpu_milli for demand in held), default=None)
            reserved[MEMORY] = max((demand.memory_bytes for demand in held), default=None)
            reserved[LINK] = max((demand.link_mbit * KBIT for demand in held), default=0) or None
        return {
            resource.name: {
                "declared": asked[index],
                "limit": limits[index],
                "reserved": reserved[index],
                "next": next_ones[index],
                **_measured(profile, index),
            }
            for index, resource in enumerate(RESOURCES)
        }

    def _held(self, workload: str | None, component: Component) -> list[Any]:
        holds = (
            self._placer.state.hold_of(instance_name(workload or "", component.name, index))
            for index in range(component.replicas)
        )
        return [hold.demand for hold in holds if hold is not None]


def _measured(profile: Profile | None, index: int) -> dict[str, int | None]:
    if profile is None or not profile.usage[index].total:
        return dict.fromkeys(("p50", "p90", "peak", "lower", "upper"))
    return {
        "p50": profile.percentile(index, 50),
        "p90": profile.percentile(index, 90),
        "peak": profile.peak(index),
        "lower": profile.lower(index),
        "upper": profile.upper(index),
    }


def _bins(profile: Profile | None) -> dict[str, list[dict[str, int]]]:
    """By resource: what share of the weight lies between two values, both inclusive."""
    found: dict[str, list[dict[str, int]]] = {}
    for index, resource in enumerate(RESOURCES):
        shares = profile.usage[index].shares() if profile is not None else []
        found[resource.name] = [
            {"low": low * resource.step, "high": high * resource.step, "ppm": ppm}
            for low, high, ppm in shares
        ]
    return found
