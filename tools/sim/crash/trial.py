"""What is asked of a store after a cut. The journal's trial; others are made alike."""

from collections.abc import Sequence
from typing import Protocol

from hal.errors import HalError
from hal.linux.journal import SqliteJournal
from hal.ports import JournalRecord
from tools.sim.crash.record import PATH, Commit, Recording, Records, inline_reactor, record

MARK = JournalRecord(kind="meta", key="after the cut", value=b'{"v":1,"value":1}')


class Trial(Protocol):
    """One kind of store, and what it promised in this recording."""

    def judge(self, root: str, acknowledged: int, submitted: int) -> str:
        """Open what a cut left in `root`; what is wrong with it, or "". Commits up to number
        `acknowledged` must be there, up to `submitted` may be. Afterwards the store is closed,
        as a program does that ends in order."""
        ...

    def again(self, root: str, seed: int) -> tuple["Trial", Recording] | None:
        """Recover in `root`, go on working, end; all of it recorded, for a second cut anywhere
        in it. None for a store whose recovery writes nothing."""
        ...


class JournalTrial:
    """The production's open, quick_check and load; the state must be a committed prefix."""

    def __init__(self, states: Sequence[Records]) -> None:
        """`states[n]`: all records after n commits."""
        self._states = states

    def judge(self, root: str, acknowledged: int, submitted: int) -> str:
        try:
            found = load(root)
        except HalError as exc:
            return f"it does not open: {type(exc).__name__}: {exc}"
        for commit in range(acknowledged, submitted + 1):
            if found == self._states[commit]:
                return ""
        for commit in range(acknowledged - 1, -1, -1):
            if found == self._states[commit]:
                return (
                    f"acknowledged and lost: {acknowledged} commits were acknowledged, the state "
                    f"is that after {commit}"
                )
        return (
            f"no committed prefix: {len(found)} records are neither what {acknowledged} commits "
            f"left, nor {submitted}, nor any before"
        )

    def again(self, root: str, seed: int) -> tuple[Trial, Recording] | None:
        """Three commits after the recovery, of the same key, so that pages are written over."""
        life = (Commit(((MARK,),)), Commit(((_next(1),), (_next(2),))), Commit(((_next(3),),)))
        recording = record([life], root, seed=seed)
        return JournalTrial(recording.states), recording


def _next(number: int) -> JournalRecord:
    return JournalRecord(kind=MARK.kind, key=MARK.key, value=b'{"v":1,"value":%d}' % number)


def load(root: str) -> Records:
    """All records of the journal in `root`, closed again. Raises HalError."""
    store = SqliteJournal(f"{root}/{PATH}", inline_reactor())
    try:
        return list(store.load())
    finally:
        store.close()
