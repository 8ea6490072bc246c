"""`up` and `discover`: the processes of the card, and what it finds."""

import os
from typing import Any, Final

from firmware.board_types import Slot
from hal.local.client import KeeperControl
from tools.demo import observe, observe_card
from tools.demo.context import Context
from tools.demo.errors import StepFailed, hold, need
from tools.demo.observe_card import CardProcess
from tools.demo.places import card_cgroup
from tools.demo.runner import Proofs
from tools.demo.waits import pause

UP_TIMEOUT_MS: Final = 40_000
TRAFFIC_MS: Final = 300  # three heartbeats


def up(context: Context) -> Proofs:
    """`apf up`: keeper, supervisor, daemon, and one init a CNM."""
    run = context.demo.run
    context.apf.call("up", "--board", context.board_source, timeout_ms=UP_TIMEOUT_MS)
    daemon = the_one(context, observe_card.DAEMON)
    keeper = the_one(context, observe_card.KEEPER)
    ids = [slot.id for slot in context.board.slots]

    def all_inits() -> dict[str, CardProcess] | None:
        found = observe_card.by_cnm(run, observe_card.INIT)
        return found if sorted(found) == sorted(ids) else None

    inits = context.wait(f"an init for each of {', '.join(ids)} in /proc", all_inits)
    context.cgroup = need(card_cgroup(run), f"{run}/keeper.json names no run id")
    with_keeper = KeeperControl(run)
    try:
        fence = str(with_keeper.call("status")["fence"])
    finally:
        with_keeper.close()
    context.fence = "power" if fence == "fence = power" else "lease"
    pids = ", ".join(f"{name} {item.pid}" for name, item in sorted(inits.items()))
    yield f"processes in /proc: daemon {daemon.pid}, keeper {keeper.pid}, inits {pids}"
    if context.fence == "lease":
        yield f"the keeper says: {fence}; so the CNMs are plain processes"
        return
    spaces = {observe_card.pid_namespace(item.pid) for item in inits.values()}
    hold(len(spaces) == len(inits), f"the inits share pid namespaces: {sorted(spaces)}")
    hold(observe_card.pid_namespace(os.getpid()) not in spaces, "an init is in our pid namespace")
    for name, item in inits.items():
        number = observe.namespace_pid(item.pid)
        hold(number == 1, f"init of {name} is pid {number} of its namespace, not 1")
        found = observe.cgroup_of(item.pid)
        wanted = f"{context.cgroup}/{name}/init"
        hold(found == wanted, f"init of {name} is in cgroup {found}, not {wanted}")
    yield f"each init is PID 1 of a pid namespace of its own, in {context.cgroup}/CNM/init"


def the_one(context: Context, module: str) -> CardProcess:
    """The only process of that module. Raises StepFailed."""
    found = observe_card.one(context.demo.run, module)
    return need(found, f"there is not exactly one process of {module} in /proc")


def discover(context: Context) -> Proofs:
    """All CNMs LEASED, with the capabilities of the board file; ttys and windows are real."""
    rows = context.wait_leased()
    hold(
        sorted(rows) == sorted(slot.id for slot in context.board.slots),
        f"`apf cnm ls` shows {', '.join(sorted(rows))}",
    )
    for slot in context.board.slots:
        wrong = differences(slot, rows[slot.id]["capacity"] or {})
        hold(not wrong, f"{slot.id} is not what the board file says: {'; '.join(wrong)}")
    yield f"{len(rows)} CNMs LEASED, with the capabilities of board {context.board.name}"
    yield _links(context)
    yield _windows(context)


def differences(slot: Slot, capacity: dict[str, Any]) -> list[str]:
    """What a CNM claims to have, against its slot's description."""
    module = slot.module
    wanted: dict[str, Any] = {
        "arch": module.arch,
        "cpu_milli": module.cores_milli,
        "memory_bytes": module.memory_bytes,
        "nvme_bytes": module.nvme_bytes,
        "link_mbit": module.link_mbit,
        "labels": dict(module.labels),
        "accelerators": [
            {"kind": item.kind, "model": item.model, "count": item.count, "scope": item.scope}
            for item in module.accelerators
        ],
    }
    wrong = [
        f"{key} is {capacity.get(key)!r}, wanted {value!r}"
        for key, value in wanted.items()
        if capacity.get(key) != value
    ]
    if not set(capacity.get("runtimes", ())) <= set(module.runtimes):
        wrong.append(f"runtimes {capacity['runtimes']} go beyond {list(module.runtimes)}")
    return wrong


def _links(context: Context) -> str:
    """Bytes cross the ptys that daemon and inits hold open."""
    run = context.demo.run
    card_files = observe_card.open_files(the_one(context, observe_card.DAEMON).pid)
    inits = observe_card.by_cnm(run, observe_card.INIT)
    for slot in context.board.slots:
        for end, files in (
            ("", card_files),
            (".cnm", observe_card.open_files(inits[slot.id].pid)),
        ):
            link = run / "tty" / f"{slot.id}-mc{end}"
            pty = os.path.realpath(link)
            hold(pty.startswith("/dev/pts/"), f"{link} leads to {pty}, which is no pty")
            hold(pty in files, f"{pty} ({link.name}) is not open where it should be")
    before = _traffic(context)
    pause(context.clock, TRAFFIC_MS)
    after = _traffic(context)
    silent = [name for name in before if after[name] <= before[name]]
    hold(not silent, f"no byte crossed {', '.join(silent)} in {TRAFFIC_MS} ms")
    return (
        f"control links are ptys, open in the daemon and in the inits; "
        f"{sum(after.values()) - sum(before.values())} bytes crossed in {TRAFFIC_MS} ms"
    )


def _traffic(context: Context) -> dict[str, int]:
    """CNM -> bytes that its MC link has carried, by the keeper's relay."""
    control = KeeperControl(context.demo.run)
    try:
        slots = control.call("status")["slots"]
    finally:
        control.close()
    return {
        slot["id"]: sum(
            count
            for link in slot["links"]
            if link["name"] == "mc"
            for count in _counts(link["counters"])
        )
        for slot in slots
    }


def _counts(value: object) -> list[int]:
    """All byte counts in the relay's counters, however they are grouped."""
    if isinstance(value, dict):
        return [count for item in value.values() for count in _counts(item)]
    return [value] if isinstance(value, int) else []


def _windows(context: Context) -> str:
    """The same memfd is mapped by the daemon and by the CNM's agent."""
    run = context.demo.run

    def mapped() -> dict[str, set[str]] | None:
        daemon = observe_card.one(run, observe_card.DAEMON)
        agents = observe_card.by_cnm(run, observe_card.AGENT)
        if daemon is None or len(agents) != len(context.board.slots):
            return None
        shared = {
            slot.id: observe_card.shared_memory(daemon.pid, slot.id)
            & observe_card.shared_memory(agents[slot.id].pid, slot.id)
            for slot in context.board.slots
            if slot.window_bytes
        }
        return shared if all(shared.values()) else None

    try:
        found = context.wait("a window mapped by daemon and agent of each CNM", mapped)
    except StepFailed as exc:
        raise StepFailed(f"{exc.text} (by /proc/PID/maps)") from exc
    inodes = ", ".join(f"{name} inode {min(value)}" for name, value in sorted(found.items()))
    return f"windows are one memfd each, mapped by daemon and agent: {inodes}"
