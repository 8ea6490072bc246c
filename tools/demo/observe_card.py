"""The card's own processes, links, windows, cgroups and mounts, as this host shows them."""

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tools.demo import observe

INIT: Final = "firmware.cnm.init"
AGENT: Final = "firmware.cnm.agent"
DAEMON: Final = "firmware.app"
KEEPER: Final = "hal.local.keeper"
SUPERVISOR: Final = "firmware.supervisor"
MODULES: Final = (INIT, AGENT, DAEMON, KEEPER, SUPERVISOR)


@dataclass(frozen=True, slots=True, kw_only=True)
class CardProcess:
    """A process of the stack itself."""

    pid: int
    start_ticks: int
    module: str
    cnm: str  # of inits and agents


def card_processes(run: Path) -> list[CardProcess]:
    """All that were started for this run directory, by their command lines."""
    found = []
    for pid in observe.pids():
        argv = observe.command_line(pid)
        module = argv[argv.index("-m") + 1] if "-m" in argv[:-1] else ""
        path = next((word for word in argv if Path(word).is_relative_to(run)), "")
        ticks = observe.start_ticks(pid)
        if module in MODULES and path and ticks is not None:
            cnm = _cnm_of_config(Path(path)) if module in (INIT, AGENT) else ""
            found.append(CardProcess(pid=pid, start_ticks=ticks, module=module, cnm=cnm))
    return found


def _cnm_of_config(path: Path) -> str:
    """`.../cnm-config/cnm0.json` of an init, `.../cnm/cnm0/cnm.json` of an agent."""
    return path.stem if path.parent.name == "cnm-config" else path.parent.name


def by_cnm(run: Path, module: str) -> dict[str, CardProcess]:
    """The inits, or the agents. Of two with one CNM the newer."""
    rows = sorted(card_processes(run), key=lambda item: item.start_ticks)
    return {item.cnm: item for item in rows if item.module == module}


def one(run: Path, module: str) -> CardProcess | None:
    """The only process of that module; None when there is none or more than one."""
    rows = [item for item in card_processes(run) if item.module == module]
    return rows[0] if len(rows) == 1 else None


def cnm_by_parents(pid: int, inits: Mapping[int, str]) -> str:
    """The CNM whose init is an ancestor of a process; `inits`: pid -> CNM. "" when none is."""
    while pid > 1:
        if pid in inits:
            return inits[pid]
        pid = observe.parent_of(pid)
    return ""


def pid_namespace(pid: int) -> str:
    """`pid:[4026531836]`; "" when it can't be read."""
    return _link(f"/proc/{pid}/ns/pid")


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def open_files(pid: int) -> set[str]:
    """What its descriptors point to."""
    try:
        numbers = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return set()
    return {_link(f"/proc/{pid}/fd/{number}") for number in numbers}


def shared_memory(pid: int, name: str) -> set[str]:
    """Inodes of the windows of that CNM which it has mapped."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError:
        return set()
    rows = (line.split(maxsplit=5) for line in lines)
    return {row[4] for row in rows if len(row) == 6 and row[5] == f"/memfd:apf-{name} (deleted)"}


def mounts_below(place: Path, pid: int | str = "self") -> list[str]:
    """Mount points below a directory, in that process's namespace."""
    try:
        lines = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    except OSError:
        return []
    points = (line.split()[4].encode().decode("unicode_escape") for line in lines)
    return [point for point in points if Path(point).is_relative_to(place)]


def cgroups_below(relative: str) -> list[Path]:
    """Every directory of a cgroup's tree, in every hierarchy, deepest first."""
    found = []
    for top in observe.cgroup_dirs(relative):
        for directory, _, _ in os.walk(top, topdown=False):
            found.append(Path(directory))
    return found


def pids_in(relative: str) -> set[int]:
    """All processes in a cgroup's tree, in any hierarchy."""
    found: set[int] = set()
    for directory in cgroups_below(relative):
        with contextlib.suppress(OSError):
            found.update(map(int, (directory / "cgroup.procs").read_text().split()))
    return found
