"""`apf bench scale`: a card of 1,000 modules with 4,000 components, from its start on.

The daemon is measured alone, in a process of its own (`scale_daemon`); its modules are played by
another (`scale_farm`): twelve messages a second from each, ten of them heartbeats, each of which
is granted. `managing` is when every module is LEASED again and every component was seen to run.
The daemon is killed and started again; nothing may have been fenced meanwhile.
"""

import contextlib
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Final

from hal.linux.clock import LinuxClock
from tools.bench.card import cpu_time_ns, kill, rss_bytes
from tools.bench.figures import (
    LEFT_OUT,
    MANAGING_AGAIN_MS,
    READY_MS,
    RSS_MB,
    THOUSAND_CNMS_PERCENT,
    Figure,
    Goal,
    Unmeasured,
)
from tools.bench.measure import Bench, program_env, with_bytecode
from tools.bench.scale_card import PER_CNM, write_journal
from tools.bench.timing import MS, SECOND

CNMS: Final = 1000
QUICK_CNMS: Final = 20
RESTARTS: Final = 3
SPAN_NS: Final = 10 * SECOND
QUICK_SPAN_NS: Final = SECOND // 2
SETTLE_NS: Final = 2 * SECOND
QUICK_SETTLE_NS: Final = SECOND // 10
TIMEOUT_S: Final = 60.0
MB: Final = 1_000_000
_ROWS: Final[dict[str, tuple[str, Goal | None]]] = {
    "cpu": ("%", THOUSAND_CNMS_PERCENT),
    "rss": ("MB", RSS_MB),
    "ready": ("ms", READY_MS),
    "killed_to_managing": ("ms", MANAGING_AGAIN_MS),
    "killed_to_managing_cpu": ("ms", None),
    "fenced": ("modules", None),
}


def run(bench: Bench) -> list[Figure]:
    """All rows."""
    cnms = bench.pick(CNMS, QUICK_CNMS)
    found: dict[str, float] = {}
    error = LEFT_OUT
    try:
        bench.say(f"bench scale: {cnms} modules, {cnms * PER_CNM} components ...")
        with tempfile.TemporaryDirectory(prefix="apfb-") as name, with_bytecode(Path(name)):
            _measure(bench, Path(name), cnms, found)
    except Unmeasured as exc:
        error = str(exc)
    return [
        Figure(
            name=f"scale.{row}",
            unit=unit,
            value=found.get(row),
            goal=goal,
            error=None if row in found else error,
        )
        for row, (unit, goal) in _ROWS.items()
    ]


def _measure(bench: Bench, folder: Path, cnms: int, found: dict[str, float]) -> None:
    write_journal(folder / "journal.db", cnms)
    clock = LinuxClock()
    farm_path = str(folder / "farm")
    try:
        with _program("scale_farm", farm_path, cnms) as farm:
            _line(farm, "ready")
            ready_ms, back_ms, back_cpu_ms, fenced = [], [], [], 0
            for turn in range(1 + bench.pick(RESTARTS, 1)):
                began_ns = clock.now_ns()
                with _program("scale_daemon", farm_path, folder, cnms) as daemon:
                    _line(daemon, "ready")
                    ready_ms.append((clock.now_ns() - began_ns) / MS)
                    fenced += int(_line(daemon, "managing"))
                    if turn:
                        back_ms.append((clock.now_ns() - began_ns) / MS)
                        back_cpu_ms.append(cpu_time_ns(daemon.pid) / MS)
                    if turn == 0:
                        clock.wait(clock.now_ns() + bench.pick(SETTLE_NS, QUICK_SETTLE_NS))
                        found["cpu"] = _share(clock, daemon.pid, bench)
                        found["rss"] = rss_bytes(daemon.pid) / MB
                    kill(daemon.pid, signal.SIGKILL)
            found["ready"] = median(ready_ms)
            found["killed_to_managing"] = median(back_ms)
            found["killed_to_managing_cpu"] = median(back_cpu_ms)
            found["fenced"] = fenced
            if fenced:
                bench.say(f"{fenced} modules were fenced by a restart: the machine was too busy")
    finally:
        clock.close()


def _share(clock: LinuxClock, pid: int, bench: Bench) -> float:
    """Of one core, in percent."""
    span_ns = bench.pick(SPAN_NS, QUICK_SPAN_NS)
    cpu_ns, start_ns = cpu_time_ns(pid), clock.now_ns()
    clock.wait(start_ns + span_ns)
    return 100 * (cpu_time_ns(pid) - cpu_ns) / (clock.now_ns() - start_ns)


@contextlib.contextmanager
def _program(name: str, *args: object) -> Iterator[subprocess.Popen[str]]:
    """A program of this benchmark, ended with the block, or with us by its standard input."""
    child = subprocess.Popen(
        [sys.executable, "-m", f"tools.bench.{name}", *(str(arg) for arg in args)],
        env=program_env(),
        start_new_session=True,  # so that it can ask for more of the processor
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield child
    finally:
        child.kill()
        child.wait()
        for end in (child.stdin, child.stdout):
            if end is not None:
                end.close()


def _line(child: "subprocess.Popen[str]", word: str) -> str:
    """The rest of the line that begins with `word`. Raises Unmeasured."""
    out = child.stdout
    assert out is not None
    ready, _, _ = select.select([out], [], [], TIMEOUT_S)
    text = out.readline() if ready else "nothing"
    if not text.startswith(word):
        raise Unmeasured(f"{child.args!r} said {text!r}, {word!r} was expected")
    return text[len(word) :].strip() or "0"
