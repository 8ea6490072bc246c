"""The card's decisions, typed, over the journal: what the reconciler works from.

Everything here was acknowledged by the store: a caller that is told "durable" may act on it, and
what it sees in `assignments` or `workloads` a power cut does not take back. A decision that the
store refuses has not been made; the store's failure is said once, and whoever needed it is asked
again after a rest: a disk that is full stays full for longer than a turn of the loop.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from firmware.assignments import Assignment
from firmware.events import EventCode, EventLog
from firmware.inventory import Cnm
from firmware.journal import Change, Journal, JournalError, Kind
from firmware.journal_records import (
    GENERATION_KEY,
    check_the_rest,
    read_assignments,
    read_generation,
    read_workloads,
)
from firmware.lease import LeaseState
from firmware.loop import MS, Loop
from firmware.turns import Answer, Flags, Turns
from firmware.workload import Component, Workload

REFUSED_REST_NS: Final = 500 * MS  # before what the store refused is decided again


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadDecision:
    """A workload that was accepted; `deleted` until nothing of it is left."""

    workload: Workload
    deleted: bool = False

    def to_json(self) -> dict[str, Any]:
        return {"workload": self.workload.to_json(), "deleted": self.deleted}


class Decisions:
    """Loop thread only."""

    def __init__(self, journal: Journal, loop: Loop, events: EventLog) -> None:
        self.journal = journal
        self.workloads: dict[str, WorkloadDecision] = {}
        self.assignments: dict[str, Assignment] = {}
        self.pending: set[str] = set()  # instances with a decision on its way to the disk
        self.erasing: set[str] = set()  # workloads whose last record is on its way to the disk
        self.revision = 0  # grows with every change of `workloads` or `assignments`
        self._by_cnm: dict[str, dict[str, None]] = {}  # module -> instances, in order
        self._by_workload: dict[str, dict[str, None]] = {}  # workload -> instances, in order
        self.epoch = 0
        self.card_uuid = b""
        self.on_assignment: Callable[[str], None] = lambda _instance: None
        self._loop = loop
        self._events = events
        self._generation = 0
        self._turns = Turns()  # of the modules' records

    def load(self) -> None:
        """Read the journal's image, after `Journal.load`. Raises JournalError."""
        check_the_rest(self.journal)
        for name, (workload, deleted) in read_workloads(self.journal).items():
            self.workloads[name] = WorkloadDecision(workload=workload, deleted=deleted)
        for assignment in read_assignments(self.journal).values():
            self._take(assignment)
        places = [a.place for a in self.assignments.values()]
        places += [a.target for a in self.assignments.values()]
        given = [place.generation for place in places if place]
        self._generation = max([read_generation(self.journal), *given])

    def begin_epoch(self, fresh_uuid: bytes, done: Callable[[JournalError | None], None]) -> None:
        """Epoch + 1 is on disk before any frame leaves the card (rule 2)."""

        def begun(error: JournalError | None) -> None:
            if error is None:
                self.epoch = self.journal.epoch
                self.card_uuid = bytes.fromhex(self.journal.card_uuid or "")
            done(error)

        self.journal.begin_epoch(fresh_uuid.hex(), begun)

    def next_generation(self) -> int:
        """Ever-growing over all instances of the card; durable with the batch that uses it."""
        self._generation += 1
        return self._generation

    # --- instances and workloads ---

    def assign(
        self,
        changes: Sequence[Assignment],
        done: Callable[[bool], None] | None = None,
        also: Sequence[Change] = (),
    ) -> None:
        """Write assignments, and what `also` is to be written with them, all or none."""
        batch = [
            Change(kind=Kind.ASSIGNMENT, key=item.instance, value=item.to_json())
            for item in changes
        ]
        batch.append(Change(kind=Kind.META, key=GENERATION_KEY, value={"value": self._generation}))
        batch.extend(also)

        def applied() -> None:
            for item in changes:
                self._take(item)

        self._commit([item.instance for item in changes], batch, applied, done)

    def forget(self, instance: str, done: Callable[[bool], None] | None = None) -> None:
        """Nothing of this instance is left anywhere."""
        batch = [Change(kind=Kind.ASSIGNMENT, key=instance, value=None)]
        self._commit([instance], batch, lambda: self._drop(instance), done)

    def concerned(self, cnm_id: str) -> list[str]:
        """The instances whose place or target is on this module."""
        return list(self._by_cnm.get(cnm_id, ()))

    def of_workload(self, name: str) -> list[str]:
        """The instances of this workload that have an assignment."""
        return list(self._by_workload.get(name, ()))

    def component(self, instance: str) -> Component | None:
        """What it is an instance of, if that is still wanted."""
        workload, name, _index = instance.rsplit("/", 2)
        record = self.workloads.get(workload)
        return record.workload.component(name) if record else None

    def _take(self, assignment: Assignment) -> None:
        self.revision += 1
        self._unlist(assignment.instance)
        self.assignments[assignment.instance] = assignment
        self._by_workload.setdefault(assignment.workload, {})[assignment.instance] = None
        for place in (assignment.place, assignment.target):
            if place is not None:
                self._by_cnm.setdefault(place.cnm, {})[assignment.instance] = None

    def _drop(self, instance: str) -> None:
        self.revision += 1
        self._unlist(instance)
        gone = self.assignments.pop(instance, None)
        if gone is not None:
            of_workload = self._by_workload[gone.workload]
            del of_workload[instance]
            if not of_workload:
                del self._by_workload[gone.workload]

    def _unlist(self, instance: str) -> None:
        old = self.assignments.get(instance)
        for place in (old.place, old.target) if old is not None else ():
            if place is not None:
                self._by_cnm.get(place.cnm, {}).pop(instance, None)

    def accept(
        self,
        decision: WorkloadDecision,
        volumes: Sequence[Change],
        done: Callable[[JournalError | None], None],
    ) -> None:
        """Accept a workload (or mark it deleted), with the volumes that it brings."""
        name = decision.workload.name
        batch = [Change(kind=Kind.WORKLOAD, key=name, value=decision.to_json()), *volumes]

        def committed(error: JournalError | None) -> None:
            if error is None:
                self.revision += 1
                self.workloads[name] = decision
            else:
                self._say(error)
            done(error)

        self.journal.commit(batch, committed)

    def erase_workload(self, name: str, done: Callable[[bool], None]) -> None:
        """Its last instance is gone. Once that is on disk the name may be taken again: whatever is
        still to be written of this record comes before that, so ask `erasing` first."""
        self.erasing.add(name)

        def erased(good: bool) -> None:
            self.erasing.discard(name)
            done(good)

        batch = [Change(kind=Kind.WORKLOAD, key=name, value=None)]
        self._commit([], batch, lambda: self._drop_workload(name), erased)

    def _drop_workload(self, name: str) -> None:
        self.revision += 1
        self.workloads.pop(name, None)

    # --- modules ---

    def cnm_record(self, cnm_id: str) -> dict[str, Any]:
        """What the journal says of a module: uuid, boot_id, state, draining, power."""
        return dict(self.journal.get(Kind.CNM, cnm_id) or {})

    def grant(self, cnm: Cnm, durable: Callable[[], None]) -> None:
        """ "granted" for this boot, on disk before its first grant (rule 2)."""
        if cnm.granted_durable == cnm.boot_id:
            durable()
            return
        boot_id = cnm.boot_id

        def applied() -> None:
            cnm.granted_durable = boot_id

        def done(good: bool) -> None:
            if good:
                durable()

        self._put_cnm(cnm, LeaseState.LEASED, applied, done)

    def begin_fence(self, cnm: Cnm, done: Callable[[bool], None], *, end_epoch: bool) -> None:
        """FENCING is irrevocable, so it is on disk before anybody acts on it (rule 8). From then
        on this boot is not "granted" any more: a new admission of it is written anew.

        `end_epoch` where the wait is to be the proof (9c): the same boot may be heard again then
        and get a lease again, and a command that was late all the time would be taken, because
        nothing has buried what had merely been prepared there. What has said hello with the next
        epoch refuses it.
        """

        def applied() -> None:
            cnm.granted_durable = b""
            self.epoch = max(self.epoch, self.journal.epoch)

        self._put_cnm(cnm, LeaseState.FENCING, applied, done, end_epoch=end_epoch)

    def fenced(self, cnm: Cnm, done: Callable[[bool], None]) -> None:
        self._put_cnm(cnm, LeaseState.FENCED, lambda: None, done)

    def keep(self, cnm: Cnm, done: Callable[[bool], None], **flags: bool) -> None:
        """Change `draining` or `power_wanted`, on disk first."""

        def commit(together: Flags, answer: Answer) -> None:
            def applied() -> None:
                for name, value in together.items():
                    setattr(cnm, name, value)

            record = {**self.cnm_record(cnm.id), **together}
            self._commit([], [Change(kind=Kind.CNM, key=cnm.id, value=record)], applied, answer)

        self._turns.take(cnm.id, commit, done, flags)

    def _put_cnm(
        self,
        cnm: Cnm,
        state: LeaseState,
        applied: Callable[[], None],
        done: Callable[[bool], None],
        *,
        end_epoch: bool = False,
    ) -> None:
        uuid, boot_id = cnm.uuid.hex(), cnm.boot_id.hex()  # of whom this is said

        def commit(_flags: Flags, answer: Answer) -> None:
            record = {
                "uuid": uuid,
                "boot_id": boot_id,
                "state": state.value,
                "draining": cnm.draining,
                "power_wanted": cnm.power_wanted,
            }
            changes = [Change(kind=Kind.CNM, key=cnm.id, value=record)]
            if end_epoch:
                changes.append(self.journal.next_epoch())
            self._commit([], changes, applied, answer)

        self._turns.take(cnm.id, commit, done)

    # --- inside ---

    def _commit(
        self,
        instances: Sequence[str],
        batch: Sequence[Change],
        applied: Callable[[], None],
        done: Callable[[bool], None] | None,
    ) -> None:
        self.pending.update(instances)

        def committed(error: JournalError | None) -> None:
            self.pending.difference_update(instances)
            if error is None:
                applied()
            else:
                self._say(error)
            if done is not None:
                done(error is None)
            if error is None:
                self._tell(instances)
            elif instances:
                self._loop.call_later(REFUSED_REST_NS, lambda: self._tell(instances))

        self.journal.commit(batch, committed)

    def _tell(self, instances: Sequence[str]) -> None:
        for instance in instances:
            self.on_assignment(instance)

    def _say(self, error: JournalError) -> None:
        if error.code != "failed":  # what came of the store's failure, which was said
            self._events.emit(EventCode.JOURNAL_FAILED, str(error))


def moved(assignment: Assignment, **changes: Any) -> Assignment:
    """A changed copy."""
    return replace(assignment, **changes)
