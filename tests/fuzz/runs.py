"""Running one target: plainly, or in a child under the coverage-guided engine."""

import os
import re
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from hal.linux.clock import LinuxClock
from tests.fuzz.corpus import CORPUS, inputs_of, name_of, write
from tests.fuzz.mutate import Mutator
from tests.fuzz.target import Check, Target

ROOT: Final = Path(__file__).resolve().parents[2]
LOOK_EVERY: Final = 64  # inputs between two looks at the clock
SLOW_S: Final = 20  # of one input: a hang
MEMORY_MB: Final = 2048
CRASH_STATUS: Final = 77
_DONE: Final = re.compile(rb"^#(\d+)\s", re.MULTILINE)


@dataclass(slots=True, kw_only=True)
class Result:
    """One target's run."""

    target: str
    engine: str
    inputs: int = 0
    seconds: float = 0.0
    accepted: int | None = None  # of `inputs`; the engine does not count them
    new: int = 0  # inputs that reached something new
    crashes: list[str] | None = None  # files

    @property
    def rate(self) -> int:
        return int(self.inputs / self.seconds) if self.seconds else 0

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "seconds": round(self.seconds, 1), "rate": self.rate}

    def line(self) -> str:
        crashes = self.crashes or []
        return (
            f"{self.target:16} {self.inputs:>10,} inputs  {self.rate:>7,}/s  "
            f"{self.new:>4} new  {len(crashes)} crashes ({self.engine})"
        )


def scratch_dir() -> "tempfile.TemporaryDirectory[str]":
    """On memory where there is some: a disk would be the bottleneck."""
    memory = Path("/dev/shm")
    place = str(memory) if os.access(memory, os.W_OK) else None
    return tempfile.TemporaryDirectory(prefix="apf-fuzz-", dir=place)


def engine_is_here() -> bool:
    try:
        import atheris  # noqa: F401
    except ImportError:
        return False
    return True


def replay(target: Target, data: bytes) -> bool:
    """One input; what it raises comes out."""
    with scratch_dir() as scratch:
        return target.make(Path(scratch))(data)


def run_plain(
    target: Target,
    *,
    seconds: float | None = None,
    inputs: int | None = None,
    seed: int = 0,
    crashes: Path | None = None,
    corpus: Path = CORPUS,
    on_progress: Callable[[Result], None] = lambda _result: None,
) -> Result:
    """Until `inputs` were tried, or `seconds` are over. The first crash ends it."""
    clock = LinuxClock()
    result = Result(target=target.name, engine="plain", accepted=0)
    known = inputs_of(target, corpus)
    mutator = Mutator(known, target.words, target.max_bytes, seed)
    start_ns = clock.now_ns()
    try:
        with scratch_dir() as scratch:
            check = target.make(Path(scratch))
            while inputs is None or result.inputs < inputs:
                if result.inputs % LOOK_EVERY == 0:
                    result.seconds = (clock.now_ns() - start_ns) / 1e9
                    on_progress(result)
                    if seconds is not None and result.seconds >= seconds:
                        break
                at = result.inputs
                data = known[at] if at < len(known) else mutator.next()
                if not _one(check, data, result, crashes):
                    break
        result.seconds = (clock.now_ns() - start_ns) / 1e9
    finally:
        clock.close()
    return result


def _one(check: Check, data: bytes, result: Result, crashes: Path | None) -> bool:
    """False when it was a crash; its trace is said, its input kept."""
    result.inputs += 1
    try:
        accepted = check(data)
    except Exception:  # any of them is what is looked for
        if crashes is None:
            raise
        crashes.mkdir(parents=True, exist_ok=True)
        file = crashes / f"{result.target}-{name_of(data)}"
        file.write_bytes(data)
        result.crashes = [str(file)]
        traceback.print_exc()
        return False
    result.accepted = (result.accepted or 0) + bool(accepted)
    return True


def run_guided(
    target: Target, *, seconds: int | None, inputs: int | None, crashes: Path, found: Path
) -> Result:
    """In a child, under the engine. New inputs go to `found`, crashes to `crashes`."""
    clock = LinuxClock()
    crashes.mkdir(parents=True, exist_ok=True)
    found.mkdir(parents=True, exist_ok=True)
    before = set(os.listdir(found))
    with scratch_dir() as scratch:
        seeds = Path(scratch) / "seeds"
        write(seeds, inputs_of(target))
        dictionary = Path(scratch) / "words"
        dictionary.write_text("".join(f'"{_quoted(word)}"\n' for word in target.words))
        prefix = f"{crashes}/{target.name}-"
        argv = [
            *_engine(target),
            *(str(found), str(seeds)),
            *(f"-artifact_prefix={prefix}", f"-max_len={target.max_bytes}"),
            *(f"-timeout={SLOW_S}", f"-rss_limit_mb={MEMORY_MB}"),
            *([f"-dict={dictionary}"] if target.words else []),
            *([f"-max_total_time={seconds}"] if seconds else []),
            *([f"-runs={inputs}"] if inputs else []),
        ]
        start_ns = clock.now_ns()
        done = subprocess.run(argv, cwd=ROOT, stderr=subprocess.PIPE, check=False)
        elapsed_s = (clock.now_ns() - start_ns) / 1e9
    clock.close()
    counts = [int(count) for count in _DONE.findall(done.stderr)]
    files = sorted(str(path) for path in crashes.glob(f"{target.name}-*"))
    if done.returncode and not files:
        raise RuntimeError(f"{target.name}: engine ended with {done.returncode}: {_tail(done)}")
    if done.returncode:
        sys.stderr.write(_tail(done))
    return Result(
        target=target.name,
        engine="atheris",
        inputs=max(counts, default=0),
        seconds=elapsed_s,
        new=len(set(os.listdir(found)) - before),
        crashes=files,
    )


def _engine(target: Target) -> list[str]:
    """The child imports, and so instruments, only what its target needs."""
    module = target.make.__module__
    return [sys.executable, "-m", "tests.fuzz", "engine", module, target.name]


def _tail(done: "subprocess.CompletedProcess[bytes]") -> str:
    return done.stderr.decode(errors="replace")[-3000:]


def _quoted(word: bytes) -> str:
    return "".join(
        chr(byte) if 32 <= byte < 127 and chr(byte) not in '"\\' else f"\\x{byte:02x}"
        for byte in word
    )


def minimise(target: Target, found: Path, *, limit_bytes: int) -> int:
    """The smallest of the inputs that reach as much, into the corpus; how many."""
    with scratch_dir() as scratch:
        seeds, merged = Path(scratch) / "seeds", Path(scratch) / "merged"
        write(seeds, inputs_of(target))
        merged.mkdir()
        argv = [
            *_engine(target),
            *("-merge=1", str(merged), str(seeds), str(found), f"-max_len={target.max_bytes}"),
        ]
        subprocess.run(argv, cwd=ROOT, stderr=subprocess.PIPE, check=True)
        kept = sorted((path.read_bytes() for path in merged.iterdir()), key=len)
    folder = CORPUS / target.name
    for old in folder.iterdir() if folder.is_dir() else ():
        old.unlink()
    chosen, total = [], 0
    for data in kept:
        total += len(data)
        if total > limit_bytes:
            break
        chosen.append(data)
    return write(folder, chosen)
