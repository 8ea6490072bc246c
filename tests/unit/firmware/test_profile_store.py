"""firmware.profile_store: profiles outlive the daemon, and seldom trouble the disk."""

from collections.abc import Sequence

import pytest

from firmware.journal import Journal, JournalError, Kind, encode
from firmware.loop import Loop
from firmware.profile_meter import Meter
from firmware.profile_store import BATCH, LOOK_NS, REST_NS, URGENT_NS, ProfileStore
from firmware.profiler import Profiler
from firmware.workload import Component, Workload
from hal.errors import HalError, StoreFull
from hal.mock.kernel import VirtualKernel
from hal.ports import Done, JournalRecord

SECOND = 1_000_000_000
MIB = 1 << 20


class Disk:
    """Answers at once, good or bad, and remembers when it was asked."""

    def __init__(self, records: Sequence[JournalRecord] = ()) -> None:
        self.records = {(r.kind, r.key): r for r in records}
        self.batches: list[list[str]] = []
        self.error: HalError | None = None

    def load(self) -> Sequence[JournalRecord]:
        return list(self.records.values())

    def submit(self, batch: Sequence[JournalRecord], done: Done[None]) -> None:
        self.batches.append([record.key for record in batch])
        if self.error is None:
            self.records |= {(r.kind, r.key): r for r in batch if r.value is not None}
            for record in batch:
                if record.value is None:
                    self.records.pop((record.kind, record.key), None)
        done(self.error)

    def close(self) -> None: ...


class Bench:
    """A daemon's life on this disk."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.kernel = VirtualKernel(1)
        self.loop = Loop(self.kernel.node("card").clock)
        self.kernel.attach("card", self.loop)
        self.journal = Journal(disk)
        self.journal.load()
        self.profiler = Profiler()
        self.store = ProfileStore(self.loop, self.journal, self.profiler)
        self.store.load()
        self.store.start()

    def use(self, name: str, memory_bytes: int, reserved_bytes: int = 0) -> None:
        if self.profiler.observe(
            part(name), Meter(), self.loop.now_ns(), (None, None, None), memory_bytes,
            reserved_bytes,
        ):  # fmt: skip
            self.store.hurry()


def part(name: str) -> Component:
    component = {"name": name, "image": "host"}
    document = {"schema": "apf-workload/1", "name": "w", "components": [component]}
    return Workload.from_json(document).components[0]


def test_what_was_learned_is_there_after_a_restart() -> None:
    disk = Disk()
    first = Bench(disk)
    first.use("a", 40 * MIB)
    first.kernel.run_for(LOOK_NS)
    first.kernel.run_for(SECOND)
    assert disk.batches == [["host a"]]
    second = Bench(disk)
    profile = second.profiler.profile(part("a"))
    assert profile is not None
    assert profile.to_json() == next(iter(first.profiler.items()))[1].to_json()
    assert not profile.changed


def test_a_profile_is_written_again_after_a_rest_and_only_when_it_changed() -> None:
    bench = Bench(Disk())
    bench.use("a", 40 * MIB)
    bench.kernel.run_for(LOOK_NS + SECOND)
    bench.kernel.run_for(REST_NS * 2)
    assert len(bench.disk.batches) == 1, "nothing has changed"
    bench.use("a", 41 * MIB)
    bench.kernel.run_for(LOOK_NS + SECOND)
    bench.use("a", 42 * MIB)
    bench.kernel.run_for(LOOK_NS + SECOND)
    assert len(bench.disk.batches) == 2, "it rests"
    bench.kernel.run_for(REST_NS)
    assert len(bench.disk.batches) == 3


def test_an_under_reserved_peak_is_on_disk_within_a_second() -> None:
    bench = Bench(Disk())
    bench.use("a", 40 * MIB, 32 * MIB)
    bench.use("b", 40 * MIB, 32 * MIB)
    bench.kernel.run_for(URGENT_NS + SECOND // 10)
    assert bench.disk.batches == [["host a", "host b"]]
    after = Bench(bench.disk)
    assert after.profiler.demand(part("a")).memory_bytes == 46 * MIB


def test_a_floor_does_not_wait_for_the_rest_between_two_writes() -> None:
    bench = Bench(Disk())
    bench.use("a", 10 * MIB)
    bench.kernel.run_for(LOOK_NS + SECOND)
    bench.use("a", 40 * MIB, 32 * MIB)
    bench.kernel.run_for(URGENT_NS + SECOND // 10)
    assert bench.disk.batches == [["host a"], ["host a"]]


def test_many_profiles_are_written_some_at_a_time() -> None:
    bench = Bench(Disk())
    for number in range(BATCH + 5):
        bench.use(f"c{number}", MIB)
    bench.kernel.run_for(LOOK_NS + SECOND)
    assert [len(batch) for batch in bench.disk.batches] == [BATCH]
    bench.kernel.run_for(LOOK_NS)
    assert [len(batch) for batch in bench.disk.batches] == [BATCH, 5]


def test_all_are_written_when_the_daemon_goes_down() -> None:
    bench = Bench(Disk())
    for number in range(BATCH + 5):
        bench.use(f"c{number}", MIB)
    bench.store.save_all()
    assert [len(batch) for batch in bench.disk.batches] == [BATCH + 5]
    bench.store.save_all()
    assert len(bench.disk.batches) == 1


def test_what_the_disk_refuses_is_tried_again_and_nobody_is_told() -> None:
    bench = Bench(Disk())
    bench.disk.error = StoreFull("no space left on device")
    bench.use("a", 40 * MIB, 32 * MIB)
    bench.kernel.run_for(URGENT_NS + SECOND)
    assert (bench.store.failed, bench.store.saved) == (1, 0)
    bench.disk.error = None
    bench.kernel.run_for(LOOK_NS)
    assert (bench.store.failed, bench.store.saved) == (1, 1)


def test_what_is_not_urgent_is_tried_again_too() -> None:
    bench = Bench(Disk())
    bench.disk.error = StoreFull("no space left on device")
    bench.use("a", 40 * MIB)
    bench.kernel.run_for(LOOK_NS + SECOND)
    bench.disk.error = None
    bench.kernel.run_for(LOOK_NS)
    assert (bench.store.failed, bench.store.saved) == (1, 1)


def test_a_profile_that_had_to_go_is_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firmware.profiler.MAX_PROFILES", 2)
    bench = Bench(Disk())
    for name in "ab":
        bench.use(name, MIB)
    bench.kernel.run_for(LOOK_NS + SECOND)
    bench.use("c", MIB)
    bench.kernel.run_for(LOOK_NS)
    assert sorted(key for _kind, key in bench.disk.records) == ["host b", "host c"]


@pytest.mark.parametrize("value", [b"", b"{", b'{"v":1,"image":3}', b'{"v":9,"needs":9}'])
def test_a_record_that_can_not_be_read_is_no_error(value: bytes) -> None:
    good = encode(Kind.PROFILE, "host a", {"image": "host", "name": "a", "floor_bytes": 64 * MIB})
    bench = Bench(
        Disk(
            [
                JournalRecord(kind="profile", key="bad", value=value),
                JournalRecord(kind="profile", key="host a", value=good),
            ]
        )
    )
    assert len(bench.profiler) == 1
    assert bench.profiler.demand(part("a")).memory_bytes == 64 * MIB


def test_a_decision_that_can_not_be_read_still_is_one() -> None:
    with pytest.raises(JournalError, match="corrupt"):
        Bench(Disk([JournalRecord(kind="cnm", key="cnm0", value=b"{")]))
