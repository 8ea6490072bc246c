"""X1 to X5: a module that wants to do harm, with all that it can put on its own links."""

from collections.abc import Callable
from typing import Any, Final

from hal.mock.line_faults import Pieces
from protocol.apf import Heartbeat, InitState, InstanceTelemetry, Kind, StatusReply, encode
from protocol.apf.fields import HEADER_BYTES
from protocol.mctp.serial import frame_serial
from tools.sim.faults.evidence import End, cnm_of, drawn_module, ends, watched, works
from tools.sim.faults.mctp import PEER_EID, framed, packets_of
from tools.sim.faults.types import MS, SECOND, Fault, Injection, Site, injection, span_ns
from tools.sim.module import SimModule
from tools.sim.world import DAEMON

RESERVED_EID: Final = 3  # DSP0236: 1 to 7 are nobody's
FLOOD_FACTOR: Final = 100
FLOOD_LEAST: Final = 10  # packets in a fifth of a second; heartbeats are 2 of them at most
U32: Final = 0xFFFF_FFFF
REPLAYED: Final = 3  # frames
TIMES_REPLAYED: Final = 8
COMMANDS_RECORDED: Final = 40  # frames
REPLAYED_MOST_S: Final = 40.0
FORGED_EIDS: Final = (8, 10, 77, 254)


def _card_end(site: Site, link: str = "mc") -> tuple[SimModule, End] | None:
    """A module that is in use, and the card's end of one of its links."""
    module = drawn_module(site)
    found = ends(site.world, module, links=(link,)) if module is not None else []
    return (module, found[0]) if module is not None and found and found[0].side == "a" else None


def _heartbeat(site: Site, boot_id: bytes) -> bytes:
    beat = Heartbeat(
        boot_id=boot_id,
        seq=site.rng.getrandbits(31),
        init_state=InitState.READY,
        bound_epoch=U32,
        lease_left_ms=U32,
        agent_age_ms=0,
        status_seq=0,
        instances=0,
    )
    return encode(beat, kind=Kind.NOTICE, message_id=1, vendor_id=site.world.board.vendor_id)


def _forged_source(site: Site) -> Injection | None:
    """As from an EID that nobody may have; and as from another module, in its name."""
    found = _card_end(site)
    if found is None:
        return None
    module, end = found
    others = [cnm for cnm in site.world.card.inventory if cnm.id != module.id and cnm.boot_id]
    boot_id = site.rng.choice(others).boot_id if others else bytes(16)
    beat = _heartbeat(site, boot_id)
    reserved = bytearray(packets_of(beat, end, tag=7)[0])
    reserved[2] = RESERVED_EID
    eid = site.rng.choice(FORGED_EIDS)
    foreign = packets_of(beat, end, tag=7, src_eid=eid)
    evidence, packets = end.grew("bad_source"), end.packets
    end.line.inject("a", frame_serial(bytes(reserved)) + framed(foreign))
    return injection(
        site,
        "X1",
        f"{module.id}: frames from EID {RESERVED_EID} and, in another's name, from {eid}",
        lambda: evidence() and end.packets > packets,
        cnm=module.id,
    )


def _replay(site: Site) -> Injection | None:
    """What it has recorded of its heartbeats, and of the card's grants, comes once more; or all
    that its agent was commanded, some of it, in its order, more than once and much later."""
    return _replay_beats(site) if site.rng.random() < 0.5 else _replay_commands(site)


def _replay_commands(site: Site) -> Injection | None:
    """Something is moved there and away again meanwhile: there are commands, and dead ones."""
    module = drawn_module(site)
    found = ends(site.world, module, links=("agent",)) if module is not None else []
    if module is None or len(found) < 2:
        return None
    end = found[1]
    world, way = site.world, end.line.towards("b")
    tape: list[bytes] = []
    verdict: list[Callable[[], bool]] = []
    gap_ns, on = span_ns(site, 0.02, 2.0), True

    def record(data: bytes) -> Pieces:
        tape.append(data)
        if on and not verdict and len(tape) < COMMANDS_RECORDED:
            way.faults.next(record)
        return [(0, data)]

    def play(times: int) -> None:
        found = ends(world, module, links=("agent",))
        if not on:
            return
        if len(found) == 2:
            verdict.append(found[0].grew("rx_stray_reply"))
            verdict.append(found[1].grew("rx_repeated"))
            world.judge.replayed(module.id)
            for frame in tape:
                end.line.inject("b", frame)
        if times > 1:
            world.kernel.after(gap_ns, lambda: play(times - 1))

    def heal() -> None:
        nonlocal on
        on = False
        if record in way.faults.once:
            way.faults.once.remove(record)

    def move(name: str, to: str | None) -> None:
        here = world.where(name)
        ready = works(world, DAEMON) and world.card_or_none is not None and world.card.ready
        if on and ready and here not in (None, to):
            world.begin("instance.migrate", instance=name, to=to)

    way.faults.next(record)
    names = sorted(world.running())
    if names:
        name = site.rng.choice(names)
        move(name, module.id)
        world.kernel.after(span_ns(site, 2.0, 8.0), lambda: move(name, None))
    world.kernel.after(span_ns(site, 4.0, REPLAYED_MOST_S), lambda: play(TIMES_REPLAYED))
    return injection(
        site,
        "X2",
        f"{module.id}: commands to its agent are replayed",
        lambda: any(seen() for seen in verdict),
        cnm=module.id,
        heal=heal,
        lasts_ns=int((REPLAYED_MOST_S + 20) * SECOND),
    )


def _replay_beats(site: Site) -> Injection | None:
    found = _card_end(site)
    if found is None or found[0].init is None:
        return None
    module, end = found
    counters = found[0].init.guard.counters
    before = counters["grant_unknown_seq"]
    card = site.world.card_or_none
    heard = card.fencing.repeated if card is not None else 0

    def seen() -> bool:
        """The module was granted what it never asked for, or the card heard what it knew."""
        if counters["grant_unknown_seq"] > before:
            return True
        return card is not None and card.fencing.repeated > heard

    side = site.rng.choice(("a", "b"))
    way = end.line.towards(side)
    tape: list[bytes] = []
    on = True

    def record(data: bytes) -> Pieces:
        tape.append(data)
        if len(tape) < REPLAYED:
            way.faults.next(record)
        elif on:
            site.world.kernel.after(span_ns(site, 0.01, 10.0), play)
        return [(0, data)]

    def play() -> None:
        for frame in tape:
            end.line.inject(side, frame)

    def heal() -> None:
        nonlocal on
        on = False
        if record in way.faults.once:
            way.faults.once.remove(record)

    way.faults.next(record)
    return injection(
        site,
        "X2",
        f"{module.id}: frames to side {side} are replayed",
        seen,
        cnm=module.id,
        heal=heal,
        lasts_ns=15 * SECOND,
    )


def _wrapped(site: Site) -> Injection | None:
    """Its counters jump to their ends and wrap, one heartbeat after another."""
    module = drawn_module(site)
    if module is None or module.init is None:
        return None
    init = module.init
    mc: Any = init.mc
    before = mc._heartbeat_seq
    mc._heartbeat_seq = mc._telemetry_seq = init.endpoint._next_id = U32 - 1

    def wrapped() -> bool:
        cnm = cnm_of(site.world, module)
        beat = cnm.heartbeat if cnm is not None else None
        fresh = module.init is init and beat is not None and 0 < beat.seq < max(before, 1 << 16)
        return fresh and mc._heartbeat_seq < 1 << 31

    seen = watched(site.world, wrapped, for_ns=10 * SECOND)
    return injection(site, "X3", f"{module.id}: its counters wrap", seen, cnm=module.id)


def _flood(site: Site) -> Injection | None:
    """Telemetry at 100 times its rate."""
    found = _card_end(site)
    if found is None or found[0].init is None:
        return None
    module, end = found
    world, init = site.world, found[0].init
    period_ns = world.board.timing.telemetry_ms * MS // FLOOD_FACTOR
    packets, start_ns, on = end.packets, world.kernel.now_ns, True

    def send() -> None:
        loop = world.kernel.nodes[module.init_node].loop
        if on and module.init is init and loop is not None:
            loop.post(init.mc._send_telemetry)
            world.kernel.after(period_ns, send)

    def heal() -> None:
        nonlocal on
        on = False

    def flooded() -> bool:
        sent = (world.kernel.now_ns - start_ns) // period_ns
        return on and end.packets - packets >= max(FLOOD_LEAST, sent // 2)

    send()
    lasts_ns = span_ns(site, 1.0, 10.0)
    return injection(
        site,
        "X4",
        f"{module.id}: telemetry at {FLOOD_FACTOR} times its rate",
        watched(world, flooded, for_ns=lasts_ns),
        cnm=module.id,
        heal=heal,
        lasts_ns=lasts_ns,
    )


def _too_many(site: Site) -> Injection | None:
    """Bodies that say they hold 255 entries, and hold none: a reply that nobody asked for, and
    telemetry."""
    found = _card_end(site, site.rng.choice(("mc", "agent")))
    if found is None:
        return None
    module, end = found
    cnm = cnm_of(site.world, module)
    assert cnm is not None
    vendor = site.world.board.vendor_id
    bodies = (
        (InstanceTelemetry(boot_id=cnm.boot_id, seq=1, entries=()), Kind.NOTICE),
        (
            StatusReply(boot_id=cnm.boot_id, status_seq=1, total=0, next_cursor=0, entries=()),
            Kind.REPLY,
        ),
    )
    frames = b""
    for body, kind in bodies:
        data = bytearray(encode(body, kind=kind, message_id=1, vendor_id=vendor))
        assert len(data) > HEADER_BYTES
        data[-1] = 0xFF  # the count of entries, the last byte of an empty list
        frames += framed(packets_of(bytes(data), end, tag=7, src_eid=end.link.peer_eid or PEER_EID))
    evidence = _two_bad_bodies(end)
    end.line.inject("a", frames)
    return injection(
        site,
        "X5",
        f"{end.name}: counts of 255 over no entries",
        evidence,
        cnm=module.id,
    )


def _two_bad_bodies(end: End) -> Callable[[], bool]:
    counters = end.endpoint.counters
    before = counters["rx_bad_body"]
    return lambda: counters["rx_bad_body"] >= before + 2


MALICIOUS_FAULTS: Final = (
    Fault(id="X1", text="a forged source EID", inject=_forged_source),
    Fault(id="X2", text="recorded frames are replayed", inject=_replay),
    Fault(id="X3", text="a counter that wraps", inject=_wrapped),
    Fault(id="X4", text="telemetry at 100 times its rate", inject=_flood, weight=0.5),
    Fault(id="X5", text="counts that promise more than the message holds", inject=_too_many),
)
