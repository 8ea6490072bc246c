"""ProcessRuntime with real processes: limits, volumes without a trace, exact environment."""

import dataclasses
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from firmware.loop import MS
from hal.errors import DeadlinePassed, HalError, Refused, Unavailable
from hal.linux.cgroup import CgroupTree
from hal.linux.pipe import PipeReader
from hal.linux.runtime_process import ProcessRuntime
from hal.ports import ExitReason, InstanceExit, InstanceLimits, InstanceSpec, MountSpec

# 32 and 33 are glibc's own (nptl(7)): whoever started the tests may have them ignored, and its
# sigaction() lets nobody change that
GLIBC_SIGNALS = 1 << 31 | 1 << 32

pytestmark = pytest.mark.process
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="cgroups and mounts need root")


class Bench:
    def __init__(self, loop, until, children, tree, parent) -> None:
        self.loop, self.until, self.tree, self.parent = loop, until, tree, parent
        self.runtime = ProcessRuntime(loop, children, tree, cgroup_parent=parent)

    def spec(self, script: str, key: str = "one", **more) -> InstanceSpec:
        env = more.pop("env", {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
        return InstanceSpec(key=key, argv=["/bin/sh", "-c", script], env=env, **more)

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


class Started:
    def __init__(self, bench: Bench, spec: InstanceSpec, limit_ns: int) -> None:
        self.bench, self.output = bench, b""
        self.exits: list[InstanceExit] = []
        results: list[object] = []
        deadline_ns = bench.loop.now_ns() + limit_ns
        bench.runtime.submit_start(spec, deadline_ns, results.append, self.exits.append)
        bench.until(lambda: bool(results))
        self.result = results[0]

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
        self.bench.until(lambda: (self.read(), bool(self.exits))[1])
        self.read()
        os.close(self.result.output_fd)
        assert len(self.exits) == 1
        return self.exits[0]

    def said(self) -> str:
        end = self.exit()
        text = self.output.decode()
        assert (end.reason, end.status) == (ExitReason.EXITED, 0), (end, text)
        return text


@pytest.fixture
def bench(loop, until, children, tree, cgroup_path):
    if os.geteuid():
        pytest.skip("cgroups need root")
    made = Bench(loop, until, children, tree, cgroup_path)
    yield made
    made.wait(made.runtime.submit_remove, "one")


@pytest.fixture
def plain(loop, until, children):
    """On a host without cgroups."""
    made = Bench(loop, until, children, CgroupTree(), "/apf/none")
    yield made
    made.wait(made.runtime.submit_remove, "one")


def test_environment_directory_and_signals_are_those_of_a_fresh_program(plain: Bench) -> None:
    spec = dataclasses.replace(
        plain.spec("", env={"ONLY": "this"}, cwd="/usr"),
        argv=[sys.executable, "-I", "-S", "-c",
              "import os, signal; print(dict(os.environ), os.getcwd(), os.listdir('/proc/self/fd'),"
              "open('/proc/self/status').read())"],
    )  # fmt: skip
    text = plain.start(spec).said()
    assert "{'ONLY': 'this'" in text
    assert "LC_CTYPE" not in text.split("}")[0] or "C.UTF-8" in text  # Python's own coercion
    assert " /usr ['0', '1', '2', '3']" in text
    assert "NoNewPrivs:\t1" in text
    assert "SigBlk:\t0000000000000000" in text
    ignored = text.split("SigIgn:\t")[1][:16]
    # Python itself ignores PIPE and XFSZ
    assert int(ignored, 16) & ~(1 << 12 | 1 << 24 | GLIBC_SIGNALS) == 0


def test_a_pipe_is_not_ignored(plain: Bench) -> None:
    text = plain.start(plain.spec("grep SigIgn /proc/$$/status")).said()
    assert int(text.split()[1], 16) & ~GLIBC_SIGNALS == 0


def test_it_leads_a_session_and_its_output_is_ours(plain: Bench) -> None:
    started = plain.start(plain.spec("echo out; echo err >&2; read x || exec sleep 1000"))
    pid = started.result.pid
    assert os.getsid(pid) == pid
    plain.until(lambda: b"err" in started.read())
    assert started.output == b"out\nerr\n"
    plain.runtime.signal("one", signal.SIGTERM)
    end = started.exit()
    assert (end.reason, end.status) == (ExitReason.SIGNALED, signal.SIGTERM)


def test_the_output_is_a_byte_stream_until_its_writers_are_gone(plain: Bench) -> None:
    from hal.errors import LinkDown

    started = plain.start(plain.spec("echo hello"))
    plain.until(lambda: bool(started.exits))
    reader = PipeReader(started.result.output_fd)
    assert reader.handle == started.result.output_fd
    assert reader.read() == b"hello\n"
    with pytest.raises(LinkDown):
        reader.read()
    with pytest.raises(Refused):
        reader.write(b"x")
    reader.close()
    reader.close()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"argv": ["/no/such/program"]}, "No such file"),
        ({"argv": ["/etc/passwd"]}, "Permission denied"),
        ({"cwd": "/no/such/dir"}, "/no/such/dir"),
        ({"rootfs": "/"}, "no images"),
        ({"read_only_rootfs": True}, "read-only"),
        ({"user": "nobody-here"}, "nobody-here"),
        ({"key": "a_b"}, "key"),
        ({"argv": []}, "program"),
    ],
)
def test_what_cannot_be_started_says_why_and_leaves_the_key_free(
    plain: Bench, change: dict, words: str
) -> None:
    spec = dataclasses.replace(plain.spec("true"), **change)
    assert words in str(plain.start(spec).error())
    assert plain.start(plain.spec("echo fine")).said() == "fine\n"


def test_a_start_beyond_its_deadline_is_killed(plain: Bench) -> None:
    assert isinstance(plain.start(plain.spec("sleep 1000"), limit_ns=0).error(), DeadlinePassed)


def test_without_cgroups_limits_become_rlimits_and_it_says_so(plain: Bench) -> None:
    limits = InstanceLimits(memory_bytes=1 << 30, pids=500, cpu_milli=100)
    started = plain.start(plain.spec("ulimit -v; ulimit -p; ulimit -c", limits=limits))
    notes = plain.runtime.notes["one"]
    assert "no cgroup hierarchy" in notes[0]
    assert started.said() == f"{(1 << 30) // 1024}\n500\n0\n"
    assert started.result.cgroup == ""


@root_only
def test_it_is_in_its_cgroup_with_its_limits(bench: Bench) -> None:
    limits = InstanceLimits(memory_bytes=32 << 20, pids=20, cpu_milli=500)
    started = bench.start(bench.spec("cat /proc/self/cgroup; sleep 1000", limits=limits))
    assert bench.runtime.notes["one"] == []
    bench.until(lambda: b"\n" in started.read())
    assert started.result.cgroup == f"{bench.parent}/i-one"
    assert started.output.decode().count(f"{bench.parent}/i-one") >= 1
    usage = bench.runtime.usage("one")
    assert usage.pids >= 1
    assert usage.memory_bytes is not None
    bench.runtime.kill_all("one")
    assert started.exit().status == signal.SIGKILL
    bench.remove()


@root_only
def test_too_much_memory_is_an_oom_kill(bench: Bench) -> None:
    limits = InstanceLimits(memory_bytes=16 << 20)
    end = bench.start(bench.spec("exec tail /dev/zero", limits=limits)).exit()
    assert end.reason is ExitReason.OOM_KILLED
    bench.remove()


@root_only
def test_the_pids_limit_holds_for_root_too(bench: Bench) -> None:
    script = "for i in 1 2 3 4 5 6 7 8 9; do sleep 1000 & done; wait"
    started = bench.start(bench.spec(script, limits=InstanceLimits(pids=5)))
    bench.until(lambda: b"fork" in started.read())
    assert len(bench.tree.at(started.result.cgroup).procs()) <= 5
    bench.runtime.kill_all("one")
    started.exit()
    bench.remove()


@root_only
def test_descendants_in_sessions_of_their_own_die_with_it(bench: Bench) -> None:
    started = bench.start(
        bench.spec("setsid sleep 1000 & setsid sh -c 'sleep 1000 & wait' & exit 6")
    )
    end = started.exit()
    assert (end.reason, end.status) == (ExitReason.EXITED, 6)
    assert bench.tree.at(started.result.cgroup).procs() == []
    bench.remove()


@root_only
def test_the_user_is_dropped_to(bench: Bench) -> None:
    text = bench.start(bench.spec("id -u; id -g; id -G", user="65534:65533")).said()
    assert text == "65534\n65533\n65533\n"
    bench.remove()


@root_only
def test_volumes_are_bound_without_a_trace_on_the_real_root(bench: Bench, tmp_path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "in").write_text("given\n")
    (tmp_path / "near").mkdir()
    (tmp_path / "near/file").write_text("neighbour\n")
    missing = [
        "/apf-test-none/deep",
        "/apf-test-none/ro",
        f"{tmp_path}/near/new/deep",
        "/usr/apf-x",
    ]
    mounts = [
        MountSpec(source=str(volume), target=missing[0]),
        MountSpec(source=str(volume), target=missing[1], read_only=True),
        MountSpec(source=str(volume), target=missing[2]),
        MountSpec(source=str(volume), target=missing[3]),
        MountSpec(source=str(volume), target="/mnt"),
        MountSpec(source="tmpfs", target="/apf-test-none/scratch"),
    ]
    script = f"""
    cat {missing[0]}/in {missing[1]}/in {missing[2]}/in {missing[3]}/in /mnt/in
    cat {tmp_path}/near/file; ls -d /usr/bin /etc/passwd /proc/self
    echo made > {missing[0]}/out; echo x > {missing[1]}/no || echo read only
    echo y > /apf-test-none/scratch/z && echo > /dev/null && ls /apf-test-none
    """
    started = bench.start(bench.spec(script, mounts=mounts, hostname="vol1"))
    text = started.said()
    assert text.count("given\n") == 5, text
    assert "neighbour\n/etc/passwd\n/proc/self\n/usr/bin\n" in text
    assert "read only" in text
    assert text.endswith("deep\nro\nscratch\n")
    assert (volume / "out").read_text() == "made\n"
    assert not os.path.exists("/apf-test-none")
    assert not os.path.exists("/usr/apf-x")
    assert os.listdir(tmp_path / "near") == ["file"]
    assert "apf-mirror" not in Path("/proc/self/mounts").read_text()
    bench.remove()


@root_only
def test_a_volume_that_cannot_be_mounted_is_refused_naming_the_path(bench: Bench, tmp_path) -> None:
    for source, target in (("/no/such/source", "/mnt"), (str(tmp_path), "/etc/passwd/below")):
        spec = bench.spec("true", mounts=[MountSpec(source=source, target=target)])
        error = bench.start(spec).error()
        assert source in str(error) or target in str(error)
    big = tmp_path / "big"
    big.mkdir()
    for number in range(600):
        (big / str(number)).touch()
    spec = bench.spec("true", mounts=[MountSpec(source=str(tmp_path), target=f"{big}/new")])
    assert "entries" in str(bench.start(spec).error())


@root_only
def test_exec_sees_what_the_instance_sees(bench: Bench, tmp_path) -> None:
    (tmp_path / "in").write_text("given")
    spec = bench.spec(
        "exec sleep 1000",
        env={"A": "1", "PATH": "/usr/bin:/bin"},
        mounts=[MountSpec(source=str(tmp_path), target="/apf-test-exec")],
        hostname="inside",
        cwd="/usr",
        user="0:0",
    )
    started = bench.start(spec)
    assert started.read() == b""
    run = bench.runtime.submit_exec
    script = "cat /apf-test-exec/in; hostname; echo $A; pwd; cat /proc/self/cgroup; exit 9"
    status, output = bench.wait(run, "one", ["/bin/sh", "-c", script])
    assert status == 9
    assert output.startswith(b"giveninside\n1\n/usr\n")
    assert f"{bench.parent}/i-one".encode() in output
    status, output = bench.wait(run, "one", ["/no/such"])
    assert (status, b"/no/such" in output) == (127, True)
    status, output = bench.wait(run, "one", ["/bin/sh", "-c", "yes | head -c 1000000"])
    assert (status, output) == (0, b"y\n" * 2048)
    assert isinstance(bench.wait(run, "one", []), Refused)
    bench.runtime.kill_all("one")
    started.exit()
    assert isinstance(bench.wait(run, "one", ["/bin/true"]), Unavailable)
    bench.remove()


def test_an_exec_is_killed_at_its_deadline_with_its_children(plain: Bench) -> None:
    started = plain.start(plain.spec("exec sleep 1000"))
    mark = f"1000.{os.getpid()}"
    script = f"sleep {mark} & sleep {mark}"
    result = plain.wait(
        plain.runtime.submit_exec, "one", ["/bin/sh", "-c", script], limit_ns=200 * MS
    )
    assert isinstance(result, DeadlinePassed)

    def gone() -> bool:
        lines = [entry / "cmdline" for entry in Path("/proc").iterdir() if entry.name.isdigit()]
        found = []
        for line in lines:
            try:
                found.append(mark.encode() in line.read_bytes())
            except OSError:
                continue
        return not any(found)

    plain.until(gone)
    assert started.exits == []
    plain.runtime.kill_all("one")
    started.exit()


@root_only
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv is missing")
def test_without_root_it_runs_processes_and_says_what_it_goes_without(tmp_path) -> None:
    import subprocess

    script = """
import sys
from firmware.loop import Loop
from hal.errors import HalError
from hal.linux.cgroup import CgroupTree
from hal.linux.children import Children
from hal.linux.clock import LinuxClock
from hal.linux.runtime_process import ProcessRuntime
from hal.ports import InstanceLimits, InstanceSpec, MountSpec
loop = Loop(LinuxClock())
runtime = ProcessRuntime(loop, Children(loop), CgroupTree.detect(), cgroup_parent="/apf-no-right")
spec = InstanceSpec(key="a", argv=["/bin/sh", "-c", "exit 5"], env={}, hostname="h",
                    limits=InstanceLimits(pids=50))
def started(result):
    print(type(result).__name__, result, runtime.notes.get("a"))
    if isinstance(result, HalError):
        loop.stop()
def ended(end):
    print(end)
    loop.stop()
runtime.submit_start(spec, loop.now_ns() + 20 * 10**9, started, ended)
loop.run()
spec = InstanceSpec(key="b", argv=["/bin/true"], env={},
                    mounts=[MountSpec(source="/tmp", target="/mnt")])
runtime.submit_start(spec, loop.now_ns() + 20 * 10**9, lambda r: (print(r), loop.stop()), print)
loop.run()
"""
    other = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "/bin/sh", "-c"]
    pythons = [sys.executable, "/usr/bin/python3.11", "/usr/bin/python3.12", "/usr/bin/python3"]
    root = Path(__file__).parents[3]
    probe = "for p in $0 $@; do $p -c 'import sys, firmware.loop' 2>/dev/null && echo $p; done"
    found = subprocess.run([*other, probe, *pythons], cwd=root, capture_output=True, text=True)
    if not found.stdout:
        pytest.skip("no Python that another user may run")
    result = subprocess.run(
        [*other, 'exec "$0" -c "$1"', found.stdout.split()[0], script],
        cwd=root, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "InstanceHandle" in result.stdout
    assert "denied" in result.stdout
    assert "reason=<ExitReason.EXITED: 'exited'>, status=5" in result.stdout
    assert "without root" in result.stdout
