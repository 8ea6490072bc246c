"""Both ends of sd_notify(3): what a service says to its manager, and the manager's socket.

Ref: sd_notify(3), sd_watchdog_enabled(3); unix(7) SO_PASSCRED.
"""

import contextlib
import os
import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Final

from hal.errors import Unavailable
from hal.linux.oserror import hal_error
from hal.service_ports import Notice

MESSAGE_LIMIT_BYTES: Final = 4096
MESSAGES_AT_ONCE: Final = 64
_UCRED: Final = struct.Struct("3i")


class LinuxNotifier:
    """`hal.service_ports.Notifier`. Without a manager it says nothing to nobody."""

    def __init__(self, address: str | None, watchdog_ns: int | None) -> None:
        self._address = "\0" + address[1:] if address and address[0] == "@" else address
        self.watchdog_ns = watchdog_ns  # how often the manager wants a sign of life
        self.lost = 0  # datagrams that nobody took
        self._sock: socket.socket | None = None
        if self._address:
            self._sock = socket.socket(
                socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
            )

    def send(self, state: str) -> None:
        if self._sock is None or self._address is None:
            return
        try:
            self._sock.sendto(state.encode()[:MESSAGE_LIMIT_BYTES], self._address)
        except OSError:  # a manager that is gone or full must not stop the service
            self.lost += 1

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()


def open_notifier(env: Mapping[str, str] | None = None) -> LinuxNotifier:
    """From NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID. Values that make no sense are taken
    as absent: they come from whoever started us, and we can run without."""
    env = os.environ if env is None else env
    address = env.get("NOTIFY_SOCKET", "")
    usec, pid = env.get("WATCHDOG_USEC", ""), env.get("WATCHDOG_PID", "")
    watchdog_ns = None
    if usec.isdecimal() and int(usec) > 0 and pid in ("", str(os.getpid())):
        watchdog_ns = int(usec) * 1000
    return LinuxNotifier(address if address[:1] in ("/", "@") else None, watchdog_ns)


class LinuxNotifyServer:
    """`hal.service_ports.NotifyServer` on an abstract address: no file to leave behind. Anybody
    on this host can send there, so the kernel names the sender of each datagram."""

    def __init__(self) -> None:
        """Raises Unavailable."""
        self._sock = socket.socket(
            socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        )
        try:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            self._sock.bind("")  # the kernel chooses a free abstract name
        except OSError as exc:
            self._sock.close()
            raise hal_error(exc, "notify socket") from exc
        name = self._sock.getsockname()
        if not isinstance(name, bytes) or name[:1] != b"\0":
            self._sock.close()
            raise Unavailable(f"notify socket: no abstract address, got {name!r}")
        self._address = "@" + name[1:].decode("ascii")

    @property
    def handle(self) -> int:
        return self._sock.fileno()

    @property
    def address(self) -> str:
        return self._address

    def receive(self) -> Sequence[Notice]:
        found: list[Notice] = []
        for _ in range(MESSAGES_AT_ONCE):
            try:
                data, ancillary, _, _ = self._sock.recvmsg(
                    MESSAGE_LIMIT_BYTES,
                    socket.CMSG_SPACE(_UCRED.size) + socket.CMSG_SPACE(4 * 253),
                    socket.MSG_CMSG_CLOEXEC,
                )
            except BlockingIOError:
                break
            except OSError as exc:
                raise hal_error(exc, "notify socket") from exc
            notice = _read(data, ancillary)
            if notice is not None:
                found.append(notice)
        return found

    def close(self) -> None:
        self._sock.close()


def _read(data: bytes, ancillary: Sequence[tuple[int, int, bytes]]) -> Notice | None:
    pid = 0
    for level, kind, payload in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
            pid = _UCRED.unpack(payload[: _UCRED.size])[0]
        elif (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):  # FDSTORE is not ours
            for (fd,) in struct.iter_unpack("i", payload[: len(payload) // 4 * 4]):
                with contextlib.suppress(OSError):
                    os.close(fd)
    try:
        lines = data.decode().splitlines()
    except UnicodeDecodeError:
        return None
    fields = dict(line.split("=", 1) for line in lines if "=" in line)
    return Notice(pid=pid, fields=fields) if pid > 0 and fields else None
