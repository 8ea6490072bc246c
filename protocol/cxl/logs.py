"""Logs: which there are, a piece of one, and the Command Effects Log. CXL 3.1, 8.2.9.5."""

from dataclasses import dataclass
from enum import IntFlag
from typing import ClassVar, Final

import construct as cs

from protocol.cxl.layout import (
    UUID_BYTES,
    Layout,
    Wire,
    all_of,
    count_of,
    counted,
    nested,
    reserved,
    uuid_bytes,
)

CEL_UUID: Final = uuid_bytes("0da9c0b5-bf41-4b78-8f79-96b1623b3f17")  # 8.2.9.5.2.1
VENDOR_DEBUG_UUID: Final = uuid_bytes("5e1819d9-11a9-400c-811f-d60719403d86")  # 8.2.9.5.2.2
LOG_NAMES: Final = {CEL_UUID: "command_effects", VENDOR_DEBUG_UUID: "vendor_debug"}
CEL_ENTRY_BYTES: Final = 4


class Effect(IntFlag):
    """What a command does besides answering. 8.2.9.5.2.1, table 8-76."""

    CONFIG_CHANGE_COLD_RESET = 1 << 0
    CONFIG_CHANGE_IMMEDIATE = 1 << 1
    DATA_CHANGE_IMMEDIATE = 1 << 2
    POLICY_CHANGE_IMMEDIATE = 1 << 3
    LOG_CHANGE_IMMEDIATE = 1 << 4
    SECURITY_STATE_CHANGE = 1 << 5
    BACKGROUND_OPERATION = 1 << 6
    SECONDARY_MAILBOX = 1 << 7
    ABORT_BACKGROUND = 1 << 8
    RESET_BITS_VALID = 1 << 9  # the next two
    CONFIG_CHANGE_CONVENTIONAL_RESET = 1 << 10
    CONFIG_CHANGE_CXL_RESET = 1 << 11


@dataclass(frozen=True, slots=True, kw_only=True)
class SupportedLog(Layout):
    """One entry of the answer of 0400h."""

    uuid: bytes
    size_bytes: int

    WIRE: ClassVar[Wire] = cs.Struct("uuid" / cs.Bytes(UUID_BYTES), "size_bytes" / cs.Int32ul)


@dataclass(frozen=True, slots=True, kw_only=True)
class SupportedLogs(Layout):
    """Answer of 0400h, 8.2.9.5.1."""

    logs: tuple[SupportedLog, ...]
    extra: bytes = b""

    WIRE: ClassVar[Wire] = cs.Struct(
        "count" / count_of(cs.Int16ul, "logs"),
        "reserved" / reserved(6),
        "logs" / counted(cs.this.count, nested(SupportedLog)),
        "extra" / cs.GreedyBytes,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class GetLogRequest(Layout):
    """Request of 0401h, 8.2.9.5.2. Its answer is the bytes of the log, nothing else."""

    uuid: bytes
    offset: int
    length: int

    WIRE: ClassVar[Wire] = cs.Struct(
        "uuid" / cs.Bytes(UUID_BYTES),
        "offset" / cs.Int32ul,
        "length" / cs.Int32ul,
        cs.Terminated,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandEffect(Layout):
    """One entry of the Command Effects Log: a command that the device has."""

    opcode: int
    effect: int  # bits of Effect

    WIRE: ClassVar[Wire] = cs.Struct("opcode" / cs.Int16ul, "effect" / cs.Int16ul)


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandEffects(Layout):
    """The Command Effects Log, 8.2.9.5.2.1."""

    commands: tuple[CommandEffect, ...]

    WIRE: ClassVar[Wire] = cs.Struct("commands" / all_of(nested(CommandEffect), CEL_ENTRY_BYTES))

    def has(self, opcode: int) -> bool:
        """Whether the device has the command."""
        return any(entry.opcode == opcode for entry in self.commands)
