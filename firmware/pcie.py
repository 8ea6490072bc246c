"""The slots' PCIe links against what the board says they must be, and what goes wrong on them.

What is behind each slot's port is looked at when something happened there, and every
`LOOK_EVERY_MS` besides. A link that trained too slow or too narrow works, and is told: it is a bad
contact or a bad module. Errors are counted by kind, for each slot; what the kernel does about them
(AER, DPC; PCI Express Base 5.0, 6.2) is told when it begins and how it ended. Of errors that the
link itself has corrected, a storm is told at its first one and then as a sum now and then: one slot
must not drown what the others have to tell.

A link that goes down is a detection and never a fence (DESIGN section 4, rule 10).
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from firmware.board_hardware import SlotPcie
from hal.errors import HalError
from hal.pci_ports import PciAddress, PciBus, PciDevice, PciEvent, PciEventKind
from hal.ports import Reactor
from protocol.errors import ProtocolError
from protocol.pcie import parse_function

MS: Final = 1_000_000
LOOK_EVERY_MS: Final = 10_000  # what no event has told
CORRECTED_EVERY_MS: Final = 10_000  # between two reports of one slot
LOOK_SOON_MS: Final = 20  # several events of one change are one look
LOOK_DEADLINE_MS: Final = 5_000
DEPTH_LIMIT: Final = 8  # bridges between a function and its slot's port

ERRORS: Final = frozenset(
    {
        PciEventKind.AER_CORRECTABLE,
        PciEventKind.AER_NONFATAL,
        PciEventKind.AER_FATAL,
        PciEventKind.DPC,
        PciEventKind.RECOVERING,
        PciEventKind.RECOVERED,
        PciEventKind.LOST,
    }
)
UNCORRECTED: Final = ERRORS - {PciEventKind.AER_CORRECTABLE, PciEventKind.RECOVERED}


class LinkVerdict(StrEnum):
    """A slot's link, measured against the board."""

    UNKNOWN = "unknown"  # not looked at yet
    NO_PORT = "no_port"  # the board names a port that this host doesn't have
    ABSENT = "absent"  # nothing in the slot, or it has no power
    DOWN = "down"  # something is there, and its link is not up
    SLOW = "slow"
    NARROW = "narrow"
    GOOD = "good"


@dataclass(slots=True)
class SlotLink:
    """One slot's port and what is behind it now."""

    cnm: str
    want: SlotPcie
    port: PciAddress
    verdict: LinkVerdict = LinkVerdict.UNKNOWN
    functions: tuple[PciAddress, ...] = ()  # behind the port, in order
    speed_mts: int = 0
    width: int = 0
    slot: str = ""  # the physical slot's name
    contained: bool = False  # DPC holds the link down now
    counts: Counter[PciEventKind] = field(default_factory=Counter)  # at most one for each kind
    changes: int = 0  # of the verdict
    corrected: int = 0  # errors that the link has corrected, and that were not told yet
    corrected_ns: int | None = None  # when such were told last

    def to_json(self) -> dict[str, object]:
        return {
            "cnm": self.cnm,
            "port": str(self.port),
            "slot": self.slot,
            "verdict": str(self.verdict),
            "functions": [str(address) for address in self.functions],
            "speed_mts": self.speed_mts,
            "want_speed_mts": self.want.speed_mtps,
            "width": self.width,
            "want_width": self.want.width,
            "contained": self.contained,
            "events": {kind.value: self.counts[kind] for kind in PciEventKind if self.counts[kind]},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkReport:
    """Something that people should know of one slot's link. `error` is None for a change of the
    verdict."""

    cnm: str
    verdict: LinkVerdict
    error: PciEventKind | None
    text: str
    count: int = 1


class SlotLinks:
    """All slots of the card that have a port. Loop thread only."""

    def __init__(
        self,
        reactor: Reactor,
        bus: PciBus,
        wanted: Mapping[str, SlotPcie],
        *,
        on_report: Callable[[LinkReport], None],
        on_gone: Callable[[str], None] = lambda _cnm: None,
    ) -> None:
        """`wanted` is CNM id -> its port and link; `on_gone(cnm)` is called at once when what is
        behind a port vanishes or its link goes down. Starts to listen and to look. Raises
        Refused (a port that is no address) and what the bus raises."""
        self._reactor, self._bus = reactor, bus
        self._on_report, self._on_gone = on_report, on_gone
        self.links = {
            cnm: SlotLink(cnm=cnm, want=want, port=PciAddress.parse(want.port))
            for cnm, want in wanted.items()
        }
        self._by_port = {link.port: link for link in self.links.values()}
        self._parents: dict[PciAddress, PciAddress] = {}  # of the functions of the last look
        self.elsewhere: Counter[PciEventKind] = Counter()  # events of what is behind no slot
        self.failed_looks = 0
        self._looking = False
        self._again = False
        self._soon = False
        self._closed = False
        self._cancel: Callable[[], None] = lambda: None
        bus.on_event(self._happened)
        self._look_at_ns(reactor.now_ns())

    def close(self) -> None:
        """Look no more; the bus stays open."""
        self._closed = True
        self._cancel()

    # --- events ---

    def _happened(self, event: PciEvent) -> None:
        if self._closed:
            return
        link = self._link_of(event)
        if link is None:
            self.elsewhere[event.kind] += event.count
        else:
            link.counts[event.kind] += event.count
            if event.kind is PciEventKind.AER_CORRECTABLE:
                link.corrected += event.count
                self._tell_corrected(link, str(event.address or f"slot {event.slot}"))
            elif event.kind in ERRORS:
                self._tell_error(link, event)
            if event.kind is PciEventKind.REMOVED and event.address in link.functions:
                link.functions = tuple(a for a in link.functions if a != event.address)
                if not link.functions:
                    self._on_gone(link.cnm)
        if event.kind is not PciEventKind.AER_CORRECTABLE:  # those change no link
            self._look_soon()

    def _link_of(self, event: PciEvent) -> SlotLink | None:
        """By the port above the function, by the port itself, or by the slot's name."""
        address = event.address
        for _ in range(DEPTH_LIMIT):
            if address is None:
                break
            if address in self._by_port:
                return self._by_port[address]
            address = self._parents.get(address)
        named = (link for link in self.links.values() if event.slot and link.slot == event.slot)
        return next(named, None)

    def _tell_error(self, link: SlotLink, event: PciEvent) -> None:
        where = str(event.address) if event.address is not None else f"slot {event.slot}"
        words = [f"{event.kind.value} at {where}", event.text]
        if event.kind in UNCORRECTED:
            words += self._port_words(link)
        self._report(link, "; ".join(word for word in words if word), event.kind, event.count)

    def _tell_corrected(self, link: SlotLink, where: str) -> None:
        now_ns, told_ns = self._reactor.now_ns(), link.corrected_ns
        if told_ns is not None and now_ns - told_ns < CORRECTED_EVERY_MS * MS:
            return
        count, link.corrected, link.corrected_ns = link.corrected, 0, now_ns
        kind = PciEventKind.AER_CORRECTABLE
        self._report(link, f"{kind.value} at {where}; {count} of them", kind, count)

    def _port_words(self, link: SlotLink) -> list[str]:
        """What the port itself says: which errors it has seen, and whether it has contained one."""
        try:
            found = parse_function(self._bus.config(link.port))
        except (HalError, ProtocolError) as exc:
            return [f"the port can't be read: {exc}"]
        words = []
        if found.aer is not None and (found.aer.fatal or found.aer.nonfatal):
            words.append(f"the port has seen {', '.join(found.aer.fatal + found.aer.nonfatal)}")
        contained = found.dpc is not None and found.dpc.triggered
        if found.dpc is not None and contained:
            words.append(f"DPC holds the link down ({found.dpc.reason})")
            if not link.contained:
                link.counts[PciEventKind.DPC] += 1
        link.contained = contained
        slot = found.express.slot if found.express is not None else None
        if slot is not None and slot.power_fault:
            words.append("the slot's power controller tells a fault")
        return words

    # --- looks ---

    def _look_soon(self) -> None:
        """One look for all that happens until then; what happens during a look asks for another."""
        if self._looking:
            self._again = True
        elif not self._soon:
            self._soon = True
            self._look_at_ns(self._reactor.now_ns() + LOOK_SOON_MS * MS)

    def _look_at_ns(self, when_ns: int) -> None:
        self._cancel()
        self._cancel = self._reactor.call_at(when_ns, self._look)

    def _look(self) -> None:
        self._looking, self._soon = True, False
        deadline_ns = self._reactor.now_ns() + LOOK_DEADLINE_MS * MS
        self._bus.submit_scan(deadline_ns, self._seen)

    def _seen(self, found: Sequence[PciDevice] | HalError) -> None:
        self._looking = False
        if self._closed:
            return
        if isinstance(found, HalError):
            self.failed_looks += 1
        else:
            self._parents = {d.address: d.parent for d in found if d.parent is not None}
            devices = {device.address: device for device in found}
            for link in self.links.values():
                self._judge(link, devices)
        if self._again:
            self._again = False
            self._look_soon()
        else:
            self._look_at_ns(self._reactor.now_ns() + LOOK_EVERY_MS * MS)

    def _judge(self, link: SlotLink, devices: Mapping[PciAddress, PciDevice]) -> None:
        port = devices.get(link.port)
        children = tuple(d for d in devices.values() if d.parent == link.port)
        if link.contained:
            self._port_words(link)  # the kernel may have released it
        if link.corrected:
            self._tell_corrected(link, str(link.port))
        had = link.functions
        link.functions = tuple(sorted(child.address for child in children))
        link.slot = next((child.slot for child in children if child.slot), link.slot)
        trained = port.link if port is not None else None
        link.speed_mts = trained.speed_mts if trained is not None and children else 0
        link.width = trained.width if trained is not None and children else 0
        verdict = _verdict(link, port, bool(children))
        fell = verdict is LinkVerdict.DOWN and link.verdict is not verdict
        if had and (fell or not children):
            self._on_gone(link.cnm)
        if verdict is not link.verdict:
            link.verdict = verdict
            link.changes += 1
            more = self._port_words(link) if verdict is LinkVerdict.DOWN else []
            self._report(link, "; ".join([_words(link), *more]), None, 1)

    def _report(self, link: SlotLink, text: str, error: PciEventKind | None, count: int) -> None:
        self._on_report(
            LinkReport(cnm=link.cnm, verdict=link.verdict, error=error, text=text, count=count)
        )


def _verdict(link: SlotLink, port: PciDevice | None, occupied: bool) -> LinkVerdict:
    if port is None or port.link is None:
        return LinkVerdict.NO_PORT
    if not occupied:
        return LinkVerdict.ABSENT
    if not link.speed_mts or not link.width:
        return LinkVerdict.DOWN
    if link.speed_mts < link.want.speed_mtps:
        return LinkVerdict.SLOW
    if link.width < link.want.width:
        return LinkVerdict.NARROW
    return LinkVerdict.GOOD


def _words(link: SlotLink) -> str:
    want = f"{link.want.speed_mtps} MT/s x{link.want.width}"
    match link.verdict:
        case LinkVerdict.NO_PORT:
            return f"no PCIe port at {link.port}: the board describes another card"
        case LinkVerdict.ABSENT:
            return f"nothing behind port {link.port}"
        case LinkVerdict.DOWN:
            return f"the link of port {link.port} is down; want {want}"
        case _:
            return f"port {link.port} trained to {link.speed_mts} MT/s x{link.width}; want {want}"
