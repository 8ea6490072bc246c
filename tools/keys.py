"""Single keys from a terminal, for displays that change until a person has seen enough."""

import os
import select
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Final

from hal.linux.clock import LinuxClock

QUIT: Final = b"qQ"
KEYS_BYTES: Final = 64


@contextmanager
def waiting_for_quit() -> Iterator[Callable[[int], bool]]:
    """`wait(ms)` waits so long, or until q was pressed: then it is True. Where stdin is no
    terminal nobody can press anything. The terminal is as it was afterwards."""
    if not sys.stdin.isatty():
        with closing(LinuxClock()) as clock:
            yield lambda ms: _pass(clock, ms)
        return
    handle = sys.stdin.fileno()
    before = termios.tcgetattr(handle)

    def wait(ms: int) -> bool:
        ready, _, _ = select.select([handle], [], [], ms / 1000)
        if not ready:
            return False
        keys = os.read(handle, KEYS_BYTES)
        return not keys or any(key in QUIT for key in keys)  # none: the terminal has gone

    try:
        tty.setcbreak(handle)
        yield wait
    finally:
        termios.tcsetattr(handle, termios.TCSADRAIN, before)


def _pass(clock: LinuxClock, ms: int) -> bool:
    clock.wait(clock.now_ns() + ms * 1_000_000)
    return False
