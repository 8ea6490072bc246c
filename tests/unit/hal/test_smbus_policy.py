"""What a segment does when its bus, its muxes or its devices misbehave: faults B1 to B8."""

from typing import Any

import pytest

from firmware.loop import Loop
from hal.errors import Absent, DeadlinePassed, HalError, Unavailable
from hal.mock.smbus import FRAMES_LIMIT, MockSmbusSegment, MockSmbusTarget
from hal.mock.smbus_bus import ALL_FUNCTIONS, MockSmbusBus, Mux
from hal.mock.smbus_model import Register, RegisterModel
from hal.mock.smbus_sensors import Tmp75
from hal.smbus_engine import ATTEMPTS, RECOVERY_PAUSES_NS
from hal.smbus_ports import (
    ArbitrationLost,
    BusHeld,
    DataNack,
    MuxStuck,
    PecWrong,
    SmbusEvent,
    SmbusEventKind,
    SmbusFunctions,
    SmbusKind,
    SmbusTransfer,
    WrongCount,
)
from tests.contract.worlds import VirtualWorld

REGISTER = 0x10
OUTER, INNER = 0x70, 0x71


class Bench:
    """A device in front, muxes 0x70 and (behind its channel 1) 0x71, a device behind each."""

    def __init__(self, functions: SmbusFunctions = ALL_FUNCTIONS) -> None:
        self.world = VirtualWorld()
        self.node = self.world.reactor.clock.node  # type: ignore[attr-defined]
        self.bus = MockSmbusBus(self.world.kernel, "bench", functions=functions)
        self.front, self.near, self.far = (self.device(at) for at in (0x40, 0x41, 0x42))
        self.outer, self.inner = Mux(OUTER), Mux(INNER, channels=4)
        self.bus.attach(self.front)
        self.bus.attach(self.outer)
        self.bus.attach(self.near, ((OUTER, 0),))
        self.bus.attach(self.inner, ((OUTER, 1),))
        self.bus.attach(self.far, ((OUTER, 1), (INNER, 3)))
        self.open()

    @staticmethod
    def device(address: int) -> RegisterModel:
        model = RegisterModel(address, pec=True)
        model.registers = {
            REGISTER: Register(b"\x5a"),
            0x20: Register(b"hello", block=True),
            0x30: Register(b"", block=True, process=lambda sent: sent[::-1]),
        }
        return model

    def open(self) -> None:
        self.segment = MockSmbusSegment(self.node, self.bus)
        self.events: list[SmbusEvent] = []
        self.segment.on_event(self.events.append)

    def kinds(self) -> list[SmbusEventKind]:
        return [event.kind for event in self.events]

    def start(self, model: RegisterModel, limit_s: float = 10, **fields: Any) -> list[Any]:
        transfer = SmbusTransfer(
            address=model.address,
            **{"kind": SmbusKind.READ_BYTE, "command": REGISTER, "mux": self.path(model)} | fields,
        )
        found: list[Any] = []
        deadline_ns = self.world.reactor.now_ns() + int(limit_s * 1e9)
        self.segment.submit(transfer, deadline_ns, found.append)
        return found

    def ask(self, model: RegisterModel, **fields: Any) -> Any:
        found = self.start(model, **fields)
        self.world.run_until(lambda: bool(found), 20)
        return found[0]

    def path(self, model: RegisterModel) -> Any:
        return {
            self.front: (),
            self.near: ((OUTER, 0),),
            self.far: ((OUTER, 1), (INNER, 3)),
        }[model]

    def check(self, *muxes: Any) -> Any:
        found: list[Any] = []
        self.segment.check_muxes(muxes, self.world.reactor.now_ns() + 10**10, found.append)
        self.world.run_until(lambda: bool(found))
        return found[0]

    @property
    def all_deselected(self) -> bool:
        return not self.outer.control and not self.inner.control


@pytest.fixture
def bench() -> Bench:
    return Bench()


# --- muxes ---


def test_what_is_behind_two_muxes_is_reached_and_both_are_deselected(bench: Bench) -> None:
    assert bench.ask(bench.far) == b"\x5a"
    assert bench.all_deselected
    assert bench.events == []


@pytest.mark.parametrize(
    ("break_it", "error"),
    [
        (lambda far: far.refused.add(REGISTER), DataNack),
        (lambda far: setattr(far, "wrong_pec", 100), PecWrong),
    ],
)
def test_muxes_are_deselected_after_errors_too(
    bench: Bench, break_it: Any, error: type[HalError]
) -> None:
    break_it(bench.far)
    assert isinstance(bench.ask(bench.far, pec=True), error)
    assert bench.all_deselected
    bench.bus.detach(bench.far, bench.path(bench.far))
    assert isinstance(bench.ask(bench.far), Absent)
    assert bench.all_deselected


def test_a_mux_that_was_left_selected_is_told_and_mended_before_its_first_use(
    bench: Bench,
) -> None:
    bench.outer.control = 0b110
    assert bench.ask(bench.near) == b"\x5a"
    assert bench.kinds() == [SmbusEventKind.MUX_LEFT_SELECTED]
    assert "0x06" in bench.events[0].text
    assert bench.events[0].address == OUTER
    assert bench.all_deselected
    bench.ask(bench.near)
    assert len(bench.events) == 1


def test_muxes_that_were_left_selected_are_found_at_the_start(bench: Bench) -> None:
    bench.outer.control, bench.inner.control = 0b10, 0b1000
    assert bench.check(((), OUTER), (((OUTER, 1),), INNER), ((), 0x77)) == [OUTER, INNER]
    assert bench.all_deselected
    assert bench.kinds() == [SmbusEventKind.MUX_LEFT_SELECTED] * 2
    assert bench.check(((), OUTER), (((OUTER, 1),), INNER)) == []


def test_a_mux_that_is_stuck_at_the_start_does_not_hide_the_next_one(bench: Bench) -> None:
    other = Mux(0x72)
    bench.bus.attach(other)
    bench.outer.control, bench.outer.stuck, other.control = 1, True, 2
    assert isinstance(bench.check(((), OUTER), ((), 0x72)), MuxStuck)
    assert other.control == 0
    assert bench.kinds() == [SmbusEventKind.MUX_STUCK, SmbusEventKind.MUX_LEFT_SELECTED]


def test_a_mux_that_keeps_its_channel_is_told_once_and_what_is_in_front_of_it_goes_on(
    bench: Bench,
) -> None:
    assert bench.ask(bench.near) == b"\x5a"
    selected = bench.start(bench.near)
    bench.outer.control = 1
    bench.outer.stuck = True
    bench.world.run_until(lambda: bool(selected))
    assert bench.kinds() == [SmbusEventKind.MUX_STUCK]
    for _ in range(3):
        assert isinstance(bench.ask(bench.far), MuxStuck)
        assert bench.ask(bench.front) == b"\x5a"
    assert len(bench.events) == 1
    bench.outer.stuck = False
    assert bench.ask(bench.far) == b"\x5a"
    assert bench.kinds() == [SmbusEventKind.MUX_STUCK, SmbusEventKind.MUX_FREE]
    assert bench.all_deselected


def test_a_mux_that_is_absent_selects_nothing_on_the_way_to_it(bench: Bench) -> None:
    bench.bus.detach(bench.inner, ((OUTER, 1),))
    error = bench.ask(bench.far)
    assert isinstance(error, Absent)
    assert "mux 0x71" in str(error)
    assert bench.all_deselected
    assert bench.ask(bench.near) == b"\x5a"


# --- the bus ---


def test_a_held_sda_is_freed_and_the_caller_told_to_try_again(bench: Bench) -> None:
    bench.bus.hold_sda(20)
    error = bench.ask(bench.front)
    assert isinstance(error, BusHeld)
    assert "do it again" in str(error)
    assert bench.ask(bench.front) == b"\x5a"
    assert bench.events == [], "a bus that is freed at once is not a dead bus"
    assert bench.segment.counters["recovery_attempts"] == 3  # nine clocks each


def test_a_dead_bus_is_told_once_not_once_for_each_device_and_fails_at_once(bench: Bench) -> None:
    bench.bus.hold_scl()
    errors = [bench.ask(model) for model in (bench.front, bench.near, bench.far) for _ in range(5)]
    assert all(isinstance(error, BusHeld) for error in errors)
    assert bench.kinds() == [SmbusEventKind.BUS_HELD]
    assert bench.segment.counters["recovery_attempts"] == len(RECOVERY_PAUSES_NS)
    assert bench.bus.met["B2"] == 1 + len(RECOVERY_PAUSES_NS), "nobody touched the dead bus again"


def test_a_dead_bus_is_tried_again_ever_less_often_and_its_return_is_told_once(
    bench: Bench,
) -> None:
    bench.bus.hold_scl()
    bench.ask(bench.front)
    before = bench.segment.counters["recovery_attempts"]
    for _ in range(600):  # a minute, ten times a second
        bench.world.run_for(0.1)
        bench.ask(bench.front)
    rounds = (bench.segment.counters["recovery_attempts"] - before) // len(RECOVERY_PAUSES_NS)
    assert 4 <= rounds <= 6  # after 1, 2, 4, 8, 16, 30 s
    bench.bus.release()
    for _ in range(400):
        bench.world.run_for(0.1)
        if bench.ask(bench.front) == b"\x5a":
            break
    assert bench.kinds() == [SmbusEventKind.BUS_HELD, SmbusEventKind.BUS_FREE]


def test_a_dead_bus_is_tried_at_once_when_somebody_asks_for_it(bench: Bench) -> None:
    bench.bus.hold_scl()
    bench.ask(bench.front)
    found: list[Any] = []
    bench.segment.recover(bench.world.reactor.now_ns() + 10**10, found.append)
    bench.world.run_until(lambda: bool(found))
    assert isinstance(found[0], BusHeld)
    bench.bus.release()
    bench.segment.recover(bench.world.reactor.now_ns() + 10**10, found.append)
    bench.world.run_until(lambda: len(found) == 2)
    assert found[1] is None
    assert bench.kinds() == [SmbusEventKind.BUS_HELD, SmbusEventKind.BUS_FREE]


def test_a_mux_that_was_open_when_the_bus_died_is_closed_before_anything_else(
    bench: Bench,
) -> None:
    bench.ask(bench.near)
    bench.bus.stretch_ns[bench.near.address] = 30_000_000
    assert isinstance(bench.ask(bench.near), BusHeld)
    bench.bus.stretch_ns.clear()
    assert bench.ask(bench.far) == b"\x5a"
    assert bench.all_deselected


def test_a_clock_that_is_stretched_a_little_takes_its_time_only(bench: Bench) -> None:
    bench.bus.stretch_ns[bench.front.address] = 20_000_000
    begin_ns = bench.world.kernel.now_ns
    assert bench.ask(bench.front) == b"\x5a"
    assert bench.world.kernel.now_ns - begin_ns >= 20_000_000


# --- transfers ---


def test_lost_arbitration_is_tried_again_a_few_times(bench: Bench) -> None:
    bench.bus.lose_arbitration = ATTEMPTS - 1
    assert bench.ask(bench.front) == b"\x5a"
    bench.bus.lose_arbitration = 1000
    assert isinstance(bench.ask(bench.front), ArbitrationLost)
    assert bench.bus.lose_arbitration == 1000 - ATTEMPTS


def test_a_wrong_code_is_read_again_but_a_write_is_not_done_twice(bench: Bench) -> None:
    bench.front.wrong_pec = ATTEMPTS - 1
    assert bench.ask(bench.front, pec=True) == b"\x5a"
    bench.front.wrong_pec = 100
    assert isinstance(bench.ask(bench.front, pec=True), PecWrong)
    assert bench.front.wrong_pec == 100 - ATTEMPTS
    bench.front.refused.add(REGISTER)
    journal = len(bench.front.journal)
    fields = {"kind": SmbusKind.WRITE_BYTE, "data": b"\x01", "pec": True}
    assert isinstance(bench.ask(bench.front, **fields), DataNack)
    assert len(bench.front.journal) == journal


def test_a_block_process_call_goes_both_ways(bench: Bench) -> None:
    for pec in (False, True):
        found = bench.ask(
            bench.far, kind=SmbusKind.BLOCK_PROCESS_CALL, command=0x30, data=b"abc", pec=pec
        )
        assert found == b"cba"


def test_a_call_whose_answer_has_a_wrong_code_is_not_made_twice(bench: Bench) -> None:
    bench.front.wrong_pec = 100
    fields = {"kind": SmbusKind.BLOCK_PROCESS_CALL, "command": 0x30, "data": b"abc", "pec": True}
    assert isinstance(bench.ask(bench.front, **fields), PecWrong)
    assert bench.front.wrong_pec == 99


def test_a_block_with_a_count_that_cannot_be_is_not_believed(bench: Bench) -> None:
    bench.front.wrong_count = 2
    for _ in range(2):  # 0, then 255
        error = bench.ask(bench.front, kind=SmbusKind.READ_BLOCK, command=0x20)
        assert isinstance(error, WrongCount)
    assert bench.ask(bench.front, kind=SmbusKind.READ_BLOCK, command=0x20) == b"hello"


def test_a_device_that_is_away_for_a_moment_is_absent_for_that_moment(bench: Bench) -> None:
    bench.bus.nack_addresses[bench.front.address] = 1
    assert isinstance(bench.ask(bench.front), Absent)
    assert bench.ask(bench.front) == b"\x5a"


def test_a_deadline_passes_in_the_queue_and_the_transfer_is_then_not_done(bench: Bench) -> None:
    slow = bench.start(bench.front, gap_us=900_000)
    late = bench.start(
        bench.front, limit_s=0.1, kind=SmbusKind.WRITE_BYTE, command=REGISTER, data=b"\x01"
    )
    bench.world.run_until(lambda: bool(slow and late))
    assert isinstance(late[0], DeadlinePassed)
    bench.world.run_for(2)
    assert bench.front.peek(REGISTER) == b"\x5a"


def test_what_a_dead_program_had_asked_for_is_not_done_when_it_lives_again(bench: Bench) -> None:
    for value in range(20):
        bench.start(bench.front, kind=SmbusKind.WRITE_BYTE, data=bytes([value]), gap_us=10_000)
    bench.world.run_for(0.05)
    done = len(bench.front.journal)
    assert 0 < done < 20
    bench.world.kernel.kill("suite")
    bench.world.kernel.attach("suite", Loop(bench.node.clock))
    bench.world.run_for(2)
    assert len(bench.front.journal) == done


# --- targets ---


def test_an_adapter_without_target_mode_says_so() -> None:
    bench = Bench(ALL_FUNCTIONS & ~SmbusFunctions.TARGET)
    with pytest.raises(Unavailable, match="no target mode"):
        MockSmbusTarget(bench.node, bench.bus, 0x12)


def test_a_target_takes_whole_writes_and_refuses_more_when_nobody_empties_it(
    bench: Bench,
) -> None:
    target = MockSmbusTarget(bench.node, bench.bus, 0x12)
    found: list[Any] = []
    for count in range(FRAMES_LIMIT + 3):
        transfer = SmbusTransfer(
            address=0x12, kind=SmbusKind.WRITE_BLOCK, command=0x0F, data=bytes([count])
        )
        bench.segment.submit(transfer, bench.world.reactor.now_ns() + 10**10, found.append)
    bench.world.run_until(lambda: len(found) == FRAMES_LIMIT + 3)
    assert [type(value) for value in found[-3:]] == [Absent] * 3
    frames = target.receive()
    assert frames[0] == bytes.fromhex("0f0100")
    assert len(frames) == FRAMES_LIMIT
    assert target.receive() == []
    target.close()


def test_a_sensor_that_is_stuck_goes_on_answering(bench: Bench) -> None:
    sensor = Tmp75(0x48, temp_mdegc=30_000)
    bench.bus.attach(sensor)
    fields = {"address": 0x48, "kind": SmbusKind.READ_WORD, "command": 0}
    found: list[Any] = []

    def read() -> bytes:
        found.clear()
        transfer = SmbusTransfer(**fields)  # type: ignore[arg-type]
        bench.segment.submit(transfer, bench.world.reactor.now_ns() + 10**10, found.append)
        bench.world.run_until(lambda: bool(found))
        value: bytes = found[0]
        return value

    first = read()
    sensor.frozen, sensor.temp_mdegc = True, 90_000
    assert read() == first
    sensor.frozen = False
    assert read() != first
