"""What depends on others is not started before they have been (I2): `depends_on`.

Once is enough: a start that comes a little late for a dependency that has just died does no harm,
and a card goes by what was last reported.
"""

from firmware.workload import instance_name
from tools.sim.invariants.decided import Decided
from tools.sim.invariants.names import Fail, Invariant
from tools.sim.invariants.running import Started


class Order:
    """Told of each start."""

    def __init__(self, decided: Decided, fail: Fail) -> None:
        self._decided = decided
        self._fail = fail
        self._ever: set[str] = set()  # instances that have been started, whatever became of them

    def started(self, start: Started) -> None:
        """Raises Violation for one that came before what it depends on."""
        self._ever.add(start.instance)
        workload = self._decided.workloads.get(start.instance.split("/", 1)[0])
        if workload is None:
            return
        for needed in self._decided.component(start.instance).depends_on:
            other = workload.component(needed.component)
            for index in range(other.replicas if other is not None else 0):
                name = instance_name(workload.name, needed.component, index)
                if name not in self._ever:
                    self._fail(Invariant.EARLY, f"{start} before {name}")
