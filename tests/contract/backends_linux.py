"""The Linux rows of the contract suites. See `conftest.py` for how a row joins.

Those that start real processes carry the `process` mark; containers and mounts need root.
"""

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
from hal.linux.children import Children
from hal.linux.clock import LinuxClock
from hal.linux.entropy import LinuxEntropy
from hal.linux.files import LinuxFiles
from hal.linux.journal import SqliteJournal
from hal.linux.spawner import LinuxSpawner
from hal.linux.trees import LinuxTrees
from hal.linux.workers import Workers
from hal.ports import JournalStore, ProcessSpec, Reactor
from tests.contract import rigs

PYTHON = [sys.executable, "-I", "-S", "-c"]


def backends(port: str) -> list[Any]:
    """The rows for one port; [] for a port that other modules serve."""
    rows = {
        "clock": [pytest.param(clock, id="linux")],
        "entropy": [pytest.param(entropy, id="linux")],
        "files": [pytest.param(files, id="linux")],
        "blobs": [pytest.param(blobs, id="linux")],
        "trees": [pytest.param(trees, id="linux")],
        "journal": [pytest.param(journal, id="linux-sqlite")],
        "spawner": [pytest.param(spawner, id="linux", marks=pytest.mark.process)],
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
        close=close,
    )


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


def _clear(tree: CgroupTree, path: str) -> None:
    """Kill and remove all that is left of a test's cgroup."""
    group = tree.at(path)
    for _ in range(2000):
        group.kill()
        if not group.populated() and not group.remove():
            return
    raise AssertionError(f"{path} is not empty: {group.procs()}")
