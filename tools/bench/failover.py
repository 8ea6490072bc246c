"""`apf bench failover`: a CNM dies with its components; how long until they run elsewhere.

On a real local card, seen from outside: the marks are the card's events (CLOCK_BOOTTIME, to the
millisecond), the end is when the last of them was read here and every component's process is there
for the kernel. All components are on the one CNM that is struck:

    power  SIGKILL of its init: the slot's power is seen to be off, and that is the fence
    hang   SIGSTOP of its init: heartbeats stop, the agent can't answer either; its power is cut
    lease  the line to its management controller is cut: the agent still answers, so that nobody
           cuts its power and only W counts (DESIGN section 4, rules 5 and 9)
"""

import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tools.bench.card import BenchCard, Json, bench_card, kill, live
from tools.bench.figures import (
    COMMANDED_MS,
    DETECTED_BY_EVENT_MS,
    DETECTED_BY_SILENCE_MS,
    LEFT_OUT,
    RUNNING_AGAIN_LEASE_MS,
    RUNNING_AGAIN_POWER_MS,
    Figure,
    Goal,
    Unmeasured,
)
from tools.bench.measure import Bench
from tools.bench.timing import MS

COMPONENTS: Final = 16  # DESIGN section 6
QUICK_COMPONENTS: Final = 3
RUNNING_TIMEOUT_MS: Final = 60_000
GONE_TIMEOUT_MS: Final = 60_000
SUSPECT, FENCING, FENCED = "cnm.suspect", "cnm.fencing", "cnm.fenced"
STAGING, RUNNING = "instance.staging", "instance.running"
OWN_START: Final = "own_start"
_STEPS: Final = ("detected", "fencing", "fenced", "fenced_to_commanded", "running_again")


@dataclass(frozen=True, slots=True, kw_only=True)
class Blow:
    """One way for a CNM to be lost. `strike(card, cnm)` does it; `cnm` as in `cnm ls`."""

    name: str
    strike: Callable[[BenchCard, Json], None]
    detected: Goal
    running_again: Goal


def _kill_init(card: BenchCard, cnm: Json) -> None:
    del card
    kill(int(cnm["init_pid"]), signal.SIGKILL)


def _stop_init(card: BenchCard, cnm: Json) -> None:
    del card
    kill(int(cnm["init_pid"]), signal.SIGSTOP)


def _cut_line(card: BenchCard, cnm: Json) -> None:
    card.fault(int(cnm["slot"]), "mc", cut=True)


POWER: Final = Blow(
    name="power",
    strike=_kill_init,
    detected=DETECTED_BY_EVENT_MS,
    running_again=RUNNING_AGAIN_POWER_MS,
)
HANG: Final = Blow(
    name="hang",
    strike=_stop_init,
    detected=DETECTED_BY_SILENCE_MS,
    running_again=RUNNING_AGAIN_POWER_MS,
)
LEASE: Final = Blow(
    name="lease",
    strike=_cut_line,
    detected=DETECTED_BY_SILENCE_MS,
    running_again=RUNNING_AGAIN_LEASE_MS,
)
BLOWS: Final = (POWER, HANG, LEASE)  # the last one leaves a CNM that can't be used


def run(bench: Bench) -> list[Figure]:
    """All rows; null with the reason from where it went wrong on."""
    found: dict[str, Figure] = {}
    error = ""
    try:
        bench.say("bench failover: a card in a temporary place ...")
        with bench_card(bench.say, compiled=not bench.quick) as card:
            card.wait_leased()
            image = card.import_busybox()
            count = bench.pick(COMPONENTS, QUICK_COMPONENTS)
            for blow in BLOWS[:1] if bench.quick else BLOWS:
                bench.say(f"bench failover: {blow.name}, {count} components of {image} ...")
                for figure in _one(card, blow, image, count, bench.say):
                    found[figure.name] = figure
        error = LEFT_OUT
    except Unmeasured as exc:
        error = str(exc)
    return [found.get(row.name, row) for row in _empty(error)]


def _empty(error: str) -> list[Figure]:
    rows = []
    for blow in BLOWS:
        names = (OWN_START, *_STEPS)
        rows += [Figure(name=_name(blow, name), unit="ms", error=error) for name in names]
    return rows


def _name(blow: Blow, step: str) -> str:
    return f"failover.{blow.name}.{step}"


def _one(
    card: BenchCard, blow: Blow, image: str, count: int, say: Callable[[str], None]
) -> list[Figure]:
    workload = f"bench-{blow.name}"
    victim = str(card.cnms()[0]["id"])
    own_ms = _fill(card, workload, victim, image, count)
    old_pids = [int(row["pid"]) for row in card.instances(workload) if row["pid"]]
    cnm = card.cnm(victim)
    marks = _strike(card, workload, victim, count, lambda: blow.strike(card, cnm))
    left = [pid for pid in old_pids if live([pid])]
    if left:
        say(f"bench failover: {blow.name}: processes {left} of {victim} live on beside the new")
    _check(card, workload, count)
    card.remove(workload, GONE_TIMEOUT_MS)
    if blow is not BLOWS[-1]:
        card.wait_leased()  # the next blow finds the whole card
    values = (
        (OWN_START, own_ms, None),
        ("detected", marks.since(SUSPECT), blow.detected),
        ("fencing", marks.since(FENCING), None),
        ("fenced", marks.since(FENCED), None),
        ("fenced_to_commanded", marks.commanded_ms(), COMMANDED_MS),
        ("running_again", marks.running_ms(), blow.running_again.plus(own_ms)),
    )
    return [
        Figure(
            name=_name(blow, step),
            value=value,
            unit="ms",
            baseline=own_ms if step == "running_again" else None,
            baseline_name=f"{count} starts at submission" if step == "running_again" else None,
            goal=goal,
        )
        for step, value, goal in values
    ]


def _compose(image: str, count: int) -> str:
    """Small components that do nothing but wait."""
    lines = ["services:"]
    for index in range(count):
        lines += [
            f"  c{index:02d}:",
            f"    image: {image}",
            '    command: ["/bin/sleep", "86400"]',
            "    stop_signal: SIGKILL",
            "    deploy: {resources: {reservations: {cpus: '0.05', memory: 16M}}}",
        ]
    return "\n".join(lines) + "\n"


def _fill(card: BenchCard, workload: str, victim: str, image: str, count: int) -> float:
    """All components on one CNM, the others open again; ms from the first command to the last
    component that runs."""
    others = [str(item["id"]) for item in card.cnms() if item["id"] != victim]
    for cnm in others:
        card.call("cnm.drain", {"id": cnm})
    started: list[int] = []
    running: set[str] = set()
    last_ns = 0
    with card.events() as follow:
        card.submit(workload, _compose(image, count))
        for event in follow(card.clock.now_ns() + RUNNING_TIMEOUT_MS * MS):
            if event.code == STAGING:
                started.append(event.mono_ms * MS)
            elif event.code == RUNNING and event.instance:
                running.add(event.instance)
                last_ns = event.seen_ns
            if len(running) == count:
                break
    if len(running) < count:
        raise Unmeasured(f"{len(running)} of {count} components run: {_why(card, workload)}")
    for cnm in others:
        card.call("cnm.undrain", {"id": cnm})
    card.wait_leased()
    wrong = {item["cnm"] for item in card.instances(workload)} - {victim}
    if wrong:
        raise Unmeasured(f"components went to {sorted(wrong)}, which drain, not to {victim}")
    return (last_ns - min(started)) / MS


@dataclass(frozen=True, slots=True, kw_only=True)
class _Marks:
    """When what was seen, in ns of CLOCK_BOOTTIME."""

    struck_ns: int
    at_ns: dict[str, int]
    commanded_ns: dict[str, int]
    running_ns: dict[str, int]

    def since(self, code: str) -> float:
        """ms from the blow to the card's event; it is cut to whole ms, so never below 0."""
        return max(0.0, (self.at_ns[code] - self.struck_ns) / MS)

    def commanded_ms(self) -> float:
        return (max(self.commanded_ns.values()) - self.at_ns[FENCED]) / MS

    def running_ms(self) -> float:
        return (max(self.running_ns.values()) - self.struck_ns) / MS


def _strike(
    card: BenchCard, workload: str, victim: str, count: int, blow: Callable[[], None]
) -> _Marks:
    prefix = f"{workload}/"
    with card.events() as follow:
        struck_ns = card.clock.now_ns()
        marks = _Marks(struck_ns=struck_ns, at_ns={}, commanded_ns={}, running_ns={})
        blow()
        for event in follow(struck_ns + RUNNING_TIMEOUT_MS * MS):
            at_ns = event.mono_ms * MS
            if event.cnm == victim and event.code in (SUSPECT, FENCING, FENCED):
                marks.at_ns.setdefault(event.code, at_ns)
            elif FENCED in marks.at_ns and event.instance and event.instance.startswith(prefix):
                if event.code == STAGING:
                    marks.commanded_ns.setdefault(event.instance, at_ns)
                elif event.code == RUNNING:
                    marks.running_ns[event.instance] = event.seen_ns
            if len(marks.running_ns) == count:
                break
    if len(marks.running_ns) < count or len(marks.commanded_ns) < count:
        raise Unmeasured(
            f"{len(marks.running_ns)} of {count} components run again "
            f"{RUNNING_TIMEOUT_MS // 1000} s after the blow (seen: {sorted(marks.at_ns)}): "
            f"{_why(card, workload)}"
        )
    missing = {SUSPECT, FENCING, FENCED} - marks.at_ns.keys()
    if missing:
        raise Unmeasured(f"the card did not say {sorted(missing)} of {victim}")
    return marks


def _check(card: BenchCard, workload: str, count: int) -> None:
    """What the events said must be so for `ps` and for the kernel."""

    def run_again() -> bool:
        rows = card.instances(workload)
        pids = [int(row["pid"]) for row in rows if row["phase"] == "RUNNING" and row["pid"]]
        return len(pids) == count and live(pids)

    card.until(f"{count} processes of {workload}", RUNNING_TIMEOUT_MS // 4, run_again)


def _why(card: BenchCard, workload: str) -> str:
    """The first component that does not run, and why."""
    for item in card.instances(workload):
        if item["phase"] != "RUNNING":
            return f"{item['instance']} is {item['phase']}: {item['reason'] or item['pending']}"
    return "all run now"
