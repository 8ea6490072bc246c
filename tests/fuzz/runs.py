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
from types import FrameType
from typing import Any, Final, TypeAlias

from hal.linux.clock import LinuxClock
from tests.fuzz.corpus import CORPUS, inputs_of, name_of, write
from tests.fuzz.mutate import Mutator
from tests.fuzz.target import Check, Target

ROOT: Final = Path(__file__).resolve().parents[2]
LOOK_EVERY: Final = 64  # inputs between two looks at the clock
SLOW_S: Final = 20  # of one input: a hang
MEMORY_MB: Final = 2048
CRASH_STATUS: Final = 77
OURS: Final = tuple(f"{ROOT}/{room}/" for room in ("firmware", "hal", "protocol", "tools"))
Arc: TypeAlias = tuple[str, int, int]  # file, line, the line after it
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
    """Of all inputs the small ones that, one after the other, reach a line after a line that none
    before them did, into the corpus; how many."""
    known = sorted({*inputs_of(target), *(path.read_bytes() for path in found.iterdir())}, key=len)
    reached: set[Arc] = set()
    chosen, total = [], 0
    with scratch_dir() as scratch:
        check = target.make(Path(scratch))
        for data in known:
            new = _arcs(check, data) - reached
            if not new or total + len(data) > limit_bytes:
                continue
            reached |= new
            chosen.append(data)
            total += len(data)
    folder = CORPUS / target.name
    for old in folder.iterdir() if folder.is_dir() else ():
        old.unlink()
    return write(folder, chosen)


def _arcs(check: Check, data: bytes) -> set[Arc]:
    """The steps from line to line in our own code that one input takes."""
    arcs: set[Arc] = set()

    def enter(frame: FrameType, _event: str, _arg: object) -> Callable[..., Any] | None:
        name = frame.f_code.co_filename
        if not name.startswith(OURS):
            return None
        before = 0

        def step(frame: FrameType, event: str, _arg: object) -> Callable[..., Any]:
            nonlocal before
            if event == "line":
                arcs.add((name, before, frame.f_lineno))
                before = frame.f_lineno
            return step

        return step

    sys.settrace(enter)
    try:
        check(data)
    finally:
        sys.settrace(None)
    return arcs
