"""The keeper's control links: what passes, at what pace, and what each fault does."""

import os
import select
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hal.errors import Refused
from hal.linux.serial import SerialLine
from hal.local.faults import faults_from
from hal.local.miniloop import MiniLoop
from hal.local.relay import QUEUE_LIMIT_BYTES, Relay
from hal.ports import Event
from tests.process.hal.keepers import error_of, python_init, slot, until

MS = 1_000_000
FAST = 4_000_000
ALL_BYTES = bytes(range(256))
DATA = ALL_BYTES * 8


class Line:
    """Two serial lines with a relay on a loop of this test between them."""

    def __init__(self, directory: Path, baud: int = FAST) -> None:
        self.loop = MiniLoop()
        self.relay = Relay(self.loop, directory / "tty" / "cnm0-mc", baud)
        self.relay.power(True)
        self.card = SerialLine(str(self.relay.card.link), baud=baud)
        self.cnm = SerialLine(str(self.relay.cnm.link), baud=baud)

    def send(self, data: bytes) -> bytes:
        """From the card to the CNM: what came when the relay had passed or lost all of it."""
        left, got, before = bytearray(data), bytearray(), self._passed()
        end_ns = self.loop.now_ns() + 20_000 * MS
        while self.loop.now_ns() < end_ns:
            if left:
                del left[: self.card.write(left)]
            self.loop.turn(2 * MS)
            got += self.cnm.read()
            taken, lost, doubled, passed = (
                now - then for now, then in zip(self._passed(), before, strict=True)
            )
            if taken == len(data) and taken - lost + doubled == passed == len(got):
                return bytes(got)
        raise TimeoutError("the line is stuck")

    def _passed(self) -> tuple[int, int, int, int]:
        count = Counter(self.relay.counters()["to_cnm"])
        lost = count["dropped_bytes"] + count["cut_bytes"]
        return count["in_bytes"], lost, count["duplicated_bytes"], count["out_bytes"]

    def close(self) -> None:
        self.card.close()
        self.cnm.close()
        self.relay.close()
        self.loop.close()


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    made = Line(tmp_path)
    yield made
    made.close()


def test_drop_loses_bytes_and_only_loses(line: Line) -> None:
    line.relay.arm(faults_from({"drop": 0.2, "seed": 3}))
    got = line.send(DATA)
    lost = line.relay.counters()["to_cnm"]["dropped_bytes"]
    assert len(got) == len(DATA) - lost
    assert 0.1 < lost / len(DATA) < 0.3
    rest = iter(DATA)
    assert all(byte in rest for byte in got)  # a subsequence: order and values hold


def test_flip_inverts_one_bit_at_about_the_rate(line: Line) -> None:
    line.relay.arm(faults_from({"flip": 0.01, "seed": 3}))
    got = line.send(DATA)
    wrong = [a ^ b for a, b in zip(DATA, got, strict=True) if a != b]
    assert all(change.bit_count() == 1 for change in wrong)
    assert len(wrong) == line.relay.counters()["to_cnm"]["flipped_bytes"]
    assert 0.04 < len(wrong) / len(DATA) < 0.12  # 1 - 0.99^8 = 0.077
    assert len(set(wrong)) == 8  # every bit gets its turn


def test_duplicate_repeats_bytes(line: Line) -> None:
    line.relay.arm(faults_from({"duplicate": 1}))
    assert line.send(b"abc") == b"aabbcc"


def test_the_same_seed_does_the_same_damage(tmp_path: Path) -> None:
    results = []
    for name, seed in (("one", 7), ("two", 7), ("three", 8)):
        line = Line(tmp_path / name)
        line.relay.arm(faults_from({"drop": 0.1, "flip": 0.01, "duplicate": 0.1, "seed": seed}))
        results.append(line.send(DATA))
        line.close()
    assert results[0] == results[1] != results[2]


def test_a_cut_line_passes_nothing_and_heals(line: Line) -> None:
    line.relay.arm(faults_from({"cut": True}))
    assert line.send(b"lost") == b""
    line.relay.arm(faults_from({}))
    assert line.send(b"found") == b"found"
    assert line.relay.counters()["to_cnm"]["cut_bytes"] == 4


def test_the_two_directions_have_damage_of_their_own(line: Line) -> None:
    line.relay.arm(faults_from({"drop": 0.5}))
    line.cnm.write(ALL_BYTES)
    there = line.send(ALL_BYTES)
    back = bytearray()
    while len(back) < 256 - Counter(line.relay.counters()["to_card"])["dropped_bytes"]:
        line.loop.turn(2 * MS)
        back += line.card.read()
    assert bytes(back) != there


@pytest.mark.parametrize(
    "faults",
    [
        {"drop": 1.1},
        {"drop": -0.1},
        {"flip": "often"},
        {"duplicate": True},
        {"delay_ms": 1.5},
        {"delay_ms": 10_001},
        {"seed": -1},
        {"cut": 1},
        {"burn": 1},
        {"drop": float("nan")},
    ],
)
def test_a_fault_that_can_not_be_is_refused(faults: dict) -> None:
    with pytest.raises(Refused, match="fault"):
        faults_from(faults)


# --- pace, on a clock of the test's own ---


class ManualReactor:
    """Time that only the test moves. Handles are looked at when it does."""

    def __init__(self) -> None:
        self.time_ns = 0
        self.watches: dict[int, Callable[[Event], None]] = {}
        self.timers: list[tuple[int, int, Callable[[], None]]] = []

    def now_ns(self) -> int:
        return self.time_ns

    def post(self, call: Callable[[], None]) -> None:
        call()

    def call_at(self, when_ns: int, call: Callable[[], None]) -> Callable[[], None]:
        entry = (when_ns, len(self.timers), call)
        self.timers.append(entry)
        return lambda: entry in self.timers and self.timers.remove(entry)

    def watch(self, handle: int, events: Event, call: Callable[[Event], None]) -> None:
        self.watches[handle] = call

    def unwatch(self, handle: int) -> None:
        self.watches.pop(handle, None)

    def advance(self, step_ns: int) -> None:
        for call in list(self.watches.values()):
            call(Event.READ)
        self.time_ns += step_ns
        for entry in sorted(entry for entry in self.timers if entry[0] <= self.time_ns):
            self.timers.remove(entry)
            entry[2]()


def arrived(relay: Relay) -> None:
    """What was written is at the relay's end: the kernel takes it there in its own time."""
    poll = select.poll()
    poll.register(relay.card.master_fd, select.POLLIN)
    assert poll.poll(10_000)


@pytest.mark.parametrize("baud", [9_600, 115_200, 921_600])
def test_the_relay_passes_what_the_baud_rate_carries_and_not_more(
    tmp_path: Path, baud: int
) -> None:
    reactor = ManualReactor()
    relay = Relay(reactor, tmp_path / "link", baud)
    relay.power(True)
    line = SerialLine(str(relay.card.link), baud=baud)
    sent = 0
    burst = max(16, baud * 4 // 10_000)  # 4 ms of the line, see relay.py
    for millisecond in range(1, 201):
        sent += line.write(bytes(4096))
        arrived(relay)
        os.set_blocking(relay.cnm.slave_fd, False)
        reactor.advance(MS)
        out = relay.counters()["to_cnm"].get("out_bytes", 0)
        carried = baud / 10 * millisecond / 1000
        assert out <= carried + burst + 1  # a rounded byte
        while out and relay.cnm.slave_fd and _read(relay.cnm.slave_fd):
            pass
    assert out >= carried * 0.95 - burst
    waiting = relay.counters()["to_cnm"]["in_bytes"] - out
    assert waiting <= QUEUE_LIMIT_BYTES
    assert sent > relay.counters()["to_cnm"]["in_bytes"]  # the rest waits in the pty: back-pressure
    line.close()
    relay.close()


def test_a_delay_holds_everything_back_for_that_long(tmp_path: Path) -> None:
    reactor = ManualReactor()
    relay = Relay(reactor, tmp_path / "link", FAST)
    relay.power(True)
    relay.arm(faults_from({"delay_ms": 50}))
    line = SerialLine(str(relay.card.link), baud=FAST)
    line.write(b"late")
    arrived(relay)
    came: list[int] = []
    for millisecond in range(1, 80):
        reactor.advance(MS)
        if not came and relay.counters()["to_cnm"].get("out_bytes"):
            came.append(millisecond)
    assert came
    assert 50 <= came[0] <= 52
    line.close()
    relay.close()


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 4096)
    except BlockingIOError:
        return b""


# --- through the keeper ---

ECHO_INIT = """
import os, time, tty
path = os.environ["APF_RUN"] + "/tty/cnm0-mc.cnm"
fd = os.open(path, os.O_RDWR | os.O_NOCTTY)
print("echoes", flush=True)
while True:
    os.write(fd, os.read(fd, 4096))
"""


def exchange(line: SerialLine, data: bytes) -> bytes:
    """Write it and collect as much as comes back."""
    left, got = bytearray(data), bytearray()

    def turn() -> bool:
        if left:
            del left[: line.write(left)]
        got.extend(line.read())
        return len(got) >= len(data)

    until(turn)
    return bytes(got)


@pytest.fixture
def echo(start_keeper):
    """A keeper whose CNM sends back what it hears, and the card's end of its link."""
    keeper = start_keeper(slot(argv=python_init(ECHO_INIT)))
    keeper.power(0, "on")
    log = keeper.run_dir / "cnm" / "cnm0" / "init.log"
    until(lambda: log.exists() and "echoes" in log.read_text())
    line = SerialLine(str(keeper.run_dir / "tty" / "cnm0-mc"), baud=921600)
    yield keeper, line
    line.close()


@pytest.mark.process
def test_every_byte_value_goes_to_a_cnm_and_back(echo) -> None:
    _, line = echo
    assert exchange(line, ALL_BYTES * 4) == ALL_BYTES * 4


@pytest.mark.process
def test_a_line_survives_its_users_and_stays_raw(echo) -> None:
    keeper, line = echo
    line.close()
    again = SerialLine(str(keeper.run_dir / "tty" / "cnm0-mc"), baud=921600)
    assert exchange(again, b"\x03\x04\x11\x13\r\n") == b"\x03\x04\x11\x13\r\n"
    again.close()


@pytest.mark.process
def test_a_fault_set_by_request_holds_until_it_is_taken_back(echo) -> None:
    keeper, line = echo
    keeper.control.call("fault", slot=0, link="mc", cut=True)
    line.write(b"lost")
    until(lambda: counters(keeper)["to_cnm"].get("cut_bytes") == 4)
    assert keeper.control.call("status")["slots"][0]["links"][0]["cut"]
    keeper.control.call("fault", slot=0)
    assert exchange(line, b"found") == b"found"


@pytest.mark.process
def test_an_unpowered_cnm_neither_hears_nor_keeps_what_was_said(echo) -> None:
    keeper, line = echo
    keeper.power(0, "off")
    line.write(b"anybody?")
    until(lambda: counters(keeper)["to_cnm"].get("unpowered_bytes") == 8)
    keeper.power(0, "on")
    assert exchange(line, b"hello") == b"hello"


# Reads what waits for it, once somebody asks; the first boot never does.
LATE_INIT = """
import os, time
run = os.environ["APF_RUN"]
fd = os.open(run + "/tty/cnm0-mc.cnm", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
print("waits", flush=True)
while not os.path.exists(run + "/read-now"):
    time.sleep(0.005)
try:
    print("heard", os.read(fd, 4096), flush=True)
except BlockingIOError:
    print("heard nothing", flush=True)
time.sleep(1000)
"""


@pytest.mark.process
def test_what_an_earlier_boot_left_unread_is_gone_with_its_power(start_keeper) -> None:
    keeper = start_keeper(slot(argv=python_init(LATE_INIT)))
    log = keeper.run_dir / "cnm" / "cnm0" / "init.log"
    line = SerialLine(str(keeper.run_dir / "tty" / "cnm0-mc"), baud=921600)
    keeper.power(0, "on")
    line.write(b"stale")
    until(lambda: counters(keeper)["to_cnm"].get("out_bytes") == 5)
    keeper.power(0, "off")
    (keeper.run_dir / "read-now").touch()
    keeper.power(0, "on")
    until(lambda: "heard" in log.read_text())
    assert "heard nothing" in log.read_text()
    line.close()


@pytest.mark.process
@pytest.mark.parametrize(
    "request_",
    [{"slot": 0, "link": "usb"}, {"slot": 9}, {"slot": 0, "drop": 2}, {"slot": True}, {}],
)
def test_a_wrong_fault_request_is_refused_and_nothing_is_armed(
    shared_keeper, request_: dict
) -> None:
    control = shared_keeper.control
    assert isinstance(error_of(lambda: control.call("fault", **{"cut": True, **request_})), Refused)
    assert not control.call("status")["slots"][0]["links"][0]["cut"]


def counters(keeper) -> dict:
    return keeper.control.call("status")["slots"][0]["links"][0]["counters"]
