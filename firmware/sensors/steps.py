"""How a driver talks to its part: it yields transfers and is given what was read.

    def read(self) -> Steps[Mapping[str, int]]:
        raw = yield from self.at.read_word(REG_TEMPERATURE)
        return {"temp_mdegc": ...}

A driver knows neither time nor threads. `run_steps` carries it out on a segment: one transfer
after the other, all before one deadline, at most STEPS_LIMIT of them.
"""

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias, TypeVar

from hal.errors import DeadlinePassed, HalError
from hal.ports import Done
from hal.smbus_ports import (
    MuxPath,
    SmbusCapabilities,
    SmbusKind,
    SmbusSegment,
    SmbusTransfer,
)
from protocol.errors import ProtocolError

T = TypeVar("T")
Steps: TypeAlias = Generator[SmbusTransfer, bytes, T]
Readings: TypeAlias = Mapping[str, int | None]  # None: the part says that it can't tell

STEPS_LIMIT: Final = 70_000  # an EEPROM of 64 KiB, byte by byte


class WrongPart(HalError):
    """Something answers at the address, but it is not the part that the board has there."""


class BadAnswer(HalError):
    """The part answered with bytes that make no sense."""


class SensorDriver(Protocol):
    """What a monitor needs of a driver."""

    part: str

    def identify(self) -> Steps[str]: ...

    def configure(self) -> Steps[None]: ...

    def read(self) -> Steps[Readings]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class At:
    """Where a part is, and the transfers to it. `pec` for parts that check it, on adapters that
    make it; `gap_us` is the pause that it wants after each transfer."""

    address: int
    mux: MuxPath = ()
    pec: bool = False
    gap_us: int = 0

    def quick(self) -> Steps[bytes]:
        return (yield self._item(SmbusKind.QUICK, pec=False))

    def receive_byte(self) -> Steps[int]:
        return (yield self._item(SmbusKind.RECEIVE_BYTE))[0]

    def send_byte(self, command: int) -> Steps[None]:
        yield self._item(SmbusKind.SEND_BYTE, command)

    def read_byte(self, command: int) -> Steps[int]:
        return (yield self._item(SmbusKind.READ_BYTE, command))[0]

    def write_byte(self, command: int, value: int) -> Steps[None]:
        yield self._item(SmbusKind.WRITE_BYTE, command, bytes([value]))

    def read_word(self, command: int) -> Steps[bytes]:
        """Two bytes as they came."""
        return (yield self._item(SmbusKind.READ_WORD, command))

    def read_be(self, command: int) -> Steps[int]:
        """A word whose first byte is the most significant one."""
        return int.from_bytes((yield from self.read_word(command)), "big")

    def read_signed_be(self, command: int) -> Steps[int]:
        return int.from_bytes((yield from self.read_word(command)), "big", signed=True)

    def write_be(self, command: int, value: int) -> Steps[None]:
        yield self._item(SmbusKind.WRITE_WORD, command, (value & 0xFFFF).to_bytes(2, "big"))

    def write_word(self, command: int, data: bytes) -> Steps[None]:
        yield self._item(SmbusKind.WRITE_WORD, command, data)

    def read_block(self, command: int, most_bytes: int = 0) -> Steps[bytes]:
        """`most_bytes` above 32 for a longer block."""
        return (yield self._item(SmbusKind.READ_BLOCK, command, read_bytes=most_bytes))

    def block_process_call(self, command: int, data: bytes) -> Steps[bytes]:
        return (yield self._item(SmbusKind.BLOCK_PROCESS_CALL, command, data))

    def transfer(
        self,
        kind: SmbusKind,
        command: int = 0,
        data: bytes = b"",
        read_bytes: int = 0,
        gap_us: int = 0,
    ) -> Steps[bytes]:
        """Anything else; `gap_us` for this one transfer."""
        return (yield self._item(kind, command, data, read_bytes=read_bytes, gap_us=gap_us))

    def _item(
        self,
        kind: SmbusKind,
        command: int = 0,
        data: bytes = b"",
        *,
        read_bytes: int = 0,
        pec: bool | None = None,
        gap_us: int = 0,
    ) -> SmbusTransfer:
        return SmbusTransfer(
            address=self.address,
            kind=kind,
            command=command,
            data=data,
            read_bytes=read_bytes,
            pec=self.pec if pec is None else pec,
            mux=self.mux,
            gap_us=max(gap_us, self.gap_us),
        )

    def __str__(self) -> str:
        return "".join(f"{a:#04x}.{c}/" for a, c in self.mux) + f"{self.address:#04x}"


def with_pec(at: At, capabilities: SmbusCapabilities) -> At:
    """The same place, with packet error codes where the adapter makes them."""
    probe = SmbusTransfer(address=at.address, kind=SmbusKind.READ_BYTE, pec=True)
    pec = not capabilities.missing(probe)
    return At(address=at.address, mux=at.mux, pec=pec, gap_us=at.gap_us)


def run_steps(
    segment: SmbusSegment, now_ns: int, steps: Steps[T], deadline_ns: int, done: Done[T]
) -> None:
    """Carry them out. `done` gets what they return, or the HalError that they did not catch."""
    if now_ns >= deadline_ns:
        steps.close()
        done(DeadlinePassed("steps on SMBus: not begun, past their deadline"))
        return
    _Run(segment, steps, deadline_ns, done).go_on(None)


class _Run:
    def __init__(
        self, segment: SmbusSegment, steps: "Steps[T]", deadline_ns: int, done: "Done[T]"
    ) -> None:
        self._segment = segment
        self._steps = steps
        self._deadline_ns = deadline_ns
        self._done = done
        self._count = 0

    def go_on(self, answer: bytes | HalError | None) -> None:
        """Give the driver an answer and take its next transfer."""
        try:
            if isinstance(answer, HalError):
                item = self._steps.throw(answer)
            elif answer is None:
                item = next(self._steps)
            else:
                item = self._steps.send(answer)
        except StopIteration as stop:
            self._done(stop.value)
            return
        except HalError as exc:
            self._done(exc)
            return
        except ProtocolError as exc:
            wrong = BadAnswer(str(exc))
            wrong.__cause__ = exc
            self._done(wrong)
            return
        self._count += 1
        if self._count > STEPS_LIMIT:
            self._steps.close()
            self._done(BadAnswer(f"{item}: more than {STEPS_LIMIT} transfers"))
            return
        self._segment.submit(item, self._deadline_ns, self.go_on)
