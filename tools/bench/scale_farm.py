"""The modules of `apf bench scale`, played: `python -m tools.bench.scale_farm SOCKET CNMS`.

Each control link is one connection to SOCKET; its first line says whose ("mc 17"). A played
module answers what a real one does (Set EID, hello, capabilities, status), says that its four
components run, and sends a heartbeat each 100 ms and telemetry each second. Prints "ready" once
it listens, and ends with its standard input.
"""

import os
import socket
import sys
from collections.abc import Callable
from typing import Final

from firmware.cnm.ends import Identity, hello_reply, open_endpoint
from firmware.cnm.mc import Periodic
from firmware.loop import Loop
from hal.errors import LinkDown
from hal.linux.clock import LinuxClock
from hal.linux.entropy import LinuxEntropy
from hal.linux.stream import StreamSocket
from hal.ports import ByteStream, Event
from protocol.apf import (
    VENDOR_ID,
    Body,
    BootState,
    CapabilitiesReply,
    CapabilitiesRequest,
    Heartbeat,
    HelloRequest,
    InitState,
    InstanceState,
    InstanceStatus,
    InstanceTelemetry,
    InstanceUsage,
    Role,
    StatusReply,
    StatusRequest,
    Telemetry,
)
from tools.bench.scale_card import boot_of, instances, of_cnm, uuid_of

HEARTBEAT_MS: Final = 100
TELEMETRY_MS: Final = 1000
BACKLOG: Final = 4096
NAME_BYTES: Final = 32
STATUS_SEQ: Final = 1
CORES_MILLI: Final = 8000
MEMORY_BYTES: Final = 16 << 30


class Played:
    """One link of one module, for as long as its connection lasts."""

    def __init__(self, loop: Loop, stream: ByteStream, kind: str, number: int, cnms: int) -> None:
        self._mine = of_cnm(cnms, number)
        self._identity = Identity(
            cnm_uuid=uuid_of(number), boot_id=boot_of(number), vendor_id=VENDOR_ID
        )
        self._seq = 0
        streams = [stream]

        def opened() -> ByteStream:
            if not streams:
                raise LinkDown("the daemon closed it")
            return streams.pop()

        self._endpoint = open_endpoint(
            loop, opened, entropy=LinuxEntropy(), identity=self._identity, name=f"{kind} {number}"
        )
        self._endpoint.link.on_state = lambda up, _text: None if up else self._end()
        role = Role.MC if kind == "mc" else Role.AGENT
        self._endpoint.serve(HelloRequest, lambda request: self._hello(request, role))
        if role is Role.MC:
            self._endpoint.serve(CapabilitiesRequest, _capabilities)
            self._beats = [
                Periodic(loop, HEARTBEAT_MS, self._heartbeat),
                Periodic(loop, TELEMETRY_MS, self._telemetry),
            ]
        else:
            self._endpoint.serve(StatusRequest, self._status)
            self._beats = [Periodic(loop, TELEMETRY_MS, self._usage)]

    def _end(self) -> None:
        for beat in self._beats:
            beat.stop()
        self._endpoint.link.close()

    def _hello(self, request: HelloRequest, role: Role) -> Body:
        return hello_reply(
            self._identity,
            bound_card_uuid=request.card_uuid,
            role=role,
            boot_state=BootState.READY,
        )

    def _heartbeat(self) -> None:
        self._seq += 1
        self._endpoint.notify(
            Heartbeat(
                boot_id=self._identity.boot_id,
                seq=self._seq,
                init_state=InitState.READY,
                bound_epoch=1,
                lease_left_ms=4900,
                agent_age_ms=50,
                status_seq=STATUS_SEQ,
                instances=len(self._mine),
            )
        )

    def _telemetry(self) -> None:
        self._endpoint.notify(
            Telemetry.of(
                boot_id=self._identity.boot_id,
                seq=self._seq,
                cpu_milli=2000,
                memory_bytes=1 << 30,
                temp_mdegc=45_000,
            )
        )

    def _status(self, _request: StatusRequest) -> Body:
        entries = tuple(
            InstanceStatus(
                instance=name,
                generation=generation,
                state=InstanceState.RUNNING,
                pid=generation,
                start_ticks=generation,
            )
            for name, generation in self._mine
        )
        return StatusReply(
            boot_id=self._identity.boot_id,
            status_seq=STATUS_SEQ,
            total=len(entries),
            entries=entries,
        )

    def _usage(self) -> None:
        self._seq += 1
        entries = tuple(
            InstanceUsage.of(
                instance=name,
                generation=generation,
                cpu_us=self._seq * 400_000,
                memory_bytes=48 << 20,
            )
            for name, generation in self._mine
        )
        self._endpoint.notify(
            InstanceTelemetry(boot_id=self._identity.boot_id, seq=self._seq, entries=entries)
        )


def _capabilities(_request: CapabilitiesRequest) -> Body:
    return CapabilitiesReply(
        arch="arm64",
        cores_milli=CORES_MILLI,
        memory_bytes=MEMORY_BYTES,
        nvme_bytes=1 << 38,
        link_mbit=32_000,
        window_tx_bytes=1 << 23,
        window_rx_bytes=1 << 23,
        accelerators=(),
        runtimes=("process",),
        labels=(),
    )


class Farm:
    """Takes the card's connections and plays whoever they are for."""

    def __init__(self, loop: Loop, listener: socket.socket, cnms: int) -> None:
        self._loop = loop
        self._listener = listener
        self._cnms = cnms
        loop.watch(listener.fileno(), Event.READ, lambda _events: self._accept())

    def _accept(self) -> None:
        while True:
            try:
                found, _ = self._listener.accept()
            except BlockingIOError:
                return
            name = bytearray()
            while not name.endswith(b"\n") and len(name) < NAME_BYTES:
                name += found.recv(1)  # the card writes it right after its connect
            kind, number = name.decode().split()
            Played(self._loop, StreamSocket(found), kind, int(number), self._cnms)


def main() -> int:
    """The exit status."""
    path, cnms = sys.argv[1], int(sys.argv[2])
    instances(cnms)
    clock = LinuxClock()
    loop = Loop(clock)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(BACKLOG)
    listener.setblocking(False)
    Farm(loop, listener, cnms)
    loop.watch(sys.stdin.fileno(), Event.READ, lambda _events: _ended(loop.stop))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    loop.run()
    return 0


def _ended(stop: Callable[[], None]) -> None:
    if not os.read(sys.stdin.fileno(), 1):
        stop()


if __name__ == "__main__":
    sys.exit(main())
