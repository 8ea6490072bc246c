"""The bound of the tombstones, and when the oldest may go."""

from firmware.cnm.tombstones import SETTLED_NS, Tombstones


def full(limit: int = 3) -> Tombstones:
    stones = Tombstones(limit=limit)
    for index in range(limit):
        stones.bury(f"i{index}", 5, epoch=1, now_ns=index)
    return stones


def test_every_generation_up_to_the_buried_one_is_dead() -> None:
    stones = Tombstones()
    stones.bury("a", 5, epoch=1, now_ns=0)
    stones.bury("a", 3, epoch=1, now_ns=0)
    assert [stones.is_dead("a", g) for g in (1, 5, 6)] == [True, True, False]
    assert not stones.is_dead("b", 0)


def test_a_full_table_refuses_new_names_but_not_known_ones() -> None:
    stones = full()
    assert not stones.has_room("new", reserved=0, epoch=1, now_ns=10)
    assert stones.has_room("i0", reserved=0, epoch=1, now_ns=10)
    assert len(stones) == 3


def test_room_is_kept_for_what_lives() -> None:
    stones = Tombstones(limit=3)
    assert stones.has_room("a", reserved=2, epoch=1, now_ns=0)
    assert not stones.has_room("a", reserved=3, epoch=1, now_ns=0)


def test_the_oldest_goes_when_its_epoch_is_over() -> None:
    stones = full()
    assert stones.has_room("new", reserved=0, epoch=2, now_ns=10)
    assert not stones.is_dead("i0", 5)
    assert stones.is_dead("i1", 5)


def test_the_oldest_goes_when_no_request_can_live_that_long() -> None:
    stones = full()
    assert stones.has_room("new", reserved=0, epoch=1, now_ns=SETTLED_NS)
    assert len(stones) == 2
