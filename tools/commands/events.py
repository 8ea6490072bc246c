"""`apf events`: the card's story, from its bounded ring."""

from typing import Any, Final

import click

from tools.session import ApfCommand, Session

QUIET_MS: Final = 300  # what is in the ring has come when nothing came for so long


@click.command("events", cls=ApfCommand)
@click.option("-f", "--follow", is_flag=True, help="Go on as they happen.")
@click.option("--since", "since_seq", default=0, help="Only events after this number.")
@click.option("--last-crash", is_flag=True, help="What the daemon did before it last crashed.")
@click.pass_obj
def events_command(session: Session, follow: bool, since_seq: int, last_crash: bool) -> None:
    """What has happened on the card. With -f --json: one object a line."""
    if last_crash:
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
    with session.connect() as client:
        crash = client.call("events.last_crash")
    session.out.data("last_crash", crash, lambda: _print_crash(session, crash))


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
