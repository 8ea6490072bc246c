"""The committed corpus: `corpus/TARGET/HASH`, one input a file, smallest first."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from tests.fuzz.target import Target

CORPUS: Final = Path(__file__).parent / "corpus"
NAME_CHARS: Final = 12


def name_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:NAME_CHARS]


def committed(target: Target, top: Path = CORPUS) -> list[bytes]:
    """The inputs of a target that are in the repository; empty when there are none."""
    folder = top / target.name
    found = [path.read_bytes() for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(found, key=lambda data: (len(data), data))


def inputs_of(target: Target, top: Path = CORPUS) -> list[bytes]:
    """Seeds from our own encoders, and the corpus."""
    return list(dict.fromkeys([*target.seeds(), *committed(target, top)]))


def write(folder: Path, inputs: Iterable[bytes]) -> int:
    """Each input as a file; how many."""
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for data in inputs:
        (folder / name_of(data)).write_bytes(data)
        count += 1
    return count
