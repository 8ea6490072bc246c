"""`apf heatmap`: modules x resources over time, as a picture."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import click

from tools.client import Client
from tools.compose.units import UnitError, parse_duration_ms
from tools.errors import BadUsage, CheckFailed
from tools.output import human_ms
from tools.plots import FORMATS, Panel, draw_heatmap, step_words
from tools.session import ApfCommand, Session

MOST_MS: Final = 86_400_000  # the card remembers a day
TITLES: Final[Mapping[str, str]] = {
    "accelerators": "accelerators, reserved",
    "cpu_used": "cpu, measured use",
    "memory_used": "memory, measured use",
    "nvme_bandwidth": "NVMe bandwidth, reserved",
    "nvme": "NVMe, reserved",
    "windows": "window slots, reserved",
}


@click.command("heatmap", cls=ApfCommand)
@click.option("--since", default="1h", show_default=True, help="How far back: 10m, 1h, at most 1d.")
@click.option("--series", "wanted", multiple=True, help="Only this one (cpu, memory_used, ...).")
@click.option("-o", "--output", "file", type=click.Path(), help="FILE.png or FILE.svg.")
@click.pass_obj
def heatmap_command(session: Session, since: str, wanted: Sequence[str], file: str | None) -> None:
    """Draw how full each module was: reserved and measured, in percent of what it has.

    The card keeps 10 minutes in steps of 10 s, an hour in minutes and a day in quarters of an hour,
    since its daemon started. With --json the numbers, in thousandths; then -o may be left out.
    Drawing needs matplotlib: pip install 'adaptive-peripheral-fabric[plot]'.
    """
    path = _path(file, as_json=session.out.as_json)
    since_ms = _since_ms(since)
    with session.connect() as client:
        history = _read(client, since_ms)
    known = history["series"]
    for name in wanted:
        if name not in known:
            raise BadUsage("unknown_series", f"no series {name!r}; there are {', '.join(known)}")
    history["series"] = list(wanted) or known
    for row in history["cnms"]:
        row["permille"] = {name: row["permille"][name] for name in history["series"]}
    if path is not None:
        _draw(path, history)
    data = {**history, "file": None if path is None else str(path)}
    words = f"{path}: {len(history['cnms'])} modules, {human_ms(_span_ms(history))}"
    session.out.data("heatmap", data, lambda: session.out.say(words))


def _path(file: str | None, *, as_json: bool) -> Path | None:
    if file is None:
        if as_json:
            return None
        raise BadUsage("no_file", "where to? -o FILE.png or -o FILE.svg (or --json)")
    path = Path(file)
    if path.suffix not in FORMATS:
        raise BadUsage(
            "unknown_format", f"{file}: wanted a name that ends in {' or '.join(FORMATS)}"
        )
    return path


def _since_ms(text: str) -> int:
    try:
        since_ms = parse_duration_ms(text)
    except UnitError as exc:
        raise BadUsage("bad_duration", f"--since: {exc}") from exc
    if not 0 < since_ms <= MOST_MS:
        raise BadUsage("bad_duration", f"--since: wanted more than 0 and at most 1d, found {text}")
    return since_ms


def _read(client: Client, since_ms: int) -> dict[str, Any]:
    """All pages, with the columns of the first."""
    found: dict[str, Any] = client.call("card.history", {"since_ms": since_ms})
    cursor = found.pop("next")
    while cursor is not None:
        params = {"since_ms": since_ms, "cursor": cursor, "newest": max(found["newest"], 0)}
        page = client.call("card.history", params)
        found["cnms"] += page["cnms"]
        cursor = page["next"]
    return found


def _span_ms(history: Mapping[str, Any]) -> int:
    return int(history["columns"]) * int(history["step_ms"])


def _draw(path: Path, history: Mapping[str, Any]) -> None:
    names = [row["id"] for row in history["cnms"]]
    panels = []
    for name in history["series"]:
        rows = [row["permille"][name] for row in history["cnms"]]
        if any(value is not None for row in rows for value in row):
            panels.append(Panel(title=TITLES.get(name, f"{name}, reserved"), rows=rows))
    if not panels:
        raise CheckFailed("no_history", "nothing is known yet: no module has said what it has")
    span, step = human_ms(_span_ms(history)), step_words(int(history["step_ms"]))
    title = f"How full the modules were: {span} up to {history['newest_at']}, in steps of {step}"
    newest = datetime.fromisoformat(history["newest_at"])
    try:
        draw_heatmap(
            path, names, panels, title=title, newest=newest, step_ms=int(history["step_ms"])
        )
    except OSError as exc:
        raise CheckFailed("not_written", f"{path}: {exc.strerror or exc}") from exc
