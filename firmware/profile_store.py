"""Profiles in the journal, so that a new daemon knows what the last one has learned.

They are estimates: written seldom, some at a time, and not waited for. What a crash takes away is
learned again, and a record that can't be read is left out (`Journal.load`), never an error. What
was decided has precedence: while the journal is busy nothing is written here.

How often: once a minute at most 64 profiles that have changed, each at most every 10 minutes; a
raised floor (an under-reserved peak, an out-of-memory kill) within a second; all that is unsaved
when the daemon is asked to go down. A card with 4,096 busy identities so writes each about once an
hour, some 50 KiB a minute.
"""

from collections.abc import Sequence
from typing import Final

from firmware.journal import MAX_BATCH_CHANGES, Change, Journal, JournalError, Kind
from firmware.loop import MS, Loop
from firmware.profile import MAX_NS, Profile
from firmware.profiler import Profiler

LOOK_NS: Final = 60_000 * MS
REST_NS: Final = 600_000 * MS  # of one profile between two writes
URGENT_NS: Final = 1_000 * MS
BATCH: Final = 64


class ProfileStore:
    """Loop thread only."""

    def __init__(self, loop: Loop, journal: Journal, profiler: Profiler) -> None:
        self._loop = loop
        self._journal = journal
        self._profiler = profiler
        self._written_ns: dict[str, int] = {}  # of those in the journal; MAX_PROFILES, and a batch
        self._writing = False
        self._soon = False
        self.saved = 0  # records
        self.failed = 0  # batches that the store did not take

    def load(self) -> None:
        """After `Journal.load`."""
        records = self._journal.items(Kind.PROFILE)
        now_ns = self._loop.now_ns()
        self._written_ns = dict.fromkeys(records, now_ns)
        self._profiler.load(records, now_ns)

    def start(self) -> None:
        """From now on what changes is written down."""
        self._loop.every(LOOK_NS, self._look)

    def hurry(self) -> None:
        """A floor was raised: the next daemon must know it too."""
        if not self._soon:
            self._soon = True
            self._loop.call_later(URGENT_NS, self._look)

    def save_all(self) -> None:
        """The daemon goes down."""
        names = [name for name, profile in self._profiler.items() if profile.changed]
        self._write(names[-MAX_BATCH_CHANGES:], ())

    def _look(self) -> None:
        self._soon = False
        if self._writing or self._journal.in_flight or self._journal.failed:
            self._soon_again()
            return
        now_ns = self._loop.now_ns()
        due: list[tuple[int, str]] = []
        for name, profile in self._profiler.items():
            written_ns = self._written_ns.get(name, -MAX_NS)
            if profile.urgent:
                due.append((-MAX_NS - 1, name))
            elif profile.changed and now_ns - written_ns >= REST_NS:
                due.append((written_ns, name))
        known = {name for name, _profile in self._profiler.items()}
        gone = sorted(self._written_ns.keys() - known)[:BATCH]
        self._write([name for _at_ns, name in sorted(due)[:BATCH]], gone)

    def _soon_again(self) -> None:
        if not self._journal.failed and any(p.urgent for _name, p in self._profiler.items()):
            self.hurry()

    def _write(self, names: Sequence[str], gone: Sequence[str]) -> None:
        profiles = dict(self._profiler.items())
        changes = [
            Change(kind=Kind.PROFILE, key=name, value=self._record(profiles[name]))
            for name in names
        ] + [Change(kind=Kind.PROFILE, key=name, value=None) for name in gone]
        if not changes:
            return
        now_ns = self._loop.now_ns()
        urgent = {name for name in names if profiles[name].urgent}
        for name in names:
            profiles[name].changed = profiles[name].urgent = False
        self._writing = True

        def done(error: JournalError | None) -> None:
            self._writing = False
            if error is not None:  # the next look tries again
                self.failed += 1
                for name in names:
                    profiles[name].changed = True
                    profiles[name].urgent |= name in urgent
                return
            self.saved += len(names)
            self._written_ns.update(dict.fromkeys(names, now_ns))
            for name in gone:
                self._written_ns.pop(name, None)

        self._journal.commit(changes, done)

    def _record(self, profile: Profile) -> dict[str, object]:
        profile.decay(self._profiler.time_ns(self._loop.now_ns()))
        return profile.to_json()
