"""What is durable on the card's disk, batch by batch as it gets there: nothing that was accepted
is lost (I1), no module is promised more than it has, moves included (I3), nothing is moved again
and again (I7), epochs and generations never fall (I8).
"""

import json
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from firmware.workload import Component, Workload, instance_name
from hal.mock.kernel import VirtualKernel
from hal.ports import JournalRecord
from tools.sim.invariants.names import Fail, Invariant
from tools.sim.invariants.room import Room

HOUR_NS: Final = 3_600_000_000_000
SHED_MOST: Final = 60  # moves of one component for load in an hour; the rebalancer rests 10 s after
DRAIN_KNOWN_NS: Final = 2_000_000_000  # by then nothing decided before the drain is on its way
SHED_WORDS: Final = "is loaded"  # each of them
NO_GENERATION: Final = 0  # they begin with 1: of an eviction that was taken back


@dataclass(slots=True)
class Held:
    """One assignment as it stands on disk."""

    workload: str
    place: tuple[str, int] | None  # CNM, generation
    target: tuple[str, int] | None
    why: str
    ended: bool
    failed: bool
    restarts: int
    attempts: int  # of those, what a policy's limit counts
    at_ns: int  # when it got there
    evict: tuple[str, int] | None  # for whom, which generation
    holds: list[tuple[str, Room]] = field(default_factory=list)

    @property
    def evicting(self) -> bool:
        """It is being stopped for another instance."""
        return self.evict is not None and self.place is not None and self.place[1] == self.evict[1]

    @property
    def spared(self) -> bool:
        """It was to be stopped for another instance, and that was taken back."""
        return self.evict is not None and self.evict[1] == NO_GENERATION


class Decided:
    """The disk's book, and what its card has promised to people."""

    def __init__(
        self,
        kernel: VirtualKernel,
        components: Mapping[str, Component],
        capacity: Mapping[str, Room],
        fail: Fail,
    ) -> None:
        """`components` by instance: of workloads that the disk does not hold (yet)."""
        self.epoch = self.generation = 0
        self.workloads: dict[str, Workload] = {}
        self.deleted: set[str] = set()
        self.held: dict[str, Held] = {}  # by instance
        self.cnms: dict[str, dict[str, Any]] = {}
        self.wanted: dict[str, Workload] = {}  # accepted and told so, removal not asked for
        self._going: set[str] = set()  # their removal was asked for after the last submit
        self._kernel = kernel
        self._components = components
        self._by_instance: dict[str, Component] = {}
        self._capacity = capacity
        self._fail = fail
        self._generations: dict[str, set[int]] = {}  # instance -> ever on disk
        self._booked = {cnm: Room() for cnm in capacity}
        self.on_evict: Callable[[str, Mapping[str, Any], bool], None] = lambda *_: None
        self.on_again: Callable[[str], None] = lambda _name: None  # it is to be started again
        self._drained_ns: dict[str, int] = {}  # CNM -> since when the disk says that it drains
        self._life = -1  # the daemon's process that was seen last
        self._worked = 0  # and the highest epoch that one worked in
        self._sheds: dict[str, deque[int]] = {}

    # --- what is asked of it ---

    def generations(self, instance: str) -> Collection[int]:
        return self._generations.get(instance, ())

    def component(self, instance: str) -> Component:
        """As the disk has it, or had it last."""
        return self._by_instance.get(instance) or self._components[instance]

    def booked(self, cnm: str) -> Room:
        """What is promised of a module."""
        return self._booked[cnm]

    # --- what people were told ---

    def accepted(self, document: Mapping[str, Any]) -> None:
        """The card has said yes to a submit: that must be on the disk by now."""
        workload = Workload.from_json(document)
        name = workload.name
        if name in self._going:
            return  # a removal was asked for meanwhile: whatever is there now may be right
        self.wanted[name] = workload
        if self.workloads.get(name) != workload or name in self.deleted:
            self._fail(Invariant.ACKNOWLEDGED, f"workload {name} was accepted")

    def asked_to_submit(self, document: object) -> None:
        """What was asked to be removed before this is no matter to it."""
        if isinstance(document, Mapping):
            self._going.discard(str(document.get("name")))

    def asked_to_remove(self, name: str) -> None:
        """From here on it may go, answered or not."""
        self._going.add(name)
        self.wanted.pop(name, None)

    def removal_accepted(self, name: str) -> None:
        """The card has said yes to a removal: that must be on the disk by now."""
        if name in self.workloads and name not in self.deleted:
            self._fail(Invariant.ACKNOWLEDGED, f"the removal of {name} was accepted")

    def daemon_works(self, life: int, epoch: int) -> None:
        """The daemon's process number `life` works in this epoch: one of its own."""
        if life != self._life:
            self._life, before = life, self._worked
            if epoch <= before:
                self._fail(Invariant.EPOCH, f"a start in {epoch}; the daemon before it: {before}")
        self._worked = max(self._worked, epoch)

    def at_rest(self, books: Mapping[str, Collection[str]]) -> None:
        """`books`: where the allocator holds room for what. Raises Violation."""
        for name in sorted(books.keys() | self.held.keys()):
            held = self.held.get(name)
            want = sorted(cnm for cnm, _ in held.holds) if held is not None else []
            if sorted(books.get(name, ())) != want:
                self._fail(Invariant.BOOKS, f"{name}: {books.get(name)}, decided is {held}")

    # --- what gets there ---

    def commit(self, batch: Sequence[JournalRecord]) -> None:
        """A batch has become durable. Raises Violation."""
        touched: set[str] = set()
        for record in batch:
            value = None if record.value is None else json.loads(record.value)
            match record.kind:
                case "meta":
                    self._take_meta(record.key, value)
                case "workload":
                    self._take_workload(record.key, value)
                case "assignment":
                    self._take_assignment(record.key, value, touched)
                case "cnm" if value is not None:
                    self._take_cnm(record.key, value)
        for cnm in sorted(touched):
            over = self._booked[cnm].over(self._capacity[cnm])
            if over:
                self._fail(Invariant.OVERBOOKED, f"{cnm}: {over}")

    def _take_meta(self, key: str, value: Any) -> None:
        if key == "epoch":
            if value is None or value["value"] < self.epoch:
                self._fail(Invariant.EPOCH, f"from {self.epoch} to {value}")
            self.epoch = value["value"]
        elif key == "generation":
            if value is None or value["value"] < self.generation:
                self._fail(Invariant.GENERATION, f"from {self.generation} to {value}")
            self.generation = value["value"]

    def _take_cnm(self, cnm: str, value: dict[str, Any]) -> None:
        self.cnms[cnm] = value
        if not value.get("draining"):
            self._drained_ns.pop(cnm, None)
        else:
            self._drained_ns.setdefault(cnm, self._kernel.now_ns)

    def _check_not_drained(self, name: str, before: Held | None, held: Held) -> None:
        """What comes to a module anew, that module may take."""
        places = (before.place, before.target) if before is not None else ()
        known = {place[0] for place in places if place is not None}
        for place in (held.place, held.target):
            if place is None or place[0] in known:
                continue
            since_ns = self._drained_ns.get(place[0], self._kernel.now_ns)
            if self._kernel.now_ns - since_ns > DRAIN_KNOWN_NS:
                self._fail(Invariant.DRAINED, f"{name} on {place[0]}")

    def _take_workload(self, name: str, value: Any) -> None:
        wanted = self.wanted.get(name)
        if value is None:
            if wanted is not None:
                self._fail(Invariant.LOST, f"workload {name} is gone from the disk")
            self.workloads.pop(name, None)
            self.deleted.discard(name)
            return
        workload = self.workloads[name] = Workload.from_json(value["workload"])
        if wanted is not None and (value.get("deleted") or workload != wanted):
            self._fail(Invariant.LOST, f"workload {name} is not wanted on disk as it was accepted")
        (self.deleted.add if value.get("deleted") else self.deleted.discard)(name)
        for component in workload.components:
            for index in range(component.replicas):
                self._by_instance[instance_name(name, component.name, index)] = component

    def _take_assignment(self, name: str, value: Any, touched: set[str]) -> None:
        before = self.held.pop(name, None)
        for cnm, room in before.holds if before else ():
            self._booked[cnm].add(room, -1)
        if value is None:
            if name.split("/", 1)[0] in self.wanted:
                self._fail(Invariant.LOST, f"{name} is gone from the disk")
            return
        ending, evict = value["ending"], value.get("evict")
        held = self.held[name] = Held(
            workload=value["workload"],
            place=_place(value["place"]),
            target=_place(value["target"]),
            why=value["why"],
            ended=ending is not None,
            failed=ending is not None and ending["failed"],
            restarts=value["restarts"],
            attempts=value.get("attempts", value["restarts"]),
            at_ns=self._kernel.now_ns,
            evict=(evict["by"], evict["generation"]) if evict is not None else None,
        )
        if held.evicting and (before is None or not before.evicting):
            assert evict is not None
            self.on_evict(name, evict, held.target is not None)
        if before is not None and before.ended and not held.ended:
            self._fail(Invariant.REVIVED, f"{name}: decided is {held}")
        if before is not None and held.restarts > before.restarts:
            self.on_again(name)
        self._check_not_drained(name, before, held)
        known = self._generations.setdefault(name, set())
        newest = max(known, default=0)
        for place in (held.place, held.target):
            if place is None:
                continue
            cnm, generation = place
            if generation not in known and generation < newest:
                self._fail(Invariant.GENERATION, f"{name}: {generation} after {newest}")
            known.add(generation)
            if not held.ended and all(other != cnm for other, _ in held.holds):
                held.holds.append((cnm, Room.of(self.component(name))))
        for cnm, room in held.holds:
            self._booked[cnm].add(room)
            touched.add(cnm)
        if before is not None and before.target is None and held.target is not None:
            self._count_shed(name, held.why)

    def _count_shed(self, name: str, why: str) -> None:
        if not why.endswith(SHED_WORDS):
            return
        now_ns = self._kernel.now_ns
        sheds = self._sheds.setdefault(name, deque(maxlen=SHED_MOST + 1))
        sheds.append(now_ns)
        if len(sheds) > SHED_MOST and now_ns - sheds[0] < HOUR_NS:
            self._fail(Invariant.MOVES, f"{name}: {len(sheds)} times in an hour, last: {why}")


def _place(value: Any) -> tuple[str, int] | None:
    return None if value is None else (value["cnm"], value["generation"])
