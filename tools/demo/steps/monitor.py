"""`monitor`: what the card reports of a busy CNM is what the kernel has counted."""

from typing import Any, Final

from tools.demo import observe
from tools.demo.context import SHOP, Context
from tools.demo.errors import hold
from tools.demo.runner import Proofs

REPORTS: Final = 3
TOLERANCE_PERCENT: Final = 20
BURN: Final = f"{SHOP}/burn/0"


def monitor(context: Context) -> Proofs:
    """A component burns processor time; telemetry against its cgroup's own counter."""
    row = context.rows()[BURN]
    cgroup = observe.cgroup_of(row.pid)
    if not observe.cnm_of(cgroup):
        yield "no cgroup here, so neither telemetry nor a counter of the kernel"
        return
    reports: list[dict[str, Any]] = []
    old: list[int] = []
    counted: list[tuple[int, int, int]] = []  # when, CNM's and component's counters

    def look() -> bool:
        shown = context.apf.ask("cnm.show", id=row.cnm)
        report = _report(shown)
        if report is not None and not old:
            old.append(report["cpu_us"])  # of unknown age: only a change tells when it came
        if report is not None and report["cpu_us"] != old[-1]:
            old.append(report["cpu_us"])
            reports.append(report)
            counted.append(
                (
                    context.clock.now_ns(),
                    observe.cgroup_cpu_us(f"{context.cgroup}/{row.cnm}") or 0,
                    observe.cgroup_cpu_us(cgroup) or 0,
                )
            )
        return len(reports) > REPORTS

    context.wait(f"{REPORTS} reports of {row.cnm}", look, every_ms=15)
    span_ms = (counted[-1][0] - counted[0][0]) // 1_000_000
    used_us = counted[-1][2] - counted[0][2]
    told_us = reports[-1]["cpu_us"] - reports[0]["cpu_us"]
    _agree(f"{BURN}: telemetry counts {told_us} us", told_us, used_us)
    yield (
        f"{BURN} over {span_ms} ms: telemetry {told_us // 1000} ms of processor time, its "
        f"cgroup's counter {used_us // 1000} ms"
    )
    node_used = (counted[-1][1] - counted[0][1]) // span_ms
    node_told = sum(report["node_cpu_milli"] for report in reports[1:]) // (len(reports) - 1)
    _agree(f"{row.cnm}: telemetry says {node_told} milli-cores", node_told, node_used)
    yield f"{row.cnm}: telemetry {node_told} milli-cores, its cgroup's counter {node_used}"


def _report(shown: dict[str, Any]) -> dict[str, Any] | None:
    """The parts of `cnm show` that are looked at, once there are any."""
    item = next((item for item in shown["instances"] if item["instance"] == BURN), None)
    if item is None or item.get("cpu_us") is None:
        return None
    node = shown["telemetry"]["cpu_milli"]
    return None if node is None else {"cpu_us": item["cpu_us"], "node_cpu_milli": node}


def _agree(what: str, told: int, used: int) -> None:
    far = abs(told - used) * 100 > TOLERANCE_PERCENT * used
    hold(used > 0 and not far, f"{what}, the kernel {used}: over {TOLERANCE_PERCENT} % apart")
