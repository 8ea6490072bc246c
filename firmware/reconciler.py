"""The reconciler (DESIGN D1): for each instance that may need it, one step, again and again.

`firmware.decide` says what the step is; this file carries it out: a decision goes to the journal, a
job to the deployer. It is level-triggered: every job's end, report, decision and change of a
module kicks the instances that it may concern, and an instance whose decision is still on its way
to the disk is left alone until it has arrived.
"""

import re
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from typing import Final

from firmware import decide as steps
from firmware.assignments import Assignment, Place
from firmware.decide import Seen, Sight, decide
from firmware.decisions import REFUSED_REST_NS, Decisions
from firmware.deployer import Deployer
from firmware.events import EventCode, EventLog
from firmware.gates import Gates
from firmware.inventory import Cnm, Inventory
from firmware.loop import Loop
from firmware.migration import Migration
from firmware.placements import Placements
from firmware.placer import NoRoom, Placer
from firmware.storage import Volumes
from firmware.sweeper import Sweeper
from firmware.workload import Component, instance_name
from protocol.apf import InstanceState, InstanceStatus

STEPS_A_TURN: Final = 64  # then the loop gets its turn; heartbeats must not wait
STAGE_TRIES: Final = 3  # on one module, before another one is tried
FLUSH_TRIES: Final = 8  # some 25 s in all: an agent that hangs is replaced after 10 s
DEFAULT_GRACE_MS: Final = 10_000
_INDEX: Final = re.compile(r"0|[1-9][0-9]{0,8}")  # as `instance_name` writes it


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
        self.placements = Placements(
            loop, inventory, decisions, deployer, placer, volumes, events, kick=self.kick
        )
        self.migration = Migration(inventory, decisions, deployer, placer, self.placements, events)
        self.migration.on_room = self.kick_pending
        self.placements.on_freed = self.kick_pending
        self.waiting: dict[str, str] = {}  # instance -> what it waits for, in words
        self._loop = loop
        self._inventory = inventory
        self._decisions = decisions
        self._deployer = deployer
        self._placer = placer
        self._events = events
        self._sweeper = Sweeper(decisions, deployer, events, self.placements.rename)
        self._gates = Gates(inventory, decisions)
        self._dirty: dict[str, None] = {}  # in order
        # instance -> modules whose reports name it, sorted
        self._reported_by: dict[str, tuple[str, ...]] = {}
        self._posted = False
        self._room = False  # `_look_for_room` is posted
        self._lost: dict[str, None] = {}  # with their modules, and not kicked yet; in order
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
            names = [
                instance_name(name, component.name, index)
                for component in record.workload.components
                for index in range(component.replicas)
            ]
            self.kick_all(self._placer.in_order(names))
        self.kick_all(self._decisions.of_workload(name))

    def kick_cnm(self, cnm: Cnm) -> None:
        """Everything that is, or is about to be, on this module; and what waits for room."""
        concerned = self._decisions.concerned(cnm.id)
        lost = {name: None for name in concerned if self._is_lost(name)}
        self.kick_all(name for name in concerned if name not in lost)
        if lost and not self._lost:
            self._loop.post(self._kick_lost)
        self._lost.update(lost)
        self.kick_pending()

    def _is_lost(self, instance: str) -> bool:
        """The module where it is, is gone."""
        assignment = self._decisions.assignments.get(instance)
        if assignment is None or assignment.ending is not None:
            return False
        place = assignment.place
        return place is not None and self._inventory.look(place, instance).sight is Sight.GONE

    def _kick_lost(self) -> None:
        """What was lost at one time, with however many modules, is placed together."""
        lost, self._lost = self._lost, {}
        self.kick_all(self._placer.in_order(self._placer.constrained_first(lost)))

    def kick_pending(self) -> None:
        """Room may have come up: look again, soon, at what waits for it. Once for however many
        modules have changed meanwhile: at a start all of them do, and everything may wait."""
        if self.placements.pending and not self._room:
            self._room = True
            self._loop.post(self._look_for_room)

    def _look_for_room(self) -> None:
        """In the order of the queue; by itself the most constrained first."""
        self._room = False
        waiting = self._placer.tightest_first(self.placements.pending)
        self.kick_all(self._placer.in_order(waiting))

    def on_report(self, cnm: Cnm, changed: Iterable[str]) -> None:
        """A module's report differs from the one before."""
        for instance in sorted(changed):  # a set's own order is another one in each process
            status = cnm.observed.get(instance)
            if status is not None:
                self._note_reporter(instance, cnm.id)
            self._say_status(cnm, instance, status)
            self.kick(instance)
            self._kick_dependents(instance)
        self._sweeper.look(cnm)
        # even an unchanged report may be the newer one that somebody waits for
        self.kick_all(self._decisions.concerned(cnm.id))

    def _kick_dependents(self, instance: str) -> None:
        assignment = self._decisions.assignments.get(instance)
        record = self._decisions.workloads.get(assignment.workload) if assignment else None
        if assignment is None or record is None:
            return
        for component in record.workload.components:
            if any(d.component == assignment.component for d in component.depends_on):
                for index in range(component.replicas):
                    self.kick(instance_name(assignment.workload, component.name, index))

    # --- one step ---

    def _turn(self) -> None:
        self._posted = False
        # one pass: each search for the first key goes over all that were deleted before it
        for instance in list(islice(self._dirty, STEPS_A_TURN)):
            del self._dirty[instance]
            self._step(instance)
        if self._dirty and not self._posted:
            self._posted = True
            self._loop.post(self._turn)

    def _step(self, instance: str) -> None:
        if instance in self._decisions.pending:
            return  # its decision kicks it when it has arrived
        self._placer.catch_up(instance)
        assignment = self._decisions.assignments.get(instance)
        workload, name, index = split_name(instance)
        record = self._decisions.workloads.get(workload)
        component = record.workload.component(name) if record else None
        wanted = component
        if record is None or record.deleted or component is None or index >= component.replicas:
            wanted = None
        seen = target = None
        if assignment is not None and assignment.place is not None:
            seen = self._inventory.look(assignment.place, instance)
        if assignment is not None and assignment.target is not None:
            target = self._inventory.look(assignment.target, instance)
        gates = (
            self._gates.unmet(workload, wanted) if wanted is not None and wanted.depends_on else ()
        )
        if wanted is None:
            self._deployer.drop_staging(instance)
        action = decide(wanted, assignment, seen, target, gates)
        self.waiting.pop(instance, None)
        if isinstance(action, steps.Wait) and action.reason:
            self.waiting[instance] = action.reason
        if not isinstance(action, steps.PlaceIt):
            self.placements.waits_no_more(instance)
        self._act(instance, action, assignment, component, seen)
        self._sweep(instance)

    def _sweep(self, instance: str) -> None:
        """After a decision, or a removal that failed, the reports are looked at anew: the source
        of a move has nothing more to say by itself."""
        silent: list[str] = []
        for cnm_id in self._reported_by.get(instance, ()):
            cnm = self._inventory.get(cnm_id)
            status = cnm.observed.get(instance) if cnm is not None else None
            if cnm is not None and status is not None:
                self._sweeper.look_at(cnm, status)
            else:
                silent.append(cnm_id)
        left = tuple(m for m in self._reported_by.get(instance, ()) if m not in silent)
        if left:
            self._reported_by[instance] = left
        else:
            self._reported_by.pop(instance, None)

    def _note_reporter(self, instance: str, cnm_id: str) -> None:
        modules = self._reported_by.get(instance, ())
        if cnm_id not in modules:
            self._reported_by[instance] = tuple(sorted((*modules, cnm_id)))

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
                self.placements.place(instance, component, assignment, restarts)
                return
            case _:
                pass
        assert assignment is not None
        match action:
            case steps.Release():
                assert component is not None
                self.placements.release(assignment, component)
            case steps.Again(attempt=attempt):
                assert component is not None
                assert seen is not None
                self.placements.again(assignment, component, seen, attempt=attempt)
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
            case steps.Remove(place=place, generation=generation, abort=abort):
                self._deployer.remove(instance, place, generation, abort=abort)
            case steps.Forget():
                self._forget(assignment)
            case steps.End(ending=ending):
                code = EventCode.INSTANCE_FAILED if ending.failed else EventCode.INSTANCE_EXITED
                self._events.emit(code, f"{instance}: {ending.text}", instance=instance)
                self._end(replace(assignment, ending=ending), component)
            case steps.Flip():
                if seen is not None and seen.sight is Sight.GONE:
                    self.placements.say_stale(assignment)
                self.migration.flip(assignment)
            case steps.CancelMove(reason=reason):
                self.migration.cancel(assignment, reason)
            case steps.Vacate(restarts=restarts, attempts=attempts):
                assert component is not None
                left = replace(assignment, restarts=restarts, attempts=attempts)
                self.placements.vacate(left, component, self.kick_pending)
            case _:
                raise AssertionError(f"no way to carry out {action}")

    def _after_wait(self, instance: str, assignment: Assignment | None, seen: Seen | None) -> None:
        if seen is None or seen.status is None or assignment is None or assignment.place is None:
            return
        settled = (
            seen.status.state == InstanceState.RUNNING
            and seen.status.generation == assignment.place.generation
        )
        if settled:
            now_ns = self._loop.now_ns()
            self.placements.restarts.running(instance, assignment.place.generation, now_ns)
            if not self._deployer.busy(instance):
                self._deployer.settle_at(instance, assignment.place)

    def _end(self, ended: Assignment, component: Component | None) -> None:
        """It stays as it is, and others may have its room."""

        def decided(good: bool) -> None:
            if good:
                self._placer.sync(ended, component)
                self.kick_pending()
            self._kick_dependents(ended.instance)

        self._decisions.assign([ended], decided)

    def _stage(
        self, assignment: Assignment, component: Component, place: Place, *, prepare: bool
    ) -> None:
        tries = self._deployer.failures("stage", assignment.instance, place)
        if tries >= STAGE_TRIES:
            text = self._deployer.trouble(assignment.instance)
            if prepare:
                self.migration.cancel(assignment, text)
                return
            choice = self._placer.find_alternative_cnm(component, assignment)
            if not isinstance(choice, NoRoom):
                self._deployer.give_up(assignment.instance, place)
                self.placements.assign(
                    assignment,
                    component,
                    self.placements.place_on(choice),
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
            if instance in self._decisions.pending:
                return  # what is being decided must not be written over; then it is flushed again
            tries = self._deployer.failures("flush", instance, place) + 1
            if error and tries < FLUSH_TRIES:
                return
            if error:  # delete and move always end: the last state that is safe is what is left
                self.placements.say_stale(current)
            self._decisions.assign([replace(current, flushed=place.generation)])

        self._deployer.flush(instance, place, assignment.volumes, flushed)

    def _forget(self, assignment: Assignment) -> None:
        """Only when its modules have buried it: a DEPLOY or START that is late in a queue would
        else bring back what nobody knows any more."""
        instance = assignment.instance
        left = self._inventory.left_behind(instance)
        for place in (assignment.target, assignment.place, *left):
            if place is None or self._deployer.buried(instance, place):
                continue
            if self._inventory.look(place, instance).sight is Sight.CURRENT:
                self._deployer.remove(instance, place, place.generation, abort=False)
                return
        last = assignment.place
        if last is not None and self._inventory.look(last, instance).sight is Sight.GONE:
            self.placements.say_stale(assignment)

        def forgotten(good: bool) -> None:
            if not good:
                return
            self._placer.forget(instance)
            self._deployer.settle(instance)
            self.placements.restarts.forget(instance)
            self.waiting.pop(instance, None)
            self._events.emit(
                EventCode.INSTANCE_REMOVED, f"{instance}: nothing is left", instance=instance
            )
            self.finish_workload(assignment.workload)
            self.kick_pending()

        self._decisions.forget(instance, forgotten)

    def finish_workload(self, name: str) -> None:
        """Erase a deleted workload when its last instance has gone. Once at a time: behind an
        erasure its name is free, and what follows may be the next one's."""
        record = self._decisions.workloads.get(name)
        if record is None or not record.deleted or self._decisions.of_workload(name):
            return
        if name in self._decisions.erasing:
            return

        def erased(good: bool) -> None:
            if good:
                self._events.emit(EventCode.WORKLOAD_REMOVED, f"{name}: removed")
            else:
                self._loop.call_later(REFUSED_REST_NS, lambda: self.finish_workload(name))

        self._decisions.erase_workload(name, erased)

    # --- looking ---

    def _component(self, assignment: Assignment) -> Component | None:
        record = self._decisions.workloads.get(assignment.workload)
        return record.workload.component(assignment.component) if record else None

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


def split_name(instance: str) -> tuple[str, str, int]:
    """Workload, component and index. Modules report and people write what they like: a name that
    can't be ours, web/00 beside web/0, belongs to no workload."""
    workload, _, rest = instance.partition("/")
    component, _, index = rest.partition("/")
    return (workload, component, int(index)) if _INDEX.fullmatch(index) else ("", "", 0)


_CODES: Final = {
    int(InstanceState.STARTING): EventCode.INSTANCE_STARTING,
    int(InstanceState.RUNNING): EventCode.INSTANCE_RUNNING,
    int(InstanceState.STOPPING): EventCode.INSTANCE_STOPPING,
    int(InstanceState.STOPPED): EventCode.INSTANCE_STOPPED,
}
