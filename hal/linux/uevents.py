"""The kernel's announcements of devices (uevents), from netlink.

Ref: Documentation/core-api/kobject.rst; lib/kobject_uevent.c for the message: "ACTION@PATH", then
"KEY=VALUE" texts, each closed by a NUL. netlink(7). Multicast group 1 is the kernel's own; udev
speaks on group 2, and nobody else may send on 1, but the sender is checked all the same.
"""

import contextlib
import errno
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from hal.linux.oserror import hal_error
from hal.ports import Event, Reactor

KERNEL_GROUP: Final = 1
MESSAGE_LIMIT_BYTES: Final = 8192  # UEVENT_BUFFER_SIZE is 2048
MESSAGES_AT_ONCE: Final = 64  # in one turn of the loop
BUFFER_BYTES: Final = 1 << 20  # some thousand announcements: more than a card's switch makes
_SO_RCVBUFFORCE: Final = 33  # <asm-generic/socket.h>


@dataclass(frozen=True, slots=True, kw_only=True)
class Uevent:
    action: str  # add, remove, change, bind, unbind, move, online, offline
    path: str  # below /sys
    values: Mapping[str, str]


def parse_uevent(data: bytes) -> Uevent | None:
    """None for what is no announcement of the kernel's."""
    head, *rest = data.split(b"\0")
    action, at, path = head.decode("utf-8", "replace").partition("@")
    if not at or not action or not path.startswith("/"):
        return None
    values = {}
    for part in rest:
        key, mark, value = part.decode("utf-8", "replace").partition("=")
        if mark:
            values[key] = value
    if values.get("ACTION") != action:
        return None
    return Uevent(action=action, path=path, values=values)


class Uevents:
    """Listens, and hands each announcement of one subsystem to `on_uevent`. Loop thread only."""

    def __init__(
        self,
        reactor: Reactor,
        subsystem: str,
        on_uevent: Callable[[Uevent], None],
        on_overflow: Callable[[], None],
    ) -> None:
        """`on_overflow` is called when announcements were lost: what is known must be read anew.
        Raises Unavailable."""
        self._reactor, self._subsystem = reactor, subsystem
        self._on_uevent, self._on_overflow = on_uevent, on_overflow
        self.refused = 0  # messages that are no announcements, or not the kernel's
        self.overflows = 0
        try:
            self._sock = socket.socket(
                socket.AF_NETLINK,
                socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
                15,  # NETLINK_KOBJECT_UEVENT, <linux/netlink.h>
            )
        except OSError as exc:
            raise hal_error(exc, "a netlink socket for uevents") from exc
        try:
            with contextlib.suppress(OSError):  # without CAP_NET_ADMIN the usual size must do
                self._sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, BUFFER_BYTES)
            self._sock.bind((0, KERNEL_GROUP))
        except OSError as exc:
            self._sock.close()
            raise hal_error(exc, "listening for uevents") from exc
        reactor.watch(self._sock.fileno(), Event.READ, self._ready)

    def close(self) -> None:
        """Twice is fine."""
        if self._sock.fileno() >= 0:
            self._reactor.unwatch(self._sock.fileno())
            self._sock.close()

    def _ready(self, _events: Event) -> None:
        for _ in range(MESSAGES_AT_ONCE):
            try:
                data, sender = self._sock.recvfrom(MESSAGE_LIMIT_BYTES)
            except BlockingIOError:
                return
            except OSError as exc:
                if exc.errno != errno.ENOBUFS:
                    raise hal_error(exc, f"uevents ({os.strerror(exc.errno or 0)})") from exc
                self.overflows += 1
                self._on_overflow()
                continue
            uevent = parse_uevent(data) if sender[0] == 0 else None  # port 0 is the kernel
            if uevent is None:
                self.refused += 1
            elif uevent.values.get("SUBSYSTEM") == self._subsystem:
                self._on_uevent(uevent)
                if self._sock.fileno() < 0:  # its handler has closed us
                    return
