"""What is read from /proc and cgroups, on real processes and on files written by hand."""

import contextlib
import os
import subprocess
import sys

import pytest

from tools.demo import observe, observe_card
from tools.demo.errors import StepFailed
from tools.demo.observe import Seen
from tools.demo.observe_limits import Limits, limits_of, rlimits_of
from tools.demo.sampler import Sampler, by_copy, first_pids, is_first, refuse_double

SHELL = ["/bin/sh", "-c", "while :; do sleep 1; done"]
ENV = {"APF_INSTANCE": "shop/web/0", observe.TOKEN: "t1", "PATH": "/usr/bin:/bin"}


class TickingClock:
    """Every look at it is a millisecond."""

    def __init__(self):
        self.ns = 0

    def now_ns(self):
        self.ns += 1_000_000
        return self.ns


@pytest.fixture
def start():
    children = []

    def run(**env):
        child = subprocess.Popen(SHELL, env=ENV | env, start_new_session=True)
        children.append(child)
        while observe.environment(child.pid).get("APF_INSTANCE") is None:
            assert child.poll() is None
        return child

    yield run
    for child in children:
        with contextlib.suppress(ProcessLookupError):  # a test ended and reaped it
            os.killpg(child.pid, 9)
        child.wait()


def seen(pid, *, cgroup="/", session=0, argv=("/bin/sh", "-c", "x"), instance="shop/web/0"):
    return Seen(
        pid=pid, start_ticks=1, instance=instance, cgroup=cgroup, argv=argv, session=session or pid
    )


@pytest.mark.process
def test_an_instances_processes_are_known_by_their_environment(start):
    child, other = start(), start(DEMO_TOKEN="t2")
    found = {item.pid: item for item in observe.processes(token="t1")}
    assert child.pid in found
    assert other.pid not in found
    item = found[child.pid]
    assert item.instance == "shop/web/0"
    assert item.argv == tuple(SHELL)
    assert item.session == child.pid
    assert item.start_ticks == observe.start_ticks(child.pid)
    assert item.cgroup == observe.cgroup_of(child.pid)
    assert is_first(item)


@pytest.mark.process
def test_what_is_gone_or_a_zombie_has_no_start_time(start):
    child = start()
    os.killpg(child.pid, 9)
    while observe.start_ticks(child.pid) is not None:
        pass  # the kernel ends it in its own time; the test's time-out is the bound
    assert observe.start_ticks(2**22 + 1) is None
    assert observe.environment(2**22 + 1) == {}
    assert observe.cgroup_of(2**22 + 1) == ""
    assert observe.command_line(2**22 + 1) == ()


@pytest.mark.process
def test_a_real_second_copy_is_caught_and_names_both(start):
    one, two = start(DEMO_TOKEN="t3"), start(DEMO_TOKEN="t3")
    with pytest.raises(StepFailed, match="shop/web/0 ran 2 times") as caught:
        Sampler(TickingClock(), "t3").look()
    assert str(one.pid) in caught.value.text
    assert str(two.pid) in caught.value.text


@pytest.mark.process
def test_a_life_is_followed_from_copy_to_copy(start):
    first = start(DEMO_TOKEN="t4")
    sampler = Sampler(TickingClock(), "t4")
    sampler.look()
    sampler.look()
    os.killpg(first.pid, 9)
    first.wait()
    assert sampler.look() == {}
    start(DEMO_TOKEN="t4")
    sampler.look()
    assert sampler.looks == 4
    assert len(sampler.lives["shop/web/0"]) == 2
    assert sampler.gap_ms("shop/web/0") > 0
    assert sampler.gap_ms("shop/other/0") == 0
    assert "4 looks" in sampler.words()


def test_copies_are_told_apart_by_their_own_cgroup():
    rows = [
        seen(1, cgroup="/apf/r/cnm0/i-web.1"),
        seen(2, cgroup="/apf/r/cnm0/i-web.1/inner", session=1),
        seen(3, cgroup="/apf/r/cnm1/i-web.2"),
    ]
    assert {copy: len(items) for copy, items in by_copy(rows)["shop/web/0"].items()} == {
        "/apf/r/cnm0/i-web.1": 2,
        "/apf/r/cnm1/i-web.2": 1,
    }


def test_without_cgroups_a_session_is_a_copy_but_a_health_check_is_none():
    rows = [
        seen(10),
        seen(11, session=10, argv=("sleep", "1")),
        seen(20, argv=("test", "-s", "x")),
    ]
    assert set(by_copy(rows)["shop/web/0"]) == {"session 10"}


def test_what_a_shell_forks_is_not_taken_for_the_shell() -> None:
    assert is_first(seen(10))
    assert not is_first(seen(11, session=10))  # the same command line, until its exec
    assert not is_first(seen(20, argv=("test", "-s", "x")))
    left = seen(12, session=10, argv=("sleep", "1"))
    assert first_pids({"a": [seen(10), left], "b": [left]}) == {10}


def test_a_copy_that_is_gone_by_now_is_no_second_one():
    mine = os.getpid()
    alive = Seen(
        pid=mine,
        start_ticks=observe.start_ticks(mine),
        instance="a",
        cgroup="",
        argv=(),
    )
    refuse_double("a", {"x": [alive], "y": [seen(2**22 + 1)]})
    with pytest.raises(StepFailed, match=r"at one instant: x: pids .*; y: pids"):
        refuse_double("a", {"x": [alive], "y": [alive]})


def test_the_cgroup_of_an_instance_names_its_module():
    assert observe.own_cgroup("/apf/run/cnm2/i-a.1/x/y") == "/apf/run/cnm2/i-a.1"
    assert observe.cnm_of("/apf/run/cnm2/i-a.1") == "cnm2"
    for other in ("", "/", "/user.slice/session-1.scope/x", "/apf/run"):
        assert observe.cnm_of(other) == ""


def test_pids_in_namespaces_are_read_from_the_outside():
    mine = os.getpid()
    assert observe.namespace_pid(mine) == observe.pid_in(mine, mine)
    assert observe.pid_in(2**22 + 1, mine) == 0
    assert observe.namespace_pid(2**22 + 1) is None
    assert observe.parent_of(mine) == os.getppid()


def tree(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize(
    "files",
    [
        {
            "cpu/apf/x/cpu.cfs_quota_us": "30000\n",
            "cpu/apf/x/cpu.cfs_period_us": "100000\n",
            "memory/apf/x/memory.limit_in_bytes": "33554432\n",
            "pids/apf/x/pids.max": "16\n",
            "unified/apf/x/cgroup.procs": "",
        },
        {
            "apf/x/cpu.max": "30000 100000\n",
            "apf/x/memory.max": "33554432\n",
            "apf/x/pids.max": "16\n",
        },
    ],
    ids=["v1", "v2"],
)
def test_limits_are_read_from_either_kind_of_cgroup(tmp_path, monkeypatch, files):
    monkeypatch.setattr(observe, "CGROUP_ROOT", tmp_path)
    tree(tmp_path, files)
    assert limits_of("/apf/x") == Limits(cpu_milli=300, memory_bytes=32 << 20, pids=16)


def test_no_limit_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(observe, "CGROUP_ROOT", tmp_path)
    tree(tmp_path, {"apf/x/cpu.max": "max 100000\n", "apf/x/memory.max": "max\n"})
    assert limits_of("/apf/x") == Limits(cpu_milli=None, memory_bytes=None, pids=None)
    tree(tmp_path, {"cpu/apf/y/cpu.cfs_quota_us": "-1", "cpu/apf/y/cpu.cfs_period_us": "100000"})
    assert limits_of("/apf/y").cpu_milli is None


@pytest.mark.process
def test_an_address_space_limit_is_read_from_the_process():
    code = "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30)); input()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    try:
        while rlimits_of(child.pid).memory_bytes is None:
            assert child.poll() is None
        assert rlimits_of(child.pid).memory_bytes == 1 << 30
    finally:
        child.communicate(b"\n")


def test_processor_time_is_read_in_microseconds(tmp_path, monkeypatch):
    monkeypatch.setattr(observe, "CGROUP_ROOT", tmp_path)
    tree(tmp_path, {"cpuacct/apf/x/cpuacct.usage": "5000000\n"})
    tree(tmp_path, {"apf/y/cpu.stat": "usage_usec 77\nuser_usec 70\n"})
    assert observe.cgroup_cpu_us("/apf/x") == 5000
    assert observe.cgroup_cpu_us("/apf/y") == 77
    assert observe.cgroup_cpu_us("/apf/z") is None


def test_everything_in_a_cgroups_tree_is_found_deepest_first(tmp_path, monkeypatch):
    monkeypatch.setattr(observe, "CGROUP_ROOT", tmp_path)
    tree(tmp_path, {"cpu/apf/r/c/i-a/cgroup.procs": "5\n6\n", "pids/apf/r/c/cgroup.procs": "7\n"})
    assert observe_card.pids_in("/apf/r") == {5, 6, 7}
    cpu = [path for path in observe_card.cgroups_below("/apf/r") if "cpu" in path.parts]
    assert [path.name for path in cpu] == ["i-a", "c", "r"]


@pytest.mark.process
def test_the_cards_own_processes_are_known_by_module_and_run_directory(tmp_path):
    run = tmp_path / "run"
    code = "import time; time.sleep(60)"
    words = [sys.executable, "-c", code, "-m", observe_card.INIT, "--config"]
    children = [
        subprocess.Popen([*words, str(run / "cnm-config" / "cnm1.json")]),
        subprocess.Popen([*words, str(tmp_path / "other" / "cnm-config" / "cnm1.json")]),
    ]
    try:
        while not observe_card.card_processes(run):
            assert children[0].poll() is None
        found = observe_card.by_cnm(run, observe_card.INIT)
        assert {name: item.pid for name, item in found.items()} == {"cnm1": children[0].pid}
        assert observe_card.one(run, observe_card.INIT) == found["cnm1"]
        assert observe_card.one(run, observe_card.DAEMON) is None
        inits = {os.getpid(): "cnm9"}
        assert observe_card.cnm_by_parents(children[0].pid, inits) == "cnm9"
        assert observe_card.cnm_by_parents(children[0].pid, {}) == ""
    finally:
        for child in children:
            child.kill()
            child.wait()
