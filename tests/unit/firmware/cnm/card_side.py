"""What a card's daemon would do on both links of one CNM, driven by a test in any world."""

import hashlib
import json
from collections.abc import Callable
from typing import Any, Protocol

from firmware.endpoint import Endpoint, RequestError, RequestRefused
from firmware.link import Link
from firmware.loop import MS
from firmware.transfer import TransferSender
from firmware.window import WindowChannel
from hal.ports import BlobStore, ByteStream, Doorbell, Entropy, Reactor, Window
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


class World(Protocol):
    """Time, real or virtual."""

    @property
    def reactor(self) -> Reactor: ...
    def run_until(self, predicate: Callable[[], bool], limit_s: float = ...) -> None: ...
    def run_for(self, seconds: float) -> None: ...


class CardSide:
    """Endpoints and transfers are the real ones."""

    def __init__(
        self,
        world: World,
        *,
        entropy: Entropy,
        open_mc: Callable[[], ByteStream],
        open_agent: Callable[[], ByteStream],
        blobs: BlobStore,
        window: Window,
        doorbell: Doorbell,
        cnm: Any = None,
    ) -> None:
        self.world, self.cnm = world, cnm
        self.card_uuid, self.epoch, self.boot_id = CARD, 1, bytes(16)
        self.granting = False
        self.lease_ms = 5000
        self.heartbeats: list[Heartbeat] = []
        self.telemetry: list[Telemetry] = []
        self.usage: list[InstanceTelemetry] = []
        self.changes: list[StatusChanged] = []
        self.mc, self.agent = (
            Endpoint(
                world.reactor,
                Link(world.reactor, opener, name=name, local_eid=8),
                entropy=entropy,
                name=name,
            )
            for name, opener in (("mc", open_mc), ("agent", open_agent))
        )
        self.mc.on_notice(Heartbeat, self._on_heartbeat)
        self.mc.on_notice(Telemetry, self.telemetry.append)
        self.agent.on_notice(InstanceTelemetry, self.usage.append)
        self.agent.on_notice(StatusChanged, self.changes.append)
        self.blobs = blobs
        channel = WindowChannel(window, doorbell, world.reactor, entropy)
        self.transfers = TransferSender(
            self.agent, channel, blobs, world.reactor, lambda: self.ctx, entropy=entropy
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
        self.world.run_until(lambda: bool(predicate()), limit_s)

    def run(self, ms: float) -> None:
        self.world.run_for(ms / 1000)

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
        raise AssertionError(f"{instance} is {status}, never {state.name}")

    def start(self, instance: str = "shop/web/0", g: int = 1) -> Any:
        return self.ask(StartRequest(ctx=self.ctx, instance=instance, generation=g))

    def run_instance(self, instance: str = "shop/web/0", g: int = 1, **changes: Any) -> Any:
        self.deploy(self.spec(instance, **changes), instance, g)
        self.wait_state(InstanceState.PREPARED, instance)
        self.start(instance, g)
        return self.wait_state(InstanceState.RUNNING, instance)
