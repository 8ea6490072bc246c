"""The production journal at work, every write of its recorded.

A play is lives of the daemon on one disk; a life is commits, one after the other. The next commit
is submitted from within the acknowledgement of the one before, on the journal's own thread, before
that looks for work again: so a commit of several batches is one group commit, in every run. After
a pause (an idle checkpoint) and at the start of a life it is a single batch for the same reason.
"""

import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final, Protocol

from hal.errors import HalError
from hal.linux.journal import SqliteJournal
from hal.ports import Event as Ready
from hal.ports import JournalRecord, Reactor
from tools.sim.crash.events import Acknowledged, Event, Log, Resize, Submitted
from tools.sim.crash.operations import Batch, state_after
from tools.sim.crash.oscalls import recording_os
from tools.sim.crash.vfs import recording_sqlite

PATH: Final = "state/journal.db"
GROUP_LIMIT: Final = 5
WAL_LIMIT_BYTES: Final = 128 << 10  # the production's is 4 MiB; so a short play checkpoints often
IDLE_S: Final = 0.002  # during a pause; the production's is 1 s
BUSY_S: Final = 3600.0  # else: whether a slow machine looks idle must not change the recording
QUIET_S: Final = 0.02  # nothing for so long: the idle journal has done all that it wanted
WAIT_S: Final = 30.0  # until something is wrong with the play

Records = list[JournalRecord]


class MakeJournal(Protocol):
    """Opens the journal under test; the production's, or one that was broken on purpose."""

    def __call__(self, path: str, reactor: Reactor) -> SqliteJournal: ...


def production(path: str, reactor: Reactor) -> SqliteJournal:
    """The daemon's, with checkpoints more often; and without the reserve for a full disk, a file
    of nothing that would only be under way all the time."""
    return SqliteJournal(path, reactor, wal_limit_bytes=WAL_LIMIT_BYTES, idle_s=BUSY_S)


@dataclass(frozen=True, slots=True)
class Commit:
    """Batches that are to share one commit, and whether the journal gets a rest after it."""

    batches: tuple[Batch, ...]
    pause: bool = False


Life = tuple[Commit, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """What was done to the disk, and what must be found: `states[n]` after n commits."""

    events: Sequence[Event]
    states: Sequence[Records]
    nodes: Mapping[str, int]  # of the names that were there at the start


def plan(operations: Sequence[Batch], seed: int) -> list[Life]:
    """Group the operations into commits, with a pause now and then and a few restarts."""
    rng = random.Random(f"plan {seed}")  # noqa: S311 - a seed's own plan
    restart_every = max(20, len(operations) // 6)
    lives: list[Life] = []
    life: list[Commit] = []
    at = since = 0
    alone = True
    while at < len(operations):
        size = 1 if alone or rng.random() < 0.5 else rng.randint(2, GROUP_LIMIT)
        pause = rng.random() < 0.02
        life.append(Commit(tuple(operations[at : at + size]), pause))
        at, since, alone = at + size, since + size, pause
        if since >= restart_every:
            lives.append(tuple(life))
            life, since, alone = [], 0, True
    if life:
        lives.append(tuple(life))
    return lives


class _Inline:
    """A `hal.ports.Reactor` that runs what is posted at once, on the poster's thread."""

    def now_ns(self) -> int:
        return 0

    def post(self, call: Callable[[], None]) -> None:
        call()

    def call_at(self, when_ns: int, call: Callable[[], None]) -> Callable[[], None]:
        raise NotImplementedError("a journal sets no timers")

    def watch(self, handle: int, events: Ready, call: Callable[[Ready], None]) -> None:
        raise NotImplementedError("a journal watches no descriptors")

    def unwatch(self, handle: int) -> None:
        raise NotImplementedError("a journal watches no descriptors")


class _Play:
    """One life: its commits chained by their acknowledgements."""

    def __init__(
        self, log: Log, store: SqliteJournal, commits: Sequence[Commit], first: int
    ) -> None:
        self._log = log
        self._store = store
        self._todo = iter(enumerate(commits, first))
        self._stopped = threading.Event()
        self._paused = False
        self.error: HalError | None = None

    def run(self) -> None:
        """Returns when all were answered. Raises the HalError of the one that was not stored."""
        while True:
            self._stopped.clear()
            self._paused = False
            if not self._next():
                return
            if not self._stopped.wait(WAIT_S):
                raise TimeoutError(f"the journal did not answer within {WAIT_S} s")
            if self.error is not None:
                raise self.error
            if not self._paused:
                return
            self._wait_for_checkpoint()
            self._store._idle_s = BUSY_S

    def _next(self) -> bool:
        number, commit = next(self._todo, (0, None))
        if commit is None:
            return False
        self._log.add(Submitted(number))
        left = len(commit.batches)

        def done(error: HalError | None) -> None:
            nonlocal left
            if error is not None:
                self.error = error
                self._stopped.set()
                return
            self._log.add(Acknowledged(number))
            left -= 1
            if left == 0:
                self._go_on(commit)

        for batch in commit.batches:
            self._store.submit(batch, done)
        return True

    def _go_on(self, commit: Commit) -> None:
        if commit.pause:
            self._paused = True
            self._store._idle_s = IDLE_S  # we are on the thread that will wait so long
        elif self._next():
            return
        self._stopped.set()

    def _wait_for_checkpoint(self) -> None:
        """Until the idle journal has moved its WAL away, and nothing more comes."""
        rest = threading.Event()
        for _ in range(int(WAIT_S / QUIET_S)):
            before = len(self._log.events)
            rest.wait(QUIET_S)
            last = self._log.events[-1]
            moved = isinstance(last, Resize) and last.size == 0  # the WAL
            if moved and len(self._log.events) == before:
                return
        raise TimeoutError(f"no checkpoint of an idle journal within {WAIT_S} s")


def record(
    lives: Sequence[Life],
    root: str,
    *,
    make: MakeJournal = production,
    seed: int = 0,
) -> Recording:
    """Play the lives in `root`, on the journal that is there, if there is one.

    Raises NotRecordable, and HalError when the journal itself fails.
    """
    log = Log(root)
    nodes = log.nodes
    with ExitStack() as stack:
        stack.enter_context(recording_sqlite(log, seed))
        stack.enter_context(recording_os(log))
        first = 1
        found: Records = []
        for commits in lives:
            store = make(f"{log.root}/{PATH}", _Inline())
            try:
                loaded = list(store.load())
                if first == 1:
                    found = loaded
                    log.add(Acknowledged(0))
                _Play(log, store, commits, first).run()
            finally:
                store.close()
            first += len(commits)
    everything = [commit for life in lives for commit in life]
    return Recording(events=log.events, states=list(_states(everything, found)), nodes=nodes)


def _states(commits: Sequence[Commit], before: Records) -> Iterator[Records]:
    state = {(record.kind, record.key): record.value or b"" for record in before}
    yield _records(state)
    for commit in commits:
        for batch in commit.batches:
            state_after(state, batch)
        yield _records(state)


def _records(state: Mapping[tuple[str, str], bytes]) -> Records:
    return [
        JournalRecord(kind=kind, key=key, value=value)
        for (kind, key), value in sorted(state.items())
    ]


def inline_reactor() -> Reactor:
    """For opening a journal that is only read."""
    return _Inline()
