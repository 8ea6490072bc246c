"""Clients of the control socket as nobody wants them: idle by the hundred, slow, deaf, endless,
senseless, strange. Each stays as it is until `close`."""

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.process.local_card import NOBODY

CONNECT_S = 2.0
_STRANGER = """
import os, socket, sys
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
sock = socket.socket(socket.AF_UNIX)
sock.settimeout(3)
try:
    sock.connect(sys.argv[1])
    sock.sendall(b'{"jsonrpc":"2.0","id":1,"method":"shutdown"}\\n')
    print(sock.recv(4096).decode())
except OSError as exc:
    print(exc.strerror or "no answer")
"""


def request(method: str, request_id: int = 1, **params: object) -> bytes:
    body = {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}
    return json.dumps(body).encode() + b"\n"


def connect(run: Path, timeout_s: float = CONNECT_S) -> socket.socket:
    """Raises OSError when nobody answers, or nobody accepts in that time."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.settimeout(timeout_s)
            sock.connect(str(run / "apf.sock"))
        except BlockingIOError:  # the backlog is full: it gets time to accept
            sock.close()
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.01)
        except OSError:
            sock.close()
            raise
        else:
            return sock


class Crowd:
    """Connections that do nothing; as many as the listener takes of `wanted`, one thread."""

    def __init__(self, run: Path, wanted: int) -> None:
        self.socks: list[socket.socket] = []
        self.told: list[dict[str, Any]] = []
        for _ in range(2 * wanted):  # each may find the backlog full once
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            sock.setblocking(False)
            try:
                sock.connect(str(run / "apf.sock"))
            except BlockingIOError:  # it gets time to accept
                sock.close()
                time.sleep(0.01)
                continue
            except OSError:
                sock.close()
                break
            self.socks.append(sock)
            if len(self.socks) == wanted:
                break

    def turned_away(self) -> list[dict[str, Any]]:
        """What the daemon has said since to those that it does not keep."""
        told = []
        for sock in self.socks:
            with contextlib.suppress(BlockingIOError, ConnectionResetError):
                line = sock.recv(4096)
                told += [json.loads(line)] if line else []
        return told

    def close(self) -> None:
        for sock in self.socks:
            sock.close()


class Loris:
    """Sends one byte of a request at each `feed`, never the last."""

    def __init__(self, run: Path) -> None:
        self._sock = connect(run)
        self._rest = iter(request("status", x="y" * 4096))

    def feed(self) -> bool:
        """False when the daemon has hung up."""
        try:
            return self._sock.send(bytes([next(self._rest)])) == 1
        except OSError:
            return False

    def close(self) -> None:
        self._sock.close()


class DeafSubscriber:
    """Follows all events and asks for more and more, and reads nothing."""

    def __init__(self, run: Path) -> None:
        self._sock = connect(run)
        self._sock.sendall(request("events.subscribe", since_seq=0))
        self._sock.setblocking(False)
        self.asked = 0

    def ask(self, count: int) -> int:
        """More answers that it will not read; how many requests the socket took."""
        taken = 0
        with contextlib.suppress(OSError):
            for _ in range(count):
                self._sock.send(request("workload.ps", self.asked + 2))
                self.asked += 1
                taken += 1
        return taken

    @property
    def hung_up(self) -> bool:
        """The daemon has closed its end."""
        poll = select.poll()
        poll.register(self._sock, 0)
        return bool(poll.poll(0))

    def close(self) -> None:
        self._sock.close()


def send_until_told(run: Path, data: bytes) -> list[dict[str, Any]]:
    """All of it, or as much as is taken; what the daemon says before it closes."""
    with connect(run, timeout_s=3.0) as sock:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := sock.recv(1 << 16):
                answer += piece
    return [json.loads(line) for line in answer.splitlines()]


@contextmanager
def open_to_all(run: Path) -> Iterator[None]:
    """The way to the socket is open to every user, as on a card whose modes somebody changed."""
    places = [run.parent, run, run / "apf.sock"]
    modes = [place.stat().st_mode & 0o7777 for place in places]
    for place in places:
        place.chmod(0o777)
    try:
        yield
    finally:
        for place, mode in zip(places, modes, strict=True):
            with contextlib.suppress(FileNotFoundError):
                place.chmod(mode)


def stranger(run: Path) -> str:
    """Another user asks the card to shut down; what that user was told."""
    assert os.geteuid() != NOBODY
    done = subprocess.run(
        [sys.executable, "-S", "-c", _STRANGER, str(run / "apf.sock")],
        capture_output=True, text=True, timeout=20, check=True, cwd="/",
    )  # fmt: skip
    return done.stdout.strip()
