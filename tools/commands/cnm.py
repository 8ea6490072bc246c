"""`apf cnm ls|show|power`, `apf drain`, `apf undrain`."""

from typing import Any

import click

from tools.output import cell, human_bytes, human_cores, human_ms
from tools.session import TIMEOUT_S, ApfCommand, ApfGroup, Session


@click.group("cnm", cls=ApfGroup)
def cnm_group() -> None:
    """The compute node modules."""


@cnm_group.command("ls")
@click.pass_obj
def cnm_ls(session: Session) -> None:
    """Every slot: state, lease, what is used of what there is."""
    with session.connect() as client:
        modules = client.call("cnm.list")
    columns = ["id", "slot", "state", "lease", "arch", "cores", "memory", "nvme", "init", "agent"]
    rows = [_row(module) for module in modules]
    session.out.data("cnm_ls", modules, lambda: session.out.table(columns, rows))


def _row(module: dict[str, Any]) -> list[object]:
    capacity, used = module.get("capacity") or {}, module.get("used") or {}
    return [
        module.get("id"),
        module.get("slot"),
        module.get("state"),
        human_ms(module.get("lease_ms_left")),
        capacity.get("arch"),
        _share(used.get("cpu_milli"), capacity.get("cpu_milli"), human_cores),
        _share(used.get("memory_bytes"), capacity.get("memory_bytes"), human_bytes),
        _share(used.get("nvme_bytes"), capacity.get("nvme_bytes"), human_bytes),
        module.get("init_pid"),
        module.get("agent_pid"),
    ]


def _share(used: int | None, total: int | None, human: Any) -> str:
    return f"{human(used)} of {human(total)}" if total is not None else "-"


@cnm_group.command("show")
@click.argument("cnm")
@click.pass_obj
def cnm_show(session: Session, cnm: str) -> None:
    """All that is known about one CNM."""
    with session.connect() as client:
        module = client.call("cnm.show", {"id": cnm})
    session.out.data("cnm_show", module, lambda: session.out.fields(module))


@cnm_group.command("power")
@click.argument("action", type=click.Choice(["on", "off"]))
@click.argument("slot", type=click.IntRange(0, 1023))
@click.option(
    "--timeout", "timeout_s", type=TIMEOUT_S, default=30, show_default=True, help="Seconds to wait."
)
@click.pass_obj
def cnm_power(session: Session, action: str, slot: int, timeout_s: int) -> None:
    """Power of a slot. Off is hard: what runs there is lost and started elsewhere."""
    with session.connect(timeout_ms=timeout_s * 1000) as client:
        state = client.call("cnm.power", {"slot": slot, "action": action})
    session.out.data("cnm_power", state, lambda: session.out.fields(_fields(state)))


@click.command("drain", cls=ApfCommand)
@click.argument("cnm")
@click.pass_obj
def drain_command(session: Session, cnm: str) -> None:
    """Move everything off a CNM and place nothing new there."""
    with session.connect() as client:
        result = client.call("cnm.drain", {"id": cnm})
    session.out.data("drain", result, lambda: session.out.say(f"draining {cnm}"))


@click.command("undrain", cls=ApfCommand)
@click.argument("cnm")
@click.pass_obj
def undrain_command(session: Session, cnm: str) -> None:
    """Let a drained CNM take instances again."""
    with session.connect() as client:
        result = client.call("cnm.undrain", {"id": cnm})
    session.out.data("undrain", result, lambda: session.out.say(f"{cnm} takes instances again"))


def _fields(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {"result": cell(value)}
