"""firmware.watchdog and hal.linux.notify: the sign of life, and the socket that it goes through."""

import os
import socket

import pytest

from firmware.watchdog import Watchdog
from hal.linux.notify import LinuxNotifyServer, open_notifier
from tests.unit.firmware.fake_reactor import FakeReactor

SECOND = 1_000_000_000


class FakeNotifier:
    def __init__(self, watchdog_ns: int | None) -> None:
        self.watchdog_ns = watchdog_ns
        self.sent: list[str] = []

    def send(self, state: str) -> None:
        self.sent.append(state)

    def close(self) -> None:
        pass


def test_it_beats_at_half_the_period() -> None:
    reactor, notifier = FakeReactor(), FakeNotifier(2 * SECOND)
    watchdog = Watchdog(reactor, notifier)
    watchdog.start()
    reactor.advance(10 * SECOND)
    assert notifier.sent == ["WATCHDOG=1"] * 11
    watchdog.stop()
    reactor.advance(10 * SECOND)
    assert len(notifier.sent) == 11


def test_it_is_silent_when_nobody_asked() -> None:
    reactor, notifier = FakeReactor(), FakeNotifier(None)
    Watchdog(reactor, notifier).start()
    reactor.advance(10 * SECOND)
    assert notifier.sent == []


def test_it_is_silent_while_the_daemon_is_unhealthy() -> None:
    reactor, notifier, health = FakeReactor(), FakeNotifier(2 * SECOND), [True]
    watchdog = Watchdog(reactor, notifier, healthy=lambda: health[0])
    watchdog.start()
    health[0] = False
    reactor.advance(3 * SECOND)
    assert (notifier.sent, watchdog.withheld) == (["WATCHDOG=1"], 3)
    health[0] = True
    reactor.advance(SECOND)
    assert len(notifier.sent) == 2


def test_it_is_silent_while_posted_calls_are_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    reactor, notifier = FakeReactor(), FakeNotifier(2 * SECOND)
    Watchdog(reactor, notifier).start()
    monkeypatch.setattr(reactor, "run_posted", lambda: None)
    reactor.advance(5 * SECOND)
    assert notifier.sent == ["WATCHDOG=1"]


def test_what_is_sent_arrives_with_the_senders_pid() -> None:
    server = LinuxNotifyServer()
    notifier = open_notifier({"NOTIFY_SOCKET": server.address, "WATCHDOG_USEC": "2000000"})
    assert notifier.watchdog_ns == 2 * SECOND
    notifier.send("READY=1\nSTATUS=all = well")
    notifier.send("WATCHDOG=1")
    found = server.receive()
    assert [notice.fields for notice in found] == [
        {"READY": "1", "STATUS": "all = well"},
        {"WATCHDOG": "1"},
    ]
    assert {notice.pid for notice in found} == {os.getpid()}
    notifier.close()
    server.close()


def test_a_manager_that_is_gone_or_full_does_not_stop_the_service() -> None:
    server = LinuxNotifyServer()
    notifier = open_notifier({"NOTIFY_SOCKET": server.address})
    for _ in range(100_000):
        notifier.send("WATCHDOG=1")
        if notifier.lost:
            break
    assert notifier.lost == 1
    assert server.receive()
    server.close()
    notifier.send("READY=1")
    assert notifier.lost == 2
    notifier.close()


def test_malformed_datagrams_are_left_out_and_descriptors_in_them_closed() -> None:
    server = LinuxNotifyServer()
    before = len(os.listdir("/proc/self/fd"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        address = "\0" + server.address[1:]
        for data in (b"", b"\xff\xfe", b"no equals sign", b"x" * 10_000):
            sock.sendto(data, address)
        sock.connect(address)
        socket.send_fds(sock, [b"FDSTORE=1"], [0, 1])
        sock.send(b"READY=1")
    assert [notice.fields for notice in server.receive()] == [{"FDSTORE": "1"}, {"READY": "1"}]
    assert len(os.listdir("/proc/self/fd")) == before
    server.close()


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"NOTIFY_SOCKET": ""},
        {"NOTIFY_SOCKET": "relative"},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "5", "WATCHDOG_PID": "1"},
    ],
)
def test_an_environment_without_a_manager_gives_a_silent_notifier(env: dict[str, str]) -> None:
    notifier = open_notifier(env)
    notifier.send("READY=1")
    assert (notifier.watchdog_ns, notifier.lost) == (None, 0)
    notifier.close()
