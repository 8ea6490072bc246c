"""Keeps an agent running (DESIGN D13): starts it, hears its signs of life, starts it again.

    back-off   BACKOFF_FIRST_MS doubling to BACKOFF_MAX_MS; back to the first after STEADY_MS
    hung       no sign of life for `hung_ms` (`firmware.signs_of_life`), or no first one within
               START_MS: SIGKILL, then again
The agent owns nothing that counts, so that a kill at any moment is harmless.
"""

from collections.abc import Callable
from typing import Final

from firmware.cnm.local_stream import LocalPeer
from firmware.loop import MS
from hal.errors import HalError
from hal.ports import ByteStream, Process, Reactor

BACKOFF_FIRST_MS: Final = 50
BACKOFF_MAX_MS: Final = 2_000
STEADY_MS: Final = 10_000
# A start is not a silence: on an emulated processor that three machines share Python took 20 s to
# import the agent, and one that was killed for it would never have come up.
START_MS: Final = 60_000
SIGKILL: Final = 9
SIGTERM: Final = 15

StartAgent = Callable[[Callable[[int], None]], tuple[ByteStream, Process]]


class AgentSupervisor:
    """Loop thread only."""

    def __init__(
        self,
        reactor: Reactor,
        start_agent: StartAgent,
        serve: Callable[[LocalPeer], None],
        log: Callable[[str], None],
        *,
        hung_ms: int,
    ) -> None:
        """`start_agent(on_exit)` makes the process and our end of the stream to it, or raises
        HalError; `serve(peer)` sets the hooks of a fresh stream."""
        self._reactor = reactor
        self._start_agent = start_agent
        self._serve = serve
        self._log = log
        self._hung_ms = hung_ms
        self._backoff_ms = BACKOFF_FIRST_MS
        self._started_ns = 0
        self._seen_ns: int | None = None  # its last sign of life
        self._process: Process | None = None
        self._peer: LocalPeer | None = None
        self._stopped: Callable[[], None] | None = None
        self._cancel: Callable[[], None] = lambda: None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def peer(self) -> LocalPeer | None:
        """The stream to the agent that runs now."""
        return self._peer

    def start(self) -> None:
        """Start one now; from then on one runs whenever it can."""
        if self._stopped is not None:
            return
        self._started_ns, self._seen_ns = self._reactor.now_ns(), None
        try:
            stream, self._process = self._start_agent(self._on_exit)
        except HalError as exc:
            self._log(f"agent can't be started: {exc}")
            self._again()
            return
        peer = LocalPeer(self._reactor, stream)
        peer.on_lost = lambda text: self._on_lost(peer, text)
        self._peer = peer
        self._serve(peer)
        self._watch_life()

    def seen(self) -> None:
        """A sign of life came. After the first one silence is judged by its own measure."""
        first, self._seen_ns = self._seen_ns is None, self._reactor.now_ns()
        if first and self._process is not None:
            self._cancel()
            self._watch_life()

    def stop(self, done: Callable[[], None]) -> None:
        """SIGTERM; `done` when it is gone. The caller's patience is the bound."""
        self._stopped = done
        self._cancel()
        if self._process is None:
            done()
        else:
            self._kill(SIGTERM)

    def _kill(self, signal: int) -> None:
        if self._process is None:
            return
        try:
            self._process.kill(signal)
        except HalError as exc:
            self._log(f"agent {self._process.pid}: signal {signal}: {exc}")

    def _watch_life(self) -> None:
        if self._seen_ns is None:
            limit_ms, since_ns = max(self._hung_ms, START_MS), self._started_ns
        else:
            limit_ms, since_ns = self._hung_ms, self._seen_ns
        due_ns = since_ns + limit_ms * MS
        if self._reactor.now_ns() >= due_ns:
            self._log(f"agent {self.pid} gave no sign of life for {limit_ms} ms: killed")
            self._kill(SIGKILL)
            return
        self._cancel = self._reactor.call_at(due_ns, self._watch_life)

    def _on_lost(self, peer: LocalPeer, text: str) -> None:
        """A stream that ends ends its agent: without it, it can do nothing."""
        if peer is self._peer:
            self._peer = None
            self._log(f"agent {self.pid}: stream: {text}")
            self._kill(SIGKILL if self._stopped is None else SIGTERM)

    def _on_exit(self, status: int) -> None:
        self._cancel()
        process, self._process = self._process, None
        peer, self._peer = self._peer, None
        if peer is not None:
            peer.close(f"agent ended with status {status}")
        if self._stopped is not None:
            self._stopped()
            return
        self._log(f"agent {process.pid if process else '?'} ended with status {status}")
        self._again()

    def _again(self) -> None:
        now_ns = self._reactor.now_ns()
        if now_ns - self._started_ns >= STEADY_MS * MS:
            self._backoff_ms = BACKOFF_FIRST_MS
        self._cancel = self._reactor.call_at(now_ns + self._backoff_ms * MS, self.start)
        self._backoff_ms = min(2 * self._backoff_ms, BACKOFF_MAX_MS)
