"""Make room by moving others: for each want that fits nowhere, the few moves that make it fit.

For every CNM: which one, two or three of its instances would have to leave for something that
waits to fit, and can they leave, directly or by a chain? The finds are taken up in the order of
their gain per move, each one tried on scratch books, with what waits put into the room that came
free in the order in which it will be offered. That goes on until nothing more is found: planned
again on its own result, nothing moves.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

from firmware.allocator.plan_books import Kind, Room, Sketch
from firmware.allocator.plan_search import FAR, Reach
from firmware.allocator.plan_types import Chain, Downtime, Move, Plan, Rules, Want, Weight
from firmware.allocator.state import AllocatorState, Hold

CANDIDATES: Final = 10  # instances of one CNM that are looked at in twos and threes
TAKERS: Final = 8  # of what waits, put into one room that came free


@dataclass(frozen=True, slots=True)
class _Find:
    """Instances that would have to leave one room, and what that is worth."""

    room: Room
    leavers: tuple[Hold, ...]
    moves: int
    gain: int


class RoomPlanner:
    """A plan in steps: iterate over `run`, take `plan` when it has ended."""

    def __init__(self, state: AllocatorState, wants: Sequence[Want], rules: Rules) -> None:
        self.plan = Plan()
        self._sketch = Sketch(state)
        self._rules = rules
        self._reach = Reach(self._sketch, set(rules.pinned), rules.chain)
        self._wants = list(wants)
        self._kinds: list[Kind] = []
        self._left = [want.count for want in wants]  # of each want, still waiting
        self._serial = 0
        self._least_milli = 0

    def run(self) -> Iterator[None]:
        """Each step is short: some ten CNMs at most."""
        yield from self._sketch.read()
        self._kinds = [self._sketch.kind(w.demand, w.constraints) for w in self._wants]
        self._least_milli = min((_milli(kind) for kind in self._kinds), default=0)
        for room in self._sketch.rooms:
            self._fill(room)
            yield
        budget = self._rules.budget
        chains: list[Chain] = []
        while budget > 0 and any(self._left):
            finds: list[_Find] = []
            self._reach.renew()
            for room in self._sketch.rooms:
                yield from self._look(room, min(budget, self._rules.chain), finds)
            finds.sort(key=_order)
            used = 0
            for find in finds:
                if used >= budget:
                    break
                chain = self._try(find, min(budget - used, self._rules.chain))
                if chain is not None:
                    chains.append(chain)
                    used += len(chain.moves)
                yield
            if not used:
                break
            budget -= used
            self.plan = Plan(chains=tuple(chains))

    # --- what waits ---

    def _fill(self, room: Room) -> int:
        """Put what waits into a room, in the order of the wants; what that is worth."""
        return sum(self._wants[index].worth for index, _ in self._put(room))

    def _put(self, room: Room) -> list[tuple[int, str]]:
        put: list[tuple[int, str]] = []
        if not self._may_take(room):
            return put
        for index, kind in enumerate(self._kinds):
            while self._left[index] and len(put) < TAKERS and room.fits(kind):
                name = f"\x00{self._serial}"  # no instance has such a name
                if not self._sketch.add(name, room, kind):
                    break
                self._serial += 1
                self._left[index] -= 1
                self._reach.pinned.add(name)
                put.append((index, name))
        return put

    def _may_take(self, room: Room) -> bool:
        """Quick: at least the least share of an accelerator that anything waits for."""
        if not room.open:
            return False
        least = self._least_milli
        return not least or any(unit >= least for units in room.units.values() for unit in units)

    def _worth(self, room: Room) -> int:
        """What could be put there, and taken out again."""
        put = self._put(room)
        for index, name in put:
            room.without(room.holds[name])
            self._left[index] += 1
            self._reach.pinned.discard(name)
        return sum(self._wants[index].worth for index, _ in put)

    # --- who would have to leave ---

    def _look(self, room: Room, most: int, finds: list[_Find]) -> Iterator[None]:
        """All that could be gained in one room."""
        if not room.open:
            return
        reach, sketch = self._reach, self._sketch
        single: list[tuple[int, Hold]] = []
        seen: set[tuple[object, ...]] = set()
        for hold in list(room.holds.values()):
            kind = sketch.kind_of(hold)
            mark = (kind.index, hold.units)
            if not reach.movable(hold) or (kind.single is None and mark in seen):
                continue
            seen.add(mark)
            level = reach.level(room, kind)
            if level == FAR and most > 1:
                yield from reach.ways(kind)
                level = reach.level(room, kind)
            if level <= most:
                single.append((level, hold))
                self._weigh(room, (hold,), level, finds)
        yield
        single.sort(key=lambda item: (item[0], item[1].demand.memory_bytes, item[1].instance))
        for size in range(2, most + 1):
            for group in combinations(single[:CANDIDATES], size):
                moves = sum(level for level, _ in group)
                if moves <= most:
                    self._weigh(room, tuple(hold for _, hold in group), moves, finds)
            yield

    def _weigh(self, room: Room, leavers: tuple[Hold, ...], moves: int, finds: list[_Find]) -> None:
        for hold in leavers:
            room.count(hold, -1)
        gain = self._worth(room)
        for hold in leavers:
            room.count(hold, 1)
        if gain >= self._rules.least_gain * moves:
            finds.append(_Find(room, leavers, moves, gain))

    # --- doing it on paper ---

    def _try(self, find: _Find, most: int) -> Chain | None:
        """Move on the scratch books; None, and nothing changed, if it brings less than found."""
        done: list[tuple[Move, Hold]] = []
        for place, hold in enumerate(find.leavers):
            still = len(find.leavers) - place - 1
            step = None
            if find.room.holds.get(hold.instance) is hold and hold.instance not in (
                self._reach.pinned
            ):
                step = self._reach.leave(hold, find.room, most - len(done) - still)
            if step is None:
                self._reach.undo(done)
                return None
            done.extend(step)
        if self._worth(find.room) * find.moves < find.gain * len(done):
            self._reach.undo(done)  # others are in its place by now: found anew next time
            return None
        gain = 0
        rooms = {find.room.index: find.room}
        for move, _ in done:
            room = self._sketch.by_id[move.source]
            rooms[room.index] = room
        for _, room in sorted(rooms.items()):
            gain += self._fill(room)
            self._reach.changed(room)
        weights = [self._weight(hold) for _, hold in done]
        return Chain(
            moves=tuple(move for move, _ in done),
            gain=gain,
            weight=Weight(
                bytes=sum(w.bytes for w in weights), downtime=max(w.downtime for w in weights)
            ),
            why="makes room for what waits",
        )

    def _weight(self, hold: Hold) -> Weight:
        known = self._rules.weights.get(hold.instance)
        if known is not None:
            return known
        return Weight(bytes=hold.demand.memory_bytes, downtime=Downtime.BRIEF)


def _milli(kind: Kind) -> int:
    """The least free share that anything of this kind needs; 0 when it needs none."""
    return min((a.milli for a in kind.accelerators), default=0)


def _order(find: _Find) -> tuple[int, int, int, tuple[str, ...]]:
    """Gain per move (in sixths: exact for one to three), the fewer bytes, the first name."""
    size = sum(hold.demand.memory_bytes for hold in find.leavers)
    names = tuple(hold.instance for hold in find.leavers)
    return (-find.gain * 6 // find.moves, size, find.room.index, names)


def plan_room(state: AllocatorState, wants: Sequence[Want], rules: Rules) -> Plan:
    """The whole plan at once; in the daemon, take `RoomPlanner` and its steps."""
    planner = RoomPlanner(state, wants, rules)
    for _ in planner.run():
        pass
    return planner.plan
