"""What /proc says about processes (proc(5)): start times, pids inside a CNM, descendants."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_PF_EXITING: Final = 0x4  # linux/sched.h; in field 9 of stat


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcStat:
    state: str
    ppid: int
    session: int
    flags: int
    start_ticks: int

    @property
    def ending(self) -> bool:
        """It is dead or inside exit(), perhaps held up there."""
        return self.state in "ZX" or bool(self.flags & _PF_EXITING)


def read_stat(pid: int) -> ProcStat | None:
    """None when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # the name (field 2) is in brackets and may hold anything; field 3 begins after the last one
    fields = text.rpartition(")")[2].split()
    return ProcStat(
        state=fields[0],
        ppid=int(fields[1]),
        session=int(fields[3]),
        flags=int(fields[6]),
        start_ticks=int(fields[19]),
    )


def ns_pids(pid: int) -> list[int]:
    """The process's pid in each pid namespace, ours first; empty when it is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return []
    for line in text.splitlines():
        if line.startswith("NSpid:"):
            return [int(part) for part in line.split()[1:]]
    return [pid]


def all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def has_in_environ(pid: int, entry: str) -> bool:
    """Was it (or its forerunner) started with this "KEY=value"?"""
    try:
        return entry.encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def family(init_pid: int, adopted_by: int, mark: str) -> list[int]:
    """Without namespaces: `init_pid`, its session, all their descendants, and orphans that the
    keeper adopted (it is a subreaper) and that carry the slot's mark in their environment."""
    stats = {pid: stat for pid in all_pids() if (stat := read_stat(pid)) is not None}
    members = {
        pid
        for pid, stat in stats.items()
        if pid == init_pid
        or stat.session == init_pid
        or (stat.ppid == adopted_by and has_in_environ(pid, mark))
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
