"""What an instance needs and where it may be: processors, memory, devices, constraints.

A limit without a reservation reserves as much: the card promises what it places. A reservation
without a limit leaves the limit open.
"""

import re
from collections.abc import Callable
from typing import Any, Final

from firmware.workload import MAX_REPLICAS, NAME, canonical_arch
from tools.compose.cursor import Cursor
from tools.compose.units import UnitError, parse_cpu_milli

MAX_PIDS: Final = 4_194_304
_CONSTRAINT: Final = re.compile(r"\s*([A-Za-z0-9_./-]+)\s*(==|!=)\s*(\S.*?)\s*")


def read_resources(service: Cursor, extra: dict[str, Any]) -> dict[str, Any]:
    """`resources` of the normal form; `extra` is what x-apf and placement found."""
    limits, needs = _deploy(service, "limits"), _deploy(service, "reservations")
    cpu_limit = _one_of(service, "cpus", limits, "cpus", _cpus)
    if not cpu_limit:
        cpu_limit = _quota(service)
    memory_limit = _one_of(service, "mem_limit", limits, "memory", Cursor.size_bytes)
    cpu = _value(needs, "cpus", _cpus)
    memory = _one_of(service, "mem_reservation", needs, "memory", Cursor.size_bytes)
    for need, limit, key in ((cpu, cpu_limit, "cpus"), (memory, memory_limit, "memory")):
        if limit and need > limit:
            at = (needs.get(key) if needs is not None else None) or service
            at.problem(f"the {key} reserved are more than their limit")
    return {
        "cpu_milli": cpu or cpu_limit,
        "cpu_limit_milli": cpu_limit,
        "memory_bytes": memory or memory_limit,
        "memory_limit_bytes": memory_limit,
        "nvme_bytes": extra.get("nvme_bytes", 0),
        "nvme_mbit": extra.get("nvme_mbit", 0),
        "link_mbit": extra.get("link_mbit", 0),
        "window_slots": extra.get("window_slots", 0),
        "pids": _one_of(service, "pids_limit", limits, "pids", _pids),
        "arch": extra.get("arch"),
        "accelerators": _accelerators(service, needs),
    }


def _deploy(service: Cursor, key: str) -> Cursor | None:
    deploy = service.get("deploy")
    resources = deploy.get("resources") if deploy is not None else None
    return resources.get(key) if resources is not None else None


def _value(at: Cursor | None, key: str, read: Callable[[Cursor], int]) -> int:
    below = at.get(key) if at is not None else None
    return read(below) if below is not None else 0


def _one_of(
    service: Cursor, key: str, at: Cursor | None, other: str, read: Callable[[Cursor], int]
) -> int:
    """The same thing may be said in two places, but not differently (compose-spec, deploy.md)."""
    first, second = _value(service, key, read), _value(at, other, read)
    below = service.get(key)
    if first and second and first != second and below is not None and at is not None:
        below.problem(f"differs from {at.path}.{other}: say it once")
    return first or second


def _cpus(at: Cursor) -> int:
    try:
        return parse_cpu_milli(at.text)
    except UnitError as exc:
        at.problem(str(exc))
        return 0


def _pids(at: Cursor) -> int:
    return max(0, at.integer(low=-1, high=MAX_PIDS))


def _quota(service: Cursor) -> int:
    """cpu_quota in cpu_period (us, 100,000 unless said) is a share of processors."""
    quota, period = service.get("cpu_quota"), service.get("cpu_period")
    if quota is None:
        return 0
    period_us = 100_000
    if period is not None:
        period_us = period.integer(low=1, high=10**9, default=period_us)
    quota_us = quota.integer(low=-1, high=10**12)
    return -(-max(quota_us, 0) * 1000 // period_us)


def _accelerators(service: Cursor, needs: Cursor | None) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    devices = needs.get("devices") if needs is not None else None
    for at in devices.items() if devices is not None else ():
        found += _device(at, "")
    gpus = service.get("gpus")
    if gpus is not None and not isinstance(gpus.value, list):
        gpus.warn("gpus_all", "'all' is taken as one: instances are placed by count")
        found.append({"kind": "gpu", "model": None, "count": 1, "milli": 1000})
    for at in gpus.items() if gpus is not None else ():
        found += _device(at, "gpu")
    generic = needs.get("generic_resources") if needs is not None else None
    for at in generic.items() if generic is not None else ():
        found += _generic(at)
    if len(found) > 16:
        service.problem(f"wanted at most 16 device reservations, found {len(found)}")
    return found


def _device(at: Cursor, usual: str) -> list[dict[str, Any]]:
    capabilities = at.get("capabilities")
    words = [item.text for item in capabilities.items()] if capabilities is not None else []
    kind = "gpu" if "gpu" in words or not words else words[0].lower()
    kind = usual or kind
    ids, count = at.get("device_ids"), at.get("count")
    if ids is not None and count is not None:
        at.problem("count and device_ids exclude each other")
    number = 1
    if ids is not None:
        number = len(list(ids.items()))
        ids.warn(
            "unsupported_device_ids", "devices are chosen by the card; only their number counts"
        )
    elif count is None or count.text == "all":
        (count or at).warn("devices_all", "'all' is taken as one: instances are placed by count")
    else:
        number = count.integer(low=1, high=64, default=1)
    driver = at.get("driver")
    if driver is not None:
        driver.warn("unsupported_driver", "devices are chosen by kind, model and number")
    if NAME.fullmatch(kind) is None:
        at.problem(f"wanted a capability like gpu, found {kind[:40]!r}")
        return []
    return [{"kind": kind, "count": number, **_options(at.get("options"))}]


def _options(at: Cursor | None) -> dict[str, Any]:
    """`model` and `milli` (thousandths of a device) are ours; other options are for drivers."""
    found: dict[str, Any] = {"model": None, "milli": 1000}
    if at is None:
        return found
    pairs = list(at.entries()) + [(item.text.partition("=")[0], item) for item in at.items()]
    for key, below in pairs:
        text = below.text.partition("=")[2] if isinstance(at.value, list) else below.text
        if key == "model" and NAME.fullmatch(text):
            found["model"] = text
        elif key == "milli" and text.isascii() and text.isdigit() and 1 <= int(text) <= 1000:
            found["milli"] = int(text)
        elif key in found:
            below.problem("wanted model: NAME, milli: 1..1000")
        else:
            below.warn("unsupported_device_option", f"the option {key!r} is left out")
    return found


def _generic(at: Cursor) -> list[dict[str, Any]]:
    spec = at.get("discrete_resource_spec")
    kind = spec.get("kind") if spec is not None else None
    value = spec.get("value") if spec is not None else None
    if kind is None or value is None or NAME.fullmatch(kind.text.lower()) is None:
        at.problem("wanted discrete_resource_spec: {kind, value}")
        return []
    count = value.integer(low=1, high=64, default=1)
    return [{"kind": kind.text.lower(), "model": None, "count": count, "milli": 1000}]


def read_placement(service: Cursor) -> dict[str, Any]:
    """Constraints and preferences: {"labels", "spread", "max_per_cnm", "arch"}."""
    found: dict[str, Any] = {"labels": {}, "spread": False, "max_per_cnm": 0, "arch": None}
    deploy = service.get("deploy")
    placement = deploy.get("placement") if deploy is not None else None
    if placement is None:
        return found
    constraints = placement.get("constraints")
    for at in constraints.items() if constraints is not None else ():
        _constraint(at, found)
    preferences = placement.get("preferences")
    for at in preferences.items() if preferences is not None else ():
        spread = at.get("spread")
        if spread is not None:
            found["spread"] = True
            if spread.text != "node.id":
                text = "instances are spread over CNMs, not over the values of a label"
                spread.warn("spread_by_label", text)
    most = placement.get("max_replicas_per_node")
    if most is not None:
        found["max_per_cnm"] = most.integer(low=0, high=MAX_REPLICAS)
    return found


def _constraint(at: Cursor, found: dict[str, Any]) -> None:
    match = _CONSTRAINT.fullmatch(at.text)
    if match is None:
        at.problem(f"wanted 'node.labels.KEY == VALUE', found {at.shown()}")
        return
    key, operator, value = match[1], match[2], match[3]
    label = key.removeprefix("node.labels.")
    if operator == "==" and label != key and label:
        found["labels"][label] = value
    elif operator == "==" and key == "node.platform.arch":
        found["arch"] = canonical_arch(value)
    elif (key, operator, value) != ("node.platform.os", "==", "linux"):
        at.warn(
            "unsupported_constraint",
            "only node.labels.KEY == VALUE and node.platform.arch == ARCH are known; left out",
        )
