"""What waits on one segment: in order for each device, and nobody waits for another's pause."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from hal.smbus_ports import QUEUE_LIMIT, MuxPath

DeviceKey: TypeAlias = tuple[MuxPath, int] | None  # None: the segment itself

_PAUSES_KEPT: Final = 256


@dataclass(slots=True, kw_only=True)
class Job:
    """One request. `work` runs on the worker, `give` takes its result, once."""

    key: DeviceKey
    what: str
    work: Callable[[], Any]
    give: Callable[[Any], None]
    deadline_ns: int
    gap_ns: int = 0
    given: bool = False


class SmbusQueue:
    """At most QUEUE_LIMIT jobs. Not safe between threads: its owner has the lock."""

    def __init__(self) -> None:
        self._jobs: deque[Job] = deque()
        self._free_ns: dict[DeviceKey, int] = {}  # devices that want a pause -> until when

    def __len__(self) -> int:
        return len(self._jobs)

    def push(self, job: Job) -> bool:
        """False when it is full."""
        if len(self._jobs) >= QUEUE_LIMIT:
            return False
        self._jobs.append(job)
        return True

    def pop(self, now_ns: int) -> Job | int | None:
        """The next job, or until when (ns) all that wait must wait, or None when none waits."""
        pausing: set[DeviceKey] = set()
        soonest: int | None = None
        for index, job in enumerate(self._jobs):
            until_ns = self._free_ns.get(job.key, 0)
            if job.key in pausing or until_ns > now_ns:
                pausing.add(job.key)
                soonest = until_ns if soonest is None else min(soonest, until_ns)
                continue
            del self._jobs[index]
            return job
        return soonest

    def ended(self, job: Job, now_ns: int) -> None:
        """It is off the wire; its device's pause begins."""
        if not job.gap_ns:
            return
        if len(self._free_ns) >= _PAUSES_KEPT:
            self._free_ns = {key: at for key, at in self._free_ns.items() if at > now_ns}
        self._free_ns[job.key] = now_ns + job.gap_ns

    def drain(self) -> list[Job]:
        """All that wait, which then don't."""
        jobs = list(self._jobs)
        self._jobs.clear()
        return jobs
