"""`apf events`: the card's story, from its bounded ring."""

from contextlib import closing
from typing import Any, Final

import click

from tools.errors import BadUsage, DaemonUnreachable
from tools.session import ApfCommand, Session

SEQ_MOST: Final = 1 << 62  # as the daemon takes it
QUIET_MS: Final = 300  # what is in the ring has come when nothing came for so long


@click.command("events", cls=ApfCommand)
@click.option("-f", "--follow", is_flag=True, help="Go on as they happen.")
@click.option(
    "--since",
    "since_seq",
    type=click.IntRange(0, SEQ_MOST),
    default=0,
    help="Only events after this number.",
)
@click.option("--last-crash", is_flag=True, help="What the daemon did before it last crashed.")
@click.pass_obj
def events_command(session: Session, follow: bool, since_seq: int, last_crash: bool) -> None:
    """What has happened on the card. With -f --json: one object a line."""
    if last_crash:
        if follow or since_seq:
            raise BadUsage("usage", "--last-crash is one look: it goes with neither -f nor --since")
        _show_crash(session)
        return
    events: list[dict[str, Any]] = []
    with session.connect() as client:
        result = client.call("events.subscribe", {"since_seq": since_seq})
        next_seq = result.get("next_seq") if isinstance(result, dict) else None
        if not follow and next_seq is not None and next_seq <= since_seq + 1:
            next_seq = 0
        for note in (
            () if next_seq == 0 else client.notifications(timeout_ms=None if follow else QUIET_MS)
        ):
            if note.get("method") != "event":
                continue
            event = note["params"]
            if follow and session.out.as_json:
                session.out.line(event)
            elif session.out.as_json:
                events.append(event)
            else:
                session.out.print(_text(event))
            if not follow and next_seq is not None and event["seq"] + 1 >= next_seq:
                break
    if not follow:
        session.out.data("events", events)


def _show_crash(session: Session) -> None:
    try:
        with session.connect() as client:
            crash = client.call("events.last_crash")
    except DaemonUnreachable as exc:  # that is when one wants to know
        crash = _kept_crash(session, exc)
    session.out.data("last_crash", crash, lambda: _print_crash(session, crash))


def _kept_crash(session: Session, unreachable: DaemonUnreachable) -> dict[str, Any]:
    """The newest dump that a daemon has kept. Raises `unreachable` where no dumps can be read."""
    from firmware.app import CRASHES
    from firmware.crash_store import CrashStore
    from hal.errors import HalError
    from hal.linux.files import LinuxFiles

    folder = session.places.state / CRASHES
    if not folder.is_dir():
        raise unreachable
    try:
        with closing(LinuxFiles(folder)) as files:
            store = CrashStore(files)
            crash, kept = store.last(), store.count()
    except HalError as exc:
        raise unreachable from exc
    if store.error:
        raise unreachable
    session.out.say(
        f"the daemon can't be reached: this is what {folder} holds; a crash since the daemon's "
        "last start is only written there at its next one"
    )
    return (
        {"found": False, "kept": 0}
        if crash is None
        else {"found": True, "kept": kept, **crash.to_json()}
    )


def _print_crash(session: Session, crash: dict[str, Any]) -> None:
    out = session.out
    if not crash["found"]:
        out.print("no crash is known")
        return
    out.print(
        f"process {crash['pid']}, started {crash['started_at']}, found dead {crash['found_at']}: "
        f"{crash['reason']}; {crash['kept']} dumps are kept"
    )
    for entry in crash["entries"]:
        out.print(f"{entry['seq']:>6} {entry['mono_ms']:>12} {entry['kind']:<9} {entry['text']}")
    if crash["stack"]:
        out.print(f"where it was when it was aborted:\n{crash['stack']}")


def _text(event: dict[str, Any]) -> str:
    who = " ".join(str(event[key]) for key in ("cnm", "instance") if event.get(key))
    return f"{event['seq']:>6} {event['at']} {event['code']:<24} {who:<24} {event['text']}"
