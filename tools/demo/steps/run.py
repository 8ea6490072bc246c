"""`submit`, `place`, `deploy`, `profile`: from a Compose file to what the kernel holds."""

from collections import Counter
from typing import Any

from tools.demo import observe
from tools.demo.apf import Row
from tools.demo.context import SHOP, Context
from tools.demo.errors import hold
from tools.demo.expected import check_consecutive, ledger_entries, output_of
from tools.demo.observe_limits import Limits, limits_of, rlimits_of
from tools.demo.runner import Proofs

LEDGER = f"{SHOP}/ledger/0"
LIMITED = ("cpu", "memory", "pids")


def submit(context: Context) -> Proofs:
    """Accepted as it is written; nothing asked for by the file is missing from `ps`."""
    file = str(context.compose(SHOP))
    words = ("submit", file, "--name", SHOP)
    context.normal = context.apf.call(*words, "--dry-run", timeout_ms=context.patience_ms)
    parts = {part["name"]: part for part in context.normal["components"]}
    wanted = {"seed", "catalog", "ledger", "web", "infer", "burn"}
    hold(set(parts) == wanted, f"the normal form has components {', '.join(sorted(parts))}")
    context.submitted_ns = context.clock.now_ns()
    context.apf.call(*words, timeout_ms=context.patience_ms)
    rows = context.rows()
    hold(
        sorted(rows) == sorted(context.instances()),
        f"`apf ps` shows {', '.join(sorted(rows))}",
    )
    features = "depends_on, healthcheck, limits, replicas, spread, accelerator, restart"
    yield f"{file}: {len(parts)} services ({features}" + (
        ", volumes)" if context.mode.root else ")"
    )
    yield f"{len(rows)} instances accepted: {', '.join(sorted(rows))}"


def place(context: Context) -> Proofs:
    """Every process is in the cgroup of the CNM that `ps` names, and that CNM may have it."""
    names = context.services()

    def agreed() -> dict[str, str] | None:
        where = context.where()
        if not all(name in where for name in names):
            return None
        rows = context.rows()  # after /proc: what moved in between is looked at again
        return where if all(where[name] == rows[name].cnm for name in names) else None

    where = context.wait(
        f"a process in /proc for each of {len(names)} instances, where `apf ps` says",
        agreed,
        seen=lambda: f"{context.late(SHOP)}; /proc: {_places(context.where())}",
    )
    how = "cgroup" if context.fence == "power" else "parent process"
    yield f"by {how}: {_places(where)}"
    webs = [where[name] for name in names if f"{SHOP}/web/" in name]
    hold(len(set(webs)) == len(webs), f"spread: the web instances are on {', '.join(webs)}")
    infer = where[f"{SHOP}/infer/0"]
    hold(infer in context.accelerated, f"infer is on {infer}, which has no accelerator")
    over = overcommitted(context, where)
    hold(not over, f"overcommitted: {'; '.join(over)}")
    yield f"spread: web on {', '.join(sorted(webs))}; accelerator: infer on {infer}; no overcommit"


def _places(where: dict[str, str]) -> str:
    return ", ".join(f"{name.split('/', 1)[1]} {cnm}" for name, cnm in sorted(where.items()))


def overcommitted(context: Context, where: dict[str, str]) -> list[str]:
    """CNMs on which more is declared than the board file gives, in words."""
    cpu: Counter[str] = Counter()
    memory: Counter[str] = Counter()
    for name, cnm in where.items():
        needs = context.component(name.split("/")[1])["resources"]
        cpu[cnm] += needs["cpu_milli"] or needs["cpu_limit_milli"]
        memory[cnm] += needs["memory_bytes"] or needs["memory_limit_bytes"]
    found = []
    for cnm in cpu:
        module = context.slot(cnm).module
        if cpu[cnm] > module.cores_milli:
            found.append(f"{cnm}: {cpu[cnm]} of {module.cores_milli} milli-cores")
        if memory[cnm] > module.memory_bytes:
            found.append(f"{cnm}: {memory[cnm]} of {module.memory_bytes} B")
    return found


def deploy(context: Context) -> Proofs:
    """RUNNING means: a live process with that start time, one copy, the right words."""
    rows = context.wait_up(context.instances())
    up_ms = context.since_submit_ms
    services = [rows[name] for name in context.services()]
    yield f"{len(services)} instances RUNNING: process and start time as /proc has them, one copy"
    seed = rows[f"{SHOP}/seed/0"]
    hold(
        seed.phase == "STOPPED" and seed.raw["exit_status"] == 0,
        f"seed, a job, is {seed.phase} with status {seed.raw['exit_status']}",
    )
    by_start = {row.component: row.start_ticks for row in services}
    hold(by_start["catalog"] <= by_start["ledger"], "ledger started before catalog was there")
    yield "the job seed ended with 0; ledger and web started after catalog was healthy"
    if context.mode.containers:
        yield _runc(context, services)
    for row in rows.values():
        _output(context, row)
    yield f"output of {len(rows)} instances is right, word by word; all up {up_ms} ms after submit"


def _runc(context: Context, rows: list[Row]) -> str:
    """`runc list`, inside each CNM's namespaces, has the same processes."""
    modules: dict[str, Any] = context.apf.cnms()
    found: set[tuple[str, int]] = set()
    for name, module in modules.items():
        states = observe.runc_states(module["init_pid"], module["runc_root"])
        found |= {(name, int(str(s["pid"]))) for s in states if s["status"] == "running"}
    wanted = {(row.cnm, observe.pid_in(row.pid, modules[row.cnm]["init_pid"])) for row in rows}
    hold(
        found == wanted,
        f"runc shows {sorted(found - wanted)} that `ps` does not, "
        f"`ps` shows {sorted(wanted - found)} that runc does not",
    )
    return f"`runc list` in the CNMs' own namespaces: the same {len(found)} containers, running"


def _output(context: Context, row: Row) -> None:
    """Raises StepFailed with what it wrote instead."""
    wanted = [] if row.component == "ledger" else output_of(row.component, row.instance)

    def lines() -> list[str] | None:
        text = context.apf.log(row.instance)
        found = text.split("\n")[:-1]
        if row.component == "ledger":
            check_consecutive(ledger_entries(text), 1, row.instance)
            return found if len(found) > 5 else None
        wrong = [(got, want) for got, want in zip(found, wanted, strict=False) if got != want]
        hold(not wrong, f"{row.instance} wrote {wrong[:1]}, which are (wrong, wanted) output")
        return found if len(found) >= len(wanted) else None

    context.wait(f"the output of {row.instance}", lines)


def profile(context: Context) -> Proofs:
    """What each component declares is what the kernel holds it to."""
    rows = context.rows()
    shown = []
    for name in context.services():
        row = rows[name]
        needs = context.component(row.component)["resources"]
        wanted = Limits(
            cpu_milli=needs["cpu_limit_milli"] or None,
            memory_bytes=needs["memory_limit_bytes"] or None,
            pids=needs["pids"] or None,
        )
        cgroup = observe.cgroup_of(row.pid)
        if not observe.cnm_of(cgroup):
            wanted = Limits(cpu_milli=None, memory_bytes=wanted.memory_bytes, pids=None)
        found = limits_of(cgroup) if observe.cnm_of(cgroup) else rlimits_of(row.pid)
        hold(found == wanted, f"{name}: the kernel holds it to {found}, declared is {wanted}")
        shown.append(f"{row.component} {found.cpu_milli}m")
    if context.fence == "power":
        yield f"cpu quota, memory limit and pids.max of {len(shown)} cgroups are what was declared"
        yield "processor shares: " + ", ".join(sorted(set(shown)))
    else:
        yield f"no cgroups here: RLIMIT_AS of {len(shown)} processes is what was declared"
