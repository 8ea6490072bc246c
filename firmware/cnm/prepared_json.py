"""`Prepared` over the stream from the agent, which makes it, to init, which runs it."""

import re
from typing import Any, Final

from firmware.cnm.health_spec import Healthcheck
from firmware.cnm.records import Prepared
from firmware.fields import Fields
from hal.ports import InstanceLimits, InstanceSpec, MountSpec

MOUNTS_LIMIT: Final = 128
TIME_MAX_MS: Final = 86_400_000
_KEY: Final = re.compile(r"[a-z0-9.-]{1,64}")  # as InstanceSpec says
_ENV_KEY: Final = re.compile(r"[^=\0]{1,256}")


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


def prepared_from_json(value: object) -> Prepared:
    """Raises FieldError. The far end is our own agent, but init must outlive its bugs."""
    fields = Fields(value)
    prepared = Prepared(
        runtime=fields.text("runtime", max_bytes=32),
        spec=fields.object("spec", _spec),
        healthcheck=fields.object_or_none("healthcheck", _healthcheck),
        stop_signal=_signal(fields),
    )
    fields.done()
    return prepared


def _spec(fields: Fields) -> InstanceSpec:
    return InstanceSpec(
        key=fields.text("key", pattern=_KEY, want="a key like shop-web-0.1a2b3c4d.7"),
        argv=list(fields.texts("argv", max_items=1024, max_bytes=32768)),
        env=fields.mapping(
            "env",
            max_items=1024,
            key_pattern=_ENV_KEY,
            key_want="a variable's name without =",
            max_bytes=32768,
        ),
        cwd=fields.text("cwd"),
        user=fields.text("user"),
        hostname=fields.text("hostname"),
        rootfs=fields.text("rootfs"),
        read_only_rootfs=fields.boolean("read_only_rootfs"),
        mounts=[
            _mount(fields, item, index)
            for index, item in enumerate(fields.items("mounts", max_items=MOUNTS_LIMIT))
        ],
        limits=_limits(fields),
        stop_signal=_signal(fields),
    )


def _mount(fields: Fields, item: object, index: int) -> MountSpec:
    match item:
        case [str(source), str(target), bool(read_only)]:
            return MountSpec(source=source, target=target, read_only=read_only)
    raise fields.fail("mounts", "[source, target, read_only]", f"{item!r:.60} at {index}")


def _limits(fields: Fields) -> InstanceLimits:
    match fields.items("limits", max_items=3):
        case [int(cpu_milli), int(memory_bytes), int(pids)] if (
            min(cpu_milli, memory_bytes, pids) >= 0
        ):
            return InstanceLimits(cpu_milli=cpu_milli, memory_bytes=memory_bytes, pids=pids)
        case other:
            raise fields.fail("limits", "[cpu_milli, memory_bytes, pids]", f"{other!r:.60}")


def _signal(fields: Fields) -> int:
    return fields.integer("stop_signal", low=1, high=64)


def _healthcheck(fields: Fields) -> Healthcheck:
    return Healthcheck(
        argv=fields.texts("argv", max_items=1024, max_bytes=32768),
        interval_ms=fields.integer("interval_ms", low=1, high=TIME_MAX_MS),
        timeout_ms=fields.integer("timeout_ms", low=1, high=TIME_MAX_MS),
        retries=fields.integer("retries", low=1, high=1000),
        start_period_ms=fields.integer("start_period_ms", high=TIME_MAX_MS),
    )
