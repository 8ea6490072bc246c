"""The kinds of faults of a run: a name, how often, and who makes them.

An injector draws from `site.rng` and gives an `Injection`, or None when there is nothing to break
just now. `rest_s`: at least so long between two of a kind. The supervisor gives a card up after
five deaths of its keeper in a minute, and goes to safe mode after five of a daemon that nobody
outside has killed (firmware/supervision.py): those are promises of their own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from tests.process.fault_site import Injection, Site

Inject: TypeAlias = Callable[[Site], Injection | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    name: str
    weight: float
    rest_s: float
    inject: Inject


KINDS: Final[dict[str, Kind]] = {}  # filled by the modules that `tests.process.fault_kinds` reads


def kind(name: str, *, weight: float = 1.0, rest_s: float = 0.0) -> Callable[[Inject], Inject]:
    """Register an injector under a name."""

    def keep(inject: Inject) -> Inject:
        KINDS[name] = Kind(name=name, weight=weight, rest_s=rest_s, inject=inject)
        return inject

    return keep
