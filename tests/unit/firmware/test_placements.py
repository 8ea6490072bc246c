"""`firmware.placements`: room while the decision about it is on its way to the disk."""

from types import SimpleNamespace
from typing import Any

import pytest

from firmware.allocator import Capacity, CnmView
from firmware.assignments import Place
from firmware.decisions import WorkloadDecision
from firmware.events import EventCode
from firmware.inventory import Inventory
from firmware.placements import Placements
from firmware.placer import Placer
from firmware.profiler import Profiler
from firmware.workload import Component, Workload
from hal.errors import StoreFull
from tests.unit.firmware.test_decisions import Bench, Silent

CORE = 1000
X, Y = "x/web/0", "y/web/0"


class Two:
    """Two modules of eight cores; x runs on the first one, with six."""

    def __init__(self) -> None:
        bench = Bench()
        self.store, self.decisions = bench.store, bench.decisions
        self.placer = Placer(Inventory(), self.decisions, Profiler())
        capacity = Capacity(cpu_milli=8 * CORE, memory_bytes=1 << 30)
        for name in ("cnm0", "cnm1"):
            self.placer.state.add_cnm(
                CnmView(
                    id=name,
                    arch="arm64",
                    capacity=capacity,
                    labels={},
                    runtimes=frozenset({"process"}),
                )
            )
        modules: Any = SimpleNamespace(get=lambda cnm: SimpleNamespace(boot_id=bytes(16)))
        unused: Any = None
        self.placements = Placements(
            unused,
            modules,
            self.decisions,
            unused,
            self.placer,
            unused,
            Silent(),  # type: ignore[arg-type]
            kick=lambda _instance: None,
        )
        self.freed: list[None] = []
        self.placements.on_freed = lambda: self.freed.append(None)
        self.placements.place(X, self.submit("x"), None, 0)
        self.store.answer()
        self.first = self.cnm_of(X)
        self.other = {"cnm0": "cnm1", "cnm1": "cnm0"}[self.first]

    def submit(self, name: str) -> Component:
        resources = {"cpu_milli": 6 * CORE, "memory_bytes": 1 << 20}
        web = {"name": "web", "image": "host", "resources": resources}
        document = {"schema": "apf-workload/1", "name": name, "components": [web]}
        workload = Workload.from_json(document)
        self.decisions.accept(WorkloadDecision(workload=workload), (), lambda _error: None)
        self.store.answer()
        return workload.components[0]

    def cnm_of(self, instance: str) -> str:
        place = self.decisions.assignments[instance].place
        assert isinstance(place, Place)
        return place.cnm

    def send_away(self) -> None:
        """Decide that x goes to the other module; nothing is on disk yet."""
        component = self.decisions.component(X)
        assert component is not None
        self.placements.assign(
            self.decisions.assignments[X],
            component,
            self.placements.place_on(self.other),
            0,
            EventCode.INSTANCE_ASSIGNED,
            "",
        )

    def used_milli(self, cnm: str) -> int:
        return int(self.placer.state.nodes[cnm].used[0])


@pytest.fixture
def two() -> Two:
    return Two()


def test_what_leaves_holds_both_places_until_that_is_on_disk(two: Two) -> None:
    component = two.submit("y")
    two.send_away()
    two.placements.place(Y, component, None, 0)
    assert Y in two.placements.pending, "the room that x leaves is not free yet"
    two.store.answer()
    assert (two.used_milli(two.first), two.used_milli(two.other)) == (0, 6 * CORE)
    assert two.freed, "who waits is told"


def test_a_move_that_the_disk_refuses_leaves_everything_where_it_was(two: Two) -> None:
    two.send_away()
    two.store.answer(StoreFull("no space"))
    assert two.cnm_of(X) == two.first
    assert (two.used_milli(two.first), two.used_milli(two.other)) == (6 * CORE, 0)
    assert not two.freed
