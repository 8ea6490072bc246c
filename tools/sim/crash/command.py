"""`apf sim --crash-points`: the sweep, for people and for scripts."""

import os
from collections.abc import Callable

from tools.errors import CheckFailed
from tools.output import Output
from tools.sim.crash.report import run
from tools.sim.crash.vfs import NotRecordable


def crash_points(
    out: Output, operations: int, seed: int, jobs: int, tell: Callable[[int], None]
) -> int:
    """Sweep, and say what was found; 1 when a cut broke a promise. `tell` is told the percent
    that is done, when it changes. Raises CheckFailed where this Python can't be watched."""
    said = 0

    def progress(done: int, total: int) -> None:
        nonlocal said
        percent = 100 * done // total if total else 100
        if percent != said:
            said = percent
            tell(percent)

    try:
        report = run(operations, seed, jobs=jobs or len(os.sched_getaffinity(0)), progress=progress)
    except NotRecordable as exc:
        raise CheckFailed("not_recordable", str(exc)) from exc

    def show() -> None:
        for line in report.lines():
            out.print(line)

    out.data("crash_points", report.to_json(), show)
    return 0 if report.good else 1
