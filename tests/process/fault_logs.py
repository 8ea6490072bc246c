"""What the card's processes write to their logs, read while they write it.

A log is cut and replaced now and then; a traceback in it is a bug, whether or not the process
came back: every error that is expected has words of its own.
"""

from pathlib import Path
from typing import Final

from tests.process.local_card import LocalCard

TRACEBACK: Final = "Traceback (most recent call last)"
KEPT_LINES: Final = 100


class LogWatch:
    """Call `look` often enough that no log is replaced unread."""

    def __init__(self, card: LocalCard) -> None:
        self.tracebacks: list[str] = []
        self._run = card.run
        self._read: dict[tuple[Path, int], int] = {}  # (path, inode) -> bytes

    def look(self) -> None:
        """Take what came since the last look."""
        for path in [*self._run.glob("*.log"), *self._run.glob("cnm/*/*.log")]:
            try:
                with path.open("rb") as file:
                    key = path, path.stat().st_ino
                    size = file.seek(0, 2)
                    begin = self._read.get(key, 0)
                    file.seek(begin if begin <= size else 0)
                    text = file.read().decode(errors="replace")
                    self._read[key] = file.tell()
            except OSError:  # it has just been replaced
                continue
            for part in text.split(TRACEBACK)[1:]:
                lines = [TRACEBACK, *part.splitlines()[1:KEPT_LINES]]
                self.tracebacks.append("\n".join([f"{path.relative_to(self._run)}:", *lines]))
