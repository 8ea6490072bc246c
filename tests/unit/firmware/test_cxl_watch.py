"""The inventory of memory devices: they come, fare, tell and go."""

from typing import Any

from firmware.cxl import BUSY_LIMIT, BUSY_PAUSE_MS, RETRY_LIMIT, RETRY_PAUSE_MS
from firmware.cxl_watch import ASK_MS, DEVICE_LIMIT, TURN_MS, CxlWatch
from hal.cxl_ports import (
    CxlCommand,
    CxlInventory,
    CxlMemdev,
    CxlReply,
    DriverMissing,
    NotPermitted,
)
from hal.mock.cxl import MockCxlBus, MockCxlMemdev
from hal.mock.cxl_device import MockCxlDevice
from hal.ports import Done
from protocol.cxl.codes import Opcode
from protocol.cxl.events import EventLog
from protocol.cxl.message import RESPONSE_MS
from tests.contract.worlds import VirtualWorld


class Counted(MockCxlMemdev):
    """Notes which opcodes were asked for."""

    def __init__(self, bench: "Bench", model: MockCxlDevice) -> None:
        super().__init__(bench.node, bench.host, model)
        self._asked = bench.asked

    def submit(self, command: CxlCommand, deadline_ns: int, done: Done[CxlReply]) -> None:
        self._asked.append(command.opcode)
        super().submit(command, deadline_ns, done)


class Bench:
    def __init__(self, *names: str, **options: Any) -> None:
        self.world = VirtualWorld()
        kernel = self.world.kernel
        self.host = kernel.cxl
        self.models = {
            name: self.host.add_device(MockCxlDevice(kernel, name, **options)) for name in names
        }
        self.node = kernel.node("suite")
        self.told: list[tuple[str, str]] = []
        self.opened: list[str] = []
        self.asked: list[int] = []
        self.watch = CxlWatch(
            MockCxlBus(self.host),
            self.open,
            self.world.reactor,
            tell=lambda name, code, text: self.told.append((name, code)),
        )

    def open(self, name: str) -> CxlMemdev:
        self.opened.append(name)
        return Counted(self, self.models[name])

    def turn(self, count: int = 1) -> None:
        want = self.watch.turns + count
        self.world.run_until(lambda: self.watch.turns >= want, 11.0 * count)
        self.world.run_for(1)


def test_devices_are_found_asked_and_shown() -> None:
    bench = Bench("mem0", "mem1")
    bench.watch.start()
    bench.world.run_for(1)
    first, second = bench.watch.status()
    assert (first["name"], second["name"]) == ("mem0", "mem1")
    assert (first["temp_mdegc"], first["life_used_percent"], first["media"]) == (
        41_000,
        3,
        "normal",
    )
    assert first["persistent_bytes"] == 1 << 30
    assert (first["error"], first["health_error"], first["findings"]) == (None, None, [])
    assert bench.told == [("mem0", "cxl_found"), ("mem1", "cxl_found")]
    assert len(bench.watch.inventory.ports) == 4


def test_a_finding_is_told_once_for_as_long_as_it_holds() -> None:
    bench = Bench("mem0")
    bench.watch.start()
    bench.models["mem0"].health.temp_degc = 75
    bench.turn(3)
    assert bench.told.count(("mem0", "cxl_temperature")) == 1
    bench.models["mem0"].health.temp_degc = 90
    bench.turn()
    assert bench.told.count(("mem0", "cxl_temperature")) == 2, "critical is another finding"
    bench.models["mem0"].health.temp_degc = 40
    bench.turn()
    assert bench.watch.status()[0]["findings"] == []
    bench.models["mem0"].health.temp_degc = 75
    bench.turn()
    assert bench.told.count(("mem0", "cxl_temperature")) == 3


def test_events_are_drained_told_and_the_last_ones_kept() -> None:
    bench = Bench("mem0", log_records=50)
    model = bench.models["mem0"]
    for at in range(40):
        model.add_event(EventLog.WARNING, bytes(16), bytes([at]))
    model.add_event(EventLog.FATAL, bytes(16), b"")
    bench.watch.start()
    bench.turn()
    assert bench.told.count(("mem0", "cxl_event")) == 41
    [shown] = bench.watch.status()
    assert len(shown["events"]) == 32
    assert shown["events"][-1]["severity"] == "warning"
    assert not model.logs[EventLog.WARNING].records


def test_a_device_without_health_or_events_is_not_asked_for_them_again() -> None:
    bench = Bench("mem0")
    model = bench.models["mem0"]
    model.lacks |= {Opcode.GET_HEALTH_INFO, Opcode.GET_EVENT_RECORDS}
    bench.watch.start()
    bench.turn(3)
    [shown] = bench.watch.status()
    assert (shown["temp_mdegc"], shown["media"]) == (None, None)
    assert "4200h" in shown["health_error"]
    assert "0100h" in shown["events_error"]
    assert sorted(bench.asked) == [0x0100, 0x4000, 0x4200], "each once, in three turns"


def test_a_device_that_goes_is_told_and_one_that_comes_back_is_found_again() -> None:
    bench = Bench("mem0")
    bench.watch.start()
    bench.turn()
    bench.models["mem0"].remove()
    bench.turn()
    assert bench.watch.status() == []
    bench.models["mem0"].insert()
    bench.turn()
    assert [code for _, code in bench.told] == ["cxl_found", "cxl_gone", "cxl_found"]
    assert bench.opened == ["mem0", "mem0"]


def test_a_device_that_goes_while_it_is_asked_does_not_hold_the_others_up() -> None:
    bench = Bench("mem0", "mem1")
    bench.models["mem0"].command_ns = 50_000_000
    bench.watch.start()
    bench.world.run_for(0.02)
    bench.models["mem0"].remove()
    bench.models["mem1"].health.temp_degc = 90
    bench.turn()
    [shown] = bench.watch.status()
    assert shown["name"] == "mem1"
    assert ("mem1", "cxl_temperature") in bench.told


def test_a_device_that_cannot_be_opened_says_why_and_is_tried_again() -> None:
    bench = Bench("mem0")
    good = bench.open
    failing = True

    def open_memdev(name: str) -> CxlMemdev:
        if failing:
            raise NotPermitted(f"/dev/cxl/{name}: run as root")
        return good(name)

    watch = CxlWatch(MockCxlBus(bench.host), open_memdev, bench.world.reactor)
    watch.start()
    bench.world.run_for(1)
    assert "run as root" in watch.status()[0]["error"]
    failing = False
    bench.world.run_for(11)
    assert watch.status()[0]["error"] is None
    assert watch.status()[0]["temp_mdegc"] == 41_000


class NoCxl:
    def scan(self) -> CxlInventory:
        raise DriverMissing("/sys/bus/cxl/devices: not there")


def test_a_host_without_cxl_has_none_and_says_so() -> None:
    world = VirtualWorld()
    watch = CxlWatch(NoCxl(), lambda name: None, world.reactor)  # type: ignore[arg-type,return-value]
    watch.start()
    world.run_for(25)
    assert watch.status() == []
    assert "not there" in watch.error
    assert watch.turns == 3


def test_more_devices_than_the_limit_are_counted_and_left_alone() -> None:
    bench = Bench(*(f"mem{number}" for number in range(DEVICE_LIMIT + 3)))
    bench.watch.start()
    bench.world.run_for(1)
    assert len(bench.watch.devices) == DEVICE_LIMIT
    assert bench.watch.ignored == 3


def test_after_close_nothing_is_asked_any_more() -> None:
    bench = Bench("mem0")
    bench.watch.start()
    bench.turn()
    bench.watch.close()
    bench.watch.close()
    turns = bench.watch.turns
    bench.world.run_for(30)
    assert bench.watch.turns == turns


def test_a_command_with_all_its_retries_ends_before_the_time_for_it() -> None:
    pauses_ms = RETRY_LIMIT * RETRY_PAUSE_MS + BUSY_LIMIT * BUSY_PAUSE_MS
    assert RESPONSE_MS + pauses_ms < ASK_MS < TURN_MS
