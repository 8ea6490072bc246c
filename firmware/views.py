"""What the card shows (INTERFACES.md, "JSON"): one fixed schema, units in the names.

What can't be read is null beside "<key>_error", never a number that means something else.
"""

from collections.abc import Mapping
from typing import Any, Final

from firmware.assignments import Assignment
from firmware.decisions import Decisions
from firmware.events import EventLog
from firmware.hostpids import HostPids
from firmware.inventory import Cnm, Inventory
from firmware.loop import MS, Loop
from firmware.placer import Placer
from firmware.reconciler import Reconciler
from firmware.specs import runtime_of
from firmware.workload import Component, instance_name
from protocol.apf import USAGE_FIELDS, InstanceState, InstanceStatus, Scope

PHASES: Final[Mapping[int, str]] = {
    InstanceState.STAGING: "STAGING",
    InstanceState.PREPARED: "STARTING",
    InstanceState.STARTING: "STARTING",
    InstanceState.RUNNING: "RUNNING",
    InstanceState.STOPPING: "STOPPING",
    InstanceState.STOPPED: "STOPPED",
    InstanceState.EXITED: "STOPPED",
    InstanceState.FAILED: "FAILED",
}


class Views:
    """Rows for `ps`, `cnm ls` and their like. Reads only."""

    def __init__(
        self,
        loop: Loop,
        inventory: Inventory,
        decisions: Decisions,
        reconciler: Reconciler,
        placer: Placer,
        host: HostPids,
        events: EventLog,
    ) -> None:
        self._loop = loop
        self._inventory = inventory
        self._decisions = decisions
        self._reconciler = reconciler
        self._placer = placer
        self._host = host
        self._events = events

    # --- instances ---

    def instances(self, workload: str | None) -> list[dict[str, Any]]:
        """`ps`: what is wanted and what is there, wanted or not, by name."""
        names: dict[str, tuple[Component | None, bool]] = {}
        for record in self._decisions.workloads.values():
            name = record.workload.name
            for component in record.workload.components:
                for index in range(component.replicas):
                    key = instance_name(name, component.name, index)
                    names[key] = (component, record.deleted)
        for assignment in self._decisions.assignments.values():
            names.setdefault(assignment.instance, (None, True))
        return [
            self._instance(name, component, deleted)
            for name, (component, deleted) in sorted(names.items(), key=_natural)
            if workload is None or name.split("/", 1)[0] == workload
            if not (deleted and name not in self._decisions.assignments)
        ]

    def _instance(
        self, instance: str, component: Component | None, deleted: bool
    ) -> dict[str, Any]:
        workload, name, _index = instance.rsplit("/", 2)
        assignment = self._decisions.assignments.get(instance)
        place = assignment.place if assignment else None
        ending = assignment.ending if assignment else None
        cnm = self._inventory.get(place.cnm) if place else None
        status = None
        if cnm is not None and place is not None and cnm.boot_id == place.boot_id:
            status = cnm.observed.get(instance)
            if status is not None and status.generation != place.generation:
                status = None
        row: dict[str, Any] = {
            "workload": workload,
            "component": name,
            "instance": instance,
            "generation": place.generation if place else None,
            "cnm": place.cnm if place else None,
            "phase": self._phase(assignment, status, deleted),
            "runtime": runtime_of(component) if component else None,
            "restarts": assignment.restarts if assignment else 0,
            "attempts": assignment.attempts if assignment else 0,
            "reason": self._reason(instance, assignment, status, cnm),
            "pending": dict(self._reconciler.placements.pending.get(instance, {})),
            "target": assignment.target.cnm if assignment and assignment.target else None,
            "health": _health(status),
            "exit_status": ending.exit_status if ending else None,
            "signal": ending.signal if ending else None,
            "priority": component.priority if component else None,
            "tenant": self._placer.tenant_of(instance),
        }
        row.update(self._process(cnm, status))
        return row

    def _phase(
        self, assignment: Assignment | None, status: InstanceStatus | None, deleted: bool
    ) -> str:
        if assignment is None or assignment.place is None:
            return "STOPPING" if deleted else "PENDING"
        if deleted:
            return "STOPPING"
        if assignment.ending is not None:
            return "FAILED" if assignment.ending.failed else "STOPPED"
        if assignment.target is not None:
            return "MOVING"
        if status is None:
            return "STAGING"
        if status.state in (InstanceState.EXITED, InstanceState.FAILED):
            return "STARTING"  # it will be started again; an ending would have been written down
        return PHASES.get(status.state, "STAGING")  # a state of a later version may come

    def _reason(
        self,
        instance: str,
        assignment: Assignment | None,
        status: InstanceStatus | None,
        cnm: Cnm | None,
    ) -> str:
        if assignment is not None and assignment.ending is not None:
            return assignment.ending.text
        if assignment is not None and assignment.evicting and assignment.evict is not None:
            return f"it is stopped for {assignment.evict.by}, of a higher priority"
        waiting = self._reconciler.waiting.get(instance, "")
        if waiting:
            return waiting
        promise = self._placer.promises.get(instance)
        if promise is not None and instance in self._reconciler.placements.pending:
            return f"waits for room that is being freed on {promise.cnm}"
        if instance in self._reconciler.placements.pending:
            return f"no module can hold it now; see `pending`, or `apf explain {instance}`"
        if assignment is not None and assignment.target is not None:
            return f"moving to {assignment.target.cnm}: {assignment.why}"
        trouble = self._reconciler.trouble(instance)
        if trouble:
            return trouble
        if cnm is not None and not cnm.current and assignment is not None:
            return f"{cnm.id} is {cnm.state.value}"
        return status.text if status is not None else ""

    def _process(self, cnm: Cnm | None, status: InstanceStatus | None) -> dict[str, Any]:
        if cnm is None or status is None or not status.pid:
            return {"pid": None, "start_ticks": None, "cgroup": None}
        found = self._host.process(cnm, status.pid)
        if found is None:
            return {
                "pid": None,
                "pid_error": f"it is pid {status.pid} on {cnm.id}; the host has not shown it yet",
                "start_ticks": None,
                "cgroup": status.cgroup or None,
            }
        return {"pid": found.pid, "start_ticks": found.start_ticks, "cgroup": found.cgroup}

    # --- modules ---

    def cnms(self) -> list[dict[str, Any]]:
        """`cnm ls`."""
        return [self.cnm(cnm) for cnm in self._inventory]

    def cnm(self, cnm: Cnm) -> dict[str, Any]:
        """One row of `cnm ls`, which is also what `cnm show` begins with."""
        now_ns = self._loop.now_ns()
        agent = self._host.agent(cnm)
        node = self._placer.state.nodes.get(cnm.id)
        used = node.used if node is not None else (0, 0, 0, 0)
        return {
            "id": cnm.id,
            "slot": cnm.config.slot,
            "uuid": cnm.uuid.hex() or None,
            "boot_id": cnm.boot_id.hex() or None,
            "state": cnm.state.value,
            "reason": cnm.quarantine,
            "draining": cnm.draining,
            "lease_ms_left": cnm.lease.left_ms(now_ns),
            "init_pid": cnm.power.init_pid if cnm.power else None,
            "agent_pid": agent.pid if agent else None,
            **({} if agent else {"agent_pid_error": "the host shows no agent of it"}),
            "runc_root": cnm.runc_root,
            "cgroup": cnm.power.cgroup if cnm.power else None,
            "fence": cnm.power.fence.value if cnm.power else None,
            "software": cnm.software or None,
            "capacity": self._capacity(cnm),
            "used": {
                "cpu_milli": used[0],
                "memory_bytes": used[1],
                "nvme_bytes": used[2],
                "link_mbit": used[3],
                "instances": len(node.holds) if node is not None else 0,
            },
            "links": [self._link(cnm, name, now_ns) for name in ("mc", "agent")],
        }

    def cnm_detail(self, cnm: Cnm) -> dict[str, Any]:
        """`cnm show`: the row, and what was measured and counted."""
        row = self.cnm(cnm)
        report = cnm.telemetry
        age_ms = None
        if cnm.telemetry_ns is not None:
            age_ms = (self._loop.now_ns() - cnm.telemetry_ns) // MS
        measured: dict[str, Any] = {"age_ms": age_ms}
        for name in (
            "cpu_milli",
            "memory_bytes",
            "nvme_bytes",
            "link_tx_bytes",
            "link_rx_bytes",
            "temp_mdegc",
            "power_mw",
        ):
            value = report.reading(name) if report is not None else None
            measured[name] = value
            if value is None:
                silent = report is None
                measured[f"{name}_error"] = (
                    "no report yet" if silent else "the module can't read it"
                )
        row["telemetry"] = measured
        row["window"] = (
            {"connected": cnm.channel.connected, "counters": dict(cnm.channel.counters)}
            if cnm.channel is not None
            else None
        )
        row["instances"] = [
            {
                "instance": s.instance,
                "generation": s.generation,
                "state": InstanceState(s.state).name if s.state in PHASES else str(s.state),
                "pid": s.pid or None,
                "text": s.text,
                **_usage(cnm, s),
            }
            for s in sorted(cnm.observed.values(), key=lambda s: s.instance)
        ]
        return row

    def _capacity(self, cnm: Cnm) -> dict[str, Any] | None:
        capabilities = cnm.capabilities
        if capabilities is None:
            return None
        return {
            "arch": capabilities.arch,
            "cpu_milli": capabilities.cores_milli,
            "memory_bytes": capabilities.memory_bytes,
            "nvme_bytes": capabilities.nvme_bytes,
            "link_mbit": capabilities.link_mbit,
            "runtimes": list(capabilities.runtimes),
            "labels": dict(capabilities.labels),
            "accelerators": [
                {
                    "kind": item.kind,
                    "model": item.model,
                    "count": item.count,
                    "scope": "fabric" if item.scope == Scope.FABRIC else "local",
                }
                for item in capabilities.accelerators
            ],
        }

    def _link(self, cnm: Cnm, name: str, now_ns: int) -> dict[str, Any]:
        endpoint = cnm.mc if name == "mc" else cnm.agent
        link = endpoint.link
        heard = link.last_rx_ns
        return {
            "name": name,
            "spec": cnm.config.mc if name == "mc" else cnm.config.agent,
            "up": link.up,
            "dialect": link.dialect.value,
            "silent_ms": None if heard is None else (now_ns - heard) // MS,
            "counters": dict(sorted((link.drops + endpoint.counters).items())),
        }


def _usage(cnm: Cnm, status: InstanceStatus) -> dict[str, Any]:
    """What an instance was measured to use: null and why where it could not be read."""
    entry = cnm.usage.get(status.instance)
    if entry is not None and entry.generation != status.generation:
        entry = None
    shown: dict[str, Any] = {}
    for name in USAGE_FIELDS:
        value = entry.reading(name) if entry is not None else None
        shown[name] = value
        if value is None:
            why = "no report of this generation yet" if entry is None else "not readable there"
            shown[f"{name}_error"] = why
    return shown


def _health(status: InstanceStatus | None) -> str | None:
    words = {1: "starting", 2: "healthy", 3: "unhealthy"}
    return words.get(int(status.health)) if status is not None else None


def _natural(item: tuple[str, object]) -> tuple[str, str, int]:
    workload, component, index = item[0].rsplit("/", 2)
    return workload, component, int(index)
