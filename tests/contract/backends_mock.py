"""The mock's rows. The factories get the loop of a virtual node; its clock leads to the kernel."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from hal.mock.blobs import MockBlobs
from hal.mock.disk import Disk
from hal.mock.entropy import MockEntropy
from hal.mock.files import MockFiles
from hal.mock.instance import Behaviour
from hal.mock.journal import MockJournal
from hal.mock.kernel import VirtualKernel
from hal.mock.line import MockLine
from hal.mock.node import Node
from hal.mock.power import MockPower
from hal.mock.program import Launch
from hal.mock.runtime import MockRuntime
from hal.mock.slot import Slot
from hal.mock.smbus import MockSmbusSegment
from hal.mock.smbus_bus import MockSmbusBus, Mux
from hal.mock.smbus_model import Register, RegisterModel
from hal.mock.spawner import MockSpawner
from hal.mock.trace_memory import MockTraceMemory
from hal.mock.tree import Dir, File, Link
from hal.mock.trees import MockTrees
from hal.mock.window import MockWindowPair
from hal.ports import Event, InstanceSpec, ProcessSpec, Reactor
from tests.contract import rigs
from tests.contract.backends_cxl import cxl, cxl_bus
from tests.contract.backends_pci import pci_bus, pci_function

WINDOW_BYTES: Final = 256 * 1024


def backends(port: str) -> list[rigs.Factory]:
    """The one mock backend of each port."""
    return [_FACTORIES[port]]


def _node(reactor: Reactor) -> Node:
    node: Node = reactor.clock.node  # type: ignore[attr-defined]
    return node


def _kernel(reactor: Reactor) -> VirtualKernel:
    return _node(reactor).kernel


def byte_stream(tmp_path: Path, reactor: Reactor) -> rigs.ByteStreamRig:
    node = _node(reactor)
    line = MockLine(node.kernel, "line", baud=921_600)
    return rigs.ByteStreamRig(a=line.open("a", node), b=line.open("b", node), hang_up=line.hang_up)


def window(tmp_path: Path, reactor: Reactor) -> rigs.WindowRig:
    pair = MockWindowPair(_kernel(reactor), "window", ab_bytes=WINDOW_BYTES)
    return rigs.WindowRig(a=pair.open_window("a"), b=pair.open_window("b"))


def doorbell(tmp_path: Path, reactor: Reactor) -> rigs.DoorbellRig:
    node = _node(reactor)
    pair = MockWindowPair(node.kernel, "window", ab_bytes=4096)
    return rigs.DoorbellRig(
        a=pair.open_doorbell("a", node),
        b=pair.open_doorbell("b", node),
        drop_b=lambda: pair.lose_peer("b"),
    )


def power(tmp_path: Path, reactor: Reactor) -> rigs.PowerRig:
    node = _node(reactor)
    kernel = node.kernel
    kernel.register_program("cnm-init", lambda launch: None)
    slot = kernel.add_slot(Slot(kernel, slot=0, cnm_id="cnm0"))
    return rigs.PowerRig(
        power=MockPower(node),
        slot=0,
        empty_slot=9,
        die=slot.lose_power,
        running=lambda: slot.init_node in kernel.programs.running,
    )


def smbus(tmp_path: Path, reactor: Reactor) -> rigs.SmbusRig:
    node = _node(reactor)
    bus = node.kernel.add_smbus(MockSmbusBus(node.kernel, "board"))
    device, other, behind = (_registers(address) for address in (0x41, 0x42, 0x43))
    device.registers[0x30] = Register(b"block", block=True)
    device.registers[0x31] = Register(bytes(range(60)), block=True)
    bus.attach(device)
    bus.attach(other)
    bus.attach(Mux(0x70))
    bus.attach(behind, path=((0x70, 2),))
    segment = MockSmbusSegment(node, bus)
    return rigs.SmbusRig(
        segment=segment,
        address=device.address,
        other=other.address,
        poke=device.poke,
        block_command=0x30,
        long_command=0x31,
        mux=0x70,
        behind=behind.address,
        close=segment.close,
    )


def _registers(address: int) -> RegisterModel:
    model = RegisterModel(address, pec=True)
    model.registers = {command: Register(b"\0\0") for command in range(0x10, 0x18)}
    model.registers |= {command: Register(b"\0") for command in range(0x18, 0x20)}
    return model


def clock(tmp_path: Path, reactor: Reactor) -> rigs.ClockRig:
    node = _node(reactor)
    handle = node.kernel.open_handle(node, None, rigs.nothing)
    return rigs.ClockRig(
        clock=node.clock, handle=handle.number, make_ready=lambda: handle.set(Event.READ)
    )


def entropy(tmp_path: Path, reactor: Reactor) -> rigs.EntropyRig:
    return rigs.EntropyRig(entropy=MockEntropy(_node(reactor)))


def trace_memory(tmp_path: Path, reactor: Reactor) -> rigs.TraceMemoryRig:
    kept = bytearray(rigs.TRACE_BYTES)
    return rigs.TraceMemoryRig(memory=MockTraceMemory(kept), reopen=lambda: MockTraceMemory(kept))


def files(tmp_path: Path, reactor: Reactor) -> rigs.FilesRig:
    return rigs.FilesRig(files=MockFiles(Disk(_kernel(reactor), "disk"), "state"))


def blobs(tmp_path: Path, reactor: Reactor) -> rigs.BlobsRig:
    node = _node(reactor)
    disk = Disk(node.kernel, "disk", capacity_bytes=64 << 20)
    return rigs.BlobsRig(
        blobs=MockBlobs(node, disk),
        open_fd=lambda data: node.kernel.open_file(data, node),
        reopen=lambda: MockBlobs(node, disk),
        full=lambda: 65 << 20,
    )


def trees(tmp_path: Path, reactor: Reactor) -> rigs.TreesRig:
    node = _node(reactor)
    disk = Disk(node.kernel, "disk")

    def listing(name: str) -> Mapping[str, tuple[str, int, bytes]]:
        out: dict[str, tuple[str, int, bytes]] = {}
        for path, entry in disk.tree.walk(f"trees/{name}"):
            if isinstance(entry, File):
                out[path] = ("file", entry.mode, entry.data)
            elif isinstance(entry, Link):
                out[path] = ("symlink", entry.mode, entry.target.encode())
            else:
                out[path] = ("dir", entry.mode, b"")
        return out

    def owners(name: str) -> Mapping[str, tuple[int, int, int]]:
        top = disk.tree.find(f"trees/{name}")
        assert isinstance(top, Dir)
        below = disk.tree.walk(f"trees/{name}")
        return {path: (e.uid, e.gid, e.mode) for path, e in ((".", top), *below)}

    return rigs.TreesRig(
        trees=MockTrees(node, disk),
        blobs=MockBlobs(node, disk),
        files=MockFiles(disk, "trees"),
        path=lambda name: f"/trees/{name}",
        listing=listing,
        owners=owners,
    )


def journal(tmp_path: Path, reactor: Reactor) -> rigs.JournalRig:
    node = _node(reactor)
    disk = Disk(node.kernel, "disk")
    opened: list[MockJournal] = []

    def open_store() -> MockJournal:
        opened.append(MockJournal(node, disk))
        return opened[-1]

    return rigs.JournalRig(
        open=open_store,
        crash=lambda: opened[-1]._died(),
        full=lambda: setattr(disk, "full", True),
        fail_sync=lambda: setattr(disk, "fail_sync", True),
    )


def spawner(tmp_path: Path, reactor: Reactor) -> rigs.SpawnerRig:
    node = _node(reactor)
    kernel = node.kernel
    count = iter(range(1_000_000))

    def exits(launch: Launch) -> None:
        kernel.after(1_000_000, lambda: launch.exit(int(launch.argv[1])))

    def echoes(launch: Launch) -> None:
        from firmware.loop import Loop

        loop = Loop(launch.node.clock)
        kernel.attach(launch.node.name, loop)
        stream = kernel.open_stream(launch.fds[0])

        def copy(events: Event) -> None:
            stream.write(stream.read())

        loop.watch(stream.handle, Event.READ, copy)

    kernel.register_program("exits", exits)
    kernel.register_program("for-ever", lambda launch: None)
    kernel.register_program("echoes", echoes)
    return rigs.SpawnerRig(
        spawner=MockSpawner(node, names=lambda program: f"{program}-{next(count)}"),
        exits_with=lambda status: ProcessSpec(argv=["exits", str(status)]),
        runs_for_ever=lambda: ProcessSpec(argv=["for-ever"]),
        echoes=lambda fd: ProcessSpec(argv=["echoes"], pass_fds=[fd]),
        absent=lambda: ProcessSpec(argv=["no-such-program"]),
    )


def runtime(tmp_path: Path, reactor: Reactor) -> rigs.RuntimeRig:
    node = _node(reactor)
    kernel = node.kernel
    slot = kernel.add_slot(Slot(kernel, slot=0, cnm_id="cnm0"))
    rules = kernel.behaviours
    rules.default = Behaviour(exec_results={"echo": (3, b"hello\n")})
    for status in range(256):
        rules.add(f"exit {status}", Behaviour(runs_ns=1_000_000, exit_status=status))
    rules.add("stubborn", Behaviour(ignores_term=True))
    rules.add("absent", Behaviour(start_error='exec: "absent": executable file not found'))
    rules.add("forks", Behaviour(processes=3))

    def spec(key: str, *argv: str) -> InstanceSpec:
        return InstanceSpec(key=key, argv=argv, env={})

    def alive(key: str) -> int:
        found = slot.instances.get(key)
        return found.behaviour.processes if found is not None and found.alive else 0

    return rigs.RuntimeRig(
        runtime=MockRuntime(node, slot),
        exits_with=lambda key, status: spec(key, "exit", str(status)),
        runs_for_ever=lambda key: spec(key, "for-ever"),
        ignores_term=lambda key: spec(key, "stubborn"),
        cannot_start=lambda key: spec(key, "absent"),
        forks=lambda key: spec(key, "forks"),
        exec_echo=["echo", "hello"],
        exec_for_ever=["for-ever"],
        alive=alive,
    )


_FACTORIES: Final[dict[str, Any]] = {
    factory.__name__: factory
    for factory in (
        byte_stream,
        window,
        doorbell,
        power,
        clock,
        entropy,
        trace_memory,
        files,
        blobs,
        trees,
        journal,
        spawner,
        runtime,
        pci_function,
        pci_bus,
        cxl,
        cxl_bus,
        smbus,
    )
}
