"""What a submit would do, without doing it: `apf plan`.

The placer itself chooses, on a copy of the books and of the decisions, in the order in which the
reconciler looks at the instances of a new workload: by priority, by component, then by replica. A
few choices a turn, so that a large plan stops nobody's heartbeat; what changes on the card
meanwhile is not seen.
"""

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from firmware.allocator import Constraints, Demand
from firmware.allocator.explain import Explanation, explain_steps
from firmware.assignments import Assignment, Place
from firmware.decisions import Decisions, WorkloadDecision
from firmware.inventory import Inventory
from firmware.loop import Loop
from firmware.placer import NoRoom, Placer
from firmware.profiler import Profiler
from firmware.workload import Component, Workload, instance_name

STEPS_A_TURN: Final = 8
PLANS_LIMIT: Final = 4  # under way at once: each has a copy of the books
UNTAKEN: Final = "+plan"  # no workload's name has a plus in it


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """Where one instance would go: `cnm`, or the reason for each CNM. Of the instances of a
    component that would go nowhere only the first is explained."""

    instance: str
    component: str
    cnm: str | None
    demand: Demand | None  # what would be reserved there
    reasons: Mapping[str, str]
    why: "Choice | None" = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A choice of the placer, explained."""

    explanation: Explanation
    demand: Demand  # what was asked for; of several the one that found a place, or the least
    pins: frozenset[str]  # the only modules that it may go to; none: any


def choice_steps(
    placer: Placer, workload: str, component: Component, instance: str
) -> Generator[None, None, Choice]:
    """What `Placer.choose` would say now, and why, in short steps; an instance that holds something
    is asked for anew as it was, on the books without it. What changes meanwhile is not seen."""
    needs, pins = placer.questions(workload, component, instance)
    hold = placer.state.hold_of(instance)
    books = placer.state.copy()
    if hold is not None:
        books.release(instance)
        needs = [(hold.demand, hold.constraints)]
    others = frozenset(books.nodes) - pins if pins else frozenset()
    yield

    def ask(demand: Demand, constraints: Constraints) -> Generator[None, None, Choice]:
        constraints = replace(constraints, exclude=constraints.exclude | others)
        found = yield from explain_steps(books, demand, constraints)
        return Choice(explanation=found, demand=demand, pins=pins)

    for demand, constraints in needs[:-1]:
        choice = yield from ask(demand, constraints)
        if choice.explanation.best is not None:
            return choice
    return (yield from ask(*needs[-1]))


class Imagined(Decisions):
    """The card's decisions and those that are only thought of. It has no journal, and nothing that
    would need one."""

    def __init__(self, real: Decisions, workload: Workload) -> None:
        self.workloads = {**real.workloads, workload.name: WorkloadDecision(workload=workload)}
        self.assignments = dict(real.assignments)
        self.pending = set(real.pending)
        self.revision = real.revision


class Planner:
    """Loop thread only."""

    def __init__(
        self,
        loop: Loop,
        inventory: Inventory,
        decisions: Decisions,
        placer: Placer,
        profiler: Profiler,
    ) -> None:
        self._loop = loop
        self._inventory = inventory
        self._decisions = decisions
        self._placer = placer
        self._profiler = profiler
        self.under_way = 0

    def plan(self, workload: Workload, done: Callable[[list[Planned]], None]) -> bool:
        """`done` with every instance, in the order of their placement. False: PLANS_LIMIT are
        under way already, and `done` is not called."""
        if self.under_way >= PLANS_LIMIT:
            return False
        self.under_way += 1
        name = workload.name
        if name in self._decisions.workloads:  # it will be refused; where it would go stays true
            workload = replace(workload, name=name + UNTAKEN)
        _Plan(self, workload, name, done).step()
        return True

    def imagine(self, workload: Workload) -> tuple[Imagined, Placer]:
        """Copies of the decisions and of the books, with a placer over them."""
        decisions = Imagined(self._decisions, workload)
        placer = Placer(self._inventory, decisions, self._profiler)
        placer.state = self._placer.state.copy()
        placer.weights, placer.promises = self._placer.weights, self._placer.promises
        return decisions, placer

    def later(self, call: Callable[[], None]) -> None:
        self._loop.post(call)

    def place_on(self, cnm: str) -> Place:
        known = self._inventory.get(cnm)
        return Place(cnm=cnm, boot_id=known.boot_id if known else b"", generation=0)


class _Plan:
    def __init__(
        self,
        planner: Planner,
        workload: Workload,
        name: str,
        done: Callable[[list[Planned]], None],
    ) -> None:
        self._planner = planner
        self._workload = workload
        self._name = name
        self._done = done
        self._decisions, self._placer = planner.imagine(workload)
        self._left = [
            (component, index)
            for component in workload.components
            for index in range(component.replicas)
        ]
        self._left.sort(key=lambda item: -item[0].priority)
        self._found: list[Planned] = []
        self._explained: set[str] = set()
        self._steps = self._run()

    def step(self) -> None:
        for _ in range(STEPS_A_TURN):
            if next(self._steps, self) is self:
                self._planner.under_way -= 1
                self._done(self._found)
                return
        self._planner.later(self.step)

    def _run(self) -> Iterator[None]:
        """A step: one choice, or a part of why it was one."""
        for component, index in self._left:
            yield from self._choose(component, index)
            yield

    def _choose(self, component: Component, index: int) -> Iterator[None]:
        instance = instance_name(self._workload.name, component.name, index)
        choice = self._placer.choose(self._workload.name, component, instance)
        cnm, demand, reasons, why = None, None, {}, None
        if isinstance(choice, NoRoom):
            reasons = choice.reasons
            if component.name not in self._explained:
                self._explained.add(component.name)
                name = self._workload.name
                why = yield from choice_steps(self._placer, name, component, instance)
        else:
            cnm = choice
            assignment = Assignment(
                instance=instance,
                workload=self._workload.name,
                component=component.name,
                index=index,
                place=self._planner.place_on(cnm),
                volumes=tuple(m.name for m in component.volumes if not m.read_only),
            )
            self._placer.sync(assignment, component)  # before it is known: the mix counts it
            self._decisions.assignments[instance] = assignment
            self._decisions.revision += 1
            hold = self._placer.state.hold_of(instance)
            demand = hold.demand if hold is not None else None
        self._found.append(
            Planned(
                instance=instance_name(self._name, component.name, index),
                component=component.name,
                cnm=cnm,
                demand=demand,
                reasons=reasons,
                why=why,
            )
        )
