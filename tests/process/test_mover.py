"""A real mover process between this one and a file that stands for the BAR; and its deaths."""

import os
import signal
import sys

import pytest

from firmware.mover import mover_argv
from firmware.window import WindowChannel
from hal.errors import Absent, DeadlinePassed, DeviceGone, Unavailable
from hal.linux import mover as mover_module
from hal.linux.cgroup import CgroupTree
from hal.linux.children import Children
from hal.linux.entropy import LinuxEntropy
from hal.linux.mover import Mover
from hal.linux.pci_window import open_mapped_window
from hal.linux.polled_bell import PolledBell
from hal.linux.spawner import LinuxSpawner
from tests.contract.worlds import RealWorld

pytestmark = pytest.mark.process
BAR_BYTES = 16 << 20
SECOND = 1_000_000_000


class Bench:
    """The owner's channel, the mover, the BAR, and the module's channel at the other side."""

    def __init__(self, tmp_path):
        self.bar = tmp_path / "bar"
        self.bar.write_bytes(bytes(BAR_BYTES))
        self.world = RealWorld()
        self.reactor = self.world.reactor
        self.said = []
        self.spawner = LinuxSpawner(Children(self.reactor), CgroupTree.detect())
        self.mover = Mover(
            f"map:{self.bar}?side=a",
            self.spawner,
            self.reactor,
            mover_argv,
            log_path=str(tmp_path / "mover.log"),
            say=self.said.append,
        )
        self.owner = self.faults = None
        self.parts = []
        self.module, self.module_got = self.channel(open_mapped_window(str(self.bar), "b"))

    def channel(self, window, bell=None):
        bell = bell or PolledBell(window, self.reactor)
        self.parts += [bell, window]
        got = []
        channel = WindowChannel(
            window,
            bell,
            self.reactor,
            LinuxEntropy(),
            on_chunk=lambda *chunk: got.append(chunk),
        )
        channel.attach()
        return channel, got

    def open(self):
        """The owner's end, as the daemon gets it."""
        answers = []
        self.mover.submit_open(self.reactor.now_ns() + 20 * SECOND, answers.append)
        self.wait(lambda: answers)
        if isinstance(answers[0], Exception):
            raise answers[0]
        self.owner, self.owner_got = self.channel(*answers[0])
        self.faults = []
        self.owner.on_fault = self.faults.append
        self.wait(lambda: self.owner.connected and self.module.connected)

    def wait(self, predicate, limit_s=30.0):
        self.world.run_until(lambda: bool(predicate()), limit_s)

    def send(self, channel, *chunk):
        self.wait(lambda: channel.send(1, 2, *chunk))

    def close(self):
        for channel in (self.owner, self.module):
            if channel is not None:
                channel.close()
        self.mover.close()
        self.wait(lambda: self.mover._process is None)
        for part in self.parts:
            part.close()
        self.world.close()


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path)
    yield made
    made.close()


def test_chunks_cross_the_mover_whole_both_ways(bench):
    bench.open()
    chunks = [os.urandom(65_536) for _ in range(200)]
    for number, data in enumerate(chunks):
        bench.send(bench.owner, number, data)
        if number % 10 == 0:
            bench.send(bench.module, number, data[:100])
    bench.wait(lambda: len(bench.module_got) == 200 and len(bench.owner_got) == 20)
    assert [data for *_, data in bench.module_got] == chunks
    assert [data for *_, data in bench.owner_got] == [data[:100] for data in chunks[::10]]


def test_a_sigbus_kills_the_mover_alone_and_its_owner_learns_the_cause(bench):
    bench.open()
    pid = bench.mover.pid
    bench.send(bench.owner, 0, b"before")
    bench.wait(lambda: bench.module_got)
    bench.module.close()  # or this test, which maps the file too, would get it as well
    os.truncate(bench.bar, 4096)  # what is mapped beyond the end is SIGBUS
    bench.wait(lambda: bench.faults)
    assert "SIGBUS: the device vanished" in bench.faults[0]
    assert not bench.owner.attached
    with pytest.raises(DeviceGone, match="SIGBUS"):
        bench.mover.pair()[0].acquire(0)
    assert bench.said == [bench.faults[0].removeprefix("window: ")]
    os.truncate(bench.bar, BAR_BYTES)
    bench.wait(lambda: bench.mover.up)
    assert bench.mover.pid != pid
    assert bench.mover.restarts >= 1
    bench.module, bench.module_got = bench.channel(open_mapped_window(str(bench.bar), "b"))
    bench.open()
    bench.send(bench.owner, 1, b"after")
    bench.wait(lambda: bench.module_got)
    assert bench.module_got == [(1, 2, 1, b"after")]


def test_a_bar_that_reads_all_ones_ends_the_mover_with_that_cause(bench):
    bench.open()
    bench.module.close()
    with bench.bar.open("r+b") as file:
        file.write(b"\xff" * BAR_BYTES)
    bench.wait(lambda: bench.faults)
    assert "the header reads as 0xffffffff" in bench.faults[0]


def test_a_death_inside_a_transfer_fails_it_and_the_next_connection_is_new(bench):
    bench.open()
    for number in range(16):
        bench.owner.send(1, 2, number, bytes(65_536))
    os.kill(bench.mover.pid, signal.SIGKILL)
    bench.wait(lambda: bench.faults)
    assert "SIGKILL" in bench.faults[0]
    assert not bench.owner.send(1, 2, 16, b"x")
    bench.module_got.clear()
    bench.wait(lambda: bench.mover.up)
    bench.open()
    bench.send(bench.owner, 99, b"new")
    bench.wait(lambda: (1, 2, 99, b"new") in bench.module_got)


def test_restarts_come_with_a_pause_that_grows_and_a_request_meanwhile_is_told_why(bench):
    bench.open()
    bench.module.close()
    os.unlink(bench.bar)
    for count in range(1, 4):
        bench.wait(lambda: bench.mover._process is not None)
        os.kill(bench.mover.pid, signal.SIGKILL) if count == 1 else None
        bench.wait(lambda c=count: len(bench.said) >= c)
    assert "100 ms after" in bench.said[0]
    assert "200 ms after" in bench.said[1]
    assert "400 ms after" in bench.said[2]
    assert "bar: No such file" in bench.said[1]
    with pytest.raises(DeviceGone, match="No such file"):
        bench.open()
    bench.bar.write_bytes(bytes(BAR_BYTES))


def test_no_process_is_started_for_a_slot_that_is_empty_and_one_is_when_it_is_filled(tmp_path):
    world = RealWorld()
    spawner = LinuxSpawner(Children(world.reactor), CgroupTree.detect())
    bar = tmp_path / "bar"

    def absent():
        return "" if bar.exists() else "the slot is empty"

    mover = Mover(f"map:{bar}?side=a", spawner, world.reactor, mover_argv, absent=absent)
    answers = []
    mover.submit_open(world.reactor.now_ns() + SECOND, answers.append)
    world.run_until(lambda: bool(answers))
    assert isinstance(answers[0], Absent)
    assert "the slot is empty" in str(answers[0])
    assert (mover.pid, mover.restarts) == (None, 0)
    bar.write_bytes(bytes(BAR_BYTES))
    world.run_until(lambda: mover.up, 30)
    mover.close()
    world.run_until(lambda: mover._process is None, 30)
    world.close()


def test_a_mover_that_hangs_is_killed_and_replaced(bench, monkeypatch):
    monkeypatch.setattr(mover_module, "SILENT_NS", 2 * SECOND)
    bench.open()
    pid = bench.mover.pid
    bench.mover._watch_silence()
    os.kill(pid, signal.SIGSTOP)
    bench.wait(lambda: bench.faults)
    assert "the device hangs" in bench.faults[0]
    monkeypatch.setattr(mover_module, "SILENT_NS", 60 * SECOND)
    bench.wait(lambda: bench.mover.up)
    assert bench.mover.pid != pid


def test_a_mover_that_starts_slowly_is_not_taken_for_a_hanging_one(bench, monkeypatch):
    monkeypatch.setattr(mover_module, "SILENT_NS", 1)
    bench.mover._watch_silence()
    bench.world.run_until(lambda: bench.mover.up, 30)
    monkeypatch.setattr(mover_module, "SILENT_NS", 60 * SECOND)
    assert bench.mover.restarts == 0


def test_a_mover_ends_with_its_owner(bench):
    bench.open()
    process = bench.mover._process
    os.close(os.dup(bench.mover._stream.handle))
    bench.mover._hang_up()  # what the kernel does when the owner is killed
    bench.wait(lambda: bench.mover._process is not process)
    assert not process.alive


def test_an_open_that_takes_too_long_is_told_so_once(tmp_path):
    world = RealWorld()
    spawner = LinuxSpawner(Children(world.reactor), CgroupTree.detect())

    def sleeper(_window, _fds, _control):
        return [sys.executable, "-c", "import time; time.sleep(60)"]

    mover = Mover("map:/nothing?side=a", spawner, world.reactor, sleeper)
    answers = []
    mover.submit_open(world.reactor.now_ns() + 50_000_000, answers.append)
    world.run_until(lambda: bool(answers))
    assert isinstance(answers[0], DeadlinePassed)
    mover._process.kill(signal.SIGKILL)
    mover.close()
    world.run_until(lambda: mover._process is None)
    mover.submit_open(world.reactor.now_ns(), answers.append)
    world.run_until(lambda: len(answers) == 2)
    assert isinstance(answers[1], Unavailable)
    world.close()
