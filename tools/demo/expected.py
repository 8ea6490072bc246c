"""What the components of the demo must have written, known beforehand and from no one else."""

import hashlib
import re
from collections.abc import Mapping
from typing import Final

from tools.demo.errors import StepFailed

GREETING: Final = "hello"
_LEDGER_LINE: Final = re.compile(r"(\d+) (\d+)\.(\d\d)\Z")


def catalog_files() -> Mapping[str, bytes]:
    """Path in the volume -> content (`seq` writes a number a line)."""
    return {
        "numbers": numbered(50_000),
        "deep/er/items": numbered(2_000),
        "empty": b"",
        "ready": b"",
    }


CATALOG_LINK: Final = ("latest", "numbers")


def numbered(last: int) -> bytes:
    """As seq(1) writes it."""
    return b"".join(b"%d\n" % number for number in range(1, last + 1))


def catalog_output() -> list[str]:
    """As sha256sum(1) prints it, and the last word."""
    files = catalog_files()
    names = ("numbers", "deep/er/items", "empty")
    return [
        *(f"{hashlib.sha256(files[name]).hexdigest()}  {name}" for name in names),
        "catalog ready",
    ]


def output_of(component: str, instance: str) -> list[str]:
    """The first lines of a component's log."""
    known = {
        "seed": ["seeded"],
        "catalog": catalog_output(),
        "infer": ["infer ready"],
        "burn": ["burning"],
        "web": [f"{GREETING} from {instance}: page {page}" for page in (1, 2)],
    }
    return known[component]


def ledger_entries(text: str) -> list[tuple[int, int]]:
    """(number, centiseconds of uptime) of each whole line. Raises StepFailed for any other."""
    entries = []
    for line in text.split("\n")[:-1]:
        found = _LEDGER_LINE.match(line)
        if found is None:
            raise StepFailed(f"the ledger holds a line that is none: {line[:60]!r}")
        entries.append((int(found[1]), 100 * int(found[2]) + int(found[3])))
    return entries


def check_consecutive(entries: list[tuple[int, int]], first: int, what: str) -> None:
    """Numbers without a gap or a repetition from `first` on. Raises StepFailed at the first."""
    for wanted, (number, _) in enumerate(entries, first):
        if number != wanted:
            raise StepFailed(f"{what}: {number} where {wanted} should be")


def last_stay(entries: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The end of a log from its last jump on: a CNM keeps what an instance wrote on it earlier,
    before it was elsewhere."""
    jumps = [at for at in range(1, len(entries)) if entries[at][0] != entries[at - 1][0] + 1]
    return entries[jumps[-1] :] if jumps else entries
