"""What really runs on this host, seen without asking the card: /proc, cgroups, files, runc.

Instances carry APF_INSTANCE in their environment; that a process has it is read from /proc,
whatever any daemon believes. Another user's /proc needs root; without it only our own show.
"""

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TICKS_FIELD: Final = 22  # of /proc/PID/stat, proc(5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One process that belongs to an instance."""

    pid: int
    start_ticks: int
    instance: str
    cgroup: str
    argv: tuple[str, ...]


def start_ticks(pid: int) -> int | None:
    """When a process was started, or None when it is gone (or a zombie)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else int(fields[TICKS_FIELD - 3])


def environment(pid: int) -> Mapping[str, str]:
    """A process's environment as it was started with; empty when it can't be read."""
    try:
        data = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    pairs = (item.partition(b"=") for item in data.split(b"\0") if b"=" in item)
    return {key.decode(errors="replace"): value.decode(errors="replace") for key, _, value in pairs}


def cgroup_of(pid: int) -> str:
    """Its v2 cgroup ("0::" line of /proc/PID/cgroup); "" when it has none or is gone."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return ""
    return next((line[3:] for line in lines if line.startswith("0::")), "")


def _pids() -> Iterator[int]:
    yield from (int(name) for name in os.listdir("/proc") if name.isdigit())


def processes(under: str = "") -> list[Seen]:
    """Every live process of an instance, below the v2 cgroup `under`."""
    found = []
    for pid in _pids():
        instance = environment(pid).get("APF_INSTANCE", "")
        if not instance:
            continue
        cgroup, ticks = cgroup_of(pid), start_ticks(pid)
        if ticks is None or not cgroup.startswith(under):
            continue
        try:
            argv = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
        except OSError:
            continue
        found.append(
            Seen(
                pid=pid,
                start_ticks=ticks,
                instance=instance,
                cgroup=cgroup,
                argv=tuple(part.decode(errors="replace") for part in argv),
            )
        )
    return found


def copies(instance: str, under: str = "") -> set[str]:
    """The cgroups in which processes of an instance live: more than one is a second copy."""
    return {_own_cgroup(seen.cgroup) for seen in processes(under) if seen.instance == instance}


def _own_cgroup(cgroup: str) -> str:
    """The instance's cgroup: `/apf/RUN/CNM/i-KEY`, whatever it made below that."""
    return "/".join(cgroup.split("/")[:5])


def namespace_pid(pid: int) -> int | None:
    """The pid that a process has in its innermost pid namespace; 1 for a cnm-init."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    line = next((line for line in lines if line.startswith("NSpid:")), "")
    return int(line.split()[-1]) if line else None


def cgroup_dirs(relative: str) -> list[Path]:
    """Directories of a cgroup that exist, in every hierarchy that is mounted."""
    base = Path("/sys/fs/cgroup")
    roots = [base, *(path for path in base.iterdir() if path.is_dir())] if base.is_dir() else []
    return [root / relative.lstrip("/") for root in roots if (root / relative.lstrip("/")).is_dir()]


def cgroup_cpu_us(relative: str) -> int | None:
    """Processor time that a cgroup has used, by the kernel's own counter."""
    for directory in cgroup_dirs(relative):
        usage = directory / "cpuacct.usage"
        if usage.exists():
            return int(usage.read_text()) // 1000
        stat = directory / "cpu.stat"
        if stat.exists():
            for line in stat.read_text().splitlines():
                if line.startswith("usage_usec "):
                    return int(line.split()[1])
    return None


def runc_states(init_pid: int, root: str) -> list[dict[str, object]]:
    """What `runc list` says inside a CNM's namespaces; empty when there is none."""
    done = subprocess.run(
        ["nsenter", "-t", str(init_pid), "-m", "-p", "runc", "--root", root, "list", "-f", "json"],
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    )
    states = json.loads(done.stdout or "null") if done.returncode == 0 else None
    return states or []
