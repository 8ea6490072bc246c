"""`apf demo`: the options, the places, and the end."""

import secrets
import signal
from pathlib import Path
from types import FrameType
from typing import Final

import click

from firmware.board import BoardError, load_board
from firmware.board_types import Board
from hal.linux.clock import LinuxClock
from tools.demo.apf import Apf
from tools.demo.breaking import Break, Breaker, compose_env
from tools.demo.context import Context
from tools.demo.mode import Mode, cores, find_mode, os_name
from tools.demo.places import DemoPlaces, card_cgroup, clear, leftovers, make_places, remove
from tools.demo.report import Progress, StepResult, show, verdict
from tools.demo.runner import run_steps
from tools.demo.steps import STEPS
from tools.demo.steps.transfer import BULK_BYTES, LINES
from tools.demo.waits import MS, POLL_MS, pause
from tools.errors import BadUsage
from tools.session import ApfCommand, Session

PATIENCE_MS: Final = 45_000
PATIENCE_BROKEN_MS: Final = 15_000  # what is broken on purpose need not be waited for so long
DOWN_TIMEOUT_MS: Final = 40_000
MILD_BURN: Final = "seq 1 5000 >/dev/null; sleep 0.05"  # where no cgroup holds it back
MOUNTED: Final = "/srv"


class _Ended(KeyboardInterrupt):
    """SIGTERM: cleaned up like an interrupt."""


@click.command("demo", cls=ApfCommand)
@click.option("--board", default="local", show_default=True, help="A local board: name or file.")
@click.option(
    "--break",
    "fault",
    type=click.Choice([item.value for item in Break if item is not Break.NONE]),
    help="Break this on purpose: the demo must then fail.",
)
@click.option("--keep", is_flag=True, help="Leave the card up and its places there.")
@click.pass_obj
def demo_command(session: Session, board: str, fault: str | None, keep: bool) -> int:
    """Do the main job from end to end, in places of its own, and prove each step from outside.

    Discover, place, deploy, move data, monitor, migrate under load, fail over, drain, remove. Ends
    with 0 only if every step held; with 1, naming the first one that did not and what was seen.
    """
    signal.signal(signal.SIGTERM, _on_sigterm)
    demo = make_places()
    clock = LinuxClock()
    context: Context | None = None
    results: list[StepResult] = []
    try:
        context = _context(session, demo, clock, board, Break(fault or Break.NONE.value))
        progress = Progress(len(STEPS))
        context.say = progress.say
        progress.say(f"{os_name()}, {cores()} processors; {_words(context.mode)}; {demo.top}")
        timer = context.timer()
        breaker = Breaker(Break(fault or Break.NONE.value))
        results = run_steps(STEPS, context, breaker, progress)
        good, words = verdict(results, len(STEPS), timer.ms)
    finally:
        resists = [] if keep else _clean(demo, context, clock)
        clock.close()
    if resists:
        good, words = False, f"{words}; left behind: {', '.join(resists[:6])}"
    show(session.out, results, words)
    if keep:
        session.out.say(f"kept: export APF_RUN={demo.run} APF_STATE={demo.state}")
    return 0 if good else 1


def _context(
    session: Session, demo: DemoPlaces, clock: LinuxClock, board: str, fault: Break
) -> Context:
    mode = find_mode()
    token = secrets.token_hex(8)
    data = demo.top / "data"
    data.mkdir()
    where = MOUNTED if mode.root else str(data)
    variables = {
        "DEMO_IMAGE": mode.image,
        "DEMO_TOKEN": token,
        "DEMO_DATA": where,
        "DEMO_BULK_BYTES": str(BULK_BYTES),
        "DEMO_LINES": str(LINES),
        **({} if mode.root else {"DEMO_BURN": MILD_BURN}),
        **compose_env(fault),
    }
    return Context(
        demo=demo,
        apf=Apf(demo.places, demo.env(variables), clock),
        clock=clock,
        board=_board(board, demo),
        board_source=str(Path(board).absolute()) if Path(board).is_file() else board,
        mode=mode,
        token=token,
        patience_ms=PATIENCE_MS if fault is Break.NONE else PATIENCE_BROKEN_MS,
        data=where,
        say=session.out.say,
    )


def _board(source: str, demo: DemoPlaces) -> Board:
    try:
        board = load_board(source, run_dir=demo.run)
    except BoardError as exc:
        raise BadUsage("bad_board", str(exc)) from exc
    if board.kind != "local":
        raise BadUsage(
            "not_local",
            f"board {board.name} is of kind {board.kind}: the demo looks at real processes, so "
            "it needs one of kind local",
        )
    return board


def _words(mode: Mode) -> str:
    if mode.containers:
        return "containers by runc"
    return f"processes, no containers ({mode.why})"


def _clean(demo: DemoPlaces, context: Context | None, clock: LinuxClock) -> list[str]:
    """Everything that this run made goes; what resists."""
    cgroup = card_cgroup(demo.run) or ""
    if context is not None and leftovers(demo, cgroup):
        deadline_ns = clock.now_ns() + DOWN_TIMEOUT_MS * MS
        with context.apf.begin("down") as command:
            while not command.done() and clock.now_ns() < deadline_ns:
                pause(clock, POLL_MS)
    resists = clear(demo, cgroup, clock)
    remove(demo)
    return resists


def _on_sigterm(_number: int, _frame: FrameType | None) -> None:
    raise _Ended
