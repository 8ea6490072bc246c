"""firmware.images: an image is there whole, or not at all."""

import hashlib
from collections.abc import Callable, Container, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware import images as im
from firmware import rpc
from firmware.events import EventLog
from firmware.journal import Journal, Kind
from firmware.volume_manifest import VolumeError
from hal.errors import HalError, Refused, StoreFull, Unavailable
from hal.ports import Done
from tests.unit.firmware.fake_reactor import FakeReactor
from tests.unit.firmware.test_journal import SlowStore
from tests.unit.firmware.test_rpc import FakeCaller
from tests.unit.firmware.test_rpc import Rig as RpcRig


class FakeBlobs:
    """Takes descriptors as names of prepared contents; finishes when the test says so."""

    def __init__(self) -> None:
        self.held: dict[bytes, bytes] = {}
        self.contents: dict[int, bytes] = {}
        self.running: list[tuple[bytes, bytes, Done[None]]] = []

    def has(self, digest: bytes) -> int | None:
        data = self.held.get(digest)
        return None if data is None else len(data)

    def submit_ingest(
        self, fd: int, size_bytes: int, digest: bytes, _deadline_ns: int, done: Done[None]
    ) -> None:
        self.running.append((digest, self.contents.pop(fd)[:size_bytes], done))

    def finish(self, error: HalError | None = None) -> None:
        digest, data, done = self.running.pop(0)
        if error is None and hashlib.sha256(data).digest() != digest:
            error = Refused(f"wanted {digest.hex()[:8]}, hashed to something else")
        if error is None:
            self.held[digest] = data
        done(error)

    def drop(self, digest: bytes) -> None:
        self.held.pop(digest, None)

    def digests(self, first: int | None = None) -> Sequence[bytes]:
        return sorted(digest for digest in self.held if first in (None, digest[0]))


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def manifest(ref: str, *layers: bytes, **more: object) -> dict[str, Any]:
    return {
        "schema": "apf-image/1",
        "ref": ref,
        "arch": "x86_64",
        "config": {"env": {"A": "1"}, "cmd": ["sh"]},
        "layers": [{"digest": sha(one), "size_bytes": len(one)} for one in layers],
        **more,
    }


class Client(FakeCaller):
    """Its connection ends when the test says so."""

    __hash__ = None  # type: ignore[assignment]  # callers are told apart by what they are, not hashed

    def __init__(self) -> None:
        super().__init__()
        self.closers: list[Callable[[], None]] = []

    def on_close(self, call: Callable[[], None]) -> None:
        self.closers.append(call)

    def close(self) -> None:
        for call in self.closers:
            call()


class Rig(RpcRig):
    def __init__(self) -> None:
        super().__init__()
        self.client = self.caller = Client()
        self.blobs = FakeBlobs()
        self.disk = SlowStore()
        self.users: dict[str, list[str]] = {}
        self.kept: set[bytes] = set()
        self.restart()

    def restart(self) -> None:
        reactor = FakeReactor()
        self.reactor = reactor
        self.journal = Journal(self.disk)
        self.journal.load()
        self.events = EventLog(reactor, lambda: 0)
        self.left: list[int] = []  # how often blobs had to be left to the collection of garbage
        self.unreadable: Exception | None = None  # why nobody can say what is kept
        self.store = im.ImageStore(
            self.blobs,  # type: ignore[arg-type]
            self.journal,
            reactor,
            self.events,
            used_by=lambda ref: self.users.get(ref, []),
            needed=self.needed,
            left_behind=lambda: self.left.append(1),
        )
        self.table = rpc.MethodTable()
        self.dispatcher = rpc.Dispatcher(self.table)
        im.register_image_methods(self.table, self.store)

    def needed(self) -> Container[bytes]:
        if self.unreadable is not None:
            raise self.unreadable
        return self.kept

    def send_blob(self, ref: str, data: bytes, content: bytes | None = None) -> object:
        self.fds.append(7)
        self.blobs.contents[7] = data if content is None else content
        message = {"ref": ref, "digest": sha(data), "size_bytes": len(data)}
        self.send({"jsonrpc": "2.0", "id": 1, "method": "image.blob", "params": message})
        if self.blobs.running:
            self.blobs.finish()
        return self.answers[-1]

    def commit(self, ref: str) -> dict[str, Any]:
        self.send({"jsonrpc": "2.0", "id": 1, "method": "image.commit", "params": {"ref": ref}})
        if self.disk.waiting:
            self.disk.answer()
        return self.answers[-1]

    def load(self, ref: str, *layers: bytes) -> None:
        self.ask("image.begin", ref=ref, manifest=manifest(ref, *layers))
        for layer in layers:
            self.send_blob(ref, layer)
        assert "result" in self.commit(ref), self.answers[-1]


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_an_image_goes_in_layer_by_layer_and_survives_a_restart(rig: Rig) -> None:
    begun = rig.ask("image.begin", ref="web", manifest=manifest("web", b"base", b"top"))
    assert begun["result"] == {"missing": [sha(b"base"), sha(b"top")]}
    rig.send_blob("web", b"base")
    assert rig.commit("web")["error"]["data"]["missing"] == [sha(b"top")]  # type: ignore[index]
    assert rig.store.resolve("web") is None
    rig.send_blob("web", b"top")
    assert rig.commit("web")["result"] == {"ref": "web:latest", "size_bytes": 7}
    rig.restart()
    image = rig.store.resolve("web")
    assert image is not None
    assert (image.arch, image.config.cmd, image.size_bytes) == ("amd64", ("sh",), 7)
    assert rig.ask("image.list")["result"] == [
        {"ref": "web:latest", "arch": "amd64", "size_bytes": 7, "layers": 2, "workloads": []}
    ]


def test_what_is_here_already_is_not_asked_for(rig: Rig) -> None:
    rig.load("web:1", b"base", b"one")
    begun = rig.ask("image.begin", ref="web:2", manifest=manifest("web:2", b"base", b"two"))
    assert begun["result"] == {"missing": [sha(b"two")]}
    rig.send_blob("web:2", b"base")  # sent all the same: taken as done, the descriptor closed
    assert "result" in rig.answers[-1]
    assert rig.caller.discarded == [7]


def test_a_wrong_blob_is_refused_and_the_import_can_go_on(rig: Rig) -> None:
    rig.ask("image.begin", ref="web", manifest=manifest("web", b"base"))
    rig.send_blob("web", b"base", b"evil")
    assert rig.word() == (rpc.REFUSED, "bad_digest")
    rig.send_blob("web", b"other")
    assert rig.word() == (rpc.REFUSED, "not_in_manifest")
    assert rig.caller.discarded == [7]
    rig.send_blob("web", b"base")
    assert "result" in rig.commit("web")


def test_a_full_disk_is_said_and_the_import_can_go_on(rig: Rig) -> None:
    rig.ask("image.begin", ref="web", manifest=manifest("web", b"base"))
    rig.fds.append(7)
    rig.blobs.contents[7] = b"base"
    message = {"ref": "web", "digest": sha(b"base"), "size_bytes": 4}
    rig.send({"jsonrpc": "2.0", "id": 1, "method": "image.blob", "params": message})
    rig.blobs.finish(StoreFull("4 B wanted, 0 free"))
    assert rig.word() == (rpc.REFUSED, "store_full")


@pytest.mark.parametrize("method", ["image.commit", "image.blob"])
def test_nothing_is_taken_without_a_begin(rig: Rig, method: str) -> None:
    if method == "image.blob":
        rig.send_blob("web", b"base")
    else:
        rig.commit("web")
    assert rig.word() == (rpc.REFUSED, "no_import")


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"schema": "apf-image/2"}, "schema"),
        ({"layers": []}, "layers"),
        ({"layers": [{"digest": "00", "size_bytes": 1}]}, "layers[0].digest"),
        ({"layers": [{"digest": "g" * 64, "size_bytes": 1}]}, "layers[0].digest"),
        ({"layers": [{"digest": "a" * 64, "size_bytes": 0}]}, "layers[0].size_bytes"),
        ({"layers": [{"digest": "a" * 64, "size_bytes": 1 << 60}]}, "layers[0].size_bytes"),
        ({"layers": [{"digest": "a" * 64, "size_bytes": 1}] * 129}, "layers"),
        (
            {
                "layers": [
                    {"digest": "a" * 64, "size_bytes": 1},
                    {"digest": "a" * 64, "size_bytes": 2},
                ]
            },
            "layers[1].size_bytes",
        ),
        ({"ref": "other"}, "ref"),
        ({"ref": "-x"}, "ref"),
        ({"config": {"cmd": "sh"}}, "config.cmd"),
        ({"config": {"entry": []}}, "config.entry"),
        ({"colour": 1}, "colour"),
    ],
)
def test_a_bad_manifest_is_refused_with_its_place(
    rig: Rig, change: dict[str, object], path: str
) -> None:
    answer = rig.ask("image.begin", ref="web", manifest={**manifest("web", b"x"), **change})
    error: Any = answer["error"]
    assert (error["code"], error["data"]["path"]) == (rpc.INVALID_PARAMS, path)
    rig.commit("web")
    assert rig.word() == (rpc.REFUSED, "no_import")


def test_the_built_in_image_can_not_be_replaced(rig: Rig) -> None:
    rig.ask("image.begin", ref="host", manifest=manifest("host", b"x"))
    assert rig.word() == (rpc.REFUSED, "reserved_name")


def test_an_image_in_use_is_neither_removed_nor_changed(rig: Rig) -> None:
    rig.load("web", b"base")
    rig.users["web:latest"] = ["shop"]
    rig.ask("image.remove", ref="web")
    assert rig.word() == (rpc.REFUSED, "image_in_use")
    rig.ask("image.begin", ref="web", manifest=manifest("web", b"other"))
    assert rig.word() == (rpc.REFUSED, "image_in_use")
    assert "result" in rig.ask("image.begin", ref="web", manifest=manifest("web", b"base"))
    assert "result" in rig.commit("web")


def test_a_workload_that_came_in_the_meantime_stops_the_commit(rig: Rig) -> None:
    rig.load("web", b"base")
    rig.ask("image.begin", ref="web", manifest=manifest("web", b"new"))
    rig.send_blob("web", b"new")
    rig.users["web:latest"] = ["shop"]
    rig.commit("web")
    assert rig.word() == (rpc.REFUSED, "image_in_use")


def test_removing_an_image_drops_only_what_nobody_else_needs(rig: Rig) -> None:
    rig.load("web:1", b"base", b"one", b"pinned")
    rig.load("web:2", b"base", b"two")
    rig.kept.add(hashlib.sha256(b"pinned").digest())
    rig.send({"jsonrpc": "2.0", "id": 1, "method": "image.remove", "params": {"ref": "web:1"}})
    assert len(rig.blobs.held) == 4  # nothing goes before the journal knows
    rig.disk.answer()
    assert {bytes(data) for data in rig.blobs.held.values()} == {b"base", b"two", b"pinned"}
    assert rig.store.resolve("web:1") is None
    rig.ask("image.remove", ref="web:1")
    assert rig.word() == (rpc.REFUSED, "unknown_image")


def test_a_replaced_image_leaves_no_blobs_behind(rig: Rig) -> None:
    rig.load("web", b"base", b"old")
    rig.load("web", b"base", b"new")
    assert {bytes(data) for data in rig.blobs.held.values()} == {b"base", b"new"}


def test_a_digest_is_of_the_content_and_follows_it(rig: Rig) -> None:
    assert rig.store.digest_of("web") == ""
    rig.load("web", b"base", b"old")
    rig.load("other:7", b"base", b"old")
    old = rig.store.digest_of("web")
    assert len(bytes.fromhex(old)) == 32
    assert rig.store.digest_of("web:latest") == rig.store.digest_of("other:7") == old
    rig.load("web", b"base", b"new")
    assert rig.store.digest_of("web") not in ("", old)
    rig.ask("image.remove", ref="web")
    if rig.disk.waiting:
        rig.disk.answer()
    assert rig.store.digest_of("web") == ""
    assert rig.store.digest_of("other:7") == old


def test_a_journal_that_refuses_changes_nothing(rig: Rig) -> None:
    rig.load("web", b"base")
    rig.send({"jsonrpc": "2.0", "id": 1, "method": "image.remove", "params": {"ref": "web"}})
    rig.disk.answer(StoreFull("no space"))
    assert rig.word() == (rpc.REFUSED, "journal_store")
    assert rig.store.resolve("web") is not None
    assert list(rig.blobs.held.values()) == [b"base"]


def test_two_changes_of_one_image_do_not_cross(rig: Rig) -> None:
    rig.load("web", b"base")
    remove = {"jsonrpc": "2.0", "id": 1, "method": "image.remove", "params": {"ref": "web"}}
    rig.send(remove)
    rig.send(remove)
    assert rig.word() == (rpc.BUSY, "image_changing")


def test_an_import_that_begins_while_another_of_the_image_is_committed_takes_none_of_its_layers(
    rig: Rig,
) -> None:
    rig.ask("image.begin", ref="web", manifest=manifest("web", b"base"))
    rig.send_blob("web", b"base")
    rig.send({"jsonrpc": "2.0", "id": 1, "method": "image.commit", "params": {"ref": "web"}})
    rig.ask("image.begin", ref="web", manifest=manifest("web", b"new"))
    assert rig.word() == (rpc.BUSY, "image_changing")
    rig.disk.answer()
    assert [image.ref for image in rig.store.images()] == ["web:latest"]
    assert list(rig.blobs.held.values()) == [b"base"]
    assert "result" in rig.ask("image.begin", ref="web", manifest=manifest("web", b"new"))


def test_imports_whose_connection_closed_give_their_place_to_a_new_one(rig: Rig) -> None:
    for n in range(im.MAX_UPLOADS):
        rig.ask("image.begin", ref=f"i{n}", manifest=manifest(f"i{n}", b"x%d" % n))
    assert len(rig.client.closers) == 1
    rig.client.close()
    rig.client = rig.caller = Client()
    rig.send_blob("i10", b"x10")  # gone on with by another connection
    assert "result" in rig.ask("image.begin", ref="late", manifest=manifest("late", b"y"))
    rig.commit("i0")
    assert rig.word() == (rpc.REFUSED, "no_import")
    assert "result" in rig.commit("i10")


def test_a_blob_on_its_way_keeps_the_place_of_an_import_whose_connection_closed(rig: Rig) -> None:
    for n in range(im.MAX_UPLOADS):
        rig.ask("image.begin", ref=f"i{n}", manifest=manifest(f"i{n}", b"x%d" % n))
        if n == 0:
            rig.fds.append(7)
            rig.blobs.contents[7] = b"x0"
            message = {"ref": "i0", "digest": sha(b"x0"), "size_bytes": 2}
            rig.send({"jsonrpc": "2.0", "id": 1, "method": "image.blob", "params": message})
    rig.client.close()
    rig.client = rig.caller = Client()
    assert "result" in rig.ask("image.begin", ref="late", manifest=manifest("late", b"y"))
    rig.blobs.finish()
    assert "result" in rig.commit("i0")


def test_an_import_that_nobody_goes_on_with_ends_and_its_layers_are_garbage(rig: Rig) -> None:
    rig.ask("image.begin", ref="web", manifest=manifest("web", b"base", b"top"))
    rig.send_blob("web", b"base")
    rig.reactor.advance(im.UPLOAD_IDLE_NS - 1)
    rig.store.end_idle()
    assert rig.store.referenced() == {hashlib.sha256(d).digest() for d in (b"base", b"top")}
    rig.reactor.advance(1)
    rig.store.end_idle()
    assert rig.store.referenced() == set()
    rig.commit("web")
    assert rig.word() == (rpc.REFUSED, "no_import")


def test_blobs_of_an_import_that_a_crash_cut_off_are_referenced_by_nobody(rig: Rig) -> None:
    rig.load("web", b"base")
    rig.ask("image.begin", ref="big", manifest=manifest("big", b"base", b"half"))
    rig.send_blob("big", b"half")
    assert rig.store.referenced() == {hashlib.sha256(d).digest() for d in (b"base", b"half")}
    rig.restart()
    assert rig.store.referenced() == {hashlib.sha256(b"base").digest()}


def test_imports_and_ingests_have_a_bound_and_idle_imports_make_room(rig: Rig) -> None:
    for n in range(im.MAX_UPLOADS):
        rig.ask("image.begin", ref=f"i{n}", manifest=manifest(f"i{n}", b"x%d" % n))
    late = {"ref": "late", "manifest": manifest("late", b"y")}
    rig.ask("image.begin", **late)
    assert rig.word() == (rpc.BUSY, "too_many_imports")
    for n in range(im.MAX_INGESTS + 1):
        rig.fds.append(n)
        rig.blobs.contents[n] = b"x%d" % n
        message = {"ref": f"i{n}", "digest": sha(b"x%d" % n), "size_bytes": 2}
        rig.send({"jsonrpc": "2.0", "id": 1, "method": "image.blob", "params": message})
    assert rig.word() == (rpc.BUSY, "too_many_ingests")
    rig.reactor.advance(im.UPLOAD_IDLE_NS)
    assert "result" in rig.ask("image.begin", **late)
    rig.commit("i10")  # the first by name of the oldest that had nothing on their way
    assert rig.word() == (rpc.REFUSED, "no_import")


def test_a_blob_that_lands_after_its_import_changed_is_not_kept(rig: Rig) -> None:
    rig.ask("image.begin", ref="web", manifest=manifest("web", b"old"))
    rig.fds.append(7)
    rig.blobs.contents[7] = b"old"
    message = {"ref": "web", "digest": sha(b"old"), "size_bytes": 3}
    rig.send({"jsonrpc": "2.0", "id": 1, "method": "image.blob", "params": message})
    rig.ask("image.begin", ref="web", manifest=manifest("web", b"new"))
    rig.blobs.finish()
    assert rig.blobs.held == {}


def test_references_get_the_tag_that_is_meant() -> None:
    assert [im.normal_ref(r) for r in ("a", "a:1", "h:5000/a", "h:5000/a:2", "a@sha256:00")] == [
        "a:latest",
        "a:1",
        "h:5000/a:latest",
        "h:5000/a:2",
        "a@sha256:00",
    ]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["begin", "blobs", "commit", "remove", "restart"]),
            st.sampled_from(["a", "b"]),
            st.sampled_from([(b"1",), (b"1", b"2"), (b"3",)]),
        ),
        max_size=12,
    )
)
def test_an_image_that_is_known_has_all_its_blobs_whatever_happened(
    steps: list[tuple[str, str, tuple[bytes, ...]]],
) -> None:
    rig = Rig()
    for action, ref, layers in steps:
        rig.fds.clear()
        if action == "remove":
            message = {"jsonrpc": "2.0", "id": 1, "method": "image.remove", "params": {"ref": ref}}
            rig.send(message)
            if rig.disk.waiting:
                rig.disk.answer()
        elif action == "begin":
            rig.ask("image.begin", ref=ref, manifest=manifest(ref, *layers))
        elif action == "blobs":
            for layer in layers:
                rig.send_blob(ref, layer)
        elif action == "commit":
            rig.commit(ref)
        else:
            rig.restart()
        for image in rig.store.images():
            assert all(rig.blobs.has(one.digest) == one.size_bytes for one in image.layers)
    assert len(rig.journal.items(Kind.IMAGE)) <= 2


@pytest.mark.parametrize("error", [VolumeError("volume v: no manifest"), Unavailable("EIO")])
def test_an_image_is_removed_also_when_no_volume_says_what_it_needs(
    rig: Rig, error: Exception
) -> None:
    rig.ask("image.begin", ref="web", manifest=manifest("web", b"base"))
    rig.send_blob("web", b"base")
    rig.commit("web")
    rig.unreadable = error
    rig.ask("image.remove", ref="web")
    rig.disk.answer()
    assert rig.answers[-1]["result"] == {"ref": "web:latest"}
    assert rig.store.drop_failures == 1
    assert rig.left == [1]
    assert rig.blobs.has(bytes.fromhex(sha(b"base"))) == 4
