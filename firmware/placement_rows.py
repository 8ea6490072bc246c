"""Rows of what is shown of the allocator, one fixed schema each (INTERFACES.md, "JSON").

Amounts come with their unit: `milli` thousandths of a core or of an accelerator, `bytes`, `mbit`
Mbit/s, `slots`. What can't be read is null beside "<key>_error".
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

from firmware.allocator import Demand
from firmware.allocator.explain import Verdict
from firmware.allocator.score import CRITERIA
from firmware.allocator.types import DIMENSIONS
from firmware.cnm_view import why_not
from firmware.inventory import Cnm
from firmware.occupancy import RESOURCES, Amounts, Shape

UNITS: Final[Mapping[str, str]] = {
    "cpu": "milli",
    "memory": "bytes",
    "nvme": "bytes",
    "link": "mbit",
    "nvme_bandwidth": "mbit",
    "windows": "slots",
    "accelerators": "milli",
}
UNMEASURED: Final = "not measured"


def verdict_row(one: Verdict, here: str | None, pins: frozenset[str]) -> dict[str, Any]:
    """One module of an explanation."""
    reason, remedies = one.reason, [asdict(remedy) for remedy in one.remedies]
    if pins and one.cnm not in pins:
        reason = "its volume is in use on " + ", ".join(sorted(pins))
        for remedy in remedies:
            if remedy["kind"] == "exclude":
                remedy.update(kind="volume", text=f"its volume on {one.cnm}")
    return {
        "id": one.cnm,
        "here": one.cnm == here,
        "fits": one.fits,
        "rank": one.rank,
        "reason": reason,
        "criteria": dict(zip(CRITERIA, one.criteria, strict=False)),
        "resources": [
            {
                "resource": line.resource,
                "unit": UNITS[line.resource],
                "want": line.want,
                "free": line.free,
                "total": line.total,
                "short": line.short,
            }
            for line in one.resources
        ],
        "accelerators": [asdict(line) for line in one.accelerators],
        "remedies": remedies,
        "releases": list(one.releases),
    }


def silent_row(cnm: Cnm, here: str | None) -> dict[str, Any]:
    """A module that has not yet said what it has: no numbers."""
    return {
        "id": cnm.id,
        "here": cnm.id == here,
        "fits": False,
        "rank": None,
        "reason": why_not(cnm) or "it has not said what it is",
        "criteria": {},
        "resources": [],
        "accelerators": [],
        "remedies": [],
        "releases": [],
    }


def demand_row(demand: Demand) -> dict[str, Any]:
    """What an instance reserves, each resource by its name, and the accelerators."""
    return {
        "resources": [
            {"resource": name, "unit": UNITS[name], "want": want}
            for name, want in zip(DIMENSIONS, demand.vector, strict=True)
        ],
        "accelerators": [asdict(item) for item in demand.accelerators],
    }


def shape_row(shape: Shape) -> dict[str, Any]:
    """One demand of the mix, and its weight among them."""
    return {
        "weight": shape.weight,
        "resources": [
            {"resource": name, "unit": UNITS[name], "want": want}
            for name, want in zip(RESOURCES, shape.wants, strict=True)
        ],
    }


def amounts_row(name: str, amounts: Amounts, used: int | str) -> dict[str, Any]:
    """One resource; `used` in words is why it is not known."""
    row: dict[str, Any] = {
        "resource": name,
        "unit": UNITS[name],
        "total": amounts.total,
        "reserved": amounts.reserved,
        "used": used if isinstance(used, int) else None,
        "free": amounts.free,
        "largest_free": amounts.largest_free,
        "stranded": amounts.stranded,
        "fragmented_permille": amounts.fragmented_permille,
    }
    if isinstance(used, str):
        row["used_error"] = used
    if row["fragmented_permille"] is None:
        row["fragmented_permille_error"] = "nothing of it is free, or nobody wants it"
    return row
