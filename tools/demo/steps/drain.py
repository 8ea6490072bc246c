"""`drain`: a CNM is emptied, by its cgroup."""

import contextlib

from tools.demo import observe_card
from tools.demo.context import Context
from tools.demo.errors import hold
from tools.demo.runner import Proofs
from tools.demo.steps.failover import busiest


def drain(context: Context) -> Proofs:
    """Only init and agent stay; the components run elsewhere, single copies all the time."""
    victim = busiest(context)
    sampler = context.sampler()
    sampler.look()
    timer = context.timer()
    context.apf.call("drain", victim.cnm, timeout_ms=context.patience_ms, meanwhile=sampler.look)

    def empty() -> bool:
        sampler.look()
        return not left_on(context, victim.cnm)

    context.wait(
        f"{victim.cnm} empty",
        empty,
        every_ms=10,
        seen=lambda: ", ".join(left_on(context, victim.cnm)),
    )
    took_ms = timer.ms
    rows = context.wait_up(context.services(), look=sampler.look)
    back = [name for name, row in rows.items() if row.cnm == victim.cnm]
    hold(not back, f"{', '.join(back)} are on {victim.cnm} again")
    hold(not left_on(context, victim.cnm), f"{victim.cnm} is not empty any more")
    count = len(victim.instances)
    yield f"{victim.cnm} gave away {count} instances in {took_ms} ms: its cgroups hold no process"
    yield f"they run elsewhere; {sampler.words()}"
    context.apf.call("undrain", victim.cnm, timeout_ms=context.patience_ms)


def left_on(context: Context, cnm: str) -> list[str]:
    """What still runs on a CNM, by its cgroups; by `ps` where there are none. A job that has ended
    may leave its empty cgroup until its workload is removed."""
    if context.fence != "power":
        return [row.instance for row in context.rows().values() if row.cnm == cnm and row.pid]
    top = f"{context.cgroup}/{cnm}"
    return [f"processes {pids} in {path}" for path, pids in instance_cgroups(top).items() if pids]


def instance_cgroups(top: str) -> dict[str, list[int]]:
    """An instance's cgroup below `top` -> its processes, over all hierarchies."""
    found: dict[str, list[int]] = {}
    for path in observe_card.cgroups_below(top):
        if path.name.startswith("i-"):
            name = f"{path.parent.name}/{path.name}"
            with contextlib.suppress(OSError):  # ENOENT or ENODEV: it goes while we look
                pids = (path / "cgroup.procs").read_text().split()
                found[name] = sorted({*found.get(name, []), *map(int, pids)})
    return found
