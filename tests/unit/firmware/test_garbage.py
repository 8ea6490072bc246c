"""What nothing needs is dropped, what is needed never, and nothing while something moves."""

from dataclasses import dataclass, field

import pytest

from firmware.garbage import BLOBS_A_TURN, PERIOD_NS, Garbage
from firmware.loop import Loop
from firmware.storage import VolumeError
from hal.errors import StoreFailed
from hal.mock.kernel import VirtualKernel


@dataclass
class Store:
    held: set[bytes]
    stuck: set[bytes] = field(default_factory=set)

    def digests(self) -> list[bytes]:
        return sorted(self.held)

    def drop(self, digest: bytes) -> None:
        if digest in self.stuck:
            raise StoreFailed("read-only")
        self.held.discard(digest)


class Needs:
    def __init__(self, *digests: bytes) -> None:
        self.digests = set(digests)
        self.broken = False

    def referenced(self) -> set[bytes]:
        return self.digests

    def live_blobs(self) -> list[bytes]:
        if self.broken:
            raise VolumeError("volume v: its manifest can't be read")
        return list(self.digests)


@dataclass
class Bench:
    kernel: VirtualKernel
    store: Store
    volumes: Needs
    garbage: Garbage
    idle: list[bool]


@pytest.fixture
def bench() -> Bench:
    kernel = VirtualKernel(1)
    loop = Loop(kernel.node("daemon").clock)
    kernel.attach("daemon", loop)
    store = Store({bytes([n]) * 32 for n in range(60)})
    volumes, idle = Needs(bytes([2]) * 32), [True]
    garbage = Garbage(loop, store, Needs(bytes([1]) * 32), volumes, idle=lambda: idle[0])
    return Bench(kernel, store, volumes, garbage, idle)


def test_only_what_an_image_or_a_volume_needs_is_left(bench: Bench) -> None:
    bench.garbage.start()
    bench.kernel.run_for(1_000_000)
    assert bench.store.held == {b"\1" * 32, b"\2" * 32}
    assert bench.garbage.dropped == 58


def test_nothing_is_dropped_while_something_is_being_moved(bench: Bench) -> None:
    bench.idle[0] = False
    bench.garbage.start()
    bench.kernel.run_for(PERIOD_NS // 2)
    assert len(bench.store.held) == 60
    bench.idle[0] = True
    bench.kernel.run_for(PERIOD_NS)
    assert len(bench.store.held) == 2


def test_a_collection_stops_when_something_begins_in_the_middle(bench: Bench) -> None:
    bench.garbage.collect()
    bench.garbage._drop_some()
    bench.idle[0] = False
    bench.kernel.run_for(1_000_000)
    assert len(bench.store.held) == 60 - BLOBS_A_TURN


def test_a_manifest_that_can_not_be_read_keeps_everything(bench: Bench) -> None:
    bench.volumes.broken = True
    bench.garbage.start()
    bench.kernel.run_for(1_000_000)
    assert len(bench.store.held) == 60
    assert bench.garbage.failures == 1


def test_a_blob_that_can_not_be_dropped_does_not_hold_up_the_others(bench: Bench) -> None:
    bench.store.stuck = {b"\5" * 32}
    bench.garbage.start()
    bench.kernel.run_for(1_000_000)
    assert bench.store.held == {b"\1" * 32, b"\2" * 32, b"\5" * 32}
