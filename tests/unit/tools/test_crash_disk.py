"""What a cut leaves on the simulated disk, by hand; and which cuts are tried."""

import os
import random

import pytest

from tools.sim.crash.disk import Disk, Plain, Torn, sectors_of
from tools.sim.crash.events import (
    DIRECTORY,
    Log,
    Name,
    Rename,
    Resize,
    Sync,
    SyncDir,
    Unname,
    Write,
)
from tools.sim.crash.fates import SUBSET_LIMIT, after, subsets, tears
from tools.sim.crash.oscalls import Unmodelled, recording_os

LANDED, LOST = Plain.LANDED, Plain.LOST
OLD, NEW = b"o" * 512, b"n" * 512


def disk_of(content: bytes) -> Disk:
    return Disk({"f": content}, {"f": 1})


def test_a_write_is_old_until_it_lands_and_durable_after_its_sync() -> None:
    disk = disk_of(b"aaaa")
    disk.step(Write(1, 1, b"BB"))
    assert disk.image([LOST]) == {"f": b"aaaa"}
    assert disk.image([LANDED]) == {"f": b"aBBa"}
    disk.step(Sync(1))
    assert disk.pending == []
    assert disk.image([]) == {"f": b"aBBa"}


def test_a_later_write_may_land_without_the_earlier_one() -> None:
    disk = disk_of(b"")
    disk.step(Write(1, 0, b"aa"))
    disk.step(Write(1, 4, b"bb"))
    assert disk.image([LOST, LANDED]) == {"f": b"\0\0\0\0bb"}
    assert disk.image([LANDED, LOST]) == {"f": b"aa"}


def test_a_torn_write_is_new_in_whole_sectors_of_the_disk_only() -> None:
    disk = disk_of(OLD * 3)
    write = Write(1, 256, NEW * 2)  # touches three sectors, the outer ones by half
    disk.step(write)
    assert sectors_of(write) == 3
    assert disk.image([Torn(0b010)]) == {"f": OLD + NEW + OLD}
    assert disk.image([Torn(0b101)]) == {
        "f": OLD[:256] + NEW[:256] + OLD + NEW[:256] + OLD[:256]
    }  # fmt: skip


def test_each_way_of_tearing_is_tried_once() -> None:
    assert tears(Write(1, 0, NEW)) == []
    assert tears(Write(1, 0, NEW * 2)) == [Torn(0b01), Torn(0b10)]
    found = tears(Write(1, 0, NEW * 4))
    assert {tear.sectors for tear in found} == {
        0b0001, 0b0011, 0b0111, 0b1110, 0b1101, 0b1011, 0b0010, 0b0100, 0b1000
    }  # fmt: skip
    assert len(found) == 9


def test_a_file_may_have_grown_without_its_bytes() -> None:
    disk = disk_of(b"aa")
    disk.step(Write(1, 1, b"BBB"))
    assert disk.image([Plain.ZEROS]) == {"f": b"aa\0\0"}
    noise = disk.image([Plain.NOISE])["f"]
    assert noise is not None
    assert noise[:2] == b"aa"
    assert noise[2:] not in (b"BB", b"\0\0")


def test_stale_bytes_are_what_lay_there_before_the_file_was_shortened() -> None:
    disk = disk_of(b"secret")
    disk.step(Resize(1, 0))
    disk.step(Sync(1))
    disk.step(Write(1, 0, b"new"))
    assert disk.image([Plain.STALE]) == {"f": b"sec"}


def test_stale_bytes_are_also_those_of_a_removed_file_of_that_name() -> None:
    disk = disk_of(b"secret")
    disk.step(Unname("f"))
    disk.step(Name("f", 2))
    disk.step(SyncDir(""))
    disk.step(Write(2, 0, b"new"))
    assert disk.image([Plain.STALE]) == {"f": b"sec"}


def test_a_lost_shortening_leaves_the_old_tail_behind_the_new_head() -> None:
    disk = disk_of(b"abcdef")
    disk.step(Resize(1, 0))
    disk.step(Write(1, 0, b"XY"))
    assert disk.image([LOST, LANDED]) == {"f": b"XYcdef"}
    assert disk.image([LANDED, LOST]) == {"f": b""}


def test_a_synced_file_without_a_synced_name_may_be_gone() -> None:
    disk = Disk()
    disk.step(Name("f", 1))
    disk.step(Write(1, 0, b"data"))
    disk.step(Sync(1))
    assert disk.image([LOST]) == {}
    assert disk.image([LANDED]) == {"f": b"data"}
    disk.step(SyncDir(""))
    assert disk.image([]) == {"f": b"data"}


def test_what_lies_in_a_directory_goes_with_its_name() -> None:
    disk = Disk()
    disk.step(Name("d", DIRECTORY))
    disk.step(Name("d/f", 1))
    disk.step(SyncDir("d"))
    assert len(disk.pending) == 1  # the directory's own name is its parent's to keep
    assert disk.image([LOST]) == {}
    assert disk.image([LANDED]) == {"d": None, "d/f": b""}


def test_a_rename_within_a_directory_shows_the_old_file_or_the_new() -> None:
    disk = Disk({"f": b"old", "t": b"new"}, {"f": 1, "t": 2})
    disk.step(Rename("t", "f", 2))
    assert disk.image([LOST]) == {"f": b"old", "t": b"new"}
    assert disk.image([LANDED]) == {"f": b"new"}


@pytest.mark.parametrize(
    ("synced", "pending", "left"),
    [
        ("b", [Unname("a/t")], {"a": None, "a/t": b"x", "b": None, "b/f": b"x"}),
        ("a", [Rename("a/t", "b/f", 1)], {"a": None, "a/t": b"x", "b": None}),
    ],
)
def test_a_rename_between_directories_never_loses_both_names(synced, pending, left) -> None:
    names = {"a": DIRECTORY, "b": DIRECTORY, "a/t": 1}
    disk = Disk({"a": None, "b": None, "a/t": b"x"}, names)
    disk.step(Rename("a/t", "b/f", 1))
    disk.step(SyncDir(synced))
    assert disk.pending == pending
    assert disk.image([LOST]) == left


def test_a_sync_of_one_file_leaves_the_others_under_way() -> None:
    disk = Disk({"f": b"", "g": b""}, {"f": 1, "g": 2})
    disk.step(Write(1, 0, b"x"))
    disk.step(Write(2, 0, b"y"))
    disk.step(Sync(2))
    assert disk.pending == [Write(1, 0, b"x")]
    assert disk.image([LOST]) == {"f": b"", "g": b"y"}


def test_what_was_under_way_when_a_program_was_killed_still_is_for_the_next_one() -> None:
    disk = Disk({"f": b"old", "gone": b"x"}, {"f": 7, "gone": 8})
    disk.step(Write(7, 0, b"NEW"))
    disk.step(Unname("gone"))
    disk.step(Write(8, 0, b"y"))
    disk.step(Name("g", 9))
    assert disk.seen() == {"f": b"NEW", "g": b""}
    later = disk.copy().renumbered({"f": 1, "g": 2})
    disk.step(Sync(7))
    assert later.seen() == {"f": b"NEW", "g": b""}
    assert later.image([LOST] * 4) == {"f": b"old", "gone": b"x"}
    later.step(Sync(1))
    later.step(SyncDir(""))
    assert later.image([LOST]) == {"f": b"NEW", "g": b""}


def test_all_subsets_of_a_few_writes_are_tried() -> None:
    disk = disk_of(b"")
    for number in range(SUBSET_LIMIT):
        disk.step(Write(1, number, b"x"))
    tried = [fates for kind, fates in subsets(disk, random.Random(1)) if kind == "subset"]
    assert len(tried) == len(set(tried)) == 1 << SUBSET_LIMIT


def test_of_many_writes_each_pair_is_lost_once_and_each_alone_lands_once() -> None:
    count = 10
    disk = disk_of(b"")
    for number in range(count):
        disk.step(Write(1, number, b"x"))
    tried = {fates for kind, fates in subsets(disk, random.Random(1)) if kind == "subset"}
    lost = [{n for n, fate in enumerate(fates) if fate is LOST} for fates in tried]
    for first in range(count):
        assert {first} in lost
        assert set(range(count)) - {first} in lost
        assert set(range(first, count)) in lost
        for second in range(first):
            assert {first, second} in lost


def test_after_a_write_that_grows_a_file_the_growth_alone_is_tried() -> None:
    disk = disk_of(b"")
    disk.step(Write(1, 0, b"x"))
    assert [fates for _, fates in after(disk)] == [
        (LANDED,), (Plain.ZEROS,), (Plain.NOISE,), (Plain.STALE,)
    ]  # fmt: skip


# --- Python's own calls ---


def test_file_calls_below_the_root_are_logged_and_others_are_not(tmp_path) -> None:
    root, other = tmp_path / "root", tmp_path / "other"
    root.mkdir()
    other.mkdir()
    log = Log(str(root))
    with recording_os(log):
        for place in (root, other):
            folder = os.open(place, os.O_RDONLY)
            fd = os.open("a", os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=folder)
            os.write(fd, b"12")
            os.write(fd, b"34")
            os.pwrite(fd, b"5", 1)
            os.ftruncate(fd, 3)
            os.fsync(fd)
            os.rename("a", "b", src_dir_fd=folder, dst_dir_fd=folder)
            os.fsync(folder)
            os.mkdir(place / "d")
            os.unlink(place / "b")
            os.close(fd)
            os.close(folder)
    assert log.events == [
        Name("a", 1),
        Write(1, 0, b"12"),
        Write(1, 2, b"34"),
        Write(1, 1, b"5"),
        Resize(1, 3),
        Sync(1),
        Rename("a", "b", 1),
        SyncDir(""),
        Name("d", DIRECTORY),
        Unname("b"),
    ]
    assert os.write.__module__ == "posix"


def test_a_call_that_the_log_can_not_hold_is_refused(tmp_path) -> None:
    with recording_os(Log(str(tmp_path))), pytest.raises(Unmodelled, match=r"os\.link"):
        os.link(tmp_path / "a", tmp_path / "b")
