"""`hal.ports.Trees`: layers to trees, trees to blobs, and nothing leaves its tree."""

import gzip
import hashlib
import io
import tarfile
from collections.abc import Sequence

import pytest

from hal.errors import HalError, Refused, Unavailable
from hal.ports import FileInfo
from tests.contract.results import Result, soon
from tests.contract.rigs import TreesRig, World

PORT = "trees"
TYPES = {"dir": tarfile.DIRTYPE, "symlink": tarfile.SYMTYPE, "link": tarfile.LNKTYPE}
Member = tuple[str, str, bytes]  # name, kind, content or link target


def tar(members: Sequence[Member], *, mode: int = 0o644) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.mode = 0o755 if kind == "dir" else mode
            if kind == "file":
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
                continue
            info.type = {
                "dir": tarfile.DIRTYPE,
                "symlink": tarfile.SYMTYPE,
                "link": tarfile.LNKTYPE,
            }[kind]
            info.linkname = content.decode()
            archive.addfile(info)
    return buffer.getvalue()


def unpack(rig: TreesRig, world: World, *layers: bytes, name: str = "t") -> None:
    result = submit_unpack(rig, world, *layers, name=name)
    result.wait(world)


def submit_unpack(rig: TreesRig, world: World, *layers: bytes, name: str = "t") -> Result[None]:
    digests = [rig.blobs.put(layer) for layer in layers]
    result: Result[None] = Result()
    rig.trees.submit_unpack(digests, rig.path(name), soon(world), result)
    assert not result.came
    return result


def unpack_error(rig: TreesRig, world: World, *layers: bytes) -> HalError:
    return submit_unpack(rig, world, *layers).error(world)


def checkout(
    rig: TreesRig, world: World, files: Sequence[tuple[FileInfo, bytes]], name: str = "v"
) -> None:
    result: Result[None] = Result()
    rig.trees.submit_checkout(files, rig.path(name), soon(world), result)
    result.wait(world)


def scan(rig: TreesRig, world: World, name: str = "v") -> list[tuple[FileInfo, bytes]]:
    result: Result[Sequence[tuple[FileInfo, bytes]]] = Result()
    rig.trees.submit_scan(rig.path(name), soon(world), result)
    return list(result.wait(world))


def file(rig: TreesRig, path: str, data: bytes, mode: int = 0o644) -> tuple[FileInfo, bytes]:
    info = FileInfo(path=path, kind="file", mode=mode, size_bytes=len(data))
    return info, rig.blobs.put(data)


def directory(path: str, mode: int = 0o755) -> tuple[FileInfo, bytes]:
    return FileInfo(path=path, kind="dir", mode=mode, size_bytes=0), b""


def symlink(path: str, target: str) -> tuple[FileInfo, bytes]:
    return FileInfo(path=path, kind="symlink", mode=0o777, size_bytes=0, target=target), b""


def test_a_layer_becomes_a_tree(rig: TreesRig, world: World) -> None:
    unpack(
        rig,
        world,
        tar([("bin", "dir", b""), ("bin/run", "file", b"#!"), ("sh", "symlink", b"bin/run")]),
    )
    tree = rig.listing("t")
    assert tree["bin"][0] == "dir"
    assert (tree["bin/run"][0], tree["bin/run"][2]) == ("file", b"#!")
    assert (tree["sh"][0], tree["sh"][2]) == ("symlink", b"bin/run")


def test_permission_bits_are_kept(rig: TreesRig, world: World) -> None:
    unpack(rig, world, tar([("tool", "file", b"x")], mode=0o750))
    assert rig.listing("t")["tool"][1] == 0o750


def test_a_gzip_layer_is_read_too(rig: TreesRig, world: World) -> None:
    unpack(rig, world, gzip.compress(tar([("a", "file", b"1")])))
    assert rig.listing("t")["a"][2] == b"1"


def test_a_later_layer_replaces_and_adds(rig: TreesRig, world: World) -> None:
    first = tar([("a", "file", b"old"), ("b", "file", b"kept")])
    unpack(rig, world, first, tar([("a", "file", b"new"), ("c", "file", b"added")]))
    assert {name: entry[2] for name, entry in rig.listing("t").items()} == {
        "a": b"new",
        "b": b"kept",
        "c": b"added",
    }


def test_a_whiteout_removes_what_lower_layers_had(rig: TreesRig, world: World) -> None:
    first = tar([("d/a", "file", b"1"), ("d/b", "file", b"2"), ("e/x", "file", b"3")])
    unpack(rig, world, first, tar([("d/.wh.a", "file", b""), (".wh.e", "file", b"")]))
    assert set(rig.listing("t")) == {"d", "d/b"}


def test_an_opaque_whiteout_empties_a_directory_of_lower_layers_only(
    rig: TreesRig, world: World
) -> None:
    first = tar([("d/a", "file", b"1"), ("d/b", "file", b"2")])
    unpack(rig, world, first, tar([("d/c", "file", b"3"), ("d/.wh..wh..opq", "file", b"")]))
    assert set(rig.listing("t")) == {"d", "d/c"}


def test_a_hard_link_has_the_content_of_its_target(rig: TreesRig, world: World) -> None:
    unpack(rig, world, tar([("a", "file", b"same"), ("b", "link", b"a")]))
    assert rig.listing("t")["b"][2] == b"same"


def test_no_layers_make_an_empty_tree(rig: TreesRig, world: World) -> None:
    unpack(rig, world)
    assert rig.listing("t") == {}
    assert "t" in rig.files.names("")


def test_a_second_unpack_starts_afresh(rig: TreesRig, world: World) -> None:
    unpack(rig, world, tar([("old", "file", b"1")]))
    unpack(rig, world, tar([("new", "file", b"2")]))
    assert set(rig.listing("t")) == {"new"}


@pytest.mark.parametrize("name", ["../outside", "a/../../outside", "a/b/../../../outside"])
def test_a_member_that_climbs_out_is_refused_and_nothing_is_left(
    rig: TreesRig, world: World, name: str
) -> None:
    layer = tar([("good", "file", b"1"), (name, "file", b"evil")])
    assert isinstance(unpack_error(rig, world, layer), Refused)
    assert list(rig.files.names("")) == []


def test_a_hard_link_that_climbs_out_is_refused(rig: TreesRig, world: World) -> None:
    rig.files.write("secret", b"not yours")
    layer = tar([("a", "link", b"../secret")])
    assert isinstance(unpack_error(rig, world, layer), Refused)
    assert list(rig.files.names("")) == ["secret"]


@pytest.mark.parametrize("target", ["../..", "../outside", "/outside"])
def test_a_member_behind_a_link_that_leads_out_never_lands_outside(
    rig: TreesRig, world: World, target: str
) -> None:
    rig.files.write("outside/keep", b"1")
    layer = tar([("door", "symlink", target.encode()), ("door/evil", "file", b"2")])
    result = submit_unpack(rig, world, layer)
    world.run_until(lambda: result.came)
    assert list(rig.files.names("outside")) == ["keep"]
    assert set(rig.files.names("")) <= {"outside", "t"}
    if result.values[0] is not None:
        assert isinstance(result.values[0], Refused)
        assert list(rig.files.names("")) == ["outside"]


def test_what_is_no_tar_is_refused_and_nothing_is_left(rig: TreesRig, world: World) -> None:
    whole = tar([("a", "file", bytes(5000))])
    for layer in (b"this is no archive" * 100, whole[:3000], gzip.compress(whole)[:40]):
        assert isinstance(unpack_error(rig, world, layer), Refused)
        assert list(rig.files.names("")) == []


def test_an_unknown_layer_is_unavailable(rig: TreesRig, world: World) -> None:
    result: Result[None] = Result()
    rig.trees.submit_unpack([bytes(32)], rig.path("t"), soon(world), result)
    assert isinstance(result.error(world), Unavailable)
    assert list(rig.files.names("")) == []


def test_a_checkout_makes_exactly_these_entries(rig: TreesRig, world: World) -> None:
    checkout(
        rig,
        world,
        [
            directory("d"),
            file(rig, "d/a", b"one"),
            file(rig, "b", b"", 0o600),
            symlink("l", "d/a"),
        ],
    )
    tree = rig.listing("v")
    assert set(tree) == {"d", "d/a", "b", "l"}
    assert tree["d/a"][2] == b"one"
    assert tree["b"][1:] == (0o600, b"")
    assert (tree["l"][0], tree["l"][2]) == ("symlink", b"d/a")


def test_a_checkout_over_a_tree_removes_what_is_not_in_it(rig: TreesRig, world: World) -> None:
    checkout(rig, world, [file(rig, "a", b"1"), directory("d"), file(rig, "d/b", b"2")])
    checkout(rig, world, [file(rig, "a", b"changed"), file(rig, "d", b"now a file")])
    tree = rig.listing("v")
    assert {name: entry[2] for name, entry in tree.items()} == {"a": b"changed", "d": b"now a file"}


def test_a_checkout_of_nothing_is_an_empty_tree(rig: TreesRig, world: World) -> None:
    checkout(rig, world, [])
    assert rig.listing("v") == {}
    assert scan(rig, world) == []


@pytest.mark.parametrize("path", ["../x", "a/../../x"])
def test_a_checkout_that_climbs_out_is_refused(rig: TreesRig, world: World, path: str) -> None:
    result: Result[None] = Result()
    entry = file(rig, path, b"evil")
    rig.trees.submit_checkout([entry], rig.path("v"), soon(world), result)
    assert isinstance(result.error(world), Refused)
    assert "x" not in rig.files.names("")


def test_a_scan_gives_back_what_a_checkout_made(rig: TreesRig, world: World) -> None:
    made = [
        file(rig, "b", b"content", 0o640),
        directory("d"),
        file(rig, "d/a", b"one"),
        symlink("l", "../anywhere"),
    ]
    checkout(rig, world, made)
    found = scan(rig, world)
    assert [(i.path, i.kind, i.size_bytes, i.target, d) for i, d in found] == [
        (i.path, i.kind, i.size_bytes, i.target, d) for i, d in made
    ]
    assert [i.mode for i, _ in found if i.kind == "file"] == [0o640, 0o644]


def test_a_scan_puts_changed_files_into_the_store(rig: TreesRig, world: World) -> None:
    checkout(rig, world, [file(rig, "a", b"before")])
    rig.files.write("v/a", b"after")
    rig.files.write("v/sub/new", b"brand new")
    found = {info.path: digest for info, digest in scan(rig, world)}
    assert found["a"] == hashlib.sha256(b"after").digest()
    assert rig.blobs.read(found["sub/new"], 0, 100) == b"brand new"
    assert found["sub"] == b""


def test_a_scan_is_sorted_by_path(rig: TreesRig, world: World) -> None:
    for name in ("v/b", "v/a/z", "v/a.b", "v/a/y", "v/A"):
        rig.files.write(name, b"x")
    paths = [info.path for info, _ in scan(rig, world)]
    assert paths == sorted(paths)
    assert set(paths) == {"A", "a", "a.b", "a/y", "a/z", "b"}


def test_a_scan_of_what_is_not_there_is_unavailable(rig: TreesRig, world: World) -> None:
    result: Result[Sequence[tuple[FileInfo, bytes]]] = Result()
    rig.trees.submit_scan(rig.path("absent"), soon(world), result)
    assert isinstance(result.error(world), Unavailable)
