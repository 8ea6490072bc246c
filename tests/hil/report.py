"""What a run has shown: one row a case, as a table for people and JSON for machines."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

SCHEMA: Final = "apf-hil/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One case. `status`: passed, failed, skipped."""

    name: str
    machine: str
    required: bool
    status: str
    time_ms: int
    driver: str = ""
    device: str = ""
    numbers: dict[str, Any] = field(default_factory=dict)
    health: dict[str, int] = field(default_factory=dict)
    text: str = ""  # why it failed or was skipped

    @property
    def good(self) -> bool:
        """A required case must have run."""
        return self.status == "passed" or (self.status == "skipped" and not self.required)


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """One start of a machine."""

    machine: str
    kernel: str
    boot_ms: int


def summary(rows: Sequence[Row]) -> str:
    """`12 passed, 1 failed, 2 skipped (1 of them required)`."""
    counts = {
        status: sum(row.status == status for row in rows)
        for status in ("passed", "failed", "skipped")
    }
    missing = sum(row.status == "skipped" and row.required for row in rows)
    text = ", ".join(f"{count} {status}" for status, count in counts.items())
    return f"{text} ({missing} of them required)" if counts["skipped"] else text


def as_json(rows: Sequence[Row], boots: Sequence[Boot], time_ms: int) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "ok": all(row.good for row in rows),
        "time_ms": time_ms,
        "boots": [asdict(boot) for boot in boots],
        "cases": [asdict(row) for row in rows],
    }


def as_table(rows: Sequence[Row]) -> str:
    """Columns of the widths that they need; what failed or was skipped below."""
    lines = [("CASE", "MACHINE", "RESULT", "TIME", "DRIVER", "DEVICE", "NUMBERS")]
    lines += [
        (
            row.name.replace("_", " "),
            row.machine,
            row.status,
            f"{row.time_ms / 1000:.1f} s",
            row.driver,
            row.device,
            ", ".join(f"{key} {value}" for key, value in row.numbers.items()),
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(6)]
    text = [
        "  ".join(
            [*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[6]]
        )
        for line in lines
    ]
    for row in rows:
        if row.text:
            text += ["", f"{row.name} {row.status}:", *(f"  {t}" for t in row.text.splitlines())]
    return "\n".join(line.rstrip() for line in text)
