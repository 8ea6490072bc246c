"""A thread that reads /proc all the time: no instance may ever live twice.

What it calls a second copy is certain: processes of two cgroups (one belongs to one generation on
one module) that carry the same APF_INSTANCE, each seen alive again after both had been seen.
"""

import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from tests.process.local_card import LocalCard
from tools.demo import observe

YOUNG_S = 3.0  # a process may still exec, and have another environment then
PERIOD_S = 0.01


class CopyWatch:
    """Use as a context manager. `violations` says what was seen twice, in words."""

    def __init__(self, card: LocalCard) -> None:
        self.violations: list[str] = []
        self.samples = 0
        self.seen: set[str] = set()
        self._root = card.cgroup_root()
        self._known: dict[int, tuple[str, float]] = {}  # pid -> instance or "", first seen
        self._groups: dict[int, str] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="copy-watch", daemon=True)

    def __enter__(self) -> "CopyWatch":
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stop.set()
        self._thread.join()

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
