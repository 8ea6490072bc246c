"""Directories whose names last: what is synced, in which order, and what may refuse."""

import errno
import os
import stat
from pathlib import Path

import pytest

from hal.errors import HalError
from hal.linux import durable
from hal.linux.durable import make_dirs, sync_names
from hal.linux.journal import SqliteJournal
from tools.sim.crash.events import DIRECTORY, Log, Name, SyncDir
from tools.sim.crash.oscalls import recording_os
from tools.sim.crash.vfs import recording_sqlite


@pytest.fixture
def log(tmp_path) -> Log:
    return Log(str(tmp_path))


def test_each_directory_that_is_made_is_synced_by_name_before_the_next(log, tmp_path) -> None:
    with recording_os(log):
        make_dirs(f"{tmp_path}/a/b", 0o700)
    assert log.events == [Name("a", DIRECTORY), SyncDir(""), Name("a/b", DIRECTORY), SyncDir("a")]
    assert stat.S_IMODE((tmp_path / "a/b").stat().st_mode) == 0o700


def test_a_directory_that_is_there_is_synced_by_name_again(log, tmp_path) -> None:
    (tmp_path / "a").mkdir()
    with recording_os(log):
        make_dirs(f"{tmp_path}/a", 0o700)
    assert log.events == [SyncDir("")]


def test_a_new_journal_syncs_the_names_of_all_directories_above_it(tmp_path, loop) -> None:
    (tmp_path / "x/y").mkdir(parents=True)  # by somebody who did not sync
    log = Log(str(tmp_path))
    with recording_sqlite(log), recording_os(log):
        SqliteJournal(tmp_path / "x/y/journal.db", loop).close()
    synced = [event.path for event in log.events if isinstance(event, SyncDir)]
    assert {"", "x", "x/y"} <= set(synced)
    assert synced[-1] == "x/y"  # the journal's own name, at last


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EINVAL, errno.EROFS])
def test_directories_that_are_not_ours_to_sync_are_passed_over(code, tmp_path, monkeypatch) -> None:
    def refuse(path: str) -> None:
        raise OSError(code, os.strerror(code), path)

    monkeypatch.setattr(durable, "sync_dir", refuse)
    make_dirs(str(tmp_path), 0o700)
    sync_names(str(tmp_path))


def test_a_disk_that_fails_a_sync_of_names_is_told(tmp_path, monkeypatch, loop) -> None:
    def fail(path: str) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    monkeypatch.setattr(durable, "sync_dir", fail)
    for call in (lambda: make_dirs(str(tmp_path), 0o700), lambda: sync_names(str(tmp_path))):
        with pytest.raises(OSError, match="Input/output"):
            call()
    with pytest.raises(HalError, match="Input/output"):
        SqliteJournal(tmp_path / "journal.db", loop)


def test_a_file_in_the_way_of_a_directory_is_an_error(tmp_path) -> None:
    Path(tmp_path, "a").write_bytes(b"")
    with pytest.raises(OSError, match=r"exists|Not a directory"):
        make_dirs(f"{tmp_path}/a", 0o700)
