"""How the benchmarks measure: CPU time, medians, and programs of their own.

CPU time is this process's own clock (clock_gettime(2), CLOCK_PROCESS_CPUTIME_ID): it does not run
while others have the processor, and nothing waits by it.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from hal.linux.clock import LinuxClock
from tools.bench.figures import Unmeasured

ROOT: Final = Path(__file__).resolve().parent.parent.parent  # where `python -m tools` works
ERROR_TAIL_CHARS: Final = 300
_BYTECODE_VARIABLES: Final = ("PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What a benchmark is given."""

    state_dir: Callable[[], Path]  # the card's, which is not touched: its filesystem is measured
    quick: bool  # shape before precision: below 3 s each
    say: Callable[[str], None]  # words on stderr

    def pick(self, usual: int, quick: int) -> int:
        """How much of something."""
        return quick if self.quick else usual


def cpu_ns() -> int:
    """CPU time that this process has used."""
    return time.process_time_ns()


def cpu_us_per_call(batch: Callable[[], int], repeats: int) -> float:
    """Median over `repeats` of the CPU time of one call; `batch()` says how many it made."""
    batch()  # warm: caches, lazy imports, the first growth of dictionaries
    found = []
    for _ in range(repeats):
        start_ns = cpu_ns()
        calls = batch()
        found.append((cpu_ns() - start_ns) / calls / 1000)
    return median(found)


def program_env() -> dict[str, str]:
    """The environment of a program of ours, started from anywhere."""
    rest = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{rest}" if rest else str(ROOT)}


@contextmanager
def with_bytecode(folder: Path) -> Iterator[None]:
    """Programs that are started inside find compiled modules, as they do where the package is
    installed: where this environment forbids Python to keep bytecode, in `folder`."""
    if not sys.dont_write_bytecode:
        yield
        return
    before = {name: os.environ.pop(name, None) for name in _BYTECODE_VARIABLES}
    os.environ["PYTHONPYCACHEPREFIX"] = str(folder)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def ask_program(module: str, args: Sequence[object], *, timeout_s: float) -> Mapping[str, Any]:
    """Run `python -m module args` in an interpreter of its own, so that what this one has
    imported does not count; the JSON object that it prints. Raises Unmeasured."""
    argv = [sys.executable, "-m", module, *(str(arg) for arg in args)]
    try:
        ended = subprocess.run(
            argv,
            env=program_env(),
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise Unmeasured(f"{module} did not end within {timeout_s:g} s") from exc
    if ended.returncode:
        words = ended.stderr.decode(errors="replace").strip()[-ERROR_TAIL_CHARS:]
        raise Unmeasured(f"{module} ended with status {ended.returncode}: {words}")
    found = json.loads(ended.stdout)
    assert isinstance(found, dict)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of a program."""

    wall_ms: float
    cpu_ms: float


def time_program(argv: Sequence[str]) -> Run:
    """Wall and CPU time of a program from its start to its end. Raises Unmeasured."""
    clock = LinuxClock()
    try:
        start_ns = clock.now_ns()
        child = subprocess.Popen(
            argv, env=program_env(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        _pid, status, usage = os.wait4(child.pid, 0)  # its own usage, nobody else's
        wall_ns = clock.now_ns() - start_ns
        child.returncode = os.waitstatus_to_exitcode(status)
    finally:
        clock.close()
    if child.returncode:
        raise Unmeasured(f"{' '.join(argv)} ended with status {child.returncode}")
    return Run(wall_ms=wall_ns / 1e6, cpu_ms=(usage.ru_utime + usage.ru_stime) * 1000)
