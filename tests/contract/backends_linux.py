"""The Linux rows of the contract suites. See `conftest.py` for how a row joins.

Those that start real processes carry the `process` mark; containers and mounts need root.
"""

import contextlib
import dataclasses
import itertools
import os
import secrets
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from hal.linux.blobs import LinuxBlobStore
from hal.linux.cgroup import CgroupTree
from hal.linux.children import Children, become_subreaper
from hal.linux.clock import LinuxClock
from hal.linux.entropy import LinuxEntropy
from hal.linux.files import LinuxFiles
from hal.linux.journal import SqliteJournal
from hal.linux.runtime_oci import OciRuntime
from hal.linux.runtime_process import ProcessRuntime
from hal.linux.spawner import LinuxSpawner
from hal.linux.trace_memory import MappedTraceMemory
from hal.linux.trees import LinuxTrees
from hal.linux.workers import Workers
from hal.ports import InstanceSpec, JournalStore, ProcessSpec, Reactor, Runtime
from tests.contract import rigs

PYTHON = [sys.executable, "-I", "-S", "-c"]


def backends(port: str) -> list[Any]:
    """The rows for one port; [] for a port that other modules serve."""
    rows = {
        "clock": [pytest.param(clock, id="linux")],
        "entropy": [pytest.param(entropy, id="linux")],
        "trace_memory": [pytest.param(trace_memory, id="linux")],
        "files": [pytest.param(files, id="linux")],
        "blobs": [pytest.param(blobs, id="linux")],
        "trees": [pytest.param(trees, id="linux")],
        "journal": [pytest.param(journal, id="linux-sqlite")],
        "spawner": [pytest.param(spawner, id="linux", marks=pytest.mark.process)],
        "runtime": [
            pytest.param(process_runtime, id="linux-process", marks=pytest.mark.process),
            pytest.param(plain_process_runtime, id="linux-plain", marks=pytest.mark.process),
            pytest.param(oci_runtime, id="linux-oci", marks=pytest.mark.process),
        ],
    }
    return rows.get(port, [])


def clock(tmp_path: Path, reactor: Reactor) -> rigs.ClockRig:
    made = LinuxClock()
    reader, writer = os.pipe()

    def close() -> None:
        made.close()
        os.close(reader)
        os.close(writer)

    def make_ready() -> None:
        os.write(writer, b"x")

    return rigs.ClockRig(clock=made, handle=reader, make_ready=make_ready, close=close)


def entropy(tmp_path: Path, reactor: Reactor) -> rigs.EntropyRig:
    return rigs.EntropyRig(entropy=LinuxEntropy())


def trace_memory(tmp_path: Path, reactor: Reactor) -> rigs.TraceMemoryRig:
    made = [MappedTraceMemory(tmp_path / "trace", rigs.TRACE_BYTES)]

    def reopen() -> MappedTraceMemory:
        made.append(MappedTraceMemory(tmp_path / "trace", rigs.TRACE_BYTES))
        return made[-1]

    def close() -> None:
        for memory in made:
            memory.close()

    return rigs.TraceMemoryRig(memory=made[0], reopen=reopen, close=close)


def files(tmp_path: Path, reactor: Reactor) -> rigs.FilesRig:
    made = LinuxFiles(tmp_path / "files")
    return rigs.FilesRig(files=made, close=made.close)


def _open_fd(tmp_path: Path) -> Callable[[bytes], int]:
    serial = itertools.count()

    def open_fd(data: bytes) -> int:
        path = tmp_path / f"source-{next(serial)}"
        path.write_bytes(data)
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    return open_fd


def blobs(tmp_path: Path, reactor: Reactor) -> rigs.BlobsRig:
    workers = Workers(reactor)
    opened = [LinuxBlobStore(tmp_path / "blobs", reactor, workers)]

    def reopen() -> LinuxBlobStore:
        opened.append(LinuxBlobStore(tmp_path / "blobs", reactor, workers))
        return opened[-1]

    def close() -> None:
        workers.close()
        for store in opened:
            store.close()

    return rigs.BlobsRig(
        blobs=opened[0],
        open_fd=_open_fd(tmp_path),
        reopen=reopen,
        full=lambda: shutil.disk_usage(tmp_path).total,
        close=close,
    )


def trees(tmp_path: Path, reactor: Reactor) -> rigs.TreesRig:
    workers = Workers(reactor)
    store = LinuxBlobStore(tmp_path / "blobs", reactor, workers)
    root = tmp_path / "trees"
    made = LinuxTrees(root, store, workers)
    seen = LinuxFiles(root)

    def close() -> None:
        workers.close()
        made.close()
        store.close()
        seen.close()

    return rigs.TreesRig(
        trees=made,
        blobs=store,
        files=seen,
        path=lambda name: str(root / name),
        listing=lambda name: _listing(root / name),
        owners=(lambda name: _owners(root / name)) if os.geteuid() == 0 else None,
        close=close,
    )


def _owners(top: Path) -> Mapping[str, tuple[int, int, int]]:
    found = {}
    for path in (top, *top.rglob("*")):
        info = path.lstat()
        name = str(path.relative_to(top))
        found[name] = (info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode))
    return found


def _listing(top: Path) -> Mapping[str, tuple[str, int, bytes]]:
    found = {}
    for path in top.rglob("*") if top.exists() else ():
        info = path.lstat()
        mode = stat.S_IMODE(info.st_mode)
        if path.is_symlink():
            entry = ("symlink", mode, os.fsencode(path.readlink()))
        elif path.is_dir():
            entry = ("dir", mode, b"")
        else:
            entry = ("file", mode, path.read_bytes())
        found[str(path.relative_to(top))] = entry
    return found


def journal(tmp_path: Path, reactor: Reactor) -> rigs.JournalRig:
    place = tmp_path / "journal"
    place.mkdir()
    undo: list[Callable[[], object]] = []
    opened: list[SqliteJournal] = []

    def reopen() -> JournalStore:
        opened.append(SqliteJournal(place / "journal.db", reactor))
        return opened[-1]

    def close() -> None:
        for store in opened:
            store.close()
        for call in reversed(undo):
            call()

    def full() -> None:
        # The files move to a small file system before anything of them is open for writing.
        fill = place / "fill"
        with fill.open("wb") as file:
            try:
                while True:
                    file.write(bytes(65536))
                    file.flush()
            except OSError:
                pass

    rig = rigs.JournalRig(open=reopen, close=close)
    if os.geteuid() == 0:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], check=True)
        undo.append(lambda: subprocess.run(["umount", "-l", place], check=True))
        rig.full = full
    return rig


def spawner(tmp_path: Path, reactor: Reactor) -> rigs.SpawnerRig:
    tree = CgroupTree.detect()
    made = LinuxSpawner(Children(reactor), tree)
    path = f"/apf-contract-{os.getpid()}-{secrets.token_hex(3)}"
    group = path if os.geteuid() == 0 else None

    def close() -> None:
        if group is not None:
            _clear(tree, path)

    echo = "import os\nwhile d := os.read(%d, 4096): os.write(%d, d)"
    return rigs.SpawnerRig(
        spawner=made,
        exits_with=lambda status: ProcessSpec(argv=["/bin/sh", "-c", f"exit {status}"]),
        runs_for_ever=lambda: ProcessSpec(argv=["/bin/sleep", "1000"], cgroup=group),
        echoes=lambda fd: ProcessSpec(argv=[*PYTHON, echo % (fd, fd)], pass_fds=[fd], cgroup=group),
        absent=lambda: ProcessSpec(argv=["/no/such/program"]),
        close=close,
    )


TERM_LOOP = "trap '' TERM; while :; do sleep 0.05; done"
FORKS = "setsid sh -c 'sleep 1000 & sleep 1000' & sleep 1000 & sleep 1000 & wait"
# As PID 1 of a container: without a handler the kernel would drop the signal.
OBEYS = "trap 'exit 0' TERM; while :; do sleep 0.05; done"


def process_runtime(tmp_path: Path, reactor: Reactor) -> rigs.RuntimeRig:
    if os.geteuid():
        pytest.skip("cgroups need root")
    return _process_rig(reactor, CgroupTree.detect())


def plain_process_runtime(tmp_path: Path, reactor: Reactor) -> rigs.RuntimeRig:
    """Without cgroups: only the session is known, so `forks` stays in it."""
    return _process_rig(reactor, CgroupTree(), forks="sleep 1000 & sleep 1000 & wait")


def _process_rig(reactor: Reactor, tree: CgroupTree, forks: str = FORKS) -> rigs.RuntimeRig:
    become_subreaper()
    path = f"/apf-contract-{os.getpid()}-{secrets.token_hex(3)}"
    made = ProcessRuntime(reactor, Children(reactor), tree, cgroup_parent=path)

    def spec(key: str, script: str) -> InstanceSpec:
        return InstanceSpec(
            key=key,
            argv=["/bin/sh", "-c", script],
            env={"PATH": "/usr/bin:/bin", "APF_TEST": f"{path}={key}"},
        )

    def alive(key: str) -> int:
        mark = f"APF_TEST={path}={key}".encode()
        count = 0
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    count += mark in (entry / "environ").read_bytes().split(b"\0")
        return count

    def close() -> None:
        if tree.mounts:
            _clear(tree, path)

    return _runtime_rig(made, spec, alive, close, forks)


def oci_runtime(tmp_path: Path, reactor: Reactor) -> rigs.RuntimeRig:
    if os.geteuid() or shutil.which("runc") is None or not Path("/bin/busybox").exists():
        pytest.skip("containers need root, runc and busybox")
    become_subreaper()
    tree = CgroupTree.detect()
    path = f"/apf-contract-{os.getpid()}-{secrets.token_hex(3)}"
    made = OciRuntime(
        reactor,
        Children(reactor),
        tree,
        cgroup_parent=path,
        state_dir=tmp_path / "runc",
        bundle_dir=tmp_path / "bundles",
    )
    rootfs = tmp_path / "rootfs"
    (rootfs / "bin").mkdir(parents=True)
    shutil.copy("/bin/busybox", rootfs / "bin/busybox")
    for name in ("sh", "sleep", "setsid", "echo"):
        (rootfs / "bin" / name).symlink_to("busybox")

    def spec(key: str, script: str) -> InstanceSpec:
        return InstanceSpec(
            key=key, argv=["/bin/sh", "-c", script], env={"PATH": "/bin"}, rootfs=str(rootfs)
        )

    def close() -> None:
        _clear(tree, path)

    return _runtime_rig(made, spec, lambda key: len(tree.at(f"{path}/i-{key}").procs()), close)


def _runtime_rig(
    made: Runtime,
    spec: Callable[[str, str], InstanceSpec],
    alive: Callable[[str], int],
    close: Callable[[], None],
    forks: str = FORKS,
) -> rigs.RuntimeRig:
    return rigs.RuntimeRig(
        runtime=made,
        exits_with=lambda key, status: spec(key, f"exit {status}"),
        runs_for_ever=lambda key: spec(key, OBEYS),
        ignores_term=lambda key: spec(key, TERM_LOOP),
        cannot_start=lambda key: dataclasses.replace(spec(key, ""), argv=["/no/such/program"]),
        forks=lambda key: spec(key, forks),
        exec_echo=["/bin/sh", "-c", "echo hello; exit 3"],
        exec_for_ever=["/bin/sleep", "1000"],
        alive=alive,
        close=close,
    )


def _clear(tree: CgroupTree, path: str) -> None:
    """Kill and remove all that is left of a test's cgroup."""
    group = tree.at(path)
    for _ in range(2000):
        group.kill()
        if not group.populated() and not group.remove():
            return
    raise AssertionError(f"{path} is not empty: {group.procs()}")
