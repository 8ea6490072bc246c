"""What `place` keeps between questions: for each kind of request one key per CNM, made anew only
for the CNMs that have changed since, and the least key wins.

Everything here is derived from an `AllocatorState`: dropping it changes no answer. The scan is in
`hal.native_placement` where that is built; else it is done in Python, with identical answers.
CNMs have slots in the order of their ids, so the first of equal keys is the least id.
"""

from array import array
from typing import Final

from firmware.allocator import scan
from firmware.allocator.filter import homes_of
from firmware.allocator.score import is_hinted, prices_of
from firmware.allocator.state import AllocatorState
from firmware.allocator.types import Constraints, Demand
from firmware.allocator.units import PoolKey
from hal import native_placement

ROWS_KEPT: Final = 256  # kinds of requests, the last used
MASKS_KEPT: Final = 64

_Trait = tuple[str | None, frozenset[str], tuple[tuple[str, str], ...]]


def index_of(state: AllocatorState, *, pure: bool = False) -> "Index":
    """The index of these books, up to date."""
    index = state.cache
    if index is None or index.layout != state.layout or index.pure < pure:
        index = state.cache = Index(state, pure=pure)
    index.sync(state)
    return index


def is_simple(state: AllocatorState, demand: Demand, constraints: Constraints) -> bool:
    """Whether the index can answer: one demand for accelerators at most, nobody to join."""
    return (
        len(demand.accelerators) <= 1
        and not constraints.companions
        and not (constraints.workload and homes_of(state, constraints))
    )


class Index:
    """Of one state. `pure` is for tests and hosts without the compiled scan."""

    def __init__(self, state: AllocatorState, *, pure: bool = False) -> None:
        self.layout = state.layout
        self.ids = sorted(state.nodes)
        self.slots = {cnm: slot for slot, cnm in enumerate(self.ids)}
        self.pools: dict[PoolKey, int] = {
            key: number
            for number, key in enumerate(
                sorted({key for node in state.nodes.values() for key in node.free_milli})
            )
        }
        most = max(
            (sum(map(len, node.free_milli.values())) for node in state.nodes.values()), default=0
        )
        self.pure = pure
        native = not pure and native_placement.AVAILABLE and most <= native_placement.MOST_UNITS
        kind = scan.NativeScan if native else scan.PureScan
        self._scan: scan.Scan = kind(state, self.ids, self.pools)
        self._revision = state.tables.revision
        self._eligibility = state.eligibility
        self._masks: dict[_Trait, array[int]] = {}
        self._rows: dict[tuple[object, ...], scan.Row] = {}
        state.touched.clear()

    def sync(self, state: AllocatorState) -> None:
        """Take over what has changed."""
        if state.tables.revision != self._revision:
            self._revision = state.tables.revision
            self._scan.set_tables(state)
        if state.touched:
            for cnm in state.touched:
                slot = self.slots.get(cnm)
                if slot is not None:
                    self._scan.write(slot, state.nodes[cnm])
            state.touched.clear()
        if state.eligibility != self._eligibility:
            self._eligibility = state.eligibility
            self._masks.clear()

    def best(self, state: AllocatorState, demand: Demand, constraints: Constraints) -> str | None:
        """The CNM that the criteria choose; None where none will do. `is_simple` must hold."""
        if not self.ids:
            return None
        row = self._row(demand)
        prices = prices_of(state, demand)
        price: array[int] | None = None
        if prices:
            price = array("q", [prices.get(key, 0) for key in self.pools])
        allowed = self._allowed(state, constraints)
        counts: dict[int, int] = {}
        if constraints.spread or constraints.max_per_cnm:
            for cnm, other in state.members(constraints.workload):
                if other.component == constraints.component:
                    slot = self.slots[cnm]
                    counts[slot] = counts.get(slot, 0) + 1
        if constraints.max_per_cnm and counts:
            allowed = array("b", allowed)
            for slot, count in counts.items():
                if count >= constraints.max_per_cnm:
                    allowed[slot] = 0
        if not constraints.spread or not counts:
            return self._id(self._scan.best(state, row, allowed, price))
        for level in sorted({0, *counts.values()}):
            among = array("b", allowed)
            if level:
                among = array("b", bytes(len(allowed)))
            for slot, count in counts.items():
                among[slot] = allowed[slot] if count == level else 0
            found = self._scan.best(state, row, among, price)
            if found >= 0:
                return self._id(found)
        return None

    def _id(self, slot: int) -> str | None:
        return self.ids[slot] if slot >= 0 else None

    def _row(self, demand: Demand) -> scan.Row:
        wanted = demand.accelerators[0] if demand.accelerators else None
        key = (demand.vector, wanted, demand.hint_cpu_milli, demand.hint_memory_bytes)
        row = self._rows.pop(key, None)
        if row is None:
            if len(self._rows) >= ROWS_KEPT:
                del self._rows[next(iter(self._rows))]  # the one that was used longest ago
            row = self._scan.make_row(demand, is_hinted(demand))
        self._rows[key] = row
        return row

    def _allowed(self, state: AllocatorState, constraints: Constraints) -> "array[int]":
        """One byte per slot. The caller must not write to it."""
        trait = (constraints.arch, constraints.runtimes, constraints.labels)
        mask = self._masks.get(trait)
        if mask is None:
            if len(self._masks) >= MASKS_KEPT:
                self._masks.clear()
            mask = self._masks[trait] = self._make_mask(state, constraints)
        if constraints.exclude:
            mask = array("b", mask)
            for cnm in constraints.exclude:
                slot = self.slots.get(cnm)
                if slot is not None:
                    mask[slot] = 0
        return mask

    def _make_mask(self, state: AllocatorState, constraints: Constraints) -> "array[int]":
        arch, runtimes, labels = constraints.arch, constraints.runtimes, constraints.labels
        views = [state.nodes[cnm].view for cnm in self.ids]
        return array(
            "b",
            [
                not (
                    view.why_not
                    or (arch is not None and arch != view.arch)
                    or (runtimes and runtimes.isdisjoint(view.runtimes))
                    or any(view.labels.get(key) != value for key, value in labels)
                )
                for view in views
            ],
        )
