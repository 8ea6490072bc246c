"""What is kept back on a disk for the time when it is full: real ENOSPC, on a tmpfs."""

import errno
import os
import subprocess
from pathlib import Path
from typing import IO

import pytest

from hal.errors import HalError, StoreFull
from hal.linux.journal import SqliteJournal
from hal.linux.reserve import PIECE_BYTES, PIECES, Reserve
from hal.ports import JournalRecord

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")


@pytest.fixture
def disk(tmp_path: Path):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", tmp_path], check=True)
    yield tmp_path
    subprocess.run(["umount", "--lazy", tmp_path], check=True)


def fill(disk: Path) -> None:
    with (disk / "ballast").open("ab", buffering=0) as file:
        for size_bytes in (1 << 16, 4096):
            while fits(file, bytes(size_bytes)):
                pass


def fits(file: IO[bytes], data: bytes) -> bool:
    try:
        return file.write(data) > 0
    except OSError as exc:
        if exc.errno != errno.ENOSPC:
            raise
        return False


def test_each_piece_given_up_is_room_and_they_are_laid_in_again(disk: Path) -> None:
    reserve = Reserve(str(disk / "r"))
    assert not reserve.give_up()
    reserve.lay_in()
    assert reserve.pieces == PIECES
    for left in range(PIECES - 1, -1, -1):
        fill(disk)
        assert os.statvfs(disk).f_bavail == 0
        assert reserve.give_up()
        assert reserve.pieces == left
        assert os.statvfs(disk).f_bavail * 4096 == PIECE_BYTES
    assert not reserve.give_up()
    fill(disk)
    reserve.lay_in()
    assert reserve.pieces == 0
    (disk / "ballast").unlink()
    reserve.lay_in()
    assert reserve.pieces == PIECES


def test_what_is_essential_is_written_on_a_full_disk_and_the_rest_of_its_group_refused(
    disk: Path, loop, until
) -> None:
    journal = SqliteJournal(disk / "journal.db", loop, essential=["vital"])
    results: dict[str, HalError | None] = {}

    def submit(kind: str, key: str) -> None:
        record = JournalRecord(kind=kind, key=key, value=bytes(3000))
        journal.submit([record], lambda result: results.update({key: result}))

    submit("work", "before")
    until(lambda: "before" in results)
    fill(disk)
    for number in range(6):  # one group, or several: what is written is the same
        submit("work", f"work {number}")
        submit("vital", f"vital {number}")
    until(lambda: len(results) == 13)
    refused = {key for key, result in results.items() if result is not None}
    assert all(isinstance(results[key], StoreFull) for key in refused)
    assert not {key for key in refused if key.startswith("vital")}
    assert refused  # the disk was full
    kept = {record.key for record in journal.load()}
    assert kept == results.keys() - refused
    journal.close()
    again = SqliteJournal(disk / "journal.db", loop, essential=["vital"])
    assert {record.key for record in again.load()} == kept
    again.close()


def test_without_any_reserve_left_what_is_essential_is_refused_and_the_store_lives_on(
    disk: Path, loop, until
) -> None:
    journal = SqliteJournal(disk / "journal.db", loop, essential=["vital"])
    reserve = Reserve(str(disk / "journal.db-reserve"))
    assert reserve.pieces == PIECES
    while reserve.give_up():
        pass
    fill(disk)
    results: list[HalError | None] = []

    def submit() -> HalError | None:
        results.clear()
        journal.submit([JournalRecord(kind="vital", key="k", value=b"v")], results.append)
        until(lambda: bool(results))
        return results[0]

    assert isinstance(submit(), StoreFull)
    (disk / "ballast").unlink()
    assert submit() is None
    journal.close()
