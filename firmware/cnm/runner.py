"""Carries out starts, stops and kills on the runtimes; `InstanceTable` decides about them.

A kill is not believed until the runtime reports the end: it is repeated from KILL_EVERY_NS up to
KILL_EVERY_MAX_NS apart (doubling) for as long as the instance lives, because nothing else may be
done with an instance that can't be killed.

Starts and removals go AT_ONCE at a time, the others wait for their turn (as many as the table
holds): a card that starts 256 instances at once must not make 256 programs at once. Kills never
wait. What is wanted dead before its turn comes is not started at all.
"""

from collections import deque
from collections.abc import Callable, Mapping
from typing import Final

from firmware.cnm.records import Instance
from firmware.loop import MS
from hal.errors import HalError, Unavailable
from hal.ports import Done, InstanceExit, InstanceHandle, Reactor, Runtime

START_DEADLINE_MS: Final = 20_000  # runc create + start take 40 ms; a loaded module far longer
REMOVE_DEADLINE_MS: Final = 10_000
AT_ONCE: Final = 8
KILL_EVERY_NS: Final = 50 * MS
KILL_EVERY_MAX_NS: Final = 1_000 * MS


class Runner:
    """The instances' runtimes by name. Loop thread only."""

    def __init__(self, reactor: Reactor, runtimes: Mapping[str, Runtime]) -> None:
        self._reactor = reactor
        self._runtimes = dict(runtimes)
        self._waiting: deque[Callable[[], None]] = deque()
        self._active = 0

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._runtimes))

    def runtime_of(self, instance: Instance) -> Runtime:
        """Of a prepared instance: its runtime was looked up when it was prepared."""
        assert instance.prepared is not None
        return self._runtimes[instance.prepared.runtime]

    def start(
        self,
        instance: Instance,
        done: Done[InstanceHandle],
        on_exit: Callable[[InstanceExit], None],
    ) -> None:
        """`done` is called once, later or at once, whatever the runtime does."""
        assert instance.prepared is not None
        runtime, spec = self.runtime_of(instance), instance.prepared.spec

        def finish(result: InstanceHandle | HalError) -> None:
            done(result)
            self._over()

        def work() -> None:
            if instance.doom or instance.stop_wanted:
                finish(Unavailable("never started: it was wanted dead before its turn came"))
                return
            deadline_ns = self._reactor.now_ns() + START_DEADLINE_MS * MS
            try:
                runtime.submit_start(spec, deadline_ns, finish, on_exit)
            except HalError as exc:
                finish(exc)

        self._in_turn(work)

    def _in_turn(self, work: Callable[[], None]) -> None:
        self._waiting.append(work)
        self._next()

    def _over(self) -> None:
        self._active -= 1
        self._next()

    def _next(self) -> None:
        while self._waiting and self._active < AT_ONCE:
            self._active += 1
            self._waiting.popleft()()

    def stop(self, instance: Instance, grace_ms: int) -> None:
        """Its stop signal now, SIGKILL after the grace. A second stop can only shorten it."""
        assert instance.prepared is not None
        first = instance.kill_at_ns is None
        kill_at_ns = self._reactor.now_ns() + grace_ms * MS
        if instance.kill_at_ns is not None and instance.kill_at_ns <= kill_at_ns:
            return
        instance.kill_at_ns = kill_at_ns
        if grace_ms == 0:
            self.kill(instance)
            return
        instance.cancel_kill()
        instance.cancel_kill = self._reactor.call_at(kill_at_ns, lambda: self.kill(instance))
        if first:
            try:
                self.runtime_of(instance).signal(instance.key, instance.prepared.stop_signal)
            except HalError as exc:
                instance.text = f"stop signal: {exc}"  # SIGKILL follows at the end of the grace

    def kill(self, instance: Instance, *, again_ns: int = KILL_EVERY_NS) -> None:
        """SIGKILL all of it, until its end is reported."""
        instance.cancel_kill()
        if instance.prepared is None or not instance.alive:
            return
        instance.kill_at_ns = min(
            instance.kill_at_ns or self._reactor.now_ns(), self._reactor.now_ns()
        )
        next_ns = min(2 * again_ns, KILL_EVERY_MAX_NS)
        instance.cancel_kill = self._reactor.call_at(
            self._reactor.now_ns() + again_ns, lambda: self.kill(instance, again_ns=next_ns)
        )
        try:
            self.runtime_of(instance).kill_all(instance.key)
        except HalError as exc:
            instance.text = f"kill: {exc}"

    def kill_once(self, instance: Instance) -> None:
        """After a start that failed: leave nothing of it running."""
        instance.cancel_kill()
        try:
            self.runtime_of(instance).kill_all(instance.key)
        except HalError as exc:
            instance.text = f"{instance.text}; kill: {exc}"

    def remove(self, instance: Instance, done: Done[None]) -> None:
        """Let the runtime forget a dead instance."""
        if instance.prepared is None:
            done(None)
            return
        runtime, key = self.runtime_of(instance), instance.key

        def finish(result: HalError | None) -> None:
            done(result)
            self._over()

        def work() -> None:
            deadline_ns = self._reactor.now_ns() + REMOVE_DEADLINE_MS * MS
            try:
                runtime.submit_remove(key, deadline_ns, finish)
            except HalError as exc:
                finish(exc)

        self._in_turn(work)
