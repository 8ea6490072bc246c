"""The receiving end of a control link as the card has it, over streams that a benchmark fills.

`firmware.link.Link`, `firmware.endpoint.Endpoint` and the record `firmware.inventory.Cnm` are the
real ones; what a heartbeat does to the record is `Card._on_heartbeat` without the timers.
"""

from collections import deque
from collections.abc import Callable
from typing import Final

from firmware.board import load_board
from firmware.board_types import Board
from firmware.discovery import CARD_EID, CNM_EID
from firmware.endpoint import Endpoint
from firmware.inventory import Cnm
from firmware.lease import CardLease
from firmware.link import Link
from hal.errors import Unavailable
from hal.linux.clock import LinuxClock
from hal.linux.entropy import LinuxEntropy
from hal.ports import Buffer, ByteStream, Done, Doorbell, Event, Reactor, Window
from protocol.apf import Body, Grant, Heartbeat, InitState, Kind, Telemetry, encode
from protocol.mctp.fragment import fragment
from protocol.mctp.serial import frame_serial

CARD_UUID: Final = bytes(range(16))
EPOCH: Final = 7
LEASE_MS: Final = 5000
FRAME_BYTES: Final = 70  # DESIGN section 6
# A heartbeat's frame has 65 B and the escape of its message type, 7E. Four bytes of the boot id
# that must be escaped too make the 70 B of the goal.
PLAIN_BOOT_ID: Final = bytes(range(0x10, 0x20))
ESCAPED_BOOT_ID: Final = b"\x7e\x7d\x7e\x7d" + bytes(range(0x10, 0x1C))


class FilledStream:
    """`hal.ports.ByteStream` in memory: reads what `fill` gave, swallows what is written."""

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._waiting: deque[bytes] = deque()

    @property
    def handle(self) -> int:
        return self._handle

    def fill(self, data: bytes) -> None:
        self._waiting.append(data)

    def read(self) -> bytes:
        return self._waiting.popleft() if self._waiting else b""

    def write(self, data: Buffer) -> int:
        return len(data)

    def close(self) -> None:
        self._waiting.clear()


class HandReactor:
    """`hal.ports.Reactor` whose events come from the benchmark's hand. Timers never come due: the
    links' own (one a second each) are no part of the receive path."""

    def __init__(self) -> None:
        self._clock = LinuxClock()
        self.watches: dict[int, Callable[[Event], None]] = {}

    def now_ns(self) -> int:
        return self._clock.now_ns()

    def post(self, call: Callable[[], None]) -> None:
        call()

    def call_at(self, when_ns: int, call: Callable[[], None]) -> Callable[[], None]:
        del when_ns, call
        return lambda: None

    def watch(self, handle: int, events: Event, call: Callable[[Event], None]) -> None:
        del events
        self.watches[handle] = call

    def unwatch(self, handle: int) -> None:
        self.watches.pop(handle, None)

    def close(self) -> None:
        self._clock.close()


class _NoPorts:
    """A slot without hardware."""

    def open_mc(self) -> ByteStream:
        raise Unavailable("a benchmark's slot")

    def open_agent(self) -> ByteStream:
        raise Unavailable("a benchmark's slot")

    def open_window(self, deadline_ns: int, done: Done[tuple[Window, Doorbell]]) -> None:
        del deadline_ns
        done(Unavailable("a benchmark's slot"))


class StateTable:
    """CNMs by boot id, each with a link of its own on the given reactor."""

    def __init__(self, reactor: Reactor, *, grants: bool = False) -> None:
        """`grants`: answer each heartbeat, as the card does while a lease holds."""
        self._reactor = reactor
        self._grants = grants
        self._board: Board = load_board("local", run_dir="/nonexistent")
        self.cnms: list[Cnm] = []
        self.updates = 0

    def add(self, stream: ByteStream, boot_id: bytes) -> Cnm:
        """A leased CNM whose management controller is at the other end of `stream`."""
        name = f"cnm{len(self.cnms)}"
        link = Link(self._reactor, lambda: stream, name=name, local_eid=CARD_EID, peer_eid=CNM_EID)
        endpoint = Endpoint(self._reactor, link, entropy=LinuxEntropy(), name=name)
        cnm = Cnm(
            id=name,
            config=self._board.slots[0],
            lease=CardLease(self._board.timing, power_fence=True),
            ports=_NoPorts(),
            mc=endpoint,
            agent=endpoint,
        )
        now_ns = self._reactor.now_ns()
        cnm.lease.on_boot(boot_id, now_ns)
        cnm.lease.admit(boot_id, now_ns)
        endpoint.on_notice(Heartbeat, lambda beat: self._on_heartbeat(cnm, beat))
        endpoint.on_notice(Telemetry, lambda report: self._on_telemetry(cnm, report))
        self.cnms.append(cnm)
        return cnm

    def _on_heartbeat(self, cnm: Cnm, beat: Heartbeat) -> None:
        now_ns = self._reactor.now_ns()
        if beat.boot_id != cnm.boot_id:
            return
        cnm.heartbeat = beat
        cnm.heartbeat_ns = now_ns
        self.updates += 1
        if cnm.lease.on_heartbeat(beat.boot_id, now_ns) and self._grants:
            grant = Grant(
                card_uuid=CARD_UUID,
                epoch=EPOCH,
                boot_id=beat.boot_id,
                seq=beat.seq,
                lease_ms=LEASE_MS,
            )
            cnm.mc.notify(grant, urgent=True)

    def _on_telemetry(self, cnm: Cnm, report: Telemetry) -> None:
        if report.boot_id == cnm.boot_id:
            cnm.telemetry, cnm.telemetry_ns = report, self._reactor.now_ns()
            self.updates += 1


def boot_id_of(number: int) -> bytes:
    """One of 65,536 boot ids; a few of them need escapes, as in life."""
    return number.to_bytes(2, "little") + PLAIN_BOOT_ID[2:]


def heartbeat(boot_id: bytes) -> Heartbeat:
    """One that needs no escapes but for its message type and its boot id."""
    return Heartbeat(
        boot_id=boot_id,
        seq=0x01020304,
        init_state=InitState.READY,
        bound_epoch=EPOCH,
        lease_left_ms=4900,
        agent_age_ms=60,
        status_seq=0x0A0B0C0D,
        instances=4,
    )


def telemetry(boot_id: bytes) -> Telemetry:
    """All of it readable; two packets."""
    return Telemetry.of(
        boot_id=boot_id,
        seq=0x01020304,
        cpu_milli=640,
        memory_bytes=512 << 20,
        nvme_bytes=3 << 30,
        link_tx_bytes=1 << 40,
        link_rx_bytes=1 << 41,
        temp_mdegc=56_500,
        power_mw=11_200,
    )


def notice_packets(body: Body, message_id: int = 1) -> list[bytes]:
    """The MCTP packets of a notice from the CNM to its card."""
    message = encode(body, kind=Kind.NOTICE, message_id=message_id)
    return fragment(message, dest_eid=CARD_EID, src_eid=CNM_EID, tag=0, to=True)


def notice_bytes(body: Body) -> bytes:
    """The serial bytes of a notice."""
    return b"".join(frame_serial(packet) for packet in notice_packets(body))
