"""What the supervisor decides: when to start, restart, abort and stop keeper and daemon.

States: down -> keeper (it starts) -> daemon (it starts) -> running -> daemon ... -> stopping.

- A daemon that dies is started again after 50 ms. Its death touches no tenant: leases outlive it
  (DESIGN section 4, rule 6).
- One that does not say READY=1 in time, or misses its watchdog, gets SIGABRT (so that it leaves a
  trace) and 200 ms later SIGKILL.
- Five deaths within 60 s: the next start has `--safe`: it keeps granting leases and what runs, and
  refuses new work (D14). It is never given up, only slowed down to one start a second. A daemon
  that was ready and was killed by somebody else's SIGKILL is slowed down but not suspected.
- A daemon that refuses its very first start (status 3: a bad board, a foreign journal) will refuse
  the next one too: everything is stopped again and the words are on stderr. Not so when the keeper
  was there before us: modules may be running then, and stopping it would cut their power.
- The keeper's death is the card's power loss (D12): the daemon is killed, and both are started from
  scratch; after five such deaths within 60 s the supervisor gives up.
"""

import signal
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol

from hal.errors import HalError
from hal.ports import Event, Process, Reactor
from hal.service_ports import NotifyServer

MS: Final = 1_000_000
DEATHS_LIMIT: Final = 5
DEATHS_WINDOW_NS: Final = 60_000 * MS
EXIT_START_FAILED: Final = 3  # firmware.app's word for "it would not help to try again"
SIGABRT: Final = int(signal.SIGABRT)
SIGKILL: Final = int(signal.SIGKILL)
SIGTERM: Final = int(signal.SIGTERM)


class Phase(Enum):
    DOWN = "down"
    KEEPER = "keeper"  # it was started and does not answer yet
    DAEMON = "daemon"  # it was started and is not ready yet
    RUNNING = "running"
    WAITING = "waiting"  # for the next start
    STOPPING = "stopping"
    ENDED = "ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisionTiming:
    """Rule 6 counts on it: a hung daemon is gone `watchdog + abort_grace` after its last sign of
    life, and exec'd again `restart_delay` later."""

    watchdog_ns: int = 2000 * MS
    restart_delay_ns: int = 50 * MS
    slow_delay_ns: int = 1000 * MS
    abort_grace_ns: int = 200 * MS
    ready_ns: int = 18_000 * MS  # a cold card with a long journal; the aim is 100 ms
    keeper_ready_ns: int = 10_000 * MS
    keeper_poll_ns: int = 10 * MS
    daemon_stop_ns: int = 5_000 * MS
    keeper_stop_ns: int = 12_000 * MS


class ProcessHost(Protocol):
    """What the supervisor may do to this machine. Starts raise HalError."""

    def start_keeper(self, on_exit: Callable[[int], None]) -> Process | None:
        """The keeper, a running one if there is one; None when the board needs none."""
        ...

    @property
    def keeper_was_there(self) -> bool:
        """The keeper is a former supervisor's: modules may be running tenants' work."""
        ...

    def keeper_answers(self) -> bool: ...

    def start_daemon(
        self, *, safe: bool, reason: str, notify: str, on_exit: Callable[[int], None]
    ) -> Process:
        """Start it; one that a former supervisor left is killed before. `reason` says why."""
        ...

    def say(self, text: str) -> None:
        """A line for the log."""
        ...


class Supervision:
    """Loop thread only."""

    def __init__(
        self,
        reactor: Reactor,
        host: ProcessHost,
        notify: NotifyServer,
        *,
        timing: SupervisionTiming,
        on_end: Callable[[int], None],
    ) -> None:
        """`on_end(status)` once, when everything is down."""
        self._reactor = reactor
        self._host = host
        self._notify = notify
        self._timing = timing
        self._on_end = on_end
        self.phase = Phase.DOWN
        self.safe = False
        self.restarts = 0
        self._keeper: Process | None = None
        self._daemon: Process | None = None
        self._daemon_deaths: deque[int] = deque(maxlen=DEATHS_LIMIT)  # that count as faults
        self._all_deaths: deque[int] = deque(maxlen=DEATHS_LIMIT)
        self._keeper_deaths: deque[int] = deque(maxlen=DEATHS_LIMIT)
        self._ever_ready = False
        self._aborting = False
        self._killed_by_us = False
        self._started_ns = 0
        self._reason = "the card was started"
        self._status = 0
        self._cancel_timer: Callable[[], None] | None = None

    # --- start ---

    def start(self) -> None:
        self._reactor.watch(self._notify.handle, Event.READ, self._on_notice)
        self._start_keeper()

    def _start_keeper(self) -> None:
        self.phase = Phase.KEEPER
        try:
            self._keeper = self._host.start_keeper(self._on_keeper_exit)
        except HalError as exc:
            self._host.say(f"the keeper can't be started: {exc}")
            self._finish(1)
            return
        if self._keeper is None:
            self._start_daemon()
            return
        self._await_keeper(self._reactor.now_ns() + self._timing.keeper_ready_ns)

    def _await_keeper(self, deadline_ns: int) -> None:
        if self._host.keeper_answers():
            self._start_daemon()
        elif self._reactor.now_ns() >= deadline_ns:
            self._host.say("the keeper did not answer in time")
            self._stop_all(1)
        else:
            self._after(self._timing.keeper_poll_ns, lambda: self._await_keeper(deadline_ns))

    def _start_daemon(self) -> None:
        self.phase = Phase.DAEMON
        self._aborting = self._killed_by_us = False
        self._started_ns = self._reactor.now_ns()
        try:
            self._daemon = self._host.start_daemon(
                safe=self.safe,
                reason=self._reason,
                notify=self._notify.address,
                on_exit=self._on_daemon_exit,
            )
        except HalError as exc:
            self._host.say(f"the daemon can't be started: {exc}")
            self._count_death(suspect=True)
            self._restart_later(f"the last start failed: {exc}")
            return
        self._after(self._timing.ready_ns, lambda: self._abort("it was not ready in time"))

    # --- the daemon's signs of life ---

    def _on_notice(self, _events: Event) -> None:
        for notice in self._notify.receive():
            if self._daemon is None or notice.pid != self._daemon.pid or self._aborting:
                continue
            if notice.fields.get("READY") == "1" and self.phase is Phase.DAEMON:
                self.phase = Phase.RUNNING
                self._ever_ready = True
                self._host.say(f"the daemon, process {notice.pid}, is ready")
                self._feed()
            if self.phase is not Phase.RUNNING:
                continue
            if notice.fields.get("WATCHDOG") == "1":
                self._feed()
            elif notice.fields.get("WATCHDOG") == "trigger":
                self._abort("it asked to be restarted")

    def _feed(self) -> None:
        self._after(self._timing.watchdog_ns, lambda: self._abort("it missed its watchdog"))

    def _abort(self, why: str) -> None:
        daemon = self._daemon
        if daemon is None:
            return
        self._aborting = self._killed_by_us = True
        self._reason = why
        self._host.say(f"the daemon, process {daemon.pid}, is killed: {why}")
        daemon.kill(SIGABRT)
        self._after(self._timing.abort_grace_ns, lambda: daemon.kill(SIGKILL))

    # --- deaths ---

    def _on_daemon_exit(self, status: int) -> None:
        self._daemon = None
        was_ready = self.phase is Phase.RUNNING
        words = f"signal {-status}" if status < 0 else f"status {status}"
        if self.phase is Phase.STOPPING:
            self._stop_keeper()
            return
        self._host.say(f"the daemon ended with {words}")
        if self.phase is Phase.WAITING:
            return  # it died of the keeper's death; what follows is under way
        hopeless = status == EXIT_START_FAILED and not self._ever_ready and not self.safe
        if hopeless and not self._host.keeper_was_there:
            self._stop_all(EXIT_START_FAILED)
            return
        outside = status == -SIGKILL and was_ready and not self._killed_by_us
        self._count_death(suspect=not outside)
        self._restart_later(self._reason if self._killed_by_us else f"it had ended with {words}")

    def _count_death(self, *, suspect: bool) -> None:
        now_ns = self._reactor.now_ns()
        self._all_deaths.append(now_ns)
        if not suspect:
            return
        self._daemon_deaths.append(now_ns)
        if not self.safe and _too_many(self._daemon_deaths, now_ns):
            self.safe = True
            self._host.say(
                f"{DEATHS_LIMIT} deaths within {DEATHS_WINDOW_NS // (1000 * MS)} s: safe mode "
                "from now on, what runs is kept and new work refused; `apf down` and `apf up` "
                "end it"
            )

    def _restart_later(self, reason: str) -> None:
        self.phase = Phase.WAITING
        self._reason = reason
        self.restarts += 1
        now_ns = self._reactor.now_ns()
        delay_ns = self._timing.restart_delay_ns
        if _too_many(self._all_deaths, now_ns):  # one that has run for a while has waited already
            delay_ns = max(delay_ns, self._started_ns + self._timing.slow_delay_ns - now_ns)
        self._after(delay_ns, self._start_daemon)

    def _on_keeper_exit(self, status: int) -> None:
        self._keeper = None
        if self.phase is Phase.STOPPING:
            if self._daemon is None:
                self._finish(self._status)
            else:
                self._daemon.kill(SIGKILL)  # its end ends us
            return
        now_ns = self._reactor.now_ns()
        self._host.say(f"the keeper ended with status {status}: the card has lost its power")
        self._keeper_deaths.append(now_ns)
        if self._daemon is not None:
            self._killed_by_us = True
            self._daemon.kill(SIGKILL)
        if _too_many(self._keeper_deaths, now_ns):
            self._host.say(f"{DEATHS_LIMIT} keepers have died: given up")
            self._stop_all(1)
            return
        self.phase = Phase.WAITING
        self._reason = "the keeper had died: power loss"
        self._after(self._timing.restart_delay_ns, self._restart_all)

    def _restart_all(self) -> None:
        if self._daemon is not None:  # its end has not been seen yet
            self._after(self._timing.restart_delay_ns, self._restart_all)
        else:
            self._start_keeper()

    # --- stop ---

    def stop(self) -> None:
        """Daemon, then keeper, then the end. A second call hurries."""
        if self.phase is Phase.STOPPING:
            for process in (self._daemon, self._keeper):
                if process is not None:
                    process.kill(SIGKILL)
        elif self.phase is not Phase.ENDED:
            self._stop_all(0)

    def _stop_all(self, status: int) -> None:
        self.phase = Phase.STOPPING
        self._status = status
        daemon = self._daemon
        if daemon is None:
            self._stop_keeper()
            return
        daemon.kill(SIGTERM)
        self._after(self._timing.daemon_stop_ns, lambda: daemon.kill(SIGKILL))

    def _stop_keeper(self) -> None:
        keeper = self._keeper
        if keeper is None:
            self._finish(self._status)
            return
        keeper.kill(SIGTERM)
        self._after(self._timing.keeper_stop_ns, lambda: keeper.kill(SIGKILL))

    def _finish(self, status: int) -> None:
        self._cancel()
        self.phase = Phase.ENDED
        self._reactor.unwatch(self._notify.handle)
        self._on_end(status)

    # --- the one timer: each phase waits for one thing ---

    def _after(self, delay_ns: int, call: Callable[[], None]) -> None:
        self._cancel()
        self._cancel_timer = self._reactor.call_at(self._reactor.now_ns() + delay_ns, call)

    def _cancel(self) -> None:
        if self._cancel_timer is not None:
            self._cancel_timer()
            self._cancel_timer = None


def _too_many(deaths: "deque[int]", now_ns: int) -> bool:
    return len(deaths) == DEATHS_LIMIT and now_ns - deaths[0] <= DEATHS_WINDOW_NS
