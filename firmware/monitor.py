"""Telemetry, thresholds and health of the modules, in real time.

A module is loaded when its use stays above `high` for `hold_ms`, and is so until it has fallen
below `low`: two thresholds and a hold, so that nothing thrashes.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from firmware.board_types import Thresholds
from firmware.decisions import Decisions
from firmware.events import EventCode, EventLog
from firmware.inventory import Cnm
from firmware.loop import MS, Loop
from firmware.placer import Placer
from firmware.profiler import Profiler
from firmware.workload import Component
from protocol.apf import AGENT_AGE_NONE, InstanceTelemetry, InstanceUsage, Telemetry


@dataclass(slots=True)
class _Watch:
    above_since_ns: int | None = None
    loaded: bool = False
    hot: bool = False
    agent_lost: bool = False
    cpu_us: dict[tuple[str, int], tuple[int, int]] = field(default_factory=dict)
    cpu_milli: dict[str, int] = field(default_factory=dict)

    def cpu_since(self, entry: InstanceUsage, now_ns: int) -> int | None:
        """Thousandths of a core since the last report of this generation; None at the first."""
        cpu_us = entry.reading("cpu_us")
        if cpu_us is None:
            return None
        key = (entry.instance, entry.generation)
        before = self.cpu_us.get(key)
        self.cpu_us[key] = (cpu_us, now_ns)
        if before is None or now_ns <= before[1] or cpu_us < before[0]:
            return None
        spent = (cpu_us - before[0]) * 1_000_000 // (now_ns - before[1])
        self.cpu_milli[entry.instance] = spent
        return spent


class Monitor:
    """Loop thread only."""

    def __init__(
        self,
        loop: Loop,
        decisions: Decisions,
        placer: Placer,
        profiler: Profiler,
        events: EventLog,
        thresholds: Thresholds,
        *,
        agent_lost_ms: int,
        on_loaded: Callable[[Cnm], None],
    ) -> None:
        """`on_loaded(cnm)` at each report of a module that is above its threshold."""
        self._loop = loop
        self._decisions = decisions
        self._placer = placer
        self._profiler = profiler
        self._events = events
        self._thresholds = thresholds
        self._agent_lost_ms = agent_lost_ms
        self._on_loaded = on_loaded
        self._watches: dict[str, _Watch] = {}  # at most one a slot

    def forget(self, cnm: Cnm) -> None:
        """Another boot: what was measured before says nothing about it."""
        self._watches.pop(cnm.id, None)

    def loaded(self, cnm: Cnm) -> bool:
        """Above its threshold, and not yet below the lower one again."""
        watch = self._watches.get(cnm.id)
        return watch is not None and watch.loaded

    def on_telemetry(self, cnm: Cnm, report: Telemetry) -> None:
        """TELEMETRY of a module as a whole."""
        if report.boot_id != cnm.boot_id or cnm.capabilities is None:
            return
        now_ns = self._loop.now_ns()
        cnm.telemetry, cnm.telemetry_ns = report, now_ns
        watch = self._watches.setdefault(cnm.id, _Watch())
        cpu_milli, memory_bytes = report.reading("cpu_milli"), report.reading("memory_bytes")
        self._placer.set_load(cnm, cpu_milli or 0, memory_bytes or 0)
        limits = self._thresholds
        cpu = 100 * (cpu_milli or 0) // max(1, cnm.capabilities.cores_milli)
        memory = 100 * (memory_bytes or 0) // max(1, cnm.capabilities.memory_bytes)
        high = cpu >= limits.cpu_high_percent or memory >= limits.memory_high_percent
        low = cpu < limits.cpu_low_percent and memory < limits.memory_low_percent
        text = f"{cnm.id}: processor {cpu} %, memory {memory} %"
        if high and not watch.loaded:
            watch.above_since_ns = watch.above_since_ns or now_ns
            if now_ns - watch.above_since_ns >= limits.hold_ms * MS:
                watch.loaded = True
                self._events.emit(EventCode.CNM_OVERLOADED, text, cnm=cnm.id)
        elif not high and not watch.loaded:
            watch.above_since_ns = None
        elif low and watch.loaded:
            watch.loaded, watch.above_since_ns = False, None
            self._events.emit(EventCode.CNM_RECOVERED, text, cnm=cnm.id)
        self._judge_temperature(cnm, watch, report.reading("temp_mdegc"))
        if watch.loaded:
            self._on_loaded(cnm)

    def _judge_temperature(self, cnm: Cnm, watch: _Watch, temp_mdegc: int | None) -> None:
        if temp_mdegc is None:
            return
        hot = temp_mdegc >= self._thresholds.temp_high_mdegc
        cool = temp_mdegc < self._thresholds.temp_low_mdegc
        if (hot and not watch.hot) or (cool and watch.hot):
            watch.hot = hot
            text = f"{cnm.id}: {temp_mdegc / 1000:g} degrees Celsius"
            self._events.emit(EventCode.CNM_TEMPERATURE, text, cnm=cnm.id)

    def on_instances(self, cnm: Cnm, report: InstanceTelemetry) -> None:
        """INSTANCE_TELEMETRY: feeds the profiles."""
        if report.boot_id != cnm.boot_id:
            return
        now_ns = self._loop.now_ns()
        watch = self._watches.setdefault(cnm.id, _Watch())
        for entry in report.entries:
            if entry.instance not in cnm.observed:
                continue  # bounded by what the module was asked to run
            cnm.usage[entry.instance] = entry
            cpu_milli = watch.cpu_since(entry, now_ns)
            component = self._component(entry.instance)
            if component is not None:
                self._profiler.observe(component, now_ns, cpu_milli, entry.reading("memory_bytes"))
        for key in [key for key in watch.cpu_us if key[0] not in cnm.observed]:
            del watch.cpu_us[key]
            watch.cpu_milli.pop(key[0], None)

    def _component(self, instance: str) -> Component | None:
        assignment = self._decisions.assignments.get(instance)
        record = self._decisions.workloads.get(assignment.workload) if assignment else None
        return record.workload.component(assignment.component) if record and assignment else None

    def cpu_milli(self, cnm: Cnm, instance: str) -> int:
        """What an instance used between its last two reports; 0 when unknown."""
        watch = self._watches.get(cnm.id)
        return watch.cpu_milli.get(instance, 0) if watch is not None else 0

    def on_agent_age(self, cnm: Cnm, age_ms: int) -> None:
        """From the heartbeat: how long ago the init heard its agent."""
        lost = age_ms >= self._agent_lost_ms
        watch = self._watches.get(cnm.id)
        if watch is None:
            watch = self._watches[cnm.id] = _Watch()
        if lost and not watch.agent_lost and age_ms != AGENT_AGE_NONE:
            self._events.emit(
                EventCode.CNM_AGENT_LOST, f"{cnm.id}: not heard for {age_ms} ms", cnm=cnm.id
            )
        elif watch.agent_lost and not lost:
            self._events.emit(EventCode.CNM_AGENT_BACK, f"{cnm.id}: heard again", cnm=cnm.id)
        watch.agent_lost = lost and age_ms != AGENT_AGE_NONE
