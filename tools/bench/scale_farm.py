"""The modules of `apf bench scale`, played: `python -m tools.bench.scale_farm SOCKET CNMS`.

Each control link is one connection to SOCKET; its first line says whose ("mc 17"). A played
module answers what a real one is asked at a start (Set EID, hello, capabilities, status), says
that its four components run, and sends a heartbeat each 100 ms and telemetry each second on both
its links: ten heartbeats and two more messages.

It must not be what is measured, so it does as little as it can: what can be known beforehand is
encoded before "ready" is printed, what comes in is looked at only where it may be a question, and
modules speak at moments spread evenly over the period, or as many at once as are due when it gets
the processor (`hurry` asks for it). On a busy machine it may still be late, and a module that is
late for long is fenced: the row "fenced" counts those. It ends with its standard input.
"""

import select
import socket
import sys
import time
from typing import Final

from firmware.cnm.ends import Identity, hello_reply
from firmware.discovery import CARD_EID, CNM_EID
from protocol.apf import (
    VENDOR_ID,
    Body,
    BootState,
    CapabilitiesReply,
    CapabilitiesRequest,
    Grant,
    Heartbeat,
    HelloRequest,
    InitState,
    InstanceState,
    InstanceStatus,
    InstanceTelemetry,
    InstanceUsage,
    Kind,
    Role,
    StatusReply,
    StatusRequest,
    Telemetry,
    decode_header,
    encode,
    encode_notice,
)
from protocol.apf.header import MESSAGE_ID_OFFSET
from protocol.mctp.control import ControlState, Responder
from protocol.mctp.fragment import fragment
from protocol.mctp.packet import TYPE_CONTROL
from protocol.mctp.reassembly import Message, Reassembler
from protocol.mctp.serial import SerialDeframer
from protocol.mctp.serial_frame import FLAG, escape, frame_serial
from tools.bench.hurry import ask_for_processor
from tools.bench.scale_card import boot_of, of_cnm, uuid_of

HEARTBEAT_NS: Final = 100_000_000
BEATS_A_TELEMETRY: Final = 10
BACKLOG: Final = 4096
NAME_BYTES: Final = 32
READ_BYTES: Final = 65_536
EVENTS: Final = 512
NOTICE_TAG: Final = 7
STATUS_SEQ: Final = 1
ID_BYTES: Final = 4
FIRST_ID: Final = 1
_FLAG: Final = bytes([FLAG])


def frames(message: bytes, tag: int, *, to: bool) -> bytes:
    """A whole message as it goes over the line to the card."""
    packets = fragment(message, dest_eid=CARD_EID, src_eid=CNM_EID, tag=tag, to=to)
    return b"".join(map(frame_serial, packets))


def _notice(body: Body) -> bytes:
    return frames(encode_notice(body, message_id=FIRST_ID), NOTICE_TAG, to=True)


def _reply(body: Body) -> bytes:
    return encode(body, kind=Kind.REPLY, message_id=0)


def _capabilities() -> CapabilitiesReply:
    return CapabilitiesReply(
        arch="arm64",
        cores_milli=8000,
        memory_bytes=16 << 30,
        nvme_bytes=1 << 38,
        link_mbit=32_000,
        window_tx_bytes=1 << 23,
        window_rx_bytes=1 << 23,
        accelerators=(),
        runtimes=("process",),
        labels=(),
    )


def _grant_mark() -> bytes:
    """What the frame of a grant, and of nothing else that the card sends, contains."""
    grant = Grant(card_uuid=bytes(16), epoch=1, boot_id=bytes(16), seq=1, lease_ms=1)
    return escape(encode_notice(grant, message_id=0)[:MESSAGE_ID_OFFSET])


class Script:
    """What one module says, encoded beforehand."""

    def __init__(self, number: int, cnms: int, capabilities: bytes) -> None:
        mine = of_cnm(cnms, number)
        boot_id = boot_of(number)
        identity = Identity(cnm_uuid=uuid_of(number), boot_id=boot_id, vendor_id=VENDOR_ID)
        self.uuid = identity.cnm_uuid
        hellos = {
            role: _reply(
                hello_reply(
                    identity, bound_card_uuid=bytes(16), role=role, boot_state=BootState.READY
                )
            )
            for role in (Role.MC, Role.AGENT)
        }
        status = StatusReply(
            boot_id=boot_id,
            status_seq=STATUS_SEQ,
            total=len(mine),
            entries=tuple(
                InstanceStatus(
                    instance=name,
                    generation=generation,
                    state=InstanceState.RUNNING,
                    pid=generation,
                    start_ticks=generation,
                )
                for name, generation in mine
            ),
        )
        self.replies = {  # by link, then by opcode
            "mc": {
                HelloRequest.OPCODE: hellos[Role.MC],
                CapabilitiesRequest.OPCODE: capabilities,
            },
            "agent": {
                HelloRequest.OPCODE: hellos[Role.AGENT],
                StatusRequest.OPCODE: _reply(status),
            },
        }
        usage = tuple(
            InstanceUsage.of(instance=name, generation=generation, cpu_us=1, memory_bytes=48 << 20)
            for name, generation in mine
        )
        self.telemetry = {
            "mc": _notice(
                Telemetry.of(
                    boot_id=boot_id,
                    seq=1,
                    cpu_milli=2000,
                    memory_bytes=1 << 30,
                    temp_mdegc=45_000,
                )
            ),
            "agent": _notice(InstanceTelemetry(boot_id=boot_id, seq=1, entries=usage)),
        }
        self._boot_id, self._instances = boot_id, len(mine)
        self._seq = 0

    def heartbeat(self) -> bytes:
        """The next one."""
        self._seq += 1
        return _notice(
            Heartbeat(
                boot_id=self._boot_id,
                seq=self._seq,
                init_state=InitState.READY,
                bound_epoch=1,
                lease_left_ms=4900,
                agent_age_ms=50,
                status_seq=STATUS_SEQ,
                instances=self._instances,
            )
        )


class Line:
    """One link of one module, for as long as its connection lasts."""

    def __init__(self, sock: socket.socket, kind: str, script: Script, mark: bytes) -> None:
        self.sock = sock
        self.open = True
        self._kind, self._script, self._mark = kind, script, mark
        self._deframer = SerialDeframer()
        self._reassembler = Reassembler()
        self._control = Responder(ControlState(uuid=script.uuid))

    def speak(self, beat: int) -> None:
        """The `beat`-th of its moments has come."""
        telemetry = beat % BEATS_A_TELEMETRY == 0
        if self._kind == "mc":
            self._send(self._script.heartbeat())
        if telemetry:
            self._send(self._script.telemetry[self._kind])

    def hear(self) -> None:
        """Something can be read."""
        try:
            data = self.sock.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.open = False
            return
        grants = data.count(self._mark)
        if grants and 2 * grants == data.count(_FLAG):
            return  # nothing but grants, which nobody needs here
        for packet in self._deframer.feed(data):
            message = self._reassembler.feed(packet, link=0, now_ns=time.monotonic_ns())
            if message is not None:
                self._answer(message)

    def _answer(self, message: Message) -> None:
        if message.type == TYPE_CONTROL:
            answer = self._control.answer(message.data)
        else:
            header = decode_header(message.data)
            wanted = header.opcode if header.kind is Kind.REQUEST else 0
            answer = self._script.replies[self._kind].get(wanted)
            if answer is not None:
                end = MESSAGE_ID_OFFSET + ID_BYTES
                asked = message.data[MESSAGE_ID_OFFSET:end]
                answer = answer[:MESSAGE_ID_OFFSET] + asked + answer[end:]
        if answer is not None:
            self._send(frames(answer, message.tag, to=False))

    def _send(self, data: bytes) -> None:
        try:
            self.sock.send(data)  # what doesn't fit is lost and a frame torn, as on a line
        except BlockingIOError:
            return
        except OSError:
            self.open = False


class Farm:
    """Takes the card's connections and plays whoever they are for."""

    def __init__(self, listener: socket.socket, cnms: int) -> None:
        self._listener = listener
        self._mark = _grant_mark()
        capabilities = _reply(_capabilities())
        self._scripts = [Script(number, cnms, capabilities) for number in range(cnms)]
        self._lines: dict[int, Line] = {}  # by descriptor
        self._by_cnm: list[dict[str, Line]] = [{} for _ in range(cnms)]
        self._epoll = select.epoll()
        self._epoll.register(listener, select.EPOLLIN)

    def run(self, until: int) -> None:
        """Until the descriptor `until` can be read."""
        self._epoll.register(until, select.EPOLLIN)
        cnms = len(self._scripts)
        gap_ns = HEARTBEAT_NS // cnms
        turn = 0  # of all moments of all modules, one each gap_ns
        start_ns = time.monotonic_ns()
        while True:
            late_ns = time.monotonic_ns() - start_ns - turn * gap_ns
            if late_ns > HEARTBEAT_NS:  # it did not get the processor: what was missed is missed
                turn += late_ns // gap_ns
            while turn * gap_ns <= time.monotonic_ns() - start_ns:
                beat, number = divmod(turn, cnms)
                for line in self._by_cnm[number].values():
                    line.speak(beat + number)
                turn += 1
            wait_ns = max(0, start_ns + turn * gap_ns - time.monotonic_ns())
            for handle, _mask in self._epoll.poll(wait_ns / 1e9, EVENTS):
                if handle == until:
                    return
                if handle == self._listener.fileno():
                    self._accept()
                else:
                    self._hear(handle)

    def _hear(self, handle: int) -> None:
        line = self._lines[handle]
        line.hear()
        if not line.open:
            self._epoll.unregister(handle)
            del self._lines[handle]
            line.sock.close()

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
            found.setblocking(False)
            line = Line(found, kind, self._scripts[int(number)], self._mark)
            self._lines[found.fileno()] = self._by_cnm[int(number)][kind] = line
            self._epoll.register(found, select.EPOLLIN)


def main() -> int:
    """The exit status."""
    path, cnms = sys.argv[1], int(sys.argv[2])
    ask_for_processor()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(BACKLOG)
    listener.setblocking(False)
    farm = Farm(listener, cnms)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    farm.run(sys.stdin.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
