"""Room that is being freed for one instance is promised to it: others leave that module alone.

A promise ends when its instance is placed, is not wanted any more, finds that the room is gone,
when the module takes nothing new and won't soon, or when it has had its time. Who was to be stopped
for it, and has its place still, then keeps it.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from firmware.allocator.plan_preempt import fits_without
from firmware.cnm_view import why_not
from firmware.decisions import Decisions
from firmware.inventory import Inventory
from firmware.loop import MS, Loop
from firmware.placements import Placements
from firmware.placer import Placer, Promise
from firmware.workload import Component, Workload

LOOK_NS: Final = 250 * MS  # at what was promised, while anything is
CLOSED_NS: Final = 5_000 * MS  # as what is new waits for modules after a start (firmware.card)
NO_GENERATION: Final = 0  # they begin with 1: of an eviction that was taken back


class Promises:
    """Loop thread only. They are kept in `Placer.promises`, which heeds them."""

    def __init__(
        self,
        loop: Loop,
        inventory: Inventory,
        decisions: Decisions,
        placer: Placer,
        placements: Placements,
        freed: Callable[[], None],
    ) -> None:
        """`freed()`: promised room is open to all."""
        self._loop = loop
        self._inventory = inventory
        self._decisions = decisions
        self._placer = placer
        self._placements = placements
        self._freed = freed
        self._until: dict[str, int] = {}  # by the instance that room is promised to
        self._closed_ns: dict[str, int] = {}  # the same; since when the module takes nothing new
        self._looking = False  # `_look_at_promises` is to be called

    def make(self, by: str, cnm: str, until_ns: int) -> None:
        """The room on this module is for `by`, until then."""
        priority = self._placer.priority_of(by)
        self._placer.promises[by] = Promise(by=by, cnm=cnm, priority=priority)
        self._until[by] = max(until_ns, self._until.get(by, 0))
        if not self._looking:
            self._looking = True
            self._loop.call_later(LOOK_NS, self._look_at_promises)

    def _look_at_promises(self) -> None:
        self._looking = False
        for by in list(self._placer.promises):
            if self._is_over(by):
                self.drop(by)
        back = self._take_back()
        if self._placer.promises or back:
            self._looking = True
            self._loop.call_later(LOOK_NS, self._look_at_promises)

    def _is_over(self, by: str) -> bool:
        """It has its place, has ended there, is not wanted any more, has lost the room or the
        module, or has had its time."""
        if by in self._decisions.pending:
            return False
        if wanted_of(self._decisions, by)[1] is None or self._placer.state.hold_of(by) is not None:
            return True
        assignment = self._decisions.assignments.get(by)
        if assignment is not None and assignment.ending is not None:
            return True  # it had its place, and needs none any more
        had_its_time = self._loop.now_ns() >= self._until[by]
        return had_its_time or self._is_closed(by) or self._is_lost(by)

    def _is_closed(self, by: str) -> bool:
        """The module takes nothing new, and won't soon: as long as this lasts nobody could come
        there. One that is silent for a moment, or boots with the daemon, is waited for."""
        cnm = self._inventory.get(self._placer.promises[by].cnm)
        if cnm is not None and not why_not(cnm):
            self._closed_ns.pop(by, None)
            return False
        if cnm is None or cnm.draining or cnm.quarantine:
            return True
        now_ns = self._loop.now_ns()
        return now_ns - self._closed_ns.setdefault(by, now_ns) >= CLOSED_NS

    def _is_lost(self, by: str) -> bool:
        """All have gone who were to go, and it does not fit there: what is above it was faster."""
        workload, component = wanted_of(self._decisions, by)
        if workload is None or component is None or by not in self._placements.pending:
            return False
        for assignment in self._decisions.assignments.values():
            evict = assignment.evict
            if evict is not None and evict.by == by and assignment.evicting:
                return False
            if assignment.instance in self._decisions.pending:
                return False  # it may be one of them
        cnm = self._placer.promises[by].cnm
        node = self._placer.state.nodes.get(cnm)
        if node is None or node.view.why_not:
            return False  # it may come back: see `_is_closed`
        demand, constraints = self._placer.questions(workload.name, component, by)[0][-1]
        return not fits_without(self._placer.state, cnm, demand, constraints, ())

    def drop(self, by: str) -> None:
        """It is over, if there was one."""
        if self._placer.promises.pop(by, None) is not None:
            self._until.pop(by, None)
            self._closed_ns.pop(by, None)
            self._freed()

    def _take_back(self) -> bool:
        """Who was to be stopped for what needs it no more, and has its place still, keeps it: if
        it was stopped already it starts again there. True while there are any."""
        promises = self._placer.promises
        found = [
            (assignment, assignment.evict)
            for assignment in self._decisions.assignments.values()
            if assignment.evict is not None
            and assignment.evicting
            and assignment.evict.by not in promises
        ]
        changes = [
            replace(assignment, evict=replace(evict, generation=NO_GENERATION))
            for assignment, evict in found
            if assignment.instance not in self._decisions.pending
        ]
        changes.sort(key=lambda change: change.instance)
        if changes:
            self._decisions.assign(changes)
        return bool(found)


def wanted_of(decisions: Decisions, instance: str) -> tuple[Workload | None, Component | None]:
    """The component of an instance that is wanted."""
    name, part, index = instance.rsplit("/", 2)
    record = decisions.workloads.get(name)
    if record is None or record.deleted:
        return None, None
    component = record.workload.component(part)
    if component is not None and int(index) >= component.replicas:
        component = None
    return record.workload, component
