"""Memory devices as the card asks them: retries, labels in pieces, events with bounds."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from firmware.cxl import (
    BUSY_LIMIT,
    RETRY_LIMIT,
    CxlDevice,
    CxlFailed,
    CxlGarbled,
    Drained,
)
from firmware.cxl_health import DEFAULT_LIMITS, HealthLimits, Severity, judge
from hal.cxl_ports import CxlCommand, CxlReply
from hal.errors import DeadlinePassed, DeviceGone, HalError, Refused
from hal.mock.cxl import MockCxlMemdev
from hal.mock.cxl_device import MockCxlDevice
from hal.ports import Done
from protocol.cxl.codes import Opcode, ReturnCode
from protocol.cxl.event_bodies import GeneralMedia, MediaEvent, Transaction
from protocol.cxl.events import GENERAL_MEDIA_UUID, ClearEventsRequest, EventLog
from protocol.cxl.generic import BackgroundStatus
from protocol.cxl.memory import HealthInfo, HealthStatus, MediaStatus, SetPartitionRequest
from tests.contract.results import Result, soon
from tests.contract.worlds import VirtualWorld


class Bench:
    """One mock device behind a `CxlDevice`."""

    def __init__(self, **options: Any) -> None:
        self.world = VirtualWorld()
        kernel = self.world.kernel
        self.model = kernel.cxl.add_device(MockCxlDevice(kernel, "mem0", **options))
        self.node = kernel.node("suite")
        self.memdev = MockCxlMemdev(self.node, kernel.cxl, self.model)
        self.device = CxlDevice(self.memdev, self.world.reactor)

    def ask(self, call: Callable[..., None], *args: Any, seconds: float = 30.0, **more: Any) -> Any:
        result: Result[Any] = Result()
        call(*args, soon(self.world, seconds), result, **more)
        self.world.run_until(lambda: result.came, seconds + 5)
        return result.values[0]


@pytest.fixture
def bench() -> Bench:
    return Bench()


def media_event(bench: Bench, log: EventLog, address: int) -> int:
    body = GeneralMedia(
        address=address,
        descriptor=1,
        event=MediaEvent.ECC_ERROR,
        transaction=Transaction.HOST_READ,
    )
    return bench.model.add_event(log, GENERAL_MEDIA_UUID, body.to_bytes())


def test_identity_partitions_health_and_commands_of_the_model_read_as_they_are(
    bench: Bench,
) -> None:
    bench.model.health.temp_degc = -12
    identity = bench.ask(bench.device.identify)
    assert (identity.total_units, identity.firmware_text) == (4, "mock 1.0")
    partitions = bench.ask(bench.device.partitions)
    assert (partitions.active_volatile_units, partitions.active_persistent_units) == (0, 4)
    assert bench.ask(bench.device.health).temp_degc == -12
    assert bench.ask(bench.device.effects).has(Opcode.SET_LSA)


def test_partitions_change_with_the_next_cold_reset() -> None:
    bench = Bench(volatile_only_units=1, persistent_only_units=1)
    for volatile, want in ((3, 0x00), (0, 0x02), (4, 0x02)):
        payload = SetPartitionRequest(volatile_units=volatile).to_bytes()
        result: Result[CxlReply] = Result()
        command = CxlCommand(opcode=Opcode.SET_PARTITION_INFO, payload=payload)
        bench.memdev.submit(command, soon(bench.world), result)
        assert result.wait(bench.world).return_code == want
    partitions = bench.ask(bench.device.partitions)
    assert (partitions.active_volatile_units, partitions.next_volatile_units) == (1, 3)
    bench.model.cold_reset()
    partitions = bench.ask(bench.device.partitions)
    assert (partitions.active_volatile_units, partitions.next_volatile_units) == (3, 0)


# --- retries ---


def test_a_device_that_wants_it_again_gets_it_again(bench: Bench) -> None:
    bench.model.retries = RETRY_LIMIT
    assert bench.ask(bench.device.identify).total_units == 4
    assert bench.device.retried == RETRY_LIMIT


def test_a_device_that_always_wants_it_again_is_given_up(bench: Bench) -> None:
    bench.model.retries = 1000
    error = bench.ask(bench.device.identify)
    assert isinstance(error, CxlFailed)
    assert error.return_code == ReturnCode.RETRY_REQUIRED
    assert bench.model.retries == 1000 - RETRY_LIMIT - 1
    for part in ("mem0", "identify_memory_device", "4000h", "retry_required"):
        assert part in str(error)


def test_a_busy_device_is_waited_for_and_not_for_ever(bench: Bench) -> None:
    bench.model.busy = True
    bench.world.kernel.after(300_000_000, lambda: setattr(bench.model, "busy", False))
    assert bench.ask(bench.device.identify).total_units == 4
    assert 0 < bench.device.was_busy < BUSY_LIMIT
    bench.model.busy = True
    error = bench.ask(bench.device.identify)
    assert isinstance(error, CxlFailed)
    assert error.return_code == ReturnCode.BUSY


def test_no_retry_goes_past_the_deadline_of_the_whole(bench: Bench) -> None:
    bench.model.busy = True
    end_ns = soon(bench.world, 0.12)
    result: Result[Any] = Result()
    bench.device.identify(end_ns, result)
    bench.world.run_until(lambda: result.came)
    assert bench.world.reactor.now_ns() <= end_ns + 1_000_000
    assert isinstance(result.values[0], CxlFailed | DeadlinePassed)


def test_a_device_that_never_answers_is_a_deadline_that_passed(bench: Bench) -> None:
    bench.model.silent = 1
    assert isinstance(bench.ask(bench.device.identify, seconds=2), DeadlinePassed)
    assert bench.ask(bench.device.identify).total_units == 4


def test_an_error_that_is_none_of_these_is_not_retried(bench: Bench) -> None:
    bench.model.failing[Opcode.IDENTIFY_MEMORY_DEVICE] = ReturnCode.MEDIA_DISABLED
    error = bench.ask(bench.device.identify)
    assert isinstance(error, CxlFailed)
    assert error.return_code == ReturnCode.MEDIA_DISABLED
    assert (bench.device.retried, bench.device.was_busy) == (0, 0)


def test_a_device_that_goes_while_it_is_asked_is_gone(bench: Bench) -> None:
    bench.world.kernel.after(500_000, bench.model.remove)
    assert isinstance(bench.ask(bench.device.identify), DeviceGone)


class Garbler:
    """Answers everything with success and too few bytes."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self.info = bench.memdev.info

    def submit(self, command: CxlCommand, deadline_ns: int, done: Done[CxlReply]) -> None:
        self._bench.world.reactor.post(lambda: done(CxlReply(return_code=0, payload=b"\1\2\3")))


def test_an_answer_that_does_not_fit_is_garbled_and_shows_its_bytes(bench: Bench) -> None:
    device = CxlDevice(Garbler(bench), bench.world.reactor)  # type: ignore[arg-type]
    for call in (device.identify, device.partitions, device.health, device.effects):
        error = bench.ask(call)
        assert isinstance(error, CxlGarbled)
        assert "01 02 03" in str(error)


# --- labels ---


def test_labels_larger_than_the_mailbox_go_in_pieces() -> None:
    bench = Bench(payload_max_bytes=256, label_bytes=4096)
    data = bytes(range(256)) * 4
    assert bench.ask(bench.device.write_labels, 100, data) is None
    assert bench.ask(bench.device.read_labels, 100, len(data)) == data
    assert bench.model.labels[99:101] == b"\0\0"


@pytest.mark.parametrize(("offset", "length"), [(-1, 4), (0, 0), (65536, 1), (65530, 7)])
def test_labels_outside_the_area_are_refused_and_nothing_is_sent(
    bench: Bench, offset: int, length: int
) -> None:
    error = bench.ask(bench.device.read_labels, offset, length)
    assert isinstance(error, Refused)
    assert "65536" in str(error)
    assert isinstance(bench.ask(bench.device.write_labels, offset, bytes(length)), Refused)


def test_a_bad_spot_in_the_label_area_is_a_media_failure(bench: Bench) -> None:
    bench.model.bad_labels = range(3000, 3001)
    error = bench.ask(bench.device.read_labels, 0, 4096)
    assert isinstance(error, CxlFailed)
    assert error.return_code == ReturnCode.PERMANENT_MEDIA_FAILURE
    assert len(bench.ask(bench.device.read_labels, 3001, 100)) == 100


# --- events ---


def test_events_are_drained_in_order_and_cleared() -> None:
    bench = Bench(log_records=40)
    handles = [media_event(bench, EventLog.FAILURE, at * 64) for at in range(33)]
    drained = bench.ask(bench.device.drain_events, EventLog.FAILURE)
    assert isinstance(drained, Drained)
    assert [record.handle for record in drained.records] == handles
    assert [record.body.address for record in drained.records][:2] == [0, 64]
    assert not bench.model.logs[EventLog.FAILURE].records
    assert (drained.more, drained.overflows, drained.not_cleared) == (False, 0, "")


def test_a_draining_ends_at_its_limit_and_leaves_the_rest() -> None:
    bench = Bench(log_records=100)
    for at in range(60):
        media_event(bench, EventLog.WARNING, at * 64)
    drained = bench.ask(bench.device.drain_events, EventLog.WARNING, limit=20)
    assert 20 <= len(drained.records) < 60
    assert drained.more
    rest = bench.ask(bench.device.drain_events, EventLog.WARNING)
    assert len(drained.records) + len(rest.records) == 60


def test_events_that_found_no_room_are_counted_once(bench: Bench) -> None:
    for at in range(11):
        media_event(bench, EventLog.FATAL, at * 64)
    drained = bench.ask(bench.device.drain_events, EventLog.FATAL)
    assert (len(drained.records), drained.overflows) == (8, 3)
    assert bench.ask(bench.device.drain_events, EventLog.FATAL).overflows == 0


def test_a_device_that_keeps_what_is_cleared_does_not_hold_us_for_ever(bench: Bench) -> None:
    for at in range(8):
        media_event(bench, EventLog.WARNING, at * 64)
    bench.model.failing[Opcode.CLEAR_EVENT_RECORDS] = ReturnCode.INVALID_HANDLE
    drained = bench.ask(bench.device.drain_events, EventLog.WARNING)
    assert len(drained.records) == 8
    assert "invalid_handle" in drained.not_cleared


def test_handles_never_are_zero_when_they_wrap(bench: Bench) -> None:
    bench.model.logs[EventLog.WARNING].next_handle = 0xFFFF
    assert [media_event(bench, EventLog.WARNING, 0) for _ in range(2)] == [0xFFFF, 1]


def test_clearing_out_of_order_is_refused_by_the_model(bench: Bench) -> None:
    first, second = (media_event(bench, EventLog.WARNING, at) for at in (0, 64))
    for handles, want in (
        ((second,), ReturnCode.INVALID_HANDLE),
        ((first, second), ReturnCode.SUCCESS),
    ):
        payload = ClearEventsRequest(log=EventLog.WARNING, handles=handles).to_bytes()
        assert bench.model.execute(Opcode.CLEAR_EVENT_RECORDS, payload)[0] == want
    payload = ClearEventsRequest(log=EventLog.WARNING, clear_all=True).to_bytes()
    code, _ = bench.model.execute(Opcode.CLEAR_EVENT_RECORDS, payload)
    assert code == ReturnCode.INVALID_INPUT, "all at once only after an overflow"


def test_a_scan_goes_on_in_the_background_and_a_second_one_has_to_wait(bench: Bench) -> None:
    payload = bytes(17)
    assert bench.model.execute(Opcode.SCAN_MEDIA, payload)[0] == ReturnCode.BACKGROUND_STARTED
    assert bench.model.execute(Opcode.SCAN_MEDIA, payload)[0] == ReturnCode.BUSY
    bench.world.run_for(0.25)
    status = BackgroundStatus.from_bytes(bench.model.execute(Opcode.BACKGROUND_STATUS, b"")[1])
    assert (status.running, status.complete_percent) == (True, 50)
    bench.world.run_for(0.3)
    status = BackgroundStatus.from_bytes(bench.model.execute(Opcode.BACKGROUND_STATUS, b"")[1])
    assert (status.running, status.complete_percent, status.opcode) == (False, 100, 0x4304)


# --- health ---

GOOD = HealthInfo(
    health_status=0,
    media_status=MediaStatus.NORMAL,
    additional_status=0,
    life_used_percent=3,
    temp_degc=41,
    dirty_shutdowns=0,
    corrected_volatile_errors=9,
    corrected_persistent_errors=9,
)


def test_a_good_device_has_no_findings_and_neither_has_one_that_does_not_say() -> None:
    assert judge(GOOD) == []
    silent = dataclasses.replace(GOOD, life_used_percent=0xFF, temp_degc=0x7FFF)
    assert judge(silent) == []


@pytest.mark.parametrize(
    ("change", "code", "severity"),
    [
        ({"temp_degc": 70}, "cxl_temperature", Severity.WARNING),
        ({"temp_degc": 85}, "cxl_temperature", Severity.CRITICAL),
        ({"additional_status": 0x04}, "cxl_temperature", Severity.WARNING),
        ({"additional_status": 0x08}, "cxl_temperature", Severity.CRITICAL),
        ({"life_used_percent": 80}, "cxl_life", Severity.WARNING),
        ({"additional_status": 0x02}, "cxl_life", Severity.CRITICAL),
        ({"additional_status": 0x10}, "cxl_corrected", Severity.WARNING),
        ({"additional_status": 0x20}, "cxl_corrected", Severity.WARNING),
        ({"dirty_shutdowns": 1}, "cxl_dirty", Severity.WARNING),
        ({"media_status": MediaStatus.NOT_READY}, "cxl_media", Severity.WARNING),
        ({"media_status": MediaStatus.DATA_LOST}, "cxl_data_lost", Severity.CRITICAL),
        ({"media_status": MediaStatus.DATA_LOSS_IMMINENT}, "cxl_media", Severity.CRITICAL),
        ({"media_status": 0x2A}, "cxl_media", Severity.WARNING),
        ({"health_status": HealthStatus.REPLACEMENT_NEEDED}, "cxl_replace", Severity.CRITICAL),
        ({"health_status": HealthStatus.MAINTENANCE_NEEDED}, "cxl_maintenance", Severity.WARNING),
    ],
)
def test_one_thing_that_is_not_well_is_one_finding(
    change: dict[str, Any], code: str, severity: Severity
) -> None:
    [finding] = judge(dataclasses.replace(GOOD, **change))
    assert (finding.code, finding.severity) == (code, severity)


def test_the_worst_comes_first_and_limits_can_be_others() -> None:
    health = dataclasses.replace(GOOD, temp_degc=72, life_used_percent=96)
    assert [finding.code for finding in judge(health)] == ["cxl_life", "cxl_temperature"]
    assert judge(health, HealthLimits(temp_warning_degc=75, life_critical_percent=97)) != []
    assert DEFAULT_LIMITS.temp_warning_degc < DEFAULT_LIMITS.temp_critical_degc
    assert "72" in judge(health)[1].text


def test_an_error_is_no_health() -> None:
    bench = Bench()
    bench.model.lacks.add(Opcode.GET_HEALTH_INFO)
    assert isinstance(bench.ask(bench.device.health), HalError)
