"""Processes whose clocks are moved: the wall clock by a library that is loaded before libc, the
boot-time clock by a time namespace. The machine's own clocks are never touched.

There is no namespace for CLOCK_REALTIME (time_namespaces(7)); what the library cannot move is what
the kernel stamps by itself (files, timerfds on CLOCK_REALTIME: we have none of those).
"""

import mmap
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Final

DAY_S: Final = 86_400
_SOURCE: Final = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile const int64_t *moved_s;

__attribute__((constructor)) static void begin(void)
{
    const char *name = getenv("WALL_CLOCK_FILE");
    int fd = name ? open(name, O_RDONLY | O_CLOEXEC) : -1;
    if (fd >= 0) {
        void *page = mmap(0, 4096, PROT_READ, MAP_SHARED, fd, 0);
        if (page != MAP_FAILED) moved_s = page;
        close(fd);
    }
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    int failed = syscall(SYS_clock_gettime, clock, now);
    if (!failed && moved_s && clock == CLOCK_REALTIME) now->tv_sec += *moved_s;
    return failed;
}
"""
HAVE_COMPILER: Final = shutil.which("cc") is not None


class WallClock:
    """Of all processes that get `env`: how far it is from the machine's, at any moment."""

    def __init__(self, place: Path) -> None:
        source, library, file = place / "wall.c", place / "wall.so", place / "wall"
        source.write_text(_SOURCE)
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source], check=True)
        file.write_bytes(bytes(mmap.PAGESIZE))
        with file.open("r+b") as opened:
            self._page = mmap.mmap(opened.fileno(), mmap.PAGESIZE)
        self.env = {"LD_PRELOAD": str(library), "WALL_CLOCK_FILE": str(file)}

    def move(self, seconds: int) -> None:
        """To so much later than the machine's; less than 0 is earlier."""
        self._page[:8] = struct.pack("=q", seconds)

    def close(self) -> None:
        self._page.close()


def in_time_namespace(argv: list[str], boottime_s: int) -> list[str]:
    """The same command, with CLOCK_BOOTTIME and CLOCK_MONOTONIC so much later (unshare(1))."""
    moved = ["--boottime", str(boottime_s), "--monotonic", str(boottime_s)]
    return ["unshare", "--time", *moved, "--", *argv]


def why_no_time_namespaces() -> str:
    """ "" when the kernel and our rights allow them."""
    if shutil.which("unshare") is None:
        return "there is no unshare(1)"
    words = in_time_namespace(["true"], DAY_S)
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.stderr.strip() if done.returncode else ""
