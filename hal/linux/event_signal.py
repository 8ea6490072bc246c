"""A descriptor that is ready to read for as long as somebody says so: a replayed handle."""

import os

from hal.replay import Signal


def event_signal() -> Signal:
    """Not ready at first. Closing twice is fine."""
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    state = {"ready": False, "open": True}

    def show(ready: bool) -> None:
        if state["open"] and ready != state["ready"]:
            state["ready"] = ready
            if ready:
                os.eventfd_write(fd, 1)
            else:
                os.eventfd_read(fd)

    def close() -> None:
        if state["open"]:
            state["open"] = False
            os.close(fd)

    return Signal(handle=fd, set=show, close=close)
