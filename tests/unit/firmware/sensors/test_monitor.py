"""The monitor on the whole of a board's SMBus: every part of rev_a on its register model."""

from collections.abc import Callable
from typing import Any

import pytest

from firmware.board import load_board
from firmware.board_hardware import Device, Hardware, Mux, Place, Segment
from firmware.events import EventCode, EventLog
from firmware.sensors.monitor import REOPEN_NS, SensorMonitor
from firmware.sensors.watch import FAILURES, STUCK_NS
from hal.errors import Unavailable
from hal.mock import smbus_bus
from hal.mock.smbus import MockSmbusSegment
from hal.mock.smbus_build import model_of
from hal.mock.smbus_bus import MockSmbusBus
from hal.mock.smbus_fans import Max31790
from hal.mock.smbus_parts import Eeprom
from hal.mock.smbus_pmbus import PmbusVrm
from hal.mock.smbus_sensors import Tmp75
from hal.smbus_ports import SmbusSegment
from protocol.fru import BoardInfo, Fru, FruField
from tests.contract.worlds import VirtualWorld
from tools.sim.smbus import make_good

FRU = Fru(board=BoardInfo(manufacturer=FruField.of("Example Works")))


class Bench:
    """Buses as a board has them, a monitor, and its events."""

    def __init__(self, hardware: Hardware, slot_devices: dict[str, tuple[Device, ...]]) -> None:
        self.world = VirtualWorld()
        self.kernel = self.world.kernel
        self.node = self.world.reactor.clock.node  # type: ignore[attr-defined]
        self.buses: dict[str, MockSmbusBus] = {}
        self.models: dict[str, Any] = {}
        self.unplugged: set[str] = set()
        for segment in hardware.segments:
            self.buses[segment.bus] = MockSmbusBus(
                self.kernel, segment.id, clock_khz=segment.clock_khz
            )
        buses = {segment.id: self.buses[segment.bus] for segment in hardware.segments}
        parts: list[Mux | Device] = list(hardware.muxes)
        parts += hardware.devices
        for more in slot_devices.values():
            parts += more
        placed: dict[Any, Any] = {}
        for part in parts:
            place = part.place
            if place not in placed:  # several channels of one chip are one chip
                placed[place] = model_of(part.part, place.address)
                buses[place.segment].attach(placed[place], place.muxes)
                if isinstance(placed[place], Eeprom):
                    image = FRU.to_bytes()
                    placed[place].data[: len(image)] = image
            self.models[part.id] = placed[place]
        self.events = EventLog(self.world.reactor, lambda: 0)
        self.off: set[str] = set()
        self.monitor = SensorMonitor(
            self.world.reactor,
            self.open,
            hardware,
            self.events,
            slot_devices=slot_devices,
            is_on=lambda cnm: cnm not in self.off,
        )
        for device in [*hardware.devices, *(d for more in slot_devices.values() for d in more)]:
            make_good(device, self.models[device.id])

    def open(self, text: str) -> SmbusSegment:
        if text in self.unplugged:
            raise Unavailable(f"opening {text}: no such bus")
        return MockSmbusSegment(self.node, self.buses[text])

    def codes(self, *only: EventCode) -> list[EventCode]:
        found = [event.code for event in self.events.since(0)]
        return [code for code in found if not only or code in only]

    def until(self, predicate: Callable[[], bool], limit_s: float = 60) -> None:
        assert self.kernel.run_until(predicate, int(limit_s * 1e9)), self.codes()

    def run_for(self, seconds: float) -> None:
        self.world.run_for(seconds)


def rev_a() -> Bench:
    board = load_board("rev_a", run_dir="/run/x")
    return Bench(board.hardware, {slot.id: slot.devices for slot in board.slots})


def small() -> Bench:
    """A mux with two TMP75 behind it, and one in front; a segment of its own for a fan."""

    def temp(name: str, address: int, muxes: tuple[tuple[int, int], ...] = ()) -> Device:
        return Device(
            id=name,
            role="temp",
            part="tmp75",
            place=Place(segment="s0", muxes=muxes, address=address),
            numbers={"channel": 0, "temp_high_mdegc": 70_000, "temp_critical_mdegc": 90_000},
        )

    hardware = Hardware(
        segments=(
            Segment(id="s0", bus="i2c:0", clock_khz=100),
            Segment(id="s1", bus="i2c:1", clock_khz=100),
        ),
        muxes=(Mux(id="m", part="pca9548", place=Place(segment="s0", muxes=(), address=0x70)),),
        devices=(
            temp("front", 0x48),
            temp("left", 0x49, ((0x70, 0),)),
            temp("right", 0x49, ((0x70, 1),)),
            Device(
                id="fan",
                role="fan",
                part="max31790",
                place=Place(segment="s1", muxes=(), address=0x20),
                numbers={"channel": 2, "rpm_low": 2_000, "rpm_high": 16_000},
            ),
            Device(
                id="fru",
                role="fru",
                part="24c02",
                place=Place(segment="s0", muxes=(), address=0x50),
                numbers={"size_bytes": 256},
            ),
        ),
    )
    return Bench(hardware, {})


@pytest.fixture
def bench() -> Bench:
    made = small()
    made.monitor.start()
    made.until(lambda: made.monitor.readings("fan") is not None)
    made.run_for(3)
    assert made.codes() == []
    return made


def test_every_part_of_a_whole_board_is_read_and_nothing_is_wrong() -> None:
    bench = rev_a()
    bench.monitor.start()
    bench.run_for(30)
    assert bench.codes() == []
    roles = {device.id: device.role for device in bench.monitor._devices}
    sensors = [name for name, role in roles.items() if role != "fru"]
    assert len(sensors) > 50
    assert [name for name in sensors if bench.monitor.readings(name) is None] == []
    assert set(bench.monitor.frus) == {name for name, role in roles.items() if role == "fru"}
    assert bench.monitor.counters["late"] == 0
    for bus in bench.buses.values():
        assert not any(m.control for m in bus.visible() if isinstance(m, smbus_bus.Mux))


def test_a_limit_is_told_when_it_is_broken_and_once_more_when_it_is_well_again(
    bench: Bench,
) -> None:
    sensor: Tmp75 = bench.models["left"]
    sensor.temp_mdegc = 75_000
    bench.run_for(5)
    assert bench.codes() == [EventCode.SENSOR_LIMIT]
    event = bench.events.since(0)[0]
    assert (event.data["device"], event.data["kind"]) == ("left", "temp_high_mdegc")
    assert (event.data["value"], event.data["limit"]) == (75_000, 70_000)
    sensor.temp_mdegc = 95_000
    bench.run_for(5)
    sensor.temp_mdegc = 69_000  # below both, but within the margin of the first
    bench.run_for(5)
    assert bench.codes() == [
        EventCode.SENSOR_LIMIT, EventCode.SENSOR_LIMIT, EventCode.SENSOR_GOOD,
    ]  # fmt: skip
    assert bench.monitor.wrong("left") == {"temp_high_mdegc"}
    sensor.temp_mdegc = 60_000
    bench.run_for(5)
    assert bench.codes()[-1:] == [EventCode.SENSOR_GOOD]
    assert bench.monitor.wrong("left") == frozenset()


def test_an_absent_part_is_told_once_and_its_return_too_and_it_is_set_up_again(
    bench: Bench,
) -> None:
    sensor: Tmp75 = bench.models["right"]
    bus, path = bench.buses["i2c:0"], ((0x70, 1),)
    bus.detach(sensor, path)
    bench.run_for(30)
    assert bench.codes() == [EventCode.SENSOR_ABSENT]
    assert bench.monitor.readings("right") is None, "old readings are not believed"
    assert bench.monitor.readings("left") is not None
    bus.attach(sensor, path)
    sensor.poke(0x01, b"\x01")  # a new one, shut down
    bench.until(lambda: bench.monitor.readings("right") is not None)
    assert bench.codes() == [EventCode.SENSOR_ABSENT, EventCode.SENSOR_GOOD]
    assert sensor.peek(0x01) == b"\x60"


def test_a_part_that_is_away_for_a_moment_is_not_told(bench: Bench) -> None:
    bench.buses["i2c:0"].nack_addresses[0x48] = FAILURES - 1
    bench.run_for(10)
    assert bench.codes() == []


def test_a_sensor_that_never_moves_is_told_as_stuck_and_when_it_moves_again(bench: Bench) -> None:
    sensor: Tmp75 = bench.models["front"]
    others = [bench.models["left"], bench.models["right"]]

    def let_minutes_pass(minutes: int) -> None:
        for step in range(minutes):
            for other in others:
                other.temp_mdegc += 63 if step % 2 else -63  # air moves
            fan: Max31790 = bench.models["fan"]
            fan.full_rpm[2] += 200 if step % 2 else -200
            bench.run_for(60)

    sensor.frozen = True
    sensor.temp_mdegc = 90_000
    let_minutes_pass(STUCK_NS // 60_000_000_000 + 2)
    assert bench.codes() == [EventCode.SENSOR_STUCK]
    assert bench.events.since(0)[0].data["device"] == "front"
    sensor.frozen, sensor.temp_mdegc = False, 50_000
    bench.run_for(3)
    assert bench.codes() == [EventCode.SENSOR_STUCK, EventCode.SENSOR_GOOD]


def test_a_bus_that_is_held_low_is_told_once_and_not_once_for_each_part(bench: Bench) -> None:
    bench.buses["i2c:0"].hold_scl()
    bench.run_for(30)
    assert bench.codes() == [EventCode.BUS_DOWN]
    assert bench.monitor.readings("front") is None
    assert bench.monitor.readings("fan") is not None, "the other segment goes on"
    bench.buses["i2c:0"].release()
    bench.until(lambda: bench.monitor.readings("right") is not None, 40)
    assert bench.codes() == [EventCode.BUS_DOWN, EventCode.BUS_UP]


def test_a_segment_that_is_not_there_is_told_once_and_used_when_it_comes() -> None:
    bench = small()
    bench.unplugged.add("i2c:1")
    bench.monitor.start()
    bench.run_for(3 * REOPEN_NS / 1e9)
    assert bench.codes() == [EventCode.BUS_DOWN]
    bench.unplugged.clear()
    bench.until(lambda: bench.monitor.readings("fan") is not None)
    assert bench.codes() == [EventCode.BUS_DOWN, EventCode.BUS_UP]


def test_a_mux_that_was_left_selected_is_mended_at_the_start_and_told() -> None:
    bench = small()
    bench.models["m"].control = 0b11
    bench.monitor.start()
    bench.run_for(5)
    assert bench.codes() == [EventCode.BUS_MUX]
    assert bench.events.since(0)[0].data["kind"] == "mux_left_selected"
    assert bench.monitor.readings("right") is not None


def test_an_eeprom_with_a_wrong_checksum_is_told_after_it_was_read_again() -> None:
    bench = small()
    bench.models["fru"].data[12] ^= 0x10
    bench.monitor.start()
    bench.run_for(3 * REOPEN_NS / 1e9)
    assert bench.codes() == [EventCode.FRU_BAD]
    assert "board area: checksum" in bench.events.since(0)[0].text
    assert bench.monitor.frus == {}


def test_a_wrong_part_is_told_as_such() -> None:
    bench = small()
    bench.models["front"].registers[0x00].data = b"\x80\x00"
    bench.models["front"].frozen = True
    bench.monitor.start()
    bench.run_for(10)
    assert bench.codes() == [EventCode.SENSOR_WRONG]


def test_parts_of_a_module_that_is_off_are_left_alone() -> None:
    bench = rev_a()
    cnm, devices = next(iter(bench.monitor._cnm_of.values())), bench.monitor._devices
    mine = [d for d in devices if bench.monitor._cnm_of.get(d.id) == cnm and d.role != "fru"]
    bench.monitor.start()
    bench.run_for(10)
    bench.off.add(cnm)
    for device in mine:
        bus = bench.buses[next(s.bus for s in bench.monitor._hardware.segments
                               if s.id == device.place.segment)]  # fmt: skip
        bus.detach(bench.models[device.id], device.place.muxes)
    bench.run_for(30)
    assert bench.codes() == []
    assert all(bench.monitor.readings(device.id) is None for device in mine)
    bench.off.clear()
    bench.run_for(30)
    assert EventCode.SENSOR_ABSENT in bench.codes()


def test_a_regulator_out_of_its_band_is_told_by_its_rail() -> None:
    bench = rev_a()
    device = next(d for d in bench.monitor._devices if d.role == "vrm")
    vrm: PmbusVrm = bench.models[device.id]
    bench.monitor.start()
    bench.run_for(5)
    vrm.rails[0].vout_mv = device.numbers["vout_low_mv"] - 10
    bench.run_for(5)
    assert bench.codes() == [EventCode.SENSOR_LIMIT]
    assert bench.events.since(0)[0].data["kind"] == "vout_low_mv"


def test_after_close_nothing_is_asked_any_more(bench: Bench) -> None:
    bench.monitor.close()
    bench.monitor.close()
    before = [bus.transfers for bus in bench.buses.values()]
    bench.run_for(60)
    assert [bus.transfers for bus in bench.buses.values()] == before
