"""LinuxTrees with layers that mean harm, are damaged, or are merely unusual."""

import bz2
import gzip
import hashlib
import io
import os
import stat
import tarfile
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from firmware.loop import MS
from hal.errors import DeadlinePassed, HalError, Refused, StoreFull
from hal.linux import layers as layers_module
from hal.linux.blobs import LinuxBlobStore
from hal.linux.trees import LinuxTrees
from hal.ports import FileInfo

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="owners and devices need root")


def member(name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"", **more) -> tuple:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.size = kind, 0o644, len(data)
    for key, value in more.items():
        setattr(info, key, value)
    return info, data


def tar(*members: tuple) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


class Bench:
    def __init__(self, loop, until, workers, tmp_path) -> None:
        self.loop, self.until, self.top = loop, until, tmp_path / "trees"
        self.store = LinuxBlobStore(tmp_path / "blobs", loop, workers)
        self.trees = LinuxTrees(self.top, self.store, workers)
        self.serial = 0

    def wait(self, submit: Callable) -> object:
        results: list[object] = []
        submit(self.loop.now_ns() + 60_000 * MS, results.append)
        self.until(lambda: bool(results))
        return results[0]

    def blob(self, data: bytes) -> bytes:
        digest = hashlib.sha256(data).digest()
        if self.store.has(digest) is not None:
            return digest
        self.store.begin(digest, len(data))
        for offset in range(0, len(data), 1 << 20):
            self.store.write_chunk(digest, offset, data[offset : offset + (1 << 20)])
        assert self.wait(lambda due, done: self.store.submit_finish(digest, due, done)) is None
        return digest

    def unpack(self, *layers: bytes, path: str = "t") -> object:
        digests = [self.blob(layer) for layer in layers]
        return self.wait(lambda due, done: self.trees.submit_unpack(digests, path, due, done))

    def refused(self, *layers: bytes) -> str:
        result = self.unpack(*layers)
        assert isinstance(result, Refused), result
        assert os.listdir(self.top) == []
        return str(result)


@pytest.fixture
def bench(loop, until, workers, tmp_path):
    made = Bench(loop, until, workers, tmp_path)
    yield made
    workers.close()
    made.trees.close()
    made.store.close()


LINK_OUT = member("door", tarfile.SYMTYPE, linkname="/etc")


@pytest.mark.parametrize(
    "layer",
    [
        tar(member("../evil")),
        tar(member("a/../../evil")),
        tar(member("/etc/evil")),
        tar(LINK_OUT, member("door/evil")),
        tar(member("door", tarfile.SYMTYPE, linkname="../.."), member("door/evil")),
        tar(member("a", tarfile.DIRTYPE), member("a/b", tarfile.SYMTYPE, linkname="../../x"),
            member("a/b/c")),
        tar(member("loop", tarfile.SYMTYPE, linkname="loop"), member("loop/x")),
        tar(member("steal", tarfile.LNKTYPE, linkname="/etc/passwd")),
        tar(member("steal", tarfile.LNKTYPE, linkname="../../etc/passwd")),
        tar(LINK_OUT, member("steal", tarfile.LNKTYPE, linkname="door/passwd")),
        tar(member("self", tarfile.LNKTYPE, linkname=".")),
        tar(LINK_OUT, member("door/.wh.passwd")),
        tar(LINK_OUT, member("door/.wh..wh..opq")),
        tar(member("a/.wh...")),
        tar(member(".wh.")),
        tar(member("x", b"Z")),
        tar(member("x" * 300)),
        tar(member("file", data=b"1"), member("file/below")),
        tar(member("d/" * 400 + "x")),
        tar(member("own", uid=1 << 40)),
    ],
)  # fmt: skip
def test_a_layer_that_wants_out_or_makes_no_sense_is_refused_whole(bench, layer: bytes) -> None:
    if b"own\0" in layer and os.geteuid():
        pytest.skip("owners are not looked at")
    bench.refused(tar(member("good", data=b"1")), layer)


def test_a_symlink_of_an_earlier_layer_is_no_way_out(bench) -> None:
    assert "outside" in bench.refused(tar(LINK_OUT), tar(member("door/evil")))


def test_a_hard_link_to_a_link_that_leads_out_does_not_give_its_target(bench) -> None:
    first = tar(member("pw", tarfile.SYMTYPE, linkname="/etc/passwd"))
    assert bench.unpack(first, tar(member("pw2", tarfile.LNKTYPE, linkname="pw"))) is None
    assert os.path.islink(bench.top / "t/pw2")  # the link itself, which a container sees as its own


def test_writing_to_a_link_replaces_it(bench, tmp_path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    first = tar(member("f", tarfile.SYMTYPE, linkname=str(victim)))
    assert bench.unpack(first, tar(member("f", data=b"new"))) is None
    assert victim.read_bytes() == b"mine"
    assert (bench.top / "t/f").read_bytes() == b"new"


def test_a_link_that_stays_inside_is_followed(bench) -> None:
    first = tar(
        member("usr/lib", tarfile.DIRTYPE, mode=0o755),
        member("lib", tarfile.SYMTYPE, linkname="usr/lib"),
        member("usr/up", tarfile.SYMTYPE, linkname="../usr/./lib"),
    )
    assert bench.unpack(first, tar(member("lib/a", data=b"1"), member("usr/up/b"))) is None
    assert sorted(os.listdir(bench.top / "t/usr/lib")) == ["a", "b"]


def test_a_directory_takes_the_place_of_a_link_and_keeps_what_a_directory_held(bench) -> None:
    first = tar(member("d/x", data=b"1"), member("l", tarfile.SYMTYPE, linkname="d"))
    second = tar(member("l", tarfile.DIRTYPE, mode=0o755), member("l/y"),
                 member("d", tarfile.DIRTYPE, mode=0o711))  # fmt: skip
    assert bench.unpack(first, second) is None
    assert os.listdir(bench.top / "t/l") == ["y"]
    assert os.listdir(bench.top / "t/d") == ["x"]
    assert stat.S_IMODE(os.stat(bench.top / "t/d").st_mode) == 0o711


def test_a_file_takes_the_place_of_a_tree(bench) -> None:
    assert bench.unpack(tar(member("d/e/f", data=b"1")), tar(member("d", data=b"2"))) is None
    assert (bench.top / "t/d").read_bytes() == b"2"


def test_an_opaque_mark_spares_what_its_own_layer_made_in_any_order(bench) -> None:
    first = tar(member("d/old/x"), member("d/both/old"))
    second = tar(member("d/both/new"), member("d/.wh..wh..opq"), member("d/late"))
    assert bench.unpack(first, second) is None
    assert sorted(p.name for p in (bench.top / "t").rglob("*")) == ["both", "d", "late", "new"]


def test_whiteouts_of_what_is_not_there_and_of_aufs_are_nothing(bench) -> None:
    layer = tar(member("no/where/.wh.x"), member(".wh.absent"), member(".wh..wh.plnk"))
    assert bench.unpack(layer) is None
    assert os.listdir(bench.top / "t") == []


@root_only
def test_owner_and_setuid_are_kept_and_devices_left_out(bench) -> None:
    layer = tar(
        member("su", data=b"x", mode=0o4755, uid=7, gid=8),
        member("link", tarfile.SYMTYPE, linkname="su", uid=9, gid=9),
        member("dev/null", tarfile.CHRTYPE, devmajor=1, devminor=3),
        member("pipe", tarfile.FIFOTYPE, uid=3),
        member("./", tarfile.DIRTYPE, mode=0o751),
    )
    assert bench.unpack(layer) is None
    info = os.stat(bench.top / "t/su")
    assert (info.st_mode & 0o7777, info.st_uid, info.st_gid) == (0o4755, 7, 8)
    assert os.lstat(bench.top / "t/link").st_uid == 9
    assert stat.S_ISFIFO(os.stat(bench.top / "t/pipe").st_mode)
    assert os.listdir(bench.top / "t/dev") == []
    assert stat.S_IMODE(os.stat(bench.top / "t").st_mode) == 0o751


def test_long_names_pax_headers_and_sparse_sizes_come_through(bench) -> None:
    name = "/".join(["long" * 20] * 5)
    layer = tar(member(name, data=bytes(100_000)), member("ü", data=b"u", mtime=1.5))
    assert bench.unpack(gzip.compress(layer)) is None
    assert (bench.top / "t" / name).stat().st_size == 100_000
    assert (bench.top / "t/ü").stat().st_mtime == 1.5


def test_kinds_that_cannot_be_read_are_named(bench) -> None:
    assert "tar+zstd" in bench.refused(b"\x28\xb5\x2f\xfd" + bytes(100))
    assert "bzip2" in bench.refused(bz2.compress(tar(member("a"))))


def test_a_damaged_header_in_the_middle_is_no_silent_end(bench) -> None:
    layer = bytearray(tar(member("a", data=b"1"), member("b", data=b"2")))
    layer[1024] ^= 0xFF
    assert "damaged header" in bench.refused(bytes(layer))


@pytest.mark.parametrize("at", [20, -20, -5])
def test_a_gzip_with_a_flipped_bit_is_refused(bench, at: int) -> None:
    layer = bytearray(gzip.compress(tar(member("a", data=os.urandom(3000)))))
    layer[at] ^= 4
    bench.refused(bytes(layer))


def test_a_gzip_bomb_in_a_header_is_refused_without_holding_it(bench) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 1 << 30
    head = info.tobuf(tarfile.USTAR_FORMAT)
    assert "header of" in bench.refused(gzip.compress(head + bytes(16 << 20)))


def test_more_than_the_budget_is_refused(bench, monkeypatch) -> None:
    monkeypatch.setattr(layers_module.Budget.__init__, "__defaults__", (100_000,))
    bench.refused(gzip.compress(tar(member("big", data=bytes(200_000)))))


def test_a_chain_of_long_names_ends_in_a_refusal(bench) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2
    link = info.tobuf(tarfile.GNU_FORMAT) + b"x\0".ljust(512, b"\0")
    bench.refused(link * 3000)


def test_a_deadline_ends_it_and_nothing_is_left(bench, loop, until) -> None:
    digest = bench.blob(tar(*[member(f"f{n}", data=b"x") for n in range(2000)]))
    results: list[object] = []
    bench.trees.submit_unpack([digest], "t", loop.now_ns() + MS, results.append)
    until(lambda: bool(results))
    assert isinstance(results[0], DeadlinePassed)
    assert os.listdir(bench.top) == []


def test_a_failed_unpack_leaves_the_earlier_tree(bench) -> None:
    assert bench.unpack(tar(member("kept", data=b"1"))) is None
    assert isinstance(bench.unpack(tar(member("../evil"))), Refused)
    assert os.listdir(bench.top / "t") == ["kept"]
    assert isinstance(bench.unpack(tar(member("../evil")), path="a/b/c"), Refused)
    assert os.listdir(bench.top) == ["t"]


@pytest.mark.parametrize("path", ["..", "", "/etc/apf-x", "a/../..", "/"])
def test_a_tree_outside_of_the_root_is_refused(bench, path: str) -> None:
    assert isinstance(bench.unpack(tar(member("x")), path=path), Refused)


@root_only
def test_a_full_disk_is_store_full_and_leaves_nothing(loop, until, workers, tmp_path) -> None:
    import subprocess

    small = tmp_path / "trees"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", small], check=True)
    bench = Bench(loop, until, workers, tmp_path)
    try:
        result = bench.unpack(tar(member("ok", data=b"1"), member("big", data=bytes(1 << 20))))
        assert isinstance(result, StoreFull)
        assert os.listdir(small) == []
    finally:
        bench.trees.close()
        bench.store.close()
        subprocess.run(["umount", "-l", small], check=True)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_whatever_is_flipped_the_tree_is_whole_or_not_there(bench, data) -> None:
    layer = bytearray(
        tar(member("d/a", data=b"1" * 700), LINK_OUT, member("b", tarfile.LNKTYPE, linkname="d/a"))
    )
    for _ in range(data.draw(st.integers(1, 6))):
        layer[data.draw(st.integers(0, len(layer) - 1))] = data.draw(st.integers(0, 255))
    bench.serial += 1
    name = f"t{bench.serial}"
    result = bench.unpack(bytes(layer), path=name)
    assert result is None or isinstance(result, HalError)
    assert (name in os.listdir(bench.top)) == (result is None)
    assert [entry for entry in os.listdir(bench.top) if entry.startswith(".")] == []


def entry(bench, path: str, kind: str = "file", data: bytes = b"", **more) -> tuple:
    digest = bench.store.put(data) if kind == "file" else b""
    more = {"mode": 0o644, "size_bytes": len(data)} | more
    return FileInfo(path=path, kind=kind, **more), digest


def test_a_checkout_that_makes_no_sense_is_refused_and_changes_nothing(bench) -> None:
    def checkout(*entries: tuple) -> object:
        return bench.wait(lambda due, done: bench.trees.submit_checkout(entries, "v", due, done))

    assert checkout(entry(bench, "kept", data=b"1")) is None
    for wrong in (
        [entry(bench, "a"), entry(bench, "a")],
        [entry(bench, "a"), entry(bench, "a/b")],
        [entry(bench, "l", "symlink", target="/etc"), entry(bench, "l/evil")],
        [entry(bench, "odd", "socket")],
        [entry(bench, "size", data=b"123", size_bytes=4)],
        [entry(bench, "")],
        [entry(bench, "/etc/evil")],
    ):
        assert isinstance(checkout(*wrong), Refused)
        assert os.listdir(bench.top / "v") == ["kept"]


def test_a_read_only_directory_is_filled_and_replaced(bench) -> None:
    def checkout(*entries: tuple) -> object:
        return bench.wait(lambda due, done: bench.trees.submit_checkout(entries, "v", due, done))

    entries = [entry(bench, "d", "dir", mode=0o555), entry(bench, "d/a", data=b"1", mode=0o400)]
    assert checkout(*entries) is None
    assert stat.S_IMODE(os.stat(bench.top / "v/d").st_mode) == 0o555
    assert checkout() is None
    assert os.listdir(bench.top / "v") == []


def test_a_scan_leaves_out_what_is_no_file_and_refuses_names_that_are_no_text(bench) -> None:
    def scan() -> object:
        return bench.wait(lambda due, done: bench.trees.submit_scan("v", due, done))

    top = bench.top / "v"
    top.mkdir()
    os.mkfifo(top / "pipe")
    (top / "f").write_bytes(b"x" * (3 << 20))
    assert [info.path for info, _ in scan()] == [".", "f"]
    (top / os.fsdecode(b"bad\xff")).write_bytes(b"")
    assert isinstance(scan(), Refused)


def test_a_time_that_no_clock_can_show_is_refused(bench) -> None:
    """2^70 in base 256, which utime(2) does not take."""
    layer = bytearray(tar(member("a", data=b"1")))
    layer[136:148] = b"\x80" + (1 << 70).to_bytes(11, "big")
    layer[148:156] = b" " * 8
    layer[148:156] = b"%06o\0 " % sum(layer[:512])
    assert isinstance(bench.unpack(bytes(layer)), Refused)


def test_the_holes_of_a_sparse_member_count_too(bench, monkeypatch) -> None:
    """Nothing is read for them, and all of them are written."""
    monkeypatch.setattr(layers_module, "TREE_LIMIT_BYTES", 1 << 20)
    monkeypatch.setattr(layers_module.Budget.__init__, "__defaults__", (1 << 20,))
    layer = bytearray(tar(member("a", data=b"1" * 512)))
    layer[156:157] = b"S"
    layer[345:386] = bytes(41)
    layer[386:410] = b"%011o\0%011o\0" % (0, 512)  # one piece, at 0
    layer[483:495] = b"%011o\0" % (1 << 30)  # the size with its holes
    layer[148:156] = b" " * 8
    layer[148:156] = b"%06o\0 " % sum(layer[:512])
    result = bench.unpack(bytes(layer))
    assert isinstance(result, Refused)
    assert "more than" in str(result)
