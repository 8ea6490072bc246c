"""A CXL memory device, asked in words: `protocol.cxl` over the mailbox of `hal.cxl_ports`.

A device that wants a command again (Retry Required) or is busy with a background operation is
asked again after a pause, a bounded number of times and never past the deadline of the whole;
every other return code is CxlFailed. Ref: CXL 3.1, 8.2.8.4.5.1 and 8.2.9.
"""

from collections.abc import Callable
from typing import Any, Final, TypeVar

from hal.cxl_ports import CxlCommand, CxlMemdev, CxlReply
from hal.errors import HalError, Refused
from hal.ports import Done, Reactor
from protocol.cxl.codes import Opcode, ReturnCode, opcode_name, return_code_name
from protocol.cxl.events import (
    CLEAR_MAX,
    ClearEventsRequest,
    EventLog,
    EventRecord,
    EventRecords,
    GetEventsRequest,
)
from protocol.cxl.logs import CEL_UUID, CommandEffects, GetLogRequest, SupportedLogs
from protocol.cxl.memory import (
    GetLsaRequest,
    HealthInfo,
    IdentifyMemoryDevice,
    PartitionInfo,
    SetLsaRequest,
)
from protocol.errors import ProtocolError

T = TypeVar("T")

MS: Final = 1_000_000
RETRY_LIMIT: Final = 3  # commands that the device wants to be sent again
BUSY_LIMIT: Final = 20  # times that it was busy: with BUSY_PAUSE_MS up to a second
RETRY_PAUSE_MS: Final = 10
BUSY_PAUSE_MS: Final = 50  # devices on MCTP want 40 ms between commands (OpenBIC #2092)
EVENTS_LIMIT: Final = 512  # records that one draining takes from one log
LOG_LIMIT_BYTES: Final = 64 * 1024  # of a Command Effects Log: 16,384 commands


class CxlFailed(HalError):
    """The device answered with an error; `return_code` says which."""

    def __init__(self, name: str, opcode: int, return_code: int) -> None:
        self.return_code = return_code
        words = return_code_name(return_code) or "unknown code"
        asked = opcode_name(opcode) or "unknown opcode"
        super().__init__(f"{name}: {asked} ({opcode:04X}h): {words} ({return_code:#04x})")


class CxlGarbled(HalError):
    """The device answered with success and bytes that don't fit."""


class CxlDevice:
    """Typed commands. All `done` come on the loop, once."""

    def __init__(self, memdev: CxlMemdev, reactor: Reactor) -> None:
        self._memdev, self._reactor = memdev, reactor
        self.name = memdev.info.name
        self.retried = 0
        self.was_busy = 0

    def identify(self, deadline_ns: int, done: Done[IdentifyMemoryDevice]) -> None:
        """4000h"""
        read = IdentifyMemoryDevice.from_bytes
        self._ask(Opcode.IDENTIFY_MEMORY_DEVICE, b"", deadline_ns, read, done)

    def partitions(self, deadline_ns: int, done: Done[PartitionInfo]) -> None:
        """4100h"""
        self._ask(Opcode.GET_PARTITION_INFO, b"", deadline_ns, PartitionInfo.from_bytes, done)

    def health(self, deadline_ns: int, done: Done[HealthInfo]) -> None:
        """4200h"""
        self._ask(Opcode.GET_HEALTH_INFO, b"", deadline_ns, HealthInfo.from_bytes, done)

    def effects(self, deadline_ns: int, done: Done[CommandEffects]) -> None:
        """0400h and 0401h: which commands the device has. A log longer than one mailbox payload is
        read as far as that goes: devices disagree about what an offset counts (QEMU 7.2 takes it
        for one in entries)."""

        def listed(result: SupportedLogs | HalError) -> None:
            if isinstance(result, HalError):
                done(result)
                return
            sizes = [log.size_bytes for log in result.logs if log.uuid == CEL_UUID]
            if not sizes:
                done(CxlGarbled(f"{self.name}: its logs have no Command Effects Log"))
                return
            room = min(self._memdev.info.payload_max_bytes, LOG_LIMIT_BYTES)
            length = min(sizes[0], room // 4 * 4)
            request = GetLogRequest(uuid=CEL_UUID, offset=0, length=length)
            read = CommandEffects.from_bytes
            self._ask(Opcode.GET_LOG, request.to_bytes(), deadline_ns, read, done)

        read = SupportedLogs.from_bytes
        self._ask(Opcode.GET_SUPPORTED_LOGS, b"", deadline_ns, read, listed)

    def read_labels(self, offset: int, length: int, deadline_ns: int, done: Done[bytes]) -> None:
        """4102h, as often as the mailbox's payload wants. Refused outside the label area."""
        problem = self._outside(offset, length)
        if problem is not None:
            self._reactor.post(lambda: done(problem))
            return
        found = bytearray()

        def step(result: bytes | HalError) -> None:
            if isinstance(result, HalError):
                done(result)
                return
            found.extend(result)
            if len(found) >= length:
                done(bytes(found))
            else:
                more()

        def more() -> None:
            piece = min(length - len(found), self._memdev.info.payload_max_bytes)
            request = GetLsaRequest(offset=offset + len(found), length=piece)

            def whole(data: bytes) -> bytes:
                if len(data) != piece:
                    raise ProtocolError(f"{piece} bytes asked for", frame=data, code="short")
                return data

            self._ask(Opcode.GET_LSA, request.to_bytes(), deadline_ns, whole, step)

        more()

    def write_labels(self, offset: int, data: bytes, deadline_ns: int, done: Done[None]) -> None:
        """4103h, as often as needed. Refused outside the label area; an error may leave it half
        written: whoever keeps labels there has a sequence number and a checksum in them."""
        problem = self._outside(offset, len(data))
        if problem is not None:
            self._reactor.post(lambda: done(problem))
            return
        written = 0

        def step(result: bytes | HalError) -> None:
            if isinstance(result, HalError):
                done(result)
            elif written >= len(data):
                done(None)
            else:
                more()

        def more() -> None:
            nonlocal written
            piece = data[written : written + self._memdev.info.payload_max_bytes - 8]
            request = SetLsaRequest(offset=offset + written, data=piece)
            written += len(piece)
            self._ask(Opcode.SET_LSA, request.to_bytes(), deadline_ns, bytes, step)

        more()

    def drain_events(
        self,
        log: EventLog,
        deadline_ns: int,
        done: Done["Drained"],
        *,
        limit: int = EVENTS_LIMIT,
    ) -> None:
        """Read and clear one log, oldest first, at most about `limit` records: what is left is
        there at the next time. A record is cleared only after it was read."""
        drained = Drained()
        request = GetEventsRequest(log=log).to_bytes()

        def got(result: EventRecords | HalError) -> None:
            if isinstance(result, HalError):
                # What was read and cleared must not be lost for an error that came later.
                done(drained if drained.records else result)
                return
            drained.overflows += result.overflow_count
            if not result.records:
                done(drained)
                return
            drained.records.extend(result.records)
            drained.more = result.more
            handles = tuple(record.handle for record in result.records[:CLEAR_MAX])
            clear = ClearEventsRequest(log=log, handles=handles).to_bytes()
            self._ask(Opcode.CLEAR_EVENT_RECORDS, clear, deadline_ns, bytes, cleared)

        def cleared(result: bytes | HalError) -> None:
            if isinstance(result, HalError):
                drained.not_cleared = str(result)
                done(drained)
            elif drained.more and len(drained.records) < limit:
                more()
            else:
                done(drained)

        def more() -> None:
            self._ask(Opcode.GET_EVENT_RECORDS, request, deadline_ns, EventRecords.from_bytes, got)

        more()

    def close(self) -> None:
        """Twice is fine."""
        self._memdev.close()

    def _outside(self, offset: int, length: int) -> HalError | None:
        size = self._memdev.info.label_bytes
        if offset < 0 or length <= 0 or offset + length > size:
            return Refused(f"{self.name}: {length} bytes of labels at {offset}; it has {size}")
        return None

    def _ask(
        self,
        opcode: Opcode,
        payload: bytes,
        deadline_ns: int,
        read: Callable[[bytes], T],
        done: Done[T],
    ) -> None:
        """Send it, again where that is called for, and read the answer."""
        command = CxlCommand(opcode=opcode, payload=payload)
        counts: dict[int, int] = {
            ReturnCode.RETRY_REQUIRED: RETRY_LIMIT,
            ReturnCode.BUSY: BUSY_LIMIT,
        }

        def answered(result: CxlReply | HalError) -> None:
            if isinstance(result, HalError):
                done(result)
                return
            code = result.return_code
            left = counts.get(code, 0)
            if left and self._again(code, deadline_ns, send):
                counts[code] = left - 1
            elif code != ReturnCode.SUCCESS:
                done(CxlFailed(self.name, opcode, code))
            else:
                done(self._read(opcode, result.payload, read))

        def send() -> None:
            self._memdev.submit(command, deadline_ns, answered)

        send()

    def _again(self, code: int, deadline_ns: int, send: Callable[[], None]) -> bool:
        """Whether there is time for another one; it is on its way then."""
        busy = code == ReturnCode.BUSY
        at_ns = self._reactor.now_ns() + (BUSY_PAUSE_MS if busy else RETRY_PAUSE_MS) * MS
        if at_ns >= deadline_ns:
            return False
        if busy:
            self.was_busy += 1
        else:
            self.retried += 1
        self._reactor.call_at(at_ns, send)
        return True

    def _read(self, opcode: int, payload: bytes, read: Callable[[bytes], Any]) -> Any:
        try:
            return read(payload)
        except ProtocolError as exc:
            return CxlGarbled(f"{self.name}: answer to {opcode:04X}h: {exc}")


class Drained:
    """What one draining of a log gave."""

    def __init__(self) -> None:
        self.records: list[EventRecord] = []  # at most the limit and one answer more
        self.overflows = 0  # events that the device could not keep
        self.more = False  # it holds more
        self.not_cleared = ""  # why the last ones will come again
