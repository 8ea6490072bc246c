"""`depends_on`: which of a component's dependencies are not met yet."""

from collections.abc import Sequence

from firmware.decisions import Decisions
from firmware.inventory import Inventory
from firmware.workload import Component, Condition, instance_name
from protocol.apf import Health, InstanceState


class Gates:
    """Reads only. Loop thread only."""

    def __init__(self, inventory: Inventory, decisions: Decisions) -> None:
        self._inventory = inventory
        self._decisions = decisions

    def unmet(self, workload: str, component: Component) -> Sequence[str]:
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
        # as last reported, be the report behind a command or not: who waits is woken by a change
        # of the status, and a start that comes a little early or late does no harm
        status = self._inventory.reported(assignment.place, instance)
        running = (
            status is not None
            and status.state == InstanceState.RUNNING
            and status.generation == assignment.place.generation
        )
        if condition is Condition.STARTED:
            return running or ended_well
        return running and status is not None and status.health == Health.HEALTHY
