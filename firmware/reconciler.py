"""The reconciler (DESIGN D1): for each instance that may need it, one step, again and again.

`firmware.decide` says what the step is; this file carries it out: a decision goes to the journal, a
job to the deployer. It is level-triggered: every job's end, report, decision and change of a
module kicks the instances that it may concern, and an instance whose decision is still on its way
to the disk is left alone until it has arrived.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Final

from firmware import decide as steps
from firmware.assignments import Assignment, Place
from firmware.decide import DEAD, Seen, Sight, decide
from firmware.decisions import Decisions
from firmware.deployer import Deployer
from firmware.events import EventCode, EventLog
from firmware.inventory import Cnm, Inventory
from firmware.loop import MS, Loop
from firmware.placer import NoRoom, Placer
from firmware.storage import Volumes
from firmware.workload import Component, Condition, instance_name
from protocol.apf import Health, InstanceState, InstanceStatus

STEPS_A_TURN: Final = 64  # then the loop gets its turn; heartbeats must not wait
AGAIN_FIRST_NS: Final = 100 * MS
AGAIN_MOST_NS: Final = 30_000 * MS
STAGE_TRIES: Final = 3  # on one module, before another one is tried
FLUSH_TRIES: Final = 3  # before the last state that is safe is all there is
DEFAULT_GRACE_MS: Final = 10_000


class Reconciler:
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
    ) -> None:
        self.pending: dict[str, dict[str, str]] = {}  # instance -> CNM -> why not there
        self.waiting: dict[str, str] = {}  # instance -> what it waits for, in words
        self._loop = loop
        self._inventory = inventory
        self._decisions = decisions
        self._deployer = deployer
        self._placer = placer
        self._volumes = volumes
        self._events = events
        self._dirty: dict[str, None] = {}  # in order
        self._posted = False
        self._again_ns: dict[tuple[str, int], int] = {}
        self._quarantined: set[tuple[str, str, int]] = set()
        decisions.on_assignment = self.kick

    # --- who needs a step ---

    def kick(self, instance: str) -> None:
        """Look at this instance soon."""
        self._dirty[instance] = None
        if not self._posted:
            self._posted = True
            self._loop.post(self._turn)

    def trouble(self, instance: str) -> str:
        """What last went wrong for an instance, or ""."""
        return self._deployer.trouble(instance)

    def kick_all(self, instances: Iterable[str]) -> None:
        for instance in instances:
            self.kick(instance)

    def kick_workload(self, name: str) -> None:
        """Every instance that the workload has or should have."""
        record = self._decisions.workloads.get(name)
        if record is not None:
            for component in record.workload.components:
                for index in range(component.replicas):
                    self.kick(instance_name(name, component.name, index))
        self.kick_all(
            a.instance for a in self._decisions.assignments.values() if a.workload == name
        )

    def kick_cnm(self, cnm: Cnm) -> None:
        """Everything that is, or is about to be, on this module; and what waits for room."""
        for assignment in self._decisions.assignments.values():
            if cnm.id in (
                assignment.place.cnm if assignment.place else None,
                assignment.target.cnm if assignment.target else None,
            ):
                self.kick(assignment.instance)
        self.kick_pending()

    def kick_pending(self) -> None:
        """Room may have come up: look again at what waits for it, the most constrained first."""
        self.kick_all(sorted(self.pending, key=self._placer.tightness, reverse=True))

    def on_report(self, cnm: Cnm, changed: Iterable[str]) -> None:
        """A module's report differs from the one before."""
        for instance in changed:
            status = cnm.observed.get(instance)
            self._say_status(cnm, instance, status)
            self.kick(instance)
            self._kick_dependents(instance)
        for status in cnm.observed.values():
            self._sweep(cnm, status)
        for assignment in self._decisions.assignments.values():
            # even an unchanged report may be the newer one that somebody waits for
            if assignment.place is not None and assignment.place.cnm == cnm.id:
                self.kick(assignment.instance)

    def _kick_dependents(self, instance: str) -> None:
        assignment = self._decisions.assignments.get(instance)
        record = self._decisions.workloads.get(assignment.workload) if assignment else None
        if assignment is None or record is None:
            return
        for component in record.workload.components:
            if any(d.component == assignment.component for d in component.depends_on):
                for index in range(component.replicas):
                    self.kick(instance_name(assignment.workload, component.name, index))

    # --- moves, on request ---

    def migrate_component(
        self, instance: str, to: str | None, why: str, done: Callable[[str], None]
    ) -> None:
        """Begin a move; `done` gets "" when it is decided, or why not. Nothing has happened to
        the instance when it is refused."""
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
        target = self._place_on(choice)
        moving = replace(assignment, target=target, why=why)
        self._placer.reserve_target(moving, component)
        self._deployer.settle(instance)

        def decided(good: bool) -> None:
            if not good:
                self._placer.sync(self._decisions.assignments.get(instance), component)
                done("the decision could not be written to the journal")
                return
            self._events.emit(
                EventCode.INSTANCE_MIGRATING,
                f"{instance}: {assignment.place.cnm if assignment.place else '?'} -> "
                f"{target.cnm}: {why}",
                cnm=target.cnm,
                instance=instance,
                data={"generation": target.generation, "why": why},
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
        if instance in self._decisions.pending:
            return f"{instance} is being decided about; try again"
        if self._inventory.look(assignment.place, instance).sight is not Sight.CURRENT:
            return f"{instance} is on {assignment.place.cnm}, which is not heard at the moment"
        sharing = self._placer.sharing(assignment, component)
        if sharing:
            return f"{instance} shares a volume with {', '.join(sharing)}: they stay together"
        return ""

    # --- one step ---

    def _turn(self) -> None:
        self._posted = False
        for _ in range(min(STEPS_A_TURN, len(self._dirty))):
            instance = next(iter(self._dirty))
            del self._dirty[instance]
            self._step(instance)
        if self._dirty and not self._posted:
            self._posted = True
            self._loop.post(self._turn)

    def _step(self, instance: str) -> None:
        if instance in self._decisions.pending:
            return  # its decision kicks it when it has arrived
        assignment = self._decisions.assignments.get(instance)
        workload, name, index = instance.rsplit("/", 2)
        record = self._decisions.workloads.get(workload)
        component = record.workload.component(name) if record else None
        wanted = component
        if (
            record is None
            or record.deleted
            or component is None
            or int(index) >= component.replicas
        ):
            wanted = None
        seen = target = None
        if assignment is not None and assignment.place is not None:
            seen = self._inventory.look(assignment.place, instance)
        if assignment is not None and assignment.target is not None:
            target = self._inventory.look(assignment.target, instance)
        gates = self._gates(workload, wanted) if wanted is not None and wanted.depends_on else ()
        action = decide(wanted, assignment, seen, target, gates)
        self.waiting[instance] = action.reason if isinstance(action, steps.Wait) else ""
        if not isinstance(action, steps.PlaceIt):
            self.pending.pop(instance, None)
        self._act(instance, action, assignment, component, seen)

    def _act(
        self,
        instance: str,
        action: steps.Action,
        assignment: Assignment | None,
        component: Component | None,
        seen: Seen | None,
    ) -> None:
        match action:
            case steps.Wait():
                self._after_wait(instance, assignment, seen)
                return
            case steps.PlaceIt(restarts=restarts):
                assert component is not None
                self._place(instance, component, assignment, restarts)
                return
            case _:
                pass
        assert assignment is not None
        match action:
            case steps.Release():
                assert component is not None
                self._release(assignment, component)
            case steps.Again():
                assert component is not None
                assert seen is not None
                self._again(assignment, component, seen)
            case steps.Stage(place=place, prepare=prepare):
                assert component is not None
                self._stage(assignment, component, place, prepare=prepare)
            case steps.Start(place=place):
                self._deployer.start(instance, place, moved=bool(assignment.why))
            case steps.Stop(place=place, generation=generation):
                grace_ms = component.stop_grace_ms if component else DEFAULT_GRACE_MS
                self._deployer.stop(instance, place, generation, grace_ms)
            case steps.Flush(place=place):
                self._flush(assignment, place)
            case steps.Remove(place=place, generation=generation):
                abort = assignment.target == place
                self._deployer.remove(instance, place, generation, abort=abort)
            case steps.Forget():
                self._forget(assignment)
            case steps.End(ending=ending):
                code = EventCode.INSTANCE_FAILED if ending.failed else EventCode.INSTANCE_EXITED
                self._events.emit(code, f"{instance}: {ending.text}", instance=instance)
                self._decisions.assign([replace(assignment, ending=ending)])
                self._kick_dependents(instance)
            case steps.Flip():
                self._flip(assignment)
            case steps.CancelMove(reason=reason):
                self._cancel_move(assignment, reason)
            case _:
                raise AssertionError(f"no way to carry out {action}")

    def _after_wait(self, instance: str, assignment: Assignment | None, seen: Seen | None) -> None:
        if seen is None or seen.status is None or assignment is None or assignment.place is None:
            return
        settled = (
            seen.status.state == InstanceState.RUNNING
            and seen.status.generation == assignment.place.generation
        )
        if settled and not self._deployer.busy(instance):
            self._deployer.settle(instance)

    # --- decisions ---

    def _place_on(self, cnm_id: str) -> Place:
        cnm = self._inventory.get(cnm_id)
        assert cnm is not None
        return Place(cnm=cnm_id, boot_id=cnm.boot_id, generation=self._decisions.next_generation())

    def _place(
        self, instance: str, component: Component, before: Assignment | None, restarts: int
    ) -> None:
        workload, _name, index = instance.rsplit("/", 2)
        choice = self._placer.choose(workload, component, instance)
        if isinstance(choice, NoRoom):
            if instance not in self.pending:
                self._events.emit(
                    EventCode.INSTANCE_PENDING, f"{instance}: {choice.text()}", instance=instance
                )
            self.pending[instance] = choice.reasons
            return
        place = self._place_on(choice)
        base = before or Assignment(
            instance=instance, workload=workload, component=component.name, index=int(index)
        )
        self._assign_place(base, component, place, restarts, EventCode.INSTANCE_ASSIGNED, "")

    def _assign_place(
        self,
        base: Assignment,
        component: Component,
        place: Place,
        restarts: int,
        code: EventCode,
        text: str,
    ) -> None:
        writable = tuple(mount.name for mount in component.volumes if not mount.read_only)
        assignment = replace(
            base, place=place, target=None, why="", restarts=restarts, ending=None, volumes=writable
        )
        self.pending.pop(base.instance, None)
        self._placer.sync(assignment, component)

        def decided(good: bool) -> None:
            if not good:
                self._placer.sync(self._decisions.assignments.get(base.instance), component)
                return
            self._events.emit(
                code,
                f"{base.instance}: {text}{place.cnm}, generation {place.generation}",
                cnm=place.cnm,
                instance=base.instance,
                data={"generation": place.generation},
            )

        self._decisions.assign([assignment], decided)

    def _release(self, assignment: Assignment, component: Component) -> None:
        """Its module is gone. Give the place up, and take another one in the same decision."""
        instance, place = assignment.instance, assignment.place
        assert place is not None
        self._deployer.settle(instance)
        self._placer.forget(instance)
        for name in assignment.volumes:
            self._say_stale(instance, name)
        choice = self._placer.choose(assignment.workload, component, instance)
        if isinstance(choice, NoRoom):
            self._events.emit(
                EventCode.INSTANCE_LOST,
                f"{instance}: lost with {place.cnm}; nowhere to go: {choice.text()}",
                cnm=place.cnm,
                instance=instance,
            )
            self._decisions.assign([replace(assignment, place=None, target=None, why="")])
            return
        fresh = self._place_on(choice)
        self._assign_place(
            assignment,
            component,
            fresh,
            assignment.restarts,
            EventCode.INSTANCE_FAILOVER,
            f"lost with {place.cnm}, goes to ",
        )

    def _say_stale(self, instance: str, volume: str) -> None:
        age_ms = self._volumes.age_ms(volume)
        text = "as it was created" if age_ms is None else f"{age_ms} ms old"
        self._events.emit(
            EventCode.VOLUME_STALE,
            f"{instance}: volume {volume} goes on from the state on the card, {text}",
            instance=instance,
            data={"volume": volume, "age_ms": age_ms},
        )

    def _again(self, assignment: Assignment, component: Component, seen: Seen) -> None:
        """It ended and is wanted: a new generation after a pause, where it was if possible."""
        place = assignment.place
        assert place is not None
        assert seen.status is not None
        key = (assignment.instance, place.generation)
        now_ns = self._loop.now_ns()
        due_ns = self._again_ns.get(key)
        if due_ns is None:
            pause_ns = min(AGAIN_MOST_NS, AGAIN_FIRST_NS << min(assignment.restarts, 10))
            due_ns = self._again_ns[key] = now_ns + pause_ns
            self._events.emit(
                EventCode.INSTANCE_RESTARTING,
                f"{assignment.instance}: {seen.status.text or 'ended'}; again in "
                f"{pause_ns // MS} ms",
                cnm=place.cnm,
                instance=assignment.instance,
            )
        if now_ns < due_ns:
            self._loop.call_at(due_ns, lambda: self.kick(assignment.instance))
            return
        del self._again_ns[key]
        cnm_id = place.cnm
        if seen.draining or seen.status.state == InstanceState.FAILED:
            choice = self._placer.find_alternative_cnm(component, assignment)
            cnm_id = cnm_id if isinstance(choice, NoRoom) else choice
        fresh = self._place_on(cnm_id)
        self._assign_place(
            assignment,
            component,
            fresh,
            assignment.restarts + 1,
            EventCode.INSTANCE_ASSIGNED,
            "again on ",
        )

    def _stage(
        self, assignment: Assignment, component: Component, place: Place, *, prepare: bool
    ) -> None:
        tries = self._deployer.failures("stage", assignment.instance, place)
        if tries >= STAGE_TRIES:
            text = self._deployer.trouble(assignment.instance)
            if prepare:
                self._cancel_move(assignment, text)
                return
            choice = self._placer.find_alternative_cnm(component, assignment)
            if not isinstance(choice, NoRoom):
                self._deployer.settle(assignment.instance)
                self._assign_place(
                    assignment,
                    component,
                    self._place_on(choice),
                    assignment.restarts,
                    EventCode.INSTANCE_ASSIGNED,
                    f"{text}; instead on ",
                )
                return
        self._deployer.deploy_component(assignment, component, place, prepare=prepare)

    def _flush(self, assignment: Assignment, place: Place) -> None:
        instance = assignment.instance

        def flushed(error: str) -> None:
            current = self._decisions.assignments.get(instance)
            if current is None or current.place != place:
                return
            tries = self._deployer.failures("flush", instance, place) + 1
            if error and tries < FLUSH_TRIES:
                return
            if error:  # delete and move always end: the last state that is safe is what is left
                for name in current.volumes:
                    self._say_stale(instance, name)
            self._decisions.assign([replace(current, flushed=place.generation)])

        self._deployer.flush(instance, place, assignment.volumes, flushed)

    def _forget(self, assignment: Assignment) -> None:
        instance = assignment.instance

        def forgotten(good: bool) -> None:
            if not good:
                return
            self._placer.forget(instance)
            self._deployer.settle(instance)
            self.waiting.pop(instance, None)
            self._events.emit(
                EventCode.INSTANCE_REMOVED, f"{instance}: nothing is left", instance=instance
            )
            self.finish_workload(assignment.workload)
            self.kick_pending()

        self._decisions.forget(instance, forgotten)

    def finish_workload(self, name: str) -> None:
        """Erase a deleted workload when its last instance has gone."""
        record = self._decisions.workloads.get(name)
        left = any(a.workload == name for a in self._decisions.assignments.values())
        if record is None or not record.deleted or left:
            return

        def erased(good: bool) -> None:
            if good:
                self._events.emit(EventCode.WORKLOAD_REMOVED, f"{name}: removed")

        self._decisions.erase_workload(name, erased)

    def _flip(self, assignment: Assignment) -> None:
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
                self.kick_pending()

        self._decisions.assign([flipped], decided)

    def _cancel_move(self, assignment: Assignment, reason: str) -> None:
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

        self._decisions.assign([back], decided)

    # --- what is where it should not be ---

    def _sweep(self, cnm: Cnm, status: InstanceStatus) -> None:
        """Rule 11: equal is adopted, lower is stopped, higher or unknown is quarantined and
        reported. What is dead may be deleted in any case."""
        assignment = self._decisions.assignments.get(status.instance)
        if status.instance in self._decisions.pending or not cnm.current:
            return
        here = [] if assignment is None else [assignment.place, assignment.target]
        if any(place is not None and place.cnm == cnm.id for place in here):
            return  # `decide` looks after it
        newest = max((place.generation for place in here if place), default=None)
        place = Place(cnm=cnm.id, boot_id=cnm.boot_id, generation=status.generation)
        if status.state in DEAD:
            self._deployer.remove(status.instance, place, status.generation, abort=False)
        elif newest is not None and status.generation < newest:
            prepared = status.state in (InstanceState.STAGING, InstanceState.PREPARED)
            if prepared:
                self._deployer.remove(status.instance, place, status.generation, abort=True)
            else:
                self._deployer.stop(status.instance, place, status.generation, DEFAULT_GRACE_MS)
        elif (cnm.id, status.instance, status.generation) not in self._quarantined:
            if len(self._quarantined) < 4096:
                self._quarantined.add((cnm.id, status.instance, status.generation))
            self._events.emit(
                EventCode.INSTANCE_QUARANTINED,
                f"{cnm.id} runs {status.instance} generation {status.generation}, which this card "
                "did not order; it is left alone",
                cnm=cnm.id,
                instance=status.instance,
            )

    # --- looking ---

    def _component(self, assignment: Assignment) -> Component | None:
        record = self._decisions.workloads.get(assignment.workload)
        return record.workload.component(assignment.component) if record else None

    def _gates(self, workload: str, component: Component) -> Sequence[str]:
        """The dependencies that are not met, in words."""
        record = self._decisions.workloads[workload]
        unmet = []
        for dependency in component.depends_on:
            other = record.workload.component(dependency.component)
            assert other is not None  # the normal form was checked
            names = [instance_name(workload, other.name, i) for i in range(other.replicas)]
            if not all(self._met(name, dependency.condition) for name in names):
                unmet.append(f"waits for {dependency.component}: {dependency.condition.value}")
        return unmet

    def _met(self, instance: str, condition: Condition) -> bool:
        assignment = self._decisions.assignments.get(instance)
        if assignment is None or assignment.place is None:
            return False
        ended_well = assignment.ending is not None and not assignment.ending.failed
        if condition is Condition.COMPLETED:
            return ended_well
        status = self._inventory.look(assignment.place, instance).status
        running = (
            status is not None
            and status.state == InstanceState.RUNNING
            and status.generation == assignment.place.generation
        )
        if condition is Condition.STARTED:
            return running or ended_well
        return running and status is not None and status.health == Health.HEALTHY

    def _say_status(self, cnm: Cnm, instance: str, status: InstanceStatus | None) -> None:
        assignment = self._decisions.assignments.get(instance)
        if status is None or assignment is None or assignment.place is None:
            return
        if assignment.place.cnm != cnm.id or status.generation != assignment.place.generation:
            return
        code = _CODES.get(int(status.state))
        if code is not None:
            text = f"{instance}: {status.text}" if status.text else f"{instance} on {cnm.id}"
            self._events.emit(code, text, cnm=cnm.id, instance=instance)


_CODES: Final = {
    int(InstanceState.STARTING): EventCode.INSTANCE_STARTING,
    int(InstanceState.RUNNING): EventCode.INSTANCE_RUNNING,
    int(InstanceState.STOPPING): EventCode.INSTANCE_STOPPING,
    int(InstanceState.STOPPED): EventCode.INSTANCE_STOPPED,
}
