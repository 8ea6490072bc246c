"""Make room by moving others: for what fits nowhere, the few moves that make it fit.

For every CNM: which one, two or three of its instances would have to leave for something that
waits to fit, and can they leave, directly or by a chain? What a CNM is worth is what of the waiting
would be put there, in the order in which it will be offered. The finds are taken up in the order of
what they bring for each move, each one tried on scratch books and taken back when it brings less
than was thought. That goes on until nothing more is found: planned again on its own result, nothing
moves.
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from itertools import combinations, islice
from typing import Final

from firmware.allocator.plan_books import Kind, Room, Sketch
from firmware.allocator.plan_search import Done, Reach, weight_of
from firmware.allocator.plan_types import Chain, Plan, Rules, Want
from firmware.allocator.state import AllocatorState, Hold

CANDIDATES: Final = 6  # instances of one CNM that are looked at in twos and threes
TAKERS: Final = 8  # of what waits, put into one room that came free
TRIES: Final = 4  # chains for one find


@dataclass(frozen=True, slots=True)
class _Find:
    """Instances that would have to leave one room, and what is thought to come of it."""

    room: Room
    leavers: tuple[Hold, ...]
    moves: int
    gain: int


@dataclass(frozen=True, slots=True)
class _Group:
    """Wants that are alike."""

    kind: Kind
    worth: int
    turns: list[int]  # when each of them is offered; the least first


class RoomPlanner:
    """A plan in steps: iterate over `run`, take `plan` when it has ended."""

    def __init__(
        self, state: AllocatorState, wants: Sequence[Want], rules: Rules, why: str = ""
    ) -> None:
        self.plan = Plan()
        self._sketch = Sketch(state)
        self._rules = rules
        self._why = why or "makes room for what waits"
        self._reach = Reach(
            self._sketch, set(rules.pinned), rules.chain, self._worth_with, rules.may_move
        )
        self._wants = list(wants)
        self._groups: list[_Group] = []
        self._left: list[int] = []  # of each group, not promised a room
        self._takers: dict[int, list[int]] = {}  # room -> groups that would go there
        self._gains: dict[int, dict[tuple[str, ...], int]] = {}  # room -> who leaves -> worth then
        self._real: dict[tuple[str, ...], int] = {}  # who leaves -> what it brought, if too little
        # of each group: its place, processor, memory and least share, to pass over most of them
        self._quick: list[tuple[int, int, int, int]] = []

    def run(self) -> Iterator[None]:
        """Each step is short: some thirty CNMs at most."""
        yield from self._sketch.read()
        self._group()
        budget = self._rules.budget
        chains: list[Chain] = []
        begun = -1  # chains when the rooms were last promised from the first to the last
        while budget > 0 and begun < len(chains):
            begun = len(chains)
            yield from self._promise_all()
            budget = yield from self._round(chains, budget)

    def _promise_all(self) -> Iterator[None]:
        """Promise all rooms anew, as a planner would that sees the books for the first time."""
        self._gains.clear()
        self._real.clear()
        for room in self._sketch.rooms:
            self._forgo(room)
            room.holds = dict(sorted(room.holds.items()))
        for room in self._sketch.rooms:
            self._promise(room)
            yield

    def _round(self, chains: list[Chain], budget: int) -> Generator[None, None, int]:
        """Search and settle until nothing more is found; what is left of the budget."""
        careful = True  # only what brings nearly what was thought; if that is nothing, anything
        while budget > 0:
            finds: list[_Find] = []
            self._reach.renew()
            for room in self._sketch.rooms:
                yield from self._look(room, min(budget, self._rules.chain), finds)
            if not finds:
                break
            finds.sort(key=self._order)
            used = 0
            for find in finds:
                if used >= budget:
                    break
                if used and self._hopes(find) * 4 < find.gain * 3:
                    continue  # what was done since has changed it: found anew next time
                chain = self._try(find, min(budget - used, self._rules.chain), careful)
                if chain is not None:
                    chains.append(chain)
                    used += len(chain.moves)
                yield
            budget -= used
            self.plan = Plan(chains=tuple(chains))
            if not used and not careful:
                break
            careful = used > 0
            if not careful:
                self._real.clear()
        return budget

    # --- what waits ---

    def _group(self) -> None:
        """Equal wants together, with their turns."""
        known: dict[tuple[int, int], int] = {}
        for turn, want in enumerate(self._wants):
            kind = self._sketch.kind(want.demand, want.constraints)
            index = known.setdefault((kind.index, want.worth), len(self._groups))
            if index == len(self._groups):
                self._groups.append(_Group(kind, want.worth, []))
                demand = kind.demand
                self._quick.append((index, demand.cpu_milli, demand.memory_bytes, _milli(kind)))
            rank = -want.worth if self._rules.largest_first else turn
            self._groups[index].turns.extend([rank] * want.count)
        self._left = [len(group.turns) for group in self._groups]

    def _fill(self, room: Room) -> list[int]:
        """What would be put into a room as it is, one after the other in the order in which it is
        offered; nothing is put there twice. Changes nothing."""
        takers: list[int] = []
        if not room.open:
            return takers
        free, left, largest = room.free, self._left, room.largest()
        fitting: list[tuple[int, int]] = []  # when the next of a group is offered, and which group
        for index, cpu_milli, memory_bytes, milli in self._quick:
            if milli > largest or cpu_milli > free[0] or memory_bytes > free[1] or not left[index]:
                continue
            group = self._groups[index]
            if room.fits(group.kind):
                heappush(fitting, (group.turns[len(group.turns) - left[index]], index))
        while fitting and len(takers) < TAKERS:
            _, index = heappop(fitting)
            group = self._groups[index]
            if not self._sketch.add(f"\x00{len(takers)}", room, group.kind):
                continue  # no instance has such a name
            takers.append(index)
            rest = left[index] - takers.count(index)
            if rest > 0:
                heappush(fitting, (group.turns[len(group.turns) - rest], index))
        for place in range(len(takers)):
            room.without(room.holds[f"\x00{place}"])
        return takers

    def _forgo(self, room: Room) -> list[int]:
        """Nothing is promised this room any more; what was."""
        takers = self._takers.pop(room.index, [])
        for index in takers:
            self._left[index] += 1
        return takers

    def _again(self, room: Room, takers: list[int]) -> None:
        """As before `_forgo`."""
        if takers:
            self._takers[room.index] = takers
        for index in takers:
            self._left[index] -= 1

    def _promise(self, room: Room) -> int:
        """Promise the room, as it is, to what would be put there; what that is worth."""
        takers = self._fill(room)
        if takers:
            self._takers[room.index] = takers
            for index in takers:
                self._left[index] -= 1
        worth = self._worth(takers)
        self._reach.value(room, worth)
        return worth

    def _worth(self, takers: Sequence[int]) -> int:
        return sum(self._groups[index].worth for index in takers)

    def _worth_with(self, room: Room, kind: Kind) -> int:
        """What a room would be worth with one more of this kind in it; it has place for it."""
        name = "\x00+"
        if not self._sketch.add(name, room, kind):
            return 0
        before = self._forgo(room)
        worth = self._worth(self._fill(room))
        room.without(room.holds[name])
        self._again(room, before)
        return worth

    # --- who would have to leave ---

    def _look(self, room: Room, most: int, finds: list[_Find]) -> Iterator[None]:
        """All that could be gained in one room."""
        if not room.open or not self._could_gain(room, most):
            return
        reach = self._reach
        gains = self._gains.setdefault(room.index, {})
        single: list[tuple[int, int, Hold]] = []
        for hold in list(room.holds.values()):
            if not reach.movable(hold):
                continue
            kind = self._sketch.kind_of(hold)
            gain = self._gain(room, (hold,), gains)
            if gain and most > 1 and reach.direct(room, kind) != 0:
                yield from reach.ways(kind)
            moves, spoilt = reach.cost(room, kind)
            if moves > most:
                continue
            single.append((moves, spoilt, hold))
            self._found(_Find(room, (hold,), moves, gain - spoilt), finds)
        yield
        single.sort(key=lambda i: (i[1], i[0], i[2].demand.vector, i[2].instance))
        for size in range(2, most + 1):
            for group in combinations(single[:CANDIDATES], size):
                moves = sum(item[0] for item in group)
                spoilt = sum(item[1] for item in group)
                if moves > most:
                    continue
                leavers = tuple(item[2] for item in group)
                gain = self._gain(room, leavers, gains) - spoilt
                self._found(_Find(room, leavers, moves, gain), finds)
            yield

    def _could_gain(self, room: Room, most: int) -> bool:
        """Quick: whether anything that is promised no room yet could fit here if the `most` largest
        instances, for each resource by itself, were gone."""
        free, units_out = list(room.free), 0
        holds = [hold for hold in room.holds.values() if self._reach.movable(hold)]
        if not holds:
            return False
        for place in range(len(free)):
            column = sorted((hold.demand.vector[place] for hold in holds), reverse=True)
            free[place] += sum(column[:most])
        units_out = sum(sorted((len(hold.units) for hold in holds), reverse=True)[:most])
        untouched = [unit for units in room.units.values() for unit in units]
        for index, cpu_milli, memory_bytes, milli in self._quick:
            if not self._left[index] or cpu_milli > free[0] or memory_bytes > free[1]:
                continue
            if self._groups[index].worth < self._rules.least_gain:
                continue  # nobody is moved for that
            kind = self._groups[index].kind
            asked = sum(a.count for a in kind.accelerators)
            enough = sum(unit >= milli for unit in untouched) + units_out if asked else 0
            if enough >= asked and all(free[place] >= want for place, want in kind.vector):
                return True
        return False

    def _found(self, find: _Find, finds: list[_Find]) -> None:
        """Keep it if it is worth its moves, and was not seen to bring less."""
        real = self._real.get(_names(find.leavers), find.gain)
        if min(real, find.gain) >= self._rules.least_gain * find.moves:
            finds.append(find if real >= find.gain else replace(find, gain=real))

    def _order(self, find: _Find) -> tuple[int, int, int, int, tuple[str, ...]]:
        """Gain per move (in sixths: exact for one to three), then what those who leave cost (the
        less downtime, the fewer bytes), the first name."""
        cost = weight_of(self._rules, find.leavers)
        names = _names(find.leavers)
        return (-find.gain * 6 // find.moves, cost.downtime, cost.bytes, find.room.index, names)

    def _hopes(self, find: _Find) -> int:
        """What it is thought to bring now."""
        room, reach = find.room, self._reach
        spoilt = 0
        for hold in find.leavers:
            if room.holds.get(hold.instance) is not hold or hold.instance in reach.pinned:
                return 0
            spoilt += reach.cost(room, self._sketch.kind_of(hold))[1]
        return self._gain(room, find.leavers, self._gains.setdefault(room.index, {})) - spoilt

    def _gain(
        self, room: Room, leavers: tuple[Hold, ...], known: dict[tuple[str, ...], int]
    ) -> int:
        """How much more the room would be worth without them."""
        names = _names(leavers)
        gain = known.get(names)
        if gain is None:
            before = self._forgo(room)
            for hold in leavers:
                room.count(hold, -1)
            gain = self._worth(self._fill(room)) - self._worth(before)
            for hold in leavers:
                room.count(hold, 1)
            self._again(room, before)
            known[names] = gain
        return gain

    # --- doing it on paper ---

    def _try(self, find: _Find, most: int, careful: bool) -> Chain | None:
        """Move on the scratch books; None, and nothing changed, if it brings too little."""
        done: Done = []
        if any(
            find.room.holds.get(hold.instance) is not hold or hold.instance in self._reach.pinned
            for hold in find.leavers
        ):
            return None
        for place, hold in enumerate(find.leavers[:-1]):
            still = len(find.leavers) - place - 1
            step = next(self._reach.leave(hold, find.room, most - len(done) - still), None)
            if step is None:
                self._reach.undo(done)
                return None
            done.extend(step)
        most_gained = 0
        steps = self._reach.leave(find.leavers[-1], find.room, most - len(done))
        for step in islice(steps, TRIES):
            whole = [*done, *step]
            chain, gain = self._settle(find, whole, careful)
            if chain is not None:
                return chain
            self._reach.undo(step)
            most_gained = max(most_gained, gain * find.moves // len(whole))
        self._real[_names(find.leavers)] = most_gained
        self._reach.undo(done)
        return None

    def _settle(self, find: _Find, done: Done, careful: bool) -> tuple[Chain | None, int]:
        """Keep what was done on paper if all the rooms that it changed are worth more now; and by
        how much they are."""
        changed = {find.room.index: find.room}
        for move, _ in done:
            for cnm in (move.source, move.target):
                room = self._sketch.by_id[cnm]
                changed[room.index] = room
        rooms = [room for _, room in sorted(changed.items())]
        before = {room.index: self._forgo(room) for room in rooms}
        gain = sum(self._promise(room) for room in rooms)
        gain -= sum(self._worth(takers) for takers in before.values())
        enough = self._rules.least_gain * len(done)
        if gain < enough or (careful and gain * 4 * find.moves < find.gain * 3 * len(done)):
            for room in rooms:
                self._forgo(room)
            for room in rooms:
                self._again(room, before[room.index])
                self._reach.value(room, self._worth(before[room.index]))
            return None, gain
        for room in rooms:
            self._gains.pop(room.index, None)
        cost = weight_of(self._rules, [hold for _, hold in done])
        moves = tuple(move for move, _ in done)
        return Chain(moves=moves, gain=gain, weight=cost, why=self._why), gain


def _milli(kind: Kind) -> int:
    """The least free share that anything of this kind needs; 0 when it needs none."""
    return min((a.milli for a in kind.accelerators), default=0)


def _names(leavers: tuple[Hold, ...]) -> tuple[str, ...]:
    return tuple(hold.instance for hold in leavers)


def plan_room(state: AllocatorState, wants: Sequence[Want], rules: Rules) -> Plan:
    """The whole plan at once; in the daemon, take `RoomPlanner` and its steps."""
    planner = RoomPlanner(state, wants, rules)
    for _ in planner.run():
        pass
    return planner.plan
