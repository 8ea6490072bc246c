"""`hal.ports.JournalStore`: a batch is all or nothing, in order, and survives."""

from collections.abc import Sequence

from hal.errors import HalError, StoreFailed, StoreFull
from hal.ports import JournalRecord, JournalStore
from tests.contract.results import Result, need
from tests.contract.rigs import JournalRig, World

PORT = "journal"
MANY = 20_000


def put(key: str, value: bytes | None, kind: str = "assignment") -> JournalRecord:
    return JournalRecord(kind=kind, key=key, value=value)


def commit(store: JournalStore, world: World, *batch: JournalRecord) -> None:
    result: Result[None] = Result()
    store.submit(batch, result)
    assert not result.came, "a submit completes through the mailbox, never inside the call"
    result.wait(world)


def content(store: JournalStore) -> dict[tuple[str, str], bytes | None]:
    return {(record.kind, record.key): record.value for record in store.load()}


def test_a_new_store_is_empty(rig: JournalRig) -> None:
    store = rig.open()
    assert list(store.load()) == []
    store.close()


def test_what_was_acknowledged_is_there_after_a_reopen(rig: JournalRig, world: World) -> None:
    store = rig.open()
    store.load()
    commit(store, world, put("a", b"1"), put("b", b"\x00\xff"), put("c", b""))
    store.close()
    again = rig.open()
    assert content(again) == {
        ("assignment", "a"): b"1",
        ("assignment", "b"): b"\x00\xff",
        ("assignment", "c"): b"",
    }
    again.close()


def test_records_load_in_the_order_of_kind_and_key(rig: JournalRig, world: World) -> None:
    store = rig.open()
    store.load()
    commit(store, world, put("b", b"1", "z"), put("a", b"2", "z"), put("é", b"3", "a"))
    commit(store, world, put("Z", b"4", "a"), put("aa", b"5", "z"))
    store.close()
    again = rig.open()
    keys = [(record.kind, record.key) for record in again.load()]
    assert keys == sorted(keys)
    assert len(keys) == 5
    again.close()


def test_a_later_record_replaces_an_earlier_one(rig: JournalRig, world: World) -> None:
    store = rig.open()
    store.load()
    commit(store, world, put("a", b"1"))
    commit(store, world, put("a", b"2"), put("b", b"1"), put("b", b"2"))
    store.close()
    again = rig.open()
    assert content(again) == {("assignment", "a"): b"2", ("assignment", "b"): b"2"}
    again.close()


def test_a_record_without_value_deletes_and_deleting_the_absent_is_fine(
    rig: JournalRig, world: World
) -> None:
    store = rig.open()
    store.load()
    commit(store, world, put("a", b"1"), put("b", b"1"))
    commit(store, world, put("a", None), put("never", None))
    store.close()
    again = rig.open()
    assert content(again) == {("assignment", "b"): b"1"}
    again.close()


def test_kinds_do_not_share_keys(rig: JournalRig, world: World) -> None:
    store = rig.open()
    store.load()
    commit(store, world, put("x", b"1", "desired"), put("x", b"2", "fence"))
    commit(store, world, put("x", None, "desired"))
    store.close()
    again = rig.open()
    assert content(again) == {("fence", "x"): b"2"}
    again.close()


def test_batches_that_wait_together_complete_in_order(rig: JournalRig, world: World) -> None:
    store = rig.open()
    store.load()
    order: list[int] = []
    for number in range(200):

        def done(value: HalError | None, number: int = number) -> None:
            assert value is None
            order.append(number)

        store.submit([put("counter", str(number).encode()), put(f"k{number}", b"x")], done)
    world.run_until(lambda: len(order) == 200, limit_s=30)
    assert order == list(range(200))
    store.close()
    again = rig.open()
    assert content(again)["assignment", "counter"] == b"199"
    assert len(content(again)) == 201
    again.close()


def test_a_close_makes_durable_what_waits(rig: JournalRig, world: World) -> None:
    store = rig.open()
    store.load()
    store.submit([put("a", b"1")], lambda value: None)
    store.close()
    again = rig.open()
    assert content(again) == {("assignment", "a"): b"1"}
    again.close()


def test_an_empty_batch_is_acknowledged(rig: JournalRig, world: World) -> None:
    store = rig.open()
    store.load()
    commit(store, world)
    store.close()


def test_a_large_value_comes_back_whole(rig: JournalRig, world: World) -> None:
    store = rig.open()
    store.load()
    value = bytes(range(256)) * 4096
    commit(store, world, put("big", value))
    store.close()
    again = rig.open()
    assert content(again)["assignment", "big"] == value
    again.close()


def test_a_flood_completes_every_batch_once_taken_or_store_full(
    rig: JournalRig, world: World
) -> None:
    store = rig.open()
    store.load()
    answers: list[HalError | None] = []
    for number in range(MANY):
        store.submit([put(f"k{number % 100}", b"x")], answers.append)
    world.run_until(lambda: len(answers) >= MANY, limit_s=60)
    assert len(answers) == MANY
    refused = [answer for answer in answers if answer is not None]
    assert all(isinstance(answer, StoreFull) for answer in refused)
    assert len(refused) < MANY
    commit(store, world, put("after", b"1"))  # a full queue is not a broken store
    store.close()


def test_after_a_kill_all_that_was_acknowledged_is_there_and_no_batch_is_torn(
    rig: JournalRig, world: World
) -> None:
    crash = need(rig.crash, "let the holder of the store die")
    store = rig.open()
    store.load()
    acknowledged: list[int] = []
    for number in range(50):

        def done(value: HalError | None, number: int = number) -> None:
            if value is None:
                acknowledged.append(number)

        store.submit([put(f"a{number:02}", b"1"), put(f"b{number:02}", b"1")], done)
    world.run_until(lambda: len(acknowledged) >= 1)
    crash()
    again = rig.open()
    keys = {key for _, key in content(again)}
    again.close()
    whole = [n for n in range(50) if f"a{n:02}" in keys]
    assert whole == [n for n in range(50) if f"b{n:02}" in keys]
    assert whole == list(range(len(whole))), "a prefix, in order"
    assert set(acknowledged) <= set(whole)


def test_a_full_disk_is_store_full_and_writes_nothing(rig: JournalRig, world: World) -> None:
    full = need(rig.full, "fill the disk")
    store = rig.open()
    store.load()
    commit(store, world, put("a", b"1"))
    full()
    result: Result[None] = Result()
    store.submit([put("a", bytes(1 << 20)), put("b", b"2")], result)
    assert isinstance(result.error(world), StoreFull)
    store.close()
    again = rig.open()
    assert content(again) == {("assignment", "a"): b"1"}
    again.close()


def test_a_failed_sync_ends_the_store(rig: JournalRig, world: World) -> None:
    fail = need(rig.fail_sync, "let a sync fail")
    store = rig.open()
    store.load()
    commit(store, world, put("a", b"1"))
    fail()
    results: Sequence[Result[None]] = [Result(), Result()]
    for result in results:
        store.submit([put("a", b"2")], result)
    for result in results:
        assert isinstance(result.error(world), StoreFailed)
    late: Result[None] = Result()
    store.submit([put("c", b"3")], late)
    assert isinstance(late.error(world), StoreFailed), "it is never tried again"
    store.close()
