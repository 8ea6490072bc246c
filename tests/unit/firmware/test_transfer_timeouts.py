"""The time-outs of transfers and windows form a lattice (protocol/SPEC.md section 15)."""

from firmware import (
    endpoint,
    transfer_logs,
    transfer_pull,
    transfer_push,
    transfer_queue,
    transfer_route,
    transfer_serve,
    window,
)
from protocol.apf import CHUNK_MAX_BYTES

MS = 1_000_000
REQUEST_NS = endpoint.TIMEOUT_MS * endpoint.ATTEMPTS * MS


def test_a_push_outlives_lost_requests_and_a_faulty_window() -> None:
    assert transfer_push.STALL_NS > 8 * REQUEST_NS
    assert transfer_push.STALL_NS > 2 * window.FAULT_BACKOFF_MAX_NS
    assert transfer_push.RETRY_MAX_NS + REQUEST_NS < transfer_push.STALL_NS / 4


def test_a_hash_that_runs_to_its_deadline_is_waited_for() -> None:
    most_ns = transfer_push.VERIFIES_MAX * transfer_push.VERIFY_MAX_NS
    assert most_ns > transfer_route.FINISH_NS
    assert transfer_push.VERIFY_MAX_NS + REQUEST_NS < transfer_push.STALL_NS


def test_a_partial_object_is_kept_longer_than_its_sender_tries() -> None:
    assert transfer_serve.EVICT_NS > transfer_push.STALL_NS
    assert transfer_serve.IDLE_NS > transfer_serve.EVICT_NS
    assert transfer_serve.SWEEP_NS < transfer_serve.IDLE_NS


def test_a_pull_asks_again_only_after_the_window_had_its_polls() -> None:
    assert transfer_pull.QUIET_NS > window.POLL_IDLE_NS
    assert transfer_pull.QUIET_NS > 4 * window.POLL_BUSY_NS
    rounds_ns = sum(
        min(transfer_pull.RETRY_NS << n, transfer_pull.RETRY_MAX_NS)
        for n in range(1, transfer_pull.ROUNDS_MAX)
    )
    assert rounds_ns > 2 * window.FAULT_BACKOFF_MAX_NS


def test_log_bytes_are_waited_for_longer_than_a_poll() -> None:
    assert transfer_logs.LOG_WAIT_NS > 2 * window.POLL_IDLE_NS


def test_what_may_wait_in_memory_is_small() -> None:
    assert transfer_pull.EARLY_MAX_BYTES * transfer_queue.ACTIVE_MAX <= 4 << 20
    assert window.SLOT_BYTES <= CHUNK_MAX_BYTES
