"""What is where it should not be: leftovers and strangers in a module's report (rule 11).

Equal to the assignment is adopted, which is `decide`'s affair; lower is stopped; higher or unknown
is quarantined and reported. What is dead or was never started may be deleted in any case: the
target of a move that was taken back has a higher generation than the place.
"""

from typing import Final

from firmware.assignments import Place
from firmware.decide import DEAD, UNSTARTED
from firmware.decisions import Decisions
from firmware.deployer import Deployer
from firmware.events import EventCode, EventLog
from firmware.inventory import Cnm
from protocol.apf import InstanceStatus

GRACE_MS: Final = 10_000
REPORTED_LIMIT: Final = 4096


class Sweeper:
    """Loop thread only."""

    def __init__(self, decisions: Decisions, deployer: Deployer, events: EventLog) -> None:
        self._decisions = decisions
        self._deployer = deployer
        self._events = events
        self._reported: set[tuple[str, str, int]] = set()

    def look(self, cnm: Cnm) -> None:
        """Go through a module's newest report."""
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
        if status.state in DEAD:
            self._deployer.remove(status.instance, place, status.generation, abort=False)
        elif status.state in UNSTARTED:
            self._deployer.remove(status.instance, place, status.generation, abort=True)
        elif newest is not None and status.generation < newest:
            self._deployer.stop(status.instance, place, status.generation, GRACE_MS)
        elif (cnm.id, status.instance, status.generation) not in self._reported:
            if len(self._reported) < REPORTED_LIMIT:
                self._reported.add((cnm.id, status.instance, status.generation))
            self._events.emit(
                EventCode.INSTANCE_QUARANTINED,
                f"{cnm.id} runs {status.instance} generation {status.generation}, which this card "
                "did not order; it is left alone",
                cnm=cnm.id,
                instance=status.instance,
            )
