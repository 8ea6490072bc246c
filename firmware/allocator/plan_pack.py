"""The planner as a benchmark of placement asks for it: room for what waits, and tidying up.

    rebalance(state, wants, budget)   moves so that what waits fits; wants in the order of offering
    Tidier(...).migrate(state, mix, budget)   moves now and then, so that what may come will fit

Both give moves in order, each with the units that it is to get; they change nothing themselves.
"""

from collections.abc import Sequence

from firmware.allocator.plan_room import plan_room
from firmware.allocator.plan_types import Move, Rules, Want
from firmware.allocator.state import AllocatorState


def rebalance(state: AllocatorState, wants: Sequence[Want], budget: int) -> tuple[Move, ...]:
    """At most `budget` moves after which some of `wants` fit. Nothing is moved for nothing."""
    return plan_room(state, wants, Rules(budget=budget)).moves


def migrate(state: AllocatorState, mix: Sequence[Want], budget: int) -> tuple[Move, ...]:
    """At most `budget` moves after which more of the usual requests would fit. `mix` has what was
    asked for of late: `count` is how often, `worth` what one is worth (say, milli-units)."""
    wants = [want for want in mix if want.count > 0]
    return plan_room(state, wants, Rules(budget=budget)).moves
