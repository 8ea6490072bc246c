"""What the firmware and the hardware say of a fault: counters, events, states, and their changes.

Nothing here changes the world.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from firmware.endpoint import Endpoint
from firmware.events import Event
from firmware.inventory import Cnm
from firmware.link import Link
from firmware.window import WindowChannel
from hal.mock.line import MockLine
from hal.mock.node import Node
from tools.sim.faults.types import Site
from tools.sim.module import LINKS, SimModule
from tools.sim.world import DAEMON, World

GOOD: Final = {"rx_bytes", "rx_packets", "rx_busy", "rx_repeated"}  # counters that tell of no harm
POLL_NS: Final = 20_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """One receiving end of a control link, and the firmware that listens there."""

    line: MockLine
    side: str  # of the line: "a" is the card's
    endpoint: Endpoint
    node: Node
    cnm: str

    @property
    def link(self) -> Link:
        return self.endpoint.link

    @property
    def name(self) -> str:
        return f"{self.line.name} to {'the card' if self.side == 'a' else 'the module'}"

    @property
    def packets(self) -> int:
        """Good packets ever taken."""
        return self.link.drops["rx_packets"]

    def counters(self) -> dict[str, int]:
        """All of link and endpoint."""
        return dict(self.link.drops + self.endpoint.counters)

    def errors(self) -> int:
        """What was refused or dropped on receipt, for any reason."""
        return sum(
            count
            for name, count in self.counters().items()
            if name not in GOOD and not name.startswith("tx_")
        )

    def grew(self, *names: str) -> Callable[[], bool]:
        """Has any of these counters grown since now?"""
        before = self.counters()
        return lambda: any(
            count > before.get(name, 0) for name, count in self.counters().items() if name in names
        )

    def more_errors(self) -> Callable[[], bool]:
        """Was anything dropped on receipt since now?"""
        before = self.errors()
        return lambda: self.errors() > before


def agent_endpoint(module: SimModule) -> Endpoint | None:
    """The agent's end of its link, once it has one."""
    return module.agent._endpoint if module.agent is not None else None


def agent_window(module: SimModule) -> WindowChannel | None:
    """The agent's end of its window, once it has one."""
    return module.agent._channel if module.agent is not None else None


def works(world: World, node: str) -> bool:
    """Is that process there, and running?"""
    found = world.kernel.nodes.get(node)
    return found is not None and found.loop is not None and not found.paused


def cnm_of(world: World, module: SimModule) -> Cnm | None:
    """The module as a card that runs sees it."""
    card = world.card_or_none
    if card is None or not card.ready or not works(world, DAEMON):
        return None
    return card.inventory.get(module.id)


def ends(world: World, module: SimModule, *, links: tuple[str, ...] = LINKS) -> list[End]:
    """The ends of a module's links that can receive just now, the card's first."""
    found: list[End] = []
    cnm = cnm_of(world, module)
    nodes = {"mc": module.init_node, "agent": module.agent_node}
    for name in links:
        line = module.lines[name]
        if line.down:
            continue
        theirs = module.init.endpoint if name == "mc" and module.init else agent_endpoint(module)
        ours = (cnm.mc if name == "mc" else cnm.agent) if cnm is not None else None
        for side, endpoint, node in (("a", ours, DAEMON), ("b", theirs, nodes[name])):
            if endpoint is None or not endpoint.link.up or not works(world, node):
                continue
            if line.towards(side).faults.cut:
                continue
            found.append(
                End(
                    line=line,
                    side=side,
                    endpoint=endpoint,
                    node=world.kernel.nodes[node],
                    cnm=module.id,
                )
            )
    return found


def drawn_module(site: Site) -> SimModule | None:
    """A module that the card leases and uses, drawn; None when the one that was drawn is not."""
    module = site.module()
    cnm = cnm_of(site.world, module)
    if cnm is None or not cnm.schedulable or not works(site.world, module.init_node):
        return None
    return module


def drawn_end(site: Site, *, talking: bool = False) -> End | None:
    """An end that can receive. `talking`: one where something comes all the time, as heartbeats,
    grants and telemetry do, while the card manages the module."""
    module = site.module()
    found = ends(site.world, module)
    if talking:
        cnm = cnm_of(site.world, module)
        leased = cnm is not None and cnm.schedulable
        found = [end for end in found if leased and (end.side == "a" or "-mc" in end.line.name)]
    return site.rng.choice(found) if found else None


def events_since(world: World) -> Callable[..., list[Event]]:
    """`later("cnm.booted", cnm="cnm1")`: the events of these codes after now."""
    start = len(world.events)

    def later(*codes: str, cnm: str | None = None) -> list[Any]:
        return [
            event
            for event in world.events[start:]
            if str(event.code) in codes and (cnm is None or event.cnm == cnm)
        ]

    return later


def said(world: World, *codes: str, cnm: str | None = None) -> Callable[[], bool]:
    """Was one of these events emitted since now?"""
    later = events_since(world)
    return lambda: bool(later(*codes, cnm=cnm))


def when(
    world: World, holds: Callable[[], object], then: Callable[[], None], *, limit_ns: int
) -> None:
    """Do `then` as soon as `holds()`, looked at each POLL_NS; nothing after `limit_ns`."""
    until_ns = world.kernel.now_ns + limit_ns

    def look() -> None:
        if holds():
            then()
        elif world.kernel.now_ns < until_ns:
            world.kernel.after(POLL_NS, look)

    look()


def watched(world: World, holds: Callable[[], object], *, for_ns: int) -> Callable[[], bool]:
    """Did it hold at any look from now on? Looked at each POLL_NS, for so long."""
    found = False

    def note() -> None:
        nonlocal found
        found = True

    when(world, holds, note, limit_ns=for_ns)
    return lambda: found
