"""Seams between a daemon of ours and the host it runs on: its control socket, the service
manager that watches it. The habits of `hal.ports` hold here too.

They stand apart from `hal.ports` because they are no hardware: a simulated card has none of them,
or gives them from memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from hal.ports import Buffer


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerCredentials:
    """Who is at the far end, as the kernel saw it when the connection was made."""

    pid: int
    uid: int
    gid: int
    groups: frozenset[int] = frozenset()  # supplementary groups, without `gid`


class StreamConnection(Protocol):
    """One accepted local stream. Bytes in order; descriptors may come along with them."""

    @property
    def handle(self) -> int: ...

    @property
    def peer(self) -> PeerCredentials: ...

    def read(self) -> tuple[bytes, Sequence[int]]:
        """What has come, at most 64 KiB, and the descriptors that came with it (the caller owns
        them). `(b"", ())` when there is nothing. Raises LinkDown at the end of the stream and
        Refused when more descriptors came than one read may carry (all of them are closed)."""
        ...

    def write(self, data: Buffer) -> int:
        """Bytes taken, 0 when the peer does not read. Raises LinkDown."""
        ...

    def discard(self, fds: Sequence[int]) -> None:
        """Close received descriptors that nobody wants."""
        ...

    def close(self) -> None: ...


class StreamServer(Protocol):
    """A local listening socket; `handle` is ready for READ when somebody waits."""

    @property
    def handle(self) -> int: ...

    def accept(self) -> StreamConnection | None:
        """The next connection, or None. Raises StoreFull when no descriptor is left for it."""
        ...

    def close(self) -> None: ...


class Notifier(Protocol):
    """Says to the service manager how we are: sd_notify(3)."""

    def send(self, state: str) -> None:
        """One datagram, e.g. "READY=1". Never blocks; lost when nobody listens."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """One sd_notify datagram: its fields, and the process that sent it by the kernel's word."""

    pid: int
    fields: dict[str, str]


class NotifyServer(Protocol):
    """The service manager's end."""

    @property
    def handle(self) -> int: ...

    @property
    def address(self) -> str:
        """What the child gets as NOTIFY_SOCKET."""
        ...

    def receive(self) -> Sequence[Notice]:
        """What has come, at most 64 at a time; malformed datagrams are left out."""
        ...

    def close(self) -> None: ...


class TraceMemory(Protocol):
    """A few hundred KiB that outlive the process that writes them, however it ends. What was
    written is there to be read by the next one; only the last write may be cut anywhere."""

    @property
    def size_bytes(self) -> int: ...

    def write(self, offset: int, data: Buffer) -> None:
        """Copy into it; takes no system call. Raises Refused outside it."""
        ...

    def read(self) -> bytes:
        """All of it."""
        ...

    def close(self) -> None: ...
