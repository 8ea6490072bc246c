"""Event records byte for byte, as another implementation lays them out.

The bytes are those of the kernel's own test device (tools/testing/cxl/test/mem.c: `maint_needed`,
`gen_media`, `dram`, `mem_module`) in the structures of its include/cxl/event.h, compiled by a C
compiler. Its temperature, counts and column are byte strings (DE AD ...) there.
"""

from protocol.cxl.event_bodies import (
    Dram,
    DramEvent,
    DramValid,
    GeneralMedia,
    MediaEvent,
    MediaValid,
    MemoryModule,
    ModuleEvent,
    PhysicalSwitch,
    PortEvent,
    Transaction,
)
from protocol.cxl.events import (
    DRAM_UUID,
    GENERAL_MEDIA_UUID,
    MEMORY_MODULE_UUID,
    PHYSICAL_SWITCH_UUID,
    ClearEventsRequest,
    EventLog,
    EventRecord,
    EventRecords,
    RecordFlag,
    record_of,
)
from protocol.cxl.memory import HealthInfo, HealthStatus, Level, MediaStatus
from protocol.cxl.switch import ConnectedMode, ConnectedType, Ltssm, PortConfig
from protocol.decode import decode


def padded(text: str) -> bytes:
    """A record: what is written, zeros after it."""
    return bytes.fromhex(text).ljust(128, b"\0")


MAINTENANCE = padded(
    "ba5eba11abcdefeba55aa55aa5a55aa5 80 080000 0100 b6a5 0000000000000000 00 00"
    + "00" * 14
    + "deadbeef"
)
GENERAL_MEDIA = padded(
    "fbcd0a77c260417f85a9088b1621eba6 80 040000 0200 0000 0000000000000000 00 00"
    + "00" * 14
    + "0020000000000000 01 02 02 0300 01 1e"
)
DRAM = padded(
    "601dcbb39c064eabb8af4e9bfb5c9624 80 100000 0200 0000 0000000000000000 00 00"
    + "00" * 14
    + "0080000000000000 02 01 05 5900 01 00 000000 05 02 000000 dead"
)
MODULE = padded(
    "fe927475dd594339a58679bab113b774 80 000000 0300 0000 0000000000000000 00 00"
    + "00" * 14
    + "03 02 03 38 00 dead deadbeef deadbeef deadbeef"
)
# CXL 3.1, table 7-77, byte by byte: port 7, slot status updated (0108h: presence changed, data
# link layer state changed), downstream, 256B flit, type 3, modes 7, x16 of x16, speeds 1 to 5,
# 32 GT/s, L0, lane 0, present
SWITCH = padded(
    "77cf92719c02470b9fe4bc7b75f2da97 80 000000 0100 0000 0000000000000000 00 00"
    + "00" * 14
    + "07 01 0801 00 03 03 00 04 07 10 10 1f 05 05 04 00 0400"
)


def test_a_record_of_an_unknown_kind_keeps_its_bytes() -> None:
    record = EventRecord.from_bytes(MAINTENANCE)
    assert (record.kind, record.body) == (None, None)
    assert (record.handle, record.related_handle) == (1, 0xA5B6)
    assert record.flags == RecordFlag.MAINTENANCE_NEEDED
    assert record.data[:4] == bytes.fromhex("deadbeef")
    assert record.to_bytes() == MAINTENANCE


def test_general_media() -> None:
    body = GeneralMedia(
        address=0x2000,
        descriptor=1,
        event=MediaEvent.DATA_PATH_ERROR,
        transaction=Transaction.HOST_WRITE,
        valid=MediaValid.CHANNEL | MediaValid.RANK,
        channel=1,
        rank=30,
    )
    record = EventRecord.from_bytes(GENERAL_MEDIA)
    assert (record.kind, record.body) == ("general_media", body)
    built = record_of(GENERAL_MEDIA_UUID, body, flags=RecordFlag.PERMANENT, handle=2)
    assert built.to_bytes() == GENERAL_MEDIA


def test_dram() -> None:
    body = Dram(
        address=0x8000,
        descriptor=2,
        event=DramEvent.SCRUB_ECC_ERROR,  # 1; the kernel of that test still read it as table 8-45
        transaction=Transaction.MEDIA_SCRUB,
        valid=DramValid.CHANNEL | DramValid.BANK_GROUP | DramValid.BANK | DramValid.COLUMN,
        channel=1,
        bank_group=5,
        bank=2,
        column=0xADDE,
    )
    record = EventRecord.from_bytes(DRAM)
    assert (record.kind, record.body) == ("dram", body)
    built = record_of(DRAM_UUID, body, flags=RecordFlag.PERFORMANCE_DEGRADED, handle=2)
    assert built.to_bytes() == DRAM


def test_memory_module() -> None:
    health = HealthInfo(
        health_status=HealthStatus.PERFORMANCE_DEGRADED,
        media_status=MediaStatus.DATA_LOST,
        additional_status=0x38,
        life_used_percent=0,
        temp_degc=0xADDE - 0x1_0000,
        dirty_shutdowns=0xEFBEADDE,
        corrected_volatile_errors=0xEFBEADDE,
        corrected_persistent_errors=0xEFBEADDE,
    )
    assert health.temp_level == Level.CRITICAL
    assert health.life_level == Level.NORMAL
    assert (health.volatile_errors_warning, health.persistent_errors_warning) == (True, True)
    body = MemoryModule(event=ModuleEvent.TEMPERATURE_CHANGE, health=health)
    record = EventRecord.from_bytes(MODULE)
    assert (record.kind, record.body) == ("memory_module", body)
    assert record_of(MEMORY_MODULE_UUID, body, flags=0, handle=3).to_bytes() == MODULE


def test_physical_switch() -> None:
    body = PhysicalSwitch(
        port=7,
        event=PortEvent.SLOT_STATUS_UPDATED,
        slot_status=0x0108,
        config=PortConfig.DOWNSTREAM,
        connected_mode=ConnectedMode.FLIT_256B,
        connected_type=ConnectedType.TYPE3_SLD,
        cxl_modes=7,
        max_width=16,
        width=16,
        speeds_vector=0x1F,
        max_speed=5,
        speed=5,
        ltssm=Ltssm.L0,
        first_lane=0,
        link_flags=4,
    )
    record = EventRecord.from_bytes(SWITCH)
    assert (record.kind, record.body) == ("physical_switch", body)
    assert record_of(PHYSICAL_SWITCH_UUID, body, flags=0, handle=1).to_bytes() == SWITCH


def test_records_with_overflow() -> None:  # table 8-51
    head = bytes.fromhex(
        "03 00 0200 88 77 66 55 44 33 22 11 90 77 66 55 44 33 22 11 0200" + "00" * 10
    )
    found = EventRecords.from_bytes(head + GENERAL_MEDIA + DRAM)
    assert (found.more, found.overflow, found.overflow_count) == (True, True, 2)
    assert (found.first_overflow_ns, found.last_overflow_ns) == (
        0x1122334455667788,
        0x1122334455667790,
    )
    assert [record.kind for record in found.records] == ["general_media", "dram"]
    assert found.to_bytes() == head + GENERAL_MEDIA + DRAM


def test_clear_of_two_handles() -> None:  # table 8-52
    request = ClearEventsRequest(log=EventLog.FATAL, handles=(1, 0x0302))
    assert request.to_bytes() == bytes.fromhex("03 00 02 000000 0100 0203")
    assert ClearEventsRequest.from_bytes(request.to_bytes()) == request


def test_records_in_an_answer_are_explained() -> None:
    payload = bytes.fromhex("00" * 20 + "0100" + "00" * 10) + DRAM
    message = bytes.fromhex("08 01 05 00 0001 a00000 0000 0000") + payload
    shown = decode(message)
    assert isinstance(shown, dict)
    [record] = shown["fields"]["body"]["records"]
    assert (record["uuid_name"], record["severity_name"]) == ("dram", "informational")
    assert record["body"]["event_name"] == "scrub_ecc_error"
    assert (record["body"]["bank"], record["body"]["address"]) == (2, 0x8000)
