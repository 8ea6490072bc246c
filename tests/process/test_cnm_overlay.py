"""A real overlay in a mount namespace of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root"),
]
ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
from pathlib import Path
from hal.errors import HalError, Refused, Unavailable
from hal.linux.overlay import LinuxOverlay
home = Path(sys.argv[1])
lower = home / "lower"
lower.mkdir()
(lower / "f").write_text("image")
overlay = LinuxOverlay()
paths = [str(home / name) for name in ("lower", "upper", "work", "rootfs")]
try:
    overlay.mount(*paths)
except Unavailable as exc:
    print("no overlay:", exc)
    sys.exit(77)
assert (home / "rootfs/f").read_text() == "image"
(home / "rootfs/f").write_text("mine")
assert (lower / "f").read_text() == "image"
assert (home / "upper/f").read_text() == "mine"
overlay.unmount(paths[3])
overlay.unmount(paths[3])
overlay.unmount(str(home / "never"))
assert not (home / "rootfs/f").exists()
try:
    overlay.mount(str(home / "a,b"), *paths[1:])
except Refused:
    print("good")
"""


def test_an_overlay_keeps_its_lower_tree_untouched(tmp_path: Path) -> None:
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", sys.executable, "-c", PROGRAM, tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 77:
        pytest.skip(done.stdout)
    assert done.stdout == "good\n", done.stderr
