"""LinuxSpawner and Children with real programs."""

import os
import signal
import subprocess
import sys

import pytest

from hal.errors import Refused, Unavailable
from hal.linux.cgroup import CgroupTree
from hal.linux.children import Children
from hal.linux.spawner import LinuxSpawner
from hal.ports import Event, ProcessSpec

pytestmark = pytest.mark.process
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="cgroups need root")
PATH = {"PATH": os.environ["PATH"]}


@pytest.fixture
def spawner(children: Children, tree: CgroupTree) -> LinuxSpawner:
    return LinuxSpawner(children, tree)


def sh(script: str, **more) -> ProcessSpec:
    return ProcessSpec(argv=["/bin/sh", "-c", script], env=PATH, **more)


@pytest.mark.parametrize(("script", "status"), [("exit 7", 7), ("true", 0), ("kill -9 $$", -9)])
def test_the_exit_status_comes_once(spawner, until, script: str, status: int) -> None:
    seen: list[int] = []
    process = spawner.spawn(sh(script), seen.append)
    until(lambda: bool(seen))
    assert seen == [status]
    process.kill(signal.SIGTERM)  # long gone: nothing happens
    with pytest.raises(ChildProcessError):
        os.waitpid(process.pid, os.WNOHANG)  # it was reaped


def test_a_signal_ends_it(spawner, until) -> None:
    seen: list[int] = []
    process = spawner.spawn(sh("sleep 1000"), seen.append)
    assert os.getsid(process.pid) == process.pid
    process.kill(signal.SIGTERM)
    until(lambda: bool(seen))
    assert seen == [-signal.SIGTERM]


def test_a_program_that_is_not_there_is_an_error_at_once(spawner) -> None:
    with pytest.raises(Unavailable, match="no/such"):
        spawner.spawn(ProcessSpec(argv=["/no/such"]), lambda _: None)
    with pytest.raises(Refused, match="argv"):
        spawner.spawn(ProcessSpec(argv=[]), lambda _: None)


def test_env_and_log_are_what_was_asked(spawner, until, tmp_path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    seen: list[int] = []
    spec = ProcessSpec(argv=["/usr/bin/env"], env={"A": "1"}, log_path=str(log))
    spawner.spawn(spec, seen.append)
    until(lambda: bool(seen))
    assert log.read_text() == "before\nA=1\n"


@pytest.mark.parametrize("in_cgroup", [False, pytest.param(True, marks=root_only)])
def test_a_passed_descriptor_is_a_stream_both_ways(
    spawner, loop, until, cgroup_path, in_cgroup: bool
) -> None:
    ours, fd = spawner.stream_pair()
    seen: list[int] = []
    script = f"import os; os.write({fd}, b'got ' + os.read({fd}, 100))"
    spec = ProcessSpec(
        argv=[sys.executable, "-I", "-S", "-c", script],
        pass_fds=[fd],
        cgroup=f"{cgroup_path}/a" if in_cgroup else None,
    )
    spawner.spawn(spec, seen.append)
    assert ours.write(b"ping\n") == 5
    got: list[bytes] = []
    loop.watch(ours.handle, Event.READ, lambda _: got.append(ours.read()) if not got else None)
    until(lambda: bool(got and seen))
    assert got == [b"got ping\n"]
    loop.unwatch(ours.handle)
    ours.close()


@root_only
def test_it_is_in_its_cgroup_before_its_first_instruction(
    spawner, until, tree, cgroup_path, tmp_path
) -> None:
    log = tmp_path / "log"
    seen: list[int] = []
    spec = sh("cat /proc/self/cgroup; env", cgroup=f"{cgroup_path}/leaf", log_path=str(log))
    process = spawner.spawn(spec, seen.append)
    assert process.pid > 0
    until(lambda: bool(seen))
    assert seen == [0]
    assert spawner.notes == []
    text = log.read_text()
    if tree.v2:
        assert f"0::{cgroup_path}/leaf\n" in text
    for controller in ("cpu", "memory", "pids"):
        if controller in tree.v1:
            assert f":{controller}" in text
    assert text.count(f"{cgroup_path}/leaf") >= 1
    assert "LC_ALL" not in text  # the stub adds nothing to the environment
    assert "PYTHON" not in text


@root_only
def test_in_a_cgroup_a_program_that_is_not_there_ends_with_127(
    spawner, until, cgroup_path, tmp_path
) -> None:
    seen: list[int] = []
    log = tmp_path / "log"
    spec = ProcessSpec(argv=["/no/such"], cgroup=cgroup_path, log_path=str(log))
    spawner.spawn(spec, seen.append)
    until(lambda: bool(seen))
    assert seen == [127]
    assert "/no/such" in log.read_text()


def test_without_cgroups_it_runs_and_says_what_it_went_without(children, until) -> None:
    spawner = LinuxSpawner(children, CgroupTree())
    seen: list[int] = []
    spawner.spawn(sh("exit 3", cgroup="/apf/x"), seen.append)
    assert "no cgroup hierarchy" in spawner.notes[0]
    until(lambda: bool(seen))
    assert seen == [3]


def test_orphans_are_reaped_and_no_known_status_is_stolen(
    spawner, children: Children, until, python
) -> None:
    seen: list[int] = []
    # Leaves an orphan that ends at once, and ends itself with 5.
    spawner.spawn(sh("sleep 0 & exec sh -c 'exit 5'"), seen.append)
    reaped = []

    def both() -> bool:
        reaped.append(children.reap_orphans())
        return bool(seen) and sum(reaped) >= 1

    until(both)
    assert seen == [5]


def test_the_end_of_a_process_that_is_not_ours_is_seen_without_a_status(
    children: Children, until
) -> None:
    middle = subprocess.Popen(
        [sys.executable, "-c", "import subprocess; p = subprocess.Popen(['sleep', '1000']);"
         "print(p.pid, flush=True); p.wait()"],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    pid = int(middle.stdout.readline())
    seen: list[int | None] = []
    child = children.watch(pid, seen.append)
    child.kill(signal.SIGKILL)
    until(lambda: bool(seen))
    assert seen == [None]
    assert middle.wait() == 0
    middle.stdout.close()
