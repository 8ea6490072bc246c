"""Whom to stop so that something of a higher priority fits: nobody whom it does not need.

For every CNM: who of those that may be stopped would have to go? Of all ways the one whose highest
victim is the lowest; of those the fewest victims; of those the ones without data of their own (it
would have to be brought home first); of those the least reserved (accelerators, memory, processor).
Equal ones go by name. A set is taken only if it makes the room by the books, and then none of it
can be spared.

The least set is a covering problem, so the search is bounded: beyond `LOOKS_MOST` looks in one CNM,
and when those of the whole search are used up, the victims there are taken one after the other, the
lowest first, and who is superfluous in the end is let off again.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from firmware.allocator.filter import homes_of
from firmware.allocator.plan_books import Kind, Room
from firmware.allocator.state import AllocatorState, Hold
from firmware.allocator.types import Constraints, Demand

LOOKS_MOST: Final = 4000  # of one CNM, a set each
LOOKS_IN_ALL: Final = 40_000
LOOKS_A_STEP: Final = 200
ROOMS_A_STEP: Final = 16
HOLDS_A_STEP: Final = 64  # on them; about 1.5 ms
VICTIMS_MOST: Final = 16  # for one instance
Cost: TypeAlias = tuple[int, int, int, int, int, int]  # priority, count, with data, the reserved


@dataclass(frozen=True, slots=True, kw_only=True)
class Victim:
    """An instance that may be stopped."""

    priority: int
    stateful: bool = False  # it has data of its own


@dataclass(frozen=True, slots=True, kw_only=True)
class Preemption:
    """Stop these, and it fits on that CNM."""

    cnm: str
    victims: tuple[str, ...]  # by name
    priority: int  # the highest among them


@dataclass(frozen=True, slots=True)
class _Candidate:
    hold: Hold
    victim: Victim

    @property
    def cost(self) -> tuple[int, int, int, int]:
        demand = self.hold.demand
        units = sum(unit.milli for unit in self.hold.units)
        return int(self.victim.stateful), units, demand.memory_bytes, demand.cpu_milli


class PreemptPlanner:
    """A plan in steps: iterate over `run`, take `plan` when it has ended."""

    def __init__(
        self,
        state: AllocatorState,
        demand: Demand,
        constraints: Constraints,
        victim: Callable[[str], Victim | None],
        most: int,
        looks: int = LOOKS_IN_ALL,
    ) -> None:
        """`victim(instance)`: None for one that may not be stopped for this. At most `most`."""
        self.plan: Preemption | None = None
        self.room = ""  # a CNM where it fits as it is: then nobody is stopped
        self._state = state
        self._constraints = constraints
        self._victim = victim
        self._most = min(most, VICTIMS_MOST)
        self._homes = homes_of(state, constraints)
        self._kind = _kind(state, demand, constraints)
        self._best: tuple[Cost, str, tuple[str, ...]] | None = None
        self._looks = 0
        self._looks_left = looks
        self._looks_most = 0  # in the CNM that is looked at

    def run(self) -> Iterator[None]:
        """Each step is short: some CNMs, or some sets on one of them."""
        rooms = holds = 0  # in this step
        for index, cnm in enumerate(sorted(self._state.nodes)):
            if self._most > 0 and cnm in self._state.nodes and self._may_go(cnm):
                room = Room(index, self._state.nodes[cnm])
                yield from self._look(room)
                if self.room:
                    return
                holds += len(room.holds)
            rooms += 1
            if rooms >= ROOMS_A_STEP or holds >= HOLDS_A_STEP:
                rooms = holds = 0
                yield
        if self._best is not None:
            cost, cnm, names = self._best
            self.plan = Preemption(cnm=cnm, victims=names, priority=cost[0])

    def _may_go(self, cnm: str) -> bool:
        return all(cnm in places for places in self._homes.values())

    def _look(self, room: Room) -> Iterator[None]:
        """The best set of one CNM, if it is better than what was found so far."""
        kind = self._kind
        if room.fits(kind):
            self.room = room.id
            return
        if not room.open or not (kind.plain or kind.most or room.allows(kind)):
            return
        self._looks, self._looks_most = 0, min(LOOKS_MOST, self._looks_left)
        candidates = self._candidates(room)
        for group in self._groups(room, candidates):
            above = self._best is not None and group[-1].victim.priority > self._best[0][0]
            if above or (yield from self._least(room, group)):
                break
        self._looks_left = max(0, self._looks_left - self._looks)

    def _candidates(self, room: Room) -> list[_Candidate]:
        """Who may be stopped there, the lowest first; not those that it must be together with."""
        found: list[_Candidate] = []
        for hold in room.holds.values():
            part = hold.constraints
            if part.workload == self._constraints.workload and part.component in self._homes:
                continue
            victim = self._victim(hold.instance)
            if victim is not None:
                found.append(_Candidate(hold, victim))
        found.sort(key=lambda c: (c.victim.priority, c.cost, c.hold.instance))
        return found

    def _groups(
        self, room: Room, candidates: Sequence[_Candidate]
    ) -> Sequence[Sequence[_Candidate]]:
        """All up to a priority, for each at which it fits when all of them are gone; the lowest
        first."""
        found: list[Sequence[_Candidate]] = []
        for place, candidate in enumerate(candidates):
            room.count(candidate.hold, -1)
            following = candidates[place + 1] if place + 1 < len(candidates) else None
            last = following is None or following.victim.priority > candidate.victim.priority
            if last and room.fits(self._kind):
                found.append(candidates[: place + 1])
        for candidate in candidates:
            room.count(candidate.hold, 1)
        return found

    # --- the least set ---

    def _least(self, room: Room, group: Sequence[_Candidate]) -> Generator[None, None, bool]:
        """Sets of one, of two, and so on, until one does. False when none of them is allowed."""
        short = [max(0, want - room.free[place]) for place, want in self._kind.vector]
        places = [place for place, _ in self._kind.vector]
        for size in range(1, min(self._most, len(group)) + 1):
            if self._best is not None and (group[-1].victim.priority, size) > self._best[0][:2]:
                return True  # no better than what is known
            found: list[list[_Candidate]] = []
            yield from self._sets(room, group, size, 0, [], short, places, found)
            used_up = self._looks > self._looks_most  # so they are for all larger sets
            chosen = found[0] if found else []
            if not found and used_up:
                chosen = yield from self._one_by_one(room, group)
            if chosen:
                self._offer(room, chosen)
                return True
            if used_up:
                return False
        return False

    def _sets(
        self,
        room: Room,
        group: Sequence[_Candidate],
        size: int,
        start: int,
        chosen: list[_Candidate],
        short: Sequence[int],
        places: Sequence[int],
        found: list[list[_Candidate]],
    ) -> Iterator[None]:
        """All sets of `size` more that make the room; of those the cheapest stays in `found`."""
        self._looks += 1
        if self._looks % LOOKS_A_STEP == 0:
            yield
        if self._looks > self._looks_most:
            return
        if size == 0:
            if room.fits(self._kind) and (not found or _cost(chosen) < _cost(found[0])):
                found[:] = [list(chosen)]
            return
        rest = group[start:]
        for short_of, place in zip(short, places, strict=True):
            column = sorted((c.hold.demand.vector[place] for c in rest), reverse=True)
            if sum(column[:size]) < short_of:
                return
        for index in range(start, len(group) - size + 1):
            candidate = group[index]
            room.count(candidate.hold, -1)
            chosen.append(candidate)
            left = [
                max(0, amount - candidate.hold.demand.vector[place])
                for amount, place in zip(short, places, strict=True)
            ]
            yield from self._sets(room, group, size - 1, index + 1, chosen, left, places, found)
            chosen.pop()
            room.count(candidate.hold, 1)

    def _one_by_one(
        self, room: Room, group: Sequence[_Candidate]
    ) -> Generator[None, None, list[_Candidate]]:
        """The lowest first until it fits; then the dearest are let off whom it does not need."""
        gone: list[_Candidate] = []
        for place, candidate in enumerate(group):
            if place % LOOKS_A_STEP == 0:
                yield
            room.count(candidate.hold, -1)
            gone.append(candidate)
            if room.fits(self._kind):
                break
        for place, candidate in enumerate(sorted(gone, key=lambda c: _cost([c]), reverse=True)):
            if place % LOOKS_A_STEP == LOOKS_A_STEP - 1:
                yield
            room.count(candidate.hold, 1)
            if room.fits(self._kind):
                gone.remove(candidate)
            else:
                room.count(candidate.hold, -1)
        for candidate in gone:
            room.count(candidate.hold, 1)
        return gone if len(gone) <= self._most else []

    def _offer(self, room: Room, chosen: Sequence[_Candidate]) -> None:
        cost, names = _cost(chosen)
        if self._best is None or (cost, room.id, names) < self._best:
            self._best = (cost, room.id, names)


def fits_without(
    state: AllocatorState,
    cnm: str,
    demand: Demand,
    constraints: Constraints,
    victims: Sequence[str],
) -> bool:
    """Whether it would fit there, by the books as they are now, if these were gone."""
    node = state.nodes.get(cnm)
    if node is None or any(name not in node.holds for name in victims):
        return False
    if any(cnm not in places for places in homes_of(state, constraints).values()):
        return False
    room = Room(0, node)
    for name in victims:
        room.count(node.holds[name], -1)
    return room.fits(_kind(state, demand, constraints))


def plan_preemption(
    state: AllocatorState,
    demand: Demand,
    constraints: Constraints,
    victim: Callable[[str], Victim | None],
    most: int = VICTIMS_MOST,
    looks: int = LOOKS_IN_ALL,
) -> Preemption | None:
    """The whole plan at once."""
    planner = PreemptPlanner(state, demand, constraints, victim, most, looks)
    for _ in planner.run():
        pass
    return planner.plan


def _cost(chosen: Sequence[_Candidate]) -> tuple[Cost, tuple[str, ...]]:
    stateful, units, memory, cpu = (
        sum(column) for column in zip(*(c.cost for c in chosen), strict=True)
    )
    priority = max(c.victim.priority for c in chosen)
    names = tuple(sorted(c.hold.instance for c in chosen))
    return (priority, len(chosen), stateful, units, memory, cpu), names


def _kind(state: AllocatorState, demand: Demand, constraints: Constraints) -> Kind:
    """The demand with those of the components that it must come together with."""
    homes = homes_of(state, constraints)
    wants = [demand, *(d for name, d in constraints.companions if name not in homes)]
    cpu, memory, nvme, link, bandwidth, windows = (
        sum(column) for column in zip(*(d.vector for d in wants), strict=True)
    )
    together = Demand(
        cpu_milli=cpu,
        memory_bytes=memory,
        nvme_bytes=nvme,
        link_mbit=link,
        nvme_mbit=bandwidth,
        window_slots=windows,
        accelerators=tuple(a for d in wants for a in d.accelerators),
    )
    alone = replace(constraints, together=frozenset(), companions=())
    return Kind(0, together, alone)
