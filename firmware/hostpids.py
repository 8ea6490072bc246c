"""Processes of modules as the host sees them, where there is such a view (the local board).

`ps` and `cnm ls` say pids that a person on this host can look up. They are asked for whenever a
module reports something new, off the hot path, and are what the keeper read last.
"""

from collections.abc import Mapping
from typing import Final

from firmware.inventory import Cnm
from firmware.loop import MS, Loop
from hal.errors import HalError
from hal.ports import HostProcess, HostView

LOOKUP_DEADLINE_NS: Final = 1_000 * MS
RETRY_NS: Final = 200 * MS
RETRIES: Final = 10  # a process that can't be found for so long has gone


class HostPids:
    """Loop thread only. `view` None: there is no such view; pids are those of the CNM."""

    def __init__(self, loop: Loop, view: HostView | None) -> None:
        self._loop = loop
        self._view = view
        self._found: dict[str, dict[int, HostProcess]] = {}  # CNM -> CNM pid -> host's view
        self._asking: set[str] = set()
        self._again: set[str] = set()

    def forget(self, cnm: Cnm) -> None:
        """Its processes are gone."""
        self._found.pop(cnm.id, None)

    def refresh(self, cnm: Cnm, tries: int = RETRIES) -> None:
        """Ask anew, now or when the question that is under way has been answered."""
        if self._view is None:
            return
        if cnm.id in self._asking:
            self._again.add(cnm.id)
            return
        self._asking.add(cnm.id)
        boot_id = cnm.boot_id

        def done(result: Mapping[int, HostProcess] | HalError) -> None:
            self._asking.discard(cnm.id)
            again = cnm.id in self._again
            self._again.discard(cnm.id)
            if not isinstance(result, HalError) and cnm.boot_id == boot_id:
                self._found[cnm.id] = dict(result)
            missing = self._missing(cnm)
            if again:
                self.refresh(cnm)
            elif missing and tries > 1:
                self._loop.call_later(RETRY_NS, lambda: self.refresh(cnm, tries - 1))

        self._view.submit_lookup(
            cnm.config.slot, (), self._loop.now_ns() + LOOKUP_DEADLINE_NS, done
        )

    def _missing(self, cnm: Cnm) -> bool:
        found = self._found.get(cnm.id, {})
        return any(s.pid and s.pid not in found for s in cnm.observed.values()) or (
            cnm.agent_ready and self.agent(cnm) is None
        )

    def process(self, cnm: Cnm, pid: int) -> HostProcess | None:
        """The host's view of a CNM's pid, or None."""
        return self._found.get(cnm.id, {}).get(pid)

    def agent(self, cnm: Cnm) -> HostProcess | None:
        """The agent: the first process of its cgroup."""
        processes = self._found.get(cnm.id, {})
        agents = [p for p in processes.values() if p.cgroup.endswith("/agent")]
        return min(agents, key=lambda p: p.start_ticks, default=None)
