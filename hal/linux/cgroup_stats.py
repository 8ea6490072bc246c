"""What cgroups tell: usage and OOM kills. Ref: cgroup-v2.rst "Controllers"; cgroup-v1/cpuacct.rst,
memory.rst 5.2 and 10, blkio-controller.rst."""

import re
from collections.abc import Mapping
from typing import Final

from hal.ports import Usage

_COUNT: Final = re.compile(r"[0-9]{1,20}")  # of 64 bits
_SHORT: Final = 65_536  # bytes read of one file; io.stat of a big host is a few KiB


def usage(v2_dir: str, v1: Mapping[str, str]) -> Usage:
    """From the v2 files where the controller is there, else from the v1 ones. Memory is the working
    set: without the file cache that was not touched again, which the kernel takes back whenever
    somebody needs it (as cAdvisor and the kubelet count it). The peak is the kernel's, with it."""
    cpu_us = fields(f"{v2_dir}/cpu.stat").get("usage_usec") if v2_dir else None
    if cpu_us is None and (cpu_ns := number(v1.get("cpuacct"), "cpuacct.usage")) is not None:
        cpu_us = cpu_ns // 1000
    memory = number(v2_dir, "memory.current")
    if memory is not None:
        memory -= fields(f"{v2_dir}/memory.stat").get("inactive_file", 0)
    elif (memory := number(v1.get("memory"), "memory.usage_in_bytes")) is not None:
        memory -= fields(f"{v1['memory']}/memory.stat").get("total_inactive_file", 0)
    peak = number(v2_dir, "memory.peak")  # Linux 5.19
    if peak is None:
        peak = number(v1.get("memory"), "memory.max_usage_in_bytes")
    pids = number(v2_dir, "pids.current")
    if pids is None:
        pids = number(v1.get("pids"), "pids.current")
    return Usage(
        cpu_us=cpu_us,
        memory_bytes=None if memory is None else max(memory, 0),  # two reads, not one
        memory_peak_bytes=peak,
        pids=pids,
        io_bytes=_io_bytes(v2_dir, v1.get("blkio", "")),
    )


def oom_kills(v2_dir: str, v1_memory_dir: str) -> int | None:
    """None where neither tells. memory.failcnt is no reason: it stays 0 when the swap limit is
    the one that was hit (tried)."""
    if v2_dir:
        events = fields(f"{v2_dir}/memory.events")
        if "oom_kill" in events:
            return events["oom_kill"]
    if v1_memory_dir:
        return fields(f"{v1_memory_dir}/memory.oom_control").get("oom_kill")
    return None


def fields(path: str) -> dict[str, int]:
    """A flat-keyed file: "name number" lines; {} when it can't be read."""
    found = {}
    for line in _text(path).splitlines():
        name, _, value = line.partition(" ")
        if _COUNT.fullmatch(value):
            found[name] = int(value)
    return found


def number(directory: str | None, name: str) -> int | None:
    """A single-value file; None when it is absent or says "max"."""
    text = _text(f"{directory}/{name}").strip() if directory else ""
    return int(text) if _COUNT.fullmatch(text) else None


def _io_bytes(v2_dir: str, blkio_dir: str) -> int | None:
    if v2_dir and (text := _text(f"{v2_dir}/io.stat")):
        total = 0
        for word in text.split():
            name, _, value = word.partition("=")
            if name in ("rbytes", "wbytes") and _COUNT.fullmatch(value):
                total += int(value)
        return total
    if blkio_dir:
        for line in _text(f"{blkio_dir}/blkio.throttle.io_service_bytes_recursive").splitlines():
            name, _, value = line.partition(" ")
            if name == "Total" and _COUNT.fullmatch(value):
                return int(value)
    return None


def _text(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read(_SHORT)
    except OSError:
        return ""
