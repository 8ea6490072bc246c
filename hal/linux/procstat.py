"""What /proc tells about one process. Ref: proc(5)."""

import errno
import os
from dataclasses import dataclass
from typing import Final

_PF_EXITING: Final = 0x4  # linux/sched.h; in field 9 of stat


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcStat:
    name: str  # comm: the program's file name, 15 bytes; kept by a zombie
    state: str  # "R", "S", "Z", ...
    ppid: int
    session: int
    flags: int  # PF_*
    start_ticks: int  # since boot; with the pid it names a process for ever

    @property
    def ending(self) -> bool:
        """It is dead or inside exit(), perhaps held up there."""
        return self.state in "ZX" or bool(self.flags & _PF_EXITING)


def proc_stat(pid: int) -> ProcStat | None:
    """None when there is no such process. Raises OSError when no descriptor is left to look:
    nobody may take that for a death."""
    try:  # the name may hold anything: ")" too, and what is no UTF-8
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="surrogateescape") as file:
            text = file.read()
    except OSError as exc:
        if exc.errno in (errno.EMFILE, errno.ENFILE):
            raise
        return None
    head, _, tail = text.rpartition(")")
    fields = tail.split()
    return ProcStat(
        name=head.partition("(")[2],
        state=fields[0],
        ppid=int(fields[1]),
        session=int(fields[3]),
        flags=int(fields[6]),
        start_ticks=int(fields[19]),
    )


def executable(pid: int) -> tuple[int, int] | None:
    """(device, inode) of the program it runs; None for a zombie, or when it is gone."""
    try:
        info = os.stat(f"/proc/{pid}/exe")
    except OSError:
        return None
    return info.st_dev, info.st_ino


def session_pids(session: int) -> list[int]:
    """Every living process of a session, as this pid namespace sees them."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            stat = proc_stat(int(name))
            if stat is not None and stat.session == session and stat.state not in "ZX":
                found.append(int(name))
    return found
