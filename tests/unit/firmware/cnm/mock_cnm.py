"""One CNM on the virtual kernel: the real init and agent on mock ports, and a card made of the
real endpoint and transfers, driven by the test."""

import io
import tarfile
from collections.abc import Callable

from firmware.board_types import Module
from firmware.cnm.agent import Agent, AgentPorts, build_agent
from firmware.cnm.config import CnmConfig, CnmTiming
from firmware.cnm.init import Init, InitPorts, build_init
from firmware.loop import Loop
from hal.mock.blobs import MockBlobs
from hal.mock.disk import Disk
from hal.mock.entropy import MockEntropy
from hal.mock.files import MockFiles
from hal.mock.kernel import VirtualKernel
from hal.mock.line import MockLine
from hal.mock.program import Launch
from hal.mock.runtime import MockRuntime
from hal.mock.slot import Slot
from hal.mock.spawner import MockSpawner
from hal.mock.trees import MockTrees
from hal.mock.window import MockWindowPair
from hal.ports import ByteStream, Process, ProcessSpec, Usage
from tests.unit.firmware.cnm.card_side import SECOND, CardSide

INIT, AGENT = "firmware.cnm.init", "firmware.cnm.agent"
HALF_BYTES = 8 << 20
CONFIG = CnmConfig(
    id="cnm0",
    slot=0,
    vendor_id=0x4150,
    state_dir="/state",
    run_dir="/run",
    cgroup="/apf/mock/cnm0",
    mc="mock:cnm0-mc?side=b",
    agent="mock:cnm0-agent?side=b",
    module=Module(
        arch="amd64",
        cores_milli=4000,
        memory_bytes=1 << 30,
        nvme_bytes=1 << 34,
        link_mbit=1000,
        runtimes=("oci", "process"),
        labels={"rack": "3"},
        accelerators=(),
    ),
    timing=CnmTiming(shutdown_ms=1000),
)


def layer(files: dict[str, bytes]) -> bytes:
    """An image layer: a tar of these files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o755
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


class MockCnm:
    """Registers the two programs and wires the links; `kernel.slots[0].switch_on()` boots it."""

    def __init__(self, kernel: VirtualKernel, config: CnmConfig = CONFIG) -> None:
        self.kernel, self.config = kernel, config
        self.lines = {
            name: MockLine(kernel, f"cnm0-{name}", baud=921_600) for name in ("mc", "agent")
        }
        self.window = MockWindowPair(kernel, "cnm0", ab_bytes=HALF_BYTES)
        self.slot = kernel.add_slot(Slot(kernel, slot=0, cnm_id="cnm0", program=INIT))
        self.init: Init | None = None
        self.agent: Agent | None = None
        self.agents = 0
        self.halted: list[str] = []
        self.log: list[str] = []
        kernel.register_program(INIT, self._init_program)
        kernel.register_program(AGENT, self._agent_program)

    def _init_program(self, launch: Launch) -> None:
        node, slot = launch.node, self.slot
        loop = Loop(node.clock)
        launch.kernel.attach(node.name, loop)
        spawner = MockSpawner(node, slot)

        def start_agent(on_exit: Callable[[int], None]) -> tuple[ByteStream, Process]:
            stream, fd = spawner.stream_pair()
            spec = ProcessSpec(argv=["python", "-m", AGENT], pass_fds=(fd,))
            return stream, spawner.spawn(spec, on_exit)

        def halt(text: str) -> None:
            self.halted.append(text)
            launch.exit(70)

        init = self.init = build_init(
            self.config,
            InitPorts(
                reactor=loop,
                entropy=MockEntropy(node),
                open_mc=lambda: self.lines["mc"].open("b", node),
                start_agent=start_agent,
                runtimes={name: MockRuntime(node, slot, name=name) for name in ("oci", "process")},
                files=MockFiles(slot.disk, "state"),
                logs=MockFiles(slot.disk, "state/logs"),
                open_output=launch.kernel.open_stream,
                node_usage=lambda: Usage(cpu_us=0, memory_bytes=1 << 20),
                window_tx_bytes=HALF_BYTES,
                window_rx_bytes=HALF_BYTES,
                halt=halt,
                log=self.log.append,
            ),
        )
        launch.on_signal = lambda _number: init.stop(lambda: launch.exit(0))
        init.start()

    def _agent_program(self, launch: Launch) -> None:
        node, disk = launch.node, self.slot.disk
        loop = Loop(node.clock)
        launch.kernel.attach(node.name, loop)
        self.agents += 1
        self.agent = build_agent(
            self.config,
            AgentPorts(
                reactor=loop,
                entropy=MockEntropy(node),
                open_link=lambda: self.lines["agent"].open("b", node),
                init_stream=launch.kernel.open_stream(launch.fds[0]),
                window=self.window.open_window("b"),
                doorbell=self.window.open_doorbell("b", node),
                blobs=MockBlobs(node, disk),
                trees=MockTrees(node, disk),
                files=MockFiles(disk, "state"),
                logs=MockFiles(disk, "state/logs"),
                path_of=lambda path: f"/state/{path}",
                overlay=None,
                ended=lambda _text: launch.exit(1),
                log=self.log.append,
            ),
        )
        self.agent.start()


class VirtualWorld:
    """The virtual kernel, as a `card_side.World`."""

    def __init__(self, cnm: MockCnm) -> None:
        self.cnm = cnm
        self.reactor = Loop(cnm.kernel.node("card").clock)
        self.node = cnm.kernel.attach("card", self.reactor)

    def run_until(self, predicate: Callable[[], bool], limit_s: float = 20) -> None:
        assert self.cnm.kernel.run_until(predicate, int(limit_s * SECOND)), (
            f"nothing came of it in {limit_s} s; log: {self.cnm.log}"
        )

    def run_for(self, seconds: float) -> None:
        self.cnm.kernel.run_for(int(seconds * SECOND))


def mock_card(cnm: MockCnm) -> CardSide:
    """A card at the other end of this CNM's links and window."""
    world = VirtualWorld(cnm)
    return CardSide(
        world,
        entropy=MockEntropy(world.node),
        open_mc=lambda: cnm.lines["mc"].open("a", world.node),
        open_agent=lambda: cnm.lines["agent"].open("a", world.node),
        blobs=MockBlobs(world.node, Disk(cnm.kernel, "card disk")),
        window=cnm.window.open_window("a"),
        doorbell=cnm.window.open_doorbell("a", world.node),
        cnm=cnm,
    )
