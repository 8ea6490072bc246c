"""The fault catalogue: 81 ways in which a card breaks, each as an injector with a stable id.

    fault = FAULTS["L5"]
    injection = fault.inject(Site(world, world.kernel.rng("faults")))
    ... injection.seen() becomes true when the card has met it; injection.heal() ends it

Ids and order are those of the reference catalogue (reliability and speed, section 1.2): L link
frames and MCTP, B SMBus, P PCIe and windows, C modules, S storage, T time, E environment, D daemon,
N northbound, X malicious modules. Ids are never given to another fault.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from tools.sim.faults import catalogue
from tools.sim.faults.types import MS, SECOND, Fault, Inject, Injection, Site

__all__ = [
    "CLASSES",
    "FAULTS",
    "MS",
    "SECOND",
    "Fault",
    "Inject",
    "Injection",
    "Site",
    "chosen",
]

CLASSES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "L": "link frames and MCTP",
        "B": "SMBus",
        "P": "PCIe and windows",
        "C": "modules",
        "S": "storage",
        "T": "time",
        "E": "environment",
        "D": "daemon",
        "N": "northbound",
        "X": "malicious modules",
    }
)
FAULTS: Final[Mapping[str, Fault]] = MappingProxyType(catalogue.FAULTS)


def chosen(words: str) -> list[Fault]:
    """The faults that "all", classes ("L,B,C") or ids ("L1,S7"), or both mixed, name; in the
    catalogue's order, each once, those that are not modelled included. Raises ValueError for a
    word that is none of these, with what is known."""
    wanted: set[str] = set()
    for word in words.split(","):
        name = word.strip()
        if name.lower() == "all":
            wanted |= FAULTS.keys()
        elif name.upper() in CLASSES:
            wanted |= {fault for fault in FAULTS if fault[0] == name.upper()}
        elif name.upper() in FAULTS:
            wanted.add(name.upper())
        else:
            raise ValueError(
                f"no fault {name!r}; known: all, the classes {', '.join(CLASSES)}, and the ids "
                + ", ".join(f"{first}1 to {last}" for first, last in _spans())
            )
    return [fault for name, fault in FAULTS.items() if name in wanted]


def _spans() -> list[tuple[str, str]]:
    """(class, last id) of each class."""
    return [(letter, [name for name in FAULTS if name[0] == letter][-1]) for letter in CLASSES]
