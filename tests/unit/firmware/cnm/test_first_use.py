"""What a volume begins with, whose it is, and that it stays so. Ref: protocol/SPEC.md, 13."""

import hashlib
import io
import json
import tarfile
from collections.abc import Sequence

import pytest

from firmware.cnm.first_use import user_by_number
from firmware.loop import MS
from hal.errors import Refused
from hal.mock.kernel import VirtualKernel
from hal.mock.tree import Dir, File
from protocol.apf import FlushState, InstanceState, VolumeFlushRequest, VolumeStateRequest
from tests.unit.firmware.cnm.card_side import CardSide
from tests.unit.firmware.cnm.mock_cnm import MockCnm, mock_card

NAME = "shop/web/0"
EMPTY = {"schema": "apf-volume/1", "entries": []}
TOP = {"path": ".", "kind": "dir", "mode": 0o700, "size_bytes": 0, "digest": "", "target": "",
       "uid": 5, "gid": 6}  # fmt: skip


@pytest.fixture
def card() -> CardSide:
    made = mock_card(MockCnm(VirtualKernel(7)))
    made.cnm.slot.switch_on()
    made.adopt()
    return made


def image(card: CardSide, *members: tuple[str, int, int, int, bytes | None]) -> dict[str, object]:
    """(name, uid, gid, mode, content or None for a directory) as the changes of a spec."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, uid, gid, mode, content in members:
            info = tarfile.TarInfo(name)
            info.uid, info.gid, info.mode = uid, gid, mode
            info.type = tarfile.DIRTYPE if content is None else tarfile.REGTYPE
            info.size = len(content or b"")
            tar.addfile(info, io.BytesIO(content or b""))
    return {"runtime": "oci", "layers": [card.put(out.getvalue()).hex()]}


def volume(
    card: CardSide, document: dict[str, object] | None, target: str = "/data", name: str = "data"
) -> dict[str, object]:
    manifest = None if document is None else card.put(json.dumps(document).encode()).hex()
    return {"name": name, "target": target, "read_only": False, "manifest": manifest}


def owners(card: CardSide, name: str = "data") -> dict[str, tuple[int, int, int]]:
    tree = card.cnm.slot.disk.tree
    top = tree.find(f"state/volumes/{name}")
    assert isinstance(top, Dir)
    every = [(".", top), *tree.walk(f"state/volumes/{name}")]
    return {path: (entry.uid, entry.gid, entry.mode) for path, entry in every}


def flush(card: CardSide, g: int = 1) -> bytes:
    """Bring the volume home; its manifest's digest, fetched."""
    ask = VolumeFlushRequest(ctx=card.ctx, instance=NAME, generation=g, volume="data")
    state_of = VolumeStateRequest(volume="data", flush_id=card.ask(ask).flush_id)
    while (state := card.ask(state_of)).state == FlushState.SCANNING:
        card.run(10)
    assert state.state == FlushState.READY
    pull(card, state.manifest_digest)
    return state.manifest_digest


def pull(card: CardSide, digest: bytes) -> None:
    assert card.call(lambda done: card.transfers.pull(digest, done)) is None


def entries_of(card: CardSide, manifest: bytes) -> Sequence[dict[str, object]]:
    return json.loads(card.blobs.read(manifest, 0, 1 << 20))["entries"]


WITH_DATA = (
    ("data", 70, 71, 0o2750, None),
    ("data/conf", 70, 0, 0o640, b"setting"),
    ("data/sub", 72, 73, 0o700, None),
    ("other", 1, 1, 0o600, b"not below the target"),
)


@pytest.mark.parametrize("document", [EMPTY, None])
@pytest.mark.parametrize("target", ["/data", "/data/", "//data/."])
@pytest.mark.parametrize("user", ["1000:1000", ""])
def test_a_new_volume_begins_with_what_the_image_has_there(
    card, document, target: str, user: str
) -> None:
    mount = volume(card, document, target)
    card.run_instance(user=user, volumes=[mount], **image(card, *WITH_DATA))
    assert owners(card) == {
        ".": (70, 71, 0o2750),
        "conf": (70, 0, 0o640),
        "sub": (72, 73, 0o700),
    }
    assert card.cnm.slot.disk.tree.find("state/volumes/data/conf").data == b"setting"


@pytest.mark.parametrize("document", [EMPTY, None])
@pytest.mark.parametrize(
    ("user", "uid", "gid"), [("", 0, 0), ("1000", 1000, 0), ("1000:1001", 1000, 1001)]
)
def test_where_the_image_has_no_such_directory_the_volume_is_the_users(
    card, document, user: str, uid: int, gid: int
) -> None:
    mount = volume(card, document, "/srv/data")
    card.run_instance(user=user, volumes=[mount], **image(card, *WITH_DATA))
    assert owners(card) == {".": (uid, gid, 0o755)}


def test_a_process_gets_a_volume_of_its_own_and_nothing_of_the_cnms_root(card) -> None:
    card.cnm.slot.disk.tree.put("data/secret", File(b"of the CNM"))
    card.run_instance(user="1000:1001", volumes=[volume(card, EMPTY)])
    assert owners(card) == {".": (1000, 1001, 0o755)}


def test_a_volume_that_was_flushed_is_taken_as_it_is_even_when_it_is_empty(card) -> None:
    document = {**EMPTY, "entries": [TOP]}
    card.run_instance(user="9", volumes=[volume(card, document)], **image(card, *WITH_DATA))
    assert owners(card) == {".": (5, 6, 0o700)}


def test_a_manifest_from_before_owners_makes_a_volume_of_root(card) -> None:
    digest = card.put(b"1234").hex()
    row = {"path": "f", "kind": "file", "mode": 0o600, "size_bytes": 4, "digest": digest}
    document = {**EMPTY, "entries": [row]}
    card.run_instance(user="9", volumes=[volume(card, document)], **image(card, *WITH_DATA))
    assert owners(card) == {".": (0, 0, 0o755), "f": (0, 0, 0o600)}


def test_a_user_that_is_not_known_fails_the_instance_with_the_reason(card) -> None:
    card.deploy(card.spec(user="web", volumes=[volume(card, EMPTY)]))
    text = card.wait_state(InstanceState.FAILED).text
    assert "volume data: user 'web'" in text


def test_owners_travel_with_the_manifest_to_the_next_staging(card) -> None:
    files = image(card, *WITH_DATA)
    card.run_instance(user="1000:1001", volumes=[volume(card, EMPTY)], **files)
    tree = card.cnm.slot.disk.tree
    tree.put("state/volumes/data/mine", File(b"written by it", 0o600, 1000, 1001))
    before = owners(card)
    manifest = flush(card)
    rows = {row["path"]: row for row in entries_of(card, manifest)}
    assert {path: (row["uid"], row["gid"], row["mode"]) for path, row in rows.items()} == before
    for path in ("mine", "conf"):
        pull(card, bytes.fromhex(rows[path]["digest"]))
    card.cnm.slot.reboot()
    card.adopt()
    tree.remove("state/volumes")
    again = {**volume(card, None), "manifest": manifest.hex()}
    card.run_instance(g=2, user="1000:1001", volumes=[again], **files)
    assert owners(card) == before
    assert tree.find("state/volumes/data/mine").data == b"written by it"


def test_two_that_begin_a_volume_at_once_share_one_beginning(card) -> None:
    disk = card.cnm.slot.disk
    files = image(card, *WITH_DATA)
    names = [f"shop/web/{index}" for index in range(2)]
    specs = {
        name: card.spec(name, user=f"{index + 1}", volumes=[volume(card, EMPTY)], **files)
        for index, name in enumerate(names)
    }
    for spec in specs.values():
        card.push(spec)
    disk.sync_ns = 300 * MS  # a slow disk
    for name, spec in specs.items():
        card.deploy(spec, name)
    for name in names:
        card.wait_state(InstanceState.PREPARED, name)
    assert owners(card)["."] == (70, 71, 0o2750)


def test_what_one_staging_has_filled_another_one_leaves_as_it_is(card) -> None:
    disk = card.cnm.slot.disk
    shared, slow = volume(card, EMPTY), volume(card, EMPTY, "/slow", "slow")
    files = image(card, *WITH_DATA)
    first = card.spec(NAME, volumes=[shared, slow], **files)
    second = card.spec("shop/web/1", volumes=[shared], **files)
    for spec in (first, second):
        card.push(spec)
    card.deploy(first)
    card.until(lambda: disk.tree.find("state/volumes/data") is not None)
    disk.sync_ns = 2_000 * MS  # the first one is still at its second volume
    assert disk.tree.find("state/volumes/slow") is None
    disk.tree.put("state/volumes/data/live", File(b"live"))
    card.deploy(second, "shop/web/1")
    for name in (NAME, "shop/web/1"):
        card.wait_state(InstanceState.PREPARED, name)
    assert disk.tree.find("state/volumes/data/live") is not None


def test_users_by_number_are_numbers() -> None:
    assert user_by_number("/", "7") == (7, 0)
    assert user_by_number("/", "7:8") == (7, 8)
    for text in ("web", "7:web", "web:7", ":", "-1"):
        with pytest.raises(Refused, match="by number only"):
            user_by_number("/", text)


def test_what_is_copied_from_an_image_may_not_make_room_before_it_is_there(card) -> None:
    card.deploy(card.spec(volumes=[volume(card, EMPTY)], **image(card, *WITH_DATA)))
    card.wait_state(InstanceState.PREPARED)
    assert hashlib.sha256(b"setting").digest() in card.cnm.agent._blobs._young
