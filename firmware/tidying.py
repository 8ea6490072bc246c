"""Moves ahead of time, at rest only: accelerators that are free but of no use to what is usually
asked for are brought together, so that the next request finds room at once.

A card does this only if its board says so (`tidy_ms`, 0 by default): a move stops a component for
a moment, for requests that may never come, and what does come has room made for it anyway, by
`firmware.room_maker`. Who starts large components often, and can't wait for that, switches it on.

It never disturbs: each `tidy_ms` it looks whether nothing has come, gone or moved since it last
looked, nothing waits, boots, drains or is loaded; then one chain may be carried out, within the
hour's budget, of instances that do not rest and have no data to bring along. A chain must make at
least `LEAST_MILLI` of accelerators useful for each of its moves: planned again on its own result,
nothing moves.
"""

from collections.abc import Callable, Iterator
from typing import Final

from firmware.allocator.plan_pack import TidyPlanner
from firmware.allocator.plan_types import MAX_CHAIN, Rules
from firmware.chain_runner import ChainRunner
from firmware.decisions import Decisions
from firmware.loop import MS, Loop
from firmware.placements import Placements
from firmware.placer import Placer

LEAST_MILLI: Final = 500  # half an accelerator, for each move
STEPS_A_TURN: Final = 4  # of the search


class Tidying:
    """Loop thread only."""

    def __init__(
        self,
        loop: Loop,
        decisions: Decisions,
        placer: Placer,
        placements: Placements,
        runner: ChainRunner,
        *,
        quiet: Callable[[], bool],
        may_move: Callable[[str], bool],
        moved: Callable[[str], None],
        rules: Callable[[int, Callable[[str], bool]], Rules],
    ) -> None:
        """`quiet()`: nothing drains, is loaded, or has a plan made for it."""
        self.enabled = True  # not in safe mode
        self._loop = loop
        self._decisions = decisions
        self._placer = placer
        self._placements = placements
        self._runner = runner
        self._quiet = quiet
        self._may_move = may_move
        self._moved = moved
        self._rules = rules
        self._seen = -1  # changes of the books at the last look
        self._tried = (-1, -1)  # changes and mix for which a plan found nothing
        self._planning = False

    def start(self, tidy_ms: int) -> None:
        """Look each `tidy_ms`; 0: never."""
        if tidy_ms:
            self._loop.every(tidy_ms * MS, self.look)

    def look(self) -> None:
        """Plan, if the card has been at rest since the last look and not all was tried."""
        state = self._placer.state
        calm, self._seen = state.changes == self._seen, state.changes
        now = (state.changes, state.mix.revision)
        if not self.enabled or self._planning or not calm or now == self._tried:
            return
        if not self._at_rest() or self._runner.left() <= 0:
            return
        self._planning = True
        budget = min(MAX_CHAIN, self._runner.left())
        planner = TidyPlanner(state, self._rules(budget, self._may_move), LEAST_MILLI)
        self._step(planner, planner.run(), now)

    def _at_rest(self) -> bool:
        decisions = self._decisions
        return (
            not self._placements.pending
            and not self._placements.settling()
            and not decisions.pending
            and not self._runner.busy
            and self._quiet()
            and all(assignment.target is None for assignment in decisions.assignments.values())
        )

    def _step(self, planner: TidyPlanner, steps: Iterator[None], now: tuple[int, int]) -> None:
        for _ in range(STEPS_A_TURN):
            if next(steps, self) is self:
                self._planning = False
                self._carry_out(planner, now)
                return
        self._loop.post(lambda: self._step(planner, steps, now))

    def _carry_out(self, planner: TidyPlanner, now: tuple[int, int]) -> None:
        if planner.chain is None:
            self._tried = now
        elif self._placer.state.changes == now[0] and self._at_rest():
            self._runner.run(planner.chain, self._moved)
