"""Changes of one record follow each other: each is made of what the one before has left.

One journal record says all of a module. Were two changes of it on their way to the disk at once,
the later would be made without the earlier, and undo it. What waits and only sets flags is written
together, as the journal's group commit would.
"""

from collections.abc import Callable
from typing import Final, TypeAlias

TURNS_MOST: Final = 64  # changes of one record that wait, those that are one counted once
ASKED_MOST: Final = 4096  # callers of one change: as many as the control socket lets ask at once

Flags: TypeAlias = dict[str, bool]
Answer: TypeAlias = Callable[[bool], None]
Commit: TypeAlias = Callable[[Flags, Answer], None]  # begins to write; answers once, now or later


class _Turn:
    """One change that waits, and who asked for it."""

    def __init__(self, commit: Commit, flags: Flags, done: Answer) -> None:
        self.commit = commit
        self.flags = flags
        self.asked = [done]


class Turns:
    """Loop thread only."""

    def __init__(self) -> None:
        self._waiting: dict[str, list[_Turn]] = {}  # by record; there while one is on its way

    def take(self, key: str, commit: Commit, done: Answer, flags: Flags | None = None) -> None:
        """Run `commit` when no other change of the record is on its way; `done(False)` where too
        many wait. A change that is all in its `flags` may be made one with the last that waits."""
        turn = _Turn(commit, dict(flags or {}), done)
        waiting = self._waiting.get(key)
        if waiting is None:
            self._waiting[key] = []
            self._begin(key, turn)
            return
        last = waiting[-1] if waiting else None
        if flags and last is not None and last.flags and len(last.asked) < ASKED_MOST:
            last.flags.update(flags)
            last.asked.append(done)
        elif len(waiting) < TURNS_MOST:
            waiting.append(turn)
        else:
            done(False)

    def _begin(self, key: str, turn: _Turn) -> None:
        turn.commit(turn.flags, lambda good: self._finished(key, turn, good))

    def _finished(self, key: str, turn: _Turn, good: bool) -> None:
        waiting = self._waiting[key]
        following = waiting.pop(0) if waiting else None
        if following is None:
            del self._waiting[key]
        for done in turn.asked:
            done(good)
        if following is not None:
            self._begin(key, following)
