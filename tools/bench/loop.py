"""`apf bench loop`: 1,000 pipes x 10 messages a second on our loop, beside asyncio (DESIGN D2)."""

from statistics import median
from typing import Final

from tools.bench.figures import THOUSAND_CNMS_PERCENT, Figure, Goal, Unmeasured
from tools.bench.measure import Bench, ask_program

PIPES: Final = 1000
PER_S: Final = 10
TIMEOUT_S: Final = 30.0
_PROGRAM: Final = "tools.bench.loop_program"
_UNIT: Final = "% of a core"


def run(bench: Bench) -> list[Figure]:
    """All rows. The kinds take turns, so that a busy machine is as busy for each."""
    repeats = bench.pick(3, 1)
    seconds = 0.3 if bench.quick else 1.0
    found: dict[str, list[float]] = {"loop": [], "asyncio": [], "links": []}
    errors: dict[str, str] = {}
    for _ in range(repeats):
        for kind, values in found.items():
            try:
                values.append(_percent(kind, seconds))
            except Unmeasured as exc:
                errors[kind] = str(exc)
    value = {kind: median(values) if values else None for kind, values in found.items()}

    def row(name: str, kind: str, base: str, base_name: str, goal: Goal | None = None) -> Figure:
        return Figure(
            name=f"loop.{name}",
            value=value[kind],
            unit=_UNIT,
            baseline=value[base],
            baseline_name=base_name,
            goal=goal,
            error=errors.get(kind),
        )

    return [
        row("1000_pipes_10_per_s", "loop", "asyncio", "asyncio add_reader"),
        row("1000_links_10_per_s", "links", "loop", "the loop alone", THOUSAND_CNMS_PERCENT),
    ]


def _percent(kind: str, seconds: float) -> float:
    """CPU time a message, times the messages of a second, as a share of one core: a writer that
    is held up by others does not make the reader look better."""
    found = ask_program(_PROGRAM, [kind, PIPES, PER_S, seconds], timeout_s=TIMEOUT_S)
    if not found["messages"]:
        raise Unmeasured(f"{kind}: no message came within {seconds:g} s")
    return float(found["cpu_ns"]) / float(found["messages"]) * PIPES * PER_S / 1e7
