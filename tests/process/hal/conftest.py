"""Keepers for the tests here; each one is ended, and judged, after its test."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import serial

from tests.process.hal.keepers import PROJECT, KeeperProcess, slot

StartKeeper = Callable[..., KeeperProcess]


@pytest.fixture
def start_keeper(tmp_path: Path) -> Iterator[StartKeeper]:
    """`start_keeper(slots, **config)`. At the end nothing of its board may be left."""
    started: list[KeeperProcess] = []

    def start(*slots: dict, where: Path = tmp_path, **config: Any) -> KeeperProcess:
        keeper = KeeperProcess(where, slots, **config)
        started.append(keeper)
        return keeper

    yield start
    for keeper in started:
        keeper.close()
        assert not keeper.cgroups(), "the board's cgroups outlived it"


@pytest.fixture(scope="module")
def shared_keeper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeeperProcess]:
    """One keeper with one slot, for requests that must not change anything."""
    keeper = KeeperProcess(tmp_path_factory.mktemp("shared"), [slot(0)])
    yield keeper
    keeper.close()
    assert not keeper.cgroups()


@dataclass(frozen=True, slots=True, kw_only=True)
class Nobody:
    """How to be another user than root."""

    uid: int
    python: str  # one that this user may run
    command: tuple[str, ...]  # runs it as this user
    home: Path  # this user's own directory


@pytest.fixture
def nobody() -> Iterator[Nobody]:
    """Skips where root can't be dropped or no Python is within nobody's reach."""
    uid = 65534
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("needs root, to drop it, and setpriv")
    packages = Path(serial.__file__).parents[1]
    # `env` runs the program after root was dropped; setpriv itself would still find what only
    # root may reach.
    drop = ("setpriv", "--reuid", str(uid), "--regid", str(uid), "--clear-groups")
    drop += ("env", f"PYTHONPATH={PROJECT}:{packages}")
    for python in (sys.executable, "/usr/bin/python3"):
        probe = [*drop, python, "-B", "-c", "import hal.local.keeper"]
        if subprocess.run(probe, capture_output=True, check=False).returncode == 0:
            break
    else:
        pytest.skip("nobody can't run a Python that has this project")
    home = Path(tempfile.mkdtemp(prefix="apf-nobody-"))  # tmp_path lies in root's own directory
    os.chown(home, uid, uid)
    yield Nobody(uid=uid, python=python, command=(*drop, python, "-B"), home=home)
    shutil.rmtree(home)
