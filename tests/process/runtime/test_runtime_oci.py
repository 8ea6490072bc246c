"""OciRuntime with real containers: limits, deaths, volumes, users, failures."""

import dataclasses
import os
import shutil
import signal
import stat
import subprocess
from pathlib import Path

import pytest

from firmware.loop import MS
from hal.errors import DeadlinePassed, HalError, Refused, Unavailable
from hal.linux.runtime_oci import OciRuntime
from hal.ports import ExitReason, InstanceExit, InstanceLimits, InstanceSpec, MountSpec

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("runc") is None or not Path("/bin/busybox").exists(),
        reason="containers need root, runc and busybox-static",
    ),
]
APPLETS = ("sh", "sleep", "cat", "id", "ls", "head", "tail", "env", "mount", "touch", "ip", "yes")


@pytest.fixture(scope="session")
def rootfs(tmp_path_factory) -> Path:
    """A container's root: a copy of busybox, some applets, a passwd and a group file."""
    top = tmp_path_factory.mktemp("rootfs") / "r"
    for name in ("bin", "etc", "tmp"):
        (top / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", top / "bin/busybox")
    for name in APPLETS:
        (top / "bin" / name).symlink_to("busybox")
    (top / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\nweb:x:33:44::/srv:/bin/sh\n")
    (top / "etc/group").write_text("root:x:0:\nweb:x:44:\nlogs:x:55:web,root\n")
    (top / "bin/garbage").write_bytes(b"\x7fELF but not really")
    (top / "bin/garbage").chmod(0o755)
    return top


class Bench:
    """One runtime, and instances started on it."""

    def __init__(self, loop, until, children, tree, cgroup_path, tmp_path, rootfs) -> None:
        self.loop, self.until, self.children, self.tree = loop, until, children, tree
        self.parent, self.tmp, self.rootfs = cgroup_path, tmp_path, rootfs
        self.runtime = self.make()

    def make(self, program: str = "runc", **more) -> OciRuntime:
        given = {
            "cgroup_parent": self.parent,
            "state_dir": self.tmp / "runc",
            "bundle_dir": self.tmp / "bundles",
        }
        return OciRuntime(self.loop, self.children, self.tree, program=program, **(given | more))

    def spec(self, script: str, key: str = "one", **more) -> InstanceSpec:
        return InstanceSpec(
            key=key,
            argv=["/bin/sh", "-c", script],
            env=more.pop("env", {"PATH": "/bin"}),
            rootfs=str(self.rootfs),
            **more,
        )

    def start(self, spec: InstanceSpec, limit_ns: int = 30_000 * MS) -> "Started":
        return Started(self, spec, limit_ns)

    def wait(self, submit, *given, limit_ns: int = 30_000 * MS) -> object:
        results: list[object] = []
        submit(*given, self.loop.now_ns() + limit_ns, results.append)
        self.until(lambda: bool(results))
        return results[0]

    def remove(self, key: str = "one") -> None:
        assert self.wait(self.runtime.submit_remove, key) is None
        assert not self.tree.at(f"{self.parent}/i-{key}").exists()
        assert not (self.tmp / "runc" / key).exists()
        assert not (self.tmp / "bundles" / key).exists()


class Started:
    def __init__(self, bench: Bench, spec: InstanceSpec, limit_ns: int) -> None:
        self.bench, self.exits, self.output = bench, [], b""
        results: list[object] = []
        deadline_ns = bench.loop.now_ns() + limit_ns
        bench.runtime.submit_start(spec, deadline_ns, results.append, self.exits.append)
        bench.until(lambda: bool(results))
        self.result = results[0]
        if not isinstance(self.result, HalError):
            assert not os.get_blocking(self.result.output_fd)

    def error(self) -> HalError:
        assert isinstance(self.result, HalError), self.result
        assert self.exits == []
        return self.result

    def read(self) -> bytes:
        assert not isinstance(self.result, HalError), self.result
        try:
            while piece := os.read(self.result.output_fd, 65536):
                self.output += piece
        except BlockingIOError:
            pass
        return self.output

    def exit(self) -> InstanceExit:
        assert not isinstance(self.result, HalError), self.result
        self.bench.until(lambda: (self.read(), bool(self.exits))[1])
        self.read()
        os.close(self.result.output_fd)
        assert len(self.exits) == 1
        assert not self.bench.tree.at(self.result.cgroup).populated()
        return self.exits[0]

    def said(self) -> str:
        end = self.exit()
        text = self.output.decode()
        assert (end.reason, end.status) == (ExitReason.EXITED, 0), (end, text)
        return text


@pytest.fixture
def bench(loop, until, children, tree, cgroup_path, tmp_path, rootfs):
    made = Bench(loop, until, children, tree, cgroup_path, tmp_path, rootfs)
    yield made
    for path in (tmp_path / "runc").iterdir() if (tmp_path / "runc").exists() else ():
        made.wait(made.runtime.submit_remove, path.name)


def test_output_environment_and_names_are_what_was_asked(bench: Bench) -> None:
    spec = bench.spec(
        "env; echo to stderr >&2; cat /proc/sys/kernel/hostname; pwd; cat /proc/self/comm",
        env={"PATH": "/bin", "GREETING": "a b=c"},
        cwd="/tmp",
        hostname="web1",
    )
    started = bench.start(spec)
    text = started.said()
    assert "GREETING=a b=c\n" in text
    assert "to stderr\n" in text
    assert "\nweb1\n/tmp\ncat\n" in text
    assert {line.split("=")[0] for line in text.splitlines() if "=" in line} <= {
        "PATH", "GREETING", "HOME", "PWD", "SHLVL", "OLDPWD", "_"
    }  # fmt: skip
    bench.remove()


def test_the_handle_names_the_first_process(bench: Bench) -> None:
    started = bench.start(bench.spec("exec sleep 1000"))
    pid = started.result.pid
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    assert started.result.start_ticks == int(fields[19])
    assert bench.tree.at(started.result.cgroup).procs() == [pid]
    listed = subprocess.run(
        ["runc", "--root", str(bench.tmp / "runc"), "list", "-q"], capture_output=True, check=True
    )
    assert listed.stdout == b"one\n"
    bench.runtime.kill_all("one")
    assert started.exit().status == signal.SIGKILL
    bench.remove()


def test_it_is_alone_in_its_namespaces_and_kept_from_the_host(bench: Bench) -> None:
    script = (
        "echo pids $(ls /proc | head -1); ip -o link | head -c 200; echo; ls -d /sys/firmware/*;"
        "cat /proc/kcore | head -c 1; touch /proc/sys/kernel/hostname 2>&1;"
        "echo b > /proc/sysrq-trigger; cat /proc/self/status; mount -t tmpfs x /tmp; true"
    )
    text = bench.start(bench.spec(script)).said()
    assert "LOOPBACK" in text
    assert "UP" in text
    assert "eth" not in text
    assert "Read-only file system" in text
    assert "NoNewPrivs:\t1" in text
    assert "CapEff:\t00000000a80425fb" in text.lower().replace("capeff", "CapEff")
    assert "permission denied" in text.lower()
    bench.remove()


@pytest.mark.parametrize(
    ("user", "wanted"),
    [
        ("", "uid=0(root) gid=0(root)"),
        ("web", "uid=33(web) gid=44(web) groups=55(logs)"),
        ("33", "uid=33(web) gid=44(web)"),
        ("web:logs", "uid=33(web) gid=55(logs)"),
        ("1234:4321", "uid=1234 gid=4321"),
    ],
)
def test_the_user_is_found_in_the_image(bench: Bench, user: str, wanted: str) -> None:
    # Its output can be written by name too: programs open /dev/stderr.
    text = bench.start(bench.spec("id; echo again > /dev/stderr", user=user)).said()
    assert text.startswith(wanted)
    assert text.endswith("again\n")
    bench.remove()


def test_a_user_that_the_image_does_not_know_is_refused(bench: Bench) -> None:
    for user in ("nobody-here", "web:nogroup", str(1 << 40)):
        assert isinstance(bench.start(bench.spec("true", user=user)).error(), Refused)
    bench.remove()


def test_volumes_and_tmpfs_are_mounted(bench: Bench) -> None:
    volume = bench.tmp / "volume"
    volume.mkdir()
    (volume / "in").write_text("given")
    mounts = [
        MountSpec(source=str(volume), target="/data/deep"),
        MountSpec(source=str(volume), target="/ro", read_only=True),
        MountSpec(source="tmpfs", target="/scratch"),
    ]
    script = (
        "cat /data/deep/in; echo made > /data/deep/out; touch /ro/x || echo refused;"
        "touch /scratch/x"
    )
    text = bench.start(bench.spec(script, mounts=mounts)).said()
    assert text.startswith("given")
    assert "Read-only" in text
    assert "refused" in text
    assert (volume / "out").read_text() == "made\n"
    assert sorted(os.listdir(volume)) == ["in", "out"]
    bench.remove()
    for name in ("data", "ro", "scratch"):
        shutil.rmtree(bench.rootfs / name)


def test_a_read_only_root_is(bench: Bench) -> None:
    text = bench.start(bench.spec("touch /x && exit 1; exit 0", read_only_rootfs=True)).said()
    assert "Read-only file system" in text
    bench.remove()


def test_too_much_memory_is_an_oom_kill(bench: Bench) -> None:
    spec = bench.spec("exec tail /dev/zero", limits=InstanceLimits(memory_bytes=16 << 20))
    started = bench.start(spec)
    end = started.exit()
    assert end.reason is ExitReason.OOM_KILLED, end
    assert "memory limit" in end.text
    assert bench.runtime.usage("one").memory_peak_bytes is None or (
        bench.runtime.usage("one").memory_peak_bytes <= 17 << 20
    )
    bench.remove()


def test_an_oom_kill_of_a_child_is_told_apart_from_the_shells_own_end(bench: Bench) -> None:
    limits = InstanceLimits(memory_bytes=16 << 20)
    end = bench.start(bench.spec("tail /dev/zero; exit $?", limits=limits)).exit()
    assert end.reason is ExitReason.OOM_KILLED
    bench.remove()
    end = bench.start(bench.spec("tail /dev/zero; exit 3", limits=limits)).exit()
    assert (end.reason, end.status) == (ExitReason.EXITED, 3)
    assert "killed for memory" in end.text
    bench.remove()


def test_the_pids_limit_stops_a_fork_bomb(bench: Bench) -> None:
    script = "bomb() { bomb | bomb & }; bomb; while :; do sleep 1; done"
    started = bench.start(bench.spec(script, limits=InstanceLimits(pids=12)))
    bench.until(lambda: b"fork" in started.read())
    pids = bench.tree.at(started.result.cgroup).usage().pids  # counted at one moment
    assert pids is not None
    assert pids <= 12
    bench.runtime.kill_all("one")
    started.exit()
    bench.remove()


def test_the_cpu_limit_throttles(bench: Bench) -> None:
    spec = bench.spec("while :; do :; done", limits=InstanceLimits(cpu_milli=100))
    started = bench.start(spec)
    group = bench.tree.at(started.result.cgroup)
    stats = [f"{group.v2_dir}/cpu.stat", f"{group.v1_dir('cpu')}/cpu.stat"]

    def throttled() -> bool:
        text = "".join(Path(path).read_text() for path in stats if os.path.exists(path))
        return any(
            line.startswith("nr_throttled") and int(line.split()[1]) > 2
            for line in text.splitlines()
        )

    bench.until(throttled)
    assert bench.runtime.usage("one").cpu_us > 0
    assert bench.runtime.usage("one").pids == 1
    bench.runtime.kill_all("one")
    started.exit()
    bench.remove()


@pytest.mark.parametrize("how", ["v1 freezer", "cgroup.freeze"])
def test_a_frozen_container_dies_too(bench: Bench, how: str) -> None:
    started = bench.start(bench.spec("while :; do sleep 1; done"))
    group = bench.tree.at(started.result.cgroup)
    if how == "v1 freezer":
        state = Path(group.v1_dir("freezer") or "/nowhere") / "freezer.state"
        if not state.exists():
            bench.runtime.kill_all("one")
            started.exit()
            pytest.skip("no v1 freezer here")
        state.write_text("FROZEN")
        bench.until(lambda: state.read_text() == "FROZEN\n")
    else:
        group.freeze()
    bench.runtime.kill_all("one")
    assert started.exit().status == signal.SIGKILL
    bench.remove()


def test_a_container_frozen_between_its_end_and_its_removal_can_be_removed(bench: Bench) -> None:
    started = bench.start(bench.spec("while :; do sleep 1; done"))
    bench.tree.at(started.result.cgroup).freeze()
    results: list[object] = []
    bench.runtime.submit_remove("one", bench.loop.now_ns() + 30_000 * MS, results.append)
    assert started.exit().status == signal.SIGKILL
    bench.until(lambda: bool(results))
    assert results == [None]
    assert bench.wait(bench.runtime.submit_remove, "one") is None


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["/bin/nothing"], "no such file"),
        (["/bin/garbage"], "exec format error"),
        (["/etc/passwd"], "permission denied"),
    ],
)
def test_what_cannot_be_executed_fails_with_the_runtimes_words(
    bench: Bench, argv: list[str], words: str
) -> None:
    error = bench.start(dataclasses.replace(bench.spec(""), argv=argv)).error()
    assert isinstance(error, Refused)
    assert words in str(error).lower()
    bench.remove()  # nothing is there: a success
    assert bench.start(bench.spec("echo fine")).said() == "fine\n"
    bench.remove()


@pytest.mark.parametrize(
    "change",
    [
        {"key": "UPPER"},
        {"argv": []},
        {"argv": ["a\0b"]},
        {"env": {"A=B": "x"}},
        {"cwd": "relative"},
        {"rootfs": ""},
        {"rootfs": "/no/such/rootfs"},
        {"mounts": [MountSpec(source="relative", target="/x")]},
        {"mounts": [MountSpec(source="/tmp", target="/a/../../etc")]},
        {"mounts": [MountSpec(source="/tmp", target="/")]},
        {"argv": ["x"] * 600_000},
    ],
)
def test_an_order_that_makes_no_sense_is_refused(bench: Bench, change: dict) -> None:
    error = bench.start(dataclasses.replace(bench.spec("true"), **change)).error()
    assert isinstance(error, Refused)


def test_a_missing_volume_fails_with_its_path(bench: Bench) -> None:
    mounts = [MountSpec(source="/no/such/volume", target="/data")]
    assert "/no/such/volume" in str(bench.start(bench.spec("true", mounts=mounts)).error())
    bench.remove()


def test_a_deadline_in_the_past_starts_nothing(bench: Bench) -> None:
    assert isinstance(bench.start(bench.spec("true"), limit_ns=0).error(), DeadlinePassed)
    bench.remove()


def test_a_kill_during_the_start_makes_it_fail_or_end(bench: Bench) -> None:
    for delay_ms in (0, 5, 15, 25, 40):
        results: list[object] = []
        exits: list[InstanceExit] = []
        bench.runtime.submit_start(
            bench.spec("exec sleep 1000"),
            bench.loop.now_ns() + 30_000 * MS,
            results.append,
            exits.append,
        )
        bench.loop.call_later(delay_ms * MS, lambda: bench.runtime.kill_all("one"))
        bench.until(lambda results=results: bool(results))
        if not isinstance(results[0], HalError):
            bench.runtime.kill_all("one")
            bench.until(lambda exits=exits: bool(exits))
            os.close(results[0].output_fd)
        else:
            assert exits == []
        bench.remove()


def test_many_at_once_all_start(bench: Bench) -> None:
    count = 10
    results: dict[int, object] = {}
    exits: list[InstanceExit] = []
    for number in range(count):
        bench.runtime.submit_start(
            bench.spec("exec sleep 1000", key=f"many-{number}"),
            bench.loop.now_ns() + 60_000 * MS,
            lambda result, n=number: results.__setitem__(n, result),
            exits.append,
        )
    bench.until(lambda: len(results) == count)
    for number, result in results.items():
        assert not isinstance(result, HalError), result
        os.close(result.output_fd)
        bench.runtime.kill_all(f"many-{number}")
    bench.until(lambda: len(exits) == count)
    for number in range(count):
        bench.remove(f"many-{number}")


def test_exec_gives_status_and_bounded_output(bench: Bench) -> None:
    started = bench.start(bench.spec("while :; do sleep 1; done", user="web"))
    run = bench.runtime.submit_exec
    assert bench.wait(run, "one", ["/bin/sh", "-c", "id -u; exit 4"]) == (4, b"33\n")
    status, output = bench.wait(run, "one", ["/bin/sh", "-c", "yes | head -c 1000000"])
    assert (status, output) == (0, b"y\n" * 2048)
    status, output = bench.wait(run, "one", ["/bin/absent"])
    assert status != 0
    assert b"no such file" in output.lower()
    assert isinstance(
        bench.wait(run, "one", ["/bin/sleep", "1000"], limit_ns=300 * MS), DeadlinePassed
    )
    bench.until(lambda: len(bench.tree.at(started.result.cgroup).procs()) <= 2)
    bench.runtime.kill_all("one")
    started.exit()
    assert isinstance(bench.wait(run, "one", ["/bin/id"]), Unavailable)
    bench.remove()


def test_what_an_earlier_run_left_is_removed(bench: Bench) -> None:
    started = bench.start(bench.spec("exec sleep 1000"))
    fresh = bench.make()  # as after a restart: it knows no instance
    results: list[object] = []
    fresh.submit_remove("one", bench.loop.now_ns() + 30_000 * MS, results.append)
    bench.until(lambda: bool(results))
    assert results == [None]
    assert started.exit().status == signal.SIGKILL
    bench.remove()


def test_half_made_state_is_removed(bench: Bench) -> None:
    (bench.tmp / "runc/one").mkdir(parents=True)
    (bench.tmp / "runc/one/state.json").write_text("{ half")
    bench.remove()
    bench.tree.create(f"{bench.parent}/i-two")
    bench.remove("two")
    for key in ("..", "a/b", ""):
        assert isinstance(bench.wait(bench.runtime.submit_remove, key), Refused)


def test_a_runtime_that_is_not_installed_is_unavailable(bench: Bench) -> None:
    with pytest.raises(Unavailable, match="not installed"):
        bench.make(program="no-such-runtime")


def test_a_runtime_that_hangs_is_killed_at_the_deadline(bench: Bench) -> None:
    program = bench.tmp / "hangs"
    program.write_text("#!/bin/sh\nexec sleep 1000\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    bench.runtime = bench.make(program=str(program))
    results: list[object] = []
    monkey = bench.runtime._delete
    bench.runtime._delete = lambda key, _, done: monkey(key, bench.loop.now_ns() + 200 * MS, done)
    bench.runtime.submit_start(
        bench.spec("true"), bench.loop.now_ns() + 200 * MS, results.append, lambda _: None
    )
    bench.until(lambda: bool(results))
    assert isinstance(results[0], DeadlinePassed)
    bench.runtime = bench.make()


def test_when_we_are_not_its_parent_the_reason_is_unknown(bench: Bench, monkeypatch) -> None:
    def stolen(*_: object) -> None:
        raise ChildProcessError

    started = bench.start(bench.spec("while :; do sleep 1; done"))
    monkeypatch.setattr(os, "waitid", stolen)
    bench.runtime.kill_all("one")
    end = started.exit()
    monkeypatch.undo()
    assert end.reason is ExitReason.UNKNOWN
    bench.children.reap_orphans()
    bench.remove()
