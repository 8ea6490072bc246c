"""Empty one CNM: where each of its instances goes, the most constrained first.

What has the fewest places goes first, then what is largest; what finds none is given one by a
chain: another instance makes room. Whatever can't leave even so is named in `stuck`.
"""

from collections.abc import Iterator

from firmware.allocator.plan_books import Room, Sketch
from firmware.allocator.plan_search import Reach
from firmware.allocator.plan_types import Chain, Plan, Rules, Weight
from firmware.allocator.state import AllocatorState, Hold


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
        stuck.extend(name for name in source.holds if name not in {h.instance for h in waiting})
        ranked: list[tuple[int, tuple[int, ...], str, Hold]] = []
        for hold in waiting:
            places = self._reach.where(self._sketch.kind_of(hold)).bit_count()
            size = (sum(unit.milli for unit in hold.units), *hold.demand.vector)
            ranked.append((places, tuple(-part for part in size), hold.instance, hold))
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
            size_bytes = sum(moved.demand.memory_bytes for _, moved in done)
            chains.append(
                Chain(
                    moves=tuple(move for move, _ in done),
                    gain=1,
                    weight=Weight(bytes=size_bytes),
                    why=f"{self._cnm} drains",
                )
            )
            yield
        self.plan, self.stuck = Plan(chains=tuple(chains)), tuple(sorted(stuck))


def _no_worth(room: Room, kind: object) -> int:
    return 0


def plan_drain(state: AllocatorState, cnm: str, rules: Rules) -> tuple[Plan, tuple[str, ...]]:
    """The whole plan at once, and who can't leave."""
    planner = DrainPlanner(state, cnm, rules)
    for _ in planner.run():
        pass
    return planner.plan, planner.stuck
