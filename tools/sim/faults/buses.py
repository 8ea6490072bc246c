"""P1 to P7: the fabric.

What the fabric is to any card: a module that is pulled out, and the window with its doorbells. What
only PCI Express tells (P4 to P6) is in `pcie.py`.
"""

from typing import Final

from hal.mock.window import MockWindowPair
from tools.sim.faults.evidence import agent_window, cnm_of, events_since
from tools.sim.faults.pcie import PCIE_FAULTS
from tools.sim.faults.types import MS, Fault, Injection, Site, injection, span_ns
from tools.sim.module import SimModule

FLAP_LEAST_S: Final = 0.55  # longer than the window's poll: it then has written into the gap
STORM_PERIOD_NS: Final = 200_000
PRINTED: Final = 64  # lines
READ_AFTER_NS: Final = 100 * MS  # when the module has them in its log


def provoke(site: Site, module: SimModule) -> None:
    """Have the card use the module's window: what runs there prints something, and its log is
    read."""
    world = site.world
    names = [name for name, found in sorted(world.running().items()) if found[0] == module.id]
    if not names:
        return
    name = site.rng.choice(names)
    for _, one in sorted(module.slot.instances.items()):
        if one.alive and one.spec.env["APF_INSTANCE"] == name:
            one.write(b"a line of a log\n" * PRINTED)

    def read() -> None:
        if cnm_of(world, module) is not None:
            world.begin("instance.logs", instance=name)

    world.kernel.after(READ_AFTER_NS, read)


def _used_module(site: Site) -> SimModule | None:
    """One on which something runs, drawn."""
    world = site.world
    cnms = sorted({found[0] for found in world.running().values()})
    managed = [name for name in cnms if _schedulable(site, world.modules[name])]
    return world.modules[site.rng.choice(managed)] if managed else None


def _schedulable(site: Site, module: SimModule) -> bool:
    cnm = cnm_of(site.world, module)
    return cnm is not None and cnm.schedulable


def _lost_writes(pair: MockWindowPair) -> int:
    return sum(half.lost_writes for half in pair.halves.values())


def _flap(site: Site) -> Injection | None:
    module = _used_module(site)
    if module is None:
        return None
    pair = module.window
    before = _lost_writes(pair) + pair.lost
    fabric = site.world.pcie.fabrics[module.id] if site.world.pcie is not None else None
    name = f"P1 {site.world.kernel.now_ns}"
    if fabric is not None:
        fabric.hold_down(name)
    else:
        pair.cut()
    provoke(site, module)

    def heal() -> None:
        if fabric is not None:
            fabric.let_go(name)
        else:
            pair.cut(False)

    return injection(
        site,
        "P1",
        f"{module.id}: the fabric is cut and back",
        lambda: _lost_writes(pair) + pair.lost > before,
        cnm=module.id,
        heal=heal,
        lasts_ns=span_ns(site, FLAP_LEAST_S, 0.95),
    )


def _pull(site: Site) -> Injection | None:
    module = site.module()
    if not module.slot.power_good:
        return None
    later = events_since(site.world)

    def seen() -> bool:
        off = [e for e in later("cnm.power", cnm=module.id) if "pulled" in e.text]
        return bool(off) or bool(later("cnm.fenced", "cnm.booted", cnm=module.id))

    module.slot.pull()
    return injection(
        site,
        "P2",
        f"{module.id}: pulled out",
        seen,
        cnm=module.id,
        heal=module.slot.insert,
        lasts_ns=span_ns(site, 0.2, 15.0),
    )


def _all_ones(site: Site) -> Injection | None:
    module = _used_module(site)
    cnm = cnm_of(site.world, module) if module is not None else None
    if module is None or cnm is None or cnm.channel is None:
        return None
    direction = site.rng.choice(("ab", "ba"))
    theirs = agent_window(module)
    channel = cnm.channel if direction == "ba" else theirs
    if channel is None:
        return None
    counters = channel.counters
    before = counters["peer_detached"]
    module.window.all_ones(direction)
    provoke(site, module)
    return injection(
        site,
        "P3",
        f"{module.id}: reads of {direction} give all ones",
        lambda: counters["peer_detached"] > before,
        cnm=module.id,
        heal=lambda: module.window.all_ones(direction, on=False),
        lasts_ns=span_ns(site, 0.6, 10.0),
    )


def _doorbell(site: Site) -> Injection | None:
    module = _used_module(site)
    if module is None:
        return None
    pair, kind = module.window, site.rng.randrange(3)
    if kind == 2:
        side = site.rng.choice(("a", "b"))
        count, before = site.rng.randint(100, 5_000), pair.stormed
        stop = pair.storm(side, STORM_PERIOD_NS, count)
        wanted = min(count, 50)
        return injection(
            site,
            "P7",
            f"{module.id}: {count} rings out of nowhere to side {side}",
            lambda: pair.stormed >= before + wanted and pair.unheard(side) < wanted,
            cnm=module.id,
            heal=stop,
            lasts_ns=count * STORM_PERIOD_NS + 10 * MS,
        )
    before = pair.lost
    if kind == 0:
        pair.lose_rings += site.rng.randint(1, 20)
    else:
        pair.lose_share = max(pair.lose_share, site.rng.choice((0.1, 0.5, 1.0)))

    def heal() -> None:
        pair.lose_rings = 0
        if not pair.halves["ab"].cut:
            pair.lose_share = 0.0

    provoke(site, module)
    return injection(
        site,
        "P7",
        f"{module.id}: doorbells are lost",
        lambda: pair.lost > before,
        cnm=module.id,
        heal=heal,
        lasts_ns=span_ns(site, 1.0, 20.0),
    )


FABRIC_FAULTS: Final = (
    Fault(id="P1", text="the fabric's link goes down and is up again within 1 s", inject=_flap),
    Fault(id="P2", text="a module is pulled out", inject=_pull),
    Fault(id="P3", text="reads of the window give all ones", inject=_all_ones),
    *PCIE_FAULTS,
    Fault(id="P7", text="doorbells are lost, or storm", inject=_doorbell),
)
