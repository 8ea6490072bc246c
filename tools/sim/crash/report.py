"""`run`: record a card's journal, cut it everywhere, say what was found (`apf sim --crash-points`).

A recovery is opening with `hal.linux.journal` on real files in memory (tmpfs): quick_check, load,
compare. The reference is 0.65 ms a point (SQLite 3.40, one core, quick_check included).
"""

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from hal.linux.clock import LinuxClock
from tools.sim.crash.events import Sync, Write, bytes_written
from tools.sim.crash.operations import card_operations
from tools.sim.crash.record import MakeJournal, Recording, plan, production, record
from tools.sim.crash.scratch import scratch_dir
from tools.sim.crash.sweep import CrashViolation, Progress, Share, Tally, sweep
from tools.sim.crash.trial import JournalTrial

SECOND_NS: Final = 1_000_000_000
REFERENCE_PER_S: Final = 1_549  # truncation points only, one core
POINTS_PER_EVENT: Final = 12  # about; so that the second cuts are spread over the recording


@dataclass(frozen=True, slots=True, kw_only=True)
class CrashReport:
    """What a sweep found. `cpu_s` is of the sweeping, of all processes together."""

    operations: int
    seed: int
    commits: int
    writes: int
    written_bytes: int
    syncs: int
    points: dict[str, int]  # by kind; "second": of a cut during or after a recovery from another
    again: int  # cuts and kills that were recovered from, and worked on, under more cuts
    violations: list[CrashViolation]
    complete: bool  # False when the deadline came first, or there were too many violations
    elapsed_s: float
    cpu_s: float

    @property
    def total(self) -> int:
        return sum(self.points.values())

    @property
    def good(self) -> bool:
        return self.complete and not self.violations

    @property
    def per_s(self) -> float:
        """Points per second of one core."""
        return self.total / self.cpu_s if self.cpu_s else 0.0

    def to_json(self) -> dict[str, Any]:
        return {
            "operations": self.operations,
            "seed": self.seed,
            "commits": self.commits,
            "writes": self.writes,
            "written_bytes": self.written_bytes,
            "syncs": self.syncs,
            "crash_points": self.total,
            "points": dict(sorted(self.points.items())),
            "again": self.again,
            "violations": [violation.to_json() for violation in self.violations],
            "complete": self.complete,
            "elapsed_s": round(self.elapsed_s, 3),
            "cpu_s": round(self.cpu_s, 3),
            "crash_points_per_s": round(self.per_s, 1),
        }

    def lines(self) -> list[str]:
        """For people."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.points.items()))
        said = [
            f"{self.operations} operations in {self.commits} commits: {self.writes} writes of "
            f"{self.written_bytes} B, {self.syncs} syncs",
            f"{self.total} crash points ({kinds}) in {self.elapsed_s:.1f} s, "
            f"{self.per_s:.0f} a second of one core",
        ]
        said += [
            f"VIOLATION at event {found.event} ({found.kind}): {found.text} [{found.fates}]"
            + (f"; second cut: {found.second}" if found.second else "")
            for found in self.violations
        ]
        if not self.complete:
            said.append("not complete: ended early")
        elif not self.violations:
            said.append("every one recovers to a committed prefix with all that was acknowledged")
        return said


def run(
    operations: int = 1000,
    seed: int = 1,
    *,
    jobs: int = 1,
    deadline_s: float | None = None,
    progress: Progress = lambda _done, _total: None,
    make: MakeJournal = production,
    second_cuts: int | None = None,
) -> CrashReport:
    """Sweep a card's life of so many operations on `jobs` processes.

    `second_cuts`: how many images, about, are worked on and cut again; None: one for each 16
    operations. Raises NotRecordable, and HalError when the journal itself refuses to work.
    """
    if operations < 1 or jobs < 1:
        raise ValueError(f"{operations} operations on {jobs} processes: at least one of each")
    clock = LinuxClock()
    try:
        start_ns = clock.now_ns()
        with scratch_dir() as root:
            lives = plan(card_operations(operations, seed), seed)
            recording = record(lives, root, make=make, seed=seed)
        wanted = max(2, operations // 16) if second_cuts is None else second_cuts
        each = 1 + wanted // 2  # half of them after cuts, half after kills
        syncs = sum(isinstance(event, Sync) for event in recording.events)
        order = _Order(
            recording=recording,
            seed=seed,
            again_every=len(recording.events) * POINTS_PER_EVENT // each // jobs if wanted else 0,
            kill_every=max(1, syncs // each // jobs) if wanted else 0,
            jobs=jobs,
            deadline_s=deadline_s,
        )
        tally, cpu_s = _shared(order, progress)
        elapsed_s = (clock.now_ns() - start_ns) / SECOND_NS
    finally:
        clock.close()
    return CrashReport(
        operations=operations,
        seed=seed,
        commits=len(recording.states) - 1,
        writes=sum(isinstance(event, Write) for event in recording.events),
        written_bytes=bytes_written(recording.events),
        syncs=syncs,
        points=dict(tally.points),
        again=tally.again,
        violations=tally.violations,
        complete=tally.complete,
        elapsed_s=elapsed_s,
        cpu_s=cpu_s,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Order:
    """What a process is to do; goes to it as it is."""

    recording: Recording
    seed: int
    again_every: int
    kill_every: int
    jobs: int
    deadline_s: float | None


def _shared(order: _Order, progress: Progress) -> tuple[Tally, float]:
    """All shares, and their CPU time. This process takes the first, and shows the progress."""
    if order.jobs == 1:
        return _work(order, 0, progress)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(order.jobs - 1, mp_context=spawn) as pool:
        others = [pool.submit(_work, order, number) for number in range(1, order.jobs)]
        tally, cpu_s = _work(order, 0, progress)
        for other in others:
            found, more_cpu_s = other.result()
            tally.add(found)
            cpu_s += more_cpu_s
    return tally, cpu_s


def _work(
    order: _Order, number: int, progress: Progress = lambda _done, _total: None
) -> tuple[Tally, float]:
    clock = LinuxClock()
    try:
        start_ns, start_cpu_s = clock.now_ns(), time.process_time()
        left_ns = None if order.deadline_s is None else order.deadline_s * SECOND_NS
        tally = sweep(
            order.recording,
            JournalTrial(order.recording.states),
            seed=order.seed,
            again_every=order.again_every,
            kill_every=order.kill_every,
            share=Share(number=number, of=order.jobs),
            late=lambda: left_ns is not None and clock.now_ns() - start_ns > left_ns,
            progress=progress,
        )
        return tally, time.process_time() - start_cpu_s
    finally:
        clock.close()
