"""What is stopped for others, by what the disk says and the judge's own count (I12): only for a
higher priority, within the budget of an hour, not again before it has rested, and nothing that
shares its data. And at rest: nobody waits whom those below him could make room for.
"""

from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from firmware.allocator.plan_preempt import VICTIMS_MOST
from firmware.board_types import Board
from firmware.loop import MS
from firmware.workload import Component
from tools.sim.invariants.names import Fail, Invariant
from tools.sim.invariants.room import Room, total

if TYPE_CHECKING:
    from tools.sim.invariants.decided import Decided

HOUR_NS: Final = 3_600_000_000_000
RATE: Final = (990, 1000)  # of a span: a stop is seen on the disk, a little after it was decided
RIPE_NS: Final = 15_000 * MS  # beyond room_ms: moves are tried first, and each pass takes a while


class Preempted:
    """Told of each assignment that gets to the disk."""

    def __init__(
        self,
        now_ns: Callable[[], int],
        decided: "Decided",
        board: Board,
        fail: Fail,
    ) -> None:
        """`now_ns`: the daemon's own clock, whose hours the budget is of (T5 moves it by weeks)."""
        self._now_ns = now_ns
        self._decided = decided
        self._board = board
        self._fail = fail
        self._stops: deque[int] = deque()  # when; of an hour
        self._last_ns: dict[str, int] = {}  # instance -> when it was last stopped for another

    def decided(self, name: str, evict: Mapping[str, Any], *, moving: bool) -> None:
        """A new one is on the disk. Raises Violation."""
        by, thresholds = evict["by"], self._board.thresholds
        victim, winner = self._decided.component(name), self._decided.component(by)
        text = f"{name} (priority {victim.priority}) for {by} (priority {winner.priority})"
        if victim.priority >= winner.priority:
            self._fail(Invariant.PREEMPTED, text)
        if self._board.tenants is not None and self._tenant(name) != self._tenant(by):
            self._fail(Invariant.PREEMPTED, f"{text}, which is another tenant's")
        if moving or self._shares(name, victim):
            self._fail(Invariant.PREEMPTED, f"{text}, which moves or shares a volume")
        now_ns = self._now_ns()
        rest_ns = thresholds.rest_ms * MS * RATE[0] // RATE[1]
        if now_ns - self._last_ns.get(name, -rest_ns) < rest_ns:
            self._fail(Invariant.PREEMPTED, f"{text}, and it has not rested")
        self._last_ns[name] = now_ns
        self._stops.append(now_ns)
        if self.count() > thresholds.preemptions_per_hour:
            self._fail(
                Invariant.PREEMPTED,
                f"{text}: {self.count()} in an hour, allowed {thresholds.preemptions_per_hour}",
            )

    def count(self) -> int:
        """Of this hour, whichever daemon it was, and whatever became of them."""
        since_ns = self._now_ns() - HOUR_NS * RATE[0] // RATE[1]
        while self._stops and self._stops[0] <= since_ns:
            self._stops.popleft()
        return len(self._stops)

    def waits_above(self, instance: str, cnm: str, need: Room, capacity: Room) -> bool:
        """Whether those below `instance` on that module could make room for it and may be stopped:
        all of them at once, if they are not too many."""
        if self._board.thresholds.preemptions_per_hour == 0:
            return False
        kept: list[Room] = [need]
        below = 0
        for name, held in sorted(self._decided.held.items()):
            if all(other != cnm for other, _ in held.holds):
                continue
            component = self._decided.component(name)
            if self._may_stop(instance, name, component):
                below += 1
            else:
                kept.append(Room.most(component))
        left = self._board.thresholds.preemptions_per_hour - len(self._stops)
        return 0 < below <= min(left, VICTIMS_MOST) and not total(kept).over(capacity)

    def _may_stop(self, instance: str, name: str, component: Component) -> bool:
        wanted = self._decided.component(instance)
        if self._board.tenants is not None and self._tenant(name) != self._tenant(instance):
            return False
        rest_ns = self._board.thresholds.rest_ms * MS * RATE[1] // RATE[0]
        rests = self._now_ns() - self._last_ns.get(name, -rest_ns) < rest_ns
        held = self._decided.held[name]
        return (
            component.priority < wanted.priority
            and not rests
            and held.target is None
            and name.split("/", 1)[0] != instance.split("/", 1)[0]
            and not component.volumes
        )

    def _tenant(self, instance: str) -> str:
        workload = self._decided.workloads.get(instance.split("/", 1)[0])
        return workload.tenant if workload is not None else ""

    def _shares(self, name: str, component: Component) -> bool:
        """Another instance that has a place uses a volume of it."""
        volumes = {mount.name for mount in component.volumes}
        return bool(volumes) and any(
            volumes & {mount.name for mount in self._decided.component(other).volumes}
            for other, held in self._decided.held.items()
            if other != name and held.place is not None and not held.ended
        )
