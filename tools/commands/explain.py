"""`apf explain`: why here, why not there, and what would make it fit."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import click

from tools.amounts import amount, asked
from tools.client import Client
from tools.errors import DaemonRefused
from tools.session import ApfCommand, Session

INSTANCES_SHOWN: Final = 16  # of a workload or component; those that wait come first
CRITERIA: Final[Mapping[str, str]] = {  # what a criterion compares; all are better when less
    "spread": "instances of it that are there",
    "room_for_load": "1 where its load would be high, or its power or temperature is",
    "free_accelerators": "free accelerators that it does not need",
    "fragmentation": "accelerators that it would make useless for what is asked for, and scarcity",
    "fill_ppm": "balanced filling afterwards, in millionths, as a negative number",
    "id": "the module's name: all else is equal",
}


@click.command("explain", cls=ApfCommand)
@click.argument("what", metavar="WORKLOAD[/COMPONENT[/N]]")
@click.pass_obj
def explain_command(session: Session, what: str) -> None:
    """Why an instance is where it is, and not elsewhere; why it waits, and what would help.

    For every module: each resource in numbers, the reason why it can't hold the instance, and all
    that would have to change for it to fit. The question is asked anew on the card as it is now.
    """
    with session.connect() as client:
        names, left = _instances(client, what)
        found = [client.call("instance.explain", {"instance": name}) for name in names]

    def show() -> None:
        for item in found:
            _show(session, item)
        if left:
            session.out.say(f"{left} more instances; name one: apf explain {names[0]}")

    session.out.data("explain", found, show)


def _instances(client: Client, what: str) -> tuple[list[str], int]:
    """The instances that are meant, and how many more there are."""
    workload, _, rest = what.partition("/")
    component, _, index = rest.partition("/")
    if index:
        return [what], 0
    rows = client.call("workload.ps", {"workload": workload})
    rows = [row for row in rows if not component or row.get("component") == component]
    if not rows:
        raise DaemonRefused(
            "unknown_component",
            f"workload {workload!r} has no component {component!r}; see apf ps {workload}",
        )
    rows.sort(key=lambda row: row.get("phase") != "PENDING")
    names = [str(row["instance"]) for row in rows]
    return names[:INSTANCES_SHOWN], max(0, len(names) - INSTANCES_SHOWN)


def _show(session: Session, found: Mapping[str, Any]) -> None:
    out = session.out
    out.print(_headline(found))
    out.print(f"  asks for {asked(found['demand'])}")
    if found["pinned_to"]:
        out.print(f"  its volume is in use on {', '.join(found['pinned_to'])}: only there")
    for line in _why(found):
        out.print(f"  {line}")
    preemption = found.get("preemption")
    if preemption:
        out.print(f"  priority {preemption['priority']}: {preemption['text']}")
    rows = found["cnms"]
    names = _resources(rows)
    best = next((row for row in rows if row["rank"] == 1), None)
    columns = ["cnm", "rank", *names, "why not", "what would make it fit"]
    out.table(columns, [_row(row, names, best) for row in rows])


def _headline(found: Mapping[str, Any]) -> str:
    name = found["instance"]
    if found["ended"] is not None:
        return f"{name} has ended ({found['ended']}) and is placed nowhere"
    if found["cnm"] is None:
        return (
            f"{name} waits: no module can hold it now"
            if found["best"] is None
            else (f"{name} is not placed yet")
        )
    target = f", moving to {found['target']}" if found["target"] else ""
    return f"{name} is on {found['cnm']}{target}"


def _why(found: Mapping[str, Any]) -> list[str]:
    best, other, by = found["best"], found["runner_up"], found["decided_by"]
    if best is None and found["cnm"] is None:
        return []
    if best is None:
        return ["today no module would take it: the card has changed since it was placed"]
    lines = []
    if found["cnm"] is not None and best != found["cnm"]:
        lines.append(f"today it would go to {best}: the card has changed since it was placed")
    if other is None:
        lines.append(f"{best} is the only module that can hold it")
        return lines
    scores = {row["id"]: row["criteria"] for row in found["cnms"]}
    words = CRITERIA.get(by, "")
    text = f"{best} before {other} by {by}"
    if by in scores[best]:
        text += f": {scores[best][by]} against {scores[other][by]}, less is better"
    lines.append(text + (f" ({words})" if words else ""))
    return lines


def _resources(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What it asks for, or what is short somewhere, in a fixed order."""
    names: dict[str, bool] = {}
    for row in rows:
        for line in row["resources"]:
            wanted = bool(line["want"])
            names[line["resource"]] = names.get(line["resource"], False) or wanted
    return [name for name, wanted in names.items() if wanted]


def _row(
    row: Mapping[str, Any], names: Sequence[str], best: Mapping[str, Any] | None
) -> list[object]:
    lines = {line["resource"]: line for line in row["resources"]}
    rank = f"{row['rank']}" if row["rank"] is not None else "-"
    helps = [" and ".join(remedy["text"] for remedy in row["remedies"])] if row["remedies"] else []
    helps += [f"release of {name}" for name in row["releases"]]
    return [
        row["id"],
        rank + (" (here)" if row["here"] else ""),
        *(_numbers(lines.get(name)) for name in names),
        row["reason"] or _behind(row, best),
        "; or ".join(helps) or None,
    ]


def _behind(row: Mapping[str, Any], best: Mapping[str, Any] | None) -> str | None:
    """Why a module that could hold it is not the first choice."""
    if best is None or row is best:
        return None
    for name, mine in row["criteria"].items():
        its = best["criteria"].get(name)
        if mine != its:
            return f"it fits, behind {best['id']} by {name}: {mine} against {its}"
    return f"it fits, equal to {best['id']}, whose name comes first"


def _numbers(line: Mapping[str, Any] | None) -> str:
    if line is None:
        return "-"
    unit = line["unit"]
    want, free, total = (amount(line[key], unit) for key in ("want", "free", "total"))
    return f"{want} / {free} free of {total}"
