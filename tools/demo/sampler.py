"""Is there ever a second copy? The processes of all instances, looked at again and again.

A look at /proc takes some milliseconds, in which one copy may end and the next begin. So two are
called two only if the first still lives after the second was seen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hal.ports import Clock
from tools.demo import observe
from tools.demo.errors import StepFailed
from tools.demo.observe import Seen
from tools.demo.waits import MS


@dataclass(slots=True, kw_only=True)
class Life:
    """When a copy was first and last seen to live."""

    cgroup: str
    first_ns: int
    last_ns: int


def copy_of(seen: Seen) -> str:
    """What tells one copy from another: its cgroup, or its session where there is none."""
    if observe.cnm_of(seen.cgroup):
        return observe.own_cgroup(seen.cgroup)
    return f"session {seen.session}"


def is_first(seen: Seen) -> bool:
    """The shell that an instance was started as: it leads its session. What it forks has the same
    command line until its own exec; a health check leads a session, but is no shell."""
    return seen.pid == seen.session and seen.argv[1:2] == ("-c",)


def first_pids(copies: Mapping[str, Sequence[Seen]]) -> set[int]:
    """The first processes of an instance's copies: what they forked may outlive them a little."""
    return {item.pid for items in copies.values() for item in items if is_first(item)}


def by_copy(seen: Sequence[Seen]) -> dict[str, dict[str, list[Seen]]]:
    """Instance -> copy -> its processes. A session without a shell of ours at its head is a
    health check's, no copy."""
    found: dict[str, dict[str, list[Seen]]] = {}
    leaders = {item.pid for item in seen if is_first(item)}
    for item in seen:
        copy = copy_of(item)
        if copy.startswith("session") and item.session not in leaders:
            continue
        found.setdefault(item.instance, {}).setdefault(copy, []).append(item)
    return found


class Sampler:
    """Every look at the processes that carry `token`. Raises StepFailed when a copy is double."""

    def __init__(self, clock: Clock, token: str) -> None:
        self.looks = 0
        self.longest_gap_ms = 0
        self.lives: dict[str, dict[str, Life]] = {}  # instance -> copy
        self._clock = clock
        self._token = token
        self._last_ns = 0

    def look(self) -> dict[str, dict[str, list[Seen]]]:
        """Instance -> copy -> processes, now."""
        now_ns = self._clock.now_ns()
        if self.looks:
            self.longest_gap_ms = max(self.longest_gap_ms, (now_ns - self._last_ns) // MS)
        self._last_ns, self.looks = now_ns, self.looks + 1
        found = by_copy(observe.processes(token=self._token))
        seen_ns = self._clock.now_ns()
        for instance, copies in found.items():
            if len(copies) > 1:
                refuse_double(instance, copies)
            lives = self.lives.setdefault(instance, {})
            for copy in copies:
                life = lives.setdefault(copy, Life(cgroup=copy, first_ns=seen_ns, last_ns=now_ns))
                life.last_ns = now_ns
        return found

    def words(self) -> str:
        """For a proof."""
        return f"single copies in {self.looks} looks, at most {self.longest_gap_ms} ms apart"

    def gap_ms(self, instance: str) -> int:
        """From the last sight of the copy before to the first sight of the newest."""
        lives = sorted(self.lives.get(instance, {}).values(), key=lambda life: life.first_ns)
        return (lives[-1].first_ns - lives[-2].last_ns) // MS if len(lives) > 1 else 0


def refuse_double(instance: str, copies: dict[str, list[Seen]]) -> None:
    """Raises StepFailed if more than one of these copies lives now."""
    alive = {
        copy: [item.pid for item in items if observe.start_ticks(item.pid) == item.start_ticks]
        for copy, items in copies.items()
    }
    alive = {copy: pids for copy, pids in alive.items() if pids}
    if len(alive) > 1:
        where = "; ".join(f"{copy}: pids {pids}" for copy, pids in sorted(alive.items()))
        raise StepFailed(f"{instance} ran {len(alive)} times at one instant: {where}")
