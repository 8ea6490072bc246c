"""MCTP over SMBus between two controllers of the virtual world, each a target of the other."""

from typing import Any

import pytest

from firmware.loop import Loop
from firmware.smbus_link import PACKET_ATTEMPTS, QUEUE_PACKETS, SmbusLink
from hal.mock.kernel import VirtualKernel
from hal.mock.smbus import MockSmbusSegment, MockSmbusTarget
from hal.mock.smbus_bus import MockSmbusBus
from hal.smbus_ports import SmbusKind, SmbusTransfer
from protocol.mctp.reassembly import Message

LEFT, RIGHT = 0x20, 0x21


class Ends:
    """Two nodes on one bus."""

    def __init__(self) -> None:
        self.kernel = VirtualKernel(1)
        self.bus = MockSmbusBus(self.kernel, "link")
        self.links: dict[int, SmbusLink] = {}
        self.got: dict[int, list[Message]] = {LEFT: [], RIGHT: []}
        self.segments: dict[int, MockSmbusSegment] = {}
        self.targets: dict[int, MockSmbusTarget] = {}
        for own, peer, eid in ((LEFT, RIGHT, 8), (RIGHT, LEFT, 9)):
            loop = Loop(self.kernel.node(f"node{own:x}").clock)
            node = self.kernel.attach(f"node{own:x}", loop)
            self.segments[own] = MockSmbusSegment(node, self.bus)
            self.targets[own] = MockSmbusTarget(node, self.bus, own)
            link = SmbusLink(
                loop, self.segments[own], self.targets[own], name=f"{own:x}",
                own_address=own, peer_address=peer, local_eid=eid, peer_eid=17 - eid,
            )  # fmt: skip
            link.on_message = self.got[own].append
            self.links[own] = link

    def run(self, seconds: float = 2) -> None:
        self.kernel.run_for(int(seconds * 1e9))


@pytest.fixture
def ends() -> Ends:
    return Ends()


@pytest.mark.parametrize("size", [1, 64, 65, 1000])
def test_messages_of_every_size_go_both_ways_and_leave_the_bus_free(ends: Ends, size: int) -> None:
    data = b"\x7e" + bytes(index & 0xFF for index in range(size - 1))
    assert ends.links[LEFT].send_message(data, tag=3, to=True)
    ends.run()
    assert ends.links[RIGHT].send_message(data[::-1] if size == 1 else data, tag=3, to=False)
    ends.run()
    for side, message in ((RIGHT, ends.got[RIGHT]), (LEFT, ends.got[LEFT])):
        assert [m.data for m in message] == [data], side
    assert ends.got[RIGHT][0].src_eid == 8
    assert not ends.links[LEFT].drops.keys() - {"tx_packets", "rx_packets"}


def test_the_bytes_on_the_wire_are_those_of_another_stack(ends: Ends) -> None:
    """The public vector smbus_libmctp_5byte: 0x20 to 0x21, EID 50 to 51."""
    frames: list[bytes] = []
    put = ends.targets[RIGHT].put
    ends.targets[RIGHT].put = lambda byte: (frames.append(bytes([byte])), put(byte))[1]  # type: ignore[method-assign]
    link = ends.links[LEFT]
    link.local_eid, link.peer_eid = 50, 51
    ends.links[RIGHT].local_eid = 51
    link.send_message(bytes.fromhex("0001020304"), tag=2, to=False)
    ends.run()
    got = b"".join(frames)
    want = bytes.fromhex("420f0a41013332c20001020304bb")[1:]
    assert got[:6] == want[:6]
    assert got[7:-1] == want[7:-1], "all but the flags: TO and the sequence are ours"
    assert ends.got[RIGHT][0].data == bytes.fromhex("0001020304")


def test_both_may_talk_at_once(ends: Ends) -> None:
    for index in range(10):
        for side in (LEFT, RIGHT):
            assert ends.links[side].send_message(b"\x7e" + bytes([index]) * 100, tag=0, to=True)
    ends.run()
    for side in (LEFT, RIGHT):
        assert [m.data[1] for m in ends.got[side]] == list(range(10))


def test_lost_arbitration_costs_time_and_no_message(ends: Ends) -> None:
    ends.bus.lose_arbitration = 5
    ends.links[LEFT].send_message(b"\x7e" + bytes(200), tag=0, to=True)
    ends.run()
    assert len(ends.got[RIGHT]) == 1
    assert ends.bus.lose_arbitration == 0


def test_a_peer_that_is_away_is_told_once_and_the_rest_of_its_message_is_dropped(
    ends: Ends,
) -> None:
    states: list[bool] = []
    ends.links[LEFT].on_state = lambda up, _text: states.append(up)
    ends.bus.detach(ends.targets[RIGHT])
    for _ in range(3):
        ends.links[LEFT].send_message(b"\x7e" + bytes(200), tag=0, to=True)
    ends.run()
    assert states == [False]
    counters = ends.links[LEFT].counters
    assert counters["tx_dropped"] == 3 * 4
    assert counters["tx_Absent"] == 3 * PACKET_ATTEMPTS, "one packet of each was tried"
    ends.bus.attach(ends.targets[RIGHT])
    ends.links[LEFT].send_message(b"\x7eback", tag=0, to=True)
    ends.run()
    assert states == [False, True]
    assert [m.data for m in ends.got[RIGHT]] == [b"\x7eback"]


def test_the_queue_is_bounded_and_an_urgent_message_goes_first(ends: Ends) -> None:
    link = ends.links[LEFT]
    taken = [link.send_message(b"\x7e" + bytes([index]), tag=0, to=True) for index in range(100)]
    assert sum(taken) == QUEUE_PACKETS + 1  # one is on the wire
    assert link.counters["tx_queue_full"] == 100 - QUEUE_PACKETS - 1
    ends.run(0.02)
    link.send_message(b"\x7eurgent", tag=1, to=True, urgent=True)
    ends.run()
    place = [m.data for m in ends.got[RIGHT]].index(b"\x7eurgent")
    assert place < QUEUE_PACKETS // 2


def test_bad_frames_and_foreign_ones_cost_only_themselves(ends: Ends) -> None:
    found: list[Any] = []

    def write(data: bytes, *, pec: bool, command: int = 0x0F) -> None:
        transfer = SmbusTransfer(
            address=RIGHT, kind=SmbusKind.WRITE_BLOCK, command=command, data=data, pec=pec
        )
        ends.segments[LEFT].submit(transfer, ends.kernel.now_ns + 10**9, found.append)
        ends.run(0.1)

    write(bytes.fromhex("41013332c20001020304"), pec=False)
    write(bytes.fromhex("41013332c20001020304"), pec=True, command=0x10)
    write(bytes.fromhex("45010908c00001020304"), pec=True)  # from 0x22
    write(bytes.fromhex("40010908c00001020304"), pec=True)  # not MCTP: bit 0 of its source
    drops = ends.links[RIGHT].drops
    assert [drops[name] for name in ("bad_count", "bad_command", "foreign", "bad_source")] == [
        1
    ] * 4
    ends.links[LEFT].send_message(b"\x7egood", tag=0, to=True)
    ends.run()
    assert [m.data for m in ends.got[RIGHT]] == [b"\x7egood"]


def test_after_close_nothing_is_sent_and_the_address_is_free(ends: Ends) -> None:
    ends.links[RIGHT].close()
    ends.links[RIGHT].close()
    assert not ends.links[RIGHT].send_message(b"\x7e", tag=0, to=True)
    assert RIGHT not in {model.address for model in ends.bus.visible()}
