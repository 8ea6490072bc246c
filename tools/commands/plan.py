"""`apf plan`: where a Compose file's services would go, without a change to anything."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import click

from tools.amounts import asked
from tools.compose import load_compose
from tools.errors import CheckFailed
from tools.session import ApfCommand, Session, not_empty


@click.command("plan", cls=ApfCommand)
@click.argument("file", type=click.Path())
@click.option("--name", "--project-name", callback=not_empty, help="The workload's name.")
@click.option("--profile", "profiles", multiple=True, help="Switch a profile on.")
@click.pass_obj
def plan_command(session: Session, file: str, name: str | None, profiles: Sequence[str]) -> None:
    """Show where the services of a Compose FILE would be placed now. Nothing is changed.

    The card places a copy of the workload on a copy of its books, in the order in which a submit
    would. Ends with 1 when something would not fit, with the reason for every module.
    """
    loaded = load_compose(file, name=name, env=os.environ, profiles=profiles)
    warnings = [item.to_json() for item in loaded.warnings]
    with session.connect() as client:
        plan = client.call("workload.plan", {"workload": loaded.workload.to_json()})
    warnings += [
        {"code": item["code"], "file": None, "line": None, "key": None,
         "text": f"a submit would be refused: {item['text']}"}
        for item in plan["refusals"]
    ]  # fmt: skip
    if not plan["fits"]:
        if not session.out.as_json:
            session.out.data("plan", plan, lambda: _show(session, plan), warnings=warnings)
        raise CheckFailed("would_not_fit", _words(plan), plan)
    session.out.data("plan", plan, lambda: _show(session, plan), warnings=warnings)


def _show(session: Session, plan: Mapping[str, Any]) -> None:
    rows = [[item["instance"], item["cnm"], asked(item["demand"])] for item in plan["instances"]]
    session.out.table(["instance", "cnm", "reserves"], rows)
    session.out.say("this is a plan: nothing was changed")


def _words(plan: Mapping[str, Any]) -> str:
    """What would not fit, with the reason and the remedy for every module."""
    late = [item for item in plan["instances"] if item["cnm"] is None]
    lines = [f"{len(late)} of {len(plan['instances'])} instances of {plan['name']} would not fit"]
    for item in late:
        if not item["cnms"]:
            continue  # another instance of the same component says why
        lines.append(f"  {item['instance']}:")
        for row in item["cnms"]:
            helps = [" and ".join(remedy["text"] for remedy in row["remedies"])]
            helps += [f"release of {name}" for name in row["releases"]]
            would = "; or ".join(text for text in helps if text)
            fit = f" (would fit with {would})" if would else ""
            lines.append(f"    {row['id']}: {row['reason']}{fit}")
    return "\n".join(lines)
