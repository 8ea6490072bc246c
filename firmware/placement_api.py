"""What the control socket offers of the allocator: reading only, for all who may open it."""

from collections.abc import Callable, Generator
from typing import Any, Final, TypeVar

from firmware.card import Card
from firmware.placement_views import PlacementViews
from firmware.planning import PLANS_LIMIT, Planned
from firmware.reconciler import split_name
from firmware.rpc import Call, Deferred, MethodTable, Role, busy, refused
from firmware.workload import HOST_IMAGE, Component, Workload

EXPLAINED_AT_ONCE: Final = 4  # each has a copy of the books
STEPS_A_TURN: Final = 4
ROWS_LIMIT: Final = 4096
SINCE_LIMIT_MS: Final = 86_400_000

T = TypeVar("T")


class PlacementApi:
    """instance.explain, workload.plan, card.top, card.history."""

    def __init__(self, card: Card) -> None:
        self._card = card
        self._explaining = 0  # under way

    def register(self, table: MethodTable) -> None:
        table.add("instance.explain", Role.READ, self._explain)
        table.add("workload.plan", Role.READ, self._plan)
        table.add("card.top", Role.READ, self._top)
        table.add("card.history", Role.READ, self._history)

    @property
    def _views(self) -> PlacementViews:
        return self._card.placement_views

    def _explain(self, call: Call) -> object:
        name = call.params.text("instance")
        call.params.done()
        component = self._component(name)
        if component is None:
            raise refused("unknown_instance", f"no instance {name!r} is wanted; see apf ps")
        if self._explaining >= EXPLAINED_AT_ONCE:
            text = f"{EXPLAINED_AT_ONCE} explanations are being made already; try again"
            raise busy("too_many_explanations", text)
        answer = Deferred()
        self._in_turns(self._explained(name, component), answer.complete)
        return answer

    def _explained(
        self, instance: str, component: Component
    ) -> Generator[None, None, dict[str, Any]]:
        self._explaining += 1
        try:
            return (yield from self._views.explain(instance, component))
        finally:
            self._explaining -= 1

    def _in_turns(self, steps: Generator[None, None, T], done: Callable[[T], None]) -> None:
        """A thousand modules take 80 ms: heartbeats have their turns in between."""
        try:
            for _ in range(STEPS_A_TURN):
                next(steps)
        except StopIteration as stop:
            done(stop.value)
            return
        self._card.loop.post(lambda: self._in_turns(steps, done))

    def _component(self, instance: str) -> Component | None:
        workload, name, index = split_name(instance)
        record = self._card.decisions.workloads.get(workload)
        component = record.workload.component(name) if record else None
        return component if component is not None and index < component.replicas else None

    def _plan(self, call: Call) -> object:
        document = call.params.rest().get("workload")
        workload = Workload.from_json(document)
        answer = Deferred()

        def told(rows: list[dict[str, Any]]) -> None:
            answer.complete(
                {
                    "name": workload.name,
                    "fits": all(row["cnm"] is not None for row in rows),
                    "instances": rows,
                    "refusals": self._refusals(workload),
                }
            )

        def done(found: list[Planned]) -> None:
            self._in_turns(self._views.planned(found), told)

        if not self._card.planner.plan(workload, done):
            raise busy("too_many_plans", f"{PLANS_LIMIT} plans are being made already; try again")
        return answer

    def _refusals(self, workload: Workload) -> list[dict[str, Any]]:
        """What a submit would be refused for, besides room that others have."""
        found: list[dict[str, Any]] = []
        if workload.name in self._card.decisions.workloads:
            text = f"a workload named {workload.name!r} is there already"
            found.append({"code": "name_taken", "text": text})
        for component in workload.components:
            image = component.image
            if image != HOST_IMAGE and self._card.images.resolve(image) is None:
                text = f"{component.name}: image {image} is not on this card"
                found.append({"code": "image_missing", "text": text})
        for name, reasons in self._card.placer.hopeless(workload).items():
            whys = "; ".join(f"{cnm}: {why}" for cnm, why in sorted(reasons.items()))
            text = f"no module of this card can ever hold {workload.name}/{name}: {whys}"
            found.append({"code": "never_fits", "text": text})
        return found

    def _top(self, call: Call) -> object:
        cnms = call.params.integer("cnms", ROWS_LIMIT, high=ROWS_LIMIT)
        components = call.params.integer("components", 20, high=ROWS_LIMIT)
        call.params.done()
        return self._views.top(cnms, components)

    def _history(self, call: Call) -> object:
        since_ms = call.params.integer("since_ms", low=1, high=SINCE_LIMIT_MS)
        cursor = call.params.integer("cursor", 0, high=ROWS_LIMIT)
        newest = call.params.integer("newest", -1, low=-1, high=1 << 62)
        call.params.done()
        return self._views.history(since_ms, cursor, None if newest < 0 else newest)
