"""LinuxClock against the real kernel."""

import os
import socket
import threading

import pytest

from hal.errors import Refused
from hal.linux.clock import LinuxClock
from hal.ports import Event


@pytest.fixture
def clock():
    made = LinuxClock()
    yield made
    made.close()


def test_no_wait_ends_before_its_deadline(clock: LinuxClock) -> None:
    for delay_ns in (0, 1, 999, 50_001, 300_001, 1_000_001, 2_499_999):
        until_ns = clock.now_ns() + delay_ns
        assert list(clock.wait(until_ns)) == []
        assert clock.now_ns() >= until_ns


def test_a_deadline_in_the_past_returns_what_is_ready(clock: LinuxClock) -> None:
    reader, writer = os.pipe()
    clock.watch(reader, Event.READ)
    assert clock.wait(clock.now_ns() - 1) == []
    os.write(writer, b"x")
    assert clock.wait(0) == [(reader, Event.READ)]
    os.close(reader)
    os.close(writer)


def test_a_hang_up_is_reported_unasked(clock: LinuxClock) -> None:
    reader, writer = os.pipe()
    clock.watch(reader, Event(0))
    os.close(writer)
    assert clock.wait(None) == [(reader, Event.HANGUP)]
    clock.unwatch(reader)
    os.close(reader)


def test_a_writer_without_reader_hangs_up(clock: LinuxClock) -> None:
    reader, writer = os.pipe()
    clock.watch(writer, Event.WRITE)
    os.close(reader)
    assert clock.wait(None) == [(writer, Event.WRITE | Event.HANGUP)]
    os.close(writer)


def test_watching_again_replaces_the_events(clock: LinuxClock) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        clock.watch(ours.fileno(), Event.READ)
        clock.watch(ours.fileno(), Event.READ | Event.WRITE)
        assert clock.wait(None) == [(ours.fileno(), Event.WRITE)]
        clock.watch(ours.fileno(), Event.READ)
        assert clock.wait(clock.now_ns() + 1_000_000) == []


def test_a_reused_descriptor_number_is_watched_anew(clock: LinuxClock) -> None:
    reader, writer = os.pipe()
    clock.watch(reader, Event.READ)
    os.close(reader)  # without unwatch: the kernel forgets it by itself
    again, far = os.pipe()
    assert again == reader
    clock.watch(again, Event.READ)
    os.write(far, b"x")
    assert clock.wait(None) == [(again, Event.READ)]
    for fd in (writer, again, far):
        os.close(fd)


def test_unwatching_the_unknown_is_ignored(clock: LinuxClock) -> None:
    reader, writer = os.pipe()
    clock.unwatch(reader)
    os.close(reader)
    os.close(writer)
    clock.unwatch(reader)
    clock.unwatch(-1)
    clock.unwatch(10_000)


def test_a_handle_that_cannot_be_waited_for_is_refused(clock: LinuxClock, tmp_path) -> None:
    with open(tmp_path / "plain", "wb") as plain, pytest.raises(Refused, match="can't be watched"):
        clock.watch(plain.fileno(), Event.READ)
    with pytest.raises(Refused):
        clock.watch(-1, Event.READ)


def test_wake_ends_the_present_wait_from_another_thread(clock: LinuxClock) -> None:
    thread = threading.Timer(0.01, clock.wake)
    thread.start()
    assert clock.wait(None) == []
    thread.join()


def test_wake_ends_the_next_wait_and_only_that(clock: LinuxClock) -> None:
    clock.wake()
    clock.wake()
    far_ns = clock.now_ns() + 3_600_000_000_000
    assert clock.wait(far_ns) == []
    assert clock.now_ns() < far_ns
    until_ns = clock.now_ns() + 1_000_000
    assert clock.wait(until_ns) == []
    assert clock.now_ns() >= until_ns
    clock.wake()
    assert clock.wait(far_ns) == []


def test_the_clock_counts_suspend(clock: LinuxClock) -> None:
    import time

    before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    assert before <= clock.now_ns() <= time.clock_gettime_ns(time.CLOCK_BOOTTIME)
