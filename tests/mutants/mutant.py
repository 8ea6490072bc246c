"""One seeded bug: its patch, the copy that it is applied to, and the run that must catch it."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, Self

ROOT: Final = Path(__file__).resolve().parent.parent.parent
HERE: Final = Path(__file__).resolve().parent
COPIED: Final = ("firmware", "protocol", "hal", "tools", "board_configs")
SEEDS: Final = 60  # within so many seeds each bug must be caught
BOARD: Final = "mock_4"
TIMEOUT_S: Final = 1800.0


@dataclass(frozen=True, kw_only=True)
class Caught:
    """The first violation."""

    seed: int
    invariant: str
    text: str

    def __str__(self) -> str:
        return f"seed {self.seed}, {self.invariant}"

    @classmethod
    def parse(cls, words: str) -> Self:
        """Reads what `str` gives. Raises ValueError."""
        found = re.fullmatch(r"seed (\d+), (.+)", words)
        if found is None:
            raise ValueError(f"{words!r}; want 'seed N, invariant'")
        return cls(seed=int(found[1]), invariant=found[2], text="")


@dataclass(frozen=True)
class Mutant:
    """A patch with a header of four lines:

    What: the bug in words
    Faults: as `apf sim --faults` takes them, those that bring it to light
    Hours: simulated, of each seed
    Caught: seed N, the invariant that it broke there
    """

    path: Path

    @property
    def name(self) -> str:
        return self.path.stem

    @cached_property
    def header(self) -> dict[str, str]:
        """By word, in the order of the file."""
        head = self.path.read_text().split("\n\n", 1)[0]
        return dict(line.split(": ", 1) for line in head.splitlines())

    @property
    def caught(self) -> Caught | None:
        """Where it was caught last; None when nobody has noted that yet."""
        words = self.header.get("Caught")
        return None if words is None else Caught.parse(words)

    def note(self, caught: Caught) -> None:
        """Write down where it is caught now."""
        header = {**self.header, "Caught": str(caught)}
        patch = self.path.read_text().split("\n\n", 1)[1]
        lines = "".join(f"{word}: {value}\n" for word, value in header.items())
        self.path.write_text(f"{lines}\n{patch}")

    def apply(self, tree: Path, *options: str) -> None:
        """Raises AssertionError with git's words when it does not fit the tree any more."""
        argv = ["git", "apply", *options, str(self.path)]
        done = subprocess.run(argv, cwd=tree, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{self.path.name} does not apply: {done.stderr}"

    def run(self, sound: Path, seeds: int) -> Caught | None:
        """Apply it to a copy of `sound` beside that, and look for a violation: with the seed that
        is noted, and when that has become blind to it, with all of 1 to `seeds`."""
        tree = copy_tree(sound.parent / self.name, sound)
        self.apply(tree)
        order = list(range(1, seeds + 1))
        if self.caught is not None:
            order.insert(0, self.caught.seed)
        try:
            return self.probe(tree, dict.fromkeys(order))
        finally:
            shutil.rmtree(tree)

    def probe(self, tree: Path, seeds: Iterable[int]) -> Caught | None:
        """These seeds in that tree, in an interpreter of its own, up to the first violation."""
        words = [BOARD, self.header["Hours"], self.header["Faults"], *map(str, seeds)]
        done = subprocess.run(
            [sys.executable, "-c", "".join(_program()), *words],
            cwd=tree,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, f"{self.name} in {tree}: {done.stderr[-2000:]}"
        found = json.loads(done.stdout.splitlines()[-1])
        return None if found is None else Caught(**found)


def mutants() -> list[Mutant]:
    """All of them, by name."""
    return [Mutant(path) for path in sorted(HERE.glob("*.patch"))]


def try_one(mutant: Mutant, sound: Path, seeds: int) -> tuple[Caught | None, Caught | None]:
    """(what caught it, what the same seed finds without it, in `sound`)."""
    found = mutant.run(sound, seeds)
    return found, None if found is None else mutant.probe(sound, [found.seed])


def copy_tree(tree: Path, source: Path = ROOT) -> Path:
    """What the simulator needs, as it is now."""
    ignore = shutil.ignore_patterns("__pycache__")
    for name in COPIED:
        shutil.copytree(source / name, tree / name, ignore=ignore)
    return tree


def _program() -> Iterator[str]:
    """Runs where the mutated packages are: it may import nothing of the tests."""
    yield "import json, pathlib, sys\n"
    yield "import firmware, protocol, hal.native_placement\n"
    yield "hal.native_placement.AVAILABLE = False\n"  # Python is what the patches are of
    yield "from tools.sim.run import run_seed\n"
    yield "here = pathlib.Path.cwd()\n"
    yield "assert pathlib.Path(firmware.__file__).is_relative_to(here), firmware.__file__\n"
    yield "assert pathlib.Path(protocol.__file__).is_relative_to(here), protocol.__file__\n"
    yield "board, hours, faults, *seeds = sys.argv[1:]\n"
    yield "found = None\n"
    yield "for seed in map(int, seeds):\n"
    yield "    outcome = run_seed(seed, board=board, hours=float(hours), faults=faults)\n"
    yield "    if outcome.violation is not None:\n"
    yield "        v = outcome.violation\n"
    yield "        found = dict(seed=seed, invariant=str(v.invariant), text=v.text)\n"
    yield "        break\n"
    yield "print(json.dumps(found))\n"
