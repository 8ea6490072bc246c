"""firmware.monitor: what is kept of the instances of a module."""

from firmware.monitor import Monitor
from protocol.apf import (
    ExitReason,
    InstanceState,
    InstanceStatus,
    InstanceTelemetry,
    InstanceUsage,
)
from tests.fuzz.targets.card import BOOT, Bench

NAME = "shop/web/0"
RESTARTS = 50


def test_of_an_instance_that_starts_again_and_again_only_the_newest_is_kept() -> None:
    bench = Bench()
    for turn in range(12):
        if turn == 5:
            bench.submit()
        for _ in range(8):
            bench.answer()
        bench.beat()
        bench.loop.advance(100)
    monitor, cnm = bench.card.monitor, bench.cnm
    for generation in range(100, 100 + RESTARTS):
        _end(monitor, bench, generation)
    watch = monitor._watches[cnm.id]
    newest = {(NAME, 100 + RESTARTS - 1)}
    assert set(watch.cpu_us) == newest
    assert watch.oom_seen == newest
    assert set(watch.meters) == newest


def _end(monitor: Monitor, bench: Bench, generation: int) -> None:
    """This generation is killed for want of memory, and its use is told."""
    cnm = bench.cnm
    status = InstanceStatus(
        instance=NAME,
        generation=generation,
        state=InstanceState.EXITED,
        exit_reason=ExitReason.OOM_KILLED,
    )
    cnm.observed = {**cnm.observed, NAME: status}
    bench.loop.advance(1000)
    monitor.on_report(cnm, {NAME})
    usage = InstanceUsage.of(
        instance=NAME, generation=generation, cpu_us=1000, memory_bytes=1 << 20
    )
    monitor.on_instances(cnm, InstanceTelemetry(boot_id=BOOT, seq=generation, entries=(usage,)))
