"""The mock's journal: what was done to it, bounded, with a hash that shows determinism (I11)."""

import hashlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

KEEP_DEFAULT: Final = 20_000
_HASH_EVERY: Final = 1024  # lines hashed at once: one update a line would cost more than the line


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceEntry:
    """One thing that happened. `at_ns` is kernel time, `who` a node or a device."""

    at_ns: int
    who: str
    what: str
    detail: str


class Trace:
    """The last `keep` entries, and the SHA-256 over all that ever were."""

    def __init__(self, keep: int = KEEP_DEFAULT) -> None:
        self._kept: deque[tuple[int, str, str, str]] = deque(maxlen=keep)
        self._pending: list[str] = []
        self._hash = hashlib.sha256()
        self.count = 0
        self.sink: Callable[[str], None] | None = None  # gets every line, many at a time

    def note(self, at_ns: int, who: str, what: str, detail: str = "") -> None:
        """Add one entry; the oldest falls out when the trace is full."""
        self.count += 1
        self._kept.append((at_ns, who, what, detail))
        self._pending.append(f"{at_ns} {who} {what} {detail}\n")
        if len(self._pending) >= _HASH_EVERY:
            self._flush()

    def sha256(self) -> str:
        """Hash of every entry so far, in hex: equal for equal runs."""
        self._flush()
        return self._hash.copy().hexdigest()

    def entries(self, *, who: str | None = None, what: str | None = None) -> list[TraceEntry]:
        """What is still kept, oldest first, narrowed by exact `who` and `what`."""
        return [
            TraceEntry(at_ns=at_ns, who=by, what=done, detail=detail)
            for at_ns, by, done, detail in self._kept
            if (who is None or by == who) and (what is None or done == what)
        ]

    def _flush(self) -> None:
        if self._pending:
            lines = "".join(self._pending)
            self._pending.clear()
            self._hash.update(lines.encode())
            if self.sink is not None:
                self.sink(lines)
