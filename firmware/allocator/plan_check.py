"""Is a plan still good? Each move is tried where it would stand: all before it done, none after."""

from collections.abc import Sequence

from firmware.allocator.plan_books import Sketch
from firmware.allocator.plan_types import Move
from firmware.allocator.state import AllocatorState


def objection(state: AllocatorState, moves: Sequence[Move]) -> str:
    """Why the moves can't be carried out in this order, or "". Changes nothing."""
    sketch = Sketch(state, frozenset(cnm for m in moves for cnm in (m.source, m.target)))
    for _ in sketch.read():
        pass
    moved: set[str] = set()
    for move in moves:
        source, target = sketch.by_id.get(move.source), sketch.by_id.get(move.target)
        if source is None or target is None:
            return f"{move.instance}: {move.source if source is None else move.target} is not known"
        hold = source.holds.get(move.instance)
        if hold is None:
            return f"{move.instance} is not on {move.source}"
        if move.instance in moved:
            return f"{move.instance} would be moved twice"
        moved.add(move.instance)
        if sketch.move(hold, source, target) is None:
            return f"{move.instance} does not fit on {move.target} then"
    return ""
