"""The keeper of a local board before a client that asks anything. It holds what may not be let go
of: its death is the card's loss of power.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hal.errors import Unavailable
from hal.local.requests import Requests
from hal.local.server import Client, Server
from hal.local.slot import Phase
from hal.local.wire import MESSAGE_LIMIT_BYTES
from hal.ports import Event, FenceKind, SlotState
from tests.fuzz.reader import Reader, all_keys, edited
from tests.fuzz.target import Check, Target

REQUESTS: list[dict[str, Any]] = [
    {"id": 1, "op": "status", "slot": 0},
    {"id": "a", "op": "power", "slot": 0, "action": "off"},
    {"id": 2, "op": "window", "slot": 0},
    {"id": 3, "op": "pids", "slot": 0, "nspids": [1]},
    {
        "id": 4,
        "op": "fault",
        "slot": 0,
        "link": "mc",
        "drop": 0.1,
        "duplicate": 0,
        "flip": 1,
        "delay_ms": 5,
        "cut": False,
        "seed": 7,
    },
    {"id": 5, "op": "window_cut", "slot": 0, "cut": True},
    {"id": 6, "op": "window_corrupt", "slot": 0, "flips": 3, "seed": 9},
    {"op": "shutdown"},
]
WORDS = all_keys(*REQUESTS)
STATE = SlotState(slot=0, present=True, power_good=True, fence=FenceKind.POWER)


class Socket:
    """One packet comes, packets go."""

    def __init__(self, packet: bytes) -> None:
        self.waiting = [packet]
        self.sent: list[bytes] = []

    def recvmsg(self, size: int, _ancillary: int, _flags: int) -> Any:
        if not self.waiting:
            raise BlockingIOError
        return self.waiting.pop()[:size], [], 0, None

    def send(self, data: bytes) -> int:
        assert len(data) <= MESSAGE_LIMIT_BYTES
        self.sent.append(data)
        return len(data)

    def fileno(self) -> int:
        return 5

    def close(self) -> None: ...


class Slot:
    """A module that is on."""

    phase = Phase.ON
    config = SimpleNamespace(slot=0, id="cnm0", window_bytes=65536)

    def state(self) -> SlotState:
        return STATE

    def request(self, _action: object, _client: object, done: Any) -> None:
        done(STATE)

    def processes(self, wanted: Any = None) -> list[Any]:
        return []


class Board:
    """The keeper."""

    run_dir = Path("/run/apf")
    stopping = False

    def __init__(self) -> None:
        self.slots, self.windows = {0: Slot()}, {}  # type: ignore[var-annotated]
        self.armed: list[Any] = []
        relay = SimpleNamespace(
            arm=self.armed.append, counters=dict, faults=SimpleNamespace(cut=False)
        )
        self.relays = {0: {"mc": relay, "agent": relay}}

    def about(self) -> dict[str, Any]:
        return {"pid": 1}

    def window_of(self, _number: int) -> Any:
        raise Unavailable("no window here")

    def stop(self, done: Any) -> None:
        done([])


class Loop:
    def watch(self, *_args: object) -> None: ...

    def unwatch(self, *_args: object) -> None: ...


def _packet(data: bytes) -> bytes:
    """A request, edited, as JSON; a byte above 7 begins the packet itself. The last byte may say
    that a value is as long as a packet takes."""
    if not data or data[0] > 7:
        return data
    request = edited(REQUESTS[data[0]], Reader(data[1:]), WORDS)
    if data[-1] > 250 and isinstance(request, dict):
        long = ("x", "\u00e9", "\n", '"')[data[-1] % 4] * 60_000
        request[("id", "op", "slot", "link", "action")[data[-1] % 5]] = long
    packet = json.dumps(request, ensure_ascii=False).encode(errors="surrogatepass")
    return packet[:MESSAGE_LIMIT_BYTES]


def keeper(_scratch: Path) -> Check:
    def check(data: bytes) -> bool:
        packet = _packet(data)
        if not packet:
            return False  # of a packet socket, that is the end
        board = Board()
        server = Server.__new__(Server)
        server._handle, server._clients = Requests(board).handle, set()  # type: ignore[arg-type]
        sock = Socket(packet)
        client = Client(Loop(), sock, server._on_ready)  # type: ignore[arg-type]
        server._on_ready(client, Event.READ)
        assert client.open
        assert len(sock.sent) == 1, "one answer"
        answer = json.loads(sock.sent[0])
        for faults in board.armed:
            assert 0 <= faults.drop <= 1
            assert 0 <= faults.delay_ms <= 10_000
        return bool(answer["ok"])

    return check


def _seeds() -> Iterable[bytes]:
    for index, request in enumerate(REQUESTS):
        yield json.dumps(request).encode()
        yield bytes([index])
        for place in range(6):
            yield bytes([index, place, 5, 3, 0])
            yield bytes([index, place, 5, 1, place * 4])
            yield bytes([index, 250 + place])


TARGETS = (
    Target(
        name="keeper",
        text="packets of any client into the keeper's requests",
        make=keeper,
        seeds=_seeds,
        words=tuple(json.dumps(word).encode() for word in WORDS),
        max_bytes=512,
    ),
)
