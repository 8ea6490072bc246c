"""The daemon's control socket: who may connect, and how many (DESIGN D9; INTERFACES.md).

64 connections, the last 8 of them for administrators only: whoever may look can't lock out who
has to act. The next one is told "too_many_connections" and closed. What one connection may do is
in `firmware.control_connection`.
"""

from collections import Counter
from collections.abc import Callable
from typing import Final

from firmware import rpc
from firmware.control_connection import Connection
from hal.errors import HalError, LinkDown, StoreFull
from hal.ports import Event, Reactor
from hal.service_ports import StreamConnection, StreamServer

MAX_CONNECTIONS: Final = 64
ADMIN_CONNECTIONS: Final = 8  # of them, which nobody else gets
ACCEPTS_A_TURN: Final = 16
SWEEP_NS: Final = 500_000_000
ACCEPT_RETRY_NS: Final = 100_000_000


class ControlSocket:
    """Accepts clients and hands their lines to the dispatcher."""

    def __init__(
        self,
        reactor: Reactor,
        server: StreamServer,
        dispatcher: rpc.Dispatcher,
        roles: rpc.RolePolicy,
    ) -> None:
        self.reactor = reactor
        self.dispatcher = dispatcher
        self.counters: Counter[str] = Counter()
        self._server = server
        self._roles = roles
        self._connections: dict[int, Connection] = {}  # at most MAX_CONNECTIONS
        self._cancel_sweep: Callable[[], None] | None = None
        self._closed = False

    @property
    def connections(self) -> int:
        return len(self._connections)

    def start(self) -> None:
        self.reactor.watch(self._server.handle, Event.READ, self._on_accept)
        self._arm_sweep()

    def _arm_sweep(self) -> None:
        self._cancel_sweep = self.reactor.call_at(self.reactor.now_ns() + SWEEP_NS, self._sweep)

    def _sweep(self) -> None:
        self._arm_sweep()
        now_ns = self.reactor.now_ns()
        for connection in list(self._connections.values()):
            connection.sweep(now_ns)

    def _on_accept(self, _events: Event) -> None:
        for _ in range(ACCEPTS_A_TURN):
            try:
                stream = self._server.accept()
            except StoreFull:  # the listener stays ready: look away for a while
                self.counters["no_descriptor"] += 1
                self.reactor.unwatch(self._server.handle)
                self.reactor.call_at(self.reactor.now_ns() + ACCEPT_RETRY_NS, self._listen_again)
                return
            except HalError:
                self.counters["accept_failed"] += 1
                return
            if stream is None:
                return
            self._welcome(stream)

    def _listen_again(self) -> None:
        if not self._closed:
            self.reactor.watch(self._server.handle, Event.READ, self._on_accept)

    def _welcome(self, stream: StreamConnection) -> None:
        role = self._roles.role_of(stream.peer)
        kept = 0 if role is rpc.Role.ADMIN else ADMIN_CONNECTIONS
        if len(self._connections) >= MAX_CONNECTIONS - kept:
            self.counters["turned_away"] += 1
            text = f"{len(self._connections)} connections are open"
            if kept:
                text += f", of {MAX_CONNECTIONS}; the last {kept} are for administrators"
            line = rpc.error_line(None, rpc.busy("too_many_connections", text))
            try:
                stream.write(line)
            except LinkDown:
                self.counters["turned_away_gone"] += 1
            stream.close()
            return
        self.counters["accepted"] += 1
        connection = Connection(self, stream, role, self.reactor.now_ns())
        self._connections[id(connection)] = connection
        connection.start()

    def forget(self, connection: Connection) -> None:
        self._connections.pop(id(connection), None)

    def close(self) -> None:
        """Stop listening and cut every connection."""
        if self._closed:
            return
        self._closed = True
        if self._cancel_sweep is not None:
            self._cancel_sweep()
        self.reactor.unwatch(self._server.handle)
        self._server.close()
        for connection in list(self._connections.values()):
            connection.close()
