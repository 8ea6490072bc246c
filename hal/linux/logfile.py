"""Where a daemon's words go: its standard error, wherever that leads, and never without a bound."""

import contextlib
import fcntl
import os
import stat
import sys
from datetime import UTC, datetime
from pathlib import Path

from hal.linux.oserror import hal_error

KEPT_BYTES = 1 << 20  # of a log that grew too long, in NAME.1


def say(who: str, text: str) -> None:
    """One line on stderr with the time. A stderr that is gone must not stop the caller."""
    now = datetime.now(UTC)
    line = f"{now:%Y-%m-%dT%H:%M:%S}.{now.microsecond // 1000:03d}Z {who}: {text}\n"
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(line)
        sys.stderr.flush()


def log_target(directory: str | Path) -> str:
    """A path that children can append to so that their words join ours: the file or terminal
    behind our stderr, else `supervisor.log` in `directory`. A file is set to append, because
    several processes will write to it."""
    try:
        found = os.fstat(2)
        path = os.readlink("/proc/self/fd/2")
        if stat.S_ISREG(found.st_mode) and os.path.samestat(found, os.stat(path)):
            flags = fcntl.fcntl(2, fcntl.F_GETFL)
            fcntl.fcntl(2, fcntl.F_SETFL, flags | os.O_APPEND)
            return path
        if stat.S_ISCHR(found.st_mode) and os.path.samestat(found, os.stat(path)):
            return path
    except OSError:
        pass  # closed, or a file that was removed: the default serves
    return str(Path(directory) / "supervisor.log")


def trim_log(path: str, limit_bytes: int) -> bool:
    """Keep the last part of a log that grew beyond `limit_bytes` in `path`.1 and empty it in
    place (its writers append). A line that is written in between is lost. Raises HalError."""
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode) or found.st_size <= limit_bytes:
            return False
        with open(path, "r+b") as log:
            log.seek(-min(KEPT_BYTES, found.st_size), os.SEEK_END)
            Path(f"{path}.1").write_bytes(log.read(KEPT_BYTES))
            log.truncate(0)
    except FileNotFoundError:
        return False
    except OSError as exc:
        raise hal_error(exc, f"log {path}") from exc
    return True
