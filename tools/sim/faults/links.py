"""L1 to L12: what happens to frames on a control link.

What one write hands to the line is one frame. A fault strikes the next frame that comes to an end
which listens; half of the time it then goes on for a while, by lot, on all links of the module.
The evidence is the receiver's own: packets that it took at the time when the frame was due, or did
not, and what it counted as damaged.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from hal.mock import line_faults
from hal.mock.line_faults import LinePlan, Pieces
from protocol.crc import fcs16
from protocol.mctp.serial import frame_serial
from protocol.mctp.serial_frame import ESCAPE, FLAG, HEAD_BYTES, REVISION, TAIL_BYTES, unescape
from tools.sim.faults.evidence import End, drawn_end
from tools.sim.faults.types import MS, SECOND, Fault, Inject, Injection, Site, injection, span_ns
from tools.sim.module import LINKS, SimModule
from tools.sim.world import World

Change = Callable[[bytes], Pieces]
DELAY_MOST_S: Final = 10.0
SHARES: Final = (0.01, 0.05, 0.2, 0.5)
WAYS: Final = tuple(f"{name} {way}" for name in LINKS for way in ("to the module", "to the card"))
SILENCES: Final = (WAYS, WAYS[:2], WAYS[2:], *((way,) for way in WAYS))
SILENCE_SHARE: Final = 0.4
SILENCE_MOST_S: Final = 60.0  # beyond any lease that a seed draws
MAX_COUNT: Final = 255  # of a frame: its count is one byte


class Strike:
    """A change to the next frame that comes to an end, and what the receiver made of it."""

    def __init__(self, world: World, end: End, change: Change, *, late_ns: int = 0) -> None:
        """`late_ns`: how much later than due the frame comes, for `late`."""
        self.frame: bytes | None = None  # as it was sent
        self.before = self.due = self.late = -1  # packets taken: before it was due, then, and late
        self._world, self._end, self._change = world, end, change
        self._late_ns = late_ns
        end.line.towards(end.side).faults.next(self._strike)

    def _strike(self, data: bytes) -> Pieces:
        self.frame = data
        kernel = self._world.kernel
        due_ns = self._end.line.towards(self._end.side).free_ns
        kernel.at(due_ns - 1, lambda: self._look("before"))
        kernel.at(due_ns + 1, lambda: self._look("due"))
        kernel.at(due_ns + self._late_ns + 1, lambda: self._look("late"))
        return self._change(data)

    def _look(self, name: str) -> None:
        setattr(self, name, self._end.packets)

    @property
    def taken(self) -> int | None:
        """Packets that the receiver took when this one was due; None until then."""
        return None if self.before < 0 or self.due < 0 else self.due - self.before

    @property
    def taken_late(self) -> int | None:
        """Packets that it took from when this one was due until when it came."""
        return None if self.before < 0 or self.late < 0 else self.late - self.before

    def cancel(self) -> None:
        """Don't strike any more."""
        once = self._end.line.towards(self._end.side).faults.once
        if self._strike in once:
            once.remove(self._strike)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rain:
    """A plan on directions of a module's links, as far as there was none."""

    module: SimModule
    plan: LinePlan
    ways: tuple[str, ...] = WAYS

    def begin(self) -> None:
        for faults in self._faults():
            if faults.plan is None:
                faults.plan = self.plan

    def end(self) -> None:
        for faults in self._faults():
            if faults.plan is self.plan:
                faults.plan = None

    def _faults(self) -> list[line_faults.LineFaults]:
        found = []
        for way in self.ways:
            name, _, side = way.partition(" ")
            line = self.module.lines[name]
            found.append((line.a_to_b if side == "to the module" else line.b_to_a).faults)
        return found


def struck(
    fault_id: str,
    text: str,
    change: Callable[[Site], Change],
    plan: Callable[[float], LinePlan] | None,
    seen: Callable[[Strike, End], Callable[[], bool]],
) -> Fault:
    """A fault that strikes one frame, and then, by lot, one in so many."""

    def inject(site: Site) -> Injection | None:
        end = drawn_end(site, talking=True)
        if end is None:
            return None
        strike = Strike(site.world, end, change(site))
        evidence = seen(strike, end)
        rain, more = None, ""
        if plan is not None and site.rng.random() < 0.5:
            share = site.rng.choice(SHARES)
            more = f", then {share:.0%} of all"
            rain = Rain(module=site.world.modules[end.cnm], plan=plan(share))
            rain.begin()

        def heal() -> None:
            strike.cancel()
            if rain is not None:
                rain.end()

        return injection(
            site,
            fault_id,
            f"{end.name}: {text}{more}",
            evidence,
            cnm=end.cnm,
            heal=heal,
            lasts_ns=span_ns(site, 0.5, 20.0) if rain is not None else 3 * SECOND,
        )

    return Fault(id=fault_id, text=text, inject=inject)


def _silence(site: Site) -> Injection | None:
    """Nothing comes through any more, one way, on one link or on both: what leases are for."""
    end = drawn_end(site, talking=True)
    if end is None:
        return None
    strike = Strike(site.world, end, line_faults.drop())
    ways = site.rng.choice(SILENCES)
    rain = Rain(module=site.world.modules[end.cnm], plan=LinePlan(drop=1.0), ways=ways)
    rain.begin()

    def heal() -> None:
        strike.cancel()
        rain.end()

    return injection(
        site,
        "L1",
        f"{end.name}: a frame is dropped, then all of {', '.join(ways)}",
        lambda: strike.taken == 0,
        cnm=end.cnm,
        heal=heal,
        lasts_ns=span_ns(site, 0.5, SILENCE_MOST_S),
    )


def _dropped(fault: Fault) -> Fault:
    """L1, of which many are silences, and often: they are what leases and fences are for."""
    some = fault.inject
    assert some is not None
    return replace(
        fault,
        weight=3.0,
        inject=lambda site: _silence(site) if site.rng.random() < SILENCE_SHARE else some(site),
    )


def _damaged(_strike: Strike, end: End) -> Callable[[], bool]:
    return end.more_errors()


def _flip(site: Site) -> Change:
    """Of the packet, its head or its checksum; a flag may be shared with the frame before."""
    at, bit = site.rng.random(), site.rng.randrange(8)
    return lambda data: line_faults.flip(1 + int(at * (len(data) - 2)), 1 << bit)(data)


def _burst(site: Site) -> Change:
    noise, at = site.rng.randbytes(site.rng.randint(4, 24)), site.rng.random()
    return lambda data: line_faults.burst(1 + int(at * (len(data) - 6)), noise)(data)


def _truncate(site: Site) -> Change:
    at = site.rng.random()
    return lambda data: line_faults.truncate(1 + int(at * (len(data) - 2)))(data)


def _spurious(site: Site) -> Change:
    """Flags and escapes in front, the last one an escape: then it is no padding between frames."""
    noise = bytes(site.rng.choices((FLAG, ESCAPE), k=site.rng.randint(0, 12))) + bytes((ESCAPE,))
    return line_faults.garbage(noise)


def _reorder(site: Site) -> Injection | None:
    end = drawn_end(site, talking=True)
    if end is None:
        return None
    held: list[bytes] = []

    def keep(data: bytes) -> Pieces:
        held.append(data)
        return []

    first = Strike(site.world, end, keep)
    second = Strike(site.world, end, lambda data: [(0, data), (0, held.pop())])

    def heal() -> None:
        first.cancel()
        second.cancel()

    return injection(
        site,
        "L3",
        f"{end.name}: two frames change places",
        lambda: first.taken == 0 and second.taken == 2,
        cnm=end.cnm,
        heal=heal,
        lasts_ns=5 * SECOND,
    )


def _delay(site: Site) -> Injection | None:
    end = drawn_end(site, talking=True)
    if end is None:
        return None
    by_ns = span_ns(site, 0.005, DELAY_MOST_S)
    strike = Strike(site.world, end, line_faults.delay(by_ns), late_ns=by_ns)
    return injection(
        site,
        "L4",
        f"{end.name}: {by_ns // MS} ms late, and what follows it",
        lambda: strike.taken == 0 and (strike.taken_late or 0) > 0,
        cnm=end.cnm,
        heal=strike.cancel,
        lasts_ns=3 * SECOND,
    )


def _split(site: Site) -> Injection | None:
    """One frame in two reads, or two frames in one."""
    end = drawn_end(site, talking=True)
    if end is None:
        return None
    if site.rng.random() < 0.5:
        gap_ns, at = span_ns(site, 0.0005, 0.2), site.rng.random()

        def split(data: bytes) -> Pieces:
            return line_faults.split(1 + int(at * (len(data) - 2)), gap_ns)(data)

        strikes = [Strike(site.world, end, split, late_ns=gap_ns)]
        text = f"in two parts, {gap_ns / MS:.1f} ms apart"
    else:
        held: list[bytes] = []

        def keep(data: bytes) -> Pieces:
            held.append(data)
            return []

        strikes = [
            Strike(site.world, end, keep),
            Strike(site.world, end, lambda data: [(0, held.pop() + data)]),
        ]
        text = "two of them in one read"

    def heal() -> None:
        for strike in strikes:
            strike.cancel()

    def seen() -> bool:
        first, last = strikes[0], strikes[-1]
        came = first.taken_late == 1 if first is last else last.taken == 2
        return first.taken == 0 and came

    return injection(
        site, "L8", f"{end.name}: {text}", seen, cnm=end.cnm, heal=heal, lasts_ns=5 * SECOND
    )


def wire(count: int, packet: bytes) -> bytes:
    """A frame with this byte count and this packet, as it is, and a right checksum."""
    head = bytes((REVISION, count))
    body = packet.replace(b"\x7d", b"\x7d\x5d").replace(b"\x7e", b"\x7d\x5e")
    return b"%c%b%b%b%c" % (FLAG, head, body, fcs16(head + packet).to_bytes(2, "big"), FLAG)


def injected(
    fault_id: str,
    frames: Callable[[Site, End], bytes],
    seen: Callable[[End], Callable[[], bool]],
    text: str,
) -> Inject:
    """Bytes that nobody sent come to an end that listens."""

    def inject(site: Site) -> Injection | None:
        end = drawn_end(site)
        if end is None:
            return None
        evidence = seen(end)
        end.line.inject(end.side, frames(site, end))
        return injection(site, fault_id, f"{end.name}: {text}", evidence, cnm=end.cnm)

    return inject


def _longest(site: Site, end: End) -> bytes:
    """A good frame of the greatest length, whose packet is nobody's, and one with a byte more than
    its count can say."""
    packet = bytes((1, end.link.local_eid, end.link.peer_eid or 9, 0xC8)) + b"\x7e\0\0"
    packet += site.rng.randbytes(MAX_COUNT - len(packet))
    return wire(MAX_COUNT, packet) + wire(MAX_COUNT, packet + b"\x55")


def _longest_seen(end: End) -> Callable[[], bool]:
    packets, errors = end.packets, end.errors()
    # the longest is a packet whose message is refused; the longer one is no packet at all
    return lambda: end.packets > packets and end.errors() >= errors + 2


def _other_content(site: Site) -> Change:
    """The packet with one field of the message's head or its length changed, and a right FCS.

    Only what a receiver can and must refuse: a right checksum over a wrong lease time would be
    believed, by any design that has nothing but a checksum.
    """
    kind = site.rng.randrange(4)
    noise = site.rng.randbytes(3)

    def change(data: bytes) -> Pieces:
        packet = bytearray(unescape(data[HEAD_BYTES:-TAIL_BYTES]))
        if kind == 0:
            packet[5:7] = b"\xff" + noise[:1]  # another vendor
        elif kind == 1:
            packet[7] = 0xEE  # another version
        elif kind == 2:
            packet[8] = 0x3F  # no request, reply or notice
        else:
            packet = packet[:-1] if len(packet) - 1 not in (125, 126) else packet[:-3]
        return [(0, frame_serial(bytes(packet)))]

    return change


LINK_FAULTS: Final = (
    _dropped(
        struck(
            "L1",
            "a frame is dropped",
            lambda _site: line_faults.drop(),
            lambda share: LinePlan(drop=share),
            lambda strike, _end: lambda: strike.taken == 0,
        )
    ),
    struck(
        "L2",
        "a frame arrives twice",
        lambda _site: line_faults.duplicate(),
        lambda share: LinePlan(duplicate=share),
        lambda strike, _end: lambda: strike.taken == 2,
    ),
    Fault(id="L3", text="two frames change places", inject=_reorder),
    Fault(id="L4", text="a frame is delayed, by up to 10 s", inject=_delay),
    struck(
        "L5",
        "one bit of a frame turns over",
        _flip,
        lambda share: LinePlan(flip=share),
        _damaged,
    ),
    struck(
        "L6",
        "a burst of noise overwrites a part of a frame",
        _burst,
        lambda share: LinePlan(burst=share),
        _damaged,
    ),
    struck(
        "L7",
        "a frame is cut short",
        _truncate,
        lambda share: LinePlan(truncate=share),
        _damaged,
    ),
    Fault(id="L8", text="frames are split over reads, or run together in one", inject=_split),
    struck(
        "L9",
        "flags and escapes that nobody sent",
        _spurious,
        lambda share: LinePlan(garbage=share),
        _damaged,
    ),
    Fault(
        id="L10",
        text="a frame of length zero",
        inject=injected(
            "L10", lambda _site, _end: wire(0, b""), lambda end: end.grew("empty"), "length zero"
        ),
    ),
    Fault(
        id="L11",
        text="a frame of the greatest length, and one longer than that",
        inject=injected("L11", _longest, _longest_seen, "the longest, and one longer"),
    ),
    struck(
        "L12", "a frame with a right checksum and wrong content", _other_content, None, _damaged
    ),
)
