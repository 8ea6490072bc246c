"""Healthchecks as Compose means them."""

from firmware.cnm.health import CONCURRENT, HealthRunner
from firmware.cnm.health_spec import Healthcheck
from firmware.cnm.records import Instance, Prepared
from hal.errors import DeadlinePassed, Unavailable
from hal.ports import InstanceSpec
from protocol.apf import Health

CHECK = Healthcheck(
    argv=("check",), interval_ms=1000, timeout_ms=200, retries=2, start_period_ms=3000
)


def instance(name: str = "a", check: Healthcheck | None = CHECK) -> Instance:
    spec = InstanceSpec(key=name, argv=["x"], env={})
    prepared = Prepared(runtime="fake", spec=spec, healthcheck=check)
    return Instance(name=name, generation=1, key=name, spec_digest=b"", prepared=prepared)


class Bench:
    def __init__(self, loop, runtime) -> None:
        self.loop, self.runtime = loop, runtime
        self.reports: list[Health] = []
        self.runner = HealthRunner(
            loop, lambda _instance: runtime, lambda _instance, health: self.reports.append(health)
        )

    def answer(self, status: int | Exception) -> None:
        done = self.runtime.execs.pop(0)
        done(status if isinstance(status, Exception) else (status, b""))


def test_no_healthcheck_means_no_checks(loop, runtime) -> None:
    bench = Bench(loop, runtime)
    bench.runner.begin(instance(check=None))
    loop.advance(60_000)
    assert bench.reports == []
    assert runtime.execs == []


def test_the_first_check_comes_soon_and_one_success_is_healthy(loop, runtime) -> None:
    bench = Bench(loop, runtime)
    bench.runner.begin(instance())
    loop.advance(500)
    bench.answer(0)
    assert bench.reports == [Health.STARTING, Health.HEALTHY]


def test_failures_in_the_start_period_do_not_count(loop, runtime) -> None:
    bench = Bench(loop, runtime)
    bench.runner.begin(instance())
    loop.advance(500)
    for _ in range(3):
        bench.answer(1)
        loop.advance(1000)
    assert Health.UNHEALTHY not in bench.reports
    bench.answer(1)  # at 3.5 s: the first that counts
    loop.advance(1000)
    bench.answer(1)
    assert bench.reports[-1] is Health.UNHEALTHY


def test_a_timeout_counts_as_a_failure_and_a_success_starts_the_count_anew(loop, runtime) -> None:
    bench = Bench(loop, runtime)
    bench.runner.begin(instance())
    loop.advance(500)
    bench.answer(0)
    for status in (DeadlinePassed("slow"), 0, 1):
        loop.advance(1000)
        bench.answer(status)
    assert Health.UNHEALTHY not in bench.reports
    loop.advance(1000)
    bench.answer(1)
    assert bench.reports[-1] is Health.UNHEALTHY


def test_an_instance_that_ended_is_checked_no_more(loop, runtime) -> None:
    bench = Bench(loop, runtime)
    found = instance()
    bench.runner.begin(found)
    loop.advance(500)
    bench.runner.end(found)
    bench.answer(0)  # the check that was under way
    loop.advance(60_000)
    assert bench.reports == [Health.STARTING]
    assert runtime.execs == []


def test_only_a_few_checks_run_at_a_time_and_all_get_their_turn(loop, runtime) -> None:
    bench = Bench(loop, runtime)
    for number in range(CONCURRENT + 3):
        bench.runner.begin(instance(f"i{number}"))
    loop.advance(500)
    assert len(runtime.execs) == CONCURRENT
    for _ in range(CONCURRENT + 3):
        bench.answer(0)
    checked = {call[1] for call in runtime.calls if call[0] == "exec"}
    assert len(checked) == CONCURRENT + 3


def test_a_runtime_that_cannot_exec_is_a_failed_check(loop, runtime) -> None:
    bench = Bench(loop, runtime)
    bench.runner.begin(instance())
    runtime.raises = Unavailable("no exec")
    loop.advance(10_000)
    assert bench.reports[-1] is Health.UNHEALTHY
