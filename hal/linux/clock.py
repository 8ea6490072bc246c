"""CLOCK_BOOTTIME and epoll(7). Ref: timerfd_create(2), clock_gettime(2).

The deadline of a wait is a timerfd on CLOCK_BOOTTIME in the same epoll set: it has nanosecond
resolution where epoll_wait rounds to milliseconds, never fires early, and a wait that spans a
suspend ends at the resume. epoll's own time-out counts CLOCK_MONOTONIC and would let a lease
live on for as long as the machine slept.
"""

import ctypes
import errno
import os
import select
import struct
import time
from collections.abc import Sequence
from typing import Final

from hal.errors import Refused
from hal.linux.oserror import hal_error
from hal.ports import Event

_CLOCK_BOOTTIME: Final = 7  # <linux/time.h>
_TFD_TIMER_ABSTIME: Final = 1  # <sys/timerfd.h>
_SECOND_NS: Final = 1_000_000_000
# a wait; what is left over is reported by the next one, so that a timer may run before a link that
# was ready is read: more than the links of 1,000 modules
_MAX_EVENTS: Final = 4096

_libc: Final = ctypes.CDLL(None, use_errno=True)


# struct itimerspec: interval and value, each seconds and nanoseconds
_ITIMERSPEC: Final = struct.Struct("@4l")


def _events_of(mask: int) -> Event:
    events = Event(0)
    if mask & select.EPOLLIN:
        events |= Event.READ
    if mask & select.EPOLLOUT:
        events |= Event.WRITE
    if mask & (select.EPOLLHUP | select.EPOLLERR):
        events |= Event.HANGUP
    return events


_KNOWN: Final = select.EPOLLIN | select.EPOLLOUT | select.EPOLLHUP | select.EPOLLERR
# looked up, not put together at each event: an `|=` of flags costs 0.5 us (measured)
_EVENTS: Final = {mask: _events_of(mask) for mask in range(_KNOWN + 1) if not mask & ~_KNOWN}


class LinuxClock:
    """`hal.ports.Clock`; handles are file descriptors.

    Watching a handle for no event at all still reports HANGUP, which epoll gives for EPOLLERR
    too: that is how a change of a kernfs file (cgroup.events) is waited for.
    """

    def __init__(self) -> None:
        """Raises Unavailable when the process is out of descriptors."""
        try:
            self._epoll = select.epoll()
        except OSError as exc:
            raise hal_error(exc, "epoll_create1") from exc
        self._timer_fd: int = _libc.timerfd_create(_CLOCK_BOOTTIME, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._timer_fd < 0:
            code = ctypes.get_errno()
            self._epoll.close()
            raise hal_error(OSError(code, os.strerror(code)), "timerfd_create CLOCK_BOOTTIME")
        try:
            self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        except OSError as exc:
            self._epoll.close()
            os.close(self._timer_fd)
            raise hal_error(exc, "eventfd") from exc
        self._epoll.register(self._timer_fd, select.EPOLLIN)
        self._epoll.register(self._wake_fd, select.EPOLLIN)
        self._wake_sent = False
        self._woken = False
        self._armed_ns = 0  # 0: the timer is off

    def now_ns(self) -> int:
        return time.clock_gettime_ns(_CLOCK_BOOTTIME)

    def wall_ns(self) -> int:
        return time.time_ns()

    def watch(self, handle: int, events: Event) -> None:
        """Raises Refused for a handle that is closed or can't be waited for (a plain file)."""
        mask = 0
        if events & Event.READ:
            mask |= select.EPOLLIN
        if events & Event.WRITE:
            mask |= select.EPOLLOUT
        try:
            try:
                self._epoll.register(handle, mask)
            except FileExistsError:
                self._epoll.modify(handle, mask)
        except (OSError, ValueError) as exc:
            raise Refused(f"handle {handle} can't be watched: {exc}") from exc

    def unwatch(self, handle: int) -> None:
        try:
            self._epoll.unregister(handle)
        except ValueError:
            return  # a negative handle: never watched
        except OSError as exc:
            if exc.errno not in (errno.ENOENT, errno.EBADF):
                raise

    def wait(self, until_ns: int | None) -> Sequence[tuple[int, Event]]:
        while True:
            if until_ns is not None and until_ns <= self.now_ns():
                return self._collect(0)
            self._arm(until_ns or 0)
            ready = self._collect(-1)
            if ready or self._woken:
                return ready

    def wake(self) -> None:
        if not self._wake_sent:  # one write until a wait has seen it: posting stays cheap
            self._wake_sent = True
            os.eventfd_write(self._wake_fd, 1)

    def close(self) -> None:
        """Give the descriptors back; nothing else may be called afterwards."""
        if self._epoll.closed:
            return
        self._epoll.close()
        os.close(self._timer_fd)
        os.close(self._wake_fd)

    def _arm(self, when_ns: int) -> None:
        if when_ns == self._armed_ns:
            return
        spec = _ITIMERSPEC.pack(0, 0, *divmod(when_ns, _SECOND_NS))
        if _libc.timerfd_settime(self._timer_fd, _TFD_TIMER_ABSTIME, spec, None):
            code = ctypes.get_errno()
            raise hal_error(OSError(code, os.strerror(code)), f"timerfd_settime {when_ns} ns")
        self._armed_ns = when_ns

    def _collect(self, timeout_s: float) -> list[tuple[int, Event]]:
        ready = []
        self._woken = False
        for handle, mask in self._epoll.poll(timeout_s, _MAX_EVENTS):
            if handle == self._timer_fd:
                self._arm(0)  # setting it also takes back the expiry
                continue
            if handle == self._wake_fd:
                # Read before the flag is cleared: a wake that falls in between is this one.
                os.eventfd_read(self._wake_fd)
                self._wake_sent = False
                self._woken = True
                continue
            ready.append((handle, _EVENTS[mask & _KNOWN]))
        return ready
