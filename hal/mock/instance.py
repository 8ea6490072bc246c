"""Instances as models: what a tenant's program does is a `Behaviour`, looked up by its argv."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

from hal.errors import LinkDown
from hal.ports import ExitReason, InstanceExit, InstanceSpec, Usage

if TYPE_CHECKING:
    from hal.mock.kernel import VirtualKernel
    from hal.mock.line import MockStream

MS: Final = 1_000_000
SECOND_NS: Final = 1_000_000_000
START_NS: Final = 30 * MS  # runc create and start, local_board.md section 1
KILL_NS: Final = 2 * MS  # SIGKILL to the last process gone, same place
SIGTERM: Final = 15
SIGKILL: Final = 9
TICKS_PER_SECOND: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """What instances of one kind do. The default runs for ever and obeys."""

    start_ns: int = START_NS
    start_error: str | None = None  # the runtime's words when it fails to start
    runs_ns: int | None = None  # ends by itself after so long
    exit_status: int = 0  # then, and on a stop signal that it obeys
    ignores_term: bool = False
    stop_ns: int = MS  # from a stop signal to its end
    kill_ns: int = KILL_NS  # from SIGKILL to its end; a process in state D takes long
    processes: int = 1
    cpu_milli: int = 10
    memory_bytes: int = 4 << 20
    memory_growth_bytes_per_s: int = 0  # a leak; at its limit it is OOM-killed
    output: bytes = b""  # written at the start
    exec_results: Mapping[str, tuple[int, bytes]] = field(default_factory=dict)  # by argv[0]
    exec_ns: int = 5 * MS


class Phase(Enum):
    RUNNING = "running"
    DEAD = "dead"


class MockInstance:
    """One instance that really runs on a CNM, whatever anybody believes."""

    def __init__(
        self,
        kernel: VirtualKernel,
        spec: InstanceSpec,
        behaviour: Behaviour,
        *,
        place: str,
        pid: int,
        cgroup: str,
        on_exit: Callable[[InstanceExit], None],
    ) -> None:
        self.kernel = kernel
        self.spec = spec
        self.behaviour = behaviour
        self.pid = pid
        self.cgroup = cgroup
        self.place = place  # the CNM's id, for the trace
        self.phase = Phase.RUNNING
        self.started_ns = kernel.now_ns
        self.signals: list[int] = []
        self.output: MockStream | None = None  # where it writes; bytes beyond the pipe are lost
        self.exit: InstanceExit | None = None  # how it ended; None too when its power went
        self._on_exit = on_exit
        self._ended_ns = 0
        self._ending: Callable[[], None] | None = None  # cancels the end that is planned
        self._ending_ns = 0
        kernel.note(place, "instance_start", spec.key)
        kernel.on_change("start", self)
        if behaviour.runs_ns is not None:
            end = InstanceExit(reason=ExitReason.EXITED, status=behaviour.exit_status)
            self._plan(behaviour.runs_ns, end)
        oom_ns = self._oom_ns()
        if oom_ns is not None:
            text = f"memory limit of {spec.limits.memory_bytes} bytes"
            self._plan(oom_ns, InstanceExit(reason=ExitReason.OOM_KILLED, status=9, text=text))

    @property
    def alive(self) -> bool:
        return self.phase is Phase.RUNNING

    @property
    def start_ticks(self) -> int:
        return self.started_ns * TICKS_PER_SECOND // SECOND_NS

    def write(self, data: bytes) -> int:
        """It prints; how much of it the pipe took."""
        if self.output is None or not self.alive:
            return 0
        try:
            return self.output.write(data)
        except LinkDown:  # nobody reads any more; a real program would get SIGPIPE or go on
            return 0

    def signal(self, number: int) -> None:
        """To its first process."""
        if not self.alive:
            return
        self.signals.append(number)
        if number == SIGKILL:
            self.kill()
        elif number in (SIGTERM, self.spec.stop_signal) and not self.behaviour.ignores_term:
            end = InstanceExit(reason=ExitReason.EXITED, status=self.behaviour.exit_status)
            if self.behaviour.exit_status == 0:
                end = InstanceExit(reason=ExitReason.SIGNALED, status=number)
            self._plan(self.behaviour.stop_ns, end)

    def kill(self) -> None:
        """SIGKILL to every process of it."""
        if self.alive:
            end = InstanceExit(reason=ExitReason.SIGNALED, status=SIGKILL)
            self._plan(self.behaviour.kill_ns, end)

    def end(self, end: InstanceExit) -> None:
        """Fault: it ends now, by itself."""
        if self.alive:
            self._end(end)

    def power_lost(self) -> None:
        """It is gone, and nobody is told."""
        if self.alive:
            self.phase = Phase.DEAD
            self._ended_ns = self.kernel.now_ns
            self.kernel.note(self.place, "instance_dark", self.spec.key)
            self.kernel.on_change("end", self)
            if self._ending is not None:
                self._ending()

    def usage(self) -> Usage:
        """What its cgroup would show."""
        until_ns = self.kernel.now_ns if self.alive else self._ended_ns
        ran_ns = until_ns - self.started_ns
        limit_milli = self.spec.limits.cpu_milli
        milli = min(self.behaviour.cpu_milli, limit_milli) if limit_milli else 0
        milli = milli or self.behaviour.cpu_milli
        memory = self._memory_bytes(ran_ns)
        return Usage(
            cpu_us=ran_ns * milli // 1_000_000,
            memory_bytes=memory if self.alive else 0,
            memory_peak_bytes=memory,
            pids=self.behaviour.processes if self.alive else 0,
            io_bytes=0,
        )

    def _memory_bytes(self, ran_ns: int) -> int:
        grown = self.behaviour.memory_growth_bytes_per_s * ran_ns // SECOND_NS
        limit = self.spec.limits.memory_bytes
        total = self.behaviour.memory_bytes + grown
        return min(total, limit) if limit else total

    def _oom_ns(self) -> int | None:
        limit, growth = self.spec.limits.memory_bytes, self.behaviour.memory_growth_bytes_per_s
        if not limit:
            return None
        left = limit - self.behaviour.memory_bytes
        if left < 0:
            return 0
        return left * SECOND_NS // growth if growth else None

    def _plan(self, delay_ns: int, end: InstanceExit) -> None:
        """End so, unless an earlier end is planned."""
        at_ns = self.kernel.now_ns + delay_ns
        if self._ending is not None:
            if self._ending_ns <= at_ns:
                return
            self._ending()
        self._ending_ns = at_ns
        self._ending = self.kernel.at(at_ns, lambda: self._end(end))

    def _end(self, end: InstanceExit) -> None:
        self.phase = Phase.DEAD
        self._ended_ns = self.kernel.now_ns
        self.exit = end
        self.kernel.note(self.place, "instance_end", f"{self.spec.key} {end.reason.value}")
        self.kernel.on_change("end", self)
        if self._ending is not None:
            self._ending()
        self._on_exit(end)


class Behaviours:
    """Which behaviour an argv gets: the latest rule whose pattern matches the joined argv."""

    def __init__(self) -> None:
        self.default = Behaviour()
        self._rules: list[tuple[str, Behaviour]] = []

    def add(self, pattern: str, behaviour: Behaviour) -> None:
        """`pattern` is a shell pattern, e.g. "sleep *"."""
        self._rules.append((pattern, behaviour))

    def of(self, argv: Sequence[str]) -> Behaviour:
        """The default when no rule matches."""
        line = " ".join(argv)
        for pattern, behaviour in reversed(self._rules):
            if fnmatchcase(line, pattern):
                return behaviour
        return self.default
