"""A root filesystem made of one busybox, for `apf image import`."""

import os
import shutil
from pathlib import Path
from typing import Final

APPLETS: Final = (
    "cat",
    "cut",
    "head",
    "ln",
    "mkdir",
    "mv",
    "seq",
    "sh",
    "sha256sum",
    "sleep",
    "sync",
    "tail",
    "tee",
    "test",
)
DIRECTORIES: Final = ("bin", "dev", "etc", "proc", "srv", "sys", "tmp")


def build_rootfs(busybox: str, root: Path) -> Path:
    """Directories, the program and its names. Raises OSError."""
    for name in DIRECTORIES:
        (root / name).mkdir(parents=True)
    shutil.copy(busybox, root / "bin/busybox")
    for applet in APPLETS:
        os.link(root / "bin/busybox", root / "bin" / applet)
    (root / "etc/passwd").write_text("root:x:0:0:root:/:/bin/sh\n")
    return root
