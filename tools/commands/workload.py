"""`apf ps`, `apf logs`, `apf rm`, `apf migrate`."""

import base64
import sys
from contextlib import closing
from typing import Any, Final

import click

from hal.linux.clock import LinuxClock
from tools.client import Client
from tools.output import human_ms
from tools.session import TIMEOUT_S, ApfCommand, Session, not_empty
from tools.waiting import wait_until_gone

LOG_READ_BYTES: Final = 256 << 10  # of one call; base64 of it stays below a MiB
FOLLOW_POLL_MS: Final = 250
OFFSET_MOST: Final = 1 << 62  # as the daemon takes it


@click.command("ps", cls=ApfCommand)
@click.argument("workload", required=False)
@click.pass_obj
def ps_command(session: Session, workload: str | None) -> None:
    """Instances: where they are, their phase, and why they wait."""
    with session.connect() as client:
        instances = client.call("workload.ps", {"workload": workload} if workload else {})
    columns = ["instance", "phase", "cnm", "gen", "runtime", "pid", "restarts", "reason"]
    rows = [_row(item) for item in instances]
    session.out.data("ps", instances, lambda: session.out.table(columns, rows))


def _row(item: dict[str, Any]) -> list[object]:
    pending = item.get("pending") or {}
    reason = item.get("reason") or "; ".join(f"{cnm}: {why}" for cnm, why in pending.items())
    keys = ("instance", "phase", "cnm", "generation", "runtime", "pid", "restarts")
    return [*(item.get(key) for key in keys), reason or None]


@click.command("logs", cls=ApfCommand)
@click.argument("instance")
@click.option("-f", "--follow", is_flag=True, help="Go on until the instance has ended.")
@click.option(
    "--offset", type=click.IntRange(0, OFFSET_MOST), default=0, help="First byte to show."
)
@click.pass_obj
def logs_command(session: Session, instance: str, follow: bool, offset: int) -> None:
    """What an instance has written to stdout and stderr.

    Bytes that the CNM no longer keeps show as a gap on stderr. With --json: one envelope with
    the text; with --json -f one object a line.
    """
    chunks: list[bytes] = []
    first: int | None = None
    gaps: list[dict[str, int]] = []
    with session.connect() as client, closing(LinuxClock()) as clock:
        while True:
            part = _read(client, instance, offset)
            data = base64.b64decode(part["data_base64"])
            start = int(part["start"])
            if start > offset:
                gaps.append({"from": offset, "to": start})
                session.out.say(f"apf: bytes {offset} to {start} are no longer kept")
            first = start if first is None else first
            offset = start + len(data)
            if not session.out.as_json:
                sys.stdout.buffer.write(data)
                sys.stdout.flush()
            elif follow and data:
                text = data.decode(errors="replace")
                session.out.line({"instance": instance, "start": start, "text": text})
            else:
                chunks.append(data)
            if data:
                continue
            if not follow or part.get("ended"):
                break
            clock.wait(clock.now_ns() + FOLLOW_POLL_MS * 1_000_000)
    if session.out.as_json and not follow:
        text = b"".join(chunks).decode(errors="replace")
        log = {"instance": instance, "start": first, "end": offset, "text": text, "gaps": gaps}
        session.out.data("logs", log)


def _read(client: Client, instance: str, offset: int) -> dict[str, Any]:
    params = {"instance": instance, "offset": offset, "max_bytes": LOG_READ_BYTES}
    part: dict[str, Any] = client.call("instance.logs", params)
    return part


@click.command("rm", cls=ApfCommand)
@click.argument("workload")
@click.option("--wait", is_flag=True, help="Until nothing of it is left and its name is free.")
@click.option(
    "--timeout", "timeout_s", type=TIMEOUT_S, default=60, show_default=True, help="Seconds to wait."
)
@click.pass_obj
def rm_command(session: Session, workload: str, wait: bool, timeout_s: int) -> None:
    """Stop and remove a workload. Its volumes stay on the card."""
    with session.connect() as client:
        result = client.call("workload.remove", {"name": workload})
        if wait:
            took_ms = wait_until_gone(client, workload, timeout_ms=timeout_s * 1000)
            session.out.say(f"{workload} is gone after {human_ms(took_ms)}")
    word = "removed" if wait else "removing"
    session.out.data("rm", result, lambda: session.out.say(f"{word} {workload}"))


@click.command("migrate", cls=ApfCommand)
@click.argument("instance")
@click.option(
    "--to", "target", metavar="CNM", callback=not_empty, help="Where to; the best one without it."
)
@click.pass_obj
def migrate_command(session: Session, instance: str, target: str | None) -> None:
    """Move an instance to another CNM."""
    params = {"instance": instance, **({"to": target} if target else {})}
    with session.connect() as client:
        result = client.call("instance.migrate", params)
    session.out.data("migrate", result, lambda: session.out.say(f"moving {instance}"))
