"""The two ways to find the least key: compiled, over flat arrays, or in Python, over the books."""

from array import array
from collections.abc import Mapping, Sequence
from typing import Protocol

from firmware.allocator.score import first_pool, is_strained, matches, measured, weigh
from firmware.allocator.state import AllocatorState, Node
from firmware.allocator.types import DIMENSIONS, NOTHING, WHOLE_MILLI, Demand
from firmware.allocator.units import PoolKey, UnitShortage, choose_units
from hal.native_placement import NativeMask, NativeStruct, best

_WIDTH = len(DIMENSIONS)
_Key = tuple[int, int, int, int]


class Row:
    """What is known of one kind of request."""

    def __init__(self, demand: Demand) -> None:
        self.demand = demand


class Scan(Protocol):
    """Slots are positions in the order of ids."""

    def __init__(
        self, state: AllocatorState, ids: Sequence[str], pools: Mapping[PoolKey, int]
    ) -> None: ...

    def write(self, slot: int, node: Node) -> None:
        """This CNM has changed."""
        ...

    def set_tables(self, state: AllocatorState) -> None:
        """The mix has changed, and with it all keys."""
        ...

    def make_row(self, demand: Demand, hinted: bool) -> Row:
        """A row in which nothing is known yet."""
        ...

    def best(
        self,
        state: AllocatorState,
        row: Row,
        allowed: "array[int]",
        price: "array[int] | None",
    ) -> int:
        """The first slot with the least key among the allowed; -1 where none fits."""
        ...


class _PureRow(Row):
    def __init__(self, demand: Demand, slots: int) -> None:
        super().__init__(demand)
        self.versions = [0] * slots
        self.keys: list[_Key | None] = [None] * slots
        self.pools = [0] * slots


class PureScan:
    """In Python."""

    def __init__(
        self, state: AllocatorState, ids: Sequence[str], pools: Mapping[PoolKey, int]
    ) -> None:
        del state
        self._ids, self._pools = ids, pools
        self._versions = [1] * len(ids)

    def write(self, slot: int, node: Node) -> None:
        del node
        self._versions[slot] += 1

    def set_tables(self, state: AllocatorState) -> None:
        del state
        self._versions = [version + 1 for version in self._versions]

    def make_row(self, demand: Demand, hinted: bool) -> Row:
        del hinted
        return _PureRow(demand, len(self._ids))

    def best(
        self,
        state: AllocatorState,
        row: Row,
        allowed: "array[int]",
        price: "array[int] | None",
    ) -> int:
        assert isinstance(row, _PureRow)
        least: _Key | None = None
        found = -1
        for slot, version in enumerate(self._versions):
            if row.versions[slot] != version:
                self._refresh(state, row, slot)
                row.versions[slot] = version
            key = row.keys[slot]
            if key is None or not allowed[slot]:
                continue
            if price is not None:
                key = (key[0], key[1], key[2] + price[row.pools[slot]], key[3])
            if least is None or key < least:
                least, found = key, slot
        return found

    def _refresh(self, state: AllocatorState, row: _PureRow, slot: int) -> None:
        node, demand = state.nodes[self._ids[slot]], row.demand
        row.keys[slot] = None
        for want, left in zip(demand.vector, node.free, strict=True):
            if want > left and want > 0:
                return
        try:
            units = choose_units(node.free_milli, node.scopes, demand.accelerators)
        except UnitShortage:
            return
        hot, waste, cost, fill = weigh(state, node, demand, units)
        row.keys[slot] = hot, waste, cost, -fill
        pool = first_pool(node, demand)
        row.pools[slot] = self._pools[pool] if pool is not None else 0


class _NativeRow(Row):
    def __init__(self, demand: Demand, slots: int, hinted: bool, match: "array[int]") -> None:
        super().__init__(demand)
        wanted = demand.accelerators[0] if demand.accelerators else None
        self.struct = NativeStruct(
            "apf_request",
            {
                "match": match,
                "keys": array("q", bytes(8 * slots)),
                "version": array("i", bytes(4 * slots)),
                "pool": array("h", bytes(2 * slots)),
            },
        )
        self.struct.put_want(demand.vector)
        self.struct.put(
            count=wanted.count if wanted else 0,
            milli=wanted.milli if wanted else 0,
            expected_cpu=demand.expected_cpu_milli,
            expected_memory=demand.expected_memory_bytes,
            hinted=int(hinted),
        )


class NativeScan:
    """Compiled; the books are mirrored in flat arrays."""

    def __init__(
        self, state: AllocatorState, ids: Sequence[str], pools: Mapping[PoolKey, int]
    ) -> None:
        self._slots, self._pools = len(ids), pools
        self._total = array("q", bytes(8 * _WIDTH * self._slots))
        self._used = array("q", self._total)
        self._cpu = array("q", bytes(8 * self._slots))
        self._memory = array("q", self._cpu)
        self._strained = array("b", bytes(self._slots))
        self._version = array("i", bytes(4 * self._slots))
        segment_start, segment_pool, segment_unit = array("q", [0]), array("q"), array("q", [0])
        self._first_unit: list[int] = []
        self._order: list[tuple[PoolKey, ...]] = []
        for cnm in ids:
            keys = tuple(sorted(state.nodes[cnm].free_milli))
            self._order.append(keys)
            self._first_unit.append(segment_unit[-1])
            for key in keys:
                segment_pool.append(pools[key])
                segment_unit.append(segment_unit[-1] + len(state.nodes[cnm].free_milli[key]))
            segment_start.append(len(segment_pool))
        self._units = array("q", bytes(8 * (segment_unit[-1] + 1)))
        segment_pool.append(0)
        self._nodes = NativeStruct(
            "apf_nodes",
            {
                "total": self._total,
                "used": self._used,
                "measured_cpu": self._cpu,
                "measured_memory": self._memory,
                "strained": self._strained,
                "segment_start": segment_start,
                "segment_pool": segment_pool,
                "segment_unit": segment_unit,
                "units": self._units,
                "version": self._version,
                "base": array("q", bytes(8 * self._slots)),
                "base_version": array("i", bytes(4 * self._slots)),
            },
        )
        self._nodes.put(nodes=self._slots)
        for slot, cnm in enumerate(ids):
            self.write(slot, state.nodes[cnm])
        self.set_tables(state)

    def write(self, slot: int, node: Node) -> None:
        at = slot * _WIDTH
        self._total[at : at + _WIDTH] = array("q", node.total)
        self._used[at : at + _WIDTH] = array("q", node.used)
        self._cpu[slot], self._memory[slot] = measured(node)
        self._strained[slot] = is_strained(node)
        unit = self._first_unit[slot]
        for key in self._order[slot]:
            for left in node.free_milli[key]:
                self._units[unit] = left
                unit += 1
        self._version[slot] += 1

    def set_tables(self, state: AllocatorState) -> None:
        starts, remains, cpu, most = array("q", [0]), array("q"), array("q"), array("q")
        vectors, counts, millis, weights = array("q"), array("q"), array("q"), array("q")
        for key in self._pools:
            table = state.tables.of(key)
            for vector in table.vectors:
                vectors.extend(vector)
            most.extend(max(column) for column in zip(*table.vectors, NOTHING, strict=True))
            counts.extend(table.counts)
            millis.extend(table.millis)
            weights.extend(table.weights)
            starts.append(len(counts))
            cpu.append(table.cpu_by_unit_milli)
            remains.extend(table.remains)
        remains.extend([0] * (WHOLE_MILLI + 1))  # so that no array is empty
        for values in (vectors, counts, millis, weights, cpu, most):
            values.append(0)
        self._tables = NativeStruct(
            "apf_tables",
            {
                "class_start": starts,
                "vectors": vectors,
                "counts": counts,
                "millis": millis,
                "weights": weights,
                "most": most,
                "cpu_by_unit": cpu,
                "remains": remains,
            },
        )
        for slot in range(self._slots):
            self._version[slot] += 1

    def make_row(self, demand: Demand, hinted: bool) -> Row:
        wanted = demand.accelerators[0] if demand.accelerators else None
        match = array("b", [int(wanted is not None and matches(wanted, k)) for k in self._pools])
        match.append(0)
        return _NativeRow(demand, self._slots, hinted, match)

    def best(
        self,
        state: AllocatorState,
        row: Row,
        allowed: "array[int]",
        price: "array[int] | None",
    ) -> int:
        del state
        assert isinstance(row, _NativeRow)
        prices = NativeMask(price) if price is not None else None
        return best(self._nodes, self._tables, row.struct, NativeMask(allowed), prices)
