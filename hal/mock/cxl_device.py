"""A CXL memory device (type 3) as its mailbox shows it, and the faults that it may have.

Ref: CXL 3.1, 8.2.9 by the opcode; payloads are packed here with `struct`, apart from the layouts
of `protocol.cxl`, so that each judges the other.

Modelled: capacities and partitions (a change holds after `cold_reset`), a label storage area that
keeps its bytes, health, shutdown state, four event logs with room, overflow and clearing, the list
of logs and the Command Effects Log, a clock, a media scan in the background. Not modelled: the
memory itself (regions are `hal.mock.cxl`'s), poison, security, firmware update, dynamic capacity.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from hal.mock.kernel import VirtualKernel

UNIT_BYTES: Final = 256 << 20  # of capacities
RECORD_BYTES: Final = 128
RECORDS_HEADER_BYTES: Final = 32
COUNT_MAX: Final = 0xFFFF
CEL_UUID: Final = bytes.fromhex("0da9c0b5bf414b788f7996b1623b3f17")

SUCCESS: Final = 0x00  # return codes, 8.2.8.4.5.1
BACKGROUND_STARTED: Final = 0x01
INVALID_INPUT: Final = 0x02
UNSUPPORTED: Final = 0x03
RETRY_REQUIRED: Final = 0x05
BUSY: Final = 0x06
INVALID_HANDLE: Final = 0x0E
PERMANENT_MEDIA_FAILURE: Final = 0x11
INVALID_PAYLOAD_LENGTH: Final = 0x16
INVALID_LOG: Final = 0x17

BACKGROUND_STATUS: Final = 0x0002
SCAN_MEDIA: Final = 0x4304

EFFECTS: Final = {  # opcode -> effects, table 8-76: the device's own list of what it can do
    0x0001: 0,
    0x0002: 0,
    0x0100: 0,
    0x0101: 1 << 4,
    0x0200: 0,
    0x0300: 0,
    0x0301: 1 << 3,
    0x0400: 0,
    0x0401: 0,
    0x4000: 0,
    0x4100: 0,
    0x4101: 1 << 0,
    0x4102: 0,
    0x4103: 1 << 1 | 1 << 2,
    0x4200: 0,
    0x4203: 0,
    0x4204: 1 << 3,
    0x4304: 1 << 6,
}


class _Failed(Exception):  # a return code on its way out
    def __init__(self, code: int) -> None:
        super().__init__(f"return code {code:#04x}")
        self.code = code


@dataclass
class _Log:
    """One event log: records in order of their handles, and what found no room."""

    room: int
    records: deque[tuple[int, bytes]] = field(default_factory=deque)  # at most `room`
    next_handle: int = 1
    overflows: int = 0
    first_overflow_ns: int = 0
    last_overflow_ns: int = 0


@dataclass
class Health:
    """What 4200h tells, 8.2.9.9.3.1."""

    status: int = 0
    media: int = 0
    additional: int = 0
    life_used_percent: int = 3
    temp_degc: int = 41
    dirty_shutdowns: int = 0
    corrected_volatile_errors: int = 0
    corrected_persistent_errors: int = 0

    def pack(self) -> bytes:
        """18 bytes."""
        return struct.pack(
            "<BBBBhIII",
            self.status,
            self.media,
            self.additional,
            self.life_used_percent,
            self.temp_degc,
            self.dirty_shutdowns,
            self.corrected_volatile_errors,
            self.corrected_persistent_errors,
        )


class MockCxlDevice:
    """One memory device. It outlives the nodes that use it, as hardware does."""

    def __init__(
        self,
        kernel: VirtualKernel,
        name: str,
        *,
        total_units: int = 4,
        volatile_only_units: int = 0,
        persistent_only_units: int = 0,
        alignment_units: int = 1,
        label_bytes: int = 64 * 1024,
        payload_max_bytes: int = 2048,
        log_records: int = 8,
        serial: int = 0x1122334455667788,
        address: str = "0000:35:00.0",
        command_ns: int = 1_000_000,
        scan_ns: int = 500_000_000,
    ) -> None:
        self.kernel = kernel
        self.name = name
        self.total_units = total_units
        self.volatile_only_units = volatile_only_units
        self.persistent_only_units = persistent_only_units
        self.alignment_units = alignment_units
        self.payload_max_bytes = payload_max_bytes
        self.serial = serial
        self.address = address
        self.command_ns = command_ns
        self.scan_ns = scan_ns
        self.firmware = "mock 1.0"
        self.labels = bytearray(label_bytes)
        self.health = Health()
        self.active_volatile_units = volatile_only_units
        self.next_volatile_units: int | None = None
        self.logs = {number: _Log(log_records) for number in range(4)}
        self.lacks: set[int] = set()  # opcodes that this device doesn't have
        self.present = True
        self.retries = 0  # so many of the next commands want to be sent again
        self.busy = False  # an operation that isn't ours goes on
        self.silent = 0  # so many of the next commands are never answered
        self.bad_labels = range(0)  # of the label area: reads of it fail
        self.failing: dict[int, int] = {}  # opcode -> the code that it ends with
        self.shutdown_dirty = 0
        self._clock_ns = 0  # as set, less kernel time then; 0 while it was never set
        self._scan_end_ns: int | None = None
        self._scanned = False
        self._handlers: dict[int, Callable[[bytes], bytes]] = {
            0x0001: self._identify_component,
            0x0002: self._background,
            0x0100: self._get_events,
            0x0101: self._clear_events,
            0x0200: self._firmware,
            0x0300: self._get_time,
            0x0301: self._set_time,
            0x0400: self._supported_logs,
            0x0401: self._get_log,
            0x4000: self._identify,
            0x4100: self._partitions,
            0x4101: self._set_partitions,
            0x4102: self._get_labels,
            0x4103: self._set_labels,
            0x4200: self._health,
            0x4203: lambda payload: _none(payload, bytes([self.shutdown_dirty])),
            0x4204: self._set_shutdown,
            SCAN_MEDIA: self._scan,
        }

    # --- what happens to it ---

    def remove(self) -> None:
        """Pulled, or its link is down."""
        self.present = False
        self.kernel.note(self.name, "remove")

    def insert(self) -> None:
        """The same device again; what it kept is still there."""
        self.present = True
        self.cold_reset()

    def cold_reset(self) -> None:
        """Partitions that were set hold now; the clock is forgotten; a scan is over."""
        if self.next_volatile_units is not None:
            self.active_volatile_units = self.next_volatile_units
            self.next_volatile_units = None
        self._clock_ns, self._scan_end_ns, self.busy = 0, None, False
        self.kernel.note(self.name, "cold_reset")

    def add_event(self, log: int, uuid: bytes, data: bytes, flags: int | None = None) -> int:
        """An event happens. Returns its record's handle, or 0 when the log was full: then it
        is only counted."""
        found = self.logs[log]
        time_ns = self._time_ns()
        if len(found.records) >= found.room:
            found.overflows = min(found.overflows + 1, COUNT_MAX)
            found.first_overflow_ns = found.first_overflow_ns or time_ns
            found.last_overflow_ns = time_ns
            return 0
        handle = found.next_handle
        found.next_handle = handle % COUNT_MAX + 1  # never 0
        head = struct.pack(
            "<16sB3sHHQ16x",
            uuid,
            RECORD_BYTES,
            (log if flags is None else flags).to_bytes(3, "little"),
            handle,
            0,
            time_ns,
        )
        found.records.append((handle, head + data.ljust(80, b"\0")))
        self.kernel.note(self.name, "event", f"{log} {handle}")
        return handle

    # --- the mailbox ---

    def execute(self, opcode: int, payload: bytes) -> tuple[int, bytes]:
        """Return code and answer."""
        if self.retries:
            self.retries -= 1
            return RETRY_REQUIRED, b""
        if self.busy and opcode != BACKGROUND_STATUS:
            return BUSY, b""
        if opcode in self.failing:
            return self.failing[opcode], b""
        handler = self._handlers.get(opcode)
        if handler is None or opcode in self.lacks:
            return UNSUPPORTED, b""
        try:
            answer = handler(payload)
        except struct.error:
            return INVALID_PAYLOAD_LENGTH, b""
        except _Failed as failed:
            return failed.code, b""
        self.kernel.note(self.name, f"cmd_{opcode:04x}", f"{len(payload)} {len(answer)}")
        return (BACKGROUND_STARTED if opcode == SCAN_MEDIA else SUCCESS), answer

    def _identify_component(self, payload: bytes) -> bytes:
        log2 = self.payload_max_bytes.bit_length() - 1
        return _none(
            payload, struct.pack("<HHHHQBB", 0x8086, 0x0D93, 0, 0, self.serial, log2, 0x03)
        )

    def _background(self, payload: bytes) -> bytes:
        running = self._scan_end_ns is not None and self.kernel.now_ns < self._scan_end_ns
        status = 100 << 1
        if running and self._scan_end_ns is not None:
            left_ns = self._scan_end_ns - self.kernel.now_ns
            status = (100 - left_ns * 100 // self.scan_ns) << 1 | 1
        elif self._scan_end_ns is None:
            status = 0
        opcode = 0 if self._scan_end_ns is None else SCAN_MEDIA
        return _none(payload, struct.pack("<BxHHH", status, opcode, 0, 0))

    def _get_events(self, payload: bytes) -> bytes:
        (number,) = struct.unpack("<B", payload)
        log = self._log(number)
        room = (self.payload_max_bytes - RECORDS_HEADER_BYTES) // RECORD_BYTES
        records = [record for _, record in log.records][:room]
        flags = (log.overflows > 0) | (len(log.records) > len(records)) << 1
        head = struct.pack(
            "<BxHQQH10x",
            flags,
            log.overflows,
            log.first_overflow_ns,
            log.last_overflow_ns,
            len(records),
        )
        return head + b"".join(records)

    def _clear_events(self, payload: bytes) -> bytes:
        number, flags, count = struct.unpack_from("<BBB3x", payload)
        log = self._log(number)
        handles = struct.unpack(f"<{count}H", payload[6:])
        if flags & 1:
            if not log.overflows or handles:
                raise _Failed(INVALID_INPUT)
            log.records.clear()
        else:
            oldest = [handle for handle, _ in log.records][:count]
            if oldest != list(handles):
                raise _Failed(INVALID_HANDLE)
            for _ in handles:
                log.records.popleft()
        log.overflows = log.first_overflow_ns = log.last_overflow_ns = 0
        return b""

    def _log(self, number: int) -> _Log:
        if number not in self.logs:
            raise _Failed(INVALID_INPUT)
        return self.logs[number]

    def _firmware(self, payload: bytes) -> bytes:
        revision = self.firmware.encode().ljust(16, b"\0")
        return _none(payload, struct.pack("<BBB13x", 1, 1, 0) + revision + bytes(48))

    def _get_time(self, payload: bytes) -> bytes:
        return _none(payload, struct.pack("<Q", self._time_ns()))

    def _set_time(self, payload: bytes) -> bytes:
        (time_ns,) = struct.unpack("<Q", payload)
        self._clock_ns = time_ns - self.kernel.now_ns
        return b""

    def _time_ns(self) -> int:
        return self._clock_ns + self.kernel.now_ns if self._clock_ns else 0

    def _supported_logs(self, payload: bytes) -> bytes:
        return _none(payload, struct.pack("<H6x16sI", 1, CEL_UUID, len(self._effects())))

    def _get_log(self, payload: bytes) -> bytes:
        uuid, offset, length = struct.unpack("<16sII", payload)
        if uuid != CEL_UUID:
            raise _Failed(INVALID_LOG)
        effects = self._effects()
        if offset + length > len(effects) or length > self.payload_max_bytes:
            raise _Failed(INVALID_INPUT)
        return effects[offset : offset + length]

    def _effects(self) -> bytes:
        return b"".join(
            struct.pack("<HH", opcode, effect)
            for opcode, effect in EFFECTS.items()
            if opcode not in self.lacks
        )

    def _identify(self, payload: bytes) -> bytes:
        sizes = [self.logs[number].room for number in range(4)]
        return _none(
            payload,
            struct.pack(
                "<16sQQQQHHHHI3xHBBH",
                self.firmware.encode(),
                self.total_units,
                self.volatile_only_units,
                self.persistent_only_units,
                self.alignment_units,
                *sizes,
                len(self.labels),
                0,
                0,
                0,
                0,
            ),
        )

    def _partitions(self, payload: bytes) -> bytes:
        now, then = self.active_volatile_units, self.next_volatile_units
        next_pair = (0, 0) if then is None else (then, self.total_units - then)
        return _none(payload, struct.pack("<QQQQ", now, self.total_units - now, *next_pair))

    def _set_partitions(self, payload: bytes) -> bytes:
        # The kernel's table wants ten bytes where the specification has nine.
        volatile, immediate = struct.unpack("<QB", payload[:9])
        high = self.total_units - self.persistent_only_units
        aligned = self.alignment_units and volatile % self.alignment_units == 0
        if not aligned or not self.volatile_only_units <= volatile <= high or immediate & 1:
            raise _Failed(INVALID_INPUT)
        self.next_volatile_units = volatile
        return b""

    def _get_labels(self, payload: bytes) -> bytes:
        offset, length = struct.unpack("<II", payload)
        if offset + length > len(self.labels) or length > self.payload_max_bytes:
            raise _Failed(INVALID_INPUT)
        if set(self.bad_labels) & set(range(offset, offset + length)):
            raise _Failed(PERMANENT_MEDIA_FAILURE)
        return bytes(self.labels[offset : offset + length])

    def _set_labels(self, payload: bytes) -> bytes:
        (offset,) = struct.unpack_from("<I4x", payload)
        data = payload[8:]
        if offset + len(data) > len(self.labels):
            raise _Failed(INVALID_INPUT)
        self.labels[offset : offset + len(data)] = data
        return b""

    def _health(self, payload: bytes) -> bytes:
        return _none(payload, self.health.pack())

    def _set_shutdown(self, payload: bytes) -> bytes:
        (self.shutdown_dirty,) = struct.unpack("<B", payload)
        return b""

    def _scan(self, payload: bytes) -> bytes:
        struct.unpack("<QQB", payload)
        if self._scan_end_ns is not None and self.kernel.now_ns < self._scan_end_ns:
            raise _Failed(BUSY)
        self._scan_end_ns = self.kernel.now_ns + self.scan_ns
        return b""


def _none(payload: bytes, answer: bytes) -> bytes:
    """The answer of a command that has no payload of its own."""
    if payload:
        raise _Failed(INVALID_PAYLOAD_LENGTH)
    return answer
