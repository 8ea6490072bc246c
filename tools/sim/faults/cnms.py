"""C1 to C9: modules that die, hang, crawl, come back as somebody else, or lie."""

from collections.abc import Callable
from dataclasses import replace
from itertools import cycle
from typing import Any, Final

from firmware.signs_of_life import lost_ms
from hal.ports import FenceKind
from protocol.apf import AGENT_AGE_NONE, Ctx, Kind, StopRequest, encode
from tools.sim.faults.evidence import (
    cnm_of,
    drawn_module,
    ends,
    events_since,
    said,
    watched,
    when,
    works,
)
from tools.sim.faults.mctp import framed, packets_of
from tools.sim.faults.types import MS, SECOND, Fault, Injection, Site, injection, span_ns
from tools.sim.module import SimModule
from tools.sim.world import DAEMON, World

LEASE_SHARE: Final = 0.4  # of the lease: an init that is away for longer guards nothing (rule 13)
GREY_MOST_S: Final = 15.0  # longer than the module's own patience with its agent
SLOWNESS: Final = 100
DUTY_NS: Final = 5 * MS  # what a slow module runs of each period
LIES: Final[tuple[dict[str, int], ...]] = (
    {"cores_milli": 0xFFFF_FFFF},
    {"memory_bytes": 1 << 60},
    {"nvme_bytes": 1 << 62},
    {"link_mbit": 0xFFFF_FFFF},
    {"cores_milli": 0},
)
VERSIONS: Final[tuple[dict[str, Any], ...]] = (
    {"version_min": 7, "version_current": 9},
    {"layout_hash": b"otherlay"},
)
BACK_NS: Final = 30 * SECOND


def _crash(site: Site) -> Injection | None:
    """Its init is killed, or the module as a whole loses its life."""
    module = site.module()
    if not module.slot.power_good:
        return None
    later = events_since(site.world)
    if site.rng.random() < 0.5 and module.slot.init_node in site.world.kernel.programs.running:
        site.world.kernel.kill(module.init_node)
        text = "its init is killed"
    else:
        module.slot.lose_power()
        text = "it dies at once"
    return injection(
        site,
        "C1",
        f"{module.id}: {text}",
        lambda: bool(later("cnm.suspect", "cnm.fenced", "cnm.booted", cnm=module.id)),
        cnm=module.id,
    )


def paused(world: World, *names: str) -> Callable[[], None]:
    """Stop these processes; calling the result lets those go on that are still the same."""
    stopped = []
    for name in names:
        if works(world, name):
            world.kernel.pause(name)
            stopped.append(world.kernel.nodes[name])
    lives = [node.incarnation for node in stopped]

    def resume() -> None:
        for node, life in zip(stopped, lives, strict=True):
            if node.incarnation == life and node.paused:
                world.kernel.resume(node.name)

    return resume


def longest_pause_s(module: SimModule, world: World, most_s: float) -> float:
    """How long its init may be away: one whose slot has no power fence must wake within its
    lease, because nobody else ends what runs there (DESIGN section 4, rule 13)."""
    if module.slot.fence is FenceKind.POWER:
        return most_s
    return min(most_s, LEASE_SHARE * world.board.timing.lease_ms / 1000)


def silenced(
    site: Site, fault_id: str, text: str, module: SimModule, names: list[str], lasts_ns: int
) -> Injection:
    """These processes stop. Seen: when they go on, the card has not heard that module's heart beat
    for about as long; or it has lost patience with it before."""
    world = site.world
    later, start_ns = events_since(world), world.kernel.now_ns
    beat_ns = world.board.timing.heartbeat_ms * MS
    resume, missed = paused(world, *names), False

    def heal() -> None:
        nonlocal missed
        card = world.card_or_none
        cnm = card.inventory.get(module.id) if card is not None else None
        heard_ns = cnm.heartbeat_ns if cnm is not None else None
        if heard_ns is not None:
            silent_ns = world.kernel.nodes[DAEMON].clock.now_ns() - heard_ns
            span = world.kernel.now_ns - start_ns
            missed = silent_ns >= max(span * 9 // 10, beat_ns * 3 // 2)
        resume()

    return injection(
        site,
        fault_id,
        text,
        lambda: missed or bool(later("cnm.suspect", "cnm.fencing", cnm=module.id)),
        cnm=None if names == [DAEMON] else module.id,
        heal=heal,
        lasts_ns=lasts_ns,
    )


def _hang(site: Site) -> Injection | None:
    module = drawn_module(site)
    if module is None:
        return None
    world = site.world
    beat_s = world.board.timing.heartbeat_ms / 1000
    most_s = longest_pause_s(module, world, 20.0)
    lasts_ns = span_ns(site, min(2 * beat_s, most_s), most_s)
    names = [module.init_node, module.agent_node]
    return silenced(site, "C2", f"{module.id}: init and agent hang", module, names, lasts_ns)


def _grey_hang(site: Site) -> Injection | None:
    """The agent stops and the init does not: heartbeats go on, and their agent's age grows."""
    module = drawn_module(site)
    if module is None or not works(site.world, module.agent_node):
        return None
    beat_s = site.world.board.timing.heartbeat_ms / 1000
    lost_s = lost_ms(site.world.board.timing.heartbeat_ms) / 1000
    lasts_ns = span_ns(site, 0.5 + lost_s + beat_s, GREY_MOST_S + lost_s)
    return injection(
        site,
        "C3",
        f"{module.id}: its agent hangs, heartbeats go on",
        _old_agent(site.world, module, lasts_ns + 2 * int(beat_s * SECOND)),
        cnm=module.id,
        heal=paused(site.world, module.agent_node),
        lasts_ns=lasts_ns,
    )


def _old_agent(world: World, module: SimModule, for_ns: int) -> Callable[[], bool]:
    """Did its init say that it has not heard its agent for longer than is usual?"""
    lost = lost_ms(world.board.timing.heartbeat_ms)

    def old() -> bool:
        cnm = cnm_of(world, module)
        beat = cnm.heartbeat if cnm is not None else None
        return beat is not None and lost <= beat.agent_age_ms < AGENT_AGE_NONE

    return watched(world, old, for_ns=for_ns)


def _slow(site: Site) -> Injection | None:
    """Its processes run for a small part of the time, its disk and its runtime take 100 times as
    long."""
    module = drawn_module(site)
    if module is None:
        return None
    world, slot = site.world, module.slot
    sync_ns, on = slot.disk.sync_ns, True
    if slot.slowness != 1:
        return None
    periods = cycle(site.rng.randint(60, 140) * DUTY_NS * SLOWNESS // 100 for _ in range(16))
    resumes: list[Callable[[], None]] = []

    def rest() -> None:
        if on:
            resumes[:] = [paused(world, module.init_node, module.agent_node)]
            world.kernel.after(next(periods) - DUTY_NS, work)

    def work() -> None:
        for resume in resumes:
            resume()
        if on:
            world.kernel.after(DUTY_NS, rest)

    def heal() -> None:
        nonlocal on
        on = False
        slot.slowness, slot.disk.sync_ns = 1, sync_ns
        work()

    slot.slowness, slot.disk.sync_ns = SLOWNESS, sync_ns * SLOWNESS
    late = _late_beats(world, module, DUTY_NS * SLOWNESS // 5, 10 * SECOND)
    rest()
    return injection(
        site,
        "C4",
        f"{module.id}: {SLOWNESS} times slower",
        late,
        cnm=module.id,
        heal=heal,
        lasts_ns=span_ns(site, 3.0, 30.0),
    )


def _late_beats(world: World, module: SimModule, by_ns: int, for_ns: int) -> Callable[[], bool]:
    """Did the time between two heartbeats differ from the period by so much?"""
    beat_ns = world.board.timing.heartbeat_ms * MS
    last: list[int] = []

    def late() -> bool:
        cnm = cnm_of(world, module)
        heard_ns = cnm.heartbeat_ns if cnm is not None else None
        if heard_ns is None:
            return False
        gap_ns = heard_ns - last[-1] if last else beat_ns
        last[:] = [heard_ns]
        return gap_ns != 0 and abs(gap_ns - beat_ns) >= min(by_ns, beat_ns)

    return watched(world, late, for_ns=for_ns)


def new_boot(world: World, module: SimModule) -> Callable[[], bool]:
    """Did the card meet another boot of it?"""
    card = cnm_of(world, module)
    before = card.boot_id if card is not None else b""
    later = events_since(world)
    return lambda: any(
        event.data["boot_id"] != before.hex() for event in later("cnm.booted", cnm=module.id)
    )


def _reboot(site: Site) -> Injection | None:
    module = site.module()
    if not module.slot.power_good:
        return None
    evidence = new_boot(site.world, module)
    module.slot.reboot()
    return injection(site, "C5", f"{module.id}: it resets itself", evidence, cnm=module.id)


def _reboot_loop(site: Site) -> Injection | None:
    module = site.module()
    if not module.slot.power_good:
        return None
    world, slot, boots = site.world, module.slot, module.slot.boots
    gaps = [span_ns(site, 0.1, 3.0) for _ in range(site.rng.randint(3, 10))]
    on, evidence = True, new_boot(world, module)

    def again(left: list[int]) -> None:
        if on and left:
            slot.reboot()
            world.kernel.after(left[0], lambda: again(left[1:]))

    def heal() -> None:
        nonlocal on
        on = False

    again(gaps)
    return injection(
        site,
        "C6",
        f"{module.id}: it resets itself up to {len(gaps)} times",
        lambda: slot.boots >= boots + 2 and evidence(),
        cnm=module.id,
        heal=heal,
        lasts_ns=sum(gaps),
    )


def _zombie(site: Site) -> Injection | None:
    """A command that is not for what runs comes out of the wire only now: to stop it. It is from a
    former life of the daemon (where there was none, the daemon is restarted first), from another
    card, for another boot of the module, or for a lower generation."""
    world = site.world
    running = sorted(world.running().items())
    if world.card_or_none is None or not world.card.ready or not running:
        return None
    name, (cnm_id, generation, _pid) = site.rng.choice(running)
    module, cnm = world.modules[cnm_id], world.card.inventory.get(cnm_id)
    if cnm is None or not cnm.schedulable or not works(world, DAEMON):
        return None
    epoch = world.card.decisions.epoch
    ctx = Ctx(card_uuid=world.card.decisions.card_uuid, epoch=epoch, boot_id=cnm.boot_id)
    least = epoch  # the card's epoch must be so much when the command arrives
    why = site.rng.choice(("epoch", "epoch", "card", "boot", "generation"))
    if why == "card":
        ctx = replace(ctx, card_uuid=site.rng.randbytes(16))
    elif why == "boot":
        ctx = replace(ctx, boot_id=site.rng.randbytes(16))
    elif why == "generation" and generation > 1:
        generation -= 1
    elif epoch > 1 and site.rng.random() < 0.5:
        ctx = replace(ctx, epoch=epoch - 1)
    else:
        least = epoch + 1
        world.kill_daemon()
        world.kernel.after(span_ns(site, 0.05, 1.0), world.start_daemon)
    command = StopRequest(ctx=ctx, instance=name, generation=generation, grace_ms=0)
    data = encode(
        command,
        kind=Kind.REQUEST,
        message_id=site.rng.getrandbits(32),
        vendor_id=world.board.vendor_id,
    )
    verdict: list[Callable[[], bool]] = []

    def stale() -> bool:
        seen = cnm_of(world, module)
        return (
            seen is not None
            and seen.schedulable
            and world.card.decisions.epoch >= least
            and module.init is not None
            and module.init.guard.binding.epoch >= least
            and len(ends(world, module, links=("agent",))) == 2
        )

    def arrives() -> None:
        card_end, module_end = ends(world, module, links=("agent",))
        verdict.append(card_end.grew("rx_stray_reply"))
        world.judge.stale_command(name, f"a stop of g{generation} with a wrong {why}")
        module_end.line.inject("b", framed(packets_of(data, module_end, tag=0)))

    def alive() -> bool:
        found = world.modules[cnm_id].slot.instances
        return any(one.alive for one in found.values()) or name not in world.running()

    when(world, stale, arrives, limit_ns=BACK_NS)
    return injection(
        site,
        "C7",
        f"{cnm_id}: a stop of {name} g{generation} with a wrong {why} comes late",
        lambda: bool(verdict) and verdict[0]() and alive(),
        cnm=cnm_id,
    )


def _other_version(site: Site) -> Injection | None:
    module = site.module()
    if not module.slot.power_good or module.hello:
        return None
    evidence = said(site.world, "cnm.quarantined", cnm=module.id)
    module.hello = site.rng.choice(VERSIONS)
    module.slot.reboot()

    def heal() -> None:
        module.hello = {}
        module.slot.lose_power()  # its next boot is looked at anew

    return injection(
        site,
        "C8",
        f"{module.id}: boots with {sorted(module.hello)} of another version",
        evidence,
        cnm=module.id,
        heal=heal,
        lasts_ns=span_ns(site, 3.0, 30.0),
    )


def _liar(site: Site) -> Injection | None:
    module = site.module()
    honest = next(slot.module for slot in site.world.board.slots if slot.id == module.id)
    if not module.slot.power_good or module.config.module != honest:
        return None
    evidence = said(site.world, "cnm.quarantined", cnm=module.id)
    lie = site.rng.choice(LIES)
    module.config = replace(module.config, module=replace(honest, **lie))  # type: ignore[arg-type]
    module.slot.reboot()

    def heal() -> None:
        module.config = replace(module.config, module=honest)
        module.slot.lose_power()  # its next boot is looked at anew

    return injection(
        site,
        "C9",
        f"{module.id}: claims {lie}",
        evidence,
        cnm=module.id,
        heal=heal,
        lasts_ns=span_ns(site, 3.0, 30.0),
    )


CNM_FAULTS: Final = (
    Fault(id="C1", text="a module crashes", inject=_crash),
    Fault(id="C2", text="a module hangs: its heartbeats stop", inject=_hang),
    Fault(
        id="C3", text="a grey hang: heartbeats go on, commands do not complete", inject=_grey_hang
    ),
    Fault(id="C4", text="a module is 100 times slower", inject=_slow),
    Fault(id="C5", text="a module reboots and forgets what was in memory", inject=_reboot),
    Fault(id="C6", text="a module reboots again and again", inject=_reboot_loop),
    Fault(id="C7", text="a zombie: a command that is out of date arrives late", inject=_zombie),
    Fault(id="C8", text="another firmware version after a reboot", inject=_other_version),
    Fault(id="C9", text="a module lies about its capacity", inject=_liar),
)
