"""Why here, why not there, and what would make it fit: `place`, in numbers. Changes nothing.

The verdicts, their words and the order of the candidates are those of the filter and the score
themselves; only the numbers and the remedies are worked out here. A property test holds the two
together: the verdict is `place`'s, and each CNM's remedies, applied together, make it a candidate.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, cast

from firmware.allocator.filter import homes_of, objections, objections_on
from firmware.allocator.score import CRITERIA, criteria
from firmware.allocator.state import AllocatorState, Hold, Node
from firmware.allocator.types import (
    DIMENSIONS,
    WHOLE_MILLI,
    AcceleratorDemand,
    Constraints,
    Demand,
)
from firmware.allocator.units import UnitShortage, choose_units
from firmware.allocator.words import amount_text

RELEASES_SHOWN: Final = 3  # of one CNM, the smallest first
RELEASES_TRIED: Final = 64  # in one explanation: each is tried on books of its own
CNMS_A_STEP: Final = 32  # about 2 ms


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceLine:
    """One resource of one CNM. `want` counts the components that it must be together with and
    that are still to come; `free` is below 0 where more was adopted than there is."""

    resource: str
    want: int
    free: int
    total: int

    @property
    def short(self) -> int:
        return max(0, self.want - self.free) if self.want > 0 else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceleratorLine:
    """One demand for units: `free` of `total` of that kind and model have `milli` left."""

    kind: str
    model: str | None
    milli: int
    want: int
    free: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedy:
    """One thing that must change. `amount` is in the resource's own unit, or units of an
    accelerator; 0 where it is no matter of amounts."""

    kind: str  # resource, accelerator, label, arch, runtime, max_per_cnm, together, exclude, state
    key: str
    amount: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One CNM."""

    cnm: str
    reason: str  # "" when it is a candidate
    resources: tuple[ResourceLine, ...]
    accelerators: tuple[AcceleratorLine, ...]
    rank: int | None  # from 1, among the candidates
    criteria: tuple[int, ...]  # named by CRITERIA, less is better; () when it is no candidate
    remedies: tuple[Remedy, ...]  # all of them together
    releases: tuple[str, ...]  # instances; to release any one of them is enough

    @property
    def fits(self) -> bool:
        return not self.reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What `place` answers, and why. `decided_by` is the first criterion in which the best differs
    from the runner-up, "id" when none does, "" when there is no runner-up."""

    best: str | None
    runner_up: str | None
    decided_by: str
    verdicts: tuple[Verdict, ...]  # candidates by rank, then the others by id

    def verdict(self, cnm: str) -> Verdict | None:
        return next((v for v in self.verdicts if v.cnm == cnm), None)


def explain(state: AllocatorState, demand: Demand, constraints: Constraints) -> Explanation:
    """The whole answer to one question."""
    steps = explain_steps(state, demand, constraints)
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            return cast("Explanation", stop.value)


def explain_steps(
    state: AllocatorState, demand: Demand, constraints: Constraints
) -> Generator[None, None, Explanation]:
    """The same in steps of some CNMs each; the books must not change meanwhile."""
    homes = homes_of(state, constraints)
    reasons: dict[str, str] = {}
    scores: dict[str, tuple[int, ...]] = {}
    for index, (cnm, node) in enumerate(sorted(state.nodes.items()), start=1):
        reason = objections_on(node, demand, constraints, homes)
        if reason:
            reasons[cnm] = reason
        else:
            scores[cnm] = criteria(state, cnm, demand, constraints)
        if index % CNMS_A_STEP == 0:
            yield
    ranked = sorted(scores, key=lambda cnm: (scores[cnm], cnm))
    wants = [demand, *(d for name, d in constraints.companions if name not in homes)]
    tries = [RELEASES_TRIED]
    verdicts: list[Verdict] = []
    for place, cnm in enumerate([*ranked, *sorted(reasons)], start=1):
        node = state.nodes[cnm]
        lines, units = _lines(node, wants)
        reason = reasons.get(cnm, "")
        remedies: tuple[Remedy, ...] = ()
        if reason:
            remedies = tuple(_remedies(node, lines, wants, constraints, homes))
        before = tries[0]
        verdicts.append(
            Verdict(
                cnm=cnm,
                reason=reason,
                resources=lines,
                accelerators=units,
                rank=None if reason else place,
                criteria=scores.get(cnm, ()),
                remedies=remedies,
                releases=_releases(state, node, lines, remedies, demand, constraints, tries),
            )
        )
        if place % CNMS_A_STEP == 0 or tries[0] < before:
            yield
    best, runner_up = (*ranked[:2], None, None)[:2]
    decided_by = ""
    if best is not None and runner_up is not None:
        decided_by = _difference(scores[best], scores[runner_up])
    return Explanation(
        best=best, runner_up=runner_up, decided_by=decided_by, verdicts=tuple(verdicts)
    )


def _difference(best: Sequence[int], other: Sequence[int]) -> str:
    for name, mine, its in zip(CRITERIA, best, other, strict=True):
        if mine != its:
            return name
    return "id"


def _lines(
    node: Node, wants: Sequence[Demand]
) -> tuple[tuple[ResourceLine, ...], tuple[AcceleratorLine, ...]]:
    asked = [sum(column) for column in zip(*(d.vector for d in wants), strict=True)]
    resources = tuple(
        ResourceLine(resource=name, want=want, free=free, total=total)
        for name, want, free, total in zip(DIMENSIONS, asked, node.free, node.total, strict=True)
    )
    units = tuple(
        AcceleratorLine(
            kind=a.kind,
            model=a.model,
            milli=a.milli,
            want=a.count,
            free=sum(milli >= a.milli for milli in _units_for(node, a)),
            total=len(_units_for(node, a)),
        )
        for d in wants
        for a in d.accelerators
    )
    return resources, units


def _units_for(node: Node, wanted: AcceleratorDemand) -> list[int]:
    """What is left of each unit that could serve it."""
    return [
        milli
        for (kind, model), units in node.free_milli.items()
        if kind == wanted.kind and wanted.takes(model)
        for milli in units
    ]


# --- what would make it fit ---


def _remedies(
    node: Node,
    lines: Sequence[ResourceLine],
    wants: Sequence[Demand],
    constraints: Constraints,
    homes: Mapping[str, frozenset[str]],
) -> list[Remedy]:
    view = node.view
    found: list[Remedy] = []

    def add(kind: str, key: str, text: str, amount: int = 0) -> None:
        found.append(Remedy(kind=kind, key=key, amount=amount, text=text))

    if view.why_not:
        add("state", view.id, f"{view.id} takes new instances again (now: {view.why_not})")
    if view.id in constraints.exclude:
        add("exclude", view.id, f"{view.id} is not excluded from this choice")
    if constraints.arch is not None and constraints.arch != view.arch:
        add("arch", view.arch, f"arch {view.arch} instead of {constraints.arch}")
    if constraints.runtimes and not constraints.runtimes & view.runtimes:
        words = " or ".join(sorted(constraints.runtimes))
        add("runtime", sorted(constraints.runtimes)[0], f"runtime {words} on {view.id}")
    for key, value in constraints.labels:
        if view.labels.get(key) != value:
            add("label", key, f"label {key}={value} on {view.id}")
    for line in lines:
        if line.short:
            amount = amount_text(line.resource, line.short)
            text = f"{amount} less {line.resource}"
            if line.free <= 0:  # to ask for less would be to ask for nothing
                text = f"{amount} more {line.resource} free on {view.id}"
            add("resource", line.resource, text, line.short)
    found += _more_units(node, [a for d in wants for a in d.accelerators])
    here = node.components.get((constraints.workload, constraints.component), 0)
    if constraints.max_per_cnm and here >= constraints.max_per_cnm:
        add("max_per_cnm", constraints.component, f"max_per_cnm of {here + 1}", here + 1)
    for component, places in sorted(homes.items()):
        if view.id not in places:
            add("together", component, f"{component} on {view.id}")
    return found


def _more_units(node: Node, demands: Sequence[AcceleratorDemand]) -> list[Remedy]:
    """Untouched units that would have to be there too: enough for all demands together, and none
    of them could be left out."""
    pools = [(d.kind, d.model) for d in demands]
    extra: dict[tuple[str, str | None], int] = {}
    for wanted in demands:  # enough in any case: a unit for each that is asked for
        key = (wanted.kind, wanted.model)
        extra[key] = extra.get(key, 0) + wanted.count
    if _suffices(node, demands, {}):
        return []
    for key in sorted(extra, key=lambda k: pools.index(k)):
        while extra[key] and _suffices(node, demands, {**extra, key: extra[key] - 1}):
            extra[key] -= 1
    found: list[Remedy] = []
    for (kind, model), count in extra.items():
        if count:
            name = f"{kind}/{model}" if model else kind
            text = f"{count} more free {name} on {node.view.id}"
            found.append(Remedy(kind="accelerator", key=name, amount=count, text=text))
    return found


def _suffices(
    node: Node,
    demands: Sequence[AcceleratorDemand],
    extra: Mapping[tuple[str, str | None], int],
) -> bool:
    free = {key: list(units) for key, units in node.free_milli.items()}
    for (kind, model), count in extra.items():
        free.setdefault((kind, model or "any"), []).extend([WHOLE_MILLI] * count)
    try:
        choose_units(free, node.scopes, demands)
    except UnitShortage:
        return False
    return True


def _releases(
    state: AllocatorState,
    node: Node,
    lines: Sequence[ResourceLine],
    remedies: Sequence[Remedy],
    demand: Demand,
    constraints: Constraints,
    tries: list[int],
) -> tuple[str, ...]:
    """Instances here of which one release would do, the smallest first."""
    if not remedies or any(
        r.kind not in ("resource", "accelerator", "max_per_cnm") for r in remedies
    ):
        return ()
    short = [line.short for line in lines]
    needs_units = any(r.kind == "accelerator" for r in remedies)

    def may_do(hold: Hold) -> bool:
        enough = all(
            has >= need for has, need in zip(hold.demand.vector, short, strict=True) if need
        )
        return enough and (bool(hold.units) or not needs_units)

    def size(hold: Hold) -> tuple[int, int, int, str]:
        units = sum(unit.milli for unit in hold.units)
        return units, hold.demand.memory_bytes, hold.demand.cpu_milli, hold.instance

    found: list[str] = []
    for hold in sorted(filter(may_do, node.holds.values()), key=size):
        if tries[0] <= 0 or len(found) >= RELEASES_SHOWN:
            break
        tries[0] -= 1
        after = state.without(hold.instance, node.view.id)
        if not objections(after, node.view.id, demand, constraints):
            found.append(hold.instance)
    return tuple(found)
