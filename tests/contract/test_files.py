"""`hal.ports.Files`: a small tree of our own that can't be left."""

import pytest

from hal.errors import Refused, Unavailable
from tests.contract.rigs import FilesRig

PORT = "files"


def test_what_was_written_is_read(rig: FilesRig) -> None:
    rig.files.write("a/b/c.txt", b"hello")
    assert rig.files.read("a/b/c.txt") == b"hello"
    assert rig.files.size_bytes("a/b/c.txt") == 5


def test_a_write_replaces_the_whole_file(rig: FilesRig) -> None:
    rig.files.write("f", b"a long first content")
    rig.files.write("f", b"short")
    assert rig.files.read("f") == b"short"


def test_a_part_is_read_by_offset_and_length(rig: FilesRig) -> None:
    rig.files.write("f", b"0123456789")
    assert rig.files.read("f", 3, 4) == b"3456"
    assert rig.files.read("f", 8, 100) == b"89"


def test_a_read_past_the_end_is_empty(rig: FilesRig) -> None:
    rig.files.write("f", b"abc")
    assert rig.files.read("f", 3) == b""
    assert rig.files.read("f", 1_000_000) == b""


def test_an_append_goes_to_the_end_and_makes_the_file(rig: FilesRig) -> None:
    rig.files.append("logs/x.log", b"one ")
    rig.files.append("logs/x.log", b"two")
    assert rig.files.read("logs/x.log") == b"one two"


def test_reading_what_is_not_there_is_unavailable_and_names_it(rig: FilesRig) -> None:
    with pytest.raises(Unavailable, match=r"nothing\.txt"):
        rig.files.read("nothing.txt")
    assert rig.files.size_bytes("nothing.txt") is None


def test_names_are_sorted_and_those_of_one_directory(rig: FilesRig) -> None:
    for name in ("d/b", "d/a", "d/sub/x", "other"):
        rig.files.write(name, b"")
    assert list(rig.files.names("d")) == ["a", "b", "sub"]
    assert list(rig.files.names("")) == ["d", "other"]
    assert list(rig.files.names("absent")) == []


def test_removing_takes_a_file_or_a_whole_tree(rig: FilesRig) -> None:
    for name in ("d/a", "d/sub/x", "keep"):
        rig.files.write(name, b"1")
    rig.files.remove("d")
    assert list(rig.files.names("")) == ["keep"]
    rig.files.remove("keep")
    assert list(rig.files.names("")) == []


def test_removing_what_is_absent_is_a_success(rig: FilesRig) -> None:
    rig.files.remove("absent")
    rig.files.remove("absent/below")


@pytest.mark.parametrize("path", ["../x", "a/../../x", "a/..", ".."])
def test_a_path_that_leaves_the_tree_is_refused(rig: FilesRig, path: str) -> None:
    rig.files.write("a/inside", b"1")
    with pytest.raises(Refused):
        rig.files.read(path)
    with pytest.raises(Refused):
        rig.files.write(path, b"x")
    with pytest.raises(Refused):
        rig.files.append(path, b"x")
    with pytest.raises(Refused):
        rig.files.remove(path)
    with pytest.raises(Refused):
        rig.files.names(path)
    assert rig.files.read("a/inside") == b"1"


def test_an_absolute_path_is_refused(rig: FilesRig) -> None:
    with pytest.raises(Refused):
        rig.files.read("/etc/hostname")
    with pytest.raises(Refused):
        rig.files.write("/tmp/apf-contract", b"x")


def test_free_space_is_told(rig: FilesRig) -> None:
    assert rig.files.free_bytes() > 0


def test_every_buffer_type_is_taken(rig: FilesRig) -> None:
    for data in (b"one", bytearray(b"two"), memoryview(b"xthree")[1:]):
        rig.files.write("f", data)
        assert rig.files.read("f") == bytes(data)
