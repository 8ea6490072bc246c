"""Who could leave a room, and in how many moves: the ejection chains of the planner.

One move takes an instance to a room that has place for it. Where there is none, another instance
leaves that room first, for a third one: a chain. A swap is the chain whose third room is the first.
`Reach` answers from bit masks, one for each kind of instance, with a bit for each room that has
place for it; only the rooms that a move has changed are asked again.
"""

from collections.abc import Iterator
from typing import Final

from firmware.allocator.plan_books import Kind, Room, Sketch
from firmware.allocator.plan_types import MAX_CHAIN, Move
from firmware.allocator.state import Hold
from firmware.allocator.types import WHOLE_MILLI

FAR: Final = MAX_CHAIN + 1  # more moves than any plan may use
WAYS_KEPT: Final = 12  # other instances that could make room, for each kind


class Reach:
    """How many moves each kind needs to leave its room, by the sketch as it is now."""

    def __init__(self, sketch: Sketch, pinned: set[str], chain: int) -> None:
        self.sketch, self.pinned, self.chain = sketch, pinned, chain
        self._where: dict[int, int] = {}  # kind -> mask of rooms that have place for it
        self._ways: dict[int, list[tuple[Room, Hold]]] = {}  # kind -> who could make room
        self._loose: dict[int, list[tuple[Hold, Kind]]] = {}  # room -> who can leave in one move

    # --- one move ---

    def where(self, kind: Kind) -> int:
        """The rooms that have place for one more of this kind, as a mask."""
        mask = self._where.get(kind.index)
        if mask is None:
            mask = 0
            for room in self.sketch.rooms:
                if room.fits(kind):
                    mask |= 1 << room.index
            self._where[kind.index] = mask
        return mask

    def changed(self, room: Room) -> None:
        """A room's books have changed."""
        bit, kinds = 1 << room.index, self.sketch.kinds
        for index, mask in self._where.items():
            fits = room.fits(kinds[index])
            if fits != bool(mask & bit):
                self._where[index] = mask ^ bit
        self._loose.pop(room.index, None)

    def renew(self) -> None:
        """Forget what was found out about chains; masks stay right by `changed`."""
        self._ways.clear()
        self._loose.clear()

    def movable(self, hold: Hold) -> bool:
        return hold.instance not in self.pinned and not self.sketch.kind_of(hold).tied

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

    # --- chains ---

    def ways(self, kind: Kind) -> Iterator[None]:
        """Find out who could make room for this kind, by one move of its own. A step a room."""
        if kind.index in self._ways:
            return
        found: list[tuple[Room, Hold]] = []
        milli = kind.single.milli if kind.single is not None else 0
        for room in self.sketch.rooms:
            if room.index % 32 == 31:
                yield
            if not room.open or (not kind.plain and not room.allows(kind)):
                continue
            free = room.free
            for hold, _ in self.loose(room):
                gives = hold.demand.vector
                for place, want in kind.vector:
                    if free[place] + gives[place] < want:
                        break
                else:
                    if milli and not _could_give(room, hold, milli):
                        continue
                    room.count(hold, -1)
                    if room.fits(kind):
                        found.append((room, hold))
                    room.count(hold, 1)
            if len(found) >= 4 * WAYS_KEPT:
                break
        found.sort(key=lambda way: (way[1].demand.memory_bytes, way[0].index, way[1].instance))
        self._ways[kind.index] = found[:WAYS_KEPT]

    def level(self, room: Room, kind: Kind) -> int:
        """Moves that it takes to get one of this kind out of a room; FAR when more than a plan may
        use. Right for chains only after `ways` has been through."""
        if self.where(kind) & ~(1 << room.index):
            return 1
        if self.chain < 2:
            return FAR
        if any(other is not room for other, _ in self._ways.get(kind.index, ())):
            return 2
        return FAR

    def leave(self, hold: Hold, room: Room, most: int) -> list[tuple[Move, Hold]] | None:
        """Move it out, by at most `most` moves, and keep a record by which they can be undone.
        None, and nothing changed, when that can't be done."""
        kind = self.sketch.kind_of(hold)
        move = self._step(hold, room, kind, None)
        if move is not None:
            return [(move, hold)]
        if most < 2:
            return None
        for other, blocker in self._ways.get(kind.index, ()):
            if other is room or blocker.instance not in other.holds:
                continue
            if blocker.instance in self.pinned:
                continue
            first = self._step(blocker, other, self.sketch.kind_of(blocker), room)
            if first is None:
                continue
            second = self._to(hold, room, other)
            if second is not None:
                return [(first, blocker), (second, hold)]
            self.undo([(first, blocker)])
        return None

    def _step(self, hold: Hold, source: Room, kind: Kind, last: Room | None) -> Move | None:
        """One move, to the room where it does least harm; `last` only if there is no other."""
        mask = self.where(kind) & ~(1 << source.index)
        if last is not None and mask != 1 << last.index:
            mask &= ~(1 << last.index)
        best: Room | None = None
        least: tuple[int, int, int] = (0, 0, 0)
        rooms = self.sketch.rooms
        while mask:
            low = mask & -mask
            mask ^= low
            room = rooms[low.bit_length() - 1]
            harm = (*_harm(room, kind), room.index)
            if best is None or harm < least:
                best, least = room, harm
        return None if best is None else self._to(hold, source, best)

    def _to(self, hold: Hold, source: Room, target: Room) -> Move | None:
        move = self.sketch.move(hold, source, target)
        if move is not None:
            self.pinned.add(hold.instance)  # once in a plan
            self.changed(source)
            self.changed(target)
        return move

    def undo(self, done: list[tuple[Move, Hold]]) -> None:
        """Take moves back, the last one first."""
        for move, hold in reversed(done):
            self.sketch.undo(move, hold)
            self.pinned.discard(hold.instance)
            self.changed(self.sketch.by_id[move.source])
            self.changed(self.sketch.by_id[move.target])


def _could_give(room: Room, hold: Hold, milli: int) -> bool:
    """Whether a unit of that size could come free by this instance's going. Quick, not exact."""
    if not hold.units:
        return any(unit >= milli for units in room.units.values() for unit in units)
    return True


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
