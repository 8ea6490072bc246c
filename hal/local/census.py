"""Who runs in a CNM: its own pids and the host's (pid_namespaces(7), proc(5) NSpid)."""

import os
from collections.abc import Container, Iterator
from dataclasses import dataclass

from hal.linux.procstat import proc_stat
from hal.local import procview
from hal.local.cgroups import SlotCgroup


@dataclass(frozen=True, slots=True, kw_only=True)
class CnmProcess:
    """One process, both ways."""

    nspid: int  # as the CNM's init sees it
    pid: int  # as the host does
    start_ticks: int
    cgroup: str  # relative to the mount; "" where there is none of its own


def take_census(
    init_pid: int,
    cgroup: SlotCgroup | None,
    *,
    namespaces: bool,
    mark: tuple[str, str],
    wanted: Container[int] | None = None,
) -> list[CnmProcess]:
    """All processes of the CNM whose init this is, or those of the wanted nspids."""
    found: list[CnmProcess] = []
    # A container has a pid namespace of its own below the CNM's, so the last of its pids is not
    # what the CNM knows it by: the one at the init's own depth is.
    depth = len(procview.ns_pids(init_pid)) - 1
    for pid, path in _members(init_pid, cgroup, namespaces=namespaces, mark=mark):
        pids = procview.ns_pids(pid)
        if not 0 <= depth < len(pids) or (wanted is not None and pids[depth] not in wanted):
            continue
        stat = proc_stat(pid)
        if stat is not None:
            found.append(
                CnmProcess(nspid=pids[depth], pid=pid, start_ticks=stat.start_ticks, cgroup=path)
            )
    return found


def _members(
    init_pid: int, cgroup: SlotCgroup | None, *, namespaces: bool, mark: tuple[str, str]
) -> Iterator[tuple[int, str]]:
    if cgroup is not None:
        yield from cgroup.processes()
    elif not namespaces:
        for pid in procview.family(init_pid, adopted_by=os.getpid(), mark=mark):
            yield pid, ""
    else:
        own = _pid_namespace(init_pid)
        for pid in procview.all_pids():
            if own and _pid_namespace(pid) == own:
                yield pid, ""


def _pid_namespace(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""
