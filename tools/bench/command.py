"""`apf bench [NAME...]`: figures beside their baselines, and beside what must be reached."""

import importlib
from collections.abc import Sequence
from typing import Final

import click

from hal.linux.clock import LinuxClock
from tools.bench.figures import Figure, Goal, Reached
from tools.bench.measure import Bench
from tools.bench.timing import SECOND
from tools.session import ApfCommand, Session

# Each has `run(bench) -> list[Figure]`; imported only when it is asked for.
BENCHES: Final = {
    "codec": "tools.bench.codec",
    "loop": "tools.bench.loop",
    "window": "tools.bench.window",
    "vfio": "tools.bench.vfio",
    "journal": "tools.bench.journal",
    "start": "tools.bench.start",
    "failover": "tools.bench.failover",
    "scale": "tools.bench.scale",
    "resync": "tools.bench.resync",
    "sim": "tools.bench.sim",
    "recovery": "tools.bench.recovery",
    "placement": "tools.bench.placement",
    "openb": "tools.bench.openb_table",
}
_COLUMNS: Final = (
    "name",
    "value",
    "unit",
    "baseline",
    "of",
    "ratio",
    "must",
    "aim",
    "reached",
)
SHOWN_DIGITS: Final = 4


@click.command("bench", cls=ApfCommand)
@click.argument("names", nargs=-1, metavar="[NAME]...", type=click.Choice([*BENCHES]))
@click.option("--quick", is_flag=True, help="Few repetitions: whether it works, not how fast.")
@click.pass_obj
def bench_command(session: Session, names: Sequence[str], quick: bool) -> None:
    """Measure, each figure beside its baseline in the same run.

    \b
    codec     a frame from the line to the state table; construct, struct
    loop      1,000 pipes x 10 messages a second; asyncio
    window    64 KiB to 64 MiB through shared memory and a mapped file; memcpy
    vfio      registers and interrupts of a PCI function; a loop in C (where QEMU's edu is)
    journal   1 and 32 records a commit, and the loop beside it
    start     process start to ready, memory; starts a card in a temporary place
    failover  a CNM is lost, its components run elsewhere; another such card
    scale     a card of 1,000 modules and 4,000 components: start, processor, memory, restart
    sim       simulated time against the processor's, at 32 and 1,000 modules; virtual times
    recovery  crash points of the journal a second, and those that don't recover
    placement one decision of the allocator at three fills; a scan by numpy
    openb     quality of placement on a production trace; first-fit, BestFit, FGD
    resync    frames that a damaged byte of a serial line costs, by dialect; Linux's receiver

    Without a NAME all of them. Ends 0 also when a figure misses what it must reach: a benchmark
    says, it does not judge.
    """
    out = session.out
    bench = Bench(state_dir=lambda: session.places.state, quick=quick, say=out.say)
    clock = LinuxClock()
    figures: list[Figure] = []
    for name in dict.fromkeys(names) or BENCHES:
        out.say(f"bench {name} ...")
        start_ns = clock.now_ns()
        figures += importlib.import_module(BENCHES[name]).run(bench)
        out.say(f"bench {name}: {(clock.now_ns() - start_ns) / SECOND:.1f} s")
    clock.close()
    rows = [_row(figure) for figure in figures]

    def show() -> None:
        out.table(_COLUMNS, rows)
        for figure in figures:
            if figure.value is None:
                out.say(f"{figure.name}: {figure.error}")

    out.data("bench", [figure.to_json() for figure in figures], show)


def _row(figure: Figure) -> list[object]:
    goal = figure.goal
    return [
        figure.name,
        _number(figure.value),
        figure.unit,
        _number(figure.baseline),
        figure.baseline_name,
        _number(figure.ratio),
        _limit(goal, goal.must) if goal else None,
        _limit(goal, goal.aim) if goal else None,
        _words(figure.reached),
    ]


def _number(value: float | None) -> str | None:
    """Few digits, never an exponent."""
    if value is None:
        return None
    text = f"{float(f'{value:.{SHOWN_DIGITS}g}'):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _limit(goal: Goal, value: float) -> str:
    """With an x where the ratio is what counts."""
    sign = "<=" if goal.better == "lower" else ">="
    return f"{sign} {_number(value)}{'x' if goal.judged == 'ratio' else ''}"


def _words(reached: Reached | None) -> str | None:
    if reached is None:
        return None
    return {Reached.AIM: "aim", Reached.MUST: "must", Reached.MISSED: "MISSED"}[reached]
