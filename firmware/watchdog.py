"""The daemon's sign of life to its supervisor: WATCHDOG=1 at half the period (sd_notify(3)).

It comes from the loop's own timer, and only if a call that was posted before has been run and
`healthy` says yes: a loop that spins in one handler, or whose mailbox starves, says nothing and is
killed and restarted, which a journal and leases make harmless (DESIGN section 4, rule 6).
"""

from collections.abc import Callable
from typing import Protocol

from hal.ports import Reactor
from hal.service_ports import Notifier


class WatchedNotifier(Notifier, Protocol):
    """A notifier that knows how often it is expected to speak."""

    @property
    def watchdog_ns(self) -> int | None: ...


class Watchdog:
    """Loop thread only."""

    def __init__(
        self,
        reactor: Reactor,
        notifier: WatchedNotifier,
        *,
        healthy: Callable[[], bool] = lambda: True,
        on_withheld: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_withheld()` after each beat that was not sent."""
        self._reactor = reactor
        self._notifier = notifier
        self._healthy = healthy
        self._on_withheld = on_withheld
        self._echo = True  # the call posted at the last beat has been run
        self._cancel: Callable[[], None] | None = None
        self.withheld = 0  # beats not sent because something was wrong

    def start(self) -> None:
        """Beat from now on; does nothing when no manager asked for it."""
        if self._notifier.watchdog_ns is not None and self._cancel is None:
            self._beat()

    def _beat(self) -> None:
        period_ns = self._notifier.watchdog_ns
        assert period_ns is not None
        now_ns = self._reactor.now_ns()
        self._cancel = self._reactor.call_at(now_ns + max(period_ns // 2, 1), self._beat)
        if self._echo and self._healthy():
            self._notifier.send("WATCHDOG=1")
        else:
            self.withheld += 1
            self._on_withheld()
        self._echo = False
        self._reactor.post(self._on_echo)

    def _on_echo(self) -> None:
        self._echo = True

    def stop(self) -> None:
        if self._cancel is not None:
            self._cancel()
            self._cancel = None
