"""What a fault, one injection of it, and the place where it is injected are."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from firmware.board_types import Board
from tools.sim.module import SimModule
from tools.sim.world import World

MS: Final = 1_000_000
SECOND: Final = 1_000 * MS


class Site:
    """Where injectors act. Every draw is from `rng`, so that a seed gives the same faults."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self.world = world
        self.rng = rng

    def module(self) -> SimModule:
        """One of the modules, drawn."""
        return self.rng.choice(list(self.world.modules.values()))


@dataclass(slots=True, kw_only=True)
class Injection:
    """One fault that was done to the world.

    `seen` is the evidence: it becomes true, and stays so, once the firmware's own counters, events
    or state, or the hardware's, have changed because of the injection. `heal` ends a lasting fault
    and may be called at any time, and again; a one-shot's does nothing.
    """

    id: str
    cnm: str | None  # whose fault it is; None for the card's
    at_ns: int  # kernel time
    text: str
    heal: Callable[[], None]
    lasts_ns: int  # heal it after so long; 0 for a one-shot
    seen: Callable[[], bool]
    cut_short: bool = False  # healed before its time: it may have had none to show


Inject: TypeAlias = Callable[[Site], Injection | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One line of the catalogue.

    `inject` gives None when there is nothing to break just now. A fault without one is not
    modelled, and `not_modelled` says why.
    """

    id: str
    text: str
    inject: Inject | None
    not_modelled: str = ""
    weight: float = 1.0  # how often, beside the others
    fits: Callable[[Board], bool] = lambda _board: True  # a board has what it breaks
    fits_not: str = ""  # why it may not

    def __post_init__(self) -> None:
        if (self.inject is None) != bool(self.not_modelled):
            raise ValueError(f"{self.id}: either an injector or why there is none")


def nothing() -> None:
    """How a one-shot is healed."""


def latched(look: Callable[[], bool]) -> Callable[[], bool]:
    """Evidence that stays true once it was, whoever dies afterwards."""
    found = False

    def seen() -> bool:
        nonlocal found
        found = found or look()
        return found

    return seen


def injection(
    site: Site,
    fault_id: str,
    text: str,
    seen: Callable[[], bool],
    *,
    cnm: str | None = None,
    heal: Callable[[], None] = nothing,
    lasts_ns: int = 0,
) -> Injection:
    """One that begins now. `heal` is called once, however often it is asked for; `seen` is
    latched."""
    healed = False

    def heal_once() -> None:
        nonlocal healed
        if not healed:
            healed = True
            heal()

    return Injection(
        id=fault_id,
        cnm=cnm,
        at_ns=site.world.kernel.now_ns,
        text=text,
        heal=heal_once,
        lasts_ns=lasts_ns,
        seen=latched(seen),
    )


def span_ns(site: Site, least_s: float, most_s: float) -> int:
    """A time to last, drawn so that short ones are as likely as long ones."""
    return int(least_s * SECOND * (most_s / least_s) ** site.rng.random())
