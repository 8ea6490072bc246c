"""D1 to D6: the daemon is killed, throws, stalls, hangs, is flooded, or has its queues filled."""

from typing import Final

from firmware.control_connection import MAX_OUTSTANDING
from firmware.endpoint import TAGS, WAITING_LIMIT
from firmware.events import RATE_BURST
from firmware.supervision import SupervisionTiming
from firmware.transfer_logs import LOGS_MAX
from protocol.apf import CapabilitiesRequest
from tools.sim.faults.cnms import paused
from tools.sim.faults.evidence import cnm_of, works
from tools.sim.faults.northbound import Client
from tools.sim.faults.storage import poke
from tools.sim.faults.types import MS, SECOND, Fault, Injection, Site, injection, span_ns
from tools.sim.world import DAEMON, Crash, World

STEPS_MOST: Final = 400
STALL_LEAST_S: Final = 0.05  # I5: no handler longer than that
STALL_MOST_S: Final = 1.5  # below the watchdog
TIMING: Final = SupervisionTiming()
FLOOD: Final = RATE_BURST + 64
MORE: Final = 32  # than fit
STOPPED_PPM: Final = -1_000_000


def _runs(world: World) -> bool:
    return world.card_or_none is not None and world.card.ready and works(world, DAEMON)


def _next_life(world: World, epoch: int) -> bool:
    """Is a daemon of a later epoch ready?"""
    card = world.card_or_none
    return card is not None and card.ready and card.decisions.epoch > epoch


def _kill(site: Site) -> Injection | None:
    """After a drawn number of turns of its loop: between any two of them, wherever that is."""
    world = site.world
    if not _runs(world):
        return None
    node, epoch = world.kernel.nodes[DAEMON], world.card.decisions.epoch
    if node.on_step is not None:
        return None  # it is doomed already
    left = site.rng.randint(1, STEPS_MOST)
    turns, back_ns = left, span_ns(site, 0.05, 8.0)

    def step() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            world.kill_daemon()
            world.kernel.after(back_ns, world.start_daemon)

    def heal() -> None:
        if node.on_step is step:
            node.on_step = None

    node.on_step = step
    return injection(
        site,
        "D1",
        f"SIGKILL after {turns} turns of the loop, back after {back_ns / SECOND:.2f} s",
        lambda: _next_life(world, epoch),
        heal=heal,
        lasts_ns=30 * SECOND,
    )


def _throw(site: Site) -> Injection | None:
    """An exception leaves a handler: the process ends of it, and its supervisor starts another."""
    world = site.world
    if not _runs(world):
        return None
    epoch, daemons = world.card.decisions.epoch, world.daemons

    def handler() -> None:
        raise Crash("a handler met what nobody expected")

    world.card.loop.call_later(site.rng.randrange(SECOND), handler)
    return injection(
        site,
        "D2",
        "an exception leaves a handler",
        lambda: world.daemons > daemons and _next_life(world, epoch),
    )


def _stall(site: Site) -> Injection | None:
    """A handler takes long. Its clock shows that at once and then stands still for as long as
    the others take to get there, while nothing of it runs."""
    world = site.world
    if not _runs(world):
        return None
    node, loop = world.kernel.nodes[DAEMON], world.card.loop
    stall_ns = span_ns(site, STALL_LEAST_S, STALL_MOST_S)
    before_ns, life = loop.longest_turn_ns, node.incarnation

    def handler() -> None:
        rate = node.clock.rate_ppm
        world.kernel.pause(DAEMON)
        node.clock.skip(stall_ns)
        node.clock.set_rate(STOPPED_PPM)

        def over() -> None:
            if node.clock.rate_ppm == STOPPED_PPM:  # else a drift (T3) was healed meanwhile
                node.clock.set_rate(rate)
            if node.incarnation == life and node.paused:
                world.kernel.resume(DAEMON)

        world.kernel.after(stall_ns, over)

    loop.post(handler)
    return injection(
        site,
        "D3",
        f"a handler takes {stall_ns / MS:.0f} ms",
        lambda: loop.longest_turn_ns >= max(stall_ns, before_ns),
    )


def _hang(site: Site) -> Injection | None:
    """It hangs for good: no sign of life reaches its supervisor, which ends it and starts
    another (`firmware.supervision` and its times)."""
    world = site.world
    if not _runs(world):
        return None
    epoch, node = world.card.decisions.epoch, world.kernel.nodes[DAEMON]
    life = node.incarnation
    since_beat_ns = site.rng.randrange(TIMING.watchdog_ns // 2)

    def abort() -> None:
        if node.incarnation == life and node.paused:
            world.kill_daemon()
            world.kernel.after(TIMING.restart_delay_ns, world.start_daemon)

    world.kernel.pause(DAEMON)
    world.kernel.after(TIMING.watchdog_ns - since_beat_ns + TIMING.abort_grace_ns, abort)
    return injection(
        site,
        "D4",
        "it hangs and misses its watchdog",
        lambda: _next_life(world, epoch),
    )


def _flood(site: Site) -> Injection | None:
    """More events of one code than are kept, and more bytes of a log than a pipe holds."""
    world = site.world
    if not _runs(world):
        return None
    events = world.card.events
    before = events.suppressed
    for module in world.modules.values():
        for _, one in sorted(module.slot.instances.items()):
            one.write(b"a tenant that prints and prints\n" * 4096)
    poke(site, 2 * FLOOD)
    return injection(site, "D5", f"{2 * FLOOD} events at once", lambda: events.suppressed > before)


def _overfull(site: Site) -> Injection | None:
    """More than fits is asked of a module whose agent does not answer: requests on its link,
    reads of its logs, or writes on one connection. What is too much is refused at once."""
    world = site.world
    running = sorted(world.running().items())
    if not _runs(world) or world.control is None or not running:
        return None
    name, (cnm_id, _, _) = site.rng.choice(running)
    module, cnm = world.modules[cnm_id], cnm_of(world, world.modules[cnm_id])
    if cnm is None or not cnm.schedulable or not works(world, module.agent_node):
        return None
    kind = site.rng.randrange(3)
    resume, client = paused(world, module.agent_node), Client(world)
    refused: list[object] = []
    if kind == 0:
        text, counters = "requests on the link", cnm.agent.counters
        before = counters["tx_requests_full"]
        for _ in range(TAGS + WAITING_LIMIT + MORE):
            cnm.agent.request(CapabilitiesRequest(), refused.append)
    elif kind == 1:
        text = "reads of its logs"
        refused += [world.begin("instance.logs", instance=name) for _ in range(LOGS_MAX + MORE)]
    else:
        text = "calls on one connection"
        method = "cnm.drain" if cnm.draining else "cnm.undrain"
        for number in range(MAX_OUTSTANDING + MORE):
            client.call(number, method, id=cnm_id)

    def seen() -> bool:
        if kind == 0:
            return counters["tx_requests_full"] >= before + MORE
        if kind == 1:
            return "log reads are open" in str(refused)
        return client.errors().count("too_many_outstanding") >= MORE

    def heal() -> None:
        resume()
        client.close()

    return injection(
        site,
        "D6",
        f"{cnm_id}: too many {text}",
        seen,
        cnm=cnm_id,
        heal=heal,
        lasts_ns=span_ns(site, 0.1, 3.0),
    )


DAEMON_FAULTS: Final = (
    Fault(id="D1", text="the daemon is killed at any point", inject=_kill),
    Fault(id="D2", text="an exception that nobody expected leaves a handler", inject=_throw),
    Fault(id="D3", text="a handler holds the loop up for more than 50 ms", inject=_stall),
    Fault(id="D4", text="the daemon hangs and misses its watchdog", inject=_hang),
    Fault(id="D5", text="a flood of events", inject=_flood, weight=0.3),
    Fault(id="D6", text="a queue is full", inject=_overfull, weight=0.5),
)
