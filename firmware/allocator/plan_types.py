"""What a plan of moves is made of. Integers only: equal books give equal plans, in every process.

A plan is a list of moves, carried out in order. A move books its target before it frees its
source, as the card does it, so each one must fit while everything before it has happened and
nothing after it has. An instance moves at most once in a plan, and never when it is pinned:
whoever asks says which instances rest (a cool-down), share a volume, or must not be disturbed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from firmware.allocator.types import NO_CONSTRAINTS, AcceleratorUnit, Constraints, Demand

MAX_CHAIN: Final = 3  # moves that depend on each other


class Downtime(IntEnum):
    """How long an instance is away while it moves: less is cheaper."""

    NONE = 0  # another instance of the component goes on meanwhile
    BRIEF = 1  # stopped here, started there; image and files are there before it stops
    DATA = 2  # and its volumes are brought over in between


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """What it costs to move an instance."""

    bytes: int = 0  # that go over the links
    downtime: Downtime = Downtime.BRIEF


@dataclass(frozen=True, slots=True, kw_only=True)
class Want:
    """Something that has no room now: `count` equal ones, each worth `worth` (more than 0) in the
    caller's unit."""

    demand: Demand
    constraints: Constraints = NO_CONSTRAINTS
    worth: int = 1
    count: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a plan may do."""

    budget: int  # moves in all
    chain: int = MAX_CHAIN  # moves of one chain, at most MAX_CHAIN
    pinned: frozenset[str] = frozenset()  # instances that stay where they are
    largest_first: bool = False  # what waits is put into rooms by its worth, not by its turn
    may_move: Callable[[str], bool] = lambda instance: True  # asked once for each, like `pinned`
    least_gain: int = 1  # a move must bring at least this much, in the unit of `Want.worth`
    weights: Mapping[str, Weight] = field(default_factory=dict)  # else by reserved memory

    def __post_init__(self) -> None:
        if self.budget < 0 or not 1 <= self.chain <= MAX_CHAIN or self.least_gain < 1:
            raise ValueError(
                f"wanted a budget of 0 or more, a chain of 1..{MAX_CHAIN} and a least gain of 1 or "
                f"more, found {self.budget}, {self.chain} and {self.least_gain}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One instance from one CNM to another, and the units that it is planned to get there."""

    instance: str
    source: str
    target: str
    units: tuple[AcceleratorUnit, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """Moves that bring something together only: all of them, or none."""

    moves: tuple[Move, ...]
    gain: int
    weight: Weight  # bytes of all, downtime of the worst
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Chains in the order in which they are to be carried out."""

    chains: tuple[Chain, ...] = ()

    @property
    def moves(self) -> tuple[Move, ...]:
        return tuple(move for chain in self.chains for move in chain.moves)

    @property
    def gain(self) -> int:
        return sum(chain.gain for chain in self.chains)
