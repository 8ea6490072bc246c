"""One CNM on the virtual kernel: the real init and agent on mock ports, and a card made of the
real endpoint and transfers, driven by the test."""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from typing import Any

from firmware.board_types import Module
from firmware.cnm.agent import Agent, AgentPorts, build_agent
from firmware.cnm.config import CnmConfig, CnmTiming
from firmware.cnm.init import Init, InitPorts, build_init
from firmware.endpoint import Endpoint, RequestError, RequestRefused
from firmware.link import Link
from firmware.loop import MS, Loop
from firmware.transfer import TransferSender
from firmware.window import WindowChannel
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
from protocol.apf import (
    LAYOUT_HASH,
    Ctx,
    DeployReply,
    DeployRequest,
    Grant,
    Heartbeat,
    HelloRequest,
    InstanceState,
    InstanceStatus,
    InstanceTelemetry,
    RefusalReason,
    StartRequest,
    StatusChanged,
    StatusReply,
    StatusRequest,
    Telemetry,
)

SECOND = 1_000 * MS
CARD = b"C" * 16
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


class CardSide:
    """What a card's daemon would do on both links of one CNM."""

    def __init__(self, cnm: MockCnm, *, epoch: int = 1, card_uuid: bytes = CARD) -> None:
        kernel = cnm.kernel
        self.cnm, self.kernel = cnm, kernel
        self.card_uuid, self.epoch, self.boot_id = card_uuid, epoch, bytes(16)
        self.loop = Loop(kernel.node("card").clock)
        node = kernel.attach("card", self.loop)
        self.granting = False
        self.lease_ms = 5000
        self.heartbeats: list[Heartbeat] = []
        self.telemetry: list[Telemetry] = []
        self.usage: list[InstanceTelemetry] = []
        self.changes: list[StatusChanged] = []
        self.mc, self.agent = (
            Endpoint(
                self.loop,
                Link(
                    self.loop,
                    lambda name=name: cnm.lines[name].open("a", node),
                    name=name,
                    local_eid=8,
                ),
                entropy=MockEntropy(node),
                name=name,
            )
            for name in ("mc", "agent")
        )
        self.mc.on_notice(Heartbeat, self._on_heartbeat)
        self.mc.on_notice(Telemetry, self.telemetry.append)
        self.agent.on_notice(InstanceTelemetry, self.usage.append)
        self.agent.on_notice(StatusChanged, self.changes.append)
        self.blobs = MockBlobs(node, Disk(kernel, "card disk"))
        channel = WindowChannel(
            cnm.window.open_window("a"),
            cnm.window.open_doorbell("a", node),
            self.loop,
            MockEntropy(node),
        )
        self.transfers = TransferSender(
            self.agent, channel, self.blobs, self.loop, lambda: self.ctx, entropy=MockEntropy(node)
        )
        channel.attach()

    @property
    def ctx(self) -> Ctx:
        return Ctx(card_uuid=self.card_uuid, epoch=self.epoch, boot_id=self.boot_id)

    def _on_heartbeat(self, beat: Heartbeat) -> None:
        self.heartbeats.append(beat)
        if self.granting and beat.boot_id == self.boot_id:
            self.mc.notify(
                Grant(
                    card_uuid=self.card_uuid,
                    epoch=self.epoch,
                    boot_id=self.boot_id,
                    seq=beat.seq,
                    lease_ms=self.lease_ms,
                )
            )

    # --- waiting ---

    def until(self, predicate: Callable[[], object], limit_s: float = 20) -> None:
        assert self.kernel.run_until(lambda: bool(predicate()), int(limit_s * SECOND)), (
            f"nothing came of it in {limit_s} s; log: {self.cnm.log}"
        )

    def run(self, ms: float) -> None:
        self.kernel.run_for(int(ms * MS))

    def call(self, submit: Callable[[Callable[[Any], None]], None]) -> Any:
        got: list[Any] = []
        submit(got.append)
        self.until(lambda: got)
        return got[0]

    def ask(self, body: Any, endpoint: Endpoint | None = None, attempts: int = 20) -> Any:
        """The reply, or the error itself."""
        end = endpoint or self.agent
        return self.call(lambda done: end.request(body, done, attempts=attempts))

    def refusal(self, body: Any, endpoint: Endpoint | None = None) -> RefusalReason:
        answer = self.ask(body, endpoint)
        assert isinstance(answer, RequestRefused), answer
        return RefusalReason(answer.refusal.reason)

    # --- what a card does ---

    def hello(self, endpoint: Endpoint, layout: bytes = LAYOUT_HASH, version: int = 1) -> Any:
        return self.ask(
            HelloRequest(
                card_uuid=self.card_uuid,
                epoch=self.epoch,
                version_min=version,
                version_current=version,
                layout_hash=layout,
                software="test",
            ),
            endpoint,
        )

    def adopt(self) -> None:
        """Hello on both links, grants from now on, until a lease is held."""
        self.boot_id = self.hello(self.mc).boot_id
        assert self.hello(self.agent).boot_id == self.boot_id
        self.granting = True
        self.until(lambda: self.heartbeats[-1].lease_left_ms > 0)

    def put(self, data: bytes) -> bytes:
        digest = hashlib.sha256(data).digest()
        self.blobs.put(data)
        return digest

    def push(self, digest: bytes) -> None:
        error = self.call(lambda done: self.transfers.push(digest, done))
        assert error is None, error

    def spec(self, instance: str = "shop/web/0", **changes: Any) -> bytes:
        document = {
            "schema": "apf-spec/1",
            "workload": "shop",
            "component": "web",
            "instance": instance,
            "runtime": "process",
            "layers": [],
            "argv": ["web"],
            "env": {},
            **changes,
        }
        return self.put(json.dumps(document).encode())

    def deploy(self, spec: bytes, instance: str = "shop/web/0", g: int = 1) -> DeployReply:
        """Push what is missing until nothing is."""
        request = DeployRequest(ctx=self.ctx, instance=instance, generation=g, spec_digest=spec)
        for _ in range(10):
            reply = self.ask(request)
            assert not isinstance(reply, RequestError), reply
            if not reply.missing:
                return reply
            for digest in reply.missing:
                self.push(digest)
        raise AssertionError("it never has enough")

    def statuses(self) -> dict[str, InstanceStatus]:
        found, cursor = {}, 0
        while cursor != 0xFFFF:
            reply = self.ask(StatusRequest(cursor=cursor))
            assert isinstance(reply, StatusReply), reply
            found.update({entry.instance: entry for entry in reply.entries})
            cursor = reply.next_cursor
        return found

    def wait_state(self, state: InstanceState, instance: str = "shop/web/0") -> InstanceStatus:
        for _ in range(100):
            status = self.statuses().get(instance)
            if status is not None and status.state == state:
                return status
            self.run(50)
        raise AssertionError(f"{instance} is {status}, never {state.name}; log {self.cnm.log}")

    def start(self, instance: str = "shop/web/0", g: int = 1) -> Any:
        return self.ask(StartRequest(ctx=self.ctx, instance=instance, generation=g))

    def run_instance(self, instance: str = "shop/web/0", g: int = 1, **changes: Any) -> Any:
        self.deploy(self.spec(instance, **changes), instance, g)
        self.wait_state(InstanceState.PREPARED, instance)
        self.start(instance, g)
        return self.wait_state(InstanceState.RUNNING, instance)
