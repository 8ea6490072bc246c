"""`apf bench recovery`: crash points of the journal, rebuilt, opened and compared.

How many a second (CPU time of one core), how many there are, and how many did not recover. What a
killed daemon takes to manage 1,000 modules again is in `apf bench scale`.
"""

from typing import Final

from hal.errors import HalError
from tools.bench.figures import NONE, Figure
from tools.bench.measure import Bench
from tools.sim.crash import run as sweep
from tools.sim.crash.vfs import NotRecordable

OPERATIONS: Final = 150
QUICK_OPERATIONS: Final = 10


def run(bench: Bench) -> list[Figure]:
    """All rows."""
    operations = bench.pick(OPERATIONS, QUICK_OPERATIONS)
    bench.say(f"bench recovery: every crash point of {operations} operations ...")
    try:
        report = sweep(operations)
    except (NotRecordable, HalError) as exc:
        return [
            Figure(name=f"recovery.{name}", unit=unit, error=str(exc))
            for name, unit in (("points", "images"), ("rate", "1/s"), ("violations", "images"))
        ]
    return [
        Figure(name="recovery.points", value=report.total, unit="images"),
        Figure(name="recovery.rate", value=report.per_s, unit="1/s"),
        Figure(name="recovery.violations", value=len(report.violations), unit="images", goal=NONE),
    ]
