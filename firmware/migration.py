"""`migrate_component`: a move from one module to another, decided, flipped or taken back.

    decided     the target is in the journal; it is staged there while it runs here
    flipped     stopped here, its data is home: the target is the place now
    cancelled   the target could not take it: it stays, or is started again, where it was

`firmware.decide` says when; a move survives every crash because only these decisions are kept.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

from firmware.assignments import Assignment
from firmware.decide import Sight
from firmware.decisions import Decisions
from firmware.deployer import Deployer
from firmware.events import EventCode, EventLog
from firmware.inventory import Inventory
from firmware.placements import Placements
from firmware.placer import NoRoom, Placer
from firmware.workload import Component


class Migration:
    """Loop thread only."""

    def __init__(
        self,
        inventory: Inventory,
        decisions: Decisions,
        deployer: Deployer,
        placer: Placer,
        placements: Placements,
        events: EventLog,
    ) -> None:
        self.on_room: Callable[[], None] = lambda: None  # a module has room again
        self.on_end: Callable[[str, bool], None] = lambda instance, good: None  # of a move
        self._inventory = inventory
        self._decisions = decisions
        self._deployer = deployer
        self._placer = placer
        self._placements = placements
        self._events = events

    def migrate_component(
        self,
        instance: str,
        to: str | None,
        why: str,
        done: Callable[[str], None],
        *,
        data: Mapping[str, object] | None = None,
    ) -> None:
        """Begin a move; `done` gets "" when it is decided, or why not. Nothing has happened to
        the instance when it is refused. `data` is more to be said in the event: what it gains, and
        what it costs."""
        assignment = self._decisions.assignments.get(instance)
        component = self._component(assignment) if assignment else None
        error = self._cannot_move(instance, assignment, component)
        if error or assignment is None or component is None or assignment.place is None:
            done(error or f"{instance} is not known")
            return
        choice = self._placer.find_alternative_cnm(component, assignment, only=to)
        if isinstance(choice, NoRoom):
            done(f"{instance}: nowhere to go: {choice.text()}")
            return
        target = self._placements.place_on(choice)
        moving = replace(assignment, target=target, why=why)
        self._placer.reserve_target(moving, component)
        self._deployer.settle(instance)

        def decided(good: bool) -> None:
            if not good:
                self._placer.sync(self._decisions.assignments.get(instance), component)
                self.on_room()
                done("the decision could not be written to the journal")
                return
            self._events.emit(
                EventCode.INSTANCE_MIGRATING,
                f"{instance}: {assignment.place.cnm if assignment.place else '?'} -> "
                f"{target.cnm}: {why}",
                cnm=target.cnm,
                instance=instance,
                data={"generation": target.generation, "why": why, **(data or {})},
            )
            done("")

        self._decisions.assign([moving], decided)

    def _cannot_move(
        self, instance: str, assignment: Assignment | None, component: Component | None
    ) -> str:
        if assignment is None or component is None:
            return f"{instance} is not known"
        if assignment.place is None:
            return f"{instance} is not placed"
        if assignment.target is not None:
            return f"{instance} is moving already, to {assignment.target.cnm}"
        if assignment.ending is not None:
            return f"{instance} has ended: {assignment.ending.text}"
        if assignment.evicting and assignment.evict is not None:
            return f"{instance} is being stopped for {assignment.evict.by}"
        if instance in self._decisions.pending:
            return f"{instance} is being decided about; try again"
        if self._inventory.look(assignment.place, instance).sight is not Sight.CURRENT:
            return f"{instance} is on {assignment.place.cnm}, which is not heard at the moment"
        sharing = self._placer.sharing(assignment, component)
        if sharing:
            return f"{instance} shares a volume with {', '.join(sharing)}: they stay together"
        return ""

    def flip(self, assignment: Assignment) -> None:
        """The target becomes the place."""
        target = assignment.target
        assert target is not None
        if assignment.volumes:  # what was prepared has their state from before the stop
            target = replace(target, generation=self._decisions.next_generation())
        flipped = replace(assignment, place=target, target=None)

        def decided(good: bool) -> None:
            if good:
                self._placer.sync(flipped, self._component(flipped))
                self._events.emit(
                    EventCode.INSTANCE_MIGRATED,
                    f"{assignment.instance}: now on {target.cnm}",
                    cnm=target.cnm,
                    instance=assignment.instance,
                    data={"generation": target.generation},
                )
                self.on_room()
                self.on_end(assignment.instance, True)

        self._decisions.assign([flipped], decided)

    def cancel(self, assignment: Assignment, reason: str) -> None:
        """Stay where it is; what was prepared is swept away."""
        back = replace(assignment, target=None, why="")
        self._deployer.settle(assignment.instance)

        def decided(good: bool) -> None:
            if good:
                self._placer.sync(back, self._component(back))
                self._events.emit(
                    EventCode.INSTANCE_MIGRATION_FAILED,
                    f"{assignment.instance}: {reason}",
                    instance=assignment.instance,
                )
                self.on_room()  # at the target
                self.on_end(assignment.instance, False)

        self._decisions.assign([back], decided)

    def _component(self, assignment: Assignment) -> Component | None:
        record = self._decisions.workloads.get(assignment.workload)
        return record.workload.component(assignment.component) if record else None
