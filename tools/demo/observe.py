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

TOKEN: Final = "DEMO_TOKEN"  # noqa: S105  (a variable's name; it tells one demo from another)
STATE_FIELD: Final = 3  # of /proc/PID/stat, proc(5); the fields behind the name in parentheses
PARENT_FIELD: Final = 4
SESSION_FIELD: Final = 6
TICKS_FIELD: Final = 22
CGROUP_ROOT: Final = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One process that belongs to an instance."""

    pid: int
    start_ticks: int
    instance: str
    cgroup: str
    argv: tuple[str, ...]
    session: int = 0


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the state on, or None when it is gone or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else fields


def start_ticks(pid: int) -> int | None:
    """When a process was started, or None when it is gone (or a zombie)."""
    fields = _stat(pid)
    return None if fields is None else int(fields[TICKS_FIELD - STATE_FIELD])


def parent_of(pid: int) -> int:
    """Its parent's pid; 0 when it has none or is gone."""
    fields = _stat(pid)
    return 0 if fields is None else int(fields[PARENT_FIELD - STATE_FIELD])


def environment(pid: int) -> Mapping[str, str]:
    """A process's environment as it was started with; empty when it can't be read."""
    try:
        data = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    pairs = (item.partition(b"=") for item in data.split(b"\0") if b"=" in item)
    return {key.decode(errors="replace"): value.decode(errors="replace") for key, _, value in pairs}


def command_line(pid: int) -> tuple[str, ...]:
    """Its argv; empty when it can't be read."""
    try:
        data = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return ()
    return tuple(part.decode(errors="replace") for part in data.rstrip(b"\0").split(b"\0"))


def cgroup_of(pid: int) -> str:
    """Its v2 cgroup ("0::" line of /proc/PID/cgroup); "" when it has none or is gone."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return ""
    return next((line[3:] for line in lines if line.startswith("0::")), "")


def pids() -> Iterator[int]:
    """Every process that /proc shows."""
    yield from (int(name) for name in os.listdir("/proc") if name.isdigit())


def processes(under: str = "", token: str = "") -> list[Seen]:
    """Every live process of an instance, below the v2 cgroup `under`; with a token only those
    that carry it, wherever they are."""
    found = []
    for pid in pids():
        variables = environment(pid)
        instance = variables.get("APF_INSTANCE", "")
        if not instance or (token and variables.get(TOKEN) != token):
            continue
        cgroup, fields = cgroup_of(pid), _stat(pid)
        if fields is None or not cgroup.startswith(under):
            continue
        found.append(
            Seen(
                pid=pid,
                start_ticks=int(fields[TICKS_FIELD - STATE_FIELD]),
                instance=instance,
                cgroup=cgroup,
                argv=command_line(pid),
                session=int(fields[SESSION_FIELD - STATE_FIELD]),
            )
        )
    return found


def copies(instance: str, under: str = "") -> set[str]:
    """The cgroups in which processes of an instance live: more than one is a second copy."""
    return {own_cgroup(seen.cgroup) for seen in processes(under) if seen.instance == instance}


def own_cgroup(cgroup: str) -> str:
    """The instance's cgroup: `/apf/RUN/CNM/i-KEY`, whatever it made below that."""
    return "/".join(cgroup.split("/")[:5])


def cnm_of(cgroup: str) -> str:
    """The CNM's part of `/apf/RUN/CNM/...`; "" when it is none of ours."""
    parts = cgroup.split("/")
    return parts[3] if len(parts) > 3 and parts[1] == "apf" else ""


def namespace_pid(pid: int) -> int | None:
    """The pid that a process has in its innermost pid namespace; 1 for a cnm-init."""
    numbers = _namespace_pids(pid)
    return numbers[-1] if numbers else None


def pid_in(pid: int, init_pid: int) -> int:
    """The pid that a process has in the pid namespace of a cnm-init; 0 when it has none there."""
    depth = len(_namespace_pids(init_pid))
    numbers = _namespace_pids(pid)
    return numbers[depth - 1] if 0 < depth <= len(numbers) else 0


def _namespace_pids(pid: int) -> list[int]:
    """The NSpid line of /proc/PID/status, outermost first."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return []
    line = next((line for line in lines if line.startswith("NSpid:")), "NSpid:")
    return [int(word) for word in line.split()[1:]]


def cgroup_dirs(relative: str) -> list[Path]:
    """Directories of a cgroup that exist, in every hierarchy that is mounted."""
    roots = [CGROUP_ROOT, *(path for path in CGROUP_ROOT.iterdir() if path.is_dir())]
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
