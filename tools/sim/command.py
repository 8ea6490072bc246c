"""`apf sim`: the whole card on virtual time, with everything that can break."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import click

from firmware.board_file import BoardError
from hal.linux.clock import LinuxClock
from tools.errors import BadUsage
from tools.output import Output, is_tty
from tools.session import EXIT_INTERRUPTED, ApfCommand, Session
from tools.sim.crash.command import crash_points as sweep_crash_points
from tools.sim.faults import CLASSES, FAULTS, chosen
from tools.sim.leases.command import prove_leases
from tools.sim.plan import Plan
from tools.sim.pool import run_all
from tools.sim.report import Asked, Report
from tools.sim.run import Outcome, plan_of, run_plan, run_seed
from tools.sim.shrink import Shrunk, shrink

SEEDS_MOST: Final = 10_000_000
SAID_CHARS: Final = 200
SHRUNK_MOST: Final = 3  # violations of one run that are made shorter
SAY_EVERY_NS: Final = 10_000_000_000  # where there is no terminal for a bar
BAR_AFTER_NS: Final = 2_000_000_000


@click.command("sim", cls=ApfCommand)
@click.option("--board", default="mock_32", show_default=True, metavar="NAME|FILE")
@click.option("--seeds", default="1-20", show_default=True, metavar="A-B", help="Which to run.")
@click.option("--hours", type=float, default=0.25, show_default=True, help="Simulated, of each.")
@click.option("--heartbeat-hz", type=float, default=1.0, show_default=True)
@click.option("--faults", default="all", show_default=True, metavar="all|CLASS|ID,...")
@click.option("--trace", type=click.Path(path_type=Path), help="Write --replay's trace here.")
@click.option(
    "--replay",
    type=click.IntRange(0),
    metavar="SEED",
    help="Run this one only, and say it in full.",
)
@click.option("--steps", metavar="N,...|none", help="Of --replay's plan, only these steps.")
@click.option("--shrink/--no-shrink", "shrinks", default=True, help="Make violations shorter.")
@click.option("--list-faults", is_flag=True, help="Print the catalogue, and run nothing.")
@click.option("--crash-points", is_flag=True, help="Cut the journal's power at every write.")
@click.option(
    "--operations",
    type=click.IntRange(1, 100_000),
    default=1000,
    show_default=True,
    help="Of the card's life that --crash-points cuts.",
)
@click.option(
    "--lease-proof",
    type=click.IntRange(1, 1_000_000_000),
    metavar="N",
    help="N runs of both ends' lease rules.",
)
@click.option("--jobs", type=click.IntRange(0, 256), default=0, help="Processes; 0 is one a core.")
@click.pass_obj
def sim_command(
    session: Session,
    board: str,
    seeds: str,
    hours: float,
    heartbeat_hz: float,
    faults: str,
    trace: Path | None,
    replay: int | None,
    steps: str | None,
    shrinks: bool,
    list_faults: bool,
    crash_points: bool,
    operations: int,
    lease_proof: int | None,
    jobs: int,
) -> int:
    """Run the real firmware in a simulated card, under faults, and judge it.

    Each seed draws its own card, clocks, faults and tenants. Ends 1 when an invariant is broken;
    the report has the command that runs that seed again, bit by bit.
    """
    asked_for = {
        "--list-faults": list_faults,
        "--lease-proof": lease_proof is not None,
        "--crash-points": crash_points,
        "--replay": replay is not None,
    }
    if sum(asked_for.values()) > 1:
        words = " and ".join(name for name, given in asked_for.items() if given)
        raise BadUsage("usage", f"{words}: each is a run of its own; give one of them")
    if list_faults:
        _list_faults(session.out)
        return 0
    if lease_proof is not None:
        return _prove(session.out, lease_proof, seeds, jobs)
    if crash_points:
        return _cut(session.out, operations, seeds, jobs)
    if replay is None and (trace is not None or steps is not None):
        raise BadUsage("usage", "--trace and --steps need --replay SEED")
    asked, wanted, only = _read(board, seeds, hours, heartbeat_hz, faults, replay, steps)
    report = Report(asked)
    whole = True
    if replay is not None:
        report.add(_replay(session.out, asked, replay, only, trace))
    else:
        whole = _run(session.out, report, wanted, jobs)
    if shrinks and whole and only is None:
        for outcome in report.violations[:SHRUNK_MOST]:
            _shrink(session.out, report, outcome)
    session.out.data("sim", report.to_json(), lambda: report.show(session.out))
    if not whole:
        return EXIT_INTERRUPTED
    return 1 if report.violations else 0


def _read(
    board: str,
    seeds: str,
    hours: float,
    heartbeat_hz: float,
    faults: str,
    replay: int | None,
    steps: str | None,
) -> tuple[Asked, range, frozenset[int] | None]:
    """The words of the command line. Raises BadUsage."""
    try:
        asked = Asked(
            board=board,
            hours=hours,
            heartbeat_hz=heartbeat_hz,
            words=faults,
            faults=chosen(faults),
        )
        wanted = _seeds(seeds)
        first = wanted.start if replay is None else replay
        _plan(asked, first)  # all that may be wrong with a plan shows in the first one
        only = None if steps is None else _numbers(steps)
    except (ValueError, BoardError) as exc:
        raise BadUsage("usage", str(exc)) from exc
    return asked, wanted, only


def _seeds(text: str) -> range:
    """ "7" or "1-500". Raises ValueError."""
    first, dash, last = text.partition("-")
    if not first.isdecimal() or (dash and not last.isdecimal()):
        raise ValueError(f"--seeds {text!r}; want a number, or A-B such as 1-500")
    found = range(int(first), int(last if dash else first) + 1)
    if not 0 < len(found) <= SEEDS_MOST:
        raise ValueError(f"--seeds {text!r}; want A-B with A at most B, and {SEEDS_MOST} at most")
    return found


def _numbers(text: str) -> frozenset[int]:
    """ "3,17" or "none". Raises ValueError."""
    if text == "none":
        return frozenset()
    words = text.split(",")
    if not all(word.isdecimal() for word in words):
        raise ValueError(f"--steps {text!r}; want numbers with commas between, or none")
    return frozenset(int(word) for word in words)


def _plan(asked: Asked, seed: int) -> Plan:
    return plan_of(
        seed,
        board=asked.board,
        hours=asked.hours,
        heartbeat_hz=asked.heartbeat_hz,
        faults=asked.words,
    )


def _replay(
    out: Output, asked: Asked, seed: int, only: frozenset[int] | None, trace: Path | None
) -> Outcome:
    try:
        outcome = run_seed(
            seed,
            board=asked.board,
            hours=asked.hours,
            heartbeat_hz=asked.heartbeat_hz,
            faults=asked.words,
            only=only,
            trace=trace,
        )
    except OSError as exc:
        raise BadUsage("usage", f"--trace {trace}: {exc.strerror}") from exc
    if outcome.violation is not None:
        out.say(outcome.violation.detail)
    return outcome


def _run(out: Output, report: Report, wanted: Sequence[int], jobs: int) -> bool:
    """False when it was interrupted: the report is of the seeds until then."""
    asked = report.asked
    one = partial(
        run_seed,
        board=asked.board,
        hours=asked.hours,
        heartbeat_hz=asked.heartbeat_hz,
        faults=asked.words,
    )
    clock = LinuxClock()
    try:
        with _progress(out, clock, len(wanted)) as tell:
            for outcome in run_all(wanted, one, clock=clock, jobs=jobs):
                report.add(outcome)
                if outcome.violation is not None:
                    found = outcome.violation
                    first = found.text.split("\n")[0][:SAID_CHARS]
                    out.say(f"seed {outcome.seed}, {found.at_s:.3f} s: {found.invariant}: {first}")
                tell(len(report.outcomes), len(report.violations))
    except KeyboardInterrupt:
        out.say(f"interrupted after {len(report.outcomes)} of {len(wanted)} seeds")
        return False
    finally:
        clock.close()
    return True


def _cut(out: Output, operations: int, seeds: str, jobs: int) -> int:
    """The card's life is that of the first seed."""
    try:
        seed = _seeds(seeds).start
    except ValueError as exc:
        raise BadUsage("usage", str(exc)) from exc
    clock = LinuxClock()
    try:
        with _progress(out, clock, 100, "percent of the writes") as tell:
            return sweep_crash_points(out, operations, seed, jobs, lambda done: tell(done, 0))
    finally:
        clock.close()


def _prove(out: Output, runs: int, seeds: str, jobs: int) -> int:
    """From the first seed on."""
    try:
        first = _seeds(seeds).start
    except ValueError as exc:
        raise BadUsage("usage", str(exc)) from exc
    clock = LinuxClock()
    try:
        with _progress(out, clock, runs, "runs") as tell:
            return prove_leases(out, runs, first, jobs, tell)
    finally:
        clock.close()


def _shrink(out: Output, report: Report, outcome: Outcome) -> None:
    """Fewer steps that break the same, if they can be found."""
    found = outcome.violation
    assert found is not None
    plan = _plan(report.asked, outcome.seed)
    out.say(f"seed {outcome.seed}: looking for fewer steps that break {found.invariant!r} ...")

    def breaks(numbers: frozenset[int]) -> bool:
        again = run_plan(plan, only=numbers).violation
        return again is not None and again.invariant == found.invariant

    shrunk: Shrunk | None = shrink([step.number for step in plan.steps], breaks)
    if shrunk is not None:
        report.shrunk[outcome.seed] = plan, shrunk


@contextmanager
def _progress(
    out: Output, clock: LinuxClock, total: int, what: str = "seeds"
) -> Iterator[Callable[[int, int], None]]:
    """On stderr: a bar on a terminal, else a line now and then; nothing for what is short."""
    began_ns = said_ns = clock.now_ns()
    if is_tty(sys.stderr):
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(file=sys.stderr),
            transient=True,
            auto_refresh=False,  # no thread beside processes that are forked
        )
        task = bar.add_task(what, total=total)

        def show(done: int, broken: int) -> None:
            if clock.now_ns() - began_ns >= BAR_AFTER_NS:
                bar.start()
                words = f"{what}, {broken} violations" if broken else what
                bar.update(task, completed=done, description=words, refresh=True)

        try:
            yield show
        finally:
            bar.stop()
        return

    def say(done: int, broken: int) -> None:
        nonlocal said_ns
        if clock.now_ns() - said_ns >= SAY_EVERY_NS:
            said_ns = clock.now_ns()
            out.say(f"{done} of {total} {what}, {broken} violations")

    yield say


def _list_faults(out: Output) -> None:
    rows = [
        {
            "id": fault.id,
            "class": CLASSES[fault.id[0]],
            "text": fault.text,
            "modelled": fault.inject is not None,
            "not_modelled": fault.not_modelled or None,
        }
        for fault in FAULTS.values()
    ]
    columns = ["id", "class", "what breaks", "not modelled"]
    cells = [[row["id"], row["class"], row["text"], row["not_modelled"]] for row in rows]
    out.data("sim_faults", rows, lambda: out.table(columns, cells))
