"""P4 to P6: errors that PCI Express itself tells. They fit cards whose slots have ports (rev_a).

Evidence is the card's own: what it said of that slot's link. A window is behind its module's link,
so it is out of reach as long as that is down; the module itself lives on.
"""

from collections.abc import Callable
from typing import Final

from firmware.board_types import Board
from hal.pci_ports import PciEventKind
from tools.sim.faults.evidence import cnm_of, events_since
from tools.sim.faults.types import MS, Fault, Injection, Site, injection, span_ns
from tools.sim.module import SimModule
from tools.sim.pcie import CORRECTABLE_STATUS, UNCORRECTABLE_STATUS, SlotFabric

NO_PORTS: Final = "this board's slots have no PCIe ports; those of rev_a have"
CORRECTABLE: Final = (0, 6, 7, 8, 12)  # bits of 7.8.4.5: receiver, TLP, DLLP, rollover, timer
NONFATAL: Final = (12, 14, 15, 16)  # of 7.8.4.2: poisoned, completion time-out or abort, unexpected
FATAL: Final = (4, 5, 13, 18)  # data link protocol, surprise down, flow control, malformed


def has_ports(board: Board) -> bool:
    return any(slot.pcie is not None for slot in board.slots)


def fabric_of(site: Site, module: SimModule) -> SlotFabric | None:
    """The module's, when it answers there and the card looks."""
    pcie = site.world.pcie
    if pcie is None or cnm_of(site.world, module) is None:
        return None
    found = pcie.fabrics[module.id]
    return found if found.up else None


def _told(site: Site, module: SimModule, *words: str) -> Callable[[], bool]:
    """Has the card said each of these words of that slot's link since now?"""
    later = events_since(site.world)

    def seen() -> bool:
        said = [event.text for event in later("slot.link", cnm=module.id)]
        return all(any(word in text for text in said) for word in words)

    return seen


def _storm(site: Site) -> Injection | None:
    """Corrected errors without end, as the kernel counts them: many in each look at the counts."""
    module = site.module()
    fabric = fabric_of(site, module)
    if fabric is None:
        return None
    seen = _told(site, module, "aer_correctable")
    kernel, period_ns = site.world.kernel, site.rng.choice((5, 100, 1000)) * MS
    bits = 1 << site.rng.choice(CORRECTABLE)
    most = site.rng.choice((1, 100, 1_000_000))
    on = True

    def blow() -> None:
        if on:
            if fabric.up:
                fabric.status(CORRECTABLE_STATUS, bits)
                fabric.function.error(PciEventKind.AER_CORRECTABLE, most)
            kernel.after(period_ns, blow)

    def heal() -> None:
        nonlocal on
        on = False
        fabric.status(CORRECTABLE_STATUS, 0)

    blow()
    return injection(
        site,
        "P4",
        f"{module.id}: {most} corrected errors every {period_ns // MS} ms",
        seen,
        cnm=module.id,
        heal=heal,
        lasts_ns=span_ns(site, 2.0, 20.0),
    )


def _nonfatal(site: Site) -> Injection | None:
    """A transaction was lost; the link is up, and the kernel has the function recover."""
    module = site.module()
    fabric = fabric_of(site, module)
    if fabric is None:
        return None
    seen = _told(site, module, "aer_nonfatal", "the port has seen")
    fabric.status(UNCORRECTABLE_STATUS, 1 << site.rng.choice(NONFATAL))
    fabric.function.error(PciEventKind.AER_NONFATAL, site.rng.choice((1, 1, 3)))
    fabric.tell(PciEventKind.RECOVERING, "BEGIN_RECOVERY")

    def heal() -> None:
        fabric.status(UNCORRECTABLE_STATUS, 0)
        fabric.tell(PciEventKind.RECOVERED, "SUCCESSFUL_RECOVERY")

    return injection(
        site,
        "P5",
        f"{module.id}: a non-fatal error",
        seen,
        cnm=module.id,
        heal=heal,
        lasts_ns=span_ns(site, 0.2, 2.0),
    )


def _fatal(site: Site) -> Injection | None:
    """The port contains it: the link is held down until the kernel releases the port. Now and then
    its recovery fails first."""
    module = site.module()
    fabric = fabric_of(site, module)
    if fabric is None:
        return None
    seen = _told(site, module, "aer_fatal", "DPC holds the link down", "is down; want")
    name = f"P6 {site.world.kernel.now_ns}"  # one may be held by two of them
    fabric.status(UNCORRECTABLE_STATUS, 1 << site.rng.choice(FATAL))
    fabric.contain(True)
    fabric.hold_down(name)
    fabric.function.error(PciEventKind.AER_FATAL)
    fabric.tell(PciEventKind.RECOVERING, "BEGIN_RECOVERY")
    if site.rng.random() < 0.3:
        fabric.tell(PciEventKind.LOST, "FAILED_RECOVERY")

    def heal() -> None:
        fabric.status(UNCORRECTABLE_STATUS, 0)
        fabric.let_go(name)
        if not fabric.holds:
            fabric.contain(False)
        fabric.tell(PciEventKind.RECOVERED, "SUCCESSFUL_RECOVERY")

    return injection(
        site,
        "P6",
        f"{module.id}: a fatal error, contained by its port",
        seen,
        cnm=module.id,
        heal=heal,
        lasts_ns=span_ns(site, 1.0, 20.0),
    )


PCIE_FAULTS: Final = tuple(
    Fault(id=name, text=text, inject=inject, fits=has_ports, fits_not=NO_PORTS)
    for name, text, inject in (
        ("P4", "a storm of correctable AER errors", _storm),
        ("P5", "a non-fatal AER error", _nonfatal),
        ("P6", "a fatal AER error, and downstream port containment", _fatal),
    )
)
