"""Carries out chains of planned moves, each move as `migrate_component` does it.

The moves of a chain are made one after the other. Before each the rest of the chain is checked
against the books as they are then; what no longer holds is given up, and planned anew by whoever
wants to. Of what the card moves by itself one chain is under way at a time, and there are no more
moves in an hour than the board allows; what people asked for (a drain) is not counted. What is
spent of that is not in the journal: it begins anew with the daemon.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from firmware.allocator import AllocatorState
from firmware.allocator.plan_check import objection
from firmware.allocator.plan_types import Chain, Move, Weight
from firmware.decisions import Decisions
from firmware.loop import MS, Call, Loop
from firmware.migration import Migration

HOUR_NS: Final = 3_600_000 * MS

Moved = Callable[[str], None]
Ended = Callable[[str], None]


@dataclass(slots=True)
class _Run:
    """A chain under way."""

    chain: Chain
    rest: list[Move]  # not begun
    counted: bool
    wanted: Callable[[], bool]
    moved: Moved
    ended: Ended


class ChainRunner:
    """Loop thread only."""

    def __init__(
        self,
        loop: Loop,
        state: AllocatorState,
        decisions: Decisions,
        migration: Migration,
        moves_per_hour: int,
        weigh: Callable[[Chain], Weight] = lambda chain: chain.weight,
    ) -> None:
        """`weigh(chain)`: what it costs, by what is known when it begins."""
        self.on_refill: Callable[[], None] = lambda: None  # moves may be made again
        self._loop = loop
        self._state = state
        self._decisions = decisions
        self._migration = migration
        self._per_hour = moves_per_hour
        self._weigh = weigh
        self._spent: deque[int] = deque()  # when; at most `moves_per_hour`
        self._refill: Call | None = None  # the one timer that waits for the oldest to be over
        self._runs: dict[str, _Run] = {}  # by the instance that is being moved
        migration.on_end = self._on_end

    # --- the budget ---

    def left(self) -> int:
        """Moves that may still be made in this hour."""
        since_ns = self._loop.now_ns() - HOUR_NS
        while self._spent and self._spent[0] <= since_ns:
            self._spent.popleft()
        return self._per_hour - len(self._spent)

    def spend(self) -> None:
        """A move was decided."""
        self._spent.append(self._loop.now_ns())

    def await_refill(self) -> None:
        """`on_refill` when the oldest of the moves of this hour is an hour old. Nothing to wait
        for where none were made: then the board allows none."""
        if self._refill is None and self._spent:
            self._refill = self._loop.call_at(self._spent[0] + HOUR_NS, self._refilled)

    def _refilled(self) -> None:
        self._refill = None
        self.on_refill()

    # --- chains ---

    @property
    def busy(self) -> bool:
        """A chain of the card's own is under way."""
        self.drop_dead()
        return any(run.counted for run in self._runs.values())

    def moving(self, instance: str) -> bool:
        """A chain that is under way moves it now."""
        self.drop_dead()
        return instance in self._runs

    def run(
        self,
        chain: Chain,
        moved: Moved,
        *,
        counted: bool = True,
        wanted: Callable[[], bool] = lambda: True,
        ended: Ended = lambda why: None,
    ) -> bool:
        """Begin; `moved(instance)` when a move is decided, `ended` at last, with "" or why the rest
        was given up, perhaps because it was not `wanted()` any more. False, and neither is called,
        when it can't be begun."""
        if counted and (self.busy or len(chain.moves) > self.left()):
            return False
        if not chain.moves or self._objection(chain.moves):
            return False
        self._next(_Run(chain, list(chain.moves), counted, wanted, moved, ended))
        return True

    def _objection(self, moves: Sequence[Move]) -> str:
        """Why they can't be made now, or ""."""
        taken = [move.instance for move in moves if move.instance in self._runs]
        if taken:
            return f"{taken[0]} is moved by another chain"
        return objection(self._state, moves)

    def _next(self, run: _Run) -> None:
        why = self._objection(run.rest) if run.rest else ""
        if run.rest and not run.wanted():
            why = "what it is for was called off"
        if not run.rest or why:
            run.ended(why)
            return
        move = run.rest.pop(0)
        self._runs[move.instance] = run
        chain = run.chain
        weight = self._weigh(chain)

        def decided(error: str) -> None:
            if self._runs.get(move.instance) is not run:
                return  # dropped meanwhile
            if error:
                del self._runs[move.instance]
                run.ended(error)
                return
            if run.counted:
                self.spend()
            run.moved(move.instance)

        self._migration.migrate_component(
            move.instance,
            move.target,
            chain.why,
            decided,
            data={
                "gain": chain.gain,
                "cost_bytes": weight.bytes,
                "downtime": weight.downtime.name.lower(),
                "chain": [f"{m.instance}: {m.source} -> {m.target}" for m in chain.moves],
            },
        )

    def _on_end(self, instance: str, good: bool) -> None:
        """A move has ended: flipped, or taken back."""
        run = self._runs.pop(instance, None)
        if run is None:
            return
        if good:
            self._next(run)
        else:
            run.ended(f"{instance} could not be moved")

    def drop_dead(self) -> None:
        """Chains whose instance was removed or lost in the middle of its move are over."""
        for instance in [name for name in self._runs if not self._is_moving(name)]:
            run = self._runs.pop(instance, None)
            if run is not None:
                run.ended(f"{instance} is gone")

    def _is_moving(self, instance: str) -> bool:
        assignment = self._decisions.assignments.get(instance)
        if instance in self._decisions.pending:
            return True
        return assignment is not None and assignment.target is not None
