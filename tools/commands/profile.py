"""`apf profile ls|show`: what components were measured to use, and what they reserve next."""

import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

import click

from tools.output import human_bytes, human_cores, human_ms
from tools.session import ApfGroup, Session
from tools.usage_plot import can_show_blocks, plot

FIGURES: Final = ("declared", "limit", "reserved", "next", "p50", "p90", "peak")
LETTERS: Final = {"D": "declared", "L": "limit", "R": "reserved", "N": "next"}
MEASURED: Final = ("p50", "p90", "peak")


def human_kbit(value: int | None) -> str:
    """Thousands of bits a second: 12.5 Mbit/s; None is "-"."""
    if value is None:
        return "-"
    return f"{value} kbit/s" if value < 1000 else f"{value / 1000:.1f} Mbit/s"


def _cores(value: int | None) -> str:
    return "-" if value is None else f"{human_cores(value)} cores"


HUMAN: Final[Mapping[str, tuple[str, Callable[[int | None], str]]]] = {
    "cpu_milli": ("cpu", _cores),
    "memory_bytes": ("memory", human_bytes),
    "nvme_kbit": ("nvme", human_kbit),
    "link_kbit": ("link", human_kbit),
}


@click.group("profile", cls=ApfGroup)
def profile_group() -> None:
    """What components were measured to use, and what they reserve next."""


@profile_group.command("ls")
@click.pass_obj
def profile_ls(session: Session) -> None:
    """Every component: declared, reserved, reserved next, and measured, for each resource.

    P50, P90 and PEAK fade with a half-life of a day (bandwidth: of six hours); NEXT is what an
    instance that is placed now would reserve.
    """
    with session.connect() as client:
        rows = client.call("profile.list")
    columns = ["component", "image", "samples", "age", "resource", *FIGURES]
    session.out.data(
        "profile_ls",
        rows,
        lambda: session.out.table(columns, [line for row in rows for line in _lines(row)]),
    )


def _lines(row: Mapping[str, Any]) -> list[list[object]]:
    """One for each resource of which there is something to say; the first one names it all."""
    head: list[object] = [_name(row), row["image"], row["samples"], human_ms(row["age_ms"])]
    lines: list[list[object]] = []
    for resource, (word, human) in HUMAN.items():
        figures = row["resources"][resource]
        if any(figures[name] is not None for name in FIGURES):
            lines.append([*head, word, *(human(figures[name]) for name in FIGURES)])
            head = ["", "", "", ""]
    return lines or [[*head, None, *[None] * len(FIGURES)]]


def _name(row: Mapping[str, Any]) -> str:
    workload, component = row["workload"], row["component"]
    return f"{workload}/{component}" if workload is not None else f"({component})"


@profile_group.command("show")
@click.argument("component")
@click.pass_obj
def profile_show(session: Session, component: str) -> None:
    """One component's use against its reservation, with a plot for each resource.

    COMPONENT is a component's name, WORKLOAD/COMPONENT, or the begin of an image's digest.
    """
    with session.connect() as client:
        rows = client.call("profile.show", {"component": component})

    def show() -> None:
        blocks = can_show_blocks(sys.stdout.encoding)
        for row in rows:
            for line in describe(row, blocks=blocks):
                session.out.print(line)

    session.out.data("profile_show", rows, show)


def describe(row: Mapping[str, Any], *, blocks: bool) -> list[str]:
    """A profile for people: a head, and a plot for each resource that was measured."""
    digest = f" ({row['digest'][:12]})" if row["digest"] else ""
    lines = [f"{_name(row)}  image {row['image']}{digest}"]
    if row["profile"] == "off":
        return [*lines, "profile: off, so it is not measured and reserves what it declares"]
    if row["age_ms"] is None:
        return [*lines, "nothing was measured yet"]
    evidence = f"{row['samples']} samples, {human_ms(row['measured_ms'])} measured"
    lines.append(f"{evidence}, the last {human_ms(row['age_ms'])} ago")
    if row["memory_floor_bytes"] is not None:
        floor, ooms = human_bytes(row["memory_floor_bytes"]), row["ooms"]
        lines.append(
            f"memory was under-reserved ({ooms} out-of-memory kills): at least {floor} from now on"
        )
    for resource, (word, human) in HUMAN.items():
        figures = row["resources"][resource]
        bins = [(item["low"], item["high"], item["ppm"]) for item in row["bins"][resource]]
        if not bins:
            continue
        lines.append("")
        lines.append(f"{word}: " + ", ".join(f"{name} {human(figures[name])}" for name in MEASURED))
        marks = {
            letter: figures[name] for letter, name in LETTERS.items() if figures[name] is not None
        }
        top = max([high for _low, high, _ppm in bins] + list(marks.values()))
        drawn = plot(bins, marks, blocks=blocks)
        if drawn:
            drawn[-1] += f" {human(top)}"
        lines += drawn
        if marks:
            words = (f"{key} {LETTERS[key]} {human(value)}" for key, value in marks.items())
            lines.append(" " + ", ".join(words))
    return lines
