"""What is where it should not be: leftovers and strangers in a module's report (rule 11).

Equal to the assignment is adopted, which is `decide`'s affair; lower is stopped; higher or unknown
is quarantined and reported. What a module brought along under a new name of its slot (same boot,
same generation) is where it was: only the name changes. What is dead or was never started may be
deleted in any case: the target of a move that was taken back has a higher generation than where it
is.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from firmware.assignments import Assignment, Place
from firmware.decide import DEAD, UNSTARTED
from firmware.decisions import Decisions
from firmware.deployer import Deployer
from firmware.events import EventCode, EventLog
from firmware.inventory import Cnm
from protocol.apf import InstanceStatus

GRACE_MS: Final = 10_000


class Sweeper:
    """Loop thread only."""

    def __init__(
        self,
        decisions: Decisions,
        deployer: Deployer,
        events: EventLog,
        renamed: Callable[[Assignment, Place], None],
    ) -> None:
        """`renamed(assignment, place)`: its place is called so now."""
        self._decisions = decisions
        self._deployer = deployer
        self._events = events
        self._renamed = renamed
        self._said: dict[str, dict[str, int]] = {}  # module -> stranger there -> its generation

    def look(self, cnm: Cnm) -> None:
        """Go through a module's newest report. A stranger that is gone from it is forgotten."""
        if cnm.id in self._said:
            said = self._said.pop(cnm.id)
            left = {name: said[name] for name in said if name in cnm.observed}
            if left:
                self._said[cnm.id] = left
        for status in cnm.observed.values():
            self.look_at(cnm, status)

    def look_at(self, cnm: Cnm, status: InstanceStatus) -> None:
        """One of them."""
        assignment = self._decisions.assignments.get(status.instance)
        if status.instance in self._decisions.pending or not cnm.current:
            return
        here = [] if assignment is None else [assignment.place, assignment.target]
        if any(place is not None and place.cnm == cnm.id for place in here):
            return  # `decide` looks after it
        newest = max((place.generation for place in here if place), default=None)
        place = Place(cnm=cnm.id, boot_id=cnm.boot_id, generation=status.generation)
        before = assignment.place if assignment is not None else None
        if assignment is not None and before is not None and replace(before, cnm=cnm.id) == place:
            self._renamed(assignment, place)
        elif status.state in DEAD:
            self._deployer.remove(status.instance, place, status.generation, abort=False)
        elif status.state in UNSTARTED:
            self._deployer.remove(status.instance, place, status.generation, abort=True)
        elif newest is not None and status.generation < newest:
            self._deployer.stop(status.instance, place, status.generation, GRACE_MS)
        elif self._said.get(cnm.id, {}).get(status.instance) != status.generation:
            self._said.setdefault(cnm.id, {})[status.instance] = status.generation
            self._events.emit(
                EventCode.INSTANCE_QUARANTINED,
                f"{cnm.id} runs {status.instance} generation {status.generation}, which this card "
                "did not order; it is left alone",
                cnm=cnm.id,
                instance=status.instance,
            )
