"""The module's blob store as a cache: room is made of what nobody needs, and of nothing else."""

from collections.abc import Sequence

import pytest

from firmware.cnm.blob_space import YOUNG_LIMIT, YOUNG_NS, BlobSpace
from firmware.cnm.spec import ENTRIES_LIMIT
from hal.errors import StoreFull
from tests.unit.firmware.fake_reactor import FakeReactor


class Store:
    """Room for `limit` blobs of any size."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held: dict[bytes, int] = {}

    def has(self, digest: bytes) -> int | None:
        return self.held.get(digest)

    def begin(self, digest: bytes, size_bytes: int) -> None:
        if len(self.held) >= self.limit:
            raise StoreFull(f"{self.limit} blobs are here")
        self.held[digest] = size_bytes

    def submit_finish(self, digest: bytes, _deadline_ns: int, _done: object) -> None:
        assert digest in self.held

    def drop(self, digest: bytes) -> None:
        self.held.pop(digest, None)

    def digests(self, first: int | None = None) -> Sequence[bytes]:
        return [digest for digest in self.held if first in (None, digest[0])]


def name(number: int) -> bytes:
    return number.to_bytes(32, "big")


def take(space: BlobSpace, *numbers: int) -> None:
    for number in numbers:
        space.begin(name(number), 1)
        space.submit_finish(name(number), 0, lambda _result: None)


@pytest.fixture
def reactor() -> FakeReactor:
    return FakeReactor()


def test_what_nobody_needs_makes_room_when_it_is_old(reactor: FakeReactor) -> None:
    store = Store(3)
    space = BlobSpace(reactor, store)  # type: ignore[arg-type]
    take(space, 1, 2)
    space.need([name(1)])
    reactor.advance(YOUNG_NS)
    take(space, 3, 4)
    assert set(store.held) == {name(1), name(3), name(4)}
    assert space.counters["dropped"] == 1


def test_all_files_of_the_largest_volume_stay_while_it_is_being_staged(
    reactor: FakeReactor,
) -> None:
    store = Store(ENTRIES_LIMIT)
    space = BlobSpace(reactor, store)  # type: ignore[arg-type]
    take(space, *range(ENTRIES_LIMIT))
    with pytest.raises(StoreFull):
        space.begin(name(ENTRIES_LIMIT), 1)
    assert len(store.held) == ENTRIES_LIMIT


def test_what_is_known_to_be_young_has_a_bound(reactor: FakeReactor) -> None:
    store = Store(YOUNG_LIMIT + 1)
    space = BlobSpace(reactor, store)  # type: ignore[arg-type]
    take(space, *range(YOUNG_LIMIT + 1))
    assert space.wanted(name(1))  # asked for again: it is the youngest
    take(space, YOUNG_LIMIT + 1)
    assert name(0) not in store.held
    assert len(store.held) == YOUNG_LIMIT + 1
