"""`apf bench journal`: decisions made durable, and what that does to the loop beside it.

Wall time: who waits for an acknowledgement waits for the disk. The journal lies on the file system
of the state directory; the baseline appends as many bytes to a file there, with fdatasync(2), on
the spot. A loop's stall is by how much a timer of 1 ms came too late at worst.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

from firmware.loop import Loop
from hal.errors import HalError
from hal.linux.clock import LinuxClock
from hal.linux.journal import SqliteJournal
from hal.ports import JournalRecord
from tools.bench.figures import Figure, Unmeasured
from tools.bench.measure import Bench
from tools.bench.timing import MS, SECOND

BATCHES: Final = (1, 32)  # records a commit
RECORD_BYTES: Final = 96  # an assignment's order of size
KEYS: Final = 1024  # decisions are overwritten, as on a card
TICK_NS: Final = MS
_SYNC: Final = "append + fdatasync"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Written:
    """What one run found; times in ns."""

    acks_ns: list[int]
    span_ns: int
    stall_ns: int


def run(bench: Bench) -> list[Figure]:
    """All rows."""
    span_ns = bench.pick(2 * SECOND, SECOND // 5)
    rows: list[Figure] = []
    try:
        with _folder(bench.state_dir()) as folder:
            clock = LinuxClock()
            bare_ns = _bare_stall_ns(clock, span_ns)
            for batch in BATCHES:
                plain = _append(folder / f"plain{batch}", clock, batch, span_ns // 4)
                found = _journal(folder / f"journal{batch}.db", clock, batch, span_ns)
                rows += _rows(batch, found, plain, bare_ns)
            clock.close()
    except (HalError, OSError, Unmeasured) as exc:
        return [
            Figure(name=f"journal.{what}_{batch}", unit=unit, error=str(exc))
            for batch in BATCHES
            for what, unit in _ROWS
        ]
    return rows


_ROWS: Final = (
    ("acked_per_s", "records/s"),
    ("ack_p50", "ms"),
    ("ack_max", "ms"),
    ("loop_stall", "ms"),
)


def _rows(batch: int, found: _Written, plain: _Written, bare_ns: int) -> list[Figure]:
    values = (
        (_per_s(found, batch), _per_s(plain, batch), _SYNC),
        (median(found.acks_ns) / MS, median(plain.acks_ns) / MS, _SYNC),
        (max(found.acks_ns) / MS, max(plain.acks_ns) / MS, _SYNC),
        (found.stall_ns / MS, bare_ns / MS, "loop without journal"),
    )
    return [
        Figure(
            name=f"journal.{what}_{batch}",
            value=value,
            unit=unit,
            baseline=baseline,
            baseline_name=name,
        )
        for (what, unit), (value, baseline, name) in zip(_ROWS, values, strict=True)
    ]


def _per_s(found: _Written, batch: int) -> float:
    return len(found.acks_ns) * batch / (found.span_ns / SECOND)


@contextmanager
def _folder(state: Path) -> Iterator[Path]:
    """A directory on the state directory's file system, which need not exist yet."""
    place = state
    while not place.is_dir() and place != place.parent:
        place = place.parent
    with tempfile.TemporaryDirectory(prefix="apf-bench-", dir=place) as name:
        yield Path(name)


class _Ticker:
    """The worst lateness of a timer on a loop."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self.worst_ns = 0
        self._due_ns = loop.now_ns() + TICK_NS
        loop.call_at(self._due_ns, self._tick)

    def _tick(self) -> None:
        now_ns = self._loop.now_ns()
        self.worst_ns = max(self.worst_ns, now_ns - self._due_ns)
        self._due_ns = now_ns + TICK_NS
        self._loop.call_at(self._due_ns, self._tick)


def _bare_stall_ns(clock: LinuxClock, span_ns: int) -> int:
    loop = Loop(clock)
    ticker = _Ticker(loop)
    loop.call_later(span_ns, loop.stop)
    loop.run()
    loop.close()
    return ticker.worst_ns


def _journal(path: Path, clock: LinuxClock, batch: int, span_ns: int) -> _Written:
    """One commit after the other: the next batch is submitted when the last one is durable."""
    loop = Loop(clock)
    store = SqliteJournal(path, loop)
    store.load()
    acks_ns: list[int] = []
    errors: list[HalError] = []
    number = 0

    def submit() -> None:
        nonlocal number
        records = [
            JournalRecord(
                kind="assignment",
                key=f"bench/{(number + i) % KEYS}",
                value=os.urandom(RECORD_BYTES),
            )
            for i in range(batch)
        ]
        number += batch
        sent_ns = clock.now_ns()
        store.submit(records, lambda result: acked(result, sent_ns))

    def acked(result: HalError | None, sent_ns: int) -> None:
        now_ns = clock.now_ns()
        if result is not None:
            errors.append(result)
            loop.stop()
            return
        acks_ns.append(now_ns - sent_ns)
        if now_ns - start_ns >= span_ns:
            loop.stop()
        else:
            submit()

    start_ns = clock.now_ns()
    ticker = _Ticker(loop)
    submit()
    try:
        loop.run()
    finally:
        store.close()
        loop.close()
    if errors:
        raise errors[0]
    return _Written(acks_ns=acks_ns, span_ns=clock.now_ns() - start_ns, stall_ns=ticker.worst_ns)


def _append(path: Path, clock: LinuxClock, batch: int, span_ns: int) -> _Written:
    """What the disk itself takes for as many bytes."""
    acks_ns = []
    start_ns = clock.now_ns()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        while True:
            sent_ns = clock.now_ns()
            os.write(fd, os.urandom(RECORD_BYTES * batch))
            os.fdatasync(fd)
            now_ns = clock.now_ns()
            acks_ns.append(now_ns - sent_ns)
            if now_ns - start_ns >= span_ns:
                break
    finally:
        os.close(fd)
    return _Written(acks_ns=acks_ns, span_ns=clock.now_ns() - start_ns, stall_ns=0)
