"""The limits that the kernel holds an instance to. Ref: cgroups(7), cgroup-v2.rst, v1 cpu and
memory documents of the kernel; getrlimit(2) where there is no cgroup."""

from dataclasses import dataclass
from pathlib import Path

from tools.demo import observe


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """None: the kernel holds it to nothing there."""

    cpu_milli: int | None
    memory_bytes: int | None
    pids: int | None


def limits_of(cgroup: str) -> Limits:
    """Of a cgroup, from whichever hierarchy has the controller."""
    directories = observe.cgroup_dirs(cgroup)
    return Limits(
        cpu_milli=_cpu_milli(directories),
        memory_bytes=_first(directories, ("memory.limit_in_bytes", "memory.max")),
        pids=_first(directories, ("pids.max",)),
    )


def rlimits_of(pid: int) -> Limits:
    """Of a process: its address space."""
    lines = _read(Path(f"/proc/{pid}/limits")).splitlines()
    words = next((line.split() for line in lines if line.startswith("Max address space")), [])
    soft = words[3] if len(words) > 3 else ""
    return Limits(cpu_milli=None, memory_bytes=int(soft) if soft.isdigit() else None, pids=None)


def _cpu_milli(directories: list[Path]) -> int | None:
    quota = _first(directories, ("cpu.cfs_quota_us",))
    period = _first(directories, ("cpu.cfs_period_us",))
    if quota is not None and period:
        return 1000 * quota // period if quota > 0 else None
    for directory in directories:
        text = _read(directory / "cpu.max").split()
        if len(text) == 2 and text[0] != "max":
            return 1000 * int(text[0]) // int(text[1])
    return None


def _first(directories: list[Path], names: tuple[str, ...]) -> int | None:
    for directory in directories:
        for name in names:
            text = _read(directory / name).strip()
            if text.lstrip("-").isdigit():
                return int(text)
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
