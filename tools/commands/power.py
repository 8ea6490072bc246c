"""`apf up`, `apf down`, `apf status`."""

from pathlib import Path

import click

from tools.errors import BadUsage, DaemonRefused
from tools.output import cell, human_ms
from tools.session import TIMEOUT_S, ApfCommand, Session


@click.command("up", cls=ApfCommand)
@click.option("--board", default="local", show_default=True, help="A board's name or file.")
@click.option("--foreground", is_flag=True, help="Stay; end with the daemon.")
@click.option(
    "--timeout", "timeout_s", type=TIMEOUT_S, default=30, show_default=True, help="Seconds to wait."
)
@click.option(
    "--record",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The daemon writes every call on a port there, as JSON lines.",
)
@click.pass_obj
def up_command(
    session: Session, board: str, foreground: bool, timeout_s: int, record: Path | None
) -> None:
    """Start keeper and daemon, and wait until they are ready.

    Up already with the same board is a success; with another board it is refused (3). Up, but
    with a supervisor that has died, it gets another one, which replaces the daemon.
    """
    from firmware.board import BoardError, check_board
    from tools.daemon import start_daemon, status_or_none, unsupervised

    places = session.places
    try:
        wanted = check_board(board, run_dir=places.run)
    except BoardError as exc:
        data = {"file": exc.file, "line": exc.line, "key": exc.key}
        raise BadUsage("bad_board", str(exc), data) from exc
    status = status_or_none(places)
    if status is not None:
        _check_same(status, wanted.name)
    if status is not None and not unsupervised(places, status):
        if record is not None:
            raise DaemonRefused(
                "already_up", "the card is up, and records only from its start: `apf down` first"
            )
        session.out.say(f"already up with board {wanted.name} (pid {status.get('daemon_pid')})")
    else:
        former_pid = None if status is None else status.get("daemon_pid")
        if status is not None:
            session.out.say(f"nobody supervises the daemon (pid {former_pid}): it is replaced")
        status = start_daemon(
            places,
            board,
            foreground=foreground,
            timeout_ms=timeout_s * 1000,
            say=session.out.say,
            former_pid=former_pid,
            record=record,
        )
        if foreground:
            return
    session.out.data("status", status, lambda: _show(session, status))


def _check_same(status: dict[str, object], board: str) -> None:
    running = status.get("board")
    name = running.get("name") if isinstance(running, dict) else running
    if name != board:
        raise DaemonRefused(
            "other_board",
            f"the card is up with board {cell(name)}, not {board}: `apf down` first",
            {"running": name, "wanted": board},
        )


@click.command("down", cls=ApfCommand)
@click.option(
    "--timeout", "timeout_s", type=TIMEOUT_S, default=30, show_default=True, help="Seconds to wait."
)
@click.pass_obj
def down_command(session: Session, timeout_s: int) -> None:
    """Stop daemon and keeper, and with them the CNMs of the local board.

    Also works when the daemon is dead. Not being up is a success.
    """
    from tools.daemon import stop_daemon

    stopped = stop_daemon(session.places, timeout_ms=timeout_s * 1000)
    if not stopped:
        session.out.say("it was not up")
    session.out.data("down", {"stopped": stopped})


@click.command("status", cls=ApfCommand)
@click.pass_obj
def status_command(session: Session) -> None:
    """The daemon: pids, epoch, board, journal, counters."""
    with session.connect() as client:
        status = client.call("status")
    session.out.data("status", status, lambda: _show(session, status))


def _show(session: Session, status: dict[str, object]) -> None:
    shown = {
        key.removesuffix("_ms") if key.endswith("_ms") else key: human_ms(value)
        if key.endswith("_ms") and isinstance(value, int)
        else value
        for key, value in status.items()
    }
    session.out.fields(shown)
