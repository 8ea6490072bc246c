"""Take load off one CNM: the instance that relieves it most and heats nobody else, or a swap.

What is gained is load, in thousandths of a core as it was measured, and never more than there is
too much of. Where the one that ought to leave fits nowhere, another one with less use comes in
its place, or leaves its place for a third CNM.
"""

from collections.abc import Callable, Generator, Iterator
from typing import Final

from firmware.allocator.plan_books import Room, Sketch
from firmware.allocator.plan_search import Reach, weight_of
from firmware.allocator.plan_types import Chain, Move, Plan, Rules
from firmware.allocator.state import AllocatorState, Hold

LEAVERS: Final = 8  # instances with the largest use
HOSTS: Final = 64  # of the coolest CNMs, looked at for a swap


class ShedPlanner:
    """A plan of one chain, in steps: iterate over `run`, take `plan` when it has ended."""

    def __init__(
        self,
        state: AllocatorState,
        cnm: str,
        use: Callable[[str, str], int],
        rules: Rules,
        *,
        high_percent: int,
        low_percent: int,
    ) -> None:
        """`use(cnm, instance)`: measured, in thousandths of a core; 0 when not known."""
        self.plan = Plan()
        self._sketch = Sketch(state)
        self._cnm, self._use, self._rules = cnm, use, rules
        self._high, self._low = high_percent, low_percent
        self._reach = Reach(self._sketch, set(rules.pinned), 1, _no_worth, rules.may_move)

    def run(self) -> Iterator[None]:
        """Each step is short: some tens of CNMs."""
        yield from self._sketch.read()
        hot = self._sketch.by_id.get(self._cnm)
        if hot is None or not self._rules.budget:
            return
        excess = max(1, self._load(hot) - self._limit(hot, self._low))
        leavers = sorted(
            (hold for hold in hot.holds.values() if self._reach.movable(hold)),
            key=lambda hold: (-self._of(hot, hold), hold.instance),
        )[:LEAVERS]
        best: tuple[int, int, Chain] | None = None
        for place, hold in enumerate(leavers):
            relief = min(excess, self._of(hot, hold))
            chain = self._direct(hot, hold, relief)
            if chain is not None and (best is None or relief > best[0]):
                best = relief, -place, chain
            yield
        hoped = min(excess, self._of(hot, leavers[0])) if leavers else 0
        relieved = best[0] if best is not None else 0
        if relieved * 2 < hoped and min(self._rules.budget, self._rules.chain) >= 2:
            for hold in leavers:  # two moves have to bring more than twice as much
                chain = yield from self._swap(hot, hold, excess, 2 * relieved)
                if chain is not None:
                    best = chain.gain, 0, chain
                    break
        if best is not None:
            self.plan = Plan(chains=(best[2],))

    # --- load ---

    def _load(self, room: Room) -> int:
        return room.node.view.load_cpu_milli

    def _limit(self, room: Room, percent: int) -> int:
        return room.node.total[0] * percent // 100

    def _of(self, room: Room, hold: Hold) -> int:
        """What it uses; at least what says that it is there at all."""
        return max(1, self._use(room.id, hold.instance))

    def _stays_cool(self, room: Room, more: int) -> bool:
        return self._load(room) + more <= self._limit(room, self._high)

    # --- who goes where ---

    def _direct(self, hot: Room, hold: Hold, relief: int) -> Chain | None:
        """To the coolest that has place for it, by what is free there after the move."""
        kind, more = self._sketch.kind_of(hold), self._of(hot, hold)
        found: tuple[int, int] | None = None
        mask = self._reach.where(kind) & ~(1 << hot.index)
        while mask:
            low = mask & -mask
            mask ^= low
            room = self._sketch.rooms[low.bit_length() - 1]
            if not self._stays_cool(room, more):
                continue
            warmth = (self._load(room) + more) * 1000 // max(1, room.node.total[0])
            if found is None or (warmth, room.index) < found:
                found = warmth, room.index
        if found is None or relief < self._rules.least_gain:
            return None
        move = self._sketch.move(hold, hot, self._sketch.rooms[found[1]])
        assert move is not None
        self._sketch.undo(move, hold)
        return self._chain([(move, hold)], relief)

    def _swap(
        self, hot: Room, hold: Hold, excess: int, above: int
    ) -> Generator[None, None, Chain | None]:
        """Another one makes place for it; that one comes here, or goes to a third CNM."""
        kind, leaves = self._sketch.kind_of(hold), self._of(hot, hold)
        hosts = sorted(
            (room for room in self._sketch.rooms if room is not hot and room.open),
            key=lambda room: (self._load(room) * 1000 // max(1, room.node.total[0]), room.index),
        )[:HOSTS]
        for host in hosts:
            yield
            if not kind.plain and not host.allows(kind):
                continue
            for other in sorted(host.holds.values(), key=lambda h: (self._of(host, h), h.instance)):
                comes = self._of(host, other)
                gain = min(excess, leaves - comes)
                if gain <= above or gain < self._rules.least_gain * 2:
                    break  # the others use more
                if not self._reach.movable(other):
                    continue
                if not self._stays_cool(host, leaves - comes):
                    continue
                chain = self._exchange(hot, hold, host, other, gain)
                if chain is not None:
                    return chain
        return None

    def _exchange(
        self, hot: Room, hold: Hold, host: Room, other: Hold, relief: int
    ) -> Chain | None:
        first = self._sketch.move(other, host, hot)
        if first is None:
            return None
        second = self._sketch.move(hold, hot, host)
        if second is not None:
            self._sketch.undo(second, hold)
        self._sketch.undo(first, other)
        return None if second is None else self._chain([(first, other), (second, hold)], relief)

    def _chain(self, done: list[tuple[Move, Hold]], gain: int) -> Chain:
        return Chain(
            moves=tuple(move for move, _ in done),
            gain=gain,
            weight=weight_of(self._rules, [hold for _, hold in done]),
            why=f"{self._cnm} is loaded",
        )


def _no_worth(room: Room, kind: object) -> int:
    return 0
