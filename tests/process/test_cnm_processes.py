"""A real init with a real agent: own processes, real ptys, real shared memory, real instances.

No namespaces: init is a subreaper here, and every process of a test is found by its session and
killed at the end. The card is the real endpoint in this process (tests/unit/firmware/cnm).
"""

import contextlib
import itertools
import os
import pty
import signal
import socket
import subprocess
import sys
import tty
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hal.errors import LinkDown
from hal.linux.blobs import LinuxBlobStore
from hal.linux.cgroup import CgroupTree
from hal.linux.entropy import LinuxEntropy
from hal.linux.shm import create_window_memfd, shm_window_from_fds
from hal.linux.workers import Workers
from hal.local import wire
from protocol.apf import (
    LOG_READ_MAX_BYTES,
    InitState,
    InstanceState,
    RemoveRequest,
    StopRequest,
)
from tests.contract.worlds import RealWorld
from tests.unit.firmware.cnm.card_side import CardSide
from tests.unit.firmware.cnm.mock_cnm import CONFIG

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
NAME = "shop/web/0"
SERIAL = itertools.count()
WINDOW_BYTES = 16 << 20
FOREVER = ["/bin/sh", "-c", "echo hello from $WHO; exec sleep 1000"]


class PtyMaster:
    """The card's end of a pty; the test holds the slave open too, so it never hangs up."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self.handle = fd

    def read(self) -> bytes:
        try:
            return os.read(self.handle, 4096)
        except BlockingIOError:
            return b""
        except OSError as exc:
            raise LinkDown(str(exc)) from exc

    def write(self, data: bytes) -> int:
        try:
            return os.write(self.handle, data)
        except BlockingIOError:
            return 0

    def close(self) -> None: ...


class Cnm:
    """One CNM's processes and the card at its other end."""

    def __init__(self, tmp_path: Path) -> None:
        self.fds: list[int] = []
        masters, slaves = [], []
        for _ in range(2):
            master, slave = pty.openpty()
            tty.setraw(slave)
            masters.append(master)
            slaves.append(os.ttyname(slave))
            self.fds += [master, slave]
        self.config = replace(
            CONFIG,
            state_dir=str(tmp_path / "state"),
            run_dir=str(tmp_path / "run"),
            cgroup=f"/apf/test-cnm-{os.getpid()}-{next(SERIAL)}",
            mc=f"serial:{slaves[0]}?baud=921600",
            agent=f"serial:{slaves[1]}?baud=921600",
        )
        self.path = tmp_path / "config.json"
        self.path.write_bytes(self.config.to_json())
        self.memfd = create_window_memfd("test", WINDOW_BYTES)
        self.bells = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(2)]
        self.log_path = tmp_path / "init.log"
        self.world = RealWorld()
        self.workers = Workers(self.world.reactor)
        window, doorbell = shm_window_from_fds(
            os.dup(self.memfd), os.dup(self.bells[0]), os.dup(self.bells[1]), "card"
        )
        self.window, self.doorbell = window, doorbell
        self.process = self._start_init()
        self.card = CardSide(
            self.world,
            entropy=LinuxEntropy(),
            open_mc=lambda: PtyMaster(masters[0]),
            open_agent=lambda: PtyMaster(masters[1]),
            blobs=LinuxBlobStore(tmp_path / "card-blobs", self.world.reactor, self.workers),
            window=window,
            doorbell=doorbell,
        )

    def _start_init(self) -> subprocess.Popen[bytes]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, ours, self.log_path.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "firmware.cnm.init",
                 "--config", str(self.path), "--keeper", str(theirs.fileno())],
                cwd=ROOT, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
            ours.settimeout(20)
            request = wire.receive(ours)
            assert request is not None, self.log_path.read_text()
            assert request[0]["op"] == "window"
            answer = {"id": request[0]["id"], "ok": True, "result": {"size_bytes": WINDOW_BYTES}}
            wire.send(ours, wire.encode(answer), [self.memfd, self.bells[1], self.bells[0]])
        return process

    def agent_pid(self) -> int:
        """The child of init that runs the agent's module; 0 when there is none."""
        for pid in children_of(self.process.pid):
            if b"firmware.cnm.agent" in cmdline(pid):
                return pid
        return 0

    def descendants(self) -> set[int]:
        """Init is their reaper, so none gets away from below it."""
        found: set[int] = set()
        fresh = {self.process.pid}
        while fresh:
            fresh = {child for pid in fresh for child in children_of(pid)} - found
            found |= fresh
        return found

    def close(self) -> None:
        left = self.descendants()
        self.process.kill()
        self.process.wait()
        for pid in left:
            kill(pid)
        self.world.run_until(lambda: not any(alive(pid) for pid in left))
        group = CgroupTree.detect().at(self.config.cgroup)
        self.world.run_until(lambda: not group.remove())  # zombies hold v1 groups for a while
        self.workers.close()
        self.world.close()
        self.window.close()
        self.doorbell.close()
        for fd in [*self.fds, *self.bells, self.memfd]:
            os.close(fd)


def children_of(pid: int) -> list[int]:
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
        texts = [Path(f"/proc/{pid}/task/{task}/children").read_text() for task in tasks]
    except OSError:
        return []
    return [int(child) for text in texts for child in text.split()]


def cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def alive(pid: int) -> bool:
    """Runs, that is: a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def start_ticks(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19])


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def cnm(tmp_path: Path) -> Iterator[Cnm]:
    made = Cnm(tmp_path)
    yield made
    made.close()


@pytest.fixture
def card(cnm: Cnm) -> CardSide:
    """A card that has adopted the CNM and runs one instance on it."""
    cnm.card.adopt()
    cnm.card.run_instance(argv=FOREVER, env={"PATH": "/usr/bin:/bin", "WHO": "web"})
    return cnm.card


def read_log(card: CardSide, offset: int = 0) -> bytes:
    got = card.call(lambda done: card.transfers.read_log(NAME, offset, LOG_READ_MAX_BYTES, done))
    assert not isinstance(got, Exception), got
    data: bytes = got.data
    return data


def test_an_instance_from_deploy_to_remove(cnm: Cnm, card: CardSide) -> None:
    status = card.statuses()[NAME]
    assert cmdline(status.pid).startswith(b"sleep")
    assert start_ticks(status.pid) == status.start_ticks
    for _ in range(100):
        if log := read_log(card):
            break
        card.run(20)
    assert log == b"hello from web\n"
    card.ask(StopRequest(ctx=card.ctx, instance=NAME, generation=1, grace_ms=5000))
    card.wait_state(InstanceState.STOPPED)
    assert not alive(status.pid)
    card.ask(RemoveRequest(ctx=card.ctx, instance=NAME, generation=1))
    assert card.statuses() == {}
    assert not list(Path(cnm.config.state_dir, "logs").iterdir())


def test_a_killed_agent_is_replaced_and_its_instances_never_notice(
    cnm: Cnm, card: CardSide
) -> None:
    before, agent = card.statuses()[NAME], cnm.agent_pid()
    os.kill(agent, signal.SIGKILL)
    card.until(lambda: cnm.agent_pid() not in (0, agent))
    assert card.hello(card.agent).boot_id == card.boot_id
    after = card.statuses()[NAME]
    assert after == before
    assert start_ticks(before.pid) == before.start_ticks
    for _ in range(100):  # the window is attached anew
        got = card.call(lambda done: card.transfers.read_log(NAME, 6, 100, done))
        if not isinstance(got, Exception):
            break
    assert got.data == b"from web\n"
    card.run_instance("shop/web/1", argv=FOREVER, env={"PATH": "/usr/bin:/bin", "WHO": "new"})


def test_the_end_of_the_lease_kills_every_instance(card: CardSide) -> None:
    pid = card.statuses()[NAME].pid
    card.lease_ms = 1  # what is held now runs out
    card.granting = False
    card.until(lambda: not alive(pid))
    card.until(lambda: card.heartbeats[-1].init_state is InitState.LEASE_EXPIRED)
    status = card.statuses()[NAME]
    assert (status.state, status.text) == (InstanceState.STOPPED, "lease expired")


def test_sigterm_ends_instances_agent_and_init(cnm: Cnm, card: CardSide) -> None:
    below = cnm.descendants()
    assert len(below) >= 2
    cnm.process.terminate()
    card.until(lambda: cnm.process.poll() is not None)
    assert cnm.process.returncode == 0, cnm.log_path.read_text()
    assert not any(alive(pid) for pid in below)


def test_orphans_of_instances_are_reaped(cnm: Cnm, card: CardSide) -> None:
    """A program that ends and leaves a child behind: init is its reaper."""
    script = "setsid sh -c 'sleep 0.3' & exit 3"
    name = "shop/forker/0"
    card.deploy(
        card.spec(name, argv=["/bin/sh", "-c", script], env={"PATH": "/usr/bin:/bin"}), name
    )
    card.wait_state(InstanceState.PREPARED, name)
    card.start(name)
    assert card.wait_state(InstanceState.EXITED, name).exit_status == 3
    card.until(lambda: all(alive(pid) for pid in cnm.descendants()))
