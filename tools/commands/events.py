"""`apf events`: the card's story, from its bounded ring."""

from typing import Any, Final

import click

from tools.session import ApfCommand, Session

QUIET_MS: Final = 300  # what is in the ring has come when nothing came for so long


@click.command("events", cls=ApfCommand)
@click.option("-f", "--follow", is_flag=True, help="Go on as they happen.")
@click.option("--since", "since_seq", default=0, help="Only events after this number.")
@click.pass_obj
def events_command(session: Session, follow: bool, since_seq: int) -> None:
    """What has happened on the card. With -f --json: one object a line."""
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


def _text(event: dict[str, Any]) -> str:
    who = " ".join(str(event[key]) for key in ("cnm", "instance") if event.get(key))
    return f"{event['seq']:>6} {event['at']} {event['code']:<24} {who:<24} {event['text']}"
