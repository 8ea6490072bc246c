"""`remove` and `down`: nothing is left."""

from tools.demo import observe, observe_card
from tools.demo.context import SHOP, Context
from tools.demo.errors import hold
from tools.demo.places import leftovers
from tools.demo.runner import Proofs
from tools.demo.steps.drain import instance_cgroups

DOWN_TIMEOUT_MS = 40_000
HOT_TIER_MS = 5_000


def remove(context: Context) -> Proofs:
    """`apf rm --wait`: no process with our token, no cgroup, no mount, no hot volume."""
    context.apf.call("rm", SHOP, "--wait", timeout_ms=context.patience_ms)
    alive = observe.processes(token=context.token)
    hold(not alive, f"{len(alive)} processes of instances still run: {alive[:3]}")
    left = instance_cgroups(context.cgroup)
    hold(not left, f"cgroups are left: {', '.join(left)}")
    yield "no process carries an instance's name; no instance's cgroup in any hierarchy"
    # an agent empties its disk in the background: that it ends is what counts
    context.wait(
        "nothing left on the hot tiers",
        lambda: not left_on_hot_tiers(context),
        timeout_ms=HOT_TIER_MS,
        seen=lambda: "; ".join(left_on_hot_tiers(context)[:6]),
    )
    yield "no overlay mounted in a CNM, no root filesystem and no volume left on a hot tier"
    rows = context.apf.ask("workload.ps")
    hold(not rows, f"`apf ps` still shows {len(rows)} instances")
    yield "`apf ps` is empty"


def left_on_hot_tiers(context: Context) -> list[str]:
    """Mounts, volumes and root filesystems that are still there, in words."""
    found = []
    for slot in context.board.slots:
        agent = observe_card.by_cnm(context.demo.run, observe_card.AGENT)[slot.id]
        mounts = observe_card.mounts_below(context.demo.cnm_state(slot.id), agent.pid)
        found += [f"{slot.id} still has {mount} mounted" for mount in mounts]
        for name in ("volumes", "instances"):
            place = context.demo.cnm_state(slot.id) / name
            there = [item.name for item in place.iterdir()] if place.is_dir() else []
            found += [f"{slot.id} still has {name} {item}" for item in there]
    return found


def down(context: Context) -> Proofs:
    """`apf down`: processes, cgroups, mounts and ttys."""
    context.apf.call("down", timeout_ms=DOWN_TIMEOUT_MS)

    def nothing() -> bool:
        return not leftovers(context.demo, context.cgroup)

    context.wait(
        "nothing left of the card",
        nothing,
        timeout_ms=5_000,
        seen=lambda: ", ".join(leftovers(context.demo, context.cgroup)[:6]),
    )
    socket = context.demo.places.socket
    hold(not socket.exists(), f"{socket} is still there")
    yield f"no process, no cgroup {context.cgroup}, no mount, no tty, no socket"
