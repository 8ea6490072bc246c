"""Telemetry, thresholds and health of the modules, in real time.

A module is loaded when its use stays above `high` for `hold_ms`, and is so until it has fallen
below `low`: two thresholds and a hold, so that nothing thrashes.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from firmware.board_types import Thresholds
from firmware.decisions import Decisions
from firmware.events import EventCode, EventLog
from firmware.headroom import POWER_STEPS, THERMAL_STEP_MC, below, in_steps, power_limit_mw
from firmware.inventory import Cnm
from firmware.loop import MS, Loop
from firmware.placer import Placer
from firmware.profile_meter import Meter
from firmware.profiler import Profiler
from firmware.workload import Component
from protocol.apf import (
    AGENT_AGE_NONE,
    ExitReason,
    InstanceTelemetry,
    InstanceUsage,
    Telemetry,
)


@dataclass(slots=True)
class _Watch:
    above_since_ns: int | None = None
    loaded: bool = False
    hot: bool = False
    agent_lost: bool = False
    cpu_us: dict[tuple[str, int], tuple[int, int]] = field(default_factory=dict)
    cpu_milli: dict[str, int] = field(default_factory=dict)
    # what a generation is measured by, and whose profile that is
    meters: dict[tuple[str, int], tuple[Meter, Component]] = field(default_factory=dict)
    oom_seen: set[tuple[str, int]] = field(default_factory=set)

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
        on_floor: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_loaded(cnm)` at each report of a module that is above its threshold; `on_floor()`
        when a component turned out to need more memory than it reserves."""
        self._loop = loop
        self._decisions = decisions
        self._placer = placer
        self._profiler = profiler
        self._events = events
        self._thresholds = thresholds
        self._agent_lost_ms = agent_lost_ms
        self._on_loaded = on_loaded
        self._on_floor = on_floor
        self._watches: dict[str, _Watch] = {}  # at most one a slot

    def forget(self, cnm: Cnm) -> None:
        """Another boot: what was measured before says nothing about it."""
        self._watches.pop(cnm.id, None)
        self._give_headroom(cnm, None, None)

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
        has = cnm.capabilities  # nothing uses more than it has, whatever it says
        cpu_milli = min(report.reading("cpu_milli") or 0, has.cores_milli)
        memory_bytes = min(report.reading("memory_bytes") or 0, has.memory_bytes)
        self._placer.set_load(cnm, cpu_milli, memory_bytes)
        limits = self._thresholds
        cpu = 100 * cpu_milli // max(1, has.cores_milli)
        memory = 100 * memory_bytes // max(1, has.memory_bytes)
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
        temp_mdegc = report.reading("temp_mdegc")
        self._judge_temperature(cnm, watch, temp_mdegc)
        self._give_headroom(cnm, report.reading("power_mw"), temp_mdegc)
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

    def _give_headroom(self, cnm: Cnm, power_mw: int | None, temp_mdegc: int | None) -> None:
        """Tell the allocator how far it is below its limits, if that is another step now."""
        node = self._placer.state.nodes.get(cnm.id)
        if node is None:
            return
        view, limit_mw = node.view, power_limit_mw(cnm.config.devices)
        power = in_steps(
            view.power_headroom_mw,
            below(limit_mw, power_mw),
            max((limit_mw or 0) // POWER_STEPS, 1),
        )
        thermal = in_steps(
            view.thermal_headroom_mc,
            below(self._thresholds.temp_high_mdegc, temp_mdegc),
            THERMAL_STEP_MC,
        )
        if power != view.power_headroom_mw or thermal != view.thermal_headroom_mc:
            self._placer.state.set_headroom(cnm.id, power_mw=power, thermal_mc=thermal)

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
            watch.cpu_since(entry, now_ns)
            self._measure(cnm, watch, entry, now_ns)
        for key in [key for key in watch.cpu_us if not _runs(cnm, key)]:
            del watch.cpu_us[key]
            if key[0] not in cnm.observed:
                watch.cpu_milli.pop(key[0], None)
        for key in [key for key in watch.meters if not _runs(cnm, key)]:
            meter, component = watch.meters.pop(key)
            self._profiler.ended(component, meter)
        watch.oom_seen = {key for key in watch.oom_seen if _runs(cnm, key)}

    def _measure(self, cnm: Cnm, watch: _Watch, entry: InstanceUsage, now_ns: int) -> None:
        """One instance's report, for the profile of its component."""
        key = (entry.instance, entry.generation)
        if key not in watch.meters:
            found = self._component(entry.instance)
            if found is None:
                return
            watch.meters[key] = (Meter(), found)
        meter, component = watch.meters[key]
        link_bytes = None
        if len(cnm.observed) == 1 and cnm.telemetry is not None:  # else it is not its own
            sent, taken = (cnm.telemetry.reading(f"link_{way}_bytes") for way in ("tx", "rx"))
            link_bytes = None if sent is None or taken is None else sent + taken
        counters = (entry.reading("cpu_us"), entry.reading("io_bytes"), link_bytes)
        reserved_bytes = self._reserved_bytes(cnm, entry.instance)
        memory_bytes = entry.reading("memory_bytes")
        if memory_bytes is not None and cnm.capabilities is not None:
            memory_bytes = min(memory_bytes, cnm.capabilities.memory_bytes)  # whatever it says
        if self._profiler.observe(component, meter, now_ns, counters, memory_bytes, reserved_bytes):
            self._on_floor()

    def on_report(self, cnm: Cnm, changed: Iterable[str]) -> None:
        """STATUS: what a module says of its instances; an end for want of memory is learned."""
        for instance in sorted(changed):
            status = cnm.observed.get(instance)
            if status is None or status.exit_reason != ExitReason.OOM_KILLED:
                continue
            watch = self._watches.setdefault(cnm.id, _Watch())
            key = (instance, status.generation)
            component = self._component(instance)
            if component is not None and key not in watch.oom_seen:
                watch.oom_seen.add(key)
                self._profiler.on_oom(component, self._reserved_bytes(cnm, instance))
                self._on_floor()

    def _reserved_bytes(self, cnm: Cnm, instance: str) -> int:
        node = self._placer.state.nodes.get(cnm.id)
        hold = node.holds.get(instance) if node is not None else None
        return hold.demand.memory_bytes if hold is not None else 0

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


def _runs(cnm: Cnm, key: tuple[str, int]) -> bool:
    status = cnm.observed.get(key[0])
    return status is not None and status.generation == key[1]
