"""Faults of windows and doorbells: P3, P7, lost rings, corruption, cuts, a dead peer."""

import pytest

from firmware.loop import MS, Loop
from hal.errors import PeerGone, Refused
from hal.mock.kernel import VirtualKernel
from hal.mock.window import MockWindowPair
from hal.ports import Event

HALF = 64 * 1024


class Fabric:
    """A window pair with both sides open, and the wakes that b saw."""

    def __init__(self, *, ring_ns: int = 0) -> None:
        self.kernel = VirtualKernel(1)
        self.loops = {name: Loop(self.kernel.node(name).clock) for name in ("card", "cnm")}
        for name, loop in self.loops.items():
            self.kernel.attach(name, loop)
        self.pair = MockWindowPair(self.kernel, "w", ab_bytes=HALF, ring_ns=ring_ns)
        self.a, self.b = self.pair.open_window("a"), self.pair.open_window("b")
        self.bell_a = self.pair.open_doorbell("a", self.kernel.node("card"))
        self.bell_b = self.pair.open_doorbell("b", self.kernel.node("cnm"))
        self.wakes = 0
        self.loops["cnm"].watch(self.bell_b.handle, Event.READ, self._woken)

    def _woken(self, events: Event) -> None:
        self.wakes += 1
        try:
            self.bell_b.clear()
        except PeerGone:
            self.loops["cnm"].unwatch(self.bell_b.handle)

    def run(self) -> None:
        self.kernel.run_for(10 * MS)


def test_corruption_in_place_turns_bits_over() -> None:
    fabric = Fabric()
    fabric.a.write(100, b"\x00\xff")
    fabric.pair.corrupt("ab", 101, 0x0F)
    assert bytes(fabric.b.read(100, 2)) == b"\x00\xf0"


def test_the_next_write_is_corrupted_once() -> None:
    fabric = Fabric()
    fabric.pair.corrupt_next_write("ab", 2)
    fabric.a.write(0, b"0000")
    assert bytes(fabric.b.read(0, 4)) == b"0010"
    fabric.a.write(0, b"0000")
    assert bytes(fabric.b.read(0, 4)) == b"0000"


def test_a_cut_fabric_takes_writes_and_loses_them_and_the_rings() -> None:
    fabric = Fabric()
    fabric.a.write(0, b"before")
    fabric.pair.cut()
    fabric.a.write(0, b"after!")
    fabric.a.publish(64, 7)
    fabric.bell_a.ring()
    fabric.run()
    assert bytes(fabric.b.read(0, 6)) == b"before"
    assert fabric.b.acquire(64) == 0
    assert fabric.wakes == 0
    fabric.pair.cut(False)
    fabric.bell_a.ring()
    fabric.run()
    assert fabric.wakes == 1


def test_all_ones_reads_hide_the_memory_until_they_stop() -> None:
    fabric = Fabric()
    fabric.a.publish(0, 5)
    fabric.pair.all_ones("ab")
    assert fabric.b.acquire(0) == 0xFFFF_FFFF
    assert bytes(fabric.b.read(0, 3)) == b"\xff\xff\xff"
    fabric.pair.all_ones("ab", False)
    assert fabric.b.acquire(0) == 5


def test_so_many_rings_are_lost_and_then_none() -> None:
    fabric = Fabric()
    fabric.pair.lose_rings = 2
    for wakes in (0, 0, 1):
        fabric.bell_a.ring()
        fabric.run()
        assert fabric.wakes == wakes
    assert fabric.pair.lost == 2


def test_a_slow_ring_takes_its_time() -> None:
    fabric = Fabric(ring_ns=5 * MS)
    fabric.bell_a.ring()
    fabric.kernel.run_for(5 * MS - 1)
    assert fabric.wakes == 0
    fabric.kernel.run_for(1)
    assert fabric.wakes == 1


def test_a_storm_rings_so_often_and_can_be_stopped() -> None:
    fabric = Fabric()
    fabric.pair.storm("b", MS, 5)
    fabric.run()
    assert fabric.wakes == 5
    stop = fabric.pair.storm("b", MS, 1000)
    fabric.kernel.run_for(3 * MS)
    stop()
    fabric.run()
    assert fabric.wakes == 8
    with pytest.raises(ValueError, match="storm"):
        fabric.pair.storm("b", 0, 5)


def test_a_dead_side_is_seen_by_the_other_until_it_is_back() -> None:
    fabric = Fabric()
    fabric.kernel.kill("card")
    fabric.run()
    assert fabric.wakes == 1
    with pytest.raises(PeerGone):
        fabric.bell_b.ring()
    again = Loop(fabric.kernel.node("card").clock)
    fabric.kernel.attach("card", again)
    fabric.pair.open_doorbell("a", fabric.kernel.node("card"))
    fabric.bell_b.ring()


def test_the_memory_outlives_both_sides() -> None:
    fabric = Fabric()
    fabric.a.write(0, b"kept")
    fabric.kernel.kill("card")
    fabric.kernel.kill("cnm")
    assert bytes(fabric.pair.open_window("b").read(0, 4)) == b"kept"


def test_a_closed_window_is_refused_and_a_closed_bell_is_gone() -> None:
    fabric = Fabric()
    fabric.a.close()
    with pytest.raises(Refused, match="after close"):
        fabric.a.write(0, b"x")
    fabric.bell_a.close()
    with pytest.raises(PeerGone):
        fabric.bell_a.ring()


def test_halves_may_differ_in_size() -> None:
    pair = MockWindowPair(VirtualKernel(1), "w", ab_bytes=4096, ba_bytes=8192)
    card = pair.open_window("a")
    assert (card.tx_bytes, card.rx_bytes) == (4096, 8192)
    with pytest.raises(Refused, match="sides a and b"):
        pair.open_window("x")
