"""`apf submit`: a Compose file runs on the card."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from firmware.workload import Component, Workload
from tools.compose import load_compose
from tools.errors import Interrupted, ToolError
from tools.output import human_bytes, human_cores, is_tty
from tools.session import TIMEOUT_S, ApfCommand, Session, not_empty
from tools.waiting import Instance, phases, wait_until_running


@click.command("submit", cls=ApfCommand)
@click.argument("file", type=click.Path())
@click.option("--name", "--project-name", callback=not_empty, help="The workload's name.")
@click.option("--profile", "profiles", multiple=True, help="Switch a profile on.")
@click.option("--dry-run", is_flag=True, help="Show the normal form; ask nobody.")
@click.option("--wait", is_flag=True, help="Until every instance was seen to run.")
@click.option(
    "--timeout",
    "timeout_s",
    type=TIMEOUT_S,
    default=120,
    show_default=True,
    help="Seconds to wait.",
)
@click.pass_obj
def submit_command(
    session: Session,
    file: str,
    name: str | None,
    profiles: Sequence[str],
    dry_run: bool,
    wait: bool,
    timeout_s: int,
) -> None:
    """Run the services of a Compose FILE.

    What a card cannot honour is warned about, with its line; an invalid file is refused whole (2).
    Without --name the workload is called after `name:`, else after the file (its directory, when
    the file is a compose.yaml).
    """
    found = load_compose(file, name=name, env=os.environ, profiles=profiles)
    workload, warnings = found.workload, [item.to_json() for item in found.warnings]
    if dry_run:
        session.out.data(
            "submit_dry_run",
            workload.to_json(),
            lambda: _show(session, workload),
            warnings=warnings,
        )
        return
    session.out.warn(warnings)  # now: they hold however this ends
    try:
        data = _submit(session, workload, timeout_s if wait else None)
    except ToolError as exc:
        exc.input_warnings = warnings
        raise
    words = f"{workload.name}: {'all instances run' if wait else 'submitted'}"
    told = warnings if session.out.as_json else []
    session.out.data("submit", data, lambda: session.out.say(words), warnings=told)


def _submit(session: Session, workload: Workload, wait_s: int | None) -> dict[str, Any]:
    name = workload.name
    with session.connect() as client:
        result = client.call("workload.submit", {"workload": workload.to_json()})
        data = {"name": name, "result": result}
        if wait_s is not None:
            try:
                with _progress(session, name) as tell:
                    data["instances"] = wait_until_running(
                        client, name, timeout_ms=wait_s * 1000, tell=tell
                    )
            except KeyboardInterrupt as exc:
                raise Interrupted(
                    "interrupted",
                    f"interrupted; {name} stays submitted; `apf rm {name}` removes it",
                    {"name": name},
                ) from exc
    return data


def _show(session: Session, workload: Workload) -> None:
    columns = ["component", "image", "replicas", "cores", "memory", "needs", "volumes", "after"]
    session.out.table(columns, [_row(component) for component in workload.components])


def _row(component: Component) -> list[object]:
    needs = component.resources
    return [
        component.name,
        component.image,
        component.replicas,
        human_cores(needs.cpu_milli),
        human_bytes(needs.memory_bytes),
        [f"{item.count} {item.model or item.kind}" for item in needs.accelerators],
        [f"{item.name}:{item.target}" for item in component.volumes],
        [f"{item.component} {item.condition}" for item in component.depends_on],
    ]


@contextmanager
def _progress(session: Session, name: str) -> Iterator[Callable[[Sequence[Instance]], None]]:
    """One line that changes on a terminal; elsewhere a line whenever the phases change."""
    if is_tty(sys.stderr) and not session.out.as_json:
        from rich.console import Console

        with Console(file=sys.stderr, highlight=False).status(name) as status:
            yield lambda instances: status.update(f"{name}: {phases(instances)}")
        return
    last = [""]

    def tell(instances: Sequence[Instance]) -> None:
        text = phases(instances)
        if text and text != last[0]:
            last[0] = text
            session.out.say(f"{name}: {text}")

    yield tell
