"""`apf top`: how full the card is, live."""

import sys
from collections.abc import Mapping, Sequence
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
MOST_ROWS: Final = 4096  # as the daemon takes it: all modules
FIXED_LINES: Final = 16  # of a screen: everything but the rows of modules and components
BUSY_PERMILLE: Final = 900
WORDS: Final = ("stranded", "takes none")  # columns that may be cut, by `_table`
WORDS_LEAST: Final = 12
GAP: Final = 2  # between columns
KEPT: Final = 2  # columns that are shown on any terminal: what it is, and how it is


@click.command("top", cls=ApfCommand)
@click.option("--once", is_flag=True, help="One look; then end.")
@click.option(
    "--components",
    type=click.IntRange(0, MOST_ROWS),
    default=10,
    show_default=True,
    help="How many of the hottest.",
)
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
            found = _ask(client, MOST_ROWS, components)
            console = session.out.console()
            session.out.data("top", found, lambda: console.print(_screen(found, console.width)))
            return
        try:
            with waiting_for_quit() as wait:
                if session.out.as_json:
                    session.out.line(_ask(client, MOST_ROWS, components))
                    while not wait(REFRESH_MS):
                        session.out.line(_ask(client, MOST_ROWS, components))
                else:
                    _live(session, client, components, wait)
        except KeyboardInterrupt:
            return  # that is how it is ended


def _live(session: Session, client: Client, components: int, wait: Any) -> None:
    from rich.live import Live

    console, tenants = session.out.console(), 0

    def look() -> "RenderableType":
        nonlocal tenants
        rows = max(4, console.height - FIXED_LINES - components - tenants)
        found = _ask(client, rows, components)
        tenants = len(found.get("tenants", ())) + 2 if found.get("tenants") else 0
        return _screen(found, console.width)

    with Live(look(), console=console, screen=True, auto_refresh=False) as live:
        while not wait(REFRESH_MS):
            live.update(look(), refresh=True)


def _ask(client: Client, cnms: int, components: int) -> dict[str, Any]:
    found: dict[str, Any] = client.call("card.top", {"cnms": cnms, "components": components})
    return found


def _screen(found: Mapping[str, Any], width: int) -> "RenderableType":
    from rich.console import Group
    from rich.text import Text

    waits = f", {found['pending']} wait for room" if found["pending"] else ""
    left = found["cnms_known"] - len(found["cnms"])
    head = f"{found['at']}  {found['cnms_known']} modules, {found['instances']} instances{waits}"
    return Group(
        Text(head),
        Text(),
        _resources(found, width),
        Text(),
        _cnms(found, width),
        *((Text(f"and {left} less full"),) if left else ()),
        Text(),
        _components(found, width),
        *((Text(), _tenants(found, width)) if found.get("tenants") else ()),
    )


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]], width: int) -> "RenderableType":
    """As many of the columns, from the left, as `width` has room for without a cut in a name or a
    figure; only the last one may be cut, where it is words."""
    from rich.cells import cell_len
    from rich.table import Table

    widths = [max(cell_len(str(row[at])) for row in [columns, *rows]) for at in range(len(columns))]
    least = [
        min(wide, WORDS_LEAST) if name in WORDS else wide
        for name, wide in zip(columns, widths, strict=True)
    ]
    count = len(columns)
    while count > KEPT and sum(widths[: count - 1]) + least[count - 1] + GAP * (count - 1) > width:
        count -= 1
    table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for at, name in enumerate(columns[:count]):
        needed = least if at == count - 1 else widths
        table.add_column(name.upper(), no_wrap=True, min_width=needed[at])
    for row in rows:
        table.add_row(*row[:count])
    return table


def _resources(found: Mapping[str, Any], width: int) -> "RenderableType":
    columns = ["resource", "total", "reserved", "", "used", "free", "largest", "stranded"]
    rows = []
    for row in found["resources"]:
        if not row["total"]:
            continue
        unit, reserved = row["unit"], _permille(row["reserved"], row["total"])
        rows.append(
            (
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
        )
    return _table([*columns, "fragmented"], rows, width)


def _cnms(found: Mapping[str, Any], width: int) -> "RenderableType":
    there = [row["resource"] for row in found["resources"] if row["total"]]
    rows = []
    for row in found["cnms"]:
        lines = {line["resource"]: line for line in row["resources"]}
        stranded = [
            f"{name} {amount(line['stranded'], line['unit'])}"
            for name, line in lines.items()
            if line["stranded"]
        ]
        rows.append(
            (
                row["id"],
                row["state"],
                str(row["instances"]),
                *(_filled(lines.get(name)) for name in there),
                cell(stranded),
                cell(row["takes_none"]),
            )
        )
    return _table(["cnm", "state", "instances", *there, "stranded", "takes none"], rows, width)


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


def _components(found: Mapping[str, Any], width: int) -> "RenderableType":
    columns = ["component", "instances", "cores", "reserved", "memory", "reserved"]
    rows = [
        (
            f"{row['workload']}/{row['component']}",
            str(row["instances"]),
            amount(row["cpu_milli"], "milli"),
            amount(row["reserved_cpu_milli"], "milli"),
            amount(row["memory_bytes"], "bytes"),
            amount(row["reserved_memory_bytes"], "bytes"),
        )
        for row in found["components"]
    ]
    return _table(columns, rows, width)


def _tenants(found: Mapping[str, Any], width: int) -> "RenderableType":
    columns = ["tenant", "weight", "share", "of", "running", "waiting"]
    rows = [
        (
            row["tenant"] or "(none)",
            str(row["weight"]),
            f"{row['share_percent']} %",
            cell(row["resource"]),
            str(row["running"]),
            str(row["waiting"]),
        )
        for row in found["tenants"]
    ]
    return _table(columns, rows, width)


def _bar(permille: int | None) -> Any:
    from rich.text import Text

    return Text(bar(permille), style="bold" if (permille or 0) >= BUSY_PERMILLE else "")


def _permille(part: int | None, whole: int) -> int | None:
    return None if part is None or not whole else part * 1000 // whole
