"""What cgroups of both versions have counted, out of files laid out as a kernel lays them out."""

from pathlib import Path

import pytest

from hal.linux import cgroup_stats


def put(folder: Path, **files: str) -> str:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")
    return str(folder)


def test_the_newer_version_is_asked_first(tmp_path: Path) -> None:
    v2 = put(tmp_path / "v2", cpu__stat="usage_usec 7\nuser_usec 1", memory__current="4096")
    put(tmp_path / "v2", memory__stat="inactive_file 96", memory__events="oom 3\noom_kill 2")
    put(tmp_path / "v2", io__stat="8:0 rbytes=10 wbytes=20 rios=1\n8:16 rbytes=1")
    v1 = put(tmp_path / "v1", cpuacct__usage="5000", memory__usage_in_bytes="1")
    usage = cgroup_stats.usage(v2, {"cpuacct": v1, "memory": v1})
    assert (usage.cpu_us, usage.memory_bytes, usage.io_bytes) == (7, 4000, 31)
    assert cgroup_stats.oom_kills(v2, v1) == 2


def test_the_older_version_tells_where_the_newer_has_no_controller(tmp_path: Path) -> None:
    v1 = put(tmp_path / "v1", cpuacct__usage="5000", memory__usage_in_bytes="10", pids__current="3")
    put(tmp_path / "v1", blkio__throttle__io_service_bytes_recursive="8:0 Total 7\nTotal 9")
    usage = cgroup_stats.usage("", dict.fromkeys(("cpuacct", "memory", "pids", "blkio"), v1))
    assert (usage.cpu_us, usage.memory_bytes, usage.pids, usage.io_bytes) == (5, 10, 3, 9)


@pytest.mark.parametrize("odd", ["", "max", "-1", "9" * 5_000, "1_0", "0x10", "٣"])
def test_a_number_that_no_kernel_writes_is_not_told(tmp_path: Path, odd: str) -> None:
    v2 = put(tmp_path / "v2", cpu__stat=f"usage_usec {odd}", memory__current=odd)
    put(tmp_path / "v2", pids__current=odd, memory__events=f"oom_kill {odd}")
    v1 = put(tmp_path / "v1", blkio__throttle__io_service_bytes_recursive=f"Total {odd}")
    usage = cgroup_stats.usage(v2, {"blkio": v1})
    assert (usage.cpu_us, usage.memory_bytes, usage.pids, usage.io_bytes) == (None,) * 4
    assert cgroup_stats.oom_kills(v2, "") is None
