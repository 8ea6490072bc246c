"""The keeper's socket: who may connect, how much they may have open, who is told what."""

import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from hal.errors import HalError, PeerGone, Refused, Unavailable
from hal.local import wire
from hal.local.miniloop import MiniLoop
from hal.local.wire import JsonObject
from hal.ports import Event

CLIENTS_LIMIT: Final = 32
EVENTS_LIMIT: Final = 64  # that wait for one client beside the answers to all that it may ask
OUTGOING_LIMIT: Final = wire.PENDING_LIMIT + EVENTS_LIMIT  # a client that reads no more is let go
ID_LIMIT_CHARS: Final = 128
REQUESTS_A_TURN: Final = 8  # of one client, then the others
_UCRED: Final = struct.Struct("3i")  # pid, uid, gid; unix(7) SO_PEERCRED


class Client:
    """One connection. Handlers answer with `answer` or `fail`, once for each request."""

    def __init__(
        self,
        loop: MiniLoop,
        sock: socket.socket,
        on_ready: Callable[["Client", Event], None],
    ) -> None:
        self.sock = sock
        self.open = True
        self._loop, self._on_ready = loop, on_ready
        self._outgoing: deque[tuple[bytes, list[int]]] = deque()  # duplicates of descriptors

    def answer(self, request: JsonObject, result: JsonObject, fds: Sequence[int] = ()) -> None:
        """The descriptors stay the caller's."""
        self.send({"id": _id_of(request), "ok": True, "result": result}, fds)

    def fail(self, request: JsonObject, error: HalError) -> None:
        self.send({"id": _id_of(request), "ok": False, "error": wire.error_of(error)})

    def send(self, message: JsonObject, fds: Sequence[int] = ()) -> None:
        """Now, or as soon as it takes it. A client that is gone or too slow is closed."""
        if not self.open:
            return
        try:
            data = wire.encode(message)
            if not self._outgoing and wire.send(self.sock, data, fds):
                return
        except Refused as exc:
            self.fail(message, exc)
            return
        except PeerGone:
            self.close()
            return
        if len(self._outgoing) >= OUTGOING_LIMIT:
            self.close()
            return
        try:
            kept = [os.dup(fd) for fd in fds]
        except OSError:  # no descriptor to keep them by: a cut that shows
            self.close()
            return
        self._outgoing.append((data, kept))
        self.rewatch()

    def flush(self) -> None:
        while self._outgoing:
            data, fds = self._outgoing[0]
            if not wire.send(self.sock, data, fds):
                return
            wire.close_all(fds)
            self._outgoing.popleft()
        self.rewatch()

    def rewatch(self) -> None:
        events = Event.READ | Event.WRITE if self._outgoing else Event.READ
        self._loop.watch(self.sock.fileno(), events, lambda event: self._on_ready(self, event))

    def close(self) -> None:
        if not self.open:
            return
        self.open = False
        self._loop.unwatch(self.sock.fileno())
        self.sock.close()
        for _, fds in self._outgoing:
            wire.close_all(fds)
        self._outgoing.clear()


def _id_of(request: JsonObject) -> object:
    """As it came, or null for what is no id: a long one would leave no room for its answer."""
    number = request.get("id")
    if isinstance(number, str) and len(number) > ID_LIMIT_CHARS:
        return None
    if isinstance(number, int) and abs(number) >> 64:
        return None
    return number if isinstance(number, str | int) else None


class Server:
    """Listens at `run_dir`/keeper.sock, mode 0600, and takes requests of our own uid and root's."""

    def __init__(
        self, loop: MiniLoop, run_dir: Path, handle: Callable[[Client, JsonObject], None]
    ) -> None:
        self._loop, self._handle = loop, handle
        self._path = run_dir / wire.SOCKET_NAME
        self._clients: set[Client] = set()
        self._sock = socket.socket(
            socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        )
        old_umask = os.umask(0o177)
        try:
            self._path.unlink(missing_ok=True)
            with wire.short_path(self._path) as name:
                self._sock.bind(name)
            self._sock.listen(CLIENTS_LIMIT)
        except OSError as exc:
            self._sock.close()
            raise Unavailable(f"{self._path}: {exc}") from exc
        finally:
            os.umask(old_umask)
        loop.watch(self._sock.fileno(), Event.READ, self._on_connect)

    @property
    def clients(self) -> int:
        return len(self._clients)

    def tell_all(self, message: JsonObject, but: object = None) -> None:
        """An event to every client, except the one whose request caused it."""
        for client in list(self._clients):
            if client is not but:
                client.send(message)
        self._sweep()

    def close(self) -> None:
        """Give each client what is meant for it (it takes it or not) and close."""
        for client in list(self._clients):
            client.close()
        self._clients.clear()
        self._loop.unwatch(self._sock.fileno())
        self._sock.close()
        self._path.unlink(missing_ok=True)

    def _on_connect(self, _event: Event) -> None:
        try:
            sock, _ = self._sock.accept()
        except OSError:  # it went again, or no descriptor is left: it may try later
            return
        sock.setblocking(False)
        client = Client(self._loop, sock, self._on_ready)
        why = self._why_not(sock)
        if why:
            client.send({"id": None, "ok": False, "error": wire.error_of(Refused(why))})
            client.close()
            return
        self._clients.add(client)
        client.rewatch()

    def _why_not(self, sock: socket.socket) -> str:
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        _, uid, _ = _UCRED.unpack(credentials)
        if uid not in (0, os.geteuid()):
            return f"user {uid} may not use this keeper, only {os.geteuid()} and root"
        self._sweep()
        if len(self._clients) >= CLIENTS_LIMIT:
            return f"{CLIENTS_LIMIT} clients are connected already"
        return ""

    def _on_ready(self, client: Client, event: Event) -> None:
        try:
            if event & Event.WRITE:
                client.flush()
            for _ in range(REQUESTS_A_TURN):
                if not client.open or not self._serve_one(client):
                    break
        except PeerGone:
            client.close()
        self._sweep()

    def _sweep(self) -> None:
        self._clients = {client for client in self._clients if client.open}

    def _serve_one(self, client: Client) -> bool:
        """Take one request and see it answered; False when none waits. Raises PeerGone."""
        try:
            received = wire.receive(client.sock)
        except Refused as exc:
            client.fail({}, exc)
            return True
        if received is None:
            return False
        request, fds = received
        wire.close_all(fds)  # nobody hands us descriptors
        try:
            self._handle(client, request)
        except HalError as exc:
            client.fail(request, exc)
        except OSError as exc:  # no descriptor, no memory: this request's misfortune alone
            client.fail(request, Unavailable(f"{request.get('op')}: {exc}"))
        return True
