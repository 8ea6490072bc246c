"""What devices on buses say: MCTP over SMBus, PMBus, NVMe-MI, FRU images, CXL, config space."""

import dataclasses
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from protocol import fru
from protocol.cxl.codes import Opcode
from protocol.cxl.event_bodies import Dram, GeneralMedia, MemoryModule
from protocol.cxl.events import BODIES, EventRecord, EventRecords
from protocol.cxl.layout import Layout
from protocol.cxl.message import Category, CciMessage, from_mctp, to_mctp
from protocol.cxl.registry import REQUESTS, RESPONSES
from protocol.cxl.switch import GetVcsInfoRequest, VcsInfos
from protocol.errors import ProtocolError
from protocol.nvme_mi.basic import DriveIdentity, DriveStatus
from protocol.nvme_mi.message import NvmeMiMessage, mi_request, wait_ms
from protocol.pcie import parse_function, walk
from protocol.smbus.mctp import SmbusFrame
from protocol.smbus.pec import pec_is_good, read_transaction, with_pec
from protocol.smbus.pmbus import (
    Coefficients,
    VoutMode,
    linear11_milli,
    linear11_word,
)
from tests.fuzz.reader import Reader
from tests.fuzz.target import Check, Target

CODES: Final = (  # that `SmbusFrame.from_bytes` names
    *("short", "bad_direction", "bad_command", "bad_count", "bad_source", "bad_pec"),
    *("bad_length", "bad_frame"),
)
FRAME: Final = SmbusFrame(dest_address=0x30, src_address=0x10, packet=b"\x01\x08\x09\xc8\x00\x80")


def smbus_frame(_scratch: Path) -> Check:
    """A transaction as it came, and the same with its PEC made good."""

    def check(data: bytes) -> bool:
        found = [_frame(data), _frame(with_pec(data))]
        assert pec_is_good(with_pec(data)) or not data
        return any(found)

    return check


def _frame(data: bytes) -> bool:
    try:
        frame = SmbusFrame.from_bytes(data)
    except ProtocolError as exc:
        assert exc.frame == data
        assert exc.code in CODES
        return False
    assert frame.to_bytes() == data
    return True


def pmbus(_scratch: Path) -> Check:
    """Formats of numbers, block answers of any length, what a drive says of itself."""

    def check(data: bytes) -> bool:
        kind, rest = (data[0] % 6 if data else 0), data[1:]
        try:
            _NUMBERS[kind](rest)
        except ProtocolError as exc:
            assert exc.code in ("bad_length", "bad_value", "bad_mode", "bad_text"), exc.code
            return False
        pec_is_good(read_transaction(0x60, data[0] & 0x7F, rest))
        return True

    return check


def _linear11(data: bytes) -> None:
    milli = linear11_milli(data)
    word = linear11_word(milli)
    assert abs(linear11_milli(word) - milli) <= 1, "what was read can be said again"


def _vout(data: bytes) -> None:
    mode = VoutMode.from_bytes(data[:1])
    millivolts = mode.millivolts(data[1:])
    assert millivolts >= 0
    if mode.parameter <= -10:  # finer than a millivolt
        return
    assert mode.millivolts(mode.word(millivolts)) == millivolts


def _direct(data: bytes) -> None:
    Coefficients.from_bytes(data[:5]).milli(data[5:])


def _drive_status(data: bytes) -> None:
    status = DriveStatus.from_bytes(data)
    assert status.temp_mdegc is None or -60_000 <= status.temp_mdegc <= 127_000
    assert len(status.warnings) <= 5


def _drive_identity(data: bytes) -> None:
    assert len(DriveIdentity.from_bytes(data).serial_number) <= 20


def _mode(data: bytes) -> None:
    mode = VoutMode.from_bytes(data)
    assert -16 <= mode.parameter <= 31


_NUMBERS: Final[tuple[Callable[[bytes], None], ...]] = (
    *(_linear11, _vout, _direct, _drive_status, _drive_identity, _mode),
)


def nvme_mi(_scratch: Path) -> Check:
    """A message as it came, and the same with its integrity check made good."""

    def check(data: bytes) -> bool:
        found = _message(data)
        summed = NvmeMiMessage(response=bool(len(data) & 1), kind=1, body=data).to_bytes()
        again = NvmeMiMessage.from_bytes(summed)
        assert again.body == data
        assert again.to_bytes() == summed
        wait = wait_ms(again)
        assert wait is None or 0 <= wait <= 6_553_500
        return found or wait is not None

    return check


def _message(data: bytes) -> bool:
    try:
        message = NvmeMiMessage.from_bytes(data)
    except ProtocolError as exc:
        assert exc.frame == data
        assert exc.code in ("short", "bad_type", "bad_mic")
        return False
    assert NvmeMiMessage.from_bytes(message.to_bytes()) == message  # reserved bits are not kept
    return True


def fru_image(_scratch: Path) -> Check:
    """An EEPROM as it came, or one whose checksums were made good after the damage."""

    def check(data: bytes) -> bool:
        good = _image(data[1:])
        if data and data[0] & 1:
            good |= _image(_summed(data[1:]))
        return good

    return check


def _image(image: bytes) -> bool:
    try:
        found = fru.Fru.from_bytes(image)
    except ProtocolError:
        return False
    for area in (found.chassis, found.board, found.product):
        if area is not None:
            assert type(area).from_bytes(area.to_bytes()) == area
            for field in vars_of(area):
                field.text().encode()
                field.text(language=1).encode()
    try:
        wire = found.to_bytes()
    except ValueError:  # areas over one another, that have no room one after the other
        return True
    again = fru.Fru.from_bytes(wire)
    assert again.to_bytes() == wire
    assert dataclasses.replace(again, internal=None) == dataclasses.replace(found, internal=None)
    return True


def vars_of(area: Any) -> list[Any]:
    """Its fields of text."""
    values = [getattr(area, entry.name) for entry in dataclasses.fields(area)]
    found = [value for value in values if isinstance(value, fru.FruField)]
    return [*found, *area.custom]


def _summed(image: bytes) -> bytes:
    """With the checksums of header and areas as they must be, wherever the header points."""
    wire = bytearray(image)
    if len(wire) >= 8:
        wire[0] = 1
        for start in (8 * offset for offset in wire[2:5]):
            end = start + 8 * wire[start + 1] if 0 < start < len(wire) - 1 else 0
            if start < end <= len(wire):
                wire[start] = 1
                wire[end - 1] = -sum(wire[start : end - 1]) & 0xFF
        wire[7] = -sum(wire[:7]) & 0xFF
    return bytes(wire)


LAYOUTS: Final[tuple[type[Layout], ...]] = (
    *dict.fromkeys([*REQUESTS.values(), *RESPONSES.values(), EventRecord, *BODIES.values()]),
)
WIRES: Final = {Opcode.GET_EVENT_RECORDS: EventRecords}


def cci(_scratch: Path) -> Check:
    """CCI messages, the payload of each opcode, and event records with their bodies."""

    def check(data: bytes) -> bool:
        good = False
        if data:
            good = _payload(LAYOUTS[data[0] % len(LAYOUTS)], data[1:])
        try:
            kind, message = from_mctp(data)
        except ProtocolError as exc:
            assert exc.frame == data
            assert exc.code in ("bad_type", "short", "bad_category", "bad_length")
            return good
        assert from_mctp(to_mctp(message, kind)) == (kind, message)
        answers = message.category is Category.RESPONSE
        table = RESPONSES if answers else REQUESTS
        layout = table.get(message.opcode)
        if layout is not None:
            _payload(layout, message.payload)
        if message.opcode == Opcode.GET_VCS_INFO and answers:
            _vcs(message.payload)
        return True

    return check


def _payload(layout: type[Layout], data: bytes) -> bool:
    try:
        found = layout.from_bytes(data)
    except ProtocolError as exc:
        assert exc.frame == data
        assert exc.code in ("short", "bad_value"), exc.code
        return False
    wire = found.to_bytes()
    assert layout.from_bytes(wire) == found
    assert layout.from_bytes(wire).to_bytes() == wire
    records = [found] if isinstance(found, EventRecord) else getattr(found, "records", ())
    for record in records:
        _record(record)
    return True


def _record(record: EventRecord) -> None:
    assert record.severity in range(4)
    try:
        body = record.body
    except ProtocolError as exc:
        assert exc.frame == record.data
        return
    if body is None:
        return
    wire = body.to_bytes()
    assert type(body).from_bytes(wire) == body


def _vcs(payload: bytes) -> None:
    request = GetVcsInfoRequest(first_vppb=1, vppb_limit=4, vcs=(0,))
    try:
        found = VcsInfos.from_bytes(payload, request)
    except ProtocolError as exc:
        assert exc.code == "short"
        return
    assert VcsInfos.from_bytes(found.to_bytes(), request) == found


def _space() -> bytearray:
    """A function of everything that is understood, of 4096 B."""
    config = bytearray(4096)
    config[0:16] = bytes.fromhex("36 1b 10 00 06 00 10 00 02 02 08 01 00 00 00 00")
    config[0x34] = 0x40
    for at, kind, following in ((0x40, 0x10, 0x80), (0x80, 0x05, 0xA0), (0xA0, 0x11, 0)):
        config[at : at + 4] = bytes([kind, following, 0x42, 0x01])
    chain = (0x100, 0x0001), (0x180, 0x001D), (0x200, 0x0010), (0x280, 0x002E), (0x300, 0x0023)
    for index, (at, kind) in enumerate(chain):
        following = chain[index + 1][0] if index + 1 < len(chain) else 0
        config[at : at + 4] = (kind | 1 << 16 | following << 20).to_bytes(4, "little")
    config[0x304:0x310] = (0x38 << 20 | 0x1E98).to_bytes(4, "little") + b"\0\0\x1e\0\x04\0\0\0"
    return config


_DEVICE: Final = bytes(_space())
_BRIDGE: Final = _DEVICE[:14] + b"\x01" + _DEVICE[15:]
PLACES: Final = (0x00, 0x06, 0x0E, 0x34, 0x40, 0x80, 0xA0, 0x100, 0x102, 0x180, 0x200, 0x280, 0x300)


def config_space(_scratch: Path) -> Check:
    """A config space of some length, written over in places."""

    def check(data: bytes) -> bool:
        reader = Reader(data)
        size = (64, 256, 4096, 255, 0x104, 0x182)[reader.byte() % 6]
        config = bytearray(reader.choice((_DEVICE, _BRIDGE, bytes(4096), b"\xff" * 4096)))
        while reader.left:
            step = reader.byte()
            at = reader.number(2) % 4096 if step & 1 else PLACES[(step >> 1) % len(PLACES)]
            piece = reader.take(1 + reader.byte() % 24)
            config[at : at + len(piece)] = piece
        return _function(bytes(config[:size]))

    return check


def _function(config: bytes) -> bool:
    try:
        chain = walk(config)
    except ProtocolError as exc:
        assert exc.code in ("short", "all_ones", "bad_header_type", "bad_chain"), exc.code
        return False
    places = [capability.offset for capability in chain]
    assert len(set(places)) == len(places)
    assert all(0x40 <= at < len(config) for at in places)
    assert all(config[c.offset :].startswith(c.data) for c in chain)
    try:
        found = parse_function(config)
    except ProtocolError as exc:
        assert exc.code == "short", exc.code
        return False
    assert found.capabilities == chain
    return True


def _fru_seeds() -> Iterable[bytes]:
    text = fru.FruField.of
    board = fru.BoardInfo(
        mfg_minutes=9_000_000,
        manufacturer=text("Example Works"),
        product_name=text("CARD", packed=True),
        serial_number=fru.FruField(type=fru.FieldType.BCD_PLUS, data=b"\x12\x3a"),
        custom=(text("a"), text("rev A")),
    )
    product = fru.ProductInfo(manufacturer=text("Example Works"), asset_tag=text("tag"))
    chassis = fru.ChassisInfo(part_number=text("P1"))
    records = (fru.MultiRecord(type=0xC0, data=b"abc"), fru.MultiRecord(type=0, data=b""))
    for made in (
        fru.Fru(board=board),
        fru.Fru(chassis=chassis, product=product),
        fru.Fru(board=board, internal=b"inside", records=records),
        fru.Fru(records=records),
    ):
        yield b"\0" + made.to_bytes()
        yield b"\1" + made.to_bytes() + b"\xff" * 8
    yield b"\0" + b"\xff" * 16


def _cci_seeds() -> Iterable[bytes]:
    draw = random.Random(5)
    for index, layout in enumerate(LAYOUTS):
        for size in (16, 48, 128):
            try:
                found = layout.from_bytes(bytes(size))
            except ProtocolError:
                continue
            yield bytes([index]) + found.to_bytes()
            yield bytes([index]) + draw.randbytes(size)
            break
    for uuid, kind in BODIES.items():
        if kind in (GeneralMedia, Dram, MemoryModule):
            record = EventRecord(uuid=uuid, flags=1, handle=7, data=bytes(80))
            payload = EventRecords(flags=0, records=(record,)).to_bytes()
            yield to_mctp(_answer(Opcode.GET_EVENT_RECORDS, payload))
    yield to_mctp(_answer(Opcode.GET_VCS_INFO, bytes([1, 0, 0, 0, 0, 1, 2, 3]) + bytes(8)))
    yield to_mctp(CciMessage(category=Category.REQUEST, opcode=Opcode.IDENTIFY, tag=3))


def _answer(opcode: int, payload: bytes) -> CciMessage:
    return CciMessage(category=Category.RESPONSE, opcode=opcode, payload=payload)


def _space_seeds() -> Iterable[bytes]:
    for size in range(6):
        for base in range(4):
            yield bytes([size, base])
    for place in range(len(PLACES)):
        yield bytes([2, 0, 2 * place, 3, 0x11, 0, 0x22, 0x18])
        yield bytes([1, 1, 2 * place, 1, 0x40, 0x50])


TARGETS = (
    Target(
        name="smbus_frame",
        text="MCTP over SMBus: a transaction, as it came and with its PEC made good",
        make=smbus_frame,
        seeds=lambda: [FRAME.to_bytes(), FRAME.to_bytes()[:-1], b"\x60\x0f", b"\x61\x0f\x05"],
        words=(b"\x0f", b"\x60\x0f"),
        max_bytes=300,
    ),
    Target(
        name="pmbus",
        text="PMBus formats, and a drive's answers to the basic management command",
        make=pmbus,
        seeds=lambda: [
            *(b"\0\x9a\xd3", b"\1\x18\x33\x33", b"\1\x1f\x01\0", b"\2\x01\0\0\0\xfe\x10\x27"),
            *(b"\3" + b"\x3b\xff\x23\x05\0\0", b"\4\x1b\x36" + b"SERIAL".ljust(20), b"\5\x40"),
            *(b"\3" + bytes(6), b"\4" + b"\xff" * 22, b"\2" + bytes(7)),
        ],
        max_bytes=40,
    ),
    Target(
        name="nvme_mi",
        text="NVMe-MI messages",
        make=nvme_mi,
        seeds=lambda: [
            mi_request(1).to_bytes(),
            NvmeMiMessage(response=True, kind=1, body=b"\x01\0\x05\0").to_bytes(),
            NvmeMiMessage(response=True, kind=2, slot=1, meb=1, body=bytes(20)).to_bytes(),
            *(b"\x01\0\x05\0\0", b"\x84\x08\0\0\0\0\0\0", b"\x04" + bytes(8), b""),
        ],
        max_bytes=600,
    ),
    Target(
        name="fru_image",
        text="FRU images, as they are and with their checksums made good",
        make=fru_image,
        seeds=_fru_seeds,
        words=(b"\xc1", b"\x01", b"\xff"),
        max_bytes=600,
    ),
    Target(
        name="cci",
        text="CXL CCI messages, payloads of every opcode, event records and their bodies",
        make=cci,
        seeds=_cci_seeds,
        max_bytes=400,
    ),
    Target(
        name="config_space",
        text="config space: both chains of capabilities, and each that is understood",
        make=config_space,
        seeds=_space_seeds,
        max_bytes=400,
    ),
)
