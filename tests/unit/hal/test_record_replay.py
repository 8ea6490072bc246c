"""What was recorded on a port plays back, call for call, and what differs is told by its line.

Each scenario is run on the mock with a recorder around it, then on the file alone, in a world
that has none of the devices; both runs must see the same.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hal.cxl_ports import CxlCommand, CxlReply, Disabled
from hal.errors import HalError, LinkDown, Refused, Unavailable
from hal.mock.cxl_device import MockCxlDevice
from hal.mock.line import MockLine
from hal.mock.pci_edu import MockEdu
from hal.mock.slot import Slot
from hal.mock.smbus_bus import MockSmbusBus
from hal.mock.window import MockWindowPair
from hal.pci_ports import InterruptKind, PciAddress
from hal.ports import Event, PowerAction, PowerRequest, SlotState
from hal.record import Recorder
from hal.record_values import decode, encode
from hal.registry import Registry, World, parse_spec
from hal.replay import Recording, ReplayMismatch
from hal.smbus_ports import SmbusKind, SmbusTransfer
from tests.contract.edu import BUFFER, DMA_BITS, FACTORIAL, IDS, Edu
from tests.contract.results import Result, soon
from tests.contract.worlds import RealWorld, VirtualWorld

Scenario = Callable[[Registry, VirtualWorld, str], Any]


def registry(world: VirtualWorld, recorder: Recorder | None = None) -> tuple[Registry, World]:
    node = world.kernel.node("suite")
    openers = World(reactor=world.reactor, node=node)
    made = Registry(openers) if recorder is None else Registry(openers, wrap=recorder.wrap)
    return made, openers


def record(
    path: Path, scenario: Scenario, spec: str, prepare: Callable[[VirtualWorld], None]
) -> Any:
    world = VirtualWorld()
    prepare(world)
    recorder = Recorder(path, world.reactor.now_ns)
    seen = scenario(registry(world, recorder)[0], world, spec)
    recorder.close()
    assert recorder.ended == "closed"
    return seen


def replay(path: Path, scenario: Scenario) -> Any:
    """In a world without any device."""
    world = VirtualWorld()
    made, openers = registry(world)
    seen = scenario(made, world, f"replay:{path}")
    openers.replays[str(path)].check_finished()
    assert openers.replays[str(path)].finished
    return seen


def both(
    tmp_path: Path, scenario: Scenario, spec: str, prepare: Callable[[VirtualWorld], None]
) -> Any:
    path = tmp_path / "recording.jsonl"
    recorded = record(path, scenario, spec, prepare)
    assert replay(path, scenario) == recorded
    return recorded


def nested(depth: int) -> Any:
    return [nested(depth - 1)] if depth else None


def edit(path: Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    change(lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


# --- one scenario for each port ---


def add_cxl(world: VirtualWorld) -> None:
    device = world.kernel.cxl.add_device(MockCxlDevice(world.kernel, "mem0"))
    device.lacks.add(0x4200)


def use_cxl(made: Registry, world: VirtualWorld, spec: str) -> Any:
    port = made.open_cxl(spec)
    seen: list[Any] = [port.info, tuple(port.opcodes())]
    for opcode in (0x4000, 0x4200):
        result: Result[CxlReply] = Result()
        port.submit(CxlCommand(opcode=opcode), soon(world), result)
        world.run_until(lambda result=result: result.came)  # type: ignore[misc]
        value = result.values[0]
        seen.append((type(value), str(value)) if isinstance(value, HalError) else value)
    port.close()
    return seen


def test_a_cxl_device(tmp_path: Path) -> None:
    seen = both(tmp_path, use_cxl, "mock:mem0", add_cxl)
    assert len(seen[2].payload) == 0x45
    assert seen[3][0] is Disabled


def add_line(world: VirtualWorld) -> None:
    line = world.kernel.add_line(MockLine(world.kernel, "line", baud=115_200))
    far = line.open("b", world.kernel.node("suite"))

    def echo(events: Event) -> None:
        if events & Event.HANGUP:
            world.reactor.unwatch(far.handle)
            return
        far.write(far.read().upper())

    world.reactor.watch(far.handle, Event.READ, echo)
    world.kernel.after(2_000_000_000, line.hang_up)


def use_line(made: Registry, world: VirtualWorld, spec: str) -> Any:
    """As `firmware.link` does: reads are for when the handle is ready."""
    stream = made.open_stream(spec)
    seen = bytearray()
    ended: list[str] = []

    def ready(events: Event) -> None:
        try:
            seen.extend(stream.read())
        except LinkDown as exc:
            ended.append(str(exc))
            world.reactor.unwatch(stream.handle)

    world.reactor.watch(stream.handle, Event.READ, ready)
    assert stream.write(b"hello") == 5
    world.run_until(lambda: len(seen) == 5)
    stream.write(memoryview(b"again"))
    world.run_until(lambda: bool(ended))
    stream.close()
    return bytes(seen), ended


def test_a_byte_stream_that_hangs_up(tmp_path: Path) -> None:
    seen, ended = both(tmp_path, use_line, "mock:line?side=a", add_line)
    assert seen == b"HELLOAGAIN"
    assert len(ended) == 1


def add_window(world: VirtualWorld) -> None:
    pair = world.kernel.add_window(MockWindowPair(world.kernel, "cnm0", ab_bytes=4096))
    far, bell = pair.open_window("b"), pair.open_doorbell("b", world.kernel.node("suite"))

    def heard(_events: Event) -> None:
        bell.clear()
        if far.acquire(0):
            far.write(64, bytes(far.read(64, 5))[::-1])
            far.publish(0, far.acquire(0) + 1)
            bell.ring()

    world.reactor.watch(bell.handle, Event.READ, heard)


def use_window(made: Registry, world: VirtualWorld, spec: str) -> Any:
    opened: Result[Any] = Result()
    made.submit_open_window(spec, 0, soon(world), opened)
    window, bell = opened.wait(world)
    rung: list[int] = []

    def heard(_events: Event) -> None:
        bell.clear()
        rung.append(window.acquire(0))

    world.reactor.watch(bell.handle, Event.READ, heard)
    window.write(64, b"abcde")
    window.publish(0, 7)
    bell.ring()
    world.run_until(lambda: bool(rung))
    data = window.read(64, 5)
    assert isinstance(data, memoryview)
    with pytest.raises(Refused):
        window.write(1 << 20, b"x")
    world.reactor.unwatch(bell.handle)
    window.close()
    bell.close()
    return window.tx_bytes, rung, bytes(data)


def test_a_window_with_its_doorbell(tmp_path: Path) -> None:
    assert both(tmp_path, use_window, "mock:cnm0?side=a", add_window) == (4096, [8], b"edcba")


def add_slot(world: VirtualWorld) -> None:
    world.kernel.register_program("cnm-init", lambda launch: None)
    slot = world.kernel.add_slot(Slot(world.kernel, slot=0, cnm_id="cnm0"))
    world.kernel.after(3_000_000_000, slot.lose_power)


def use_power(made: Registry, world: VirtualWorld, spec: str) -> Any:
    power = made.open_power(spec)
    changes: list[SlotState] = []
    power.on_change(changes.append)
    seen: list[Any] = []
    for slot, action in ((0, PowerAction.READ), (0, PowerAction.ON), (9, PowerAction.READ)):
        result: Result[SlotState] = Result()
        power.submit(PowerRequest(slot=slot, action=action), soon(world), result)
        world.run_until(lambda result=result: result.came)  # type: ignore[misc]
        seen.append(str(result.values[0]))
    world.run_until(lambda: any(not state.power_good for state in changes))
    return seen, changes


def test_power_with_a_change_by_itself(tmp_path: Path) -> None:
    _seen, changes = both(tmp_path, use_power, "mock:power", add_slot)
    assert not changes[-1].power_good


def add_edu(world: VirtualWorld) -> None:
    world.kernel.pci.add(MockEdu(world.kernel, "edu", "0000:01:00.0"))


def use_edu(made: Registry, world: VirtualWorld, spec: str) -> Any:
    function = made.open_function(spec)
    assert function.read_config(0, 4) == IDS
    mmio = function.map(0)
    edu, size = Edu(mmio), mmio.size_bytes
    regions = tuple(function.regions())
    [interrupt] = function.interrupts(InterruptKind.MSI, 1)
    cleared: list[int] = []
    world.reactor.watch(interrupt.handle, Event.READ, lambda _e: cleared.append(interrupt.clear()))
    edu.irq_when_computed(True)
    mmio.write32(FACTORIAL, 5)
    world.run_until(lambda: sum(cleared) > 0)
    acknowledged = edu.acknowledge()
    buffer = function.dma(8192, address_bits=DMA_BITS)
    buffer.view[:16] = b"sixteen bytes..."
    edu.send(world, buffer, 0, 16)
    edu.fetch(world, buffer.iova + 4096, 16)
    fetched = bytes(buffer.view[4096:4112])
    with pytest.raises(Refused):
        mmio.read32(2)
    reset: Result[None] = Result()
    function.submit_reset(soon(world), reset)
    reset.wait(world)
    world.reactor.unwatch(interrupt.handle)
    interrupt.close()
    buffer.close()
    mmio.close()
    function.close()
    return function.address, regions, size, acknowledged, fetched


def test_a_pci_function_with_interrupts_and_dma(tmp_path: Path) -> None:
    seen = both(tmp_path, use_edu, "mock:edu", add_edu)
    assert seen[2:] == (1 << 20, 1, b"sixteen bytes...")
    text = (tmp_path / "recording.jsonl").read_text()
    assert str(BUFFER) in text, "the device's buffer was named in a write"


def add_smbus(world: VirtualWorld) -> None:
    world.kernel.add_smbus(MockSmbusBus(world.kernel, "board"))


def use_smbus(made: Registry, world: VirtualWorld, spec: str) -> Any:
    segment = made.open_smbus(spec)
    result: Result[bytes] = Result()
    transfer = SmbusTransfer(address=0x48, kind=SmbusKind.READ_WORD, command=1)
    segment.submit(transfer, soon(world), result)
    world.run_until(lambda: result.came)
    freed: Result[None] = Result()
    segment.recover(soon(world), freed)
    world.run_until(lambda: freed.came)
    segment.close()
    return segment.capabilities, str(result.values[0]), str(freed.values[0])


def test_a_smbus_segment(tmp_path: Path) -> None:
    seen = both(tmp_path, use_smbus, "mock:board", add_smbus)
    assert "0x48" in seen[1], "nobody is there"


# --- what differs ---


def test_a_call_that_differs_is_told_with_line_and_both_calls(tmp_path: Path) -> None:
    path = tmp_path / "cxl.jsonl"
    record(path, use_cxl, "mock:mem0", add_cxl)

    def ask_for_another_opcode(made: Registry, world: VirtualWorld, spec: str) -> None:
        port = made.open_cxl(spec)
        port.opcodes()
        with pytest.raises(ReplayMismatch) as caught:
            port.submit(CxlCommand(opcode=0x4100), soon(world), Result())
        for part in ("cxl.jsonl:4", "wanted submit", "16384", "found submit", "16640"):
            assert part in str(caught.value)
        with pytest.raises(ReplayMismatch, match=r"cxl\.jsonl:4"):
            port.opcodes()
        port.close()

    world = VirtualWorld()
    made, openers = registry(world)
    ask_for_another_opcode(made, world, f"replay:{path}")
    assert not openers.replays[str(path)].finished


def test_calls_that_are_not_made_are_told_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "cxl.jsonl"
    record(path, use_cxl, "mock:mem0", add_cxl)
    world = VirtualWorld()
    made, openers = registry(world)
    made.open_cxl(f"replay:{path}").opcodes()
    with pytest.raises(ReplayMismatch, match=r"cxl\.jsonl:4: wanted submit.*found the end"):
        openers.replays[str(path)].check_finished()


def test_a_call_too_many_is_told(tmp_path: Path) -> None:
    path = tmp_path / "cxl.jsonl"
    record(path, use_cxl, "mock:mem0", add_cxl)
    world = VirtualWorld()
    made, _ = registry(world)
    use_cxl(made, world, f"replay:{path}")
    with pytest.raises(Unavailable, match=r"no \(further\) cxl"):
        made.open_cxl(f"replay:{path}")
    with pytest.raises(Unavailable, match="only: cxl"):
        made.open_smbus(f"replay:{path}")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda lines: lines.insert(0, {"recording": 2}), r":1: no recording of version 1"),
        (lambda lines: lines[1].update(open="nothing"), r":2: unknown port 'nothing'"),
        (lambda lines: lines[2].update(root=99), r":3: root 99: no line before it"),
        (lambda lines: lines[1]["objects"].pop(), r":2: want the objects cxl of port cxl"),
        (lambda lines: lines[1]["objects"][0].update(id="1"), r":2: want a number .* as id"),
        (lambda lines: lines[1]["objects"][0].update(properties=[]), r":2: .*properties of a cxl"),
        (lambda lines: lines[1]["objects"][0]["properties"].clear(), r":2: want info"),
        (lambda lines: lines[2].update(args=7), r":3: want an object as args"),
        (lambda lines: lines[2].update(n=[]), r":3: want a number from 0 on as n"),
        (lambda lines: lines[2].update(memory=[{"id": 1, "at": -1}]), r":3: .* as at, found -1"),
        (lambda lines: lines[2].update(done=2), r":3: want one of open, .*found call, done"),
        (lambda lines: lines[2].update(result=nested(40)), r":3: want at most 32 lists"),
        (lambda lines: lines.__delitem__(slice(1, None)), "nothing was opened"),
    ],
)
def test_a_file_that_is_no_recording_is_refused_with_its_line(
    tmp_path: Path, change: Callable[[list[dict[str, Any]]], None], error: str
) -> None:
    path = tmp_path / "bad.jsonl"
    record(path, use_cxl, "mock:mem0", add_cxl)
    edit(path, change)
    with pytest.raises(Refused, match=error):
        Recording(path)


def test_a_file_that_asks_for_endless_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "edu.jsonl"
    record(path, use_edu, "mock:edu", add_edu)

    def swell(lines: list[dict[str, Any]]) -> None:
        [buffer] = [
            item
            for line in lines
            for item in line.get("objects", [])
            if line.get("call") == "dma" and item["kind"] == "dma"
        ]
        buffer["properties"]["size_bytes"] = 1 << 62

    edit(path, swell)
    with pytest.raises(Refused, match="B of memory in all its buffers"):
        Recording(path)


def test_json_nested_without_end_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "deep.jsonl"
    path.write_bytes(b'{"recording": 1}\n' + b"[" * 200_000)
    with pytest.raises(Refused, match=":2: not JSON"):
        Recording(path)


def test_memory_outside_of_its_buffer_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "cxl.jsonl"
    record(path, use_cxl, "mock:mem0", add_cxl)
    change = {"id": 1, "at": 0, "hex": "00"}
    edit(path, lambda lines: lines[2].update(memory=[change]))
    world = VirtualWorld()
    made, _ = registry(world)
    port = made.open_cxl(f"replay:{path}")
    with pytest.raises(Refused, match=":3: 1 B at 0 of object 1"):
        port.opcodes()


def test_what_a_window_read_is_refused_with_its_line_when_it_is_no_bytes(tmp_path: Path) -> None:
    path = tmp_path / "window.jsonl"
    record(path, use_window, "mock:cnm0?side=a", add_window)

    def spoil(lines: list[dict[str, Any]]) -> None:
        [line] = [line for line in lines if line.get("call") == "read"]
        line["result"] = 7

    edit(path, spoil)
    with pytest.raises(Refused, match=r"window\.jsonl:\d+: want bytes as what was read, found 7"):
        replay(path, use_window)


def test_a_torn_last_line_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "torn.jsonl"
    record(path, use_cxl, "mock:mem0", add_cxl)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(Refused, match="not JSON"):
        Recording(path)


def test_a_type_that_is_no_ports_is_not_made_from_a_file() -> None:
    for value in (
        {"is": "Path", "args": ["/"]},
        {"enum": "Signal", "value": 1},
        {"error": "OSError", "text": ""},
    ):
        with pytest.raises(Refused, match="no value of a port"):
            decode(value)


def test_values_come_back_as_they_were() -> None:
    request = PowerRequest(slot=3, action=PowerAction.OFF)
    for value in (None, True, 7, "x", b"\0\xff", request, (request, None), Refused("why")):
        again = decode(json.loads(json.dumps(encode(value))))
        assert (type(again), str(again)) == (type(value), str(value))
    with pytest.raises(TypeError, match="can't hold"):
        encode(object())


# --- the recorder itself ---


def test_a_full_file_ends_the_recording_and_not_the_port(tmp_path: Path) -> None:
    world = VirtualWorld()
    add_cxl(world)
    path = tmp_path / "small.jsonl"
    recorder = Recorder(path, world.reactor.now_ns, limit_bytes=1200)
    made, _ = registry(world, recorder)
    seen = use_cxl(made, world, "mock:mem0")
    assert len(seen) == 4
    assert recorder.ended == "full"
    assert path.stat().st_size <= 1200
    assert not Recording(path).complete


def test_a_file_that_cannot_be_made_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="recording to"):
        Recorder(tmp_path / "none" / "x.jsonl", lambda: 0)


def test_a_disk_that_fills_up_ends_the_recording_and_not_the_port() -> None:
    world = VirtualWorld()
    add_cxl(world)
    recorder = Recorder(Path("/dev/full"), world.reactor.now_ns)
    made, _ = registry(world, recorder)
    assert len(use_cxl(made, world, "mock:mem0")) == 4
    assert "No space" in recorder.ended


def test_a_recording_is_played_on_a_real_loop_too(tmp_path: Path) -> None:
    """The handle is then a descriptor that epoll waits on."""
    path = tmp_path / "line.jsonl"
    recorded = record(path, use_line, "mock:line?side=a", add_line)
    world = RealWorld()
    openers = World(reactor=world.reactor)
    seen = use_line(Registry(openers), world, f"replay:{path}")  # type: ignore[arg-type]
    openers.replays[str(path)].check_finished()
    world.close()
    assert seen == recorded


class WritesWhileAsked:
    """A function whose device writes into our memory inside of a call, and before another."""

    address = PciAddress.parse("0000:01:00.0")
    iova, size_bytes = 0x1000, 4096

    def __init__(self) -> None:
        self.memory = bytearray(self.size_bytes)

    @property
    def view(self) -> memoryview:
        return memoryview(self.memory)

    def dma(self, size_bytes: int, address_bits: int = 64) -> "WritesWhileAsked":
        return self

    def read_config(self, offset: int, width: int) -> int:
        self.memory[16:20] = b"done"
        return 1

    def close(self) -> None:
        """Of both."""


def test_what_a_device_wrote_during_a_call_is_there_when_it_returns(tmp_path: Path) -> None:
    path = tmp_path / "dma.jsonl"
    world = VirtualWorld()
    recorder = Recorder(path, world.reactor.now_ns)
    spec = parse_spec("mock:writer")

    def use(function: Any) -> bytes:
        buffer = function.dma(4096)
        assert function.read_config(0, 4) == 1
        return bytes(buffer.view[16:20])

    assert use(recorder.wrap("pci_function", spec, WritesWhileAsked())) == b"done"
    recorder.close()
    made, _ = registry(world)
    assert use(made.open_function(f"replay:{path}")) == b"done"


class RefusesAtOnce:
    """Power that raises instead of completing, which no port of ours does but a wrong call may."""

    def submit(
        self, request: PowerRequest, deadline_ns: int, done: Callable[[object], None]
    ) -> None:
        raise Refused(f"slot {request.slot}: not on this card")


def test_a_request_that_is_refused_by_raising_is_refused_so_again(tmp_path: Path) -> None:
    path = tmp_path / "power.jsonl"
    world = VirtualWorld()
    recorder = Recorder(path, world.reactor.now_ns)
    request = PowerRequest(slot=9, action=PowerAction.ON)
    live = recorder.wrap("power", parse_spec("mock"), RefusesAtOnce())
    with pytest.raises(Refused, match="slot 9"):
        live.submit(request, 1000, Result())
    recorder.close()
    made, openers = registry(world)
    played = made.open_power(f"replay:{path}")
    with pytest.raises(Refused, match="slot 9"):
        played.submit(request, 2000, Result())
    openers.replays[str(path)].check_finished()


def test_a_completion_of_no_call_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "cxl.jsonl"
    record(path, use_cxl, "mock:mem0", add_cxl)
    edit(path, lambda lines: lines[4].update(done=77))
    world = VirtualWorld()
    made, _ = registry(world)
    with pytest.raises(Refused, match=r"cxl\.jsonl:5: completes line 77"):
        use_cxl(made, world, f"replay:{path}")


def test_after_close_of_the_recorder_the_ports_go_on_unrecorded(tmp_path: Path) -> None:
    world = VirtualWorld()
    add_cxl(world)
    path = tmp_path / "cxl.jsonl"
    recorder = Recorder(path, world.reactor.now_ns)
    made, _ = registry(world, recorder)
    port = made.open_cxl("mock:mem0")
    recorder.close()
    recorder.close()
    size = path.stat().st_size
    assert port.opcodes()
    assert path.stat().st_size == size


def test_a_port_that_cannot_be_recorded_is_handed_through(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "x.jsonl", lambda: 0)
    item = object()
    assert recorder.wrap("clock", parse_spec("mock"), item) is item


def test_a_recorded_port_has_what_its_port_has_and_nothing_else(tmp_path: Path) -> None:
    world = VirtualWorld()
    add_cxl(world)
    recorder = Recorder(tmp_path / "x.jsonl", world.reactor.now_ns)
    made, _ = registry(world, recorder)
    port: Any = made.open_cxl("mock:mem0")
    with pytest.raises(AttributeError, match="recorded cxl has no 'ioctl'"):
        port.ioctl(1)
    with pytest.raises(TypeError, match="deadline_ns"):
        port.submit(CxlCommand(opcode=1))


class GoneWithItsFunction(WritesWhileAsked):
    """Its buffers can't be looked at any more once the function is closed."""

    closed = False

    @property
    def view(self) -> memoryview:
        assert not self.closed
        return super().view

    def close(self) -> None:
        self.closed = True


def test_memory_of_a_function_that_was_closed_first_is_let_alone(tmp_path: Path) -> None:
    world = VirtualWorld()
    recorder = Recorder(tmp_path / "order.jsonl", world.reactor.now_ns)
    function = recorder.wrap("pci_function", parse_spec("mock:writer"), GoneWithItsFunction())
    buffer = function.dma(4096)
    function.close()
    buffer.close()


def test_a_value_that_no_port_has_is_noted_and_does_no_harm(tmp_path: Path) -> None:
    class Odd:
        def submit(self, request: object, deadline_ns: int, done: Callable[[object], None]) -> None:
            done(object())

    path = tmp_path / "odd.jsonl"
    world = VirtualWorld()
    recorder = Recorder(path, world.reactor.now_ns)
    result: Result[Any] = Result()
    recorder.wrap("power", parse_spec("mock"), Odd()).submit(None, 5, result)
    recorder.close()
    assert result.came
    made, _ = registry(world)
    with pytest.raises(Refused, match="opaque"):
        made.open_power(f"replay:{path}").submit(None, 5, Result())  # type: ignore[arg-type]
