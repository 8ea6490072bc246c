"""Who could leave a room, and in how many moves: the ejection chains of the planner.

One move takes an instance to a room that has place for it. Where there is none, another instance
leaves that room first, for a third one: a chain. A swap is the chain whose third room is the first.
`Reach` answers from bit masks, one for each kind of instance, with a bit for each room that has
place for it; only the rooms that a move has changed are asked again.

Some rooms are worth something as they are: what waits will go there. `precious` knows what; a move
into one of them costs that much. So one open place can be passed on from room to room, each time to
where more can be made of it.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeAlias

from firmware.allocator.plan_books import Kind, Room, Sketch
from firmware.allocator.plan_types import MAX_CHAIN, Downtime, Move, Rules, Weight
from firmware.allocator.state import Hold
from firmware.allocator.types import WHOLE_MILLI

FAR: Final = MAX_CHAIN + 1  # more moves than any plan may use
WAYS_KEPT: Final = 16  # other instances that could make room, for each kind
WAYS_SEEN: Final = 64

Done: TypeAlias = list[tuple[Move, Hold]]  # moves on paper, and what each one moved
Cost: TypeAlias = tuple[int, int]  # moves, and what they spoil elsewhere
UNKNOWN: Final = -1
UNREACHABLE: Final[Cost] = (FAR, 0)


class Reach:
    """How many moves each kind needs to leave its room, by the sketch as it is now."""

    def __init__(
        self,
        sketch: Sketch,
        pinned: set[str],
        chain: int,
        worth_with: Callable[[Room, Kind], int],
        may_move: Callable[[str], bool] = lambda instance: True,
    ) -> None:
        """`worth_with(room, kind)`: what a room would be worth with one more of a kind in it."""
        self._ask_move = may_move
        self._may_move: dict[str, bool] = {}
        self.sketch, self.pinned, self.chain = sketch, pinned, chain
        self._worth_with = worth_with
        self._direct: dict[int, int | None] = {}  # kind -> `direct`, until anything changes
        self._losses: dict[int, dict[int, int]] = {}  # precious room -> kind -> what it spoils
        self.precious: dict[int, int] = {}  # room -> what it is worth as it is, if anything
        self._precious_mask = 0
        self._where: dict[int, tuple[int, int]] = {}  # kind -> mask of rooms that have place for
        # it, and how much of `_log` is in it
        self._log: list[Room] = []  # rooms whose books have changed
        self._ways: dict[int, list[tuple[Room, Hold, int]]] = {}  # kind -> who could make room
        self._loose: dict[int, list[tuple[Hold, Kind]]] = {}  # room -> who can leave in one move

    # --- what is known ---

    def where(self, kind: Kind) -> int:
        """The rooms that have place for one more of this kind, as a mask."""
        known, end = self._where.get(kind.index), len(self._log)
        if known is not None and known[1] == end:
            return known[0]
        if known is None:
            mask = 0
            for room in self.sketch.rooms:
                if room.fits(kind):
                    mask |= 1 << room.index
        else:
            mask, done = known
            for room in dict.fromkeys(self._log[done:]):
                bit = 1 << room.index
                mask = mask | bit if room.fits(kind) else mask & ~bit
        self._where[kind.index] = mask, end
        return mask

    def changed(self, room: Room) -> None:
        """A room's books have changed."""
        self._log.append(room)
        self._direct.clear()
        self._losses.pop(room.index, None)
        self._loose.pop(room.index, None)

    def value(self, room: Room, worth: int) -> None:
        """What a room is worth as it is."""
        bit = 1 << room.index
        self._direct.clear()
        self._losses.pop(room.index, None)
        if worth:
            self.precious[room.index] = worth
            self._precious_mask |= bit
        else:
            self.precious.pop(room.index, None)
            self._precious_mask &= ~bit

    def renew(self) -> None:
        """Forget what was found out about chains; masks stay right by `changed`."""
        self._ways.clear()
        self._loose.clear()

    def movable(self, hold: Hold) -> bool:
        if hold.instance in self.pinned or self.sketch.kind_of(hold).tied:
            return False
        may = self._may_move.get(hold.instance)
        if may is None:
            may = self._may_move[hold.instance] = self._ask_move(hold.instance)
        return may

    # --- how far ---

    def direct(self, room: Room, kind: Kind) -> int | None:
        """What one move of this kind out of a room would spoil; None when there is none."""
        bit = 1 << room.index
        mask = self.where(kind)
        if not mask & bit:  # then it is the same for all rooms
            known = self._direct.get(kind.index, UNKNOWN)
            if known != UNKNOWN:
                return known
        found = self._least_loss(mask & ~bit, kind)
        if not mask & bit:
            self._direct[kind.index] = found
        return found

    def _least_loss(self, mask: int, kind: Kind) -> int | None:
        if mask & ~self._precious_mask:
            return 0
        spoilt: int | None = None
        while mask:
            low = mask & -mask
            mask ^= low
            lost = self.loss(self.sketch.rooms[low.bit_length() - 1], kind)
            spoilt = lost if spoilt is None else min(spoilt, lost)
        return spoilt

    def loss(self, room: Room, kind: Kind) -> int:
        """What a move of this kind into a room spoils there."""
        worth = self.precious.get(room.index)
        if worth is None:
            return 0
        losses = self._losses.setdefault(room.index, {})
        lost = losses.get(kind.index)
        if lost is None:
            lost = losses[kind.index] = worth - self._worth_with(room, kind)
        return lost

    def loose(self, room: Room) -> list[tuple[Hold, Kind]]:
        """Who could leave this room in one move; one of those that are alike."""
        found = self._loose.get(room.index)
        if found is None:
            found, seen = [], set()
            away = ~(1 << room.index)
            for hold in room.holds.values():
                kind = self.sketch.kind_of(hold)
                mark = (kind.index, hold.units)
                if mark not in seen and self.movable(hold) and self.where(kind) & away:
                    seen.add(mark)
                    found.append((hold, kind))
            self._loose[room.index] = found
        return found

    def ways(self, kind: Kind) -> Iterator[None]:
        """Find out who could make room for this kind, by one move of its own. A step: 32 rooms."""
        if kind.index in self._ways or self.chain < 2:
            return
        found: list[tuple[Room, Hold, int]] = []
        for room in self.sketch.rooms:
            if room.index % 32 == 31:
                yield
            if not room.open or (not kind.plain and not room.allows(kind)):
                continue
            self._ways_in(room, kind, found)
            if len(found) >= WAYS_SEEN:
                break
        found.sort(key=lambda way: (way[2], way[1].demand.vector, way[0].index, way[1].instance))
        self._ways[kind.index] = found[:WAYS_KEPT]

    def _ways_in(self, room: Room, kind: Kind, found: list[tuple[Room, Hold, int]]) -> None:
        free = room.free
        milli = kind.single.milli if kind.single is not None else 0
        largest = room.largest() if milli else 0
        for hold, own in self.loose(room):
            gives = hold.demand.vector
            for place, want in kind.vector:
                if free[place] + gives[place] < want:
                    break
            else:
                if largest < milli and not room.would_have(hold, milli):
                    continue
                room.count(hold, -1)
                fits = room.fits(kind)
                room.count(hold, 1)
                spoilt = self.direct(room, own) if fits else None
                if spoilt is not None:
                    found.append((room, hold, spoilt))

    def cost(self, room: Room, kind: Kind) -> Cost:
        """Moves that it takes to get one of this kind out of a room, and what they spoil; the
        cheaper of one move and two. Of chains it knows only after `ways`."""
        spoilt = self.direct(room, kind)
        if spoilt == 0:
            return 1, 0
        for other, _, lost in self._ways.get(kind.index, ()):
            if other is not room and (spoilt is None or lost < spoilt):
                return 2, lost + self.precious.get(other.index, 0)
        return UNREACHABLE if spoilt is None else (1, spoilt)

    # --- doing it on paper ---

    def leave(self, hold: Hold, room: Room, most: int) -> Iterator[Done]:
        """Ways to move it out by at most `most` moves, the cheapest first. Each one is done on
        paper when it is given; whoever does not want it takes it back with `undo`."""
        if most < 1:
            return
        kind = self.sketch.kind_of(hold)
        target = self.best(room, kind)
        cheap = target is not None and self.loss(target, kind) == 0
        if target is not None and cheap:
            move = self._to(hold, room, target)
            if move is not None:
                yield [(move, hold)]
        if most >= 2:
            for other, blocker, _ in tuple(self._ways.get(kind.index, ())):
                held = other.holds.get(blocker.instance)
                if other is room or held is not blocker or blocker.instance in self.pinned:
                    continue
                away = self.best(other, self.sketch.kind_of(blocker), room)
                first = self._to(blocker, other, away) if away is not None else None
                if first is None:
                    continue
                second = self._to(hold, room, other)
                if second is not None:
                    yield [(first, blocker), (second, hold)]
                else:
                    self.undo([(first, blocker)])
        if target is not None and not cheap:
            move = self._to(hold, room, target)
            if move is not None:
                yield [(move, hold)]

    def best(self, source: Room | None, kind: Kind, last: Room | None = None) -> Room | None:
        """Where it does least harm, but not in `source`; `last` only if there is no other."""
        mask = self.where(kind)
        if source is not None:
            mask &= ~(1 << source.index)
        if last is not None and mask != 1 << last.index:
            mask &= ~(1 << last.index)
        if mask & ~self._precious_mask:
            mask &= ~self._precious_mask
        best: Room | None = None
        least: tuple[int, int, int] = (0, 0, 0)
        rooms = self.sketch.rooms
        while mask:
            low = mask & -mask
            mask ^= low
            room = rooms[low.bit_length() - 1]
            harm = (self.loss(room, kind), *_harm(room, kind))
            if best is None or harm < least:  # equal ones: the first
                best, least = room, harm
        return best

    def _to(self, hold: Hold, source: Room, target: Room) -> Move | None:
        move = self.sketch.move(hold, source, target)
        if move is not None:
            self.pinned.add(hold.instance)  # once in a plan
            self.changed(source)
            self.changed(target)
        return move

    def undo(self, done: Done) -> None:
        """Take moves back, the last one first."""
        for move, hold in reversed(done):
            self.sketch.undo(move, hold)
            self.pinned.discard(hold.instance)
            self.changed(self.sketch.by_id[move.source])
            self.changed(self.sketch.by_id[move.target])


def _harm(room: Room, kind: Kind) -> tuple[int, int]:
    """What is spoilt by putting one more of this kind there: free accelerators beside one that
    wants none, a hole much larger than the share; then whatever leaves the fuller room."""
    spoilt = 0
    only = kind.single
    if only is None:
        for units in room.units.values():
            for unit in units:
                spoilt += unit
    elif only.milli < WHOLE_MILLI:
        tight = WHOLE_MILLI
        for key, units in room.units.items():
            if key[0] == only.kind:
                for unit in units:
                    if only.milli <= unit < tight:
                        tight = unit
        spoilt = tight - only.milli
    return spoilt, room.free[0]


def weight_of(rules: Rules, holds: Sequence[Hold]) -> Weight:
    """What a chain costs that moves these: the bytes of all, the downtime of the worst. Whom the
    rules say nothing of weighs what it has reserved of memory."""
    weights = [
        rules.weights.get(hold.instance) or Weight(bytes=hold.demand.memory_bytes) for hold in holds
    ]
    return Weight(
        bytes=sum(weight.bytes for weight in weights),
        downtime=max((weight.downtime for weight in weights), default=Downtime.BRIEF),
    )
