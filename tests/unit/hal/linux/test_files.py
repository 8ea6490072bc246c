"""LinuxFiles on a real file system."""

import os
import subprocess

import pytest

from hal.errors import Refused, StoreFull, Unavailable
from hal.linux import files as files_module
from hal.linux.files import LinuxFiles
from hal.linux.workers import Workers

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")


@pytest.fixture
def files(tmp_path):
    made = LinuxFiles(tmp_path / "root")
    yield made
    made.close()


def test_what_was_written_is_read_and_replaced_as_a_whole(files: LinuxFiles, tmp_path) -> None:
    files.write("a/b/c", b"one")
    files.write("a/b/c", memoryview(b"second"))
    assert files.read("a/b/c") == b"second"
    assert files.read("a/b/c", 2, 3) == b"con"
    assert files.read("a/b/c", 100) == b""
    assert files.size_bytes("a/b/c") == 6
    assert files.names("a/b") == ["c"]
    assert sorted(os.listdir(tmp_path / "root/a/b")) == ["c"]


def test_append_grows_and_makes_parents(files: LinuxFiles) -> None:
    files.append("log/x", b"1")
    files.append("log/x", b"23")
    assert files.read("log/x") == b"123"


def test_absent_things_are_told_as_the_port_says(files: LinuxFiles) -> None:
    with pytest.raises(Unavailable, match="nothing"):
        files.read("nothing")
    assert files.size_bytes("nothing") is None
    assert files.size_bytes("nothing/below") is None
    assert files.names("nothing") == []
    files.remove("nothing")
    files.remove("nothing/below")
    assert files.free_bytes() > 0


@pytest.mark.parametrize("path", ["/etc/passwd", "..", "a/../../b", "a//b", "./a", "a\0b", ""])
def test_a_path_that_is_not_plain_is_refused_everywhere(files: LinuxFiles, path: str) -> None:
    for call in (files.read, files.remove, files.size_bytes):
        with pytest.raises(Refused):
            call(path)
    for write in (files.write, files.append):
        with pytest.raises(Refused):
            write(path, b"x")


def test_symlinks_are_not_followed(files: LinuxFiles, tmp_path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"s")
    (tmp_path / "root/link").symlink_to(outside)
    (tmp_path / "root/file").symlink_to(outside / "secret")
    for path in ("link/secret", "file"):
        with pytest.raises(Refused):
            files.read(path)
        with pytest.raises(Refused):
            files.append(path, b"x")
    with pytest.raises(Refused):
        files.write("link/new", b"x")
    files.write("file", b"ours")  # replaces the link, does not write through it
    assert (outside / "secret").read_bytes() == b"s"
    files.remove("link")
    assert (outside / "secret").read_bytes() == b"s"
    assert files.names("") == ["file"]


def test_a_tree_goes_without_following_its_symlinks(files: LinuxFiles, tmp_path) -> None:
    keep = tmp_path / "keep"
    keep.mkdir()
    (keep / "x").write_bytes(b"x")
    for number in range(20):
        files.write(f"tree/{number % 3}/{number}", b"x")
    (tmp_path / "root/tree/1/out").symlink_to(keep)
    files.remove("tree")
    assert files.names("") == []
    assert (keep / "x").exists()


def test_a_tree_nested_far_deeper_than_any_path_goes_too(files: LinuxFiles, tmp_path) -> None:
    fd = os.open(tmp_path / "root", os.O_RDONLY)
    os.mkdir("deep", dir_fd=fd)
    for name in ["deep"] + ["d"] * 3000:
        below = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.mkdir("d", dir_fd=below)
        os.close(fd)
        fd = below
    os.close(fd)
    files.remove("deep")
    assert os.listdir(tmp_path / "root") == []


@root_only
def test_a_mount_below_is_not_crossed_even_on_the_same_file_system(files, tmp_path) -> None:
    keep = tmp_path / "keep"
    keep.mkdir()
    (keep / "x").write_bytes(b"x")
    files.write("tree/other", b"x")
    target = tmp_path / "root/tree/mounted"
    target.mkdir()
    subprocess.run(["mount", "--bind", keep, target], check=True)
    try:
        with pytest.raises(Refused, match="mount point"):
            files.remove("tree")
        assert (keep / "x").read_bytes() == b"x"
        assert files.names("tree") == ["mounted"]  # all else is gone
    finally:
        subprocess.run(["umount", target], check=True)
    files.remove("tree")
    assert files.names("") == []


@root_only
def test_a_full_disk_changes_nothing(tmp_path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", small], check=True)
    try:
        files = LinuxFiles(small)
        files.write("kept", b"old")
        files.append("log", b"line\n")
        with pytest.raises(StoreFull):
            files.write("kept", bytes(1 << 20))
        with pytest.raises(StoreFull):
            files.append("log", bytes(1 << 20))
        assert files.read("kept") == b"old"
        assert files.read("log") == b"line\n"
        assert files.names("") == ["kept", "log"]
        assert sorted(os.listdir(small)) == ["kept", "log"]
        files.close()
    finally:
        subprocess.run(["umount", "-l", small], check=True)


def test_a_removed_tree_is_gone_at_once_and_burnt_by_a_worker(
    tmp_path, workers: Workers, until
) -> None:
    files = LinuxFiles(tmp_path / "root", workers)
    for number in range(50):
        files.write(f"tree{number % 5}/{number}", b"x")
    for number in range(5):
        files.remove(f"tree{number}")
        assert files.names(f"tree{number}") == []
    assert files.names("") == []
    trash = tmp_path / "root" / files_module.TRASH
    until(lambda: not os.listdir(trash))
    files.close()


def test_trash_of_a_crash_is_emptied_at_the_next_start(tmp_path, workers: Workers, until) -> None:
    trash = tmp_path / "root" / files_module.TRASH
    (trash / "old/sub").mkdir(parents=True)
    (trash / "old/sub/x").write_bytes(b"x")
    files = LinuxFiles(tmp_path / "root", workers)
    until(lambda: not os.listdir(trash))
    files.close()


def test_a_pipe_in_the_place_of_a_file_does_not_block(files: LinuxFiles, tmp_path) -> None:
    os.mkfifo(tmp_path / "root/pipe")
    with pytest.raises(Unavailable, match="not a regular file"):
        files.read("pipe")
    assert files.size_bytes("pipe") is None


def test_the_stores_own_names_are_hidden_and_refused(files: LinuxFiles, tmp_path) -> None:
    (tmp_path / "root/.apf-tmp-1-x").write_bytes(b"left by a crash")
    assert files.names("") == []
    with pytest.raises(Refused, match="own"):
        files.write(".apf-x", b"")
