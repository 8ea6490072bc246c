"""Empty one CNM, or place what a lost one held: the most constrained first.

What has the fewest places goes first, then what is largest; what finds none is given one by a
chain: another instance makes room. Whatever can't leave even so is named in `stuck`.
"""

from collections.abc import Iterator, Sequence
from typing import Final, TypeAlias

from firmware.allocator.plan_books import Kind, Room, Sketch
from firmware.allocator.plan_search import Reach, weight_of
from firmware.allocator.plan_types import Chain, Plan, Rules
from firmware.allocator.state import AllocatorState, Hold
from firmware.allocator.types import NO_CONSTRAINTS, Constraints, Demand

LOOKS_MOST: Final = 200_000  # of `constrained_first`, a kind in a room each: 26 ms as measured

Ask: TypeAlias = tuple[str, Demand, Constraints]  # instance, and what it asks for


class DrainPlanner:
    """A plan in steps: iterate over `run`, take `plan` and `stuck` when it has ended."""

    def __init__(self, state: AllocatorState, cnm: str, rules: Rules) -> None:
        """`rules.budget` counts all moves; what is pinned neither leaves nor makes room."""
        self.plan = Plan()
        self.stuck: tuple[str, ...] = ()
        self._sketch = Sketch(state)
        self._cnm, self._rules = cnm, rules
        self._reach = Reach(self._sketch, set(rules.pinned), rules.chain, _no_worth, rules.may_move)

    def run(self) -> Iterator[None]:
        yield from self._sketch.read()
        source = self._sketch.by_id.get(self._cnm)
        if source is None:
            return
        source.open = False  # nothing is put there to make room
        chains: list[Chain] = []
        stuck: list[str] = []
        asked: set[int] = set()  # kinds for which others were looked for, once
        budget = self._rules.budget
        waiting = [hold for hold in source.holds.values() if self._reach.movable(hold)]
        free = {hold.instance for hold in waiting}
        stuck.extend(name for name in source.holds if name not in free)
        ranked: list[tuple[int, tuple[int, ...], str, Hold]] = []
        for hold in waiting:
            kind = self._sketch.kind_of(hold)
            places = self._reach.where(kind).bit_count()
            ranked.append((places, _largest_first(kind), hold.instance, hold))
            yield
        for _, _, _, hold in sorted(ranked, key=lambda item: item[:3]):
            kind = self._sketch.kind_of(hold)
            if not self._reach.where(kind) and kind.index not in asked:
                asked.add(kind.index)
                self._reach.renew()
                yield from self._reach.ways(kind)
            most = min(budget, self._rules.chain)
            done = next(self._reach.leave(hold, source, most), None)
            if done is None:
                stuck.append(hold.instance)
                continue
            budget -= len(done)
            chains.append(
                Chain(
                    moves=tuple(move for move, _ in done),
                    gain=1,
                    weight=weight_of(self._rules, [moved for _, moved in done]),
                    why=f"{self._cnm} drains",
                )
            )
            yield
        self.plan, self.stuck = Plan(chains=tuple(chains)), tuple(sorted(stuck))


def _largest_first(kind: Kind) -> tuple[int, ...]:
    milli = sum(wanted.count * wanted.milli for wanted in kind.accelerators)
    return -milli, *(-part for part in kind.demand.vector)


def constrained_first(state: AllocatorState, asks: Sequence[Ask]) -> list[str]:
    """The names of the asks, those with the fewest places first, as the books are now; of equally
    many the largest. Of more kinds than `LOOKS_MOST` allows the smaller ones count as if they
    fitted everywhere."""
    sketch = Sketch(state)
    for _ in sketch.read():
        pass
    kinds = {name: sketch.kind(demand, constraints) for name, demand, constraints in asks}
    distinct = {kind.index: kind for kind in kinds.values()}
    looked = sorted(distinct.values(), key=lambda kind: (_largest_first(kind), kind.index))
    places = dict.fromkeys(distinct, len(sketch.rooms))
    allowed: dict[tuple[object, ...], list[Room]] = {}  # few of them differ in what is no amount
    for kind in looked[: LOOKS_MOST // max(1, len(sketch.rooms))]:
        trait = (kind.arch, kind.runtimes, kind.labels, kind.exclude, kind.most, kind.part)
        rooms = allowed.get(trait)
        if rooms is None:
            rooms = [room for room in sketch.rooms if room.open and room.allows(kind)]
            allowed[trait] = rooms
        amounts = sketch.kind(kind.demand, NO_CONSTRAINTS)
        places[kind.index] = sum(room.fits(amounts) for room in rooms)
    return sorted(kinds, key=lambda n: (places[kinds[n].index], _largest_first(kinds[n]), n))


def _no_worth(room: Room, kind: object) -> int:
    return 0


def plan_drain(state: AllocatorState, cnm: str, rules: Rules) -> tuple[Plan, tuple[str, ...]]:
    """The whole plan at once, and who can't leave."""
    planner = DrainPlanner(state, cnm, rules)
    for _ in planner.run():
        pass
    return planner.plan, planner.stuck
