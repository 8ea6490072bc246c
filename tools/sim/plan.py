"""What one seed draws: a card, how fast its clocks run, what breaks how often, what people ask.

Swarm testing: no two seeds are alike. Most cards are small, now and then one is full; some seeds
are calm, some extreme, some break one class of things only, some everything at once. All is drawn
here, ahead of the run, as a list of steps with a seed of their own each, so that a run with some
of the steps left out does the same in the others (`tools.sim.shrink`).
"""

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import accumulate
from typing import Final

from firmware.board_types import TIMING_LIMITS, Board, Slot, Thresholds, Timing
from hal.ports import FenceKind
from tools.sim.faults import CLASSES, Fault

SECOND: Final = 1_000_000_000
HOUR: Final = 3600 * SECOND
LEASE_PERIODS: Final = 10  # L in heartbeat periods, where the board's own L is too short for P
TELEMETRY_MS: Final = TIMING_LIMITS["telemetry_ms"]
SAFETY_SHARE: Final = 0.75  # of the time: faults; the rest is for coming to rest and being calm
STEPS_MOST: Final = 20_000  # of one seed; at one a second that is more than five hours
BAUDS: Final = (115_200, 460_800, 921_600, 921_600, 3_000_000)
SYNCS_NS: Final = (160_000, 160_000, 160_000, 1_000_000, 5_000_000, 40_000_000)
GAPS_S: Final = {  # mean gap between two faults, and between two requests: (least, most)
    "calm": ((30.0, 120.0), (10.0, 60.0)),
    "usual": ((4.0, 15.0), (3.0, 15.0)),
    "extreme": ((0.5, 2.0), (1.0, 5.0)),
    "one class": ((2.0, 8.0), (3.0, 15.0)),
    "everything": ((2.0, 6.0), (2.0, 10.0)),
    "busy": ((10.0, 60.0), (1.0, 3.0)),
}
ASKED: Final = {  # what people and programs do, and how often beside each other
    "submit": 6.0,
    "remove": 3.0,
    "migrate": 4.0,
    "drain": 1.0,
    "undrain": 1.0,
    "flush": 1.0,
    "write": 5.0,
    "load": 2.0,
    "end": 1.0,
}
SWITCHES: Final = {"off": 1.0, "on": 2.0}  # the same of a module's power, where that is asked
SWITCHED_SHARE: Final = 0.3  # of the seeds: somebody switches modules off and on


class Style(StrEnum):
    """How a seed breaks things."""

    CALM = "calm"
    USUAL = "usual"
    EXTREME = "extreme"
    ONE_CLASS = "one class"
    EVERYTHING = "everything"
    BUSY = "busy"


STYLES: Final = {
    Style.CALM: 2,
    Style.USUAL: 6,
    Style.EXTREME: 3,
    Style.ONE_CLASS: 4,
    Style.EVERYTHING: 3,
    Style.BUSY: 2,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing that happens to the card."""

    number: int  # its place in the plan: its name for whoever replays it
    at_ns: int  # after the start of the safety phases, all of them on end
    what: str  # a fault's id, or a word of ASKED or SWITCHES
    seed: int  # of its own draws


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All that a seed draws ahead of its run."""

    seed: int
    style: Style
    board: Board  # with the slots and the timing of this seed
    fences: Mapping[str, FenceKind]  # by module
    rates_ppm: Mapping[str, int]  # by node: within DESIGN's r
    sync_ns: Mapping[str, int]  # of the card's disk ("card") and the modules'
    baud: int
    names: tuple[str, ...]  # of workloads
    most_replicas: int
    haste: float  # lasting faults last so much of their time, 0 to 1
    rounds_ns: tuple[int, ...]  # how long each safety phase is
    calm_ns: int  # how long the card is left alone, at rest, after each of them
    total_ns: int
    steps: tuple[Step, ...]
    ranked: bool = False  # workloads have priorities, and tenants where the board knows some
    switched: tuple[str | None, ...] = ()  # after each phase, a module that is off for a while


def at_rate(timing: Timing, heartbeat_hz: float) -> Timing:
    """The board's timing at another heartbeat rate: DESIGN section 4, rule 6 holds again.
    Raises ValueError for a rate that no board may have."""
    if not 0.1 <= heartbeat_hz <= 100:  # firmware.board_types, TIMING_LIMITS
        raise ValueError(f"a heartbeat rate of {heartbeat_hz:g} Hz; want 0.1 to 100")
    period_ms = round(1000 / heartbeat_hz)
    return lawful(
        replace(
            timing,
            heartbeat_ms=period_ms,
            telemetry_ms=max(
                TELEMETRY_MS[0],
                min(timing.telemetry_ms * period_ms // timing.heartbeat_ms, TELEMETRY_MS[1]),
            ),
            suspect_ms=max(timing.suspect_ms, 2 * period_ms),
        )
    )


def lawful(timing: Timing) -> Timing:
    """With a lease that both halves of rule 6 allow, and no shorter than the board's own."""
    least_ms = max(timing.lease_min_rounds_ms, timing.lease_min_restart_ms)
    if timing.lease_ms >= least_ms:
        return timing
    return replace(timing, lease_ms=max(least_ms, LEASE_PERIODS * timing.heartbeat_ms))


def draw(
    seed: int, *, board: Board, hours: float, heartbeat_hz: float, faults: Sequence[Fault]
) -> Plan:
    """The plan of a seed; equal arguments give an equal plan.
    Raises ValueError for a time or a rate out of range."""
    if not 0 < hours <= 10_000:
        raise ValueError(f"{hours:g} hours; want more than 0 and at most 10,000")
    rng = random.Random(hashlib.sha256(f"{seed}/plan".encode()).digest())  # noqa: S311  no key
    total_ns = int(hours * HOUR)
    slots = _slots(rng, board)
    modules = [slot.id for slot in slots]
    timing = _timing(rng, at_rate(board.timing, heartbeat_hz))
    style = rng.choices(list(STYLES), list(STYLES.values()))[0]
    safety_ns = int(total_ns * SAFETY_SHARE)
    rounds = rng.choice((1, 1, 2, 3))
    ranked, thresholds, tenants = _ranks(seed, board)
    usable = [fault for fault in faults if fault.fits(board)]
    switches, switched = _switches(seed, safety_ns, rounds, modules)
    return Plan(
        seed=seed,
        ranked=ranked,
        style=style,
        board=replace(board, timing=timing, slots=slots, thresholds=thresholds, tenants=tenants),
        fences=_fences(rng, modules),
        rates_ppm=_rates(rng, modules, timing.clock_rate_ppm),
        sync_ns={name: rng.choice(SYNCS_NS) for name in ("card", *modules)},
        baud=rng.choice(BAUDS),
        names=tuple(f"w{number}" for number in range(rng.randint(1, 4 + len(modules) // 4))),
        most_replicas=rng.choice((1, 2, 4, 4, max(4, len(modules)))),
        haste=rng.choice((1.0, 1.0, 1.0, 0.3, 0.1)),
        rounds_ns=(safety_ns // rounds,) * rounds,
        calm_ns=(total_ns - safety_ns) // 2 // rounds,
        total_ns=total_ns,
        steps=_numbered([*_steps(rng, style, safety_ns, usable), *switches]),
        switched=switched,
    )


def _ranks(seed: int, board: Board) -> tuple[bool, Thresholds, Mapping[str, int] | None]:
    """Whether what is submitted has priorities, how many may be stopped for others, and who shares
    the card by weight. A stream of its own: everything else is drawn as it was without it."""
    rng = random.Random(hashlib.sha256(f"{seed}/ranks".encode()).digest())  # noqa: S311  no key
    if rng.random() < 0.4:
        return False, board.thresholds, board.tenants
    per_hour = rng.choice((0, 1, 8, 40, 40))
    rest_ms = rng.choice((board.thresholds.rest_ms, 15_000))
    room_ms = rng.choice((board.thresholds.room_ms, 1500))
    tenants = rng.choice((None, None, {}, {"acme": 3, "zoo": 2}))
    changed = replace(
        board.thresholds, preemptions_per_hour=per_hour, rest_ms=rest_ms, room_ms=room_ms
    )
    return True, changed, tenants


def _switches(
    seed: int, safety_ns: int, rounds: int, modules: Sequence[str]
) -> tuple[list[tuple[int, str, int]], tuple[str | None, ...]]:
    """The wishes for modules to be off or on, and a module for each calm. A stream of its own, as
    that of `_ranks`."""
    rng = random.Random(hashlib.sha256(f"{seed}/switches".encode()).digest())  # noqa: S311  no key
    if rng.random() >= SWITCHED_SHARE:
        return [], (None,) * rounds
    steps = _stream(rng, safety_ns, rng.uniform(10.0, 120.0), SWITCHES)
    return steps, tuple(rng.choice((None, rng.choice(modules))) for _ in range(rounds))


def _slots(rng: random.Random, board: Board) -> tuple[Slot, ...]:
    """Mostly few of them, any of them; now and then the full board."""
    most = len(board.slots)
    count = rng.choices(
        (1, rng.randint(2, 3), rng.randint(4, 8), rng.randint(9, 16), most),
        (14, 54, 23, 5, 4),
    )[0]
    chosen = rng.sample(range(most), min(count, most))
    return tuple(board.slots[index] for index in sorted(chosen))


def _timing(rng: random.Random, timing: Timing) -> Timing:
    """The board's, or a little different; always lawful."""
    if rng.random() < 0.5:
        return timing
    return lawful(
        replace(
            timing,
            lost_rounds=rng.choice((2, 3, 3, 5)),
            stop_ms=rng.choice((500, 500, 1000)),
            lease_ms=timing.lease_ms * rng.choice((2, 2, 2, 3, 4)) // 2,
            suspect_ms=timing.suspect_ms * rng.choice((1, 1, 2)),
            telemetry_ms=max(timing.telemetry_ms // rng.choice((1, 1, 2, 5)), TELEMETRY_MS[0]),
            off_hold_ms=rng.choice((20, 100, 100, 500)),
        )
    )


def _fences(rng: random.Random, modules: Sequence[str]) -> dict[str, FenceKind]:
    share = rng.choice((0.0, 0.0, 0.5, 1.0))  # of modules whose power can't be switched
    return {name: FenceKind.LEASE if rng.random() < share else FenceKind.POWER for name in modules}


def _rates(rng: random.Random, modules: Sequence[str], most_ppm: int) -> dict[str, int]:
    """True clocks, or oscillators as bad as is granted."""
    if rng.random() < 0.4:
        return {}
    nodes = ["daemon"]
    for name in modules:
        nodes += [f"{name}/init", f"{name}/{name}"]
    return {
        node: rng.choice((-most_ppm, rng.randint(-most_ppm, most_ppm), most_ppm)) for node in nodes
    }


def _steps(
    rng: random.Random, style: Style, safety_ns: int, faults: Sequence[Fault]
) -> list[tuple[int, str, int]]:
    fault_gaps_s, asked_gaps_s = GAPS_S[style]
    return [
        *_stream(rng, safety_ns, rng.uniform(*fault_gaps_s), _faults(rng, style, faults)),
        *_stream(rng, safety_ns, rng.uniform(*asked_gaps_s), _asked(rng)),
    ]


def _numbered(drawn: Sequence[tuple[int, str, int]]) -> tuple[Step, ...]:
    return tuple(
        Step(number=number, at_ns=at_ns, what=what, seed=seed)
        for number, (at_ns, what, seed) in enumerate(sorted(drawn))
    )


def _faults(rng: random.Random, style: Style, faults: Sequence[Fault]) -> dict[str, float]:
    """The faults that this seed knows and how often each comes, beside the others."""
    real = [fault for fault in faults if fault.inject is not None]
    if style is Style.ONE_CLASS:
        letters = [letter for letter in CLASSES if any(f.id[0] == letter for f in real)]
        letter = rng.choice(letters) if letters else ""
        real = [fault for fault in real if fault.id[0] == letter]
    elif style is not Style.EVERYTHING:
        share = rng.choice((0.2, 0.5, 0.8))
        real = [fault for fault in real if rng.random() < share] or real
    return {fault.id: fault.weight * rng.choice((0.2, 1.0, 1.0, 5.0)) for fault in real}


def _asked(rng: random.Random) -> dict[str, float]:
    return {word: weight * rng.choice((0.2, 1.0, 1.0, 3.0)) for word, weight in ASKED.items()}


def _stream(
    rng: random.Random, span_ns: int, gap_s: float, weights: Mapping[str, float]
) -> list[tuple[int, str, int]]:
    """(when, what, seed) at exponential gaps."""
    if not weights:
        return []
    words, upto = list(weights), list(accumulate(weights.values()))
    found: list[tuple[int, str, int]] = []
    at_ns = int(rng.expovariate(1 / gap_s) * SECOND)
    while at_ns < span_ns and len(found) < STEPS_MOST:
        found.append((at_ns, rng.choices(words, cum_weights=upto)[0], rng.getrandbits(48)))
        at_ns += int(rng.expovariate(1 / gap_s) * SECOND)
    return found
