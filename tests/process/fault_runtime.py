"""An OCI runtime that fails now and then: a program named `runc` that is first on the PATH."""

import shlex
import shutil
from pathlib import Path

WORDS = "refused on purpose, by the test"
_SHIM = """#!/bin/sh
# Fails as often as the file `percent` says; else it is the real one.
percent=0
read percent 2>/dev/null < {place}/percent
if [ "$percent" -gt 0 ]; then
    draw=$(od -An -N1 -tu1 /dev/urandom)
    if [ $((draw * 100 / 256)) -lt "$percent" ]; then
        echo x >> {place}/failed
        while [ $# -gt 0 ]; do
            [ "$1" = --log ] && echo '{{"level":"error","msg":"{words}"}}' >> "$2"
            shift
        done
        exit 1
    fi
fi
exec {real} "$@"
"""


class FlakyRuntime:
    """`bin` goes first into the PATH of a card that is not up yet."""

    def __init__(self, place: Path) -> None:
        real = shutil.which("runc")
        assert real is not None, "runc is not installed"
        self.bin = place / "bin"
        self.bin.mkdir()
        self._percent, self._failed = self.bin / "percent", self.bin / "failed"
        shim = self.bin / "runc"
        place_words, real_words = shlex.quote(str(self.bin)), shlex.quote(real)
        shim.write_text(_SHIM.format(place=place_words, words=WORDS, real=real_words))
        shim.chmod(0o755)

    def fail(self, percent: int) -> None:
        """Of all calls from now on; 0 ends it."""
        fresh = self._percent.with_suffix(".new")
        fresh.write_text(f"{percent}\n")
        fresh.rename(self._percent)

    @property
    def failures(self) -> int:
        return len(self._failed.read_bytes()) // 2 if self._failed.exists() else 0
