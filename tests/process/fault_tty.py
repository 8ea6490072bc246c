"""Hanging up a tty under whoever uses it. Ref: vhangup(2), tty_ioctl(4); needs root."""

import fcntl
import os
from pathlib import Path
from typing import Final

_TIOCVHANGUP: Final = 0x5437  # asm-generic/ioctls.h: x86, ARM and RISC-V


def hang_up(tty: Path) -> None:
    """Every descriptor of this tty reads as ended from now on, whoever holds it."""
    fd = os.open(tty, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _TIOCVHANGUP)
    finally:
        os.close(fd)
