"""What is shown of the allocator: `explain`, `plan`, `top` and `heatmap` (firmware.placement_rows
has the rows). Reads only."""

from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Final

from firmware.allocator.queue import shares
from firmware.allocator.score import CRITERIA
from firmware.cnm_view import why_not
from firmware.decisions import Decisions
from firmware.events import iso_ms
from firmware.history import LEVELS, SERIES, HistoryKeeper
from firmware.inventory import Cnm, Inventory
from firmware.monitor import Monitor
from firmware.occupancy import RESOURCES, Amounts, occupancy
from firmware.placement_rows import (
    UNMEASURED,
    amounts_row,
    demand_row,
    shape_row,
    silent_row,
    verdict_row,
)
from firmware.placer import EXCLUDED, Placer
from firmware.planning import Choice, Planned, choice_steps
from firmware.workload import Component

MEASURED: Final[Mapping[str, str]] = {  # resource -> what telemetry calls its use
    "cpu": "cpu_milli",
    "memory": "memory_bytes",
    "nvme": "nvme_bytes",
}
NOBODY: Final[Mapping[str, str]] = {}
ROWS_A_STEP: Final = 64  # about 1 ms
PAGE_CNMS: Final = 32  # of a history: some 30,000 numbers in an answer


class PlacementViews:
    """Reads only. Loop thread only."""

    def __init__(
        self,
        inventory: Inventory,
        decisions: Decisions,
        placer: Placer,
        monitor: Monitor,
        keeper: HistoryKeeper,
        *,
        pending: Mapping[str, Mapping[str, str]],
        preemption: Callable[[str], Generator[None, None, dict[str, Any] | None]],
        wall_ns: Callable[[], int],
    ) -> None:
        """`pending`: the instances that wait for room; `preemption(instance)`: whether others are
        stopped for one of them, in short steps."""
        self._inventory = inventory
        self._decisions = decisions
        self._placer = placer
        self._monitor = monitor
        self._keeper = keeper
        self._pending = pending
        self._preemption = preemption
        self._wall_ns = wall_ns

    # --- explain ---

    def explain(self, instance: str, component: Component) -> Generator[None, None, dict[str, Any]]:
        """Where it is, or why it waits: the question of its placement, asked anew on the books
        as they are now without it. An instance that has ended asks nothing. In short steps."""
        assignment = self._decisions.assignments.get(instance)
        workload = instance.split("/", 1)[0]
        ended = assignment.ending.text if assignment and assignment.ending else None
        place = assignment.place if assignment else None
        target = assignment.target if assignment else None
        here = place.cnm if place and ended is None else None
        barred, tenant = self._placer.barred(instance), self._placer.tenant_of(instance)
        preemption = yield from self._preemption(instance)
        choice = yield from choice_steps(self._placer, workload, component, instance)
        found = choice.explanation
        rows = yield from self._verdicts(choice, here, barred)
        return {
            "instance": instance,
            "workload": workload,
            "component": component.name,
            "cnm": here,
            "target": target.cnm if target else None,
            "ended": ended,
            "waits": here is None and ended is None,
            "pinned_to": sorted(choice.pins),
            "demand": demand_row(choice.demand),
            "best": found.best,
            "runner_up": found.runner_up,
            "decided_by": found.decided_by,
            "criteria": list(CRITERIA),
            "cnms": rows,
            "priority": component.priority,
            "tenant": tenant,
            "preemption": preemption,
        }

    def _verdicts(
        self, choice: Choice, here: str | None, barred: Mapping[str, str] = NOBODY
    ) -> Generator[None, None, list[dict[str, Any]]]:
        """`barred`: modules whose room is being freed for others, and the words for it."""
        rows: list[dict[str, Any]] = []
        for verdict in choice.explanation.verdicts:
            row = verdict_row(verdict, here, choice.pins)
            if row["id"] in barred and row["reason"]:
                row["reason"] = row["reason"].replace(EXCLUDED, barred[row["id"]])
            rows.append(row)
            if len(rows) % ROWS_A_STEP == 0:
                yield
        known = {row["id"] for row in rows}
        silent = [cnm for cnm in self._inventory if cnm.id not in known]
        return rows + [silent_row(cnm, here) for cnm in silent]

    # --- plan ---

    def planned(self, found: Sequence[Planned]) -> Generator[None, None, list[dict[str, Any]]]:
        """A row an instance, in the order of placement; `cnms` explains those that go nowhere.
        In short steps."""
        rows: list[dict[str, Any]] = []
        for item in found:
            cnms: list[dict[str, Any]] = []
            if item.why is not None:
                cnms = yield from self._verdicts(item.why, None)
            rows.append(
                {
                    "instance": item.instance,
                    "component": item.component,
                    "cnm": item.cnm,
                    "demand": demand_row(item.demand) if item.demand is not None else None,
                    "pending": dict(item.reasons),
                    "cnms": cnms,
                }
            )
            if len(rows) % ROWS_A_STEP == 0:
                yield
        return rows

    # --- top ---

    def top(self, cnms: int, components: int) -> dict[str, Any]:
        """The card now: each resource, the fullest modules, the components that use most."""
        found = occupancy(self._placer.state)
        used = {resource: self._used_by_card(name) for resource, name in MEASURED.items()}
        rows = [self._cnm(cnm, found.cnms.get(cnm.id, {})) for cnm in self._inventory]
        rows.sort(key=lambda row: (-max(row["fullest_permille"] or 0, 0), row["id"]))
        return {
            "at": iso_ms(self._wall_ns()),
            "resources": [
                amounts_row(name, found.card[name], used.get(name, UNMEASURED))
                for name in RESOURCES
            ],
            "cnms_known": len(rows),
            "instances": sum(row["instances"] for row in rows),
            "cnms": rows[:cnms],
            "pending": len(self._pending),
            "mix": [shape_row(shape) for shape in found.mix],
            "components": self._components()[:components],
            **self._tenants(),
        }

    def _tenants(self) -> dict[str, Any]:
        """What each tenant has of the card, where they share it by weight."""
        placer = self._placer
        if placer.weights is None:
            return {}
        running: Counter[str] = Counter()
        for name, assignment in self._decisions.assignments.items():
            if assignment.place is not None and assignment.ending is None:
                running[placer.tenant_of(name)] += 1
        waiting = Counter(map(placer.tenant_of, self._pending))
        names = {*running, *waiting}
        return {
            "tenants": [
                {
                    "tenant": share.tenant,
                    "weight": share.weight,
                    "resource": share.resource or None,
                    "share_percent": share.used * 100 // share.total if share.total else 0,
                    "running": running[share.tenant],
                    "waiting": waiting[share.tenant],
                }
                for share in shares(placer.state, placer.weights, placer.tenant_of, names)
            ]
        }

    def _cnm(self, cnm: Cnm, amounts: Mapping[str, Amounts]) -> dict[str, Any]:
        node = self._placer.state.nodes.get(cnm.id)
        rows = [
            amounts_row(
                name,
                amounts[name],
                self._used(cnm, MEASURED[name]) if name in MEASURED else UNMEASURED,
            )
            for name in RESOURCES
            if name in amounts
        ]
        shares = [row["reserved"] * 1000 // row["total"] for row in rows if row["total"]]
        return {
            "id": cnm.id,
            "state": cnm.state.value,
            "takes_none": why_not(cnm) or None,
            "instances": len(node.holds) if node is not None else 0,
            "fullest_permille": max(shares, default=None),
            "resources": rows,
        }

    @staticmethod
    def _used(cnm: Cnm, name: str) -> int | str:
        """What a module was last measured to use, or why that is not known."""
        if cnm.telemetry is None:
            return "no report yet"
        value = cnm.telemetry.reading(name)
        return "the module can't read it" if value is None else value

    def _used_by_card(self, name: str) -> int | str:
        seen = [self._used(cnm, name) for cnm in self._inventory if cnm.capabilities is not None]
        known = [value for value in seen if isinstance(value, int)]
        return sum(known) if known else "no report yet"

    def _components(self) -> list[dict[str, Any]]:
        """What the instances of each component use and have, those that use most first."""
        found: dict[tuple[str, str], dict[str, Any]] = {}
        for cnm in self._inventory:
            node = self._placer.state.nodes.get(cnm.id)
            for instance, hold in node.holds.items() if node is not None else ():
                workload, name, _index = instance.rsplit("/", 2)
                row = found.setdefault(
                    (workload, name),
                    {
                        "workload": workload,
                        "component": name,
                        "instances": 0,
                        "cpu_milli": 0,
                        "memory_bytes": 0,
                        "reserved_cpu_milli": 0,
                        "reserved_memory_bytes": 0,
                    },
                )
                usage = cnm.usage.get(instance)
                row["instances"] += 1
                row["cpu_milli"] += self._monitor.cpu_milli(cnm, instance)
                row["memory_bytes"] += (usage.reading("memory_bytes") or 0) if usage else 0
                row["reserved_cpu_milli"] += hold.demand.cpu_milli
                row["reserved_memory_bytes"] += hold.demand.memory_bytes
        return sorted(
            found.values(),
            key=lambda r: (-r["cpu_milli"], -r["memory_bytes"], r["workload"], r["component"]),
        )

    # --- heatmap ---

    def history(self, since_ms: int, cursor: int, newest: int | None) -> dict[str, Any]:
        """A page of modules; a caller that gives the first page's `newest` gets equal columns."""
        keeper = self._keeper
        level = keeper.level_for(since_ms)
        shape = LEVELS[level]
        last = keeper.history.newest(level)
        end = last if newest is None else min(newest, last)
        count = min(max(1, -(-since_ms // shape.step_ms)), shape.steps)
        names = sorted(cnm.id for cnm in self._inventory)
        page = names[cursor : cursor + PAGE_CNMS]
        age_ms = keeper.end_age_ms(level, end)
        return {
            "step_ms": shape.step_ms,
            "columns": count,
            "newest": end,
            "newest_at": iso_ms(self._wall_ns() - age_ms * 1_000_000),
            "series": list(SERIES),
            "cnms": [
                {"id": name, "permille": keeper.history.read(name, level, end - count + 1, count)}
                for name in page
            ],
            "next": cursor + len(page) if cursor + len(page) < len(names) else None,
        }
