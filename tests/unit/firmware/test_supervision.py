"""firmware.supervision on a fake host: who is started, killed and stopped, and when."""

from collections.abc import Callable

import pytest

from firmware import supervision as sv
from firmware.board import load_board
from firmware.board_types import Timing
from firmware.supervisor import supervision_timing
from hal.errors import Unavailable
from hal.service_ports import Notice
from tests.unit.firmware.fake_reactor import FakeReactor

MS = 1_000_000
TIMING = sv.SupervisionTiming()


class FakeProcess:
    def __init__(self, pid: int, on_exit: Callable[[int], None]) -> None:
        self.pid = pid
        self.signals: list[int] = []
        self._on_exit = on_exit
        self.gone = False

    def kill(self, signal: int) -> None:
        if not self.gone:
            self.signals.append(signal)

    def exit(self, status: int) -> None:
        assert not self.gone
        self.gone = True
        self._on_exit(status)


class FakeNotify:
    handle = 99
    address = "@fake"

    def __init__(self) -> None:
        self.queue: list[Notice] = []

    def receive(self) -> list[Notice]:
        found, self.queue = self.queue, []
        return found

    def close(self) -> None:
        pass


class Rig:
    def __init__(self, *, needs_keeper: bool = True, answers: bool = True) -> None:
        self.reactor = FakeReactor()
        self.notify = FakeNotify()
        self.needs_keeper = needs_keeper
        self.keeper_was_there = False
        self.answers = answers
        self.keepers: list[FakeProcess] = []
        self.daemons: list[FakeProcess] = []
        self.starts: list[tuple[bool, str]] = []
        self.broken: Exception | None = None
        self.words: list[str] = []
        self.ended: list[int] = []
        self.supervision = sv.Supervision(
            self.reactor, self, self.notify, timing=TIMING, on_end=self.ended.append
        )
        self.supervision.start()

    # ProcessHost
    def start_keeper(self, on_exit: Callable[[int], None]) -> FakeProcess | None:
        if not self.needs_keeper:
            return None
        self.keepers.append(FakeProcess(1000 + len(self.keepers), on_exit))
        return self.keepers[-1]

    def keeper_answers(self) -> bool:
        return self.answers

    def start_daemon(
        self, *, safe: bool, reason: str, notify: str, on_exit: Callable[[int], None]
    ) -> FakeProcess:
        assert notify == "@fake"
        if self.broken is not None:
            raise self.broken
        self.starts.append((safe, reason))
        self.daemons.append(FakeProcess(2000 + len(self.daemons), on_exit))
        return self.daemons[-1]

    def say(self, text: str) -> None:
        self.words.append(text)

    # the test's hand
    def hear(self, pid: int | None = None, **fields: str) -> None:
        self.notify.queue.append(Notice(pid=pid or self.daemons[-1].pid, fields=fields))
        self.reactor.watches[99][1](self.reactor.watches[99][0])

    def ready(self) -> None:
        self.hear(READY="1")
        assert self.supervision.phase is sv.Phase.RUNNING


def test_the_daemon_starts_when_the_keeper_answers() -> None:
    rig = Rig(answers=False)
    rig.reactor.advance(100 * MS)
    assert rig.daemons == []
    rig.answers = True
    rig.reactor.advance(TIMING.keeper_poll_ns)
    assert len(rig.daemons) == 1
    rig.ready()


def test_a_keeper_that_never_answers_is_stopped_and_the_start_fails() -> None:
    rig = Rig(answers=False)
    rig.reactor.advance(TIMING.keeper_ready_ns + 20 * MS)
    assert rig.daemons == []
    assert rig.keepers[0].signals == [sv.SIGTERM]
    rig.keepers[0].exit(0)
    assert rig.ended == [1]


def test_a_daemon_that_dies_is_started_again_after_50_ms() -> None:
    rig = Rig()
    rig.ready()
    rig.daemons[0].exit(-9)
    rig.reactor.advance(49 * MS)
    assert len(rig.daemons) == 1
    rig.reactor.advance(1 * MS)
    assert len(rig.daemons) == 2
    assert rig.starts[1] == (False, "it had ended with signal 9")
    assert rig.keepers[0].signals == []


def test_a_daemon_that_feeds_its_watchdog_is_left_alone() -> None:
    rig = Rig()
    rig.ready()
    for _ in range(20):
        rig.reactor.advance(TIMING.watchdog_ns // 2)
        rig.hear(WATCHDOG="1")
    assert rig.daemons[0].signals == []


def test_a_missed_watchdog_is_an_abort_and_then_a_kill() -> None:
    rig = Rig()
    rig.ready()
    rig.reactor.advance(TIMING.watchdog_ns)
    assert rig.daemons[0].signals == [sv.SIGABRT]
    rig.reactor.advance(TIMING.abort_grace_ns)
    assert rig.daemons[0].signals == [sv.SIGABRT, sv.SIGKILL]
    rig.daemons[0].exit(-9)
    rig.reactor.advance(TIMING.restart_delay_ns)
    assert rig.starts[1] == (False, "it missed its watchdog")


def test_only_the_daemon_itself_can_speak_for_it() -> None:
    rig = Rig()
    rig.hear(pid=77, READY="1")
    assert rig.supervision.phase is sv.Phase.DAEMON
    rig.ready()
    rig.reactor.advance(TIMING.watchdog_ns // 2)
    rig.hear(pid=77, WATCHDOG="1")
    rig.reactor.advance(TIMING.watchdog_ns // 2)
    assert rig.daemons[0].signals == [sv.SIGABRT]


def test_a_daemon_that_is_never_ready_is_killed_and_one_that_asks_for_it_too() -> None:
    rig = Rig()
    rig.reactor.advance(TIMING.ready_ns)
    assert rig.daemons[0].signals == [sv.SIGABRT]
    rig.daemons[0].exit(-6)
    rig.reactor.advance(TIMING.restart_delay_ns)
    rig.ready()
    rig.hear(WATCHDOG="trigger")
    assert rig.daemons[1].signals == [sv.SIGABRT]


def die(rig: Rig, status: int, *, ready: bool = True) -> None:
    if ready:
        rig.ready()
    rig.daemons[-1].exit(status)
    rig.reactor.advance(TIMING.slow_delay_ns)


def test_five_crashes_within_a_minute_lead_to_safe_mode_and_slow_starts() -> None:
    rig = Rig()
    for _ in range(5):
        die(rig, 1)
    assert [safe for safe, _ in rig.starts] == [False] * 5 + [True]
    assert any("safe mode" in line for line in rig.words)
    rig.ready()
    rig.daemons[-1].exit(1)
    rig.reactor.advance(TIMING.restart_delay_ns)  # its start was a second ago
    assert len(rig.daemons) == 7
    rig.daemons[-1].exit(1)
    rig.reactor.advance(TIMING.slow_delay_ns - MS)
    assert len(rig.daemons) == 7
    rig.reactor.advance(MS)
    assert rig.starts[7][0] is True
    for _ in range(30):  # it is never given up
        die(rig, 1, ready=False)
    assert len(rig.daemons) == 38


def test_crashes_that_are_far_apart_are_only_crashes() -> None:
    rig = Rig()
    for _ in range(20):
        die(rig, 1)
        rig.ready()
        for _ in range(20):
            rig.reactor.advance(TIMING.watchdog_ns // 2)
            rig.hear(WATCHDOG="1")
    assert not rig.supervision.safe


def test_kills_from_outside_slow_it_down_but_are_not_held_against_the_daemon() -> None:
    rig = Rig()
    for _ in range(50):
        die(rig, -9)
    assert not rig.supervision.safe
    assert len(rig.daemons) == 51


def test_slowed_down_means_one_start_a_second_not_a_second_more_after_each_death() -> None:
    rig = Rig()
    for _ in range(sv.DEATHS_LIMIT):
        rig.ready()
        rig.reactor.advance(700 * MS)
        rig.hear(WATCHDOG="1")
        rig.daemons[-1].exit(-9)
        rig.reactor.advance(TIMING.restart_delay_ns)
    assert len(rig.daemons) == sv.DEATHS_LIMIT  # the next one waits for its second
    rig.reactor.advance(TIMING.slow_delay_ns - 700 * MS - TIMING.restart_delay_ns - MS)
    assert len(rig.daemons) == sv.DEATHS_LIMIT
    rig.reactor.advance(MS)
    assert len(rig.daemons) == sv.DEATHS_LIMIT + 1
    for _ in range(3):  # and one that ran longer is back at once
        rig.ready()
        rig.reactor.advance(TIMING.slow_delay_ns)
        rig.daemons[-1].exit(-9)
        before = len(rig.daemons)
        rig.reactor.advance(TIMING.restart_delay_ns)
        assert len(rig.daemons) == before + 1


def test_kills_before_it_was_ready_count_as_crashes() -> None:
    rig = Rig()
    for _ in range(5):
        die(rig, -9, ready=False)
    assert rig.supervision.safe


def test_a_refused_first_start_stops_everything_and_says_so_by_its_status() -> None:
    rig = Rig()
    rig.daemons[0].exit(sv.EXIT_START_FAILED)
    assert rig.keepers[0].signals == [sv.SIGTERM]
    rig.keepers[0].exit(0)
    assert rig.ended == [3]


def test_a_refused_start_never_cuts_the_power_of_modules_that_were_there_before() -> None:
    rig = Rig()
    rig.keeper_was_there = True
    rig.daemons[0].exit(sv.EXIT_START_FAILED)
    rig.reactor.advance(TIMING.restart_delay_ns)
    assert rig.keepers[0].signals == []
    assert len(rig.daemons) == 2


def test_a_start_that_the_host_refuses_is_tried_again() -> None:
    rig = Rig()
    rig.ready()
    rig.broken = Unavailable("no memory")
    rig.daemons[0].exit(1)
    rig.reactor.advance(300 * MS)
    rig.broken = None
    rig.reactor.advance(TIMING.slow_delay_ns)
    assert len(rig.daemons) == 2


@pytest.mark.parametrize("daemon_first", [True, False])
def test_the_keepers_death_restarts_everything_from_scratch(*, daemon_first: bool) -> None:
    rig = Rig()
    rig.ready()
    if daemon_first:  # it saw it before we did
        rig.daemons[0].exit(5)
    rig.keepers[0].exit(-9)
    if not daemon_first:
        assert rig.daemons[0].signals == [sv.SIGKILL]
        rig.reactor.advance(500 * MS)
        assert len(rig.keepers) == 1  # not while the old daemon lives
        rig.daemons[0].exit(-9)
    rig.reactor.advance(200 * MS)
    assert (len(rig.keepers), len(rig.daemons)) == (2, 2)
    assert rig.starts[1] == (False, "the keeper had died: power loss")
    assert any("lost its power" in line for line in rig.words)


def test_keepers_that_keep_dying_are_given_up() -> None:
    rig = Rig()
    for _ in range(sv.DEATHS_LIMIT):
        rig.ready()
        rig.keepers[-1].exit(-9)
        rig.daemons[-1].exit(-9)
        rig.reactor.advance(200 * MS)
    assert rig.ended == [1]
    assert len(rig.keepers) == sv.DEATHS_LIMIT


def test_stop_ends_the_daemon_then_the_keeper() -> None:
    rig = Rig()
    rig.ready()
    rig.supervision.stop()
    assert (rig.daemons[0].signals, rig.keepers[0].signals) == ([sv.SIGTERM], [])
    rig.daemons[0].exit(0)
    assert rig.keepers[0].signals == [sv.SIGTERM]
    rig.keepers[0].exit(0)
    assert rig.ended == [0]
    assert rig.reactor.watches == {}
    rig.reactor.advance(60_000 * MS)
    assert len(rig.daemons) == 1


def test_a_stop_that_is_ignored_becomes_a_kill_and_a_second_stop_hurries() -> None:
    rig = Rig()
    rig.ready()
    rig.supervision.stop()
    rig.reactor.advance(TIMING.daemon_stop_ns)
    assert rig.daemons[0].signals == [sv.SIGTERM, sv.SIGKILL]
    rig.daemons[0].exit(-9)
    rig.supervision.stop()
    assert rig.keepers[0].signals == [sv.SIGTERM, sv.SIGKILL]
    rig.keepers[0].exit(-9)
    rig.supervision.stop()
    assert rig.ended == [0]


def test_a_keeper_that_dies_during_the_stop_does_not_leave_the_daemon_behind() -> None:
    rig = Rig()
    rig.ready()
    rig.supervision.stop()
    rig.keepers[0].exit(-9)
    assert rig.ended == []
    assert rig.daemons[0].signals == [sv.SIGTERM, sv.SIGKILL]
    rig.daemons[0].exit(-9)
    assert rig.ended == [0]


@pytest.mark.parametrize("phase", list(sv.Phase)[1:5])
def test_stop_works_in_every_phase(phase: sv.Phase) -> None:
    rig = Rig(answers=phase is not sv.Phase.KEEPER)
    if phase in (sv.Phase.RUNNING, sv.Phase.WAITING):
        rig.ready()
    if phase is sv.Phase.WAITING:
        rig.daemons[0].exit(1)
    assert rig.supervision.phase is phase
    rig.supervision.stop()
    for process in [*rig.daemons, *rig.keepers]:
        if not process.gone:
            process.exit(-15)
    assert rig.ended == [0]
    rig.reactor.advance(60_000 * MS)
    assert len(rig.daemons) <= 1


def test_a_board_without_a_keeper_has_only_a_daemon() -> None:
    rig = Rig(needs_keeper=False)
    rig.ready()
    rig.supervision.stop()
    rig.daemons[0].exit(0)
    assert rig.ended == [0]


def test_a_hung_daemon_is_back_before_the_leases_end() -> None:
    """DESIGN section 4, rule 6, from the constants themselves: what the board allows for the
    restart covers our grace and our delay, also for a watchdog that is missed at the last beat."""
    board = Timing()
    ours_ms = (TIMING.abort_grace_ns + TIMING.restart_delay_ns) // MS
    assert ours_ms <= board.restart_ms
    assert TIMING.watchdog_ns // MS == board.watchdog_ms
    assert board.lease_min_restart_ms <= board.lease_ms


def test_a_board_that_is_slow_to_be_ready_is_waited_for_longer():
    usual, slow = (
        supervision_timing(load_board(name, run_dir="/run/apf")) for name in ("local", "qemu_q35")
    )
    assert usual.ready_ns == sv.SupervisionTiming().ready_ns
    assert slow.ready_ns >= 3 * usual.ready_ns
    assert slow.keeper_ready_ns >= 3 * usual.keeper_ready_ns
    assert slow.watchdog_ns == 20_000_000_000
