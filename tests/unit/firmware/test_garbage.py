"""What nothing needs is dropped, what is needed never, and nothing while something moves."""

from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from firmware.garbage import BLOBS_A_TURN, PARTS_A_TURN, PERIOD_NS, RETRY_NS, Garbage
from firmware.loop import Loop
from firmware.volume_manifest import VolumeError
from hal.errors import StoreFailed
from hal.mock.kernel import VirtualKernel


@dataclass
class Store:
    held: set[bytes]
    stuck: set[bytes] = field(default_factory=set)
    asked: list[int] = field(default_factory=list)  # which parts were listed

    def digests(self, first: int | None = None) -> list[bytes]:
        assert first is not None, "all at once stalls the loop"
        self.asked.append(first)
        return sorted(digest for digest in self.held if digest[0] == first)

    def drop(self, digest: bytes) -> None:
        if digest in self.stuck:
            raise StoreFailed("read-only")
        self.held.discard(digest)


PROMISED = bytes([99]) * 32


class Needs:
    """One volume a digest; its manifest names nothing else."""

    def __init__(self, *digests: bytes) -> None:
        self.digests = set(digests)
        self.changes = 0
        self.read: list[bytes] = []
        self.broken = False
        self.given_up: set[bytes] = set()

    def referenced(self) -> set[bytes]:
        return self.digests

    def end_idle(self) -> None:
        self.digests -= self.given_up

    def manifests(self) -> dict[bytes, str]:
        return dict.fromkeys(sorted(self.digests), "v")

    def contents(self, digest: bytes, name: str) -> list[bytes]:
        if self.broken:
            raise VolumeError(f"volume {name}: its manifest can't be read")
        self.read.append(digest)
        return []

    def promised(self) -> bytes:
        return PROMISED

    def forget_all_but(self, manifests: object) -> None:
        pass


@dataclass
class Bench:
    kernel: VirtualKernel
    store: Store
    images: Needs
    volumes: Needs
    garbage: Garbage
    idle: list[bool]


@pytest.fixture
def bench() -> Bench:
    kernel = VirtualKernel(1)
    loop = Loop(kernel.node("daemon").clock)
    kernel.attach("daemon", loop)
    store = Store({bytes([n]) * 32 for n in range(60)})
    images, volumes, idle = Needs(bytes([1]) * 32), Needs(bytes([2]) * 32), [True]
    garbage = Garbage(loop, store, images, volumes, idle=lambda: idle[0])
    return Bench(kernel, store, images, volumes, garbage, idle)


def test_what_a_volume_that_is_being_made_begins_with_is_kept(bench: Bench) -> None:
    bench.store.held.add(PROMISED)
    bench.garbage.start()
    bench.kernel.run_for(1_000_000)
    assert bench.store.held == {b"\1" * 32, b"\2" * 32, PROMISED}


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
    assert bench.kernel.run_until(lambda: len(bench.store.held) < 60, 1_000_000)
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


def test_no_two_manifests_are_read_in_one_turn(bench: Bench) -> None:
    bench.volumes.digests = {bytes([n]) * 32 for n in range(2, 12)}
    bench.garbage.collect()
    assert len(bench.volumes.read) <= 1
    bench.kernel.run_for(1_000_000)
    assert len(bench.volumes.read) == 10
    assert bench.store.held == {bytes([n]) * 32 for n in range(1, 12)}


def test_what_is_there_is_compared_a_part_a_turn(bench: Bench) -> None:
    seen = [0]

    def all_asked() -> bool:
        seen.append(len(bench.store.asked))
        return seen[-1] >= 256

    bench.garbage.collect()
    assert bench.kernel.run_until(all_asked, 1_000_000)
    assert max(after - before for before, after in pairwise(seen)) == PARTS_A_TURN
    assert bench.store.asked == list(range(256))


def test_what_begins_between_the_parts_of_a_comparison_is_kept(bench: Bench) -> None:
    bench.garbage.collect()
    assert bench.kernel.run_until(lambda: len(bench.store.asked) > 2 * PARTS_A_TURN, 1_000_000)
    assert len(bench.store.asked) < 256
    bench.images.digests.add(bytes([3]) * 32)
    bench.images.changes += 1
    bench.kernel.run_for(2 * RETRY_NS)
    assert bench.store.held == {bytes([n]) * 32 for n in (1, 2, 3)}


def test_a_volume_that_comes_between_the_turns_of_a_collection_keeps_its_blobs(
    bench: Bench,
) -> None:
    bench.garbage.collect()
    bench.volumes.digests.add(bytes([9]) * 32)
    bench.volumes.changes += 1
    bench.kernel.run_for(PERIOD_NS * 2)
    assert bytes([9]) * 32 in bench.store.held


def test_a_collection_that_was_put_off_is_made_as_soon_as_nothing_moves(bench: Bench) -> None:
    bench.idle[0] = False
    bench.garbage.start()
    bench.kernel.run_for(2 * RETRY_NS)
    bench.idle[0] = True
    bench.kernel.run_for(RETRY_NS)
    assert len(bench.store.held) == 2


def test_what_was_left_behind_in_the_middle_of_a_collection_is_taken_by_one_more(
    bench: Bench,
) -> None:
    bench.garbage.collect()
    assert bench.kernel.run_until(lambda: len(bench.store.held) < 60, 1_000_000)
    bench.store.held.add(bytes([77]) * 32)  # all was compared
    bench.garbage.collect_soon()
    bench.kernel.run_for(1_000_000)
    assert bench.store.held == {b"\1" * 32, b"\2" * 32}


def test_what_came_of_an_import_that_nobody_went_on_with_goes_too(bench: Bench) -> None:
    bench.images.digests |= {bytes([7]) * 32}
    bench.garbage.start()
    bench.kernel.run_for(1_000_000)
    assert bytes([7]) * 32 in bench.store.held
    bench.images.given_up = {bytes([7]) * 32}
    bench.kernel.run_for(PERIOD_NS)
    assert bench.store.held == {b"\1" * 32, b"\2" * 32}
