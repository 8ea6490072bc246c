"""Who uses a volume, and where: instances that share one stay on one module."""

from collections.abc import Callable, Mapping, Sequence

from firmware.assignments import Assignment
from firmware.decide import Sight
from firmware.decisions import Decisions
from firmware.inventory import Inventory
from firmware.workload import Component


class VolumeUsers:
    """Loop thread only."""

    def __init__(
        self,
        inventory: Inventory,
        decisions: Decisions,
        bound_for: Callable[[str], set[str]],
    ) -> None:
        """`bound_for`: the modules where an instance is to be, whose decision may be on its way."""
        self._inventory = inventory
        self._decisions = decisions
        self._bound_for = bound_for
        self._users: dict[str, list[str]] = {}  # volume -> instances that have it somewhere
        self._revision = -1  # of the decisions that this was read from

    def sharing(self, instance: str, component: Component) -> list[str]:
        """The other instances that have a place and use a volume of this one."""
        users = self._by_volume() if component.volumes else {}
        found = {user for mount in component.volumes for user in users.get(mount.name, ())}
        return sorted(found - {instance})

    def pins(self, component: Component, instance: str) -> frozenset[str]:
        """CNMs where a volume of this component is in use, or is about to be: it must go there.

        A decision that is on its way to the disk is in the books already. A place whose module
        is gone holds nobody: those who shared the volume there go on together elsewhere."""
        names = {mount.name for mount in component.volumes}
        if not names:
            return frozenset()
        users, assignments = self._by_volume(), self._decisions.assignments
        others = {user for name in names for user in users.get(name, ())}
        for other in self._decisions.pending:
            if names & self._volumes_in(other, assignments.get(other)):
                others.add(other)
        pins: set[str] = set()
        for other in others - {instance}:
            if other in self._decisions.pending:
                pins.update(self._bound_for(other))
                continue
            place = assignments[other].place
            if place and self._inventory.look(place, other).sight is not Sight.GONE:
                pins.add(place.cnm)
        return frozenset(pins)

    def _by_volume(self) -> Mapping[str, Sequence[str]]:
        """Read once for each state of the decisions: a plan asks about many instances."""
        if self._revision != self._decisions.revision:
            self._revision, self._users = self._decisions.revision, {}
            for other in self._decisions.assignments.values():
                if other.place is not None and other.ending is None:
                    for name in self._volumes_in(other.instance, other):
                        self._users.setdefault(name, []).append(other.instance)
        return self._users

    def _volumes_in(self, instance: str, assignment: Assignment | None) -> set[str]:
        component = self._decisions.component(instance)
        mounts = component.volumes if component else ()
        writable = assignment.volumes if assignment else ()
        return {mount.name for mount in mounts} | set(writable)
