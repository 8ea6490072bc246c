"""Processor time for a program that is measured while others use the machine.

Where each session is scheduled as a group (sched(7), "The autogroup feature"), a process's nice
value counts only within its session, so the group's own one is lowered too.
"""

import contextlib
import os
from pathlib import Path
from typing import Final

NICE: Final = -10
AUTOGROUP: Final = Path("/proc/self/autogroup")


def ask_for_processor() -> bool:
    """For this process, and its session if it leads one; False where it may not be had (it takes
    CAP_SYS_NICE)."""
    if os.getsid(0) == os.getpid():
        with contextlib.suppress(OSError):  # no such file: sessions are no groups here
            AUTOGROUP.write_text(f"{NICE}\n", encoding="ascii")
    try:
        os.setpriority(os.PRIO_PROCESS, 0, NICE)
    except PermissionError:
        return False
    return True
