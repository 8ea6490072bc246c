"""`hal.ports.BlobStore`: what is in the store is whole and was checked."""

import hashlib

import pytest

from hal.errors import HalError, Refused, StoreFull, Unavailable
from tests.contract.results import Result, need, soon
from tests.contract.rigs import BlobsRig, World

PORT = "blobs"
CHUNK = 65_536
BODY = bytes(range(256)) * 1024 + b"tail"  # 262,148 bytes: not a multiple of the chunk


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def fill(rig: BlobsRig, digest: bytes, data: bytes) -> None:
    rig.blobs.begin(digest, len(data))
    for offset in range(0, len(data), CHUNK):
        rig.blobs.write_chunk(digest, offset, data[offset : offset + CHUNK])


def finish(rig: BlobsRig, world: World, digest: bytes) -> None:
    result: Result[None] = Result()
    rig.blobs.submit_finish(digest, soon(world), result)
    result.wait(world)


def finish_error(rig: BlobsRig, world: World, digest: bytes) -> HalError:
    result: Result[None] = Result()
    rig.blobs.submit_finish(digest, soon(world), result)
    return result.error(world)


def test_a_small_object_is_stored_under_its_sha256(rig: BlobsRig) -> None:
    digest = rig.blobs.put(b"hello")
    assert digest == sha(b"hello")
    assert rig.blobs.has(digest) == 5
    assert rig.blobs.read(digest, 0, 100) == b"hello"
    assert rig.blobs.put(b"hello") == digest
    assert list(rig.blobs.digests()) == [digest]


def test_an_empty_object_is_an_object(rig: BlobsRig, world: World) -> None:
    digest = rig.blobs.put(b"")
    assert rig.blobs.has(digest) == 0
    assert rig.blobs.read(digest, 0, 10) == b""
    other: Result[None] = Result()
    rig.blobs.drop(digest)
    rig.blobs.begin(digest, 0)
    rig.blobs.submit_finish(digest, soon(world), other)
    other.wait(world)
    assert rig.blobs.has(digest) == 0


def test_a_put_beyond_1_mib_is_refused(rig: BlobsRig) -> None:
    assert rig.blobs.put(bytes(1 << 20)) == sha(bytes(1 << 20))
    with pytest.raises(Refused):
        rig.blobs.put(bytes((1 << 20) + 1))


def test_an_object_that_came_in_chunks_is_admitted_after_its_hash(
    rig: BlobsRig, world: World
) -> None:
    digest = sha(BODY)
    fill(rig, digest, BODY)
    assert rig.blobs.has(digest) is None, "not in the store before it was checked"
    finish(rig, world, digest)
    assert rig.blobs.has(digest) == len(BODY)
    assert rig.blobs.read(digest, 0, len(BODY)) == BODY
    assert rig.blobs.read(digest, 100, 50) == BODY[100:150]
    assert rig.blobs.read(digest, len(BODY), 50) == b""


def test_chunks_may_come_in_any_order_and_twice(rig: BlobsRig, world: World) -> None:
    digest = sha(BODY)
    rig.blobs.begin(digest, len(BODY))
    offsets = list(range(0, len(BODY), CHUNK))
    for offset in [*reversed(offsets), *offsets]:
        rig.blobs.write_chunk(digest, offset, BODY[offset : offset + CHUNK])
    finish(rig, world, digest)
    assert rig.blobs.read(digest, 0, len(BODY)) == BODY


def test_a_wrong_digest_is_refused_and_dropped(rig: BlobsRig, world: World) -> None:
    digest = sha(BODY)
    fill(rig, digest, BODY[:-1] + b"X")
    assert isinstance(finish_error(rig, world, digest), Refused)
    assert rig.blobs.has(digest) is None
    assert list(rig.blobs.digests()) == []
    fill(rig, digest, BODY)  # and it can come again, as a new one
    finish(rig, world, digest)
    assert rig.blobs.has(digest) == len(BODY)


def test_a_missing_chunk_is_a_wrong_digest(rig: BlobsRig, world: World) -> None:
    digest = sha(BODY)
    rig.blobs.begin(digest, len(BODY))
    rig.blobs.write_chunk(digest, 0, BODY[:CHUNK])
    assert isinstance(finish_error(rig, world, digest), Refused)


def test_a_chunk_out_of_bounds_is_refused_and_changes_nothing(rig: BlobsRig, world: World) -> None:
    digest = sha(BODY)
    fill(rig, digest, BODY)
    for offset, data in ((len(BODY) - 1, b"xx"), (-1, b"x"), (len(BODY), b"x"), (1 << 62, b"x")):
        with pytest.raises(Refused):
            rig.blobs.write_chunk(digest, offset, data)
    finish(rig, world, digest)
    assert rig.blobs.read(digest, 0, len(BODY)) == BODY


def test_a_chunk_or_a_finish_before_the_begin_is_refused(rig: BlobsRig, world: World) -> None:
    with pytest.raises(Refused):
        rig.blobs.write_chunk(sha(b"x"), 0, b"x")
    assert isinstance(finish_error(rig, world, sha(b"x")), Refused)


def test_a_second_begin_keeps_what_came(rig: BlobsRig, world: World) -> None:
    digest = sha(BODY)
    rig.blobs.begin(digest, len(BODY))
    rig.blobs.write_chunk(digest, 0, BODY[:CHUNK])
    rig.blobs.begin(digest, len(BODY))
    for offset in range(CHUNK, len(BODY), CHUNK):
        rig.blobs.write_chunk(digest, offset, BODY[offset : offset + CHUNK])
    finish(rig, world, digest)
    assert rig.blobs.has(digest) == len(BODY)


def test_a_begin_of_what_is_there_already_changes_nothing(rig: BlobsRig, world: World) -> None:
    digest = rig.blobs.put(b"hello")
    rig.blobs.begin(digest, 5)
    finish(rig, world, digest)
    assert rig.blobs.read(digest, 0, 5) == b"hello"


def test_a_partial_object_outlives_the_program(rig: BlobsRig, world: World) -> None:
    reopen = need(rig.reopen, "open the store again")
    digest = sha(BODY)
    rig.blobs.begin(digest, len(BODY))
    rig.blobs.write_chunk(digest, 0, BODY[:CHUNK])
    rig.blobs = reopen()
    rig.blobs.begin(digest, len(BODY))
    for offset in range(CHUNK, len(BODY), CHUNK):
        rig.blobs.write_chunk(digest, offset, BODY[offset : offset + CHUNK])
    finish(rig, world, digest)
    assert rig.blobs.read(digest, 0, len(BODY)) == BODY


def test_what_is_whole_outlives_the_program(rig: BlobsRig) -> None:
    digest = rig.blobs.put(b"kept")
    blobs = need(rig.reopen, "open the store again")()
    assert blobs.read(digest, 0, 4) == b"kept"
    assert list(blobs.digests()) == [digest]


def test_no_room_is_store_full_and_leaves_nothing(rig: BlobsRig) -> None:
    size = need(rig.full, "fill the store")()
    with pytest.raises(StoreFull):
        rig.blobs.begin(sha(b"big"), size)
    assert rig.blobs.has(sha(b"big")) is None
    assert rig.blobs.put(b"small") == sha(b"small")


def test_reading_an_unknown_object_is_unavailable(rig: BlobsRig) -> None:
    assert rig.blobs.has(sha(b"?")) is None
    with pytest.raises(Unavailable):
        rig.blobs.read(sha(b"?"), 0, 1)


def test_a_dropped_object_is_gone_whole_or_partial(rig: BlobsRig, world: World) -> None:
    digest = rig.blobs.put(b"hello")
    rig.blobs.drop(digest)
    rig.blobs.drop(digest)
    assert rig.blobs.has(digest) is None
    fill(rig, sha(BODY), BODY)
    rig.blobs.drop(sha(BODY))
    assert isinstance(finish_error(rig, world, sha(BODY)), Refused)
    assert list(rig.blobs.digests()) == []


def test_objects_can_be_listed_by_the_first_byte_of_their_digest(rig: BlobsRig) -> None:
    digests = sorted(rig.blobs.put(b"%d" % n) for n in range(40))
    assert list(rig.blobs.digests()) == digests
    parts = [list(rig.blobs.digests(first)) for first in range(256)]
    assert [digest for part in parts for digest in part] == digests
    assert all(digest[0] == first for first in range(256) for digest in parts[first])


def test_an_object_is_taken_from_a_descriptor(rig: BlobsRig, world: World) -> None:
    result: Result[None] = Result()
    rig.blobs.submit_ingest(rig.open_fd(BODY), len(BODY), sha(BODY), soon(world), result)
    result.wait(world)
    assert rig.blobs.read(sha(BODY), 0, len(BODY)) == BODY


@pytest.mark.parametrize("change", ["digest", "short"])
def test_a_descriptor_with_other_bytes_is_refused(rig: BlobsRig, world: World, change: str) -> None:
    digest = sha(BODY) if change == "short" else sha(b"something else")
    sent = BODY[:-10] if change == "short" else BODY
    result: Result[None] = Result()
    rig.blobs.submit_ingest(rig.open_fd(sent), len(BODY), digest, soon(world), result)
    assert isinstance(result.error(world), Refused)
    assert rig.blobs.has(digest) is None


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_digest_of_another_length_is_refused(rig: BlobsRig, size: int) -> None:
    with pytest.raises(Refused):
        rig.blobs.begin(bytes(size), 10)


def test_completions_come_through_the_mailbox(rig: BlobsRig, world: World) -> None:
    fill(rig, sha(BODY), BODY)
    result: Result[None] = Result()
    rig.blobs.submit_finish(sha(BODY), soon(world), result)
    assert not result.came
    result.wait(world)
