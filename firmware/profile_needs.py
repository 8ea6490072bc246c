"""From what a component declares, and what it was measured to use, to what it reserves next.

What is declared is the law, and measured use corrects it:

- a reservation is never above the limit of the same resource;
- what was asked for is raised when the measured use shows it to be too small, and never lowered,
  unless the component says so by `x-apf: profile: on`. "Asked for" is a reservation, or else a
  limit; a component that asked for neither has only our own default, which may go both ways;
- `x-apf: profile: off` is what was declared, and nothing is measured;
- the link and NVMe are corrected where something of them was asked for. What nobody asked for is
  measured and shown, and not invented: few modules say what they have of it;
- the disk's bytes and the accelerators are not measured: as declared.

Between "too small" (`Profile.lower`) and "more than it needs" (`Profile.upper`) what was declared
stands: little evidence changes little.

A correction steers where a component goes, and must not make it unplaceable. So there are three
levels, and the placer takes the first that finds a module:

1. MEASURED: all corrections;
2. MEMORY: of the upward corrections only that of memory. Too little processor time or bandwidth is
   slow, and the limits and the rebalancer see to it; too little memory kills;
3. DECLARED: the law alone; for a memory need that no module of this card has even when empty.
"""

from dataclasses import replace
from enum import IntEnum
from typing import Final

from firmware.allocator import AcceleratorDemand, Demand
from firmware.profile import CPU, LINK, MEMORY, NVME, Profile
from firmware.workload import Component, ProfileChoice

DEFAULT_CPU_MILLI: Final = 50  # of a component that declares nothing: it still takes room
DEFAULT_MEMORY_BYTES: Final = 32 << 20
LEAST_CPU_MILLI: Final = 10  # no reservation is lowered below this
LEAST_MEMORY_BYTES: Final = 8 << 20
KBIT: Final = 1000  # of a Mbit


class Level(IntEnum):
    """How much of the measured use is reserved."""

    MEASURED = 0
    MEMORY = 1
    DECLARED = 2


def declared(component: Component) -> Demand:
    """Reservation, else limit, else default: the law."""
    wants = component.resources
    return Demand(
        cpu_milli=wants.cpu_milli or wants.cpu_limit_milli or DEFAULT_CPU_MILLI,
        memory_bytes=wants.memory_bytes or wants.memory_limit_bytes or DEFAULT_MEMORY_BYTES,
        nvme_bytes=wants.nvme_bytes,
        link_mbit=wants.link_mbit,
        nvme_mbit=wants.nvme_mbit,
        window_slots=wants.window_slots,
        accelerators=tuple(
            AcceleratorDemand(kind=a.kind, model=a.model, count=a.count, milli=a.milli)
            for a in wants.accelerators
        ),
    )


def by_level(component: Component, profile: Profile | None) -> tuple[Demand, Demand, Demand]:
    """What an instance reserves at each level, with what was measured as a hint."""
    law = declared(component)
    if profile is None or component.profile is ProfileChoice.OFF:
        return law, law, law
    wants = component.resources
    may_lower = component.profile is ProfileChoice.ON
    law = replace(
        law,
        hint_cpu_milli=_within(profile.hint(CPU), wants.cpu_limit_milli),
        hint_memory_bytes=_within(profile.hint(MEMORY), wants.memory_limit_bytes),
    )
    memory = _correct(
        profile,
        MEMORY,
        law.memory_bytes,
        limit=wants.memory_limit_bytes,
        least=LEAST_MEMORY_BYTES,
        may_lower=may_lower or not (wants.memory_bytes or wants.memory_limit_bytes),
    )
    cpu = _correct(
        profile,
        CPU,
        law.cpu_milli,
        limit=wants.cpu_limit_milli,
        least=LEAST_CPU_MILLI,
        may_lower=may_lower or not (wants.cpu_milli or wants.cpu_limit_milli),
    )
    measured = replace(
        law,
        cpu_milli=cpu,
        memory_bytes=memory,
        link_mbit=_bandwidth(profile, LINK, law.link_mbit, may_lower=may_lower),
        nvme_mbit=_bandwidth(profile, NVME, law.nvme_mbit, may_lower=may_lower),
    )
    fewer = replace(
        measured,
        cpu_milli=min(measured.cpu_milli, law.cpu_milli),
        link_mbit=min(measured.link_mbit, law.link_mbit),
        nvme_mbit=min(measured.nvme_mbit, law.nvme_mbit),
    )
    return (law if measured == law else measured), (law if fewer == law else fewer), law


def _bandwidth(profile: Profile, index: int, asked_mbit: int, *, may_lower: bool) -> int:
    """Mbit/s, rounded up; 0 where nobody asked for it."""
    if not asked_mbit:
        return 0
    kbit = _correct(profile, index, asked_mbit * KBIT, limit=0, least=KBIT, may_lower=may_lower)
    return -(-kbit // KBIT)


def _correct(
    profile: Profile, index: int, value: int, *, limit: int, least: int, may_lower: bool
) -> int:
    low = profile.lower(index)
    if low > value:
        return _within(low, limit)
    high = profile.upper(index)
    if may_lower and high is not None:
        value = min(value, max(high, low, least))
    return _within(value, limit)


def _within(value: int, limit: int) -> int:
    return min(value, limit) if limit else value
