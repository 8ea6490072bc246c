"""Carries out one chain of planned moves, one after the other, each as `migrate_component` does it.

Before each move the rest of the chain is checked against the books as they are then; what no longer
holds is given up, and planned anew by whoever wants to. No more moves in an hour than the board
allows, drains and moves that people ask for not counted.
"""

from collections import deque
from collections.abc import Callable
from typing import Final

from firmware.allocator import AllocatorState
from firmware.allocator.plan_check import objection
from firmware.allocator.plan_types import Chain, Move
from firmware.decisions import Decisions
from firmware.loop import MS, Loop
from firmware.migration import Migration

HOUR_NS: Final = 3_600_000 * MS


class ChainRunner:
    """Loop thread only. One chain at a time on the whole card."""

    def __init__(
        self,
        loop: Loop,
        state: AllocatorState,
        decisions: Decisions,
        migration: Migration,
        moves_per_hour: int,
    ) -> None:
        self._loop = loop
        self._state = state
        self._decisions = decisions
        self._migration = migration
        self._per_hour = moves_per_hour
        self._spent: deque[int] = deque()  # when; at most `moves_per_hour`
        self._chain: Chain | None = None
        self._rest: list[Move] = []  # not begun
        self._moving = ""  # the instance of the move that was begun
        self._moved: Callable[[str], None] = lambda instance: None
        migration.on_end = self._on_end

    def left(self) -> int:
        """Moves that may still be made in this hour."""
        since_ns = self._loop.now_ns() - HOUR_NS
        while self._spent and self._spent[0] <= since_ns:
            self._spent.popleft()
        return self._per_hour - len(self._spent)

    def spend(self) -> None:
        """A move was decided."""
        self._spent.append(self._loop.now_ns())

    @property
    def busy(self) -> bool:
        """A chain is under way. One whose instance was removed or lost meanwhile is over."""
        if self._moving and not self._is_moving(self._moving):
            self._drop()
        return self._chain is not None

    def run(self, chain: Chain, moved: Callable[[str], None]) -> bool:
        """Begin; `moved(instance)` when a move is decided. False when it can't be."""
        if self.busy or len(chain.moves) > self.left():
            return False
        if objection(self._state, chain.moves):
            return False
        self._chain, self._rest, self._moved = chain, list(chain.moves), moved
        self._next()
        return True

    def _next(self) -> None:
        chain = self._chain
        if chain is None or not self._rest or objection(self._state, self._rest):
            self._drop()
            return
        move = self._rest.pop(0)
        self._moving = move.instance

        def decided(error: str) -> None:
            if self._chain is not chain or self._moving != move.instance:
                return  # dropped meanwhile
            if error:
                self._drop()
            else:
                self.spend()
                self._moved(move.instance)

        self._migration.migrate_component(
            move.instance,
            move.target,
            chain.why,
            decided,
            data={
                "gain": chain.gain,
                "cost_bytes": chain.weight.bytes,
                "downtime": chain.weight.downtime.name.lower(),
                "chain": [f"{m.instance}: {m.source} -> {m.target}" for m in chain.moves],
            },
        )

    def _on_end(self, instance: str, good: bool) -> None:
        """A move has ended: flipped, or taken back."""
        if instance != self._moving or self._chain is None:
            return
        self._moving = ""
        if good:
            self._next()
        else:
            self._drop()

    def _drop(self) -> None:
        self._chain, self._rest, self._moving = None, [], ""

    def _is_moving(self, instance: str) -> bool:
        assignment = self._decisions.assignments.get(instance)
        if instance in self._decisions.pending:
            return True
        return assignment is not None and assignment.target is not None
