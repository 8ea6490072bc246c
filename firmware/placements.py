"""Decisions about where an instance is: first, again, and after its module was lost.

Each writes the assignment first and acts on it only when it is on disk. The allocator's books have
the new place at once and the old one until then, so that two decisions on their way to the disk
never count on the same room, whichever of them the store takes.
"""

from collections.abc import Callable
from dataclasses import replace

from firmware.assignments import Assignment, Place
from firmware.decide import Seen
from firmware.decisions import Decisions
from firmware.deployer import Deployer
from firmware.events import EventCode, EventLog
from firmware.inventory import Inventory
from firmware.loop import MS, Loop
from firmware.placer import NoRoom, Placer
from firmware.restarts import Restarts
from firmware.storage import Volumes
from firmware.workload import Component
from protocol.apf import InstanceState


class Placements:
    """Loop thread only."""

    def __init__(
        self,
        loop: Loop,
        inventory: Inventory,
        decisions: Decisions,
        deployer: Deployer,
        placer: Placer,
        volumes: Volumes,
        events: EventLog,
        *,
        kick: Callable[[str], None],
    ) -> None:
        self.pending: dict[str, dict[str, str]] = {}  # instance -> CNM -> why not there
        self.on_no_room: Callable[[], None] = lambda: None  # something waits that fits nowhere
        self.on_waiting: Callable[[], None] = lambda: None  # the same, for another listener
        self.on_found: Callable[[str], None] = lambda _instance: None  # it waits no more
        # it has lost its place with its module, by this decision, and fits nowhere
        self.on_lost: Callable[[Assignment], None] = lambda lost: None
        self.on_freed: Callable[[], None] = lambda: None  # room that something was in is free
        self.settling: Callable[[], str] = lambda: ""  # why nothing new is placed yet
        self._loop = loop
        self._inventory = inventory
        self._decisions = decisions
        self._deployer = deployer
        self._placer = placer
        self._volumes = volumes
        self._events = events
        self._kick = kick
        self.restarts = Restarts()

    def place_on(self, cnm_id: str) -> Place:
        """A new generation on a module as it is booted now."""
        cnm = self._inventory.get(cnm_id)
        assert cnm is not None
        return Place(cnm=cnm_id, boot_id=cnm.boot_id, generation=self._decisions.next_generation())

    def place(
        self, instance: str, component: Component, before: Assignment | None, restarts: int
    ) -> None:
        """Find a module for it, or say per module why not."""
        workload, _name, index = instance.rsplit("/", 2)
        choice = self._placer.choose(workload, component, instance)
        settling = self.settling() if before is None else ""
        if settling:  # else all of it would go to the module that boots first
            self.pending[instance] = {cnm.id: settling for cnm in self._inventory}
            return
        if isinstance(choice, NoRoom):
            if instance not in self.pending:
                self._events.emit(
                    EventCode.INSTANCE_PENDING, f"{instance}: {choice.text()}", instance=instance
                )
            self.pending[instance] = choice.reasons
            self.on_no_room()
            self.on_waiting()
            return
        place = self.place_on(choice)
        base = before or Assignment(
            instance=instance, workload=workload, component=component.name, index=int(index)
        )
        self.assign(base, component, place, restarts, EventCode.INSTANCE_ASSIGNED, "")

    def assign(
        self,
        base: Assignment,
        component: Component,
        place: Place,
        restarts: int,
        code: EventCode,
        text: str,
    ) -> None:
        """Write a place down; the text goes before the module's name in the event."""
        writable = tuple(mount.name for mount in component.volumes if not mount.read_only)
        assignment = replace(
            base, place=place, target=None, why="", restarts=restarts, ending=None, volumes=writable
        )
        self.waits_no_more(base.instance)
        self._placer.reserve(assignment, component)

        def decided(good: bool) -> None:
            self._placer.sync(self._decisions.assignments.get(base.instance), component)
            if not good:
                return
            if base.place is not None and base.place.cnm != place.cnm:
                self.on_freed()
            self._events.emit(
                code,
                f"{base.instance}: {text}{place.cnm}, generation {place.generation}",
                cnm=place.cnm,
                instance=base.instance,
                data={"generation": place.generation},
            )

        self._decisions.assign([assignment], decided)

    def rename(self, assignment: Assignment, place: Place) -> None:
        """The board calls its module's slot by another name: `place` is where it was."""
        before, component = assignment.place, self._placer.component_of(assignment)
        assert before is not None
        named = replace(assignment, place=place)
        if component is not None:
            self._placer.reserve(named, component)

        def decided(good: bool) -> None:
            self._placer.sync(self._decisions.assignments.get(assignment.instance), component)
            if good:
                self._events.emit(
                    EventCode.INSTANCE_ASSIGNED,
                    f"{assignment.instance}: its module was called {before.cnm}, now {place.cnm}",
                    cnm=place.cnm,
                    instance=assignment.instance,
                    data={"generation": place.generation},
                )

        self._decisions.assign([named], decided)

    def waits_no_more(self, instance: str) -> None:
        """It has found its place, or is not wanted any more: if it was waiting for room."""
        if self.pending.pop(instance, None) is not None:
            self.on_found(instance)

    def release(self, assignment: Assignment, component: Component) -> None:
        """Its module is gone. Give the place up, and take another one in the same decision."""
        instance, place = assignment.instance, assignment.place
        assert place is not None
        self._deployer.settle(instance)
        self._placer.forget(instance)
        self.say_stale(assignment)
        choice = self._placer.choose(assignment.workload, component, instance)
        if isinstance(choice, NoRoom):
            self._events.emit(
                EventCode.INSTANCE_LOST,
                f"{instance}: lost with {place.cnm}; nowhere to go: {choice.text()}",
                cnm=place.cnm,
                instance=instance,
            )

            def decided(good: bool) -> None:
                if not good:
                    self._placer.sync(self._decisions.assignments.get(instance), component)
                else:
                    self.on_lost(lost)

            lost = replace(assignment, place=None, target=None, why="")
            self._decisions.assign([lost], decided)
            return
        fresh = self.place_on(choice)
        self.assign(
            assignment,
            component,
            fresh,
            assignment.restarts,
            EventCode.INSTANCE_FAILOVER,
            f"lost with {place.cnm}, goes to ",
        )

    def vacate(
        self, assignment: Assignment, component: Component, freed: Callable[[], None]
    ) -> None:
        """It was stopped for another instance: from now on it waits like everything else. `freed`
        when its room is."""
        instance = assignment.instance
        self._deployer.settle(instance)

        def decided(good: bool) -> None:
            if good:
                self._placer.sync(self._decisions.assignments.get(instance), component)
                freed()

        left = replace(assignment, place=None, target=None, why="")
        self._decisions.assign([left], decided)

    def say_stale(self, assignment: Assignment) -> None:
        """Its volumes go on from what is safe on the card: say how old that is, unless all that
        its present generation wrote is there."""
        place, instance = assignment.place, assignment.instance
        if place is not None and assignment.flushed >= place.generation:
            return
        for volume in assignment.volumes:
            age_ms = self._volumes.age_ms(volume)
            text = "as it was created" if age_ms is None else f"{age_ms} ms old"
            self._events.emit(
                EventCode.VOLUME_STALE,
                f"{instance}: volume {volume} goes on from the state on the card, {text}",
                instance=instance,
                data={"volume": volume, "age_ms": age_ms},
            )

    def again(
        self, assignment: Assignment, component: Component, seen: Seen, *, attempt: bool
    ) -> None:
        """It ended and is wanted: a new generation after a pause, where it was if possible. An
        `attempt` is one of those that its restart policy allows."""
        place = assignment.place
        assert place is not None
        assert seen.status is not None
        instance, now_ns = assignment.instance, self._loop.now_ns()
        pause_ns = self.restarts.pause_ns(instance, place.generation, assignment.restarts, now_ns)
        if pause_ns is not None:
            self._events.emit(
                EventCode.INSTANCE_RESTARTING,
                f"{instance}: {seen.status.text or 'ended'}; again in {pause_ns // MS} ms",
                cnm=place.cnm,
                instance=instance,
            )
        due_ns = self.restarts.due_ns(instance)
        if now_ns < due_ns:
            self._loop.call_at(due_ns, lambda: self._kick(instance))
            return
        cnm_id = place.cnm
        outgrown = self._placer.outgrown(assignment, component)
        if seen.draining or outgrown or seen.status.state == InstanceState.FAILED:
            choice = self._placer.find_alternative_cnm(component, assignment)
            cnm_id = cnm_id if isinstance(choice, NoRoom) else choice
        fresh = self.place_on(cnm_id)
        self.assign(
            replace(assignment, attempts=assignment.attempts + attempt),
            component,
            fresh,
            assignment.restarts + 1,
            EventCode.INSTANCE_ASSIGNED,
            "again on ",
        )
