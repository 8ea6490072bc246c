"""Healthchecks: a program run inside the instance again and again (as in Compose).

first check   after min(interval, 500 ms), so that a dependant need not wait a whole interval
failures      count once the start period, and at least one interval, is over; `retries` in a
              row make UNHEALTHY; one success makes HEALTHY and ends the start period
bound         one check per instance, CONCURRENT at a time on the module, the others in turn
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from firmware.cnm.health_spec import Healthcheck
from firmware.cnm.records import Instance
from firmware.loop import MS
from hal.errors import HalError
from hal.ports import Reactor, Runtime
from protocol.apf import Health

FIRST_CHECK_MS: Final = 500
CONCURRENT: Final = 4


@dataclass(slots=True)
class _Watch:
    instance: Instance
    check: Healthcheck
    count_from_ns: int
    failures: int = 0
    cancel: Callable[[], None] = field(default=lambda: None)
    over: bool = False


class HealthRunner:
    """Loop thread only."""

    def __init__(
        self,
        reactor: Reactor,
        runtime_of: Callable[[Instance], Runtime],
        report: Callable[[Instance, Health], None],
    ) -> None:
        self._reactor = reactor
        self._runtime_of = runtime_of
        self._report = report
        self._watches: dict[str, _Watch] = {}  # by key; bounded by the table of instances
        self._waiting: deque[_Watch] = deque()  # each watch at most once
        self._active = 0

    def begin(self, instance: Instance) -> None:
        """Of an instance that runs; without a healthcheck nothing happens."""
        check = instance.prepared.healthcheck if instance.prepared else None
        if check is None:
            return
        settle_ms = max(check.start_period_ms, check.interval_ms)
        watch = _Watch(instance, check, self._reactor.now_ns() + settle_ms * MS)
        self._watches[instance.key] = watch
        self._report(instance, Health.STARTING)
        self._plan(watch, min(check.interval_ms, FIRST_CHECK_MS))

    def end(self, instance: Instance) -> None:
        """It ended. A check that is under way is forgotten."""
        watch = self._watches.pop(instance.key, None)
        if watch is not None:
            watch.over = True
            watch.cancel()

    def _plan(self, watch: _Watch, delay_ms: int) -> None:
        watch.cancel = self._reactor.call_at(
            self._reactor.now_ns() + delay_ms * MS, lambda: self._due(watch)
        )

    def _due(self, watch: _Watch) -> None:
        self._waiting.append(watch)
        self._next()

    def _next(self) -> None:
        while self._waiting and self._active < CONCURRENT:
            watch = self._waiting.popleft()
            if watch.over:
                continue
            self._active += 1
            deadline_ns = self._reactor.now_ns() + watch.check.timeout_ms * MS
            runtime = self._runtime_of(watch.instance)
            try:
                runtime.submit_exec(
                    watch.instance.key,
                    watch.check.argv,
                    deadline_ns,
                    lambda result, watch=watch: self._on_result(watch, result),  # type: ignore[misc]
                )
            except HalError as exc:
                self._on_result(watch, exc)

    def _on_result(self, watch: _Watch, result: tuple[int, bytes] | HalError) -> None:
        self._active -= 1
        if not watch.over:
            self._judge(watch, good=not isinstance(result, HalError) and result[0] == 0)
            self._plan(watch, watch.check.interval_ms)
        self._next()

    def _judge(self, watch: _Watch, *, good: bool) -> None:
        if good:
            watch.failures = 0
            watch.count_from_ns = 0
            self._report(watch.instance, Health.HEALTHY)
        elif self._reactor.now_ns() >= watch.count_from_ns:
            watch.failures += 1
            if watch.failures >= watch.check.retries:
                self._report(watch.instance, Health.UNHEALTHY)
