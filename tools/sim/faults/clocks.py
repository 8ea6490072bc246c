"""T1 to T5: clocks that jump, stand still, drift, repeat a second, or wrap."""

from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

from hal.mock.node import NodeClock
from hal.ports import FenceKind
from tools.sim.faults.cnms import longest_pause_s, new_boot, silenced
from tools.sim.faults.evidence import cnm_of, drawn_module, works
from tools.sim.faults.storage import poke
from tools.sim.faults.types import MS, SECOND, Fault, Injection, Site, injection, span_ns
from tools.sim.world import DAEMON, World

YEAR_NS: Final = 365 * 86_400 * SECOND
LEAPS_NS: Final = (-SECOND, SECOND, -3600 * SECOND, 3600 * SECOND)  # a leap second, summer time
RATE_PPM: Final = 1_000  # r of DESIGN section 4
DRIFT_SEEN_NS: Final = MS
WRAPS_NS: Final = ((1 << 32) * 1_000, (1 << 32) * MS)  # 2**32 us and 2**32 ms
BEFORE_WRAP_NS: Final = 3 * SECOND


def _at_minus_mono_ns(event: Any) -> int:
    """How far the wall clock of an event is from its CLOCK_BOOTTIME."""
    wall_ms = round(datetime.fromisoformat(event.at).timestamp() * 1000)
    return (wall_ms - int(event.mono_ms)) * MS


def _wall_step(site: Site, fault_id: str, by_ns: int, *, back: bool) -> Injection | None:
    """The daemon's wall clock jumps: its next events carry another time, and nothing else may
    follow. `back`: it jumps back when healed."""
    world = site.world
    card = world.card_or_none
    if card is None or not card.ready:
        return None
    clock = world.kernel.nodes[DAEMON].clock
    before_ns = clock.wall_ns() - clock.now_ns()
    count = len(world.events)
    clock.step_wall(by_ns)
    poke(site)

    def seen() -> bool:
        fresh = world.events[count:]
        slack_ns = abs(by_ns) // 2
        return any(abs(_at_minus_mono_ns(e) - before_ns - by_ns) < slack_ns for e in fresh)

    return injection(
        site,
        fault_id,
        f"the wall clock jumps by {by_ns / SECOND:.0f} s",
        seen,
        heal=(lambda: clock.step_wall(-by_ns)) if back else (lambda: None),
        lasts_ns=span_ns(site, 1.0, 60.0) if back else 0,
    )


def _year(site: Site) -> Injection | None:
    return _wall_step(site, "T1", site.rng.choice((-YEAR_NS, YEAR_NS)), back=True)


def _leap(site: Site) -> Injection | None:
    return _wall_step(site, "T4", site.rng.choice(LEAPS_NS), back=False)


def _stand_still(site: Site) -> Injection | None:
    """SIGSTOP of the daemon, or of a module's init where a power fence guards what runs there."""
    world = site.world
    module = drawn_module(site)
    if module is None or not works(world, DAEMON):
        return None
    daemon = site.rng.random() < 0.6 or module.slot.fence is FenceKind.LEASE
    beat_s = world.board.timing.heartbeat_ms / 1000
    most_s = 60.0 if daemon else longest_pause_s(module, world, 60.0)
    lasts_ns = span_ns(site, 2 * beat_s, most_s)
    name = DAEMON if daemon else module.init_node
    return silenced(site, "T2", f"{name} stands still", module, [name], lasts_ns)


def _drift(site: Site) -> Injection | None:
    """Within r: leases and fences must hold."""
    world, module = site.world, site.module()
    names = [DAEMON] if site.rng.random() < 0.3 else [module.init_node, module.agent_node]
    clocks = [world.kernel.node(name).clock for name in names]
    ppm = site.rng.choice((-RATE_PPM, RATE_PPM))
    before = [clock.rate_ppm for clock in clocks]
    if before[0] == ppm or before[0] < -RATE_PPM:  # D3 holds it: that is not what to go back to
        return None
    start_ns, shown_ns = world.kernel.now_ns, clocks[0].now_ns()

    def heal() -> None:
        for clock, rate in zip(clocks, before, strict=True):
            clock.set_rate(rate)

    def seen() -> bool:
        passed_ns = world.kernel.now_ns - start_ns
        usual_ns = passed_ns * before[0] // 1_000_000
        drift_ns = clocks[0].now_ns() - shown_ns - passed_ns - usual_ns
        return abs(drift_ns) >= DRIFT_SEEN_NS

    for clock in clocks:
        clock.set_rate(ppm)
    return injection(
        site,
        "T3",
        f"{names[0]} runs at {ppm:+d} ppm",
        seen,
        cnm=None if names[0] == DAEMON else module.id,
        heal=heal,
        lasts_ns=span_ns(site, 5.0, 120.0),
    )


def _skip_to(clock: NodeClock, wanted_ns: int) -> bool:
    """Move CLOCK_BOOTTIME to there, the wall clock staying where it is; False if that is past."""
    forward_ns = wanted_ns - clock.now_ns()
    if forward_ns <= 0:
        return False
    clock.skip(forward_ns)
    clock.step_wall(-forward_ns)
    return True


def _wrap(site: Site) -> Injection | None:
    """A boot after which a 32-bit count of us or ms wraps: the daemon's, or a module's, whose
    heartbeat and telemetry numbers are about to wrap too."""
    world = site.world
    wrap_ns = site.rng.choice(WRAPS_NS)
    if site.rng.random() < 0.5:
        return _wrap_daemon(site, wrap_ns)
    module = drawn_module(site)
    if module is None:
        return None
    clock = world.kernel.nodes[module.init_node].clock
    if clock.now_ns() >= wrap_ns - BEFORE_WRAP_NS:
        return None
    booted = new_boot(world, module)

    def near_wrap(init: Any) -> None:
        module.at_boot = None
        init.mc._heartbeat_seq = init.mc._telemetry_seq = 0xFFFF_FFFD

    def seen() -> bool:
        cnm = cnm_of(world, module)
        beat = cnm.heartbeat if cnm is not None else None
        return booted() and clock.now_ns() > wrap_ns and beat is not None and beat.seq < 1 << 31

    module.at_boot = near_wrap
    module.slot.lose_power()  # its clock may jump while nothing runs on it
    _skip_to(clock, wrap_ns - BEFORE_WRAP_NS)
    _skip_to(world.kernel.node(module.agent_node).clock, wrap_ns - BEFORE_WRAP_NS)
    return injection(
        site,
        "T5",
        f"{module.id}: boots 3 s before {wrap_ns} ns",
        seen,
        cnm=module.id,
    )


def _wrap_daemon(site: Site, wrap_ns: int) -> Injection | None:
    world = site.world
    card, node = world.card_or_none, world.kernel.nodes[DAEMON]
    if card is None or not card.ready or node.clock.now_ns() >= wrap_ns - BEFORE_WRAP_NS:
        return None
    epoch = card.decisions.epoch
    world.kill_daemon()
    _skip_to(node.clock, wrap_ns - BEFORE_WRAP_NS)
    world.kernel.after(span_ns(site, 0.1, 1.0), world.start_daemon)
    return injection(
        site,
        "T5",
        f"the daemon starts 3 s before {wrap_ns} ns",
        _epoch_past(world, epoch, lambda: node.clock.now_ns() > wrap_ns and works(world, DAEMON)),
    )


def _epoch_past(world: World, epoch: int, also: Callable[[], bool]) -> Callable[[], bool]:
    def seen() -> bool:
        card = world.card_or_none
        return card is not None and card.ready and card.decisions.epoch > epoch and also()

    return seen


CLOCK_FAULTS: Final = (
    Fault(id="T1", text="the wall clock jumps by a year", inject=_year),
    Fault(id="T2", text="time stands still for a process, up to 60 s", inject=_stand_still),
    Fault(id="T3", text="a clock drifts as far as is allowed", inject=_drift),
    Fault(id="T4", text="a leap second or a change of summer time", inject=_leap),
    Fault(id="T5", text="a 32-bit counter wraps", inject=_wrap, weight=0.5),
)
