"""The time-outs form a lattice: attempts x inner < outer (DESIGN section 5), from the constants.

Each chain is a list of spans that nest, the innermost first. One that is broken is shown whole,
with what each span comes from, so that whoever changed a number sees what counted on it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import click
import pytest

from firmware import (
    card,
    control_connection,
    decisions,
    deployer,
    discovery,
    endpoint,
    fencing,
    hostpids,
    images,
    lease,
    link,
    link_dialect,
    reconciler,
    sessions,
    signs_of_life,
    transfer_logs,
    volume_flush,
)
from firmware.board import load_board
from firmware.board_types import TIMING_LIMITS, Timing
from firmware.cnm import (
    blob_space,
    first_use,
    init,
    instances,
    lease_guard,
    rootfs,
    runner,
    tombstones,
)
from firmware.cnm import supervisor as agents
from firmware.cnm import volumes as cnm_volumes
from firmware.cnm.config import CnmTiming
from firmware.supervision import SupervisionTiming
from firmware.supervisor import SupervisionTiming as SupervisorsTiming
from hal.linux import journal_file
from hal.local import fence as keepers_fence
from protocol.apf import LEASE_MAX_MS
from protocol.mctp import reassembly
from tools import client as tools_client
from tools import daemon as tools_daemon
from tools.commands import image as image_command
from tools.commands.power import down_command, up_command
from tools.demo import command as demo_command
from tools.demo.steps import bring_up

MS = 1_000_000
BOARDS = ("local", "mock_4", "mock_32")
TIMING = Timing()
SUPERVISION = SupervisionTiming()
REQUEST_MS = endpoint.TIMEOUT_MS * endpoint.ATTEMPTS
HELLO_MS = 2 * discovery.HELLO_TIMEOUT_MS  # asked twice
LOOK_MS = discovery.HELLO_TIMEOUT_MS + HELLO_MS  # Set EID, then HELLO
KILLS_MS = (1 + 2 + 4) * runner.KILL_EVERY_NS // MS  # until the fourth kill of what lives on
RESTS_MS = sum(
    min(deployer.REST_MOST_NS, deployer.REST_FIRST_NS << n) // MS
    for n in range(reconciler.FLUSH_TRIES - 1)
)


def option_ms(command: click.Command, name: str) -> int:
    """What a command waits unless it is told otherwise."""
    found = next(param for param in command.params if param.name == name)
    return int(found.default) * 1000


HUNG_MS = signs_of_life.hung_ms(TIMING.heartbeat_ms)
UP_MS = option_ms(up_command, "timeout_s")
DOWN_MS = option_ms(down_command, "timeout_s")


@dataclass(frozen=True)
class Chain:
    """`spans` are (what, ms), the innermost first."""

    why: str
    spans: Sequence[tuple[str, float]]

    def broken(self) -> str:
        """ "" or the chain with the place where it does not nest."""
        pairs = list(zip(self.spans, self.spans[1:], strict=False))
        if all(inner[1] < outer[1] for inner, outer in pairs):
            return ""
        lines = [f"{self.why}:", f"      {self.spans[0][1]:>8g} ms  {self.spans[0][0]}"]
        for inner, outer in pairs:
            word = "  <" if inner[1] < outer[1] else "NOT <"
            lines.append(f"{word:>5} {outer[1]:>8g} ms  {outer[0]}")
        return "\n".join(lines)


def _ns(span_ns: int) -> float:
    return span_ns / MS


CHAINS = (
    Chain(
        "a reply is kept for as long as its request may be repeated, and a tombstone longer",
        [
            ("endpoint.TIMEOUT_MS", endpoint.TIMEOUT_MS),
            ("endpoint.TIMEOUT_MS x ATTEMPTS", REQUEST_MS),
            ("endpoint.REPLY_KEEP_MS (MT4 and more)", endpoint.REPLY_KEEP_MS),
            ("tombstones.SETTLED_NS", _ns(tombstones.SETTLED_NS)),
        ],
    ),
    Chain(
        "half a message is given up after its sender has, and is looked for more often than that",
        [
            ("link.EXPIRE_NS", _ns(link.EXPIRE_NS)),
            ("endpoint.TIMEOUT_MS x ATTEMPTS", REQUEST_MS),
            ("MT4 of DSP0237", 5_000),
            ("reassembly.EXPIRY_NS", _ns(reassembly.EXPIRY_NS)),
        ],
    ),
    Chain(
        "a refusal for the moment is repeated within the budget of the request",
        [
            ("endpoint.BUSY_RETRY_MS", endpoint.BUSY_RETRY_MS),
            ("instances.BUSY_MS", instances.BUSY_MS),
            ("endpoint.TIMEOUT_MS", endpoint.TIMEOUT_MS),
        ],
    ),
    Chain(
        "a module that answers is found and read within one lease",
        [
            ("discovery.RETRY_NS", _ns(discovery.RETRY_NS)),
            ("discovery.HELLO_TIMEOUT_MS", discovery.HELLO_TIMEOUT_MS),
            ("Set EID and HELLO, both attempts", LOOK_MS),
            ("and one request more (STATUS)", LOOK_MS + REQUEST_MS),
            ("Timing.lease_ms", TIMING.lease_ms),
        ],
    ),
    Chain(
        "silence: heartbeats are missed, the card suspects, then the fast fence, then the lease",
        [
            ("fencing.SUSPECT_TICK_NS", _ns(fencing.SUSPECT_TICK_NS)),
            ("Timing.heartbeat_ms", TIMING.heartbeat_ms),
            ("lease.silence_ms", lease.silence_ms(TIMING)),
            ("Timing.suspect_ms", TIMING.suspect_ms),
            ("Timing.lease_ms", TIMING.lease_ms),
            ("Timing.fence_wait_ms (W)", TIMING.fence_wait_ms),
        ],
    ),
    Chain(
        "a power-off fails before the wait is over, and its proof is looked for more often",
        [
            ("fencing.SUSPECT_TICK_NS", _ns(fencing.SUSPECT_TICK_NS)),
            ("Timing.off_hold_ms", TIMING.off_hold_ms),
            ("hal.local.fence.FENCE_LIMIT_NS", _ns(keepers_fence.FENCE_LIMIT_NS)),
            ("fencing.POWER_DEADLINE_NS", _ns(fencing.POWER_DEADLINE_NS)),
            ("Timing.fence_wait_ms (W)", TIMING.fence_wait_ms),
            ("fencing.POWER_ON_DEADLINE_NS", _ns(fencing.POWER_ON_DEADLINE_NS)),
        ],
    ),
    Chain(
        "what outlives its lease is killed again and again within S, and then with its CNM",
        [
            ("runner.KILL_EVERY_NS x (1 + 2 + 4)", KILLS_MS),
            ("three quarters of CnmTiming.stop_ms: the last call", CnmTiming().stop_ms * 3 / 4),
            ("Timing.stop_ms (S)", TIMING.stop_ms),
        ],
    ),
    Chain(
        "a daemon that hangs is back before its leases end (rule 6)",
        [
            ("SupervisionTiming.restart_delay_ns", _ns(SUPERVISION.restart_delay_ns)),
            (
                "abort_grace_ns + restart_delay_ns",
                _ns(SUPERVISION.abort_grace_ns + SUPERVISION.restart_delay_ns),
            ),
            ("Timing.restart_ms", TIMING.restart_ms),
            (
                "Timing.watchdog_ms + restart_ms + ready_ms",
                _back_ms := (TIMING.watchdog_ms + TIMING.restart_ms + TIMING.ready_ms),
            ),
            ("with 2P, a round trip and the drift", TIMING.lease_min_restart_ms),
            ("Timing.lease_ms", TIMING.lease_ms),
        ],
    ),
    Chain(
        "a link whose dialect is in doubt is decided within a lease, and forgotten after the wait",
        [
            ("link_dialect.HOLD_NS", _ns(link_dialect.HOLD_NS)),
            ("Timing.lease_ms", TIMING.lease_ms),
            ("Timing.fence_wait_ms (W)", TIMING.fence_wait_ms),
            ("link_dialect.STALE_NS", _ns(link_dialect.STALE_NS)),
        ],
    ),
    Chain(
        "a loop that is merely slow feeds its watchdog",
        [
            ("Timing.loop_stall_ms", TIMING.loop_stall_ms),
            ("half of Timing.watchdog_ms", TIMING.watchdog_ms / 2),
            ("SupervisionTiming.watchdog_ns", _ns(SUPERVISION.watchdog_ns) + 1),
        ],
    ),
    Chain(
        "a daemon that crashes again and again still grants in time",
        [
            ("SupervisionTiming.slow_delay_ns", _ns(SUPERVISION.slow_delay_ns)),
            (
                "slow_delay_ns + Timing.ready_ms",
                _ns(SUPERVISION.slow_delay_ns) + TIMING.ready_ms,
            ),
            ("Timing.lease_ms", TIMING.lease_ms),
        ],
    ),
    Chain(
        "`apf up` waits for longer than the supervisor does",
        [
            ("SupervisionTiming.keeper_poll_ns", _ns(SUPERVISION.keeper_poll_ns)),
            ("journal_file._BUSY_S: a predecessor lets go of the lock", journal_file._BUSY_S * 1e3),
            ("SupervisionTiming.ready_ns", _ns(SUPERVISION.ready_ns)),
            (
                "keeper_ready_ns + ready_ns",
                _ns(SUPERVISION.keeper_ready_ns + SUPERVISION.ready_ns),
            ),
            ("apf up --timeout", UP_MS),
            ("tools.demo.steps.bring_up.UP_TIMEOUT_MS", bring_up.UP_TIMEOUT_MS),
        ],
    ),
    Chain(
        "`apf down`: volumes come home, then it presses",
        [
            ("card.LAST_FLUSH_NS", _ns(card.LAST_FLUSH_NS)),
            ("tools.daemon: SIGTERM", DOWN_MS / tools_daemon.PRESS_AFTER),
            (
                "LAST_FLUSH_NS + daemon_stop_ns + keeper_stop_ns",
                _ns(card.LAST_FLUSH_NS + SUPERVISION.daemon_stop_ns + SUPERVISION.keeper_stop_ns),
            ),
            ("tools.daemon: SIGKILL", DOWN_MS * tools_daemon.KILL_AFTER),
            ("apf down --timeout", DOWN_MS),
            ("tools.demo.command.DOWN_TIMEOUT_MS", demo_command.DOWN_TIMEOUT_MS),
        ],
    ),
    Chain(
        "a CNM that is told to go down is down before the keeper is killed",
        [
            ("init.AGENT_STOP_MS", init.AGENT_STOP_MS),
            ("CnmTiming.shutdown_ms", CnmTiming().shutdown_ms),
            (
                "shutdown_ms + stop_ms + AGENT_STOP_MS",
                CnmTiming().shutdown_ms + CnmTiming().stop_ms + init.AGENT_STOP_MS,
            ),
            ("SupervisionTiming.keeper_stop_ns", _ns(SUPERVISION.keeper_stop_ns)),
        ],
    ),
    Chain(
        "an agent that hangs is replaced while its volumes are still being asked for",
        [
            ("signs_of_life.ping_ms", signs_of_life.ping_ms(TIMING.heartbeat_ms)),
            ("signs_of_life.lost_ms", signs_of_life.lost_ms(TIMING.heartbeat_ms)),
            ("signs_of_life.hung_ms", HUNG_MS),
            ("hung_ms + BACKOFF_MAX_MS", HUNG_MS + agents.BACKOFF_MAX_MS),
            ("reconciler.FLUSH_TRIES requests, and their rests", RESTS_MS + REQUEST_MS * 8),
        ],
    ),
    Chain(
        "a log is read within one call of a tool",
        [
            ("endpoint.TIMEOUT_MS x ATTEMPTS", REQUEST_MS),
            ("and LOG_WAIT_NS", REQUEST_MS + _ns(transfer_logs.LOG_WAIT_NS)),
            ("tools.client.CALL_TIMEOUT_MS", tools_client.CALL_TIMEOUT_MS),
            ("control_connection.ANSWER_NS", _ns(control_connection.ANSWER_NS)),
        ],
    ),
    Chain(
        "an import ends, or the daemon says why not, before its tool gives up",
        [
            ("control_connection.HALF_REQUEST_NS", _ns(control_connection.HALF_REQUEST_NS)),
            ("control_connection.WRITE_STALL_NS", _ns(control_connection.WRITE_STALL_NS)),
            ("images.INGEST_NS", _ns(images.INGEST_NS)),
            ("control_connection.ANSWER_NS", _ns(control_connection.ANSWER_NS)),
            ("tools.commands.image.BLOB_TIMEOUT_MS", image_command.BLOB_TIMEOUT_MS),
            ("images.UPLOAD_IDLE_NS", _ns(images.UPLOAD_IDLE_NS)),
        ],
    ),
    Chain(
        "a flush: the module's copy, all of it, the answer on the control socket",
        [
            ("volume_flush.POLL_NS", _ns(volume_flush.POLL_NS)),
            ("endpoint.TIMEOUT_MS x ATTEMPTS", REQUEST_MS),
            ("cnm.volumes.DEADLINE_MS", cnm_volumes.DEADLINE_MS),
            ("volume_flush.FLUSH_DEADLINE_NS", _ns(volume_flush.FLUSH_DEADLINE_NS)),
            ("control_connection.ANSWER_NS", _ns(control_connection.ANSWER_NS)),
        ],
    ),
    Chain(
        "what came for a staging is kept for as long as all its steps may take",
        [
            ("rootfs.UNPACK_DEADLINE_MS", rootfs.UNPACK_DEADLINE_MS),
            (
                "unpack, volumes and first use",
                rootfs.UNPACK_DEADLINE_MS + cnm_volumes.DEADLINE_MS + first_use.DEADLINE_MS,
            ),
            ("blob_space.YOUNG_NS", _ns(blob_space.YOUNG_NS)),
        ],
    ),
    Chain(
        "small questions to the keeper end well before a module counts as lost",
        [
            ("hostpids.RETRY_NS", _ns(hostpids.RETRY_NS)),
            ("hostpids.LOOKUP_DEADLINE_NS", _ns(hostpids.LOOKUP_DEADLINE_NS)),
            ("sessions.OPEN_DEADLINE_NS", _ns(sessions.OPEN_DEADLINE_NS)),
            ("Timing.lease_ms", TIMING.lease_ms),
        ],
    ),
    Chain(
        "a decision that the disk refused is tried again before anybody misses it",
        [
            ("decisions.REFUSED_REST_NS", _ns(decisions.REFUSED_REST_NS)),
            ("Timing.ready_ms", TIMING.ready_ms),
            ("card.SETTLE_NS", _ns(card.SETTLE_NS)),
            ("apf up --timeout", UP_MS),
        ],
    ),
)


@pytest.mark.parametrize("chain", CHAINS, ids=[chain.why for chain in CHAINS])
def test_what_is_inside_ends_before_what_is_around_it(chain: Chain) -> None:
    assert not chain.broken(), f"\n{chain.broken()}"


def test_a_chain_that_does_not_nest_is_shown_whole() -> None:
    text = Chain("why", [("a", 1), ("b", 3), ("c", 2.5)]).broken()
    assert text.splitlines() == [
        "why:",
        "             1 ms  a",
        "    <        3 ms  b",
        "NOT <      2.5 ms  c",
    ]
    assert Chain("why", [("a", 1), ("b", 2)]).broken() == ""
    assert Chain("why", [("a", 1), ("b", 1)]).broken(), "equal is not inside"


@pytest.mark.parametrize("name", BOARDS)
def test_every_board_keeps_rules_5_to_7(name: str) -> None:
    timing = load_board(name, run_dir="/run/apf").timing
    stretch = (1 + timing.clock_rate_ppm / 1e6) / (1 - timing.clock_rate_ppm / 1e6)
    assert timing.fence_wait_ms >= (timing.lease_ms + timing.stop_ms) * stretch, "rule 5"
    rounds_ms = (timing.lost_rounds + 1) * timing.heartbeat_ms
    alive_ms = rounds_ms + timing.round_trip_ms + timing.loop_stall_ms
    assert timing.lease_ms >= alive_ms * stretch, "rule 6, lost rounds"
    back_ms = timing.watchdog_ms + timing.restart_ms + timing.ready_ms
    back_ms += 2 * timing.heartbeat_ms + timing.round_trip_ms
    assert timing.lease_ms >= back_ms * stretch, "rule 6, a restart"
    assert lease.silence_ms(timing) < timing.suspect_ms < timing.lease_ms, "rule 10"


def test_the_defaults_are_those_of_rule_7() -> None:
    assert (TIMING.heartbeat_ms, TIMING.lease_ms, TIMING.stop_ms) == (100, 5_000, 500)
    assert (TIMING.watchdog_ms, TIMING.fence_wait_ms) == (2_000, 5_600)
    assert SUPERVISION.watchdog_ns == TIMING.watchdog_ms * MS
    assert SupervisorsTiming is SupervisionTiming
    module = CnmTiming()
    for name in ("heartbeat_ms", "telemetry_ms", "stop_ms", "clock_rate_ppm"):
        assert getattr(module, name) == getattr(TIMING, name), name


def test_a_guard_remembers_the_heartbeats_of_a_whole_lease() -> None:
    assert lease_guard.MAX_OUTSTANDING * TIMING.heartbeat_ms > TIMING.lease_ms
    assert TIMING_LIMITS["lease_ms"][1] <= LEASE_MAX_MS, "a board may ask for no more than a grant"
