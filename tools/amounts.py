"""Amounts of a card's resources in words for people, by the unit that stands beside them."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from tools.output import human_bytes, human_cores

_HUMAN: Final[Mapping[str, Callable[[int], str]]] = {
    "bytes": human_bytes,
    "milli": human_cores,
    "mbit": lambda value: f"{value} Mbit/s",
    "slots": str,
}


def amount(value: int | None, unit: str) -> str:
    """1.5 GiB, 0.5, 200 Mbit/s; None is "-"."""
    return "-" if value is None else _HUMAN.get(unit, str)(value)


def asked(demand: Mapping[str, Any] | None) -> str:
    """What an instance reserves: `cpu 0.5, memory 512.0 MiB, 1 gpu`."""
    if demand is None:
        return "-"
    words = [
        f"{row['resource']} {amount(row['want'], row['unit'])}"
        for row in demand["resources"]
        if row["want"]
    ]
    for item in demand["accelerators"]:
        share = f" x {item['milli']} milli" if item["milli"] < 1000 else ""
        words.append(f"{item['count']}{share} {item['model'] or item['kind']}")
    return ", ".join(words) or "nothing"


def share(permille: int | None) -> str:
    """12.5 %; None is "-"."""
    return "-" if permille is None else f"{permille / 10:g} %"


def bar(permille: int | None, width: int = 10) -> str:
    """A bar of that many cells, in plain ASCII."""
    full = 0 if permille is None else min(max(permille, 0), 1000) * width // 1000
    return "#" * full + "." * (width - full)
