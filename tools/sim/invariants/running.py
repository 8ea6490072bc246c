"""What really runs: never two copies, never an old one after a new one, never undecided (I2), and
never more on a module than it has, moves included (I3). Told of each start and end as it happens.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from firmware.workload import Component
from hal.mock.instance import MockInstance
from hal.mock.kernel import VirtualKernel
from hal.ports import ExitReason
from tools.sim.invariants.names import Fail, Invariant
from tools.sim.invariants.room import Room


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """One start of one generation that really happened."""

    at_ns: int
    instance: str
    generation: int
    cnm: str
    pid: int


def instance_of(found: MockInstance) -> tuple[str, int]:
    """(instance, generation) of what runs, by its own environment and key."""
    return found.spec.env["APF_INSTANCE"], int(found.spec.key.rsplit(".", 1)[1])


class Running:
    """The book of what lives."""

    def __init__(
        self,
        kernel: VirtualKernel,
        component_of: Callable[[str], Component],
        decided: Callable[[str], Collection[int]],
        capacity: Mapping[str, Room],
        fail: Fail,
    ) -> None:
        """`component_of(instance)`: as it was submitted. `decided(instance)`: generations that the
        disk ever held for it."""
        self.starts: list[Started] = []
        self.on_start: list[Callable[[Started], None]] = []  # more to check at each start
        self.ended: dict[str, MockInstance] = {}  # instance -> what ended last
        self.ooms: Counter[tuple[str, str]] = Counter()  # kills by image and component's name
        self._kernel = kernel
        self._component_of = component_of
        self._decided = decided
        self._capacity = capacity
        self._fail = fail
        self._slots = {slot.id: number for number, slot in kernel.slots.items()}
        self._alive: dict[str, MockInstance] = {}
        self._used = {cnm: Room() for cnm in capacity}
        self._held: dict[str, tuple[str, Room]] = {}  # instance -> where it holds what
        self._started: set[tuple[str, int]] = set()
        self._newest: dict[str, int] = {}  # instance -> highest generation that ran
        self._shown: dict[str, tuple[str, int, int]] | None = None

    def now(self) -> dict[str, tuple[str, int, int]]:
        """instance -> (CNM, generation, pid) of what is alive, in the order of slots and starts.
        The same object until something changes; not to be changed."""
        if self._shown is None:
            order = sorted(self._alive.items(), key=lambda item: self._slots[item[1].place])
            self._shown = {name: (one.place, instance_of(one)[1], one.pid) for name, one in order}
        return self._shown

    def ever(self, name: str, generation: int) -> bool:
        """That generation has been started, and may be over."""
        return (name, generation) in self._started

    def alive(self, name: str) -> MockInstance | None:
        """What runs of that instance."""
        return self._alive.get(name)

    def begun_after(self, at_ns: int) -> set[str]:
        """What is alive and has started after that moment."""
        return {name for name, one in self._alive.items() if one.started_ns > at_ns}

    def begun(self, one: MockInstance) -> None:
        """An instance has started on a module. Raises Violation."""
        self._shown = None
        name, generation = instance_of(one)
        other = self._alive.get(name)
        if other is not None:
            self._fail(
                Invariant.TWO_COPIES,
                f"{name}: generation {instance_of(other)[1]} on {other.place} and generation "
                f"{generation} on {one.place}",
            )
        self._alive[name] = one
        self._look_at_start(one, name, generation)
        self._take_room(name, one.place)

    def over(self, one: MockInstance) -> None:
        """An instance has ended, or its power has gone."""
        self._shown = None
        name, _ = instance_of(one)
        self.ended[name] = one
        if one.exit is not None and one.exit.reason is ExitReason.OOM_KILLED:
            component = self._component_of(name)
            self.ooms[component.image, component.name] += 1
        if self._alive.get(name) is one:
            del self._alive[name]
            cnm, room = self._held.pop(name)
            self._used[cnm].add(room, -1)

    def most(self, component: Component) -> Room:
        """What an instance of it may hold or wait for, after all that has happened to it."""
        return Room.most(component, self.ooms[component.image, component.name])

    def _look_at_start(self, one: MockInstance, name: str, generation: int) -> None:
        cnm = one.place
        start = Started(
            at_ns=self._kernel.now_ns, instance=name, generation=generation, cnm=cnm, pid=one.pid
        )
        self.starts.append(start)
        if (name, generation) in self._started:
            self._fail(Invariant.TWICE, f"{name} generation {generation} on {cnm}")
        self._started.add((name, generation))
        newest = self._newest.get(name, 0)
        if generation < newest:
            self._fail(Invariant.LOWER, f"{name} generation {generation} on {cnm} after {newest}")
        self._newest[name] = generation
        decided = self._decided(name)
        if generation not in decided:
            self._fail(
                Invariant.UNDECIDED,
                f"{name} generation {generation} on {cnm}; on disk: {sorted(decided)}",
            )
        for check in self.on_start:
            check(start)

    def _take_room(self, name: str, cnm: str) -> None:
        room = Room.of(self._component_of(name))
        self._held[name] = (cnm, room)
        used = self._used[cnm]
        used.add(room)
        over = used.over(self._capacity[cnm])
        if over:
            self._fail(Invariant.OVERCOMMIT, f"{cnm}: {over}")
