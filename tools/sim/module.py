"""One module of the simulated card: the real init and agent on mock ports (DESIGN D7).

What a test may bend is an attribute: the hello's fields, the claimed module, a dead window. What
runs is always the real firmware.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from firmware.board_types import Board
from firmware.board_types import Slot as BoardSlot
from firmware.cnm.agent import Agent, AgentPorts, build_agent
from firmware.cnm.config import CnmConfig, CnmTiming
from firmware.cnm.init import Init, InitPorts, build_init
from firmware.loop import Loop
from hal.errors import HalError
from hal.mock.blobs import MockBlobs
from hal.mock.entropy import MockEntropy
from hal.mock.files import MockFiles
from hal.mock.kernel import VirtualKernel
from hal.mock.line import MockLine
from hal.mock.node import Node
from hal.mock.program import Launch
from hal.mock.runtime import MockRuntime
from hal.mock.slot import Slot
from hal.mock.spawner import MockSpawner
from hal.mock.trees import MockTrees
from hal.mock.window import MockWindowPair
from hal.ports import ByteStream, Done, Doorbell, FenceKind, Process, ProcessSpec, Usage, Window
from protocol.apf import HelloRequest

BAUD: Final = 921_600  # as on the local board
LINKS: Final = ("mc", "agent")


class SimModule:
    """A slot, its cables, its window, and the firmware that boots in it."""

    def __init__(self, kernel: VirtualKernel, board: Board, slot: BoardSlot) -> None:
        self.kernel = kernel
        self.id = slot.id
        self.config = CnmConfig(
            id=slot.id,
            slot=slot.slot,
            vendor_id=board.vendor_id,
            state_dir="/state",
            run_dir="/run",
            cgroup=f"/apf/mock/{slot.id}",
            mc=f"mock:{slot.id}-mc?side=b",
            agent=f"mock:{slot.id}-agent?side=b",
            module=slot.module,
            timing=CnmTiming(
                heartbeat_ms=board.timing.heartbeat_ms,
                telemetry_ms=board.timing.telemetry_ms,
                stop_ms=board.timing.stop_ms,
                clock_rate_ppm=board.timing.clock_rate_ppm,
                shutdown_ms=1000,
            ),
        )
        self.lines = {
            name: kernel.add_line(MockLine(kernel, f"{slot.id}-{name}", baud=BAUD))
            for name in LINKS
        }
        self.half_bytes = slot.window_bytes // 2
        self.window = kernel.add_window(MockWindowPair(kernel, slot.id, ab_bytes=self.half_bytes))
        self.slot = kernel.add_slot(
            Slot(kernel, slot=slot.slot, cnm_id=slot.id, program=f"init.{slot.id}")
        )
        self.hello: dict[str, Any] = {}  # fields of the MC's hello that lie
        self.spawner: MockSpawner | None = None  # of the init that runs
        self.cannot_spawn: str | None = None  # why no agent can be started (fault E6)
        self.at_boot: Callable[[Init], None] | None = None  # what a fault bends in each new init
        # what becomes of an exception that leaves a handler: False raises it out of the world
        self.on_fault: Callable[[str, BaseException], bool] = lambda _node, _exc: False
        self.busy_milli = 0  # what all of the module uses, as its telemetry says
        self._busy_us = 0  # what its counter shows beside that
        self.init: Init | None = None
        self.agent: Agent | None = None
        self.agents = 0  # ever started
        self.halted: list[str] = []
        self.log: list[str] = []
        kernel.register_program(self.slot.program, self._init_program)
        kernel.register_program(f"agent.{slot.id}", self._agent_program)

    # --- what a test does to it ---

    @property
    def init_node(self) -> str:
        return f"{self.id}/init"

    @property
    def agent_node(self) -> str:
        return f"{self.id}/{self.id}"  # the last dotted part of "agent.<id>"

    def cut(self, on: bool = True, links: tuple[str, ...] = LINKS) -> None:
        """Bytes on these links vanish both ways; `cut(False)` mends them."""
        for name in links:
            self.lines[name].cut(on)

    def load(self, milli: int) -> None:
        """So much of it is used from now on; its counter goes on from where it is."""
        now_us = self.kernel.node(self.init_node).clock.now_ns() // 1000
        self._busy_us += now_us * (self.busy_milli - milli) // 1000
        self.busy_milli = milli

    def volume_file(self, volume: str, path: str) -> bytes | None:
        """A file of a volume on the hot tier, as the module's disk has it."""
        found = self.slot.disk.tree.find(f"state/volumes/{volume}/{path}")
        return getattr(found, "data", None)

    def write_volume(self, volume: str, path: str, data: bytes) -> None:
        """What a tenant does: change a file of its volume."""
        MockFiles(self.slot.disk, "state/volumes").write(f"{volume}/{path}", data)

    def leftovers(self) -> set[str]:
        """What of instances and volumes is on its disk and in its runtime."""
        files = MockFiles(self.slot.disk, "state")
        found = {
            f"{kind}/{name}" for kind in ("instances", "volumes") for name in files.names(kind)
        }
        return found | {f"runtime/{key}" for key in self.slot.instances}

    # --- the card's end ---

    def ports(self, node: Node) -> "SlotEnds":
        """The hardware of this slot as a daemon on `node` reaches it."""
        return SlotEnds(self, node)

    # --- programs ---

    def _init_program(self, launch: Launch) -> None:
        node, slot = launch.node, self.slot
        loop = Loop(node.clock, on_fault=lambda exc: self.on_fault(node.name, exc))
        launch.kernel.attach(node.name, loop)
        spawner = self.spawner = MockSpawner(node, slot)

        def start_agent(on_exit: Callable[[int], None]) -> tuple[ByteStream, Process]:
            spawner.refuse = self.cannot_spawn
            stream, fd = spawner.stream_pair()
            spec = ProcessSpec(argv=["python", f"agent.{self.id}"], pass_fds=(fd,))
            try:
                return stream, spawner.spawn(spec, on_exit)
            except HalError:  # as firmware.cnm.app does
                stream.close()
                raise

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
                runtimes={
                    name: MockRuntime(node, slot, name=name) for name in self.config.module.runtimes
                },
                files=MockFiles(slot.disk, "state"),
                logs=MockFiles(slot.disk, "state/logs"),
                open_output=launch.kernel.open_stream,
                node_usage=lambda: self._node_usage(node),
                window_tx_bytes=self.half_bytes,
                window_rx_bytes=self.half_bytes,
                halt=halt,
                log=self.log.append,
            ),
        )
        self._bend_hello(init)
        if self.at_boot is not None:
            self.at_boot(init)
        launch.on_signal = lambda _number: init.stop(lambda: launch.exit(0))
        init.start()

    def _bend_hello(self, init: Init) -> None:
        """A module that was built otherwise says so in its hello."""
        honest = init.endpoint._handlers[HelloRequest.OPCODE]

        def answer(request: Any) -> Any:
            reply = honest(request)
            return replace(reply, **self.hello) if self.hello else reply  # type: ignore[type-var]

        init.endpoint.serve(HelloRequest, answer)

    def _node_usage(self, node: Node) -> Usage:
        cpu_us = self._busy_us + node.clock.now_ns() // 1000 * self.busy_milli // 1000
        return Usage(cpu_us=cpu_us, memory_bytes=1 << 20)

    def _agent_program(self, launch: Launch) -> None:
        node, disk = launch.node, self.slot.disk
        loop = Loop(node.clock, on_fault=lambda exc: self.on_fault(node.name, exc))
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


class SlotEnds:
    """`firmware.inventory.CnmPorts` of one slot for one daemon."""

    def __init__(self, module: SimModule, node: Node) -> None:
        self._module, self._node = module, node
        self._post = node.poster()

    def open_mc(self) -> ByteStream:
        return self._module.lines["mc"].open("a", self._node)

    def open_agent(self) -> ByteStream:
        return self._module.lines["agent"].open("a", self._node)

    def open_window(self, deadline_ns: int, done: Done[tuple[Window, Doorbell]]) -> None:
        pair = self._module.window
        ends = pair.open_window("a"), pair.open_doorbell("a", self._node)
        self._post(lambda: done(ends))


def fence_by(modules: list[SimModule], kind: FenceKind) -> None:
    """How these slots can be fenced; to be set before the daemon reads them."""
    for module in modules:
        module.slot.fence = kind
