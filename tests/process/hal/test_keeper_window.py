"""Windows and doorbells through the keeper: passed to both ends, zeroed by power, and faulted."""

import os
import select

import pytest

from firmware.window import WindowChannel
from hal.errors import DeadlinePassed, PeerGone, Refused, Unavailable
from hal.linux.entropy import LinuxEntropy
from hal.linux.shm import EventfdDoorbell, ShmWindow, shm_window_from_fds
from hal.local import wire
from hal.local.client import KeeperClient
from hal.local.miniloop import MiniLoop
from hal.local.shared import SharedWindow
from hal.local.window import open_cnm_window, submit_open_window
from tests.process.hal.keepers import PROJECT, error_of, python_init, slot, until

MS = 1_000_000
SIZE = 1 << 20

# Opens the window as a CNM does, and answers each ring with what it read, in upper case.
SHOUTING_INIT = f"""
import os, select, sys
sys.path.insert(0, {str(PROJECT)!r})
from hal.local.window import open_cnm_window
from hal.linux.shm import shm_window_from_fds
fds = open_cnm_window(3)
window, bell = shm_window_from_fds(fds.memfd, fds.bell_rx, fds.bell_tx, "cnm")
epoll = select.epoll()
epoll.register(bell.handle, select.EPOLLIN)
print("listens", flush=True)
while True:
    epoll.poll()
    bell.clear()
    window.write(64, bytes(window.read(64, 5)).upper())
    window.publish(0, window.acquire(0) + 1)
    bell.ring()
"""


@pytest.fixture
def shouting(start_keeper):
    # -S (no site packages) would hide nothing that hal.linux.shm needs
    keeper = start_keeper(slot(argv=python_init(SHOUTING_INIT)), slot(1, window_bytes=0))
    keeper.power(0, "on")
    log = keeper.run_dir / "cnm" / "cnm0" / "init.log"
    until(lambda: log.exists() and "listens" in log.read_text())
    return keeper


def card_end(keeper) -> tuple[ShmWindow, EventfdDoorbell]:
    reply = keeper.control.call_with_fds("window", slot=0)
    assert reply.result == {"size_bytes": SIZE}
    return shm_window_from_fds(*reply.fds, "card")


@pytest.mark.process
def test_both_ends_share_memory_and_a_ring_wakes_an_epoll(shouting) -> None:
    window, bell = card_end(shouting)
    window.write(64, b"hello")
    window.publish(0, 41)
    epoll = select.epoll()
    epoll.register(bell.handle, select.EPOLLIN)
    bell.ring()
    assert epoll.poll(10) == [(bell.handle, select.EPOLLIN)]
    bell.clear()
    assert epoll.poll(0) == []
    assert window.acquire(0) == 42
    assert bytes(window.read(64, 5)) == b"HELLO"
    epoll.close()
    window.close()
    bell.close()


@pytest.mark.process
def test_power_on_zeroes_the_memory_that_the_card_still_maps(shouting) -> None:
    window, bell = card_end(shouting)
    window.write(64, b"hello")
    bell.ring()
    until(lambda: bytes(window.read(64, 5)) == b"HELLO")
    shouting.power(0, "off")
    assert bytes(window.read(64, 5)) == b"HELLO"  # off alone forgets nothing
    shouting.power(0, "on")
    until(lambda: bytes(window.read(64, 5)) == bytes(5))
    window.close()
    bell.close()


@pytest.mark.process
def test_the_memory_can_not_be_shrunk_under_its_reader(shouting) -> None:
    reply = shouting.control.call_with_fds("window", slot=0)
    for size in (0, 2 * SIZE):
        with pytest.raises(PermissionError):
            os.ftruncate(reply.fds[0], size)
    wire.close_all(reply.fds)


@pytest.mark.process
def test_a_slot_without_a_window_says_so(shouting) -> None:
    assert isinstance(error_of(lambda: shouting.control.call("window", slot=1)), Unavailable)


@pytest.mark.process
def test_the_client_opens_it_on_a_loop(shouting) -> None:
    loop = MiniLoop()
    client = KeeperClient(shouting.run_dir, loop)
    opened: list = []
    submit_open_window(client, 0, loop.now_ns() + 10_000 * MS, opened.append)
    submit_open_window(client, 1, loop.now_ns() + 10_000 * MS, opened.append)
    while len(opened) < 2:
        loop.turn(100 * MS)
    window, bell = opened[0]
    assert window.tx_bytes == SIZE // 2
    assert isinstance(opened[1], Unavailable)
    client.close()
    window.close()
    bell.close()
    loop.close()


NOSY_INIT = f"""
import sys, time
sys.path.insert(0, {str(PROJECT)!r})
import socket
from hal.local import wire
from hal.local.client import receive_in_time
sock = socket.socket(fileno=3)
sock.settimeout(10)
for message in (b'{{"id": 5, "op": "shutdown"}}', b"no json"):
    sock.send(message)
    print(wire.result_of(receive_in_time(sock, "answer")[0]), flush=True)
print("done", flush=True)
time.sleep(1000)
"""


@pytest.mark.process
def test_an_init_may_ask_for_its_window_and_for_nothing_else(start_keeper) -> None:
    keeper = start_keeper(slot(argv=python_init(NOSY_INIT)))
    keeper.power(0, "on")
    log = keeper.run_dir / "cnm" / "cnm0" / "init.log"
    until(lambda: log.exists() and "done" in log.read_text())
    words = log.read_text().splitlines()
    assert "an init may ask for 'window' only" in words[0]
    assert "no JSON" in words[1]
    assert keeper.power(0, "read")["power_good"]


def test_a_keeper_that_does_not_answer_costs_the_init_its_deadline_and_no_more() -> None:
    import socket

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with pytest.raises(DeadlinePassed):
        open_cnm_window(ours.fileno(), timeout_s=0.05)
    assert ours.getblocking()
    assert os.get_blocking(ours.fileno())
    wire.receive(theirs)
    wire.send(theirs, wire.encode({"id": 1, "ok": True, "result": {}}), [0, 0])
    with pytest.raises(PeerGone, match="2 descriptors"):
        open_cnm_window(ours.fileno(), timeout_s=1)
    theirs.close()
    with pytest.raises(PeerGone):
        open_cnm_window(ours.fileno(), timeout_s=1)
    ours.close()


# --- faults, with the real channel at both ends, all on one loop ---


class Rig:
    def __init__(self) -> None:
        self.loop = MiniLoop()
        self.shared = SharedWindow(self.loop, "rig", 512 * 1024)
        self.got: list[bytes] = []
        card = [os.dup(fd) for fd in self.shared.fds_for_card()]
        cnm = [os.dup(fd) for fd in self.shared.fds_for_cnm()]
        self.ends = [shm_window_from_fds(*card, "card"), shm_window_from_fds(*cnm, "cnm")]
        self.card, self.cnm = (
            WindowChannel(
                window,
                bell,
                self.loop,
                LinuxEntropy(),
                ring_entries=8,
                slot_bytes=16384,
                on_chunk=lambda kind, transfer, chunk, data: self.got.append(data),
            )
            for window, bell in self.ends
        )
        self.card.attach()
        self.cnm.attach()
        self.until(lambda: self.both(True))

    def both(self, connected: bool) -> bool:
        return self.card.connected is connected and self.cnm.connected is connected

    def until(self, predicate) -> None:
        end_ns = self.loop.now_ns() + 20_000 * MS
        while self.loop.now_ns() < end_ns:
            if predicate():
                return
            self.loop.turn(2 * MS)
        raise TimeoutError("it did not happen")

    def turns(self, count: int) -> None:
        for _ in range(count):
            self.loop.turn(2 * MS)

    def close(self) -> None:
        self.card.close()
        self.cnm.close()
        self.shared.close()
        for window, bell in self.ends:
            window.close()
            bell.close()
        self.loop.close()


@pytest.fixture
def rig():
    made = Rig()
    yield made
    made.close()


def test_a_cut_window_is_seen_by_both_ends_and_nothing_passes(rig: Rig) -> None:
    assert rig.card.send(1, 1, 0, b"before")
    rig.until(lambda: rig.got == [b"before"])
    rig.shared.set_cut(True)
    rig.until(lambda: rig.both(False))
    for _ in range(20):
        assert not rig.card.send(1, 1, 1, b"during")
        assert not rig.cnm.send(1, 1, 1, b"during")
        rig.turns(5)
    assert rig.got == [b"before"]


def test_a_healed_window_connects_again_and_carries_data(rig: Rig) -> None:
    rig.shared.set_cut(True)
    rig.until(lambda: rig.both(False))
    rig.turns(30)
    rig.shared.set_cut(False)
    rig.until(lambda: rig.both(True))
    assert rig.card.send(1, 1, 0, b"after")
    rig.until(lambda: rig.got == [b"after"])


@pytest.mark.parametrize("turns", [0, 1, 3, 15])
def test_after_a_cut_however_short_data_passes_again(rig: Rig, turns: int) -> None:
    rig.shared.set_cut(True)
    rig.turns(turns)
    rig.shared.set_cut(False)
    rig.until(lambda: rig.cnm.send(1, 1, 0, b"after"))
    rig.until(lambda: rig.got == [b"after"])


def test_corruption_is_caught_by_the_check_of_each_chunk(rig: Rig) -> None:
    for turn in range(5):
        while rig.card.send(1, 1, turn, bytes(16384)):
            pass  # the ring is full, and nobody has looked at it yet
        rig.shared.set_corrupt(4096, seed=turn)
        rig.shared.set_corrupt(0, seed=0)
        rig.turns(10)
    bad = {k: n for k, n in rig.cnm.counters.items() if k.startswith("rx_") and "crc" in k}
    assert sum(bad.values()) > 0
    assert all(data == bytes(16384) for data in rig.got)
    rig.turns(30)
    rig.got.clear()
    assert rig.card.send(1, 2, 0, b"clean")
    rig.until(lambda: rig.got == [b"clean"])


@pytest.mark.process
def test_window_faults_are_set_by_request_and_wrong_ones_refused(start_keeper) -> None:
    keeper = start_keeper(slot())
    keeper.control.call("window_cut", slot=0, cut=True)
    assert keeper.control.call("status")["slots"][0]["window_cut"]
    keeper.control.call("window_cut", slot=0, cut=False)
    keeper.control.call("window_corrupt", slot=0, flips=3, seed=1)
    keeper.control.call("window_corrupt", slot=0, flips=0)
    for op, arguments in (
        ("window_cut", {"slot": 0}),
        ("window_cut", {"slot": 0, "cut": 1}),
        ("window_corrupt", {"slot": 0, "flips": -1}),
        ("window_corrupt", {"slot": 0, "flips": 1 << 30}),
        ("window_corrupt", {"slot": 5, "flips": 1}),
    ):
        assert isinstance(error_of(lambda o=op, a=arguments: keeper.control.call(o, **a)), Refused)
