"""`apf top`: how full the card is, live."""

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import click

from tools.amounts import amount, bar, share
from tools.client import Client
from tools.keys import waiting_for_quit
from tools.output import cell, is_tty
from tools.session import ApfCommand, Session

if TYPE_CHECKING:
    from rich.console import RenderableType

REFRESH_MS: Final = 1000
ALL_CNMS: Final = 4096
FIXED_LINES: Final = 16  # of a screen: everything but the rows of modules and components
BUSY_PERMILLE: Final = 900


@click.command("top", cls=ApfCommand)
@click.option("--once", is_flag=True, help="One look; then end.")
@click.option("--components", default=10, show_default=True, help="How many of the hottest.")
@click.pass_obj
def top_command(session: Session, once: bool, components: int) -> None:
    """Use, reservation, fragmentation and stranding of each resource; q or Ctrl-C ends it.

    Stranded is what is free on a module where nothing that was asked for of late would fit, because
    something else is exhausted there. Fragmented is the share of what is free that the next
    instance of those kinds can't use where it lies. With --json: one object a second, with --json
    --once one envelope. Where stdout is no terminal it is one look.
    """
    with session.connect() as client:
        if once or (not session.out.as_json and not is_tty(sys.stdout)):
            found = _ask(client, ALL_CNMS, components)
            session.out.data("top", found, lambda: session.out.console().print(_screen(found)))
            return
        try:
            with waiting_for_quit() as wait:
                if session.out.as_json:
                    session.out.line(_ask(client, ALL_CNMS, components))
                    while not wait(REFRESH_MS):
                        session.out.line(_ask(client, ALL_CNMS, components))
                else:
                    _live(session, client, components, wait)
        except KeyboardInterrupt:
            return  # that is how it is ended


def _live(session: Session, client: Client, components: int, wait: Any) -> None:
    from rich.live import Live

    console = session.out.console()

    def look() -> "RenderableType":
        rows = max(4, console.height - FIXED_LINES - components)
        return _screen(_ask(client, rows, components))

    with Live(look(), console=console, screen=True, auto_refresh=False) as live:
        while not wait(REFRESH_MS):
            live.update(look(), refresh=True)


def _ask(client: Client, cnms: int, components: int) -> dict[str, Any]:
    found: dict[str, Any] = client.call("card.top", {"cnms": cnms, "components": components})
    return found


def _screen(found: Mapping[str, Any]) -> "RenderableType":
    from rich.console import Group
    from rich.text import Text

    waits = f", {found['pending']} wait for room" if found["pending"] else ""
    head = f"{found['at']}  {found['cnms_known']} modules, {found['instances']} instances{waits}"
    return Group(
        Text(head),
        Text(),
        _resources(found),
        Text(),
        _cnms(found),
        Text(),
        _components(found),
    )


def _table(*columns: str) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for name in columns:
        table.add_column(name.upper(), no_wrap=True)
    return table


def _resources(found: Mapping[str, Any]) -> "RenderableType":
    table = _table(
        "resource", "total", "reserved", "", "used", "free", "largest", "stranded", "fragmented"
    )
    for row in found["resources"]:
        if not row["total"]:
            continue
        unit, reserved = row["unit"], _permille(row["reserved"], row["total"])
        table.add_row(
            row["resource"],
            amount(row["total"], unit),
            f"{amount(row['reserved'], unit)} ({share(reserved)})",
            _bar(reserved),
            amount(row["used"], unit),
            amount(row["free"], unit),
            amount(row["largest_free"], unit),
            amount(row["stranded"], unit),
            share(row["fragmented_permille"]),
        )
    return table  # type: ignore[no-any-return]


def _cnms(found: Mapping[str, Any]) -> "RenderableType":
    there = [row["resource"] for row in found["resources"] if row["total"]]
    table = _table("cnm", "state", "instances", *there, "stranded", "takes none")
    for row in found["cnms"]:
        lines = {line["resource"]: line for line in row["resources"]}
        stranded = [
            f"{name} {amount(line['stranded'], line['unit'])}"
            for name, line in lines.items()
            if line["stranded"]
        ]
        table.add_row(
            row["id"],
            row["state"],
            str(row["instances"]),
            *(_filled(lines.get(name)) for name in there),
            cell(stranded),
            cell(row["takes_none"]),
        )
    left = found["cnms_known"] - len(found["cnms"])
    if left:
        table.add_row(f"and {left} less full")
    return table  # type: ignore[no-any-return]


def _filled(line: Mapping[str, Any] | None) -> Any:
    """`used / reserved` in percent of what there is."""
    from rich.text import Text

    if line is None or not line["total"]:
        return "-"
    reserved = _permille(line["reserved"], line["total"])
    text = share(reserved)
    if line["used"] is not None:
        text += f", used {share(_permille(line['used'], line['total']))}"
    return Text(text, style="bold" if (reserved or 0) >= BUSY_PERMILLE else "")


def _components(found: Mapping[str, Any]) -> "RenderableType":
    table = _table("component", "instances", "cores", "reserved", "memory", "reserved")
    for row in found["components"]:
        table.add_row(
            f"{row['workload']}/{row['component']}",
            str(row["instances"]),
            amount(row["cpu_milli"], "milli"),
            amount(row["reserved_cpu_milli"], "milli"),
            amount(row["memory_bytes"], "bytes"),
            amount(row["reserved_memory_bytes"], "bytes"),
        )
    return table  # type: ignore[no-any-return]


def _bar(permille: int | None) -> Any:
    from rich.text import Text

    return Text(bar(permille), style="bold" if (permille or 0) >= BUSY_PERMILLE else "")


def _permille(part: int | None, whole: int) -> int | None:
    return None if part is None or not whole else part * 1000 // whole
