"""The whole catalogue in its order, put together from the modules that hold its classes."""

from typing import Final

from tools.sim.faults.types import Fault

TEXTS: Final = {
    "L1": "a frame is dropped",
    "L2": "a frame arrives twice",
    "L3": "two frames change places",
    "L4": "a frame is delayed, by up to 10 s",
    "L5": "one bit of a frame turns over",
    "L6": "a burst of noise overwrites a part of a frame",
    "L7": "a frame is cut short",
    "L8": "frames are split over reads, or run together in one",
    "L9": "flags and escapes that nobody sent",
    "L10": "a frame of length zero",
    "L11": "a frame of the greatest length, and one longer than that",
    "L12": "a frame with a right checksum and wrong content",
    "L13": "the first packet of a message is lost",
    "L14": "the last packet of a message is lost",
    "L15": "a gap in the sequence of a message's packets",
    "L16": "two messages with one tag, their packets mixed",
    "L17": "messages that never end, until reassembly is full",
    "L18": "an unknown EID, or one that two ends use",
    "B1": "SDA is stuck low",
    "B2": "SCL is stuck low",
    "B3": "the clock is stretched for more than 25 ms",
    "B4": "an address is not acknowledged",
    "B5": "data is not acknowledged in the middle of a block",
    "B6": "a wrong PEC",
    "B7": "arbitration is lost",
    "B8": "a wrong byte count, or a mux channel left selected",
    "P1": "the link goes down and is up again within 1 s",
    "P2": "a module is pulled out",
    "P3": "reads give all ones",
    "P4": "a storm of correctable AER errors",
    "P5": "a non-fatal AER error",
    "P6": "a fatal AER error, and downstream port containment",
    "P7": "doorbells are lost, or storm",
    "C1": "a module crashes",
    "C2": "a module hangs: its heartbeats stop",
    "C3": "a grey hang: heartbeats go on, commands do not complete",
    "C4": "a module is 100 times slower",
    "C5": "a module reboots and forgets what was in memory",
    "C6": "a module reboots again and again",
    "C7": "a zombie: a command of an old epoch arrives late",
    "C8": "another firmware version after a reboot",
    "C9": "a module lies about its capacity",
    "S1": "the power of the card is cut in the middle of a write",
    "S2": "a write is torn",
    "S3": "writes that were not synced are lost",
    "S4": "a bit of the stored data turns over",
    "S5": "the disk is full",
    "S6": "reading fails with EIO",
    "S7": "fsync fails with EIO",
    "S8": "the file system becomes read-only",
    "T1": "the wall clock jumps by a year",
    "T2": "time stands still for a process, up to 60 s",
    "T3": "a clock drifts as far as is allowed",
    "T4": "a leap second or a change of summer time",
    "T5": "a 32-bit counter wraps",
    "E1": "a module is too hot and trips",
    "E2": "a rail browns out",
    "E3": "a sensor is stuck, out of range, or gives no reading",
    "E4": "a fan fails",
    "E5": "memory runs out",
    "E6": "descriptors run out",
    "D1": "the daemon is killed at any point",
    "D2": "an exception that nobody expected leaves a handler",
    "D3": "a handler holds the loop up for more than 50 ms",
    "D4": "the daemon hangs and misses its watchdog",
    "D5": "a flood of events",
    "D6": "a queue is full",
    "N1": "a request that is no JSON",
    "N2": "a request of 10 MB",
    "N3": "a request that is nested too deep",
    "N4": "a request that comes byte by byte and does not end",
    "N5": "1,000 idle connections",
    "N6": "a request that is sent again with its id",
    "N7": "a request for something that is not there",
    "N8": "two callers want different things at once",
    "N9": "a peer that may not do it",
    "X1": "a forged source EID",
    "X2": "recorded frames are replayed",
    "X3": "a counter that wraps",
    "X4": "telemetry at 100 times its rate",
    "X5": "counts that promise more than the message holds",
}
NO_SMBUS: Final = "not modelled: there is no SMBus firmware yet"
NO_PCIE: Final = "not modelled: there is no PCIe firmware yet"


def _catalogue() -> dict[str, Fault]:
    return {
        name: Fault(id=name, text=text, inject=None, not_modelled="not modelled: not built yet")
        for name, text in TEXTS.items()
    }


FAULTS: Final = _catalogue()
