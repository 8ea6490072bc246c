"""`Prepared` over the stream from the agent, which makes it, to init, which runs it."""

from collections.abc import Mapping
from typing import Any

from firmware.cnm.health_spec import Healthcheck
from firmware.cnm.records import Prepared
from hal.ports import InstanceLimits, InstanceSpec, MountSpec


def prepared_to_json(prepared: Prepared) -> dict[str, Any]:
    spec, check = prepared.spec, prepared.healthcheck
    return {
        "runtime": prepared.runtime,
        "stop_signal": prepared.stop_signal,
        "healthcheck": None
        if check is None
        else {
            "argv": list(check.argv),
            "interval_ms": check.interval_ms,
            "timeout_ms": check.timeout_ms,
            "retries": check.retries,
            "start_period_ms": check.start_period_ms,
        },
        "spec": {
            "key": spec.key,
            "argv": list(spec.argv),
            "env": dict(spec.env),
            "cwd": spec.cwd,
            "user": spec.user,
            "hostname": spec.hostname,
            "rootfs": spec.rootfs,
            "read_only_rootfs": spec.read_only_rootfs,
            "mounts": [[m.source, m.target, m.read_only] for m in spec.mounts],
            "limits": [spec.limits.cpu_milli, spec.limits.memory_bytes, spec.limits.pids],
            "stop_signal": spec.stop_signal,
        },
    }


def prepared_from_json(value: Mapping[str, Any]) -> Prepared:
    """Raises KeyError, TypeError or ValueError; the far end is our own agent."""
    spec, check = dict(value["spec"]), value["healthcheck"]
    cpu_milli, memory_bytes, pids = spec.pop("limits")
    mounts = [
        MountSpec(source=source, target=target, read_only=read_only)
        for source, target, read_only in spec.pop("mounts")
    ]
    limits = InstanceLimits(cpu_milli=cpu_milli, memory_bytes=memory_bytes, pids=pids)
    if check is not None:
        check = Healthcheck(**{**check, "argv": tuple(check["argv"])})
    return Prepared(
        runtime=value["runtime"],
        spec=InstanceSpec(**spec, mounts=mounts, limits=limits),
        healthcheck=check,
        stop_signal=value["stop_signal"],
    )
