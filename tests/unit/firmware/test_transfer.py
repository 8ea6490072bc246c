"""Pushes, pulls and log bytes between a card and a CNM in one process."""

import pytest

from firmware.transfer import LogBytes, TransferError
from firmware.transfer_pull import QUIET_NS
from firmware.transfer_push import STALL_NS
from firmware.transfer_queue import ACTIVE_MAX, QUEUE_MAX
from firmware.transfer_serve import EVICT_NS, IDLE_NS, PARTIALS_MAX, SWEEP_NS
from hal.errors import StoreFull
from protocol.apf import (
    ChunkMapRequest,
    HaveReply,
    HaveRequest,
    LogReadReply,
    LogReadRequest,
    OfferReply,
    OfferRequest,
    OfferState,
    PullRequest,
    Refusal,
    RefusalReason,
    VerifyRequest,
)
from protocol.window import KIND_BLOB, KIND_LOG
from tests.unit.firmware.transfer_fakes import CTX, MS, TransferRig

SIZES = [0, 1, 255, 256, 257, 5_000, 40_000]


@pytest.fixture
def rig() -> TransferRig:
    return TransferRig()


def push(rig: TransferRig, digest: bytes, **options: object) -> list[TransferError | None]:
    results: list[TransferError | None] = []
    rig.sender.push(digest, results.append, **options)  # type: ignore[arg-type]
    return results


def pull(rig: TransferRig, digest: bytes, **options: object) -> list[TransferError | None]:
    results: list[TransferError | None] = []
    rig.sender.pull(digest, results.append, **options)  # type: ignore[arg-type]
    return results


@pytest.mark.parametrize("size", SIZES)
def test_a_pushed_blob_is_whole_at_the_far_end(rig: TransferRig, size: int) -> None:
    _, data = rig.blob(size)
    digest = rig.card_blobs.put(data)
    results = push(rig, digest)
    rig.reactor.run_until(lambda: bool(results))
    assert results == [None]
    assert rig.cnm_blobs.whole[digest] == data


@pytest.mark.parametrize("size", SIZES)
def test_a_pulled_blob_is_whole_here(rig: TransferRig, size: int) -> None:
    _, data = rig.blob(size)
    digest = rig.cnm_blobs.put(data)
    results = pull(rig, digest)
    rig.reactor.run_until(lambda: bool(results))
    assert results == [None]
    assert rig.card_blobs.whole[digest] == data


def test_progress_grows_to_the_size(rig: TransferRig) -> None:
    digest = rig.card_blobs.put(rig.blob(3_000)[1])
    back = rig.cnm_blobs.put(rig.blob(2_000)[1])
    sent: list[tuple[int, int]] = []
    came: list[tuple[int, int]] = []
    one = push(rig, digest, progress=lambda *at: sent.append(at))
    two = pull(rig, back, progress=lambda *at: came.append(at))
    rig.reactor.run_until(lambda: bool(one and two))
    for seen, size in ((sent, 3_000), (came, 2_000)):
        assert seen == sorted(seen)
        assert seen[-1] == (size, size)


def test_a_blob_that_the_far_end_has_costs_one_request_and_no_chunk(rig: TransferRig) -> None:
    digest = rig.card_blobs.put(b"there already")
    rig.cnm_blobs.put(b"there already")
    results = push(rig, digest)
    rig.reactor.run_until(lambda: bool(results))
    assert results == [None]
    assert [type(body) for body in rig.link.requests] == [OfferRequest]
    assert rig.card_channel.tx_put == 0


def test_the_same_digest_twice_shares_one_transfer(rig: TransferRig) -> None:
    digest = rig.card_blobs.put(rig.blob(2_560)[1])
    first, second = push(rig, digest), push(rig, digest)
    rig.reactor.run_until(lambda: bool(first and second))
    assert first == second == [None]
    assert rig.card_channel.tx_put == 10


def test_no_more_than_four_run_at_once_and_a_full_queue_says_so(rig: TransferRig) -> None:
    digests = [rig.card_blobs.put(rig.blob(600)[1]) for _ in range(QUEUE_MAX + 1)]
    results = [push(rig, digest) for digest in digests]
    rig.reactor.run_until(lambda: bool(results[-1]))
    error = results[-1][0]
    assert isinstance(error, TransferError)
    assert error.code == "queue_full"
    running = [0]

    def look() -> bool:
        running.append(len(rig.sender._pusher._active))
        return all(results)

    rig.reactor.run_until(look)
    assert [result for result in results[:-1] if result != [None]] == []
    assert max(running) == ACTIVE_MAX


def test_a_blob_that_is_not_here_is_an_error_at_once(rig: TransferRig) -> None:
    results = push(rig, b"x" * 32)
    rig.reactor.settle()
    assert isinstance(results[0], TransferError)
    assert results[0].code == "no_blob"


def test_a_pull_of_what_the_cnm_has_not_is_refused_by_name(rig: TransferRig) -> None:
    results = pull(rig, b"x" * 32)
    rig.reactor.run_until(lambda: bool(results))
    error = results[0]
    assert isinstance(error, TransferError)
    assert error.refusal is not None
    assert error.refusal.reason == RefusalReason.MISSING_BLOB


def test_a_foreign_card_is_refused_and_nothing_is_sent(rig: TransferRig) -> None:
    rig.refusal = Refusal(reason=RefusalReason.FOREIGN_CARD, text="bound to another")
    digest = rig.card_blobs.put(b"data")
    there = rig.cnm_blobs.put(b"other")
    results, pulled = push(rig, digest), pull(rig, there)
    rig.reactor.run_until(lambda: bool(results and pulled))
    for error in (results[0], pulled[0]):
        assert isinstance(error, TransferError)
        assert error.code == "refused"
    assert rig.cnm_channel.tx_put == rig.card_channel.tx_put == 0


def test_a_full_far_store_is_no_space_and_a_full_disk_in_the_middle_too(rig: TransferRig) -> None:
    rig.cnm_blobs.free_bytes = 100
    digest = rig.card_blobs.put(rig.blob(1_000)[1])
    results = push(rig, digest)
    rig.reactor.run_until(lambda: bool(results))
    assert isinstance(results[0], TransferError)
    assert results[0].code == "no_space"
    rig.cnm_blobs.free_bytes = 1 << 20
    rig.cnm_blobs.fail_writes = StoreFull("disk")
    results = push(rig, digest)
    rig.reactor.run_until(lambda: bool(results))
    assert isinstance(results[0], TransferError)
    assert results[0].code == "no_space"
    rig.cnm_blobs.fail_writes = None  # room was made: the next push goes on
    results = push(rig, digest)
    rig.reactor.run_until(lambda: bool(results))
    assert results == [None]


def test_lost_requests_and_a_lossy_ring_cost_time_only(rig: TransferRig) -> None:
    rig.link.lose = lambda: rig.random.random() < 0.3
    send = rig.card_channel._tx.put

    def put(kind: int, transfer_id: int, chunk: int, data: bytes) -> None:
        send(kind, transfer_id, chunk, data)
        if rig.random.random() < 0.2:  # one byte of the slot turns over
            index = (rig.card_channel._tx._head - 1) % 2**32
            rig.windows.halves[0][rig.card_channel._geometry.slot_offset(index)] ^= 1

    rig.card_channel._tx.put = put  # type: ignore[method-assign]
    blobs = [rig.blob(7_000)[1] for _ in range(5)]
    results = [push(rig, rig.card_blobs.put(data)) for data in blobs]
    rig.reactor.run_until(lambda: all(results))
    assert results == [[None]] * 5
    assert sorted(rig.cnm_blobs.whole.values()) == sorted(blobs)
    assert rig.cnm_channel.counters["rx_data_crc"] > 0


def test_only_missing_chunks_are_sent_again(rig: TransferRig) -> None:
    _, data = rig.blob(256 * 40)
    digest = rig.card_blobs.put(data)
    deliver, lost = rig.cnm_channel.on_chunk, []

    def leaky(kind: int, transfer_id: int, chunk: int, part: bytes) -> None:
        if chunk in (3, 17, 18, 39) and chunk not in lost:
            lost.append(chunk)
        else:
            deliver(kind, transfer_id, chunk, part)

    rig.cnm_channel.on_chunk = leaky
    results = push(rig, digest)
    rig.reactor.run_until(lambda: bool(results))
    assert results == [None]
    assert rig.card_channel.tx_put == 44
    assert any(isinstance(body, ChunkMapRequest) for body in rig.link.requests)


def test_a_push_resumes_where_it_was_after_the_card_restarts(rig: TransferRig) -> None:
    _, data = rig.blob(256 * 200)
    digest = rig.card_blobs.put(data)
    push(rig, digest)
    rig.reactor.run_until(lambda: rig.cnm_blobs.written > 256 * 20)
    rig.sender._pusher.close("killed")
    rig.card_channel._stop()
    before = rig.cnm_blobs.written
    rig.start_card()
    results = push(rig, digest)
    rig.reactor.run_until(lambda: bool(results))
    assert results == [None]
    assert rig.cnm_blobs.whole[digest] == data
    assert rig.cnm_blobs.written == len(data)
    assert before > 0


def test_a_push_survives_the_restart_of_the_agent(rig: TransferRig) -> None:
    _, data = rig.blob(256 * 100)
    digest = rig.card_blobs.put(data)
    results = push(rig, digest)
    rig.reactor.run_until(lambda: rig.cnm_blobs.written > 256 * 10)
    rig.kill_cnm()
    rig.reactor.advance(300 * MS)
    before = rig.card_channel.tx_put
    rig.start_cnm(keep_store=False)
    rig.reactor.run_until(lambda: bool(results))
    assert results == [None]
    assert rig.cnm_blobs.whole[digest] == data
    assert rig.card_channel.tx_put - before <= 100 + 1  # begun anew at once: one was held


def test_a_pull_survives_the_restart_of_the_agent(rig: TransferRig) -> None:
    _, data = rig.blob(256 * 100)
    digest = rig.cnm_blobs.put(data)
    results = pull(rig, digest)
    rig.reactor.run_until(lambda: rig.card_blobs.written > 256 * 10)
    rig.kill_cnm()
    rig.reactor.advance(300 * MS)
    rig.start_cnm()
    rig.reactor.run_until(lambda: bool(results))
    assert results == [None]
    assert rig.card_blobs.whole[digest] == data


def test_a_dead_peer_ends_a_push_as_stalled(rig: TransferRig) -> None:
    digest = rig.card_blobs.put(rig.blob(256 * 100)[1])
    results = push(rig, digest)
    rig.reactor.run_until(lambda: rig.cnm_blobs.written > 0)
    rig.kill_cnm()
    rig.link.lose = lambda: True
    rig.reactor.advance(2 * STALL_NS)
    assert isinstance(results[0], TransferError)
    assert results[0].code == "stalled"


@pytest.mark.parametrize("start", [push, pull])
def test_a_deadline_ends_a_transfer_even_while_it_waits(rig: TransferRig, start: object) -> None:
    rig.link.lose = lambda: True
    digests = [rig.card_blobs.put(bytes([n]) * 9) for n in range(6)]
    if start is pull:
        rig.card_blobs.whole.clear()
    results = [start(rig, digest, deadline_ns=900 * MS) for digest in digests]  # type: ignore[operator]
    rig.reactor.advance(1_000 * MS)
    assert [result[0].code for result in results] == ["deadline"] * 6


def test_close_ends_everything_that_runs_or_waits(rig: TransferRig) -> None:
    results = [push(rig, rig.card_blobs.put(rig.blob(90_000)[1])) for _ in range(6)]
    results += [pull(rig, rig.cnm_blobs.put(rig.blob(90_000)[1])) for _ in range(6)]
    rig.reactor.run_until(lambda: rig.card_blobs.written > 0)
    logs: list[LogBytes | TransferError] = []
    rig.link.serve(LogReadRequest, lambda body: Refusal(reason=RefusalReason.BUSY))
    rig.sender.read_log("w/c/0", 0, 100, logs.append)
    rig.sender.close("the CNM is fenced")
    assert [result[0].code for result in results] == ["closed"] * 12
    assert isinstance(logs[0], TransferError)
    rig.reactor.advance(1_000 * MS)
    assert all(len(result) == 1 for result in results)
    assert not rig.card_blobs.partial


def test_a_far_end_that_lies_about_what_it_misses_is_refused(rig: TransferRig) -> None:
    rig.link.serve(
        OfferRequest,
        lambda body: OfferReply(state=OfferState.NEED, missing_chunks=2**32 - 1, first_missing=9),
    )
    results = push(rig, rig.card_blobs.put(b"data"))
    rig.reactor.run_until(lambda: bool(results))
    assert isinstance(results[0], TransferError)
    assert results[0].code == "refused"


def test_a_far_end_that_never_gets_the_chunks_is_given_up(rig: TransferRig) -> None:
    rig.cnm_channel.on_chunk = lambda *chunk: None
    results = push(rig, rig.card_blobs.put(rig.blob(3_000)[1]))
    rig.reactor.run_until(lambda: bool(results))
    assert isinstance(results[0], TransferError)
    assert results[0].code == "stalled"


def test_content_that_does_not_hash_to_its_name_is_never_admitted(rig: TransferRig) -> None:
    rig.card_blobs.whole[b"n" * 32] = rig.blob(2_000)[1]  # a store gone bad
    rig.cnm_blobs.whole[b"m" * 32] = rig.blob(2_000)[1]
    pushed, pulled = push(rig, b"n" * 32), pull(rig, b"m" * 32)
    rig.reactor.run_until(lambda: bool(pushed and pulled))
    for error in (pushed[0], pulled[0]):
        assert isinstance(error, TransferError)
        assert error.code == "bad_digest"
    assert b"n" * 32 not in rig.cnm_blobs.whole
    assert b"m" * 32 not in rig.card_blobs.whole
    assert not rig.card_blobs.partial


def test_a_blob_that_the_far_disk_spoilt_is_sent_once_more(rig: TransferRig) -> None:
    _, data = rig.blob(2_000)
    digest = rig.card_blobs.put(data)
    write, spoilt = rig.cnm_blobs.write_chunk, []

    def spoil(digest: bytes, offset: int, part: bytes) -> None:
        write(digest, offset, part if spoilt else bytes(len(part)))
        spoilt.append(offset)

    rig.cnm_blobs.write_chunk = spoil  # type: ignore[method-assign]
    results = push(rig, digest)
    rig.reactor.run_until(lambda: bool(results))
    assert results == [None]
    assert rig.cnm_blobs.whole[digest] == data
    assert rig.card_channel.tx_put == 16


def test_verify_waits_until_the_ring_was_emptied(rig: TransferRig) -> None:
    rig.link.one_way_ns = 0
    rig.reactor.settle()
    results = push(rig, rig.card_blobs.put(rig.blob(20_000)[1]))
    rig.reactor.run_until(lambda: bool(results))
    assert results == [None]
    assert rig.sender.route.counters["push_rounds"] == 0
    assert sum(isinstance(body, OfferRequest) for body in rig.link.requests) == 1


def test_chunks_that_come_before_the_answer_are_kept(rig: TransferRig) -> None:
    rig.link.one_way_ns = 50 * MS
    _, data = rig.blob(5_000)
    digest = rig.cnm_blobs.put(data)
    rig.reactor.settle()
    results = pull(rig, digest)
    rig.reactor.run_until(lambda: bool(results))
    assert rig.card_blobs.whole[digest] == data
    assert len(rig.link.requests) == 1


def test_more_early_chunks_than_may_be_kept_are_asked_for_at_once(
    rig: TransferRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("firmware.transfer_pull.EARLY_MAX_BYTES", 1_024)
    rig.link.one_way_ns = 50 * MS
    _, data = rig.blob(20_000)
    digest = rig.cnm_blobs.put(data)
    rig.reactor.settle()
    results = pull(rig, digest)
    rig.reactor.run_until(lambda: bool(results))
    assert rig.card_blobs.whole[digest] == data
    asked = [body.first_chunk for body in rig.link.requests if isinstance(body, PullRequest)]
    assert asked == [0, 4]
    assert rig.reactor.time_ns < QUIET_NS


def test_a_new_card_gets_no_chunks_of_the_pulls_of_the_old_one(rig: TransferRig) -> None:
    rig.reactor.settle()
    pull(rig, rig.cnm_blobs.put(rig.blob(256 * 400)[1]))
    rig.reactor.run_until(lambda: rig.card_blobs.written > 0)
    rig.sender._puller.close("killed")
    rig.card_channel._stop()
    rig.link.lose = lambda: True  # its Cancel does not arrive
    rig.start_card()
    rig.reactor.advance(1_000 * MS)
    assert not rig.receiver._out._serves
    assert rig.sender.route.counters["rx_unrouted"] == 0


def test_chunks_that_do_not_fit_their_object_are_dropped(rig: TransferRig) -> None:
    assert not isinstance(offer(rig, 7), Refusal)
    for chunk, length in [(4, 256), (2**32 - 1, 256), (0, 255), (3, 256), (3, 230), (0, 0)]:
        rig.route._chunk(1, 7, chunk, bytes(length))
    assert rig.route.counters["rx_bad_chunk"] == 6
    assert rig.cnm_blobs.written == 0
    rig.route._chunk(1, 7, 3, bytes(231))  # 999 = 3 x 256 + 231
    rig.route._chunk(1, 7, 3, bytes(231))
    assert rig.cnm_blobs.written == 231
    assert rig.route.counters["rx_chunk_again"] == 1


def test_a_newer_offer_of_the_same_object_takes_over_from_the_older(rig: TransferRig) -> None:
    assert not isinstance(offer(rig, 7), Refusal)
    request = OfferRequest(
        ctx=CTX, transfer_id=99, digest=bytes([7]) * 32, size_bytes=999, chunk_bytes=256
    )
    rig.route._chunk(1, 7, 0, bytes(256))
    assert rig.receiver._offer(request) == OfferReply(
        state=OfferState.PARTIAL, missing_chunks=3, first_missing=1
    )
    rig.route._chunk(1, 7, 1, bytes(256))
    assert rig.route.counters["rx_unrouted"] == 1
    assert rig.cnm_blobs.written == 256
    other = OfferRequest(
        ctx=CTX, transfer_id=99, digest=bytes([8]) * 32, size_bytes=999, chunk_bytes=256
    )
    rig.receiver._offer(other)  # the id now stands for another object
    rig.route._chunk(1, 99, 1, bytes(256))
    assert rig.receiver._partials[bytes([7]) * 32].missing == 3
    assert rig.receiver._partials[bytes([8]) * 32].missing == 3


def test_another_size_or_chunk_size_begins_the_object_anew(rig: TransferRig) -> None:
    assert not isinstance(offer(rig, 7), Refusal)
    rig.route._chunk(1, 7, 0, bytes(256))
    request = OfferRequest(
        ctx=CTX, transfer_id=7, digest=bytes([7]) * 32, size_bytes=999, chunk_bytes=128
    )
    assert rig.receiver._offer(request) == OfferReply(
        state=OfferState.NEED, missing_chunks=8, first_missing=0
    )


def test_have_answers_for_each_digest_in_its_place(rig: TransferRig) -> None:
    digest = rig.cnm_blobs.put(b"here")
    reply = rig.receiver._have(HaveRequest(digests=(b"a" * 32, digest, b"b" * 32)))
    assert reply == HaveReply(bits=b"\x02")


def offer(rig: TransferRig, number: int) -> object:
    request = OfferRequest(
        ctx=CTX, transfer_id=number, digest=bytes([number]) * 32, size_bytes=999, chunk_bytes=256
    )
    return rig.receiver._offer(request)


def test_the_table_of_partial_objects_is_bounded_and_the_idle_make_room(rig: TransferRig) -> None:
    for number in range(PARTIALS_MAX):
        assert not isinstance(offer(rig, number), Refusal)
    refused = offer(rig, PARTIALS_MAX)
    assert isinstance(refused, Refusal)
    assert refused.reason == RefusalReason.LIMIT
    rig.reactor.time_ns += EVICT_NS
    assert not isinstance(offer(rig, PARTIALS_MAX), Refusal)
    assert len(rig.cnm_blobs.partial) == PARTIALS_MAX
    rig.reactor.advance(IDLE_NS + SWEEP_NS)
    assert rig.cnm_blobs.partial == {}
    unknown = rig.receiver._verify(VerifyRequest(transfer_id=PARTIALS_MAX))
    assert isinstance(unknown, Refusal)
    assert unknown.reason == RefusalReason.BAD_STATE


def test_an_object_of_too_many_chunks_is_refused_before_room_is_made(rig: TransferRig) -> None:
    request = OfferRequest(
        ctx=CTX, transfer_id=1, digest=b"d" * 32, size_bytes=2**60, chunk_bytes=64
    )
    reply = rig.receiver._offer(request)
    assert isinstance(reply, Refusal)
    assert reply.reason == RefusalReason.TOO_LARGE
    assert rig.cnm_blobs.partial == {}


def test_pulls_in_flight_are_bounded_on_the_cnm(rig: TransferRig) -> None:
    rig.reactor.settle()
    digest = rig.cnm_blobs.put(rig.blob(100_000)[1])
    replies = [
        rig.receiver._out._pull(
            PullRequest(ctx=CTX, transfer_id=n, digest=digest, first_chunk=0, chunk_bytes=256)
        )
        for n in range(9)
    ]
    assert isinstance(replies[8], Refusal)
    assert replies[8].reason == RefusalReason.LIMIT
    assert not any(isinstance(reply, Refusal) for reply in replies[:8])


def serve_log(rig: TransferRig, log: bytes, kept_from: int = 0) -> None:
    def read(body: LogReadRequest) -> LogReadReply | Refusal:
        start = max(body.offset, kept_from)
        data = log[start : start + body.max_bytes]
        if not rig.receiver.send_bytes(body.transfer_id, KIND_LOG, data):
            return Refusal(reason=RefusalReason.BUSY)
        return LogReadReply(start=start, end=len(log), length=len(data))

    rig.link.serve(LogReadRequest, read)


@pytest.mark.parametrize(("offset", "length"), [(0, 10), (0, 5_000), (4_990, 5_000), (9_999, 7)])
def test_log_bytes_come_from_their_offset(rig: TransferRig, offset: int, length: int) -> None:
    log = rig.blob(5_000)[1]
    serve_log(rig, log)
    results: list[LogBytes | TransferError] = []
    rig.reactor.settle()
    rig.sender.read_log("w/c/0", offset, length, results.append)
    rig.reactor.run_until(lambda: bool(results))
    assert results == [LogBytes(start=offset, end=5_000, data=log[offset : offset + length])]


def test_chunks_of_nothing_are_not_kept(rig: TransferRig) -> None:
    """They would not count among the bytes that may wait, so any number of them could."""
    digest, _ = rig.blob(100)
    rig.sender.pull(digest, lambda _error: None)
    rig.sender.read_log("a/b/0", 0, 100, lambda _log: None)
    rig.reactor.settle()
    blob_id, log_id = rig.sender._next_id - 2, rig.sender._next_id - 1
    for chunk in range(50):
        rig.card_channel.on_chunk(KIND_BLOB, blob_id, chunk, b"")
        rig.card_channel.on_chunk(KIND_LOG, log_id, chunk, b"")
    [transfer] = rig.sender._puller._active.values()
    [read] = rig.sender._logs._open.values()
    assert transfer._early == []
    assert read._parts == {}
    assert rig.sender.route.counters["pull_bad_chunk"] == 50


def test_a_gap_in_a_log_shows(rig: TransferRig) -> None:
    log = rig.blob(3_000)[1]
    serve_log(rig, log, kept_from=1_000)
    results: list[LogBytes | TransferError] = []
    rig.reactor.settle()
    rig.sender.read_log("w/c/0", 0, 500, results.append)
    rig.reactor.run_until(lambda: bool(results))
    assert results == [LogBytes(start=1_000, end=3_000, data=log[1_000:1_500])]


def test_log_bytes_that_get_lost_are_an_error_and_leave_nothing_behind(rig: TransferRig) -> None:
    serve_log(rig, rig.blob(3_000)[1])
    rig.reactor.settle()
    rig.card_channel.on_chunk = lambda *chunk: None
    results: list[LogBytes | TransferError] = []
    rig.sender.read_log("w/c/0", 0, 500, results.append)
    rig.reactor.run_until(lambda: bool(results))
    assert isinstance(results[0], TransferError)
    assert not rig.sender.route._listeners


def test_bytes_that_wait_for_the_ring_are_bounded(rig: TransferRig) -> None:
    rig.reactor.settle()
    assert rig.receiver.send_bytes(1, KIND_LOG, bytes(4 << 20))
    assert not rig.receiver.send_bytes(2, KIND_LOG, b"x")
    rig.reactor.run_until(lambda: rig.receiver._out._bytes == type(rig.receiver._out._bytes)())
    assert rig.receiver.send_bytes(2, KIND_LOG, b"x")


def test_small_transfers_are_not_held_up_by_a_large_one(rig: TransferRig) -> None:
    large = push(rig, rig.card_blobs.put(rig.blob(256 * 4_000)[1]))
    rig.reactor.run_until(lambda: rig.cnm_blobs.written > 0)
    small = push(rig, rig.card_blobs.put(b"small"))
    rig.reactor.run_until(lambda: bool(small))
    assert small == [None]
    assert not large


def test_nothing_is_kept_once_all_has_ended(rig: TransferRig) -> None:
    results = [push(rig, rig.card_blobs.put(rig.blob(3_000)[1])) for _ in range(6)]
    results += [pull(rig, rig.cnm_blobs.put(rig.blob(3_000)[1])) for _ in range(6)]
    rig.reactor.run_until(lambda: all(results))
    rig.reactor.advance(1_000 * MS)
    assert results == [[None]] * 12
    assert not rig.sender.route._listeners
    assert not rig.route._listeners
    assert not rig.route._sources
    assert not rig.sender.route._taken
    assert not rig.receiver._partials
    assert not rig.receiver._out._serves
