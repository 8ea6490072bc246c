"""Moves ahead of time, so that what may come will fit; and the planner as a benchmark asks for it.

    TidyPlanner(state, rules, least_milli)   one chain that leaves less accelerators of no use
    Tidier(...).migrate(state, mix, budget)   moves now and then, for a yardstick that counts
        what fits at last
    rebalance(state, wants, budget)   moves so that what waits fits; wants in the order of offering

All give moves in order, each with the units that it is to get; they change nothing themselves.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import isqrt
from typing import Final

from firmware.allocator.fragmentation import SCALE_BITS, node_measure
from firmware.allocator.mix import RequestMix
from firmware.allocator.plan_books import Sketch
from firmware.allocator.plan_room import RoomPlanner, plan_room
from firmware.allocator.plan_search import Reach
from firmware.allocator.plan_types import MAX_CHAIN, Chain, Move, Plan, Rules, Want
from firmware.allocator.state import AllocatorState
from firmware.allocator.types import AcceleratorDemand, Demand

HORIZON: Final = 200  # requests that a tidy-up is to be good for
WHOLE: Final = 1000  # of what `Tidier` weighs by: a request that comes for certain
WORTH_A_MOVE: Final = 4  # a move must bring this part of the largest that is wanted
REST_CALLS: Final = 50  # for so many calls a moved instance stays where it is


def rebalance(state: AllocatorState, wants: Sequence[Want], budget: int) -> tuple[Move, ...]:
    """At most `budget` moves after which some of `wants` fit. Nothing is moved for nothing.

    Two plans, one that fills rooms by worth and one by turn; the one is kept whose outcome is
    better when everything is offered in turn, wherever it fits."""
    rules = Rules(budget=budget)
    plans = [
        plan_room(state, wants, replace(rules, largest_first=first)) for first in (True, False)
    ]
    return max(plans, key=lambda plan: (outcome(state, plan, wants), -len(plan.moves))).moves


def outcome(state: AllocatorState, plan: Plan, wants: Sequence[Want]) -> int:
    """What of the wants would fit after a plan, by its worth, offered one after the other."""
    sketch = Sketch(state)
    for _ in sketch.read():
        pass
    for move in plan.moves:
        source, target = sketch.by_id[move.source], sketch.by_id[move.target]
        if sketch.move(source.holds[move.instance], source, target) is None:
            return -1
    reach = Reach(sketch, set(), 1, lambda room, kind: 0)
    worth = 0
    for turn, want in enumerate(wants):
        kind = sketch.kind(want.demand, want.constraints)
        for number in range(want.count):
            room = reach.best(None, kind)
            if room is None or not sketch.add(f"\x00{turn}/{number}", room, kind):
                break
            reach.changed(room)
            worth += want.worth
    return worth


class TidyPlanner:
    """A plan of one chain, in steps: iterate over `run`, take `chain` when it has ended.

    Two things must be so, in thousandths of an accelerator: there is more room for what the mix
    asks for, and what the whole card has free but of no use to the mix (`fragmentation_milli`)
    falls by `least_milli` a move. That can't fall for ever: by an equal mix, and with nothing that
    comes or goes, it ends after as many moves as there are `least_milli` in it at first."""

    def __init__(self, state: AllocatorState, rules: Rules, least_milli: int) -> None:
        self.chain: Chain | None = None
        self._state, self._least_milli = state, least_milli
        mix = wants_of(state.mix)
        total = max(1, sum(want.count for want in mix))
        # by its share of what comes: room that nine of ten requests find no use for is worth little
        worths = {want.demand: want.worth * want.count // total for want in mix}
        wants = [
            replace(want, worth=worths[want.demand])
            for want in expected(mix, HORIZON)
            if worths[want.demand]
        ]
        most = max((want.worth for want in wants), default=0)
        self._rules = replace(
            rules, largest_first=True, least_gain=max(rules.least_gain, most // WORTH_A_MOVE)
        )
        self._wants = wants

    def run(self) -> Iterator[None]:
        if not self._wants or not self._rules.budget:
            return
        planner = RoomPlanner(
            self._state, self._wants, self._rules, "makes room for what is usually asked for"
        )
        for _ in planner.run():
            if planner.plan.chains:
                break
            yield
        for chain in planner.plan.chains[:1]:
            gain_milli = fragmentation_fall_milli(self._state, chain.moves)
            if gain_milli >= self._least_milli * len(chain.moves):
                self.chain = replace(chain, gain=gain_milli)


def fragmentation_fall_milli(state: AllocatorState, moves: Sequence[Move]) -> int:
    """By how much the moves lower what is free but of no use; 0 where they can't be made."""
    cnms = frozenset(cnm for move in moves for cnm in (move.source, move.target))
    sketch = Sketch(state, cnms)
    for _ in sketch.read():
        pass

    def measure() -> int:
        return sum(node_measure(state.tables, room.free, room.units) for room in sketch.rooms)

    before = measure()
    for move in moves:
        source, target = sketch.by_id[move.source], sketch.by_id[move.target]
        if sketch.move(source.holds[move.instance], source, target) is None:
            return 0
    return (before - measure()) >> SCALE_BITS


def wants_of(mix: RequestMix) -> list[Want]:
    """What the mix has of requests for accelerators: each worth what it asks for of them."""
    found: list[Want] = []
    for key, weight in mix.classes():
        if not key.wanted_milli:
            continue
        cpu_milli, memory_bytes, nvme_bytes, link_mbit, nvme_mbit, window_slots = key.vector
        wanted = AcceleratorDemand(
            kind=key.kind, model=key.model or None, count=key.count, milli=key.milli
        )
        demand = Demand(
            cpu_milli=cpu_milli,
            memory_bytes=memory_bytes,
            nvme_bytes=nvme_bytes,
            link_mbit=link_mbit,
            nvme_mbit=nvme_mbit,
            window_slots=window_slots,
            accelerators=(wanted,),
        )
        found.append(Want(demand=demand, worth=key.wanted_milli, count=weight))
    return found


class Tidier:
    """Moves ahead of time. It remembers who was moved of late, and nothing else."""

    def __init__(self, *, least_gain: int = 1, horizon: int = HORIZON) -> None:
        """`least_gain` in the unit of the mix's worth."""
        self._least_gain, self._horizon = least_gain, horizon
        self._rest: dict[str, int] = {}  # instance -> calls until it may move again

    def migrate(self, state: AllocatorState, mix: Sequence[Want], budget: int) -> tuple[Move, ...]:
        """At most `budget` moves, towards room for what is usually asked for. `mix` has what was
        asked for of late: `count` is how often, `worth` what one is worth (say, its milli-units).
        A chain may be longer than the budget: then this is its beginning."""
        self._rest = {name: calls - 1 for name, calls in sorted(self._rest.items()) if calls > 1}
        wants = expected(mix, self._horizon)
        most = max((want.worth for want in wants), default=0)
        rules = Rules(
            budget=max(budget, MAX_CHAIN),
            pinned=frozenset(self._rest),
            largest_first=True,
            least_gain=max(self._least_gain, most // WORTH_A_MOVE),
        )
        planner = RoomPlanner(state, wants, rules)
        for _ in planner.run():
            if planner.plan.chains:
                break
        moves = planner.plan.moves[:budget]
        for move in moves:
            self._rest[move.instance] = REST_CALLS
        return moves


def expected(mix: Sequence[Want], horizon: int) -> list[Want]:
    """For what it would be good to have room. How many of a request come at once goes with the
    root of how many come at all, so that is kept open, and one more; most of what comes finds the
    room of what leaves. What seldom comes counts by its chance."""
    total = max(1, sum(want.count for want in mix))
    wants: list[Want] = []
    for want in mix:
        milli = WHOLE * horizon * want.count // total  # thousandths of a request to come
        worth = want.worth * min(milli, WHOLE) // WHOLE
        if worth > 0:
            wants.append(replace(want, count=1 + isqrt(4 * milli // WHOLE), worth=worth))
    return wants
