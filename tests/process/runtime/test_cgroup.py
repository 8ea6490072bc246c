"""CgroupTree on this machine's own hierarchies, with real processes in them."""

import os
import subprocess
from pathlib import Path

import pytest

from hal.errors import Refused, Unavailable
from hal.linux.cgroup import CgroupTree
from hal.ports import InstanceLimits, Usage

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(os.geteuid() != 0, reason="cgroups need root"),
]


@pytest.fixture
def sleeper():
    """Starts `sh` trees in a cgroup; reaped at the end."""
    started = []

    def start(group, script="sleep 1000 & sleep 1000 & wait"):
        joins = " ".join(group.join_paths())
        line = f"for f in {joins}; do echo 0 > $f; done; echo ready; {script}"
        process = subprocess.Popen(["sh", "-c", line], stdout=subprocess.PIPE, stdin=-3)
        started.append(process)
        assert process.stdout.readline() == b"ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def wait_for(predicate) -> None:
    end = os.times().elapsed + 20
    while not predicate():
        assert os.times().elapsed < end, "nothing came of it in 20 s"


def test_the_machines_own_hierarchies_are_found() -> None:
    tree = CgroupTree.detect()
    assert tree.mode in ("v1", "v2", "hybrid")
    assert len(set(tree.mounts)) == len(tree.mounts)


V2_ONLY = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
HYBRID = """\
30 23 0:26 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw
31 23 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
32 23 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd,xattr
33 23 0:29 / /mnt/a\\040b rw - cgroup cgroup rw,freezer
"""


def test_every_kind_of_host_is_told_apart() -> None:
    assert CgroupTree.detect(V2_ONLY).mode == "v2"
    assert CgroupTree.detect("22 1 8:1 / / rw - ext4 /dev/sda rw").mode == "none"
    hybrid = CgroupTree.detect(HYBRID)
    assert hybrid.mode == "hybrid"
    assert hybrid.v1["cpuacct"] == "/sys/fs/cgroup/cpu,cpuacct"
    assert hybrid.v1["freezer"] == "/mnt/a b"
    assert CgroupTree.detect("\n".join(HYBRID.splitlines()[1:])).mode == "v1"


def test_a_host_without_cgroups_says_so() -> None:
    with pytest.raises(Unavailable, match="no cgroup hierarchy"):
        CgroupTree().create("/apf/x")


@pytest.mark.parametrize("path", ["", "/", "/a/../b", "a//b"])
def test_the_root_and_paths_that_are_not_plain_are_refused(tree: CgroupTree, path: str) -> None:
    with pytest.raises(Refused):
        tree.at(path)


def test_processes_are_counted_killed_and_removed(tree, cgroup_path, sleeper) -> None:
    group = tree.create(f"{cgroup_path}/a/b")
    assert not group.populated()
    process = sleeper(group)
    above = tree.at(cgroup_path)
    wait_for(lambda: len(above.procs()) == 3)
    assert process.pid in above.procs()
    assert above.populated()
    assert above.remove()  # says what stayed
    above.kill()
    wait_for(lambda: not above.populated())
    process.wait()
    wait_for(lambda: not above.remove())
    assert not above.exists()
    assert not above.populated()


@pytest.mark.parametrize("how", ["v1", "best"])
def test_what_is_frozen_dies_of_kill(tree, cgroup_path, sleeper, how: str) -> None:
    group = tree.create(cgroup_path)
    sleeper(group)
    if how == "v1":
        state = Path(group.v1_dir("freezer") or "/nowhere") / "freezer.state"
        if not state.exists():
            pytest.skip("no v1 freezer here")
        state.write_text("FROZEN")
        wait_for(lambda: state.read_text() == "FROZEN\n")
    else:
        group.freeze()
    group.kill()
    wait_for(lambda: not group.populated())


def test_what_was_thawed_goes_on(tree, cgroup_path, sleeper) -> None:
    group = tree.create(cgroup_path)
    group.freeze()
    process = subprocess.Popen(["sleep", "0"])
    group.add(process.pid)
    group.thaw()
    assert process.wait() == 0


def test_a_process_can_be_moved_in(tree, cgroup_path) -> None:
    group = tree.create(cgroup_path)
    process = subprocess.Popen(["sleep", "1000"])
    group.add(process.pid)
    assert group.procs() == [process.pid]
    group.kill()
    assert process.wait() == -9


def test_usage_is_read_and_none_where_there_is_nothing(tree, cgroup_path, sleeper) -> None:
    group = tree.create(cgroup_path, InstanceLimits(memory_bytes=64 << 20, pids=10))
    assert group.notes == []
    sleeper(group, "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo done; sleep 1000")
    wait_for(lambda: (group.usage().cpu_us or 0) > 0)
    usage = group.usage()
    assert usage.memory_bytes > 0
    assert usage.memory_peak_bytes >= usage.memory_bytes // 2
    assert usage.pids >= 1
    assert group.oom_kills() == 0
    assert tree.at(f"{cgroup_path}/absent").usage() == Usage()
    assert tree.at(f"{cgroup_path}/absent").oom_kills() is None


def test_the_pids_limit_holds(tree, cgroup_path, sleeper) -> None:
    group = tree.create(cgroup_path, InstanceLimits(pids=3))
    process = sleeper(group, "(sleep 9 & sleep 9 & sleep 9 & sleep 9 & wait) 2>&1")
    assert b"fork" in process.stdout.readline()
    assert len(group.procs()) <= 3


def test_a_limit_that_cannot_be_set_is_noted(tmp_path) -> None:
    (tmp_path / "v2").mkdir()
    tree = CgroupTree(v2=str(tmp_path / "v2"))  # a plain directory: no controller files at all
    group = tree.create("/apf/x", InstanceLimits(cpu_milli=10, memory_bytes=1, pids=1))
    assert [note.split("no ")[1].split(" ")[0] for note in group.notes] == [
        "cpu",
        "memory",
        "pids",
    ]
