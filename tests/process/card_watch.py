"""A thread that reads /proc all the time: no instance may ever live twice.

What it calls a second copy is certain: processes of two cgroups (one belongs to one generation on
one module) that carry the same APF_INSTANCE, each seen alive again after both had been seen.
"""

import os
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from tests.process.local_card import LocalCard
from tools.demo import observe

YOUNG_S = 3.0  # a process may still exec, and have another environment then
PERIOD_S = 0.01


def boottime_ms() -> float:
    """The clock of the card's events (`mono_ms`)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) * 1000


class CopyWatch:
    """Use as a context manager. `violations` says what was seen twice, in words; `first_ms` when
    each generation of an instance was first seen."""

    def __init__(self, card: LocalCard) -> None:
        self.violations: list[str] = []
        self.samples = 0
        self.seen: set[str] = set()
        self.first_ms: dict[tuple[str, str], float] = {}  # (instance, cgroup) -> boottime
        self._root = card.cgroup_root()
        self._known: dict[int, tuple[str, float]] = {}  # pid -> instance or "", first seen
        self._groups: dict[int, str] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="copy-watch", daemon=True)

    def __enter__(self) -> "CopyWatch":
        self._sample()  # what runs before is known before anything happens
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def running_again_ms(self, instances: Iterable[str], since_ms: float) -> float | None:
        """When the last of them had been seen in a cgroup that came after `since_ms`."""
        last_ms = [
            max(
                (ms for (name, _), ms in list(self.first_ms.items()) if name == instance), default=0
            )
            for instance in instances
        ]
        return max(last_ms) if last_ms and min(last_ms) > since_ms else None

    def _run(self) -> None:
        while not self._stop.wait(PERIOD_S):
            self._sample()

    def _sample(self) -> None:
        now_s = time.monotonic()
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
        for pid in self._known.keys() - set(pids):
            del self._known[pid]
            self._groups.pop(pid, None)
        found: dict[str, dict[str, int]] = {}  # instance -> cgroup -> a pid
        for pid in pids:
            instance, first_s = self._known.get(pid, ("", now_s))
            if not instance and (pid not in self._known or now_s - first_s < YOUNG_S):
                instance = self._instance_of(pid)
                self._known[pid] = (instance, first_s)
            if instance:
                found.setdefault(instance, {})[self._groups[pid]] = pid
                self.first_ms.setdefault((instance, self._groups[pid]), boottime_ms())
        self.seen |= found.keys()
        self.samples += 1
        for instance, groups in found.items():
            if len(groups) > 1:
                self._judge(instance, groups)

    def _instance_of(self, pid: int) -> str:
        instance = observe.environment(pid).get("APF_INSTANCE", "")
        cgroup = observe.cgroup_of(pid) if instance else ""
        if not cgroup.startswith(self._root + "/"):
            return ""
        self._groups[pid] = "/".join(cgroup.split("/")[:5])  # /apf/RUN/CNM/i-KEY
        return instance

    def _judge(self, instance: str, groups: Mapping[str, int]) -> None:
        """Every one is looked at again: only what still lives overlaps for certain."""
        alive = {
            group: pid
            for group, pid in groups.items()
            if observe.environment(pid).get("APF_INSTANCE") == instance
            and observe.start_ticks(pid) is not None
        }
        if len(alive) > 1:
            words = ", ".join(f"{pid} in {Path(group).name}" for group, pid in alive.items())
            if f"{instance}: {words}" not in self.violations:
                self.violations.append(f"{instance}: {words}")
