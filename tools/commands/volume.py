"""`apf volume ls|flush`."""

import click

from tools.output import human_bytes, human_ms
from tools.session import TIMEOUT_S, ApfGroup, Session


@click.group("volume", cls=ApfGroup)
def volume_group() -> None:
    """Volumes: the data of components, kept on the card."""


@volume_group.command("ls")
@click.pass_obj
def volume_ls(session: Session) -> None:
    """Volumes, where they are staged, and how old what the card has is."""
    with session.connect() as client:
        volumes = client.call("volume.list")
    columns = ["name", "size", "files", "age", "on", "instances"]
    rows = [
        [
            item.get("name"),
            human_bytes(item.get("bytes")),
            item.get("files"),
            human_ms(item.get("age_ms")),
            item.get("cnms"),
            item.get("instances"),
        ]
        for item in volumes
    ]
    session.out.data("volume_ls", volumes, lambda: session.out.table(columns, rows))


@volume_group.command("flush")
@click.argument("name")
@click.option(
    "--timeout",
    "timeout_s",
    type=TIMEOUT_S,
    default=120,
    show_default=True,
    help="Seconds to wait.",
)
@click.pass_obj
def volume_flush(session: Session, name: str, timeout_s: int) -> None:
    """Bring what a CNM has changed back to the card, now."""
    with session.connect(timeout_ms=timeout_s * 1000) as client:
        result = client.call("volume.flush", {"name": name})
    session.out.data("volume_flush", result, lambda: session.out.say(f"flushed {name}"))
