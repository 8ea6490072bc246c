"""Local listening sockets of the virtual world: the `StreamServer` and `StreamConnection` ports.

A socket outlives those who listen on it, as a path does. Not modelled: descriptors that come along
with bytes (`read` never brings any).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from hal.errors import LinkDown, StoreFull, Unavailable
from hal.mock.line import MockStream, stream_pair
from hal.mock.node import READ
from hal.ports import READ_LIMIT_BYTES, Buffer
from hal.service_ports import PeerCredentials

if TYPE_CHECKING:
    from hal.mock.kernel import VirtualKernel
    from hal.mock.node import Node

BACKLOG: Final = 128  # connections that nobody has accepted yet, as `listen(2)` of the real server
READ_BYTES: Final = 64 << 10


class MockConnection:
    """The listener's end of one connection."""

    def __init__(self, stream: MockStream, peer: PeerCredentials) -> None:
        self._stream = stream
        self._peer = peer

    @property
    def handle(self) -> int:
        return self._stream.handle

    @property
    def peer(self) -> PeerCredentials:
        return self._peer

    def read(self) -> tuple[bytes, Sequence[int]]:
        """What has come, at most 64 KiB. Raises LinkDown at the end of the stream."""
        data = bytearray(self._stream.read())
        while data and len(data) <= READ_BYTES - READ_LIMIT_BYTES:
            try:
                piece = self._stream.read()
            except LinkDown:  # the end is told by the next read
                break
            if not piece:
                break
            data += piece
        return bytes(data), ()

    def write(self, data: Buffer) -> int:
        """Bytes taken, 0 when the peer does not read. Raises LinkDown."""
        return self._stream.write(data)

    def discard(self, fds: Sequence[int]) -> None:
        """There are none: bytes come alone here."""

    def close(self) -> None:
        self._stream.close()


class MockStreamServer:
    """One process that listens. Its death ends what it has accepted, and what waits."""

    def __init__(self, socket: MockUnixSocket, node: Node) -> None:
        self._socket = socket
        self._waiting: deque[MockConnection] = deque()  # at most BACKLOG
        self._handle = node.kernel.open_handle(node, self, self.close)
        self.node = node

    @property
    def handle(self) -> int:
        return self._handle.number

    def accept(self) -> MockConnection | None:
        """The next connection, or None. Raises StoreFull while no descriptor is left."""
        if not self._waiting:
            return None
        if self._socket.no_descriptors:
            raise StoreFull(f"{self._socket.name}: accept: too many open files")
        found = self._waiting.popleft()
        if not self._waiting:
            self._handle.set(0)
        return found

    def close(self) -> None:
        """Twice is fine."""
        self._socket.forget(self)
        self.node.kernel.close_handle(self._handle)
        while self._waiting:
            self._waiting.popleft().close()

    def push(self, connection: MockConnection) -> None:
        """For the socket: somebody connects. Raises Unavailable when BACKLOG wait already."""
        if len(self._waiting) >= BACKLOG:
            raise Unavailable(f"{self._socket.name}: {BACKLOG} connections wait already")
        self._waiting.append(connection)
        self._handle.set(READ)


class MockUnixSocket:
    """A path to connect to."""

    def __init__(self, kernel: VirtualKernel, name: str) -> None:
        self.kernel = kernel
        self.name = name
        self.no_descriptors = False  # fault E6: `accept` fails as with EMFILE
        self._server: MockStreamServer | None = None

    def listen(self, node: Node) -> MockStreamServer:
        """From now on this node accepts; who listened before does no longer."""
        self._server = MockStreamServer(self, node)
        return self._server

    def connect(self, node: Node, peer: PeerCredentials) -> MockStream:
        """A client's end. Raises Unavailable when nobody listens, or too many wait."""
        server = self._server
        if server is None:
            raise Unavailable(f"{self.name}: nobody listens")
        theirs, ours = stream_pair(self.kernel, self.name, server.node, node)
        try:
            server.push(MockConnection(theirs, peer))
        except Unavailable:
            theirs.close()
            ours.close()
            raise
        return ours

    def forget(self, server: MockStreamServer) -> None:
        """For the server: it listens no more."""
        if self._server is server:
            self._server = None
