"""Scratch books for planning: what would be free if this had moved.

A `Sketch` reads an `AllocatorState` and never writes to it. It holds one `Room` for each CNM and
takes moves back as easily as it makes them. Whether an instance fits is asked far more often than
anything else, so instances are sorted into kinds: equal demands with equal constraints.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import TypeAlias

from firmware.allocator.plan_types import Move
from firmware.allocator.state import AllocatorState, Hold, Node
from firmware.allocator.types import AcceleratorDemand, AcceleratorUnit, Constraints, Demand
from firmware.allocator.units import PoolKey, UnitShortage, choose_units

KindKey: TypeAlias = tuple[Demand, Constraints]


class Kind:
    """What the search has to know of a demand; made once for all that are alike."""

    __slots__ = (
        "accelerators",
        "arch",
        "constraints",
        "demand",
        "exclude",
        "index",
        "labels",
        "most",
        "part",
        "plain",
        "runtimes",
        "single",
        "tied",
        "vector",
    )

    def __init__(self, index: int, demand: Demand, constraints: Constraints) -> None:
        self.index = index
        self.demand, self.constraints = demand, constraints
        self.vector = tuple((place, want) for place, want in enumerate(demand.vector) if want)
        self.accelerators = demand.accelerators
        only = demand.accelerators[0] if len(demand.accelerators) == 1 else None
        self.single: AcceleratorDemand | None = only
        self.arch, self.runtimes = constraints.arch, constraints.runtimes
        self.labels, self.exclude = constraints.labels, constraints.exclude
        self.most, self.part = (
            constraints.max_per_cnm,
            (constraints.workload, constraints.component),
        )
        self.plain = not (self.arch or self.runtimes or self.labels or self.exclude or self.most)
        self.tied = bool(constraints.together or constraints.companions)


class Room:
    """One CNM in the scratch books."""

    __slots__ = ("components", "free", "holds", "index", "node", "open", "scopes", "units")

    def __init__(self, index: int, node: Node) -> None:
        self.index, self.node = index, node
        self.open = not node.view.why_not
        self.free = list(node.free)
        self.units: dict[PoolKey, list[int]] = {
            key: list(units) for key, units in sorted(node.free_milli.items())
        }
        self.scopes = node.scopes
        self.holds = dict(sorted(node.holds.items()))
        self.components = dict(node.components)

    @property
    def id(self) -> str:
        return self.node.view.id

    def fits(self, kind: Kind) -> bool:
        """As `AllocatorState.commit` would answer, and the filter before it."""
        free = self.free
        for place, want in kind.vector:
            if free[place] < want:
                return False
        if not self.open or (not kind.plain and not self.allows(kind)):
            return False
        only = kind.single
        if only is not None:
            milli, left = only.milli, only.count
            for key, units in self.units.items():
                if key[0] == only.kind and only.takes(key[1]):
                    for unit in units:
                        if unit >= milli:
                            left -= 1
            return left <= 0
        return not kind.accelerators or self.choose(kind) is not None

    def allows(self, kind: Kind) -> bool:
        """Whatever has nothing to do with amounts."""
        view = self.node.view
        return not (
            (kind.arch is not None and kind.arch != view.arch)
            or (kind.runtimes and kind.runtimes.isdisjoint(view.runtimes))
            or any(view.labels.get(key) != value for key, value in kind.labels)
            or view.id in kind.exclude
            or (kind.most and self.components.get(kind.part, 0) >= kind.most)
        )

    def choose(self, kind: Kind) -> tuple[AcceleratorUnit, ...] | None:
        """The units that it would get; None when there are too few."""
        try:
            return choose_units(self.units, self.scopes, kind.accelerators)
        except UnitShortage:
            return None

    def largest(self) -> int:
        """The largest free share of any accelerator."""
        return max((unit for units in self.units.values() for unit in units), default=0)

    def would_have(self, hold: Hold, milli: int) -> bool:
        """Whether one of the units of an instance would have that much free without it."""
        for unit in hold.units:
            units = self.units.get((unit.kind, unit.model), [])
            if unit.index < len(units) and units[unit.index] + unit.milli >= milli:
                return True
        return False

    def count(self, hold: Hold, sign: int) -> None:
        """Take it into account (1), or out of it again (-1)."""
        free = self.free
        for place, want in enumerate(hold.demand.vector):
            free[place] -= sign * want
        for unit in hold.units:
            units = self.units.get((unit.kind, unit.model), [])
            if unit.index < len(units):
                units[unit.index] -= sign * unit.milli
        part = (hold.constraints.workload, hold.constraints.component)
        self.components[part] = self.components.get(part, 0) + sign

    def without(self, hold: Hold) -> None:
        del self.holds[hold.instance]
        self.count(hold, -1)

    def with_(self, hold: Hold) -> None:
        self.holds[hold.instance] = hold
        self.count(hold, 1)


class Sketch:
    """All rooms, in the order of their ids, and what was moved or added so far."""

    def __init__(self, state: AllocatorState, only: frozenset[str] | None = None) -> None:
        """`only`: some of the CNMs; else all."""
        self.rooms: list[Room] = []
        self.kinds: list[Kind] = []
        self._ids = sorted(state.nodes if only is None else only)
        self._state = state
        self._by_key: dict[KindKey, Kind] = {}
        self._seen: dict[tuple[int, int], tuple[Kind, Demand, Constraints]] = {}
        self.by_id: dict[str, Room] = {}

    def read(self) -> Iterator[None]:
        """Read the books, a room at a step."""
        for index, cnm in enumerate(self._ids):
            node = self._state.nodes.get(cnm)
            if node is not None:
                room = Room(len(self.rooms), node)
                self.rooms.append(room)
                self.by_id[cnm] = room
            if index % 16 == 15:
                yield

    def kind(self, demand: Demand, constraints: Constraints) -> Kind:
        """Equal for all that are alike as far as room is concerned."""
        known = self._seen.get((id(demand), id(constraints)))
        if known is not None:
            return known[0]
        limited = constraints.max_per_cnm
        alike = replace(
            constraints,
            workload=constraints.workload if limited else "",
            component=constraints.component if limited else "",
            spread=False,
        )
        found = self._by_key.get((demand, alike))
        if found is None:
            found = Kind(len(self.kinds), demand, alike)
            self._by_key[(demand, alike)] = found
            self.kinds.append(found)
        # the objects are kept, so that their ids stay theirs
        self._seen[(id(demand), id(constraints))] = (found, demand, constraints)
        return found

    def kind_of(self, hold: Hold) -> Kind:
        return self.kind(hold.demand, hold.constraints)

    def add(self, instance: str, room: Room, kind: Kind) -> bool:
        """Put something new there; False, and nothing changed, when it does not fit."""
        if instance in room.holds or not room.fits(kind):
            return False
        units = room.choose(kind)
        if units is None:
            return False
        room.with_(
            Hold(instance=instance, demand=kind.demand, constraints=kind.constraints, units=units)
        )
        return True

    def move(self, hold: Hold, source: Room, target: Room) -> Move | None:
        """Book the target, then free the source; None, and nothing changed, when it can't be."""
        kind = self.kind_of(hold)
        if source is target or hold.instance in target.holds or not target.fits(kind):
            return None
        units = target.choose(kind)
        if units is None:
            return None
        target.with_(replace(hold, units=units))
        source.without(hold)
        return Move(instance=hold.instance, source=source.id, target=target.id, units=units)

    def undo(self, move: Move, hold: Hold) -> None:
        """Take back the last move; `hold` is what it was before."""
        target = self.by_id[move.target]
        target.without(target.holds[move.instance])
        self.by_id[move.source].with_(hold)
