"""The measured daemon of `apf bench scale`: `python -m tools.bench.scale_daemon FARM STATE CNMS`.

`firmware.card.Card` as `firmware.app` builds it, but for what a played module can't have: its
links are connections to FARM, its window looks connected and idle, its power is always on. Says
on its standard output what becomes of it: "ready", then "managing" when every module is LEASED
and every component is RUNNING, with how many were fenced. Ends with its standard input.
"""

import os
import resource
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from firmware.api import Api
from firmware.app import spare_the_collector
from firmware.card import Card, CardPorts
from firmware.events import EventCode
from firmware.journal import JournalError
from firmware.lease import LeaseState
from firmware.loop import MS, Loop
from firmware.rpc import MethodTable
from hal.errors import HalError, LinkDown
from hal.linux.blobs import LinuxBlobStore
from hal.linux.clock import LinuxClock
from hal.linux.entropy import LinuxEntropy
from hal.linux.journal import SqliteJournal
from hal.linux.stream import StreamSocket
from hal.linux.workers import Workers
from hal.ports import (
    Buffer,
    ByteStream,
    Done,
    Doorbell,
    Event,
    FenceKind,
    PowerAction,
    PowerRequest,
    SlotState,
    Window,
)
from protocol.window import OFF_ECHO, OFF_SESSION, geometry_for
from tools.bench.hurry import ask_for_processor
from tools.bench.scale_card import PER_CNM, cnm_name, large_board

SPARE_FDS: Final = 128
LOOK_NS: Final = 10 * MS
HALF_BYTES: Final = 8 << 20
PEER_SESSION: Final = 1
_GEOMETRY: Final = geometry_for(64, 64 << 10, HALF_BYTES).to_bytes()


class IdleWindow:
    """A window whose peer is there and has nothing to say: it echoes our session."""

    tx_bytes = rx_bytes = HALF_BYTES

    def __init__(self) -> None:
        self._session = 0

    def write(self, offset: int, data: Buffer) -> None:
        """Nobody reads it."""

    def read(self, offset: int, length: int) -> memoryview:
        return memoryview(_GEOMETRY)[offset : offset + length]

    def publish(self, offset: int, value: int) -> None:
        if offset == OFF_SESSION:
            self._session = value

    def acquire(self, offset: int) -> int:
        return {OFF_SESSION: PEER_SESSION, OFF_ECHO: self._session}.get(offset, 0)

    def close(self) -> None: ...


class IdleBell:
    """Never rings."""

    def __init__(self) -> None:
        self.handle = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def ring(self) -> None: ...

    def clear(self) -> None: ...

    def close(self) -> None:
        os.close(self.handle)


class OnPower:
    """Every slot is on and stays on."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop

    def submit(self, request: PowerRequest, deadline_ns: int, done: Done[SlotState]) -> None:
        good = request.action is not PowerAction.OFF
        state = SlotState(slot=request.slot, present=True, power_good=good, fence=FenceKind.POWER)
        self._loop.post(lambda: done(state))

    def on_change(self, call: Callable[[SlotState], None]) -> None:
        """It never does."""


class PlayedSlot:
    """`firmware.inventory.CnmPorts` of one module of the farm."""

    def __init__(self, loop: Loop, farm: str, number: int) -> None:
        self._loop, self._farm, self._number = loop, farm, number

    def open_mc(self) -> ByteStream:
        return self._connect("mc")

    def open_agent(self) -> ByteStream:
        return self._connect("agent")

    def _connect(self, kind: str) -> ByteStream:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(self._farm)
            sock.sendall(f"{kind} {self._number}\n".encode())
        except OSError as exc:
            sock.close()
            raise LinkDown(f"{self._farm}: {exc.strerror}") from exc
        return StreamSocket(sock)

    def open_window(self, deadline_ns: int, done: Done[tuple[Window, Doorbell]]) -> None:
        self._loop.post(lambda: done((IdleWindow(), IdleBell())))


def main() -> int:
    """The exit status."""
    farm, state, cnms = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    ask_for_processor()
    spare_the_collector()
    wanted = 4 * cnms + SPARE_FDS
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(hard, wanted)))
    clock = LinuxClock()
    loop = Loop(clock)
    board = large_board(cnms)
    ports = CardPorts(
        entropy=LinuxEntropy(),
        power=OnPower(loop),
        journal=SqliteJournal(state / "journal.db", loop),
        blobs=LinuxBlobStore(state / "blobs", loop, Workers(loop)),
        host=None,
        slots={cnm_name(i): PlayedSlot(loop, farm, i) for i in range(cnms)},
        runc_roots={},
        wall_ns=clock.wall_ns,
    )
    card = Card(board, loop, ports, safe_mode=False)
    Api(card, pids=dict).register(MethodTable())
    failed: list[str] = []

    def started(error: JournalError | None) -> None:
        if error is not None:
            failed.append(str(error))
            loop.stop()
            return
        _say("ready")
        _look(card, cnms)

    loop.watch(sys.stdin.fileno(), Event.READ, lambda _events: loop.stop())
    loop.post(lambda: card.start(started))
    try:
        loop.run()
    except HalError as exc:
        failed.append(str(exc))
    sys.stderr.write("\n".join(failed))
    return 1 if failed else 0


def _look(card: Card, cnms: int) -> None:
    """Until all is managed again; then only the daemon itself costs anything."""
    leased = sum(cnm.lease.state is LeaseState.LEASED for cnm in card.inventory)
    running = sum(len(cnm.observed) for cnm in card.inventory)
    if leased == cnms and running == cnms * PER_CNM:
        moved = [event for event in card.events.since(0) if event.code is EventCode.CNM_FENCED]
        _say(f"managing {len(moved)}")
        return
    card.loop.call_later(LOOK_NS, lambda: _look(card, cnms))


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
