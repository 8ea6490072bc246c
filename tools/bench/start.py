"""`apf bench start`: from a process's start until it is ready, and what it then holds in memory.

Ready is the daemon's own `card.started` event (CLOCK_BOOTTIME) against the kernel's start time of
its process, so that neither the supervisor nor the polling of this tool is in it. `ready_cpu` is
the daemon's CPU time when it was first seen to be ready: what a busy machine does not change.
"""

import signal
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Final

from tools.bench.card import BenchCard, bench_card, cpu_time_ns, kill, rss_bytes, started_ns
from tools.bench.figures import (
    LEFT_OUT,
    MANAGING_AGAIN_MS,
    READY_MS,
    RSS_MB,
    Figure,
    Goal,
    Unmeasured,
)
from tools.bench.measure import Bench, Run, time_program, with_bytecode
from tools.bench.timing import MS

DAEMON_MODULE: Final = "firmware.app"
KILLS: Final = 3  # below the supervisor's limit of five deaths in 60 s
BACK_TIMEOUT_MS: Final = 20_000
BARE: Final = "bare python"
MB: Final = 1_000_000
_ROWS: Final[dict[str, tuple[str, Goal | None]]] = {
    "import_wall": ("ms", None),
    "import_cpu": ("ms", None),
    "ready": ("ms", READY_MS),
    "ready_cpu": ("ms", READY_MS),
    "up_to_all_leased": ("ms", None),
    "killed_to_managing": ("ms", MANAGING_AGAIN_MS),
    "rss_4_cnms": ("MB", RSS_MB),
}


def run(bench: Bench) -> list[Figure]:
    """All rows."""
    found: dict[str, tuple[float, float | None, str | None]] = {}
    error = LEFT_OUT if bench.quick else ""
    try:
        with tempfile.TemporaryDirectory(prefix="apfb-") as name, with_bytecode(Path(name)):
            bare = _programs("pass", bench.pick(9, 2))
            daemon = _programs(f"import {DAEMON_MODULE}", bench.pick(9, 2))
        wall_ms = median(item.wall_ms for item in bare)
        cpu_ms = median(item.cpu_ms for item in bare)
        found["import_wall"] = median(item.wall_ms for item in daemon), wall_ms, BARE
        found["import_cpu"] = median(item.cpu_ms for item in daemon), cpu_ms, BARE
        bench.say("bench start: a card in a temporary place ...")
        with bench_card(bench.say, compiled=not bench.quick) as card:
            _card_rows(card, bench, wall_ms, cpu_ms, found)
    except Unmeasured as exc:
        error = str(exc)
    rows = []
    for name, (unit, goal) in _ROWS.items():
        value, baseline, baseline_name = found.get(name, (None, None, None))
        rows.append(
            Figure(
                name=f"start.{name}",
                value=value,
                unit=unit,
                baseline=baseline,
                baseline_name=baseline_name,
                goal=goal,
                error=error,
            )
        )
    return rows


def _programs(code: str, repeats: int) -> list[Run]:
    argv = [sys.executable, "-c", code]
    time_program(argv)  # the page cache and the bytecode
    return [time_program(argv) for _ in range(repeats)]


def _card_rows(
    card: BenchCard,
    bench: Bench,
    bare_ms: float,
    bare_cpu_ms: float,
    found: dict[str, tuple[float, float | None, str | None]],
) -> None:
    pid = int(card.status["daemon_pid"])
    supervisor_ns = started_ns(int(card.status["supervisor_pid"]))
    ready_cpu_ms = [cpu_time_ns(pid) / MS]
    ready_ms = [_ready_ms(card, pid)]
    found["ready_cpu"] = ready_cpu_ms[0], bare_cpu_ms, BARE
    found["ready"] = ready_ms[0], bare_ms, BARE
    found["rss_4_cnms"] = rss_bytes(pid) / MB, None, None
    if bench.quick:
        return
    leased_ns = card.wait_leased()
    found["up_to_all_leased"] = (leased_ns - supervisor_ns) / MS, ready_ms[0], "daemon ready"
    found["rss_4_cnms"] = rss_bytes(pid) / MB, None, None
    back_ms = []
    for _ in range(KILLS):
        killed_ns = card.clock.now_ns()
        kill(pid, signal.SIGKILL)
        pid = _new_daemon(card, pid)
        ready_cpu_ms.append(cpu_time_ns(pid) / MS)
        back_ms.append((card.wait_leased(BACK_TIMEOUT_MS) - killed_ns) / MS)
        ready_ms.append(_ready_ms(card, pid))
    found["ready_cpu"] = median(ready_cpu_ms), bare_cpu_ms, BARE
    found["ready"] = median(ready_ms), bare_ms, BARE
    found["killed_to_managing"] = median(back_ms), median(ready_ms), "its process start to ready"


def _ready_ms(card: BenchCard, pid: int) -> float:
    begun_ns = started_ns(pid)
    for event in card.past_events():
        if event.code == "card.started":
            return (event.mono_ms * MS - begun_ns) / MS
    raise Unmeasured("the card has no event card.started")


def _new_daemon(card: BenchCard, old_pid: int) -> int:
    """The pid of the daemon that took the killed one's place."""
    pids: list[int] = []

    def other() -> bool:
        status = card.call("status")
        pids[:] = [int(status["daemon_pid"])]
        return bool(status["ready"]) and pids[0] != old_pid

    card.until("another daemon is ready", BACK_TIMEOUT_MS, other)
    return pids[0]
