"""`hal.cxl_ports.CxlMemdev`: a mailbox. What it answers is read by `protocol.cxl`."""

from hal.cxl_ports import CxlCommand, CxlReply, Disabled, NotOffered, RawRefused
from hal.errors import DeadlinePassed, DeviceGone, HalError, Refused
from protocol.cxl.codes import Opcode, ReturnCode
from protocol.cxl.events import ClearEventsRequest, EventLog, EventRecords, GetEventsRequest
from protocol.cxl.logs import CEL_UUID, CommandEffects, GetLogRequest, SupportedLogs
from protocol.cxl.memory import (
    CAPACITY_UNIT_BYTES,
    GetLsaRequest,
    HealthInfo,
    IdentifyMemoryDevice,
    PartitionInfo,
    SetLsaRequest,
)
from tests.contract.results import Result, need, soon
from tests.contract.rigs import CxlMemdevRig, World

PORT = "cxl"


def ask(world: World, rig: CxlMemdevRig, opcode: int, payload: bytes = b"") -> CxlReply:
    result: Result[CxlReply] = Result()
    rig.memdev.submit(CxlCommand(opcode=opcode, payload=payload), soon(world), result)
    assert not result.came, "a submit completes through the mailbox, never inside the call"
    return result.wait(world)


def good(world: World, rig: CxlMemdevRig, opcode: int, payload: bytes = b"") -> bytes:
    reply = ask(world, rig, opcode, payload)
    assert reply.return_code == ReturnCode.SUCCESS
    return reply.payload


def fails(world: World, rig: CxlMemdevRig, command: CxlCommand) -> HalError:
    result: Result[CxlReply] = Result()
    rig.memdev.submit(command, soon(world), result)
    return result.error(world)


def labels(world: World, rig: CxlMemdevRig, offset: int, length: int) -> bytes:
    request = GetLsaRequest(offset=offset, length=length)
    return good(world, rig, Opcode.GET_LSA, request.to_bytes())


def test_the_device_identifies_itself_as_its_driver_describes_it(
    rig: CxlMemdevRig, world: World
) -> None:
    found = IdentifyMemoryDevice.from_bytes(good(world, rig, Opcode.IDENTIFY_MEMORY_DEVICE))
    info = rig.memdev.info
    assert found.total_bytes == info.volatile_bytes + info.persistent_bytes
    assert found.label_bytes == info.label_bytes
    assert found.firmware_text == info.firmware_version


def test_its_partitions_add_up_to_its_capacity(rig: CxlMemdevRig, world: World) -> None:
    total = IdentifyMemoryDevice.from_bytes(good(world, rig, Opcode.IDENTIFY_MEMORY_DEVICE))
    found = PartitionInfo.from_bytes(good(world, rig, Opcode.GET_PARTITION_INFO))
    assert found.active_volatile_units + found.active_persistent_units == total.total_units
    assert found.active_volatile_units * CAPACITY_UNIT_BYTES == rig.memdev.info.volatile_bytes


def test_labels_that_are_written_are_read_back_and_nothing_around_them_changes(
    rig: CxlMemdevRig, world: World
) -> None:
    offset, data = 4096, bytes(range(1, 200))
    before = labels(world, rig, offset - 16, len(data) + 32)
    request = SetLsaRequest(offset=offset, data=data)
    good(world, rig, Opcode.SET_LSA, request.to_bytes())
    after = labels(world, rig, offset - 16, len(data) + 32)
    restore = SetLsaRequest(offset=offset, data=before[16:-16])
    good(world, rig, Opcode.SET_LSA, restore.to_bytes())
    assert after == before[:16] + data + before[-16:]
    assert labels(world, rig, offset - 16, len(data) + 32) == before


def test_labels_past_the_end_are_refused_by_the_device(rig: CxlMemdevRig, world: World) -> None:
    request = GetLsaRequest(offset=rig.memdev.info.label_bytes - 8, length=16)
    reply = ask(world, rig, Opcode.GET_LSA, request.to_bytes())
    assert reply == CxlReply(return_code=ReturnCode.INVALID_INPUT, payload=b"")


def test_its_log_of_commands_names_what_it_answers(rig: CxlMemdevRig, world: World) -> None:
    found = SupportedLogs.from_bytes(good(world, rig, Opcode.GET_SUPPORTED_LOGS))
    [size] = [log.size_bytes for log in found.logs if log.uuid == CEL_UUID]
    request = GetLogRequest(uuid=CEL_UUID, offset=0, length=size)
    effects = CommandEffects.from_bytes(good(world, rig, Opcode.GET_LOG, request.to_bytes()))
    assert len(effects.commands) * 4 == size
    for opcode in (Opcode.IDENTIFY_MEMORY_DEVICE, Opcode.GET_LSA, Opcode.GET_LOG):
        assert effects.has(opcode)
    assert not effects.has(rig.lacking)


def test_a_piece_of_a_log_is_that_piece(rig: CxlMemdevRig, world: World) -> None:
    whole = good(
        world, rig, Opcode.GET_LOG, GetLogRequest(uuid=CEL_UUID, offset=0, length=32).to_bytes()
    )
    piece = good(
        world, rig, Opcode.GET_LOG, GetLogRequest(uuid=CEL_UUID, offset=4, length=8).to_bytes()
    )
    at = 4 * rig.log_offset_bytes
    assert piece == whole[at : at + 8]


def test_a_log_that_it_does_not_have_is_refused_by_the_device(
    rig: CxlMemdevRig, world: World
) -> None:
    request = GetLogRequest(uuid=bytes(range(16)), offset=0, length=4)
    reply = ask(world, rig, Opcode.GET_LOG, request.to_bytes())
    assert reply.return_code in (
        ReturnCode.UNSUPPORTED,
        ReturnCode.INVALID_INPUT,
        ReturnCode.INVALID_LOG,
    )


def test_health(rig: CxlMemdevRig, world: World) -> None:
    need(rig.has_health or None, "tell a health")
    found = HealthInfo.from_bytes(good(world, rig, Opcode.GET_HEALTH_INFO))
    assert -40 <= found.temp_degc <= 125


def test_events_are_read_oldest_first_and_stay_until_they_are_cleared(
    rig: CxlMemdevRig, world: World
) -> None:
    add = need(rig.add_event, "make events happen")
    handles = [add(EventLog.WARNING) for _ in range(3)]
    request = GetEventsRequest(log=EventLog.WARNING).to_bytes()
    for _ in range(2):
        found = EventRecords.from_bytes(good(world, rig, Opcode.GET_EVENT_RECORDS, request))
        assert [record.handle for record in found.records] == handles
    clear = ClearEventsRequest(log=EventLog.WARNING, handles=tuple(handles[:2]))
    good(world, rig, Opcode.CLEAR_EVENT_RECORDS, clear.to_bytes())
    found = EventRecords.from_bytes(good(world, rig, Opcode.GET_EVENT_RECORDS, request))
    assert [record.handle for record in found.records] == handles[2:]


def test_an_opcode_that_the_device_lacks_is_told_apart_from_one_that_cannot_be_sent(
    rig: CxlMemdevRig, world: World
) -> None:
    assert rig.lacking in rig.memdev.opcodes()
    lacking = fails(world, rig, CxlCommand(opcode=rig.lacking))
    assert isinstance(lacking, Disabled)
    assert rig.unoffered not in rig.memdev.opcodes()
    unoffered = fails(world, rig, CxlCommand(opcode=rig.unoffered))
    assert isinstance(unoffered, NotOffered)
    for error, opcode in ((lacking, rig.lacking), (unoffered, rig.unoffered)):
        assert f"{opcode:04X}h" in str(error)


def test_a_raw_command_is_taken_or_refused_as_such(rig: CxlMemdevRig, world: World) -> None:
    result: Result[CxlReply] = Result()
    command = CxlCommand(opcode=Opcode.GET_TIMESTAMP, raw=True)
    rig.memdev.submit(command, soon(world), result)
    if rig.takes_raw:
        assert len(result.wait(world).payload) == 8
    else:
        assert isinstance(result.error(world), RawRefused)


def test_commands_are_carried_out_in_their_order(rig: CxlMemdevRig, world: World) -> None:
    order: list[int] = []
    lengths = (16, 4, 12, 8)
    for length in lengths:
        request = GetLsaRequest(offset=0, length=length)
        command = CxlCommand(opcode=Opcode.GET_LSA, payload=request.to_bytes())

        def done(value: CxlReply | HalError) -> None:
            assert isinstance(value, CxlReply)
            order.append(len(value.payload))

        rig.memdev.submit(command, soon(world), done)
    world.run_until(lambda: len(order) == len(lengths))
    assert tuple(order) == lengths


def test_a_payload_above_the_mailbox_is_refused_and_nothing_is_sent(
    rig: CxlMemdevRig, world: World
) -> None:
    payload = bytes(rig.memdev.info.payload_max_bytes + 1)
    assert isinstance(
        fails(world, rig, CxlCommand(opcode=Opcode.SET_LSA, payload=payload)), Refused
    )
    assert isinstance(fails(world, rig, CxlCommand(opcode=0)), Refused)
    assert isinstance(fails(world, rig, CxlCommand(opcode=0x1_0000)), Refused)


def test_a_payload_of_the_wrong_length_is_no_success(rig: CxlMemdevRig, world: World) -> None:
    result: Result[CxlReply] = Result()
    command = CxlCommand(opcode=Opcode.GET_LSA, payload=b"\1\2\3")
    rig.memdev.submit(command, soon(world), result)
    world.run_until(lambda: result.came)
    value = result.values[0]
    assert isinstance(value, Refused) or (
        isinstance(value, CxlReply) and value.return_code == ReturnCode.INVALID_PAYLOAD_LENGTH
    )


def test_a_deadline_that_has_passed_is_an_error(rig: CxlMemdevRig, world: World) -> None:
    result: Result[CxlReply] = Result()
    command = CxlCommand(opcode=Opcode.IDENTIFY_MEMORY_DEVICE)
    rig.memdev.submit(command, world.reactor.now_ns() - 1, result)
    assert isinstance(result.error(world), DeadlinePassed)
    assert good(world, rig, Opcode.IDENTIFY_MEMORY_DEVICE), "the next one is served"


def test_after_close_there_is_no_device_and_closing_twice_is_fine(
    rig: CxlMemdevRig, world: World
) -> None:
    rig.memdev.close()
    rig.memdev.close()
    error = fails(world, rig, CxlCommand(opcode=Opcode.IDENTIFY_MEMORY_DEVICE))
    assert isinstance(error, DeviceGone)


def test_a_device_that_is_pulled_is_gone(rig: CxlMemdevRig, world: World) -> None:
    remove = need(rig.remove, "pull the device")
    good(world, rig, Opcode.IDENTIFY_MEMORY_DEVICE)
    remove()
    error = fails(world, rig, CxlCommand(opcode=Opcode.IDENTIFY_MEMORY_DEVICE))
    assert isinstance(error, DeviceGone)
    assert rig.memdev.info.name in str(error)
