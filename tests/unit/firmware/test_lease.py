"""DESIGN section 4, the card's half: each rule a test."""

import pytest

from firmware.board_types import Timing
from firmware.lease import CardLease, FenceProof, LeaseState, silence_ms
from firmware.loop import MS

TIMING = Timing()
BOOT, OTHER = b"a" * 16, b"b" * 16
W_NS = TIMING.fence_wait_ms * MS


def leased(*, power_fence: bool = True, at_ns: int = 0) -> CardLease:
    lease = CardLease(TIMING, power_fence=power_fence)
    lease.on_boot(BOOT, at_ns)
    assert lease.admit(BOOT, at_ns)
    return lease


def test_rule_2_nothing_is_granted_before_the_module_was_admitted() -> None:
    lease = CardLease(TIMING, power_fence=True)
    lease.on_boot(BOOT, 0)
    assert not lease.on_heartbeat(BOOT, 10)
    assert lease.admit(BOOT, 20)
    assert lease.on_heartbeat(BOOT, 30)


def test_rule_2_another_boot_can_not_be_admitted_by_an_old_decision() -> None:
    lease = CardLease(TIMING, power_fence=True)
    lease.on_boot(OTHER, 0)
    assert not lease.admit(BOOT, 1)
    assert lease.state is LeaseState.NEW


def test_rule_5_the_wait_counts_from_the_last_heartbeat_that_was_granted() -> None:
    lease = leased(power_fence=False)
    assert lease.on_heartbeat(BOOT, 1_000 * MS)
    assert lease.suspect_if_silent(1_000 * MS + silence_ms(TIMING) * MS)
    assert not lease.on_heartbeat(BOOT, 1_400 * MS), "a suspect gets no grants"
    due = 1_000 * MS + W_NS
    assert not lease.fence_is_due(due - 1, 0)
    assert lease.fence_is_due(due, 0)


def test_rule_7_the_default_wait_is_5600_ms() -> None:
    assert TIMING.fence_wait_min_ms in (5_511, 5_512)
    assert TIMING.fence_wait_ms == 5_600


def test_rule_8_a_suspect_may_return_and_a_fence_can_not_be_taken_back() -> None:
    lease = leased()
    assert lease.suspect_now()
    assert not lease.admit(BOOT, 40), "an agent that answers is no heartbeat"
    assert not lease.on_heartbeat(BOOT, 45)
    assert lease.admit(BOOT, 50)
    assert lease.state is LeaseState.LEASED
    lease.suspect_now()
    lease.begin_fence()
    assert not lease.on_heartbeat(BOOT, 100)
    assert not lease.admit(BOOT, 101)
    assert lease.state is LeaseState.FENCING


HOLD_NS = TIMING.off_hold_ms * MS


def test_rule_9b_low_power_must_hold_for_off_hold_ms() -> None:
    lease = leased()
    lease.suspect_now()
    lease.begin_fence()
    lease.on_power(False, 10 * MS)
    lease.on_power(True, 50 * MS)
    lease.on_power(False, 60 * MS)
    lease.on_power(False, 300 * MS, asked_ns=60 * MS + HOLD_NS - 1)
    assert lease.fenced_if_proven(300 * MS) is None
    lease.on_power(False, 300 * MS, asked_ns=60 * MS + HOLD_NS)
    assert lease.fenced_if_proven(300 * MS) is FenceProof.POWER_LOW


def test_rule_9b_a_dip_whose_end_was_not_heard_of_yet_proves_nothing() -> None:
    lease = leased()
    lease.on_power(False, 10 * MS)
    lease.suspect_now()
    lease.begin_fence()
    assert lease.fenced_if_proven(10 * MS + 20 * HOLD_NS, trust_wait=False) is None


def test_rule_9c_without_power_only_the_wait_fences() -> None:
    lease = leased(power_fence=False)
    lease.suspect_now()
    assert not lease.fence_is_due(W_NS - 1, W_NS)
    assert lease.fence_is_due(W_NS, 0)
    lease.begin_fence()
    assert lease.fenced_if_proven(W_NS - 1) is None
    assert lease.fenced_if_proven(W_NS) is FenceProof.WAITED


def test_rule_9d_another_boot_id_proves_the_old_boot_dead() -> None:
    lease = leased()
    assert lease.on_boot(OTHER, 10) is FenceProof.NEW_BOOT
    assert lease.state is LeaseState.NEW
    assert not lease.on_heartbeat(BOOT, 11), "the old boot's late heartbeats are not granted"


def test_rule_10_silence_of_both_links_fences_fast_only_where_power_can_be_switched() -> None:
    silent_ns = TIMING.suspect_ms * MS
    fast, slow = leased(), leased(power_fence=False)
    for lease in (fast, slow):
        assert lease.suspect_if_silent(silent_ns)
    assert not fast.fence_is_due(silent_ns, silent_ns - 1)
    assert fast.fence_is_due(silent_ns, silent_ns)
    assert not slow.fence_is_due(silent_ns, silent_ns)


def test_rule_11_a_restarted_daemon_suspects_and_counts_from_its_start() -> None:
    lease = CardLease(TIMING, power_fence=False)
    start = 77_000 * MS
    lease.restore(BOOT, start)
    assert lease.state is LeaseState.SUSPECT
    assert not lease.on_heartbeat(BOOT, start + MS), "no grant before its inventory was read"
    assert not lease.fence_is_due(start + W_NS - 1, 0)
    assert lease.fence_is_due(start + W_NS, 0)


def test_a_journaled_fence_goes_on_after_a_restart() -> None:
    lease = CardLease(TIMING, power_fence=True)
    lease.restore_fencing(BOOT, 0)
    assert not lease.admit(BOOT, 1)
    lease.on_power(False, 2)
    lease.on_power(False, 3 + HOLD_NS, asked_ns=2 + HOLD_NS)
    assert lease.fenced_if_proven(3 + HOLD_NS) is FenceProof.POWER_LOW


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_lost_heartbeats_below_the_bound_do_not_suspect(lost: int) -> None:
    lease = leased()
    gap_ns = (lost + 1) * TIMING.heartbeat_ms * MS
    lease.on_heartbeat(BOOT, 1_000 * MS)
    assert not lease.suspect_if_silent(1_000 * MS + gap_ns)


def test_silence_suspects_at_its_bound_and_that_is_within_330_ms() -> None:
    lease = leased()
    lease.on_heartbeat(BOOT, 1_000 * MS)
    bound_ns = silence_ms(TIMING) * MS
    assert bound_ns <= 330 * MS
    assert not lease.suspect_if_silent(1_000 * MS + bound_ns - 1)
    assert lease.suspect_if_silent(1_000 * MS + bound_ns)


def test_where_power_can_be_cut_the_wait_alone_is_not_enough() -> None:
    """The guard may have been stopped with its module: cutting the power does not rely on it."""
    lease = leased()
    lease.suspect_now()
    lease.begin_fence()
    assert lease.fenced_if_proven(W_NS, trust_wait=False) is None
    lease.on_power(False, W_NS)
    low_ns = W_NS + HOLD_NS
    lease.on_power(False, low_ns, asked_ns=low_ns)
    assert lease.fenced_if_proven(low_ns, trust_wait=False) is FenceProof.POWER_LOW


def test_where_power_off_is_no_fence_low_power_proves_nothing() -> None:
    lease = leased(power_fence=False)
    lease.on_power(False, 0)
    lease.suspect_now()
    assert not lease.fence_is_due(W_NS - 1, W_NS)
    assert lease.fence_is_due(W_NS, 0)
    lease.begin_fence()
    lease.on_power(False, W_NS - 1)
    assert lease.fenced_if_proven(W_NS - 1) is None
    assert lease.fenced_if_proven(W_NS) is FenceProof.WAITED
