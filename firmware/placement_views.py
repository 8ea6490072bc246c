"""What is shown of the allocator: `explain`, `plan`, `top` and `heatmap` (firmware.placement_rows
has the rows). Reads only."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from firmware.allocator.score import CRITERIA
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
from firmware.placer import Placer, why_not
from firmware.planning import Choice, Planned, explain_choice
from firmware.workload import Component

MEASURED: Final[Mapping[str, str]] = {  # resource -> what telemetry calls its use
    "cpu": "cpu_milli",
    "memory": "memory_bytes",
    "nvme": "nvme_bytes",
}
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
        wall_ns: Callable[[], int],
    ) -> None:
        """`pending`: the instances that wait for room."""
        self._inventory = inventory
        self._decisions = decisions
        self._placer = placer
        self._monitor = monitor
        self._keeper = keeper
        self._pending = pending
        self._wall_ns = wall_ns

    # --- explain ---

    def explain(self, instance: str, component: Component) -> dict[str, Any]:
        """Where it is, or why it waits: the question of its placement, asked anew on the books
        as they are now without it. An instance that has ended asks nothing."""
        assignment = self._decisions.assignments.get(instance)
        workload = instance.split("/", 1)[0]
        ended = assignment.ending.text if assignment and assignment.ending else None
        place = assignment.place if assignment else None
        target = assignment.target if assignment else None
        here = place.cnm if place else None
        choice = explain_choice(self._placer, workload, component, instance)
        found = choice.explanation
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
            "cnms": self._verdicts(choice, here),
        }

    def _verdicts(self, choice: Choice, here: str | None) -> list[dict[str, Any]]:
        rows = [verdict_row(v, here, choice.pins) for v in choice.explanation.verdicts]
        known = {row["id"] for row in rows}
        silent = [cnm for cnm in self._inventory if cnm.id not in known]
        return rows + [silent_row(cnm, here) for cnm in silent]

    # --- plan ---

    def planned(self, found: Sequence[Planned]) -> list[dict[str, Any]]:
        """A row an instance, in the order of placement; `cnms` explains those that go nowhere."""
        return [
            {
                "instance": item.instance,
                "component": item.component,
                "cnm": item.cnm,
                "demand": demand_row(item.demand) if item.demand is not None else None,
                "pending": dict(item.reasons),
                "cnms": self._verdicts(item.why, None) if item.why is not None else [],
            }
            for item in found
        ]

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
