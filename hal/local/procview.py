"""What /proc says about processes (proc(5)): pids inside a CNM, descendants."""

import os
from collections.abc import Container, Iterable
from pathlib import Path

from hal.linux.procstat import proc_stat as read_stat


def ns_pids(pid: int) -> list[int]:
    """The process's pid in each pid namespace, ours first; empty when it is gone."""
    try:
        # the name in it is whatever the process calls itself, UTF-8 or not
        text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return []
    for line in text.split("\n"):  # the kernel escapes no other end of a line in a name
        if line.startswith("NSpid:"):
            return [int(part) for part in line.split()[1:]]
    return [pid]


def all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def environ_value(pid: int, key: str) -> str | None:
    """What it (or its forerunner) was started with; None when that is nothing, or can't be read."""
    try:
        entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    start = f"{key}=".encode()
    found = (entry.removeprefix(start) for entry in entries if entry.startswith(start))
    return next((os.fsdecode(value) for value in found), None)


def family(
    init_pid: int, *, adopted_by: int, mark: tuple[str, str], inits: Container[int] | None = None
) -> list[int]:
    """Without namespaces: `init_pid`, its session, all their descendants, and the orphans that
    `adopted_by`, the keeper (it is a subreaper), has got from it: those that carry its `mark`, a
    variable and its value.

    With `inits`, the keeper's own children, also orphans that carry no mark at all: an init adopts
    the orphans of its CNM itself, so that these are of an init that is dead, and hide.
    """
    values = (mark[1],) if inits is None else (mark[1], None)
    stats = {pid: stat for pid in all_pids() if (stat := read_stat(pid)) is not None}
    members = {
        pid
        for pid, stat in stats.items()
        if pid == init_pid
        or stat.session == init_pid
        or (
            stat.ppid == adopted_by
            and pid not in (inits or ())
            and environ_value(pid, mark[0]) in values
        )
    }
    children: dict[int, list[int]] = {}
    for pid, stat in stats.items():
        children.setdefault(stat.ppid, []).append(pid)
    queue = list(members)
    for pid in queue:  # grows while it is read; each pid joins once
        for child in children.get(pid, ()):
            if child not in members:
                members.add(child)
                queue.append(child)
    return sorted(members)


def reap(pids: Iterable[int]) -> None:
    """Take the exit status of those that are our dead children."""
    for pid in pids:
        try:
            os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            continue
