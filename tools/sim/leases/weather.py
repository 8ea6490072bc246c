"""What one seed draws: clocks, delays, losses, and the faults of the run with their times."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from firmware.board_types import Timing
from tools.sim.leases.clockwork import MS

MODULES: Final = 2
HOLDER: Final = 2  # a fault's module: where the component runs at that time
FAST_NS: Final = MS // 2
MIDDLE_NS: Final = 300 * MS
SLOW_NS: Final = 9_000 * MS  # longer than a lease: a grant this late is for a lease that is over
STALE_NS: Final = 8_000 * MS  # a second copy comes up to so late, after much has changed
HORIZONS_NS: Final = (6_500 * MS, 6_500 * MS, 9_000 * MS, 16_000 * MS)
SPREAD_NS: Final = 3_500 * MS  # from the first fault to the last
FIRST_NS: Final = 300 * MS  # the first comes before this
FAULTS: Final = (
    "cut",
    "cut",
    "mute",
    "deaf",
    "crash",
    "pause",
    "agent_pause",
    "reboot",
    "glitch",
    "brown_out",
    "power_loss",
    "migrate",
    "migrate",
    "exit",
)
STORIES: Final = (  # what hurts most comes in this order
    ("migrate", "reboot"),
    ("migrate", "migrate"),
    ("migrate", "crash"),
    ("migrate", "crash", "migrate"),
    ("migrate", "migrate", "crash", "migrate"),
    ("reboot", "migrate", "reboot"),
    ("reboot", "crash", "migrate"),
    ("cut", "crash"),
    ("crash", "cut"),
    ("agent_pause", "cut"),
    ("cut", "reboot", "migrate", "crash"),
)


@dataclass(frozen=True, slots=True)
class Fault:
    """`span_ns` 0: drawn when it happens."""

    at_ns: int
    what: str
    module: int  # or HOLDER
    span_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Weather:
    """How this run's world behaves."""

    horizon_ns: int
    card_ppm: int
    module_ppm: tuple[int, ...]
    power_fence: tuple[bool, ...]
    beat_ns: int  # heartbeats go out so far apart, more or less
    loss: float
    duplicate: float
    fast: float  # share of messages that take next to no time
    middle: float  # of the others, those that take less than MIDDLE_NS
    worst_stop: float  # share of kills that take all of S
    lazy_ns: int  # the daemon's timers come so late at most
    disk_ns: int  # a commit takes up to this
    disk_refuses: float
    late_grants: float  # share of the grants that take up to SLOW_NS
    power_stuck: float  # share of the power-offs that fail
    faults: tuple[Fault, ...]


def draw(rng: random.Random, timing: Timing, focus: Mapping[str, Any]) -> Weather:
    """One run's weather; extremes are drawn far more often than what lies between. `focus` fixes
    some of it; its faults come a little earlier or later each time."""

    def ppm() -> int:
        rate = timing.clock_rate_ppm
        return rng.choice((rate, -rate, rng.randint(-rate, rate)))

    storm = rng.random()
    story = rng.choice(STORIES) if rng.random() < 0.6 else ()
    names = story or rng.choices(FAULTS, k=rng.choice((1, 1, 2, 2, 3, 5)))
    times = sorted(int(rng.random() ** 2 * SPREAD_NS) for _ in names)
    begin_ns = times[0] - int(rng.random() * FIRST_NS)
    faults = tuple(
        Fault(at_ns - begin_ns, name, rng.choice((0, 1, HOLDER, HOLDER)))
        for at_ns, name in zip(times, names, strict=True)
    )
    weather = Weather(
        horizon_ns=rng.choice(HORIZONS_NS),
        card_ppm=ppm(),
        module_ppm=tuple(ppm() for _ in range(MODULES)),
        power_fence=tuple(rng.random() < 0.4 for _ in range(MODULES)),
        beat_ns=rng.choice((700, 1_300, 2_000)) * MS,
        loss=rng.choice((0.0, 0.0, 0.05, 0.3)) * storm,
        duplicate=rng.choice((0.0, 0.0, 0.5)),
        fast=rng.choice((1.0, 1.0, 0.9, 0.5)),
        middle=rng.choice((0.3, 0.8)),
        worst_stop=rng.choice((0.0, 0.5, 1.0)),
        lazy_ns=rng.choice((5, 300, 3_000)) * MS,
        disk_ns=rng.choice((0, 0, 20, 400)) * MS,
        disk_refuses=rng.choice((0.0, 0.0, 0.1)),
        late_grants=rng.choice((0.0, 0.0, 0.3)),
        power_stuck=rng.choice((0.0, 0.2, 1.0)),
        faults=faults,
    )
    if not focus:
        return weather
    changes = dict(focus)
    changes["faults"] = tuple(
        replace(fault, at_ns=int(fault.at_ns * (0.9 + 0.2 * rng.random())))
        for fault in changes.get("faults", weather.faults)
    )
    return replace(weather, **changes)
