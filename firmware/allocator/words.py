"""Amounts in the words of a reason: "512 MiB", "1.5 GiB", "0.25 cores"."""

from typing import Final

_STEPS: Final = (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))


def bytes_text(amount: int) -> str:
    for unit, size in _STEPS:
        if abs(amount) >= size:
            return f"{_short(amount, size)} {unit}"
    return f"{amount} B"


def amount_text(dimension: str, amount: int) -> str:
    if dimension == "cpu":
        return f"{_short(amount, 1000, digits=3)} cores"
    if dimension in ("link", "nvme_bandwidth"):
        return f"{amount} Mbit/s"
    if dimension == "windows":
        return f"{amount} slots"
    return bytes_text(amount)


def shortage(dimension: str, want: int, free: int, total: int) -> str:
    """The sentence for one resource that is short."""
    free = max(free, 0)
    wants, has = amount_text(dimension, want), amount_text(dimension, free)
    if wants == has:  # they differ in what was rounded away
        wants, has = f"{want} B", f"{free} B"
    if free == total:
        return f"{dimension}: wants {wants}, has {has}"
    return f"{dimension}: wants {wants}, {has} free of {amount_text(dimension, total)}"


def _short(amount: int, size: int, *, digits: int = 2) -> str:
    """A few digits after the point, none that say nothing; rounded down."""
    whole, rest = divmod(amount, size)
    fraction = f"{rest * 10**digits // size:0{digits}d}".rstrip("0")
    return f"{whole}.{fraction}" if fraction else f"{whole}"
