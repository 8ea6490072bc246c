"""Containers or processes: what this machine allows, and why."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

BUSYBOX_PLACES: Final = ("/bin/busybox", "/usr/bin/busybox")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """`containers`: the oci runtime and an image of ours; else the image `host` and processes."""

    containers: bool
    root: bool  # volumes are mounted, cgroups made and all of /proc read
    busybox: str
    why: str

    @property
    def runtime(self) -> str:
        return "oci" if self.containers else "process"

    @property
    def image(self) -> str:
        return "busybox" if self.containers else "host"


def find_mode(
    *, uid: int | None = None, path: str | None = None, places: Sequence[str] = BUSYBOX_PLACES
) -> Mode:
    """Root, runc and a busybox make containers."""
    root = (os.geteuid() if uid is None else uid) == 0
    busybox = next((place for place in places if os.access(place, os.X_OK)), "")
    missing = [
        word
        for word, there in (
            ("the rights of root", root),
            ("runc", shutil.which("runc", path=path)),
            ("nsenter", shutil.which("nsenter", path=path)),
            ("busybox (busybox-static)", busybox),
        )
        if not there
    ]
    why = f"missing for containers: {', '.join(missing)}" if missing else "root, runc and busybox"
    return Mode(containers=not missing, root=root, busybox=busybox, why=why)


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))


def os_name() -> str:
    """PRETTY_NAME of os-release(5)."""
    try:
        lines = Path("/etc/os-release").read_text().splitlines()
    except OSError:
        return "an unknown system"
    line = next((line for line in lines if line.startswith("PRETTY_NAME=")), "")
    return line.partition("=")[2].strip('"') or "an unknown system"
