"""The mover's bridge: two windows in a row behave as one, also when either end begins anew."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware.mover import Bridge, ring_entries_for
from firmware.window import WindowChannel
from hal.errors import DeviceGone
from protocol.window import geometry_for
from tests.unit.firmware.window_fakes import SeededEntropy, WindowRig

SLOT, RING = 256, 4
MS = 1_000_000
DATA_AT = geometry_for(64, SLOT, 1 << 16).data_offset  # the bridge's own rings


class End:
    """The daemon's or the module's channel; `connections` holds what came over each."""

    def __init__(self, rig, side, seed):
        self.rig, self.window = rig, rig.window(side)
        self.connections, self.sent = [], []
        self.channel = WindowChannel(
            self.window,
            rig.bells[side],
            rig.reactor,
            SeededEntropy(seed),
            on_chunk=lambda *chunk: self.connections[-1].append(chunk),
            on_connect=self._connected,
            ring_entries=RING,
            slot_bytes=SLOT,
        )

    def _connected(self):
        self.connections.append([])
        self.sent.append([])

    def send(self, number, data=b"data"):
        taken = self.channel.send(1, 2, number, data)
        if taken:
            self.sent[-1].append((1, 2, number, data))
        return taken


class Chain:
    """daemon -- near -- bridge -- far -- module"""

    def __init__(self, seed=0):
        self.near, self.far = WindowRig(), WindowRig()
        self.reactor = self.far.reactor = self.near.reactor
        for bell in self.far.bells:
            bell._reactor, bell.handle = self.reactor, bell.handle + 100
        self.seed = seed
        self.ends, self.said = [], []
        self.far_window = self.far.window(0)
        self.bridge = Bridge(
            (self.near.window(1), self.near.bells[1]),
            (self.far_window, self.far.bells[0]),
            self.reactor,
            SeededEntropy(1000 + seed),
            on_end=self.ends.append,
            say=self.said.append,
            slot_bytes=SLOT,
        )
        self.daemon, self.module = self.start("daemon"), self.start("module")

    def start(self, who):
        """A new process; the one before was killed, and its memory is as it left it."""
        before = getattr(self, who, None)
        if before is not None:
            before.channel._stop()
        self.seed += 1
        end = End(self.near, 0, self.seed) if who == "daemon" else End(self.far, 1, self.seed)
        setattr(self, who, end)
        return end

    def up(self):
        self.bridge.start()
        self.daemon.channel.attach()
        self.module.channel.attach()
        self.reactor.run_until(lambda: self.daemon.channel.connected)
        return self


def test_chunks_go_through_both_ways_whole_and_in_order():
    chain = Chain().up()
    for number in range(20):
        chain.reactor.run_until(lambda n=number: chain.daemon.send(n, bytes([n]) * SLOT))
        chain.reactor.run_until(lambda n=number: chain.module.send(n, bytes([n + 100])))
    chain.reactor.run_until(lambda: len(chain.daemon.connections[-1]) == 20)
    chain.reactor.run_until(lambda: len(chain.module.connections[-1]) == 20)
    assert chain.module.connections == [[(1, 2, n, bytes([n]) * SLOT) for n in range(20)]]
    assert chain.daemon.connections == [[(1, 2, n, bytes([n + 100])) for n in range(20)]]
    assert chain.ends == chain.said == []


def test_nothing_is_offered_to_the_near_end_before_the_far_one_is_there():
    chain = Chain()
    chain.bridge.start()
    chain.daemon.channel.attach()
    chain.reactor.advance(2_000 * MS)
    assert not chain.daemon.channel.connected
    chain.module.channel.attach()
    chain.reactor.run_until(lambda: chain.daemon.channel.connected)


def test_taken_means_taken_by_the_far_end():
    chain = Chain().up()
    chain.module.channel.hold(True)
    assert chain.daemon.send(1)
    chain.reactor.advance(1_000 * MS)
    assert chain.daemon.channel.tx_gone == 0
    chain.module.channel.hold(False)
    chain.reactor.run_until(lambda: chain.daemon.channel.tx_gone == 1)
    assert chain.module.connections[-1] == [(1, 2, 1, b"data")]


def test_a_far_end_that_takes_nothing_stops_the_near_one_within_the_rings():
    chain = Chain().up()
    chain.module.channel.hold(True)
    sent = 0
    for _ in range(50):
        sent += chain.daemon.send(sent)
        chain.reactor.advance(100 * MS)
    assert sent == RING  # its own ring: nothing is given back before it has arrived
    chain.module.channel.hold(False)
    chain.reactor.run_until(lambda: len(chain.module.connections[-1]) == sent)
    assert [chunk for _, _, chunk, _ in chain.module.connections[-1]] == list(range(sent))


def test_a_far_end_that_begins_anew_is_a_new_connection_for_the_near_one():
    chain = Chain().up()
    chain.module.channel.hold(True)
    chain.daemon.send(1)
    chain.reactor.settle()
    chain.start("module").channel.attach()  # killed, and started again on the same memory
    chain.reactor.run_until(lambda: len(chain.daemon.connections) == 2)
    chain.reactor.run_until(lambda: chain.daemon.send(7))
    chain.reactor.run_until(lambda: bool(chain.module.connections[-1]))
    assert chain.module.connections == [[(1, 2, 7, b"data")]]


def test_what_an_end_sent_before_it_died_is_not_carried_into_its_next_life():
    chain = Chain()
    chain.bridge.start()
    chain.module.channel.attach()
    chain.reactor.run_until(lambda: chain.module.send(1))  # and nobody is there to take it
    chain.reactor.advance(1_000 * MS)
    chain.start("module").channel.attach()
    chain.reactor.advance(2_000 * MS)
    chain.daemon.channel.attach()
    chain.reactor.run_until(lambda: chain.daemon.channel.connected)
    chain.reactor.run_until(lambda: chain.module.send(2))
    chain.reactor.run_until(lambda: bool(chain.daemon.connections[-1]))
    assert chain.daemon.connections == [[(1, 2, 2, b"data")]]


def test_a_near_end_that_begins_anew_is_a_new_connection_for_the_far_one():
    chain = Chain().up()
    chain.start("daemon").channel.attach()
    chain.reactor.run_until(lambda: len(chain.module.connections) == 2)
    chain.reactor.run_until(lambda: chain.daemon.send(7))
    chain.reactor.run_until(lambda: bool(chain.module.connections[-1]))
    assert chain.module.connections == [[], [(1, 2, 7, b"data")]]


def test_after_a_restart_of_either_end_it_settles_in_one_connection():
    chain = Chain().up()
    chain.start("daemon").channel.attach()
    chain.reactor.advance(5_000 * MS)
    chain.start("module").channel.attach()
    chain.reactor.advance(5_000 * MS)
    counts = len(chain.daemon.connections), len(chain.module.connections)
    chain.reactor.advance(60_000 * MS)
    assert (len(chain.daemon.connections), len(chain.module.connections)) == counts
    assert counts == (2, 1)


def test_a_chunk_that_was_hurt_on_the_fabric_is_dropped_and_holds_nothing_up():
    chain = Chain().up()
    chain.module.channel.hold(True)
    for number in range(3):
        chain.reactor.run_until(lambda n=number: chain.daemon.send(n))
    chain.reactor.advance(100 * MS)
    chain.far.halves[0][DATA_AT + SLOT] ^= 0x10  # the second one's data
    chain.module.channel.hold(False)
    chain.reactor.run_until(lambda: chain.daemon.channel.tx_gone == 3)
    assert [chunk for _, _, chunk, _ in chain.module.connections[-1]] == [0, 2]
    assert chain.module.channel.counters["rx_data_crc"] == 1


def test_a_chunk_that_was_hurt_on_its_way_to_the_bridge_is_not_passed_on():
    chain = Chain().up()
    data_at = geometry_for(RING, SLOT, 1 << 16).data_offset
    seen = []
    chain.far_window.hook = lambda: (
        seen
        or (
            chain.far.halves[1][data_at]
            and seen.append(chain.far.halves[1].__setitem__(data_at, 0))
        )
    )
    for number in range(3):
        chain.reactor.run_until(lambda n=number: chain.module.send(n))
    chain.reactor.run_until(lambda: chain.module.channel.tx_gone == 3)
    assert [chunk for _, _, chunk, _ in chain.daemon.connections[-1]] == [1, 2]
    assert chain.bridge.far.counters["rx_data_crc"] == 1


def test_a_device_that_vanishes_ends_the_bridge_with_the_cause_and_detaches_the_near_end():
    chain = Chain().up()
    chain.daemon.send(1)
    chain.far_window.dead = DeviceGone("0000:01:00.0/bar2: the kernel has removed it")
    chain.reactor.run_until(lambda: bool(chain.ends))
    assert chain.ends == ["far window: 0000:01:00.0/bar2: the kernel has removed it"]
    chain.reactor.run_until(lambda: not chain.daemon.channel.connected)
    chain.reactor.advance(10_000 * MS)
    assert len(chain.ends) == 1


def test_a_module_that_writes_rubbish_is_said_and_does_not_end_the_mover():
    chain = Chain().up()
    for at in range(0x80, 0x84):
        chain.far.halves[1][at] = 0x77  # its head, where no head can be
    chain.reactor.run_until(lambda: bool(chain.said))
    assert "head" in chain.said[0]
    assert chain.ends == []


STEPS = st.lists(
    st.sampled_from(
        ["daemon sends", "module sends", "daemon anew", "module anew", "wait", "module stalls",
         "daemon stalls", "go on", "deaf", "hears"]
    ),
    max_size=60,
)  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(STEPS, st.integers(0, 99))
def test_whatever_happens_each_connection_carries_a_prefix_of_what_was_sent(steps, seed):
    chain = Chain(seed).up()
    everybody = [chain.daemon, chain.module]
    number = 0
    for step in steps:
        who, _, verb = step.partition(" ")
        end = getattr(chain, who, None)
        if verb == "sends":
            number += 1
            end.send(number, bytes([number]) * (number % SLOT))
        elif verb == "anew":
            everybody.append(chain.start(who))
            getattr(chain, who).channel.attach()
        elif verb == "stalls":
            end.channel.hold(True)
        elif step == "go on":
            chain.daemon.channel.hold(False)
            chain.module.channel.hold(False)
        elif step in ("deaf", "hears"):
            for bell in (*chain.near.bells, *chain.far.bells):
                bell.deaf = step == "deaf"
        else:
            chain.reactor.advance(700 * MS)
    for end in (chain.daemon, chain.module):
        end.channel.hold(False)
    chain.reactor.advance(20_000 * MS)
    assert chain.ends == []
    sent = {"daemon": [], "module": []}
    for end in everybody:
        side = "daemon" if end.rig is chain.near else "module"
        sent[side] += [list(chunks) for chunks in end.sent]
    for end in everybody:
        other = sent["module" if end.rig is chain.near else "daemon"]
        for came in end.connections:
            assert any(chunks[: len(came)] == came for chunks in other) or not came
    if chain.daemon.channel.connected and chain.module.channel.connected:
        chain.reactor.run_until(lambda: chain.daemon.send(250))
        chain.reactor.run_until(lambda: chain.module.connections[-1][-1:] == [(1, 2, 250, b"data")])
    else:
        pytest.fail("it did not come up again")


def test_a_small_window_gets_a_small_ring_and_one_that_is_too_small_is_refused():
    assert ring_entries_for(8 << 20, 65_536) == 64
    assert ring_entries_for(1 << 20, 65_536) == 8
    assert ring_entries_for(4096 + 2 * 65_536, 65_536) == 2
    with pytest.raises(ValueError, match="exceed"):
        ring_entries_for(4096 + 65_536, 65_536)
