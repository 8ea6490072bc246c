"""The keeper's places under APF_RUN: lock, pid file, ttys, and each CNM's runtime directory."""

import contextlib
import fcntl
import os
import shutil
import socket
from pathlib import Path

from hal.errors import Refused, Unavailable
from hal.local.libc import detach_mount


def cnm_dir(run_dir: Path, cnm: str) -> Path:
    """The CNM's own place: runc state, bundles, init.log."""
    return run_dir / "cnm" / cnm


def tty_path(run_dir: Path, cnm: str, link: str) -> Path:
    """The card's end; the CNM's has ".cnm" behind it."""
    return run_dir / "tty" / f"{cnm}-{link}"


def take_lock(run_dir: Path) -> int:
    """Hold keeper.pid for as long as the descriptor lives. Raises Refused when another keeper
    has it; the words name that one."""
    path = run_dir / "keeper.pid"
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as exc:
        raise Unavailable(f"{path}: {exc}; set APF_RUN to a directory that you may write") from exc
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        holder = os.read(fd, 32).decode(errors="replace").strip() or "unknown"
        os.close(fd)
        raise Refused(f"{run_dir} is kept by process {holder} already; stop it first") from exc
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def take_run_id(run_id: str) -> socket.socket:
    """Hold the run id on this host for as long as the socket lives: two keepers of one id in
    different directories would kill each other's CNMs. Raises Refused when it is taken."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        sock.bind(f"\0apf-keeper-{run_id}")  # abstract: gone with us, however we end (unix(7))
    except OSError as exc:
        sock.close()
        raise Refused(f"another keeper on this host has run id {run_id}: {exc}") from exc
    return sock


def clear_cnm(path: Path, *, keep_log: bool) -> None:
    """Unmount what is mounted below and remove what a CNM left; logs may stay to be read."""
    for point in mounts_below(path):
        detach_mount(point)
    with contextlib.suppress(FileNotFoundError):
        for entry in list(os.scandir(path)):
            if keep_log and ".log" in entry.name and entry.is_file(follow_symlinks=False):
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                os.unlink(entry.path)


def mounts_below(path: Path) -> list[str]:
    """Mount points in or at `path`, innermost first."""
    found: list[str] = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = line.split()[4].encode().decode("unicode_escape")
        if Path(point).is_relative_to(path):
            found.append(point)
    return sorted(found, key=len, reverse=True)
