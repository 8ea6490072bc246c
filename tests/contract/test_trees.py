"""`hal.ports.Trees`: layers to trees, trees to blobs, and nothing leaves its tree."""

import gzip
import hashlib
import io
import tarfile
from collections.abc import Sequence
from dataclasses import replace

import pytest

from hal.errors import Absent, HalError, Refused, Unavailable
from hal.ports import TREE_TOP, FileInfo
from tests.contract.results import Result, soon
from tests.contract.rigs import TreesRig, World

PORT = "trees"
TYPES = {"dir": tarfile.DIRTYPE, "symlink": tarfile.SYMTYPE, "link": tarfile.LNKTYPE}
Member = tuple[str, str, bytes]  # name, kind, content or link target


def tar(members: Sequence[Member], *, mode: int = 0o644, owner: tuple[int, int] = (0, 0)) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.mode = 0o755 if kind == "dir" else mode
            info.uid, info.gid = owner
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


def below(found: Sequence[tuple[FileInfo, bytes]]) -> list[tuple[FileInfo, bytes]]:
    """A scan without the tree's own directory."""
    assert [info.path for info, _ in found].count(TREE_TOP) == 1
    return [entry for entry in found if entry[0].path != TREE_TOP]


def owned(
    entry: tuple[FileInfo, bytes], uid: int, gid: int, mode: int | None = None
) -> tuple[FileInfo, bytes]:
    mode = entry[0].mode if mode is None else mode
    return replace(entry[0], uid=uid, gid=gid, mode=mode), entry[1]


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
    assert below(scan(rig, world)) == []


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
    found = below(scan(rig, world))
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
    assert set(paths) == {TREE_TOP, "A", "a", "a.b", "a/y", "a/z", "b"}


@pytest.mark.parametrize("name", ["absent", "v/file", "v/door", "v/door/d", "v/file/d"])
def test_a_scan_of_what_is_no_directory_here_is_absent(
    rig: TreesRig, world: World, name: str
) -> None:
    checkout(rig, world, [file(rig, "file", b"1"), directory("d/d"), symlink("door", "d")])
    result: Result[Sequence[tuple[FileInfo, bytes]]] = Result()
    rig.trees.submit_scan(rig.path(name), soon(world), result)
    assert isinstance(result.error(world), Absent)


def all_owned(rig: TreesRig) -> list[tuple[FileInfo, bytes]]:
    return [
        owned(directory(TREE_TOP), 1000, 1001, 0o2770),
        owned(directory("closed"), 1002, 1003, 0o500),
        owned(file(rig, "closed/a", b"one", 0o4711), 1004, 0),
        owned(file(rig, "empty", b""), 0, 0xFFFF_FFFE),
        owned(symlink("l", "/nowhere"), 1005, 1006),
    ]


def test_owners_and_modes_come_back_as_they_were_scanned(rig: TreesRig, world: World) -> None:
    if rig.owners is None:
        pytest.skip("files can't be given away here")
    made = all_owned(rig)
    checkout(rig, world, made)
    assert rig.owners("v") == {
        ".": (1000, 1001, 0o2770),
        "closed": (1002, 1003, 0o500),
        "closed/a": (1004, 0, 0o4711),
        "empty": (0, 0xFFFF_FFFE, 0o644),
        "l": (1005, 1006, 0o777),
    }
    found = scan(rig, world)
    assert found == made
    checkout(rig, world, found, "again")
    assert rig.owners("again") == rig.owners("v")


def test_owners_are_never_a_reason_to_fail_where_they_cannot_be_kept(
    rig: TreesRig, world: World
) -> None:
    checkout(rig, world, all_owned(rig))
    assert set(rig.listing("v")) == {"closed", "closed/a", "empty", "l"}
    top = next(info for info, _ in scan(rig, world) if info.path == TREE_TOP)
    assert top.mode & 0o777 == 0o770


def test_a_checkout_that_does_not_say_whose_the_tree_is_makes_a_plain_directory(
    rig: TreesRig, world: World
) -> None:
    checkout(rig, world, [owned(directory(TREE_TOP), 1000, 1000, 0o700)])
    checkout(rig, world, [file(rig, "a", b"1")])
    ((top, _),) = [entry for entry in scan(rig, world) if entry[0].path == TREE_TOP]
    assert (top.kind, top.mode, top.size_bytes) == ("dir", 0o755, 0)
    if rig.owners is not None:
        assert rig.owners("v") == {".": (0, 0, 0o755), "a": (0, 0, 0o644)}


def test_the_owners_of_an_images_files_are_scanned(rig: TreesRig, world: World) -> None:
    if rig.owners is None:
        pytest.skip("files can't be given away here")
    members = [(".", "dir", b""), ("d", "dir", b""), ("d/a", "file", b"1"), ("l", "symlink", b"d")]
    unpack(rig, world, tar(members, owner=(70, 71)))
    found = scan(rig, world, "t")
    assert {info.path: (info.uid, info.gid) for info, _ in found} == dict.fromkeys(
        (".", "d", "d/a", "l"), (70, 71)
    )


@pytest.mark.parametrize(
    "owner", [(-1, 0), (0, -1), (0xFFFF_FFFF, 0), (0, 0xFFFF_FFFF), (1 << 32, 0)]
)
def test_an_owner_that_no_file_can_have_is_refused_and_nothing_is_left(
    rig: TreesRig, world: World, owner: tuple[int, int]
) -> None:
    for entry in (file(rig, "a", b"1"), directory("d"), symlink("l", "a"), directory(TREE_TOP)):
        result: Result[None] = Result()
        rig.trees.submit_checkout([owned(entry, *owner)], rig.path("v"), soon(world), result)
        assert isinstance(result.error(world), Refused)
        assert list(rig.files.names("")) == []


def test_the_tree_itself_is_one_directory(rig: TreesRig, world: World) -> None:
    for wrong in (
        [directory(TREE_TOP), directory(TREE_TOP, 0o700)],
        [file(rig, TREE_TOP, b"1")],
        [symlink(TREE_TOP, "/etc")],
    ):
        result: Result[None] = Result()
        rig.trees.submit_checkout(wrong, rig.path("v"), soon(world), result)
        assert isinstance(result.error(world), Refused)
        assert list(rig.files.names("")) == []
