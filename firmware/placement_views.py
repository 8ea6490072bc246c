"""What is shown of the allocator: `explain`, `plan`, `top` and `heatmap`, one fixed schema each.

Amounts come with their unit: `milli` thousandths of a core or of an accelerator, `bytes`, `mbit`
Mbit/s, `slots`. What can't be read is null beside "<key>_error" (INTERFACES.md, "JSON").
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Final

from firmware.allocator import Constraints, Demand
from firmware.allocator.explain import Explanation, Verdict, explain
from firmware.allocator.score import CRITERIA
from firmware.allocator.types import DIMENSIONS
from firmware.decisions import Decisions
from firmware.events import iso_ms
from firmware.history import LEVELS, SERIES, HistoryKeeper
from firmware.inventory import Cnm, Inventory
from firmware.monitor import Monitor
from firmware.occupancy import RESOURCES, Amounts, Shape, occupancy
from firmware.placer import Placer, why_not
from firmware.planning import Planned
from firmware.workload import Component

UNITS: Final[Mapping[str, str]] = {
    "cpu": "milli",
    "memory": "bytes",
    "nvme": "bytes",
    "link": "mbit",
    "nvme_bandwidth": "mbit",
    "windows": "slots",
    "accelerators": "milli",
}
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
        found, demand, pins = self._answer(instance, workload, component, here)
        shown = self._verdicts(found, here, pins)
        return {
            "instance": instance,
            "workload": workload,
            "component": component.name,
            "cnm": here,
            "target": target.cnm if target else None,
            "ended": ended,
            "waits": here is None and ended is None,
            "pinned_to": sorted(pins),
            "demand": demand_row(demand),
            "best": found.best,
            "runner_up": found.runner_up,
            "decided_by": found.decided_by,
            "criteria": list(CRITERIA),
            "cnms": shown,
        }

    def _answer(
        self, instance: str, workload: str, component: Component, here: str | None
    ) -> tuple[Explanation, Demand, frozenset[str]]:
        books = self._placer.state
        needs, pins = self._placer.questions(workload, component, instance)
        hold = books.hold_of(instance, here)
        if hold is not None:  # what it has is what was asked for then
            books = books.without(instance)
            needs = [(hold.demand, hold.constraints)]
        answer: Explanation | None = None
        asked = needs[-1][0]
        for demand, constraints in needs:
            answer = explain(books, demand, self._pinned(constraints, pins))
            if answer.best is not None:
                asked = demand
                break
        assert answer is not None
        return answer, asked, pins

    def _pinned(self, constraints: Constraints, pins: frozenset[str]) -> Constraints:
        if not pins:
            return constraints
        others = frozenset(self._placer.state.nodes) - pins
        return replace(constraints, exclude=constraints.exclude | others)

    def _verdicts(
        self, found: Explanation, here: str | None, pins: frozenset[str]
    ) -> list[dict[str, Any]]:
        rows = [self._verdict(v, here, pins) for v in found.verdicts]
        known = {row["id"] for row in rows}
        silent = [cnm for cnm in self._inventory if cnm.id not in known]
        return rows + [silent_row(cnm, here) for cnm in silent]

    def _verdict(self, one: Verdict, here: str | None, pins: frozenset[str]) -> dict[str, Any]:
        reason, remedies = one.reason, [asdict(remedy) for remedy in one.remedies]
        if pins and one.cnm not in pins:
            reason = "its volume is in use on " + ", ".join(sorted(pins))
            for remedy in remedies:
                if remedy["kind"] == "exclude":
                    remedy.update(kind="volume", text=f"its volume on {one.cnm}")
        return {
            "id": one.cnm,
            "here": one.cnm == here,
            "fits": one.fits,
            "rank": one.rank,
            "reason": reason,
            "criteria": dict(zip(CRITERIA, one.criteria, strict=False)),
            "resources": [
                {
                    "resource": line.resource,
                    "unit": UNITS[line.resource],
                    "want": line.want,
                    "free": line.free,
                    "total": line.total,
                    "short": line.short,
                }
                for line in one.resources
            ],
            "accelerators": [asdict(line) for line in one.accelerators],
            "remedies": remedies,
            "releases": list(one.releases),
        }

    # --- plan ---

    @staticmethod
    def planned(found: Sequence[Planned]) -> list[dict[str, Any]]:
        """A row an instance, in the order of placement."""
        return [
            {
                "instance": item.instance,
                "component": item.component,
                "cnm": item.cnm,
                "demand": demand_row(item.demand) if item.demand is not None else None,
                "pending": dict(item.reasons),
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
                amounts_row(name, found.card[name], used.get(name, _UNMEASURED))
                for name in RESOURCES
            ],
            "cnms_known": len(rows),
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
                self._used(cnm, MEASURED[name]) if name in MEASURED else _UNMEASURED,
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


_UNMEASURED: Final = "not measured"


def silent_row(cnm: Cnm, here: str | None) -> dict[str, Any]:
    """A module that has not yet said what it has: no numbers."""
    return {
        "id": cnm.id,
        "here": cnm.id == here,
        "fits": False,
        "rank": None,
        "reason": why_not(cnm) or "it has not said what it is",
        "criteria": {},
        "resources": [],
        "accelerators": [],
        "remedies": [],
        "releases": [],
    }


def demand_row(demand: Demand) -> dict[str, Any]:
    """What an instance reserves, each resource by its name, and the accelerators."""
    return {
        "resources": [
            {"resource": name, "unit": UNITS[name], "want": want}
            for name, want in zip(DIMENSIONS, demand.vector, strict=True)
        ],
        "accelerators": [asdict(item) for item in demand.accelerators],
    }


def shape_row(shape: Shape) -> dict[str, Any]:
    """One demand of the mix, and how many instances have it."""
    return {
        "instances": shape.count,
        "resources": [
            {"resource": name, "unit": UNITS[name], "want": want}
            for name, want in zip(RESOURCES, shape.wants, strict=True)
        ],
    }


def amounts_row(name: str, amounts: Amounts, used: int | str) -> dict[str, Any]:
    """One resource; `used` in words is why it is not known."""
    row: dict[str, Any] = {
        "resource": name,
        "unit": UNITS[name],
        "total": amounts.total,
        "reserved": amounts.reserved,
        "used": used if isinstance(used, int) else None,
        "free": amounts.free,
        "largest_free": amounts.largest_free,
        "stranded": amounts.stranded,
        "fragmented_permille": amounts.fragmented_permille,
    }
    if isinstance(used, str):
        row["used_error"] = used
    if row["fragmented_permille"] is None:
        row["fragmented_permille_error"] = "nothing of it is free, or nobody wants it"
    return row
