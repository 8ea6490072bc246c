"""The agent: serves the card on its own control link; stages images, volumes and bulk data.

    python -m firmware.cnm.agent --config PATH --init FD [--window FD,FD,FD]

It is started and watched by init, over a stream, and holds nothing that counts: after a kill -9
the next one asks init what there is, goes on with what was being staged, and deletes what nobody
names any more. It ends when init does. `build_agent` puts it together from ports.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from firmware.cnm.blob_space import BlobSpace
from firmware.cnm.commands import Commands
from firmware.cnm.config import CnmConfig
from firmware.cnm.ends import Identity, hello_reply, open_endpoint, speaks_our_language
from firmware.cnm.first_use import FindUser, FirstUse, user_by_number
from firmware.cnm.lease_guard import CardBinding, Verdict
from firmware.cnm.local_stream import Answer, Args, LocalPeer
from firmware.cnm.logs import LogFiles
from firmware.cnm.mc import U32, Periodic
from firmware.cnm.records import RefusedError, ctx_to_json, log_key_of, refusal_of
from firmware.cnm.rootfs import Overlay, RootfsFactory
from firmware.cnm.staging import Stager
from firmware.cnm.volumes import HotTier
from firmware.endpoint import Deferred, Endpoint
from firmware.loop import MS
from firmware.signs_of_life import ping_ms
from firmware.transfer import ChunkRoute, TransferReceiver
from firmware.window import WindowChannel
from hal.errors import HalError
from hal.ports import BlobStore, ByteStream, Doorbell, Entropy, Files, Reactor, Trees, Window
from protocol.apf import (
    BootState,
    Ctx,
    DeployRequest,
    HelloRequest,
    InstanceState,
    LogReadReply,
    LogReadRequest,
    PrepareRequest,
    Refusal,
    RefusalReason,
    Role,
    StatusChanged,
    VolumeFlushReply,
    VolumeFlushRequest,
    VolumeStateReply,
    VolumeStateRequest,
)
from protocol.window import KIND_LOG

SWEEP_DELAY_NS: Final = 50 * MS
REATTACH_NS: Final = 1_000 * MS  # to a window that has failed


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentPorts:
    """Everything that the agent needs of the world outside it."""

    reactor: Reactor
    entropy: Entropy
    open_link: Callable[[], ByteStream]
    init_stream: ByteStream
    window: Window | None
    doorbell: Doorbell | None
    blobs: BlobStore
    trees: Trees
    files: Files  # the CNM's state directory
    logs: Files  # below it, "logs"; read only
    path_of: Callable[[str], str]  # a path below `files` as trees and runtimes want it
    overlay: Overlay | None
    ended: Callable[[str], None]  # init is gone: end the process
    log: Callable[[str], None]
    find_user: FindUser = user_by_number


class Agent:
    """Loop thread only."""

    def __init__(self, config: CnmConfig, ports: AgentPorts) -> None:
        self._config = config
        self._ports = ports
        self._reactor = ports.reactor
        self._logs = LogFiles(ports.logs)
        self._init = LocalPeer(ports.reactor, ports.init_stream)
        self._init.on_notice = self._on_init_notice
        self._init.on_lost = ports.ended
        self._blobs = BlobSpace(ports.reactor, ports.blobs)
        self._hot_tier = HotTier(
            ports.reactor, ports.trees, self._blobs, ports.files, ports.path_of
        )
        self._rootfs = RootfsFactory(
            ports.reactor, ports.trees, ports.files, ports.path_of, ports.overlay
        )
        self._blobs.reclaim_more = self._rootfs.drop_unused_images
        self._stager = Stager(
            reactor=ports.reactor,
            init=self._init,
            blobs=self._blobs,
            rootfs=self._rootfs,
            hot_tier=self._hot_tier,
            first_use=FirstUse(ports.reactor, ports.trees, ports.find_user),
            on_end=self._plan_sweep,
        )
        self._channel: WindowChannel | None = None
        self._window_fault = ""  # what was said last
        self._receiver: TransferReceiver | None = None
        self._binding: CardBinding | None = None  # what init last said; for bulk transfers only
        self._identity: Identity | None = None
        self._endpoint: Endpoint | None = None
        self._sweep_planned = False
        self._usage_seq = 0
        self._moved: tuple[int | None, int | None] | None = None  # what init was told last

    def start(self) -> None:
        """Ask init who we are; only then the link is opened."""
        self._init.request("info", {}, self._on_info)
        Periodic(self._reactor, ping_ms(self._config.timing.heartbeat_ms), self._ping)
        self._ping()

    # --- coming up ---

    def _on_info(self, answer: Answer) -> None:
        if isinstance(answer, RefusedError):
            self._ports.ended(f"init: {answer.text}")
            return
        boot_id = bytes.fromhex(answer["boot"])
        self._identity = Identity(
            cnm_uuid=bytes.fromhex(answer["cnm_uuid"]),
            boot_id=boot_id,
            vendor_id=self._config.vendor_id,
        )
        self._binding = CardBinding(boot_id)
        self._binding.card_uuid = bytes.fromhex(answer["bound"])
        self._binding.epoch = int(answer["epoch"])
        self._stager.runtimes = tuple(answer["runtimes"])
        endpoint = self._endpoint = open_endpoint(
            self._reactor,
            self._ports.open_link,
            entropy=self._ports.entropy,
            identity=self._identity,
            name=f"{self._config.id} agent",
            dialect=self._config.module.dialect,
        )
        endpoint.serve(HelloRequest, self._hello)
        endpoint.serve(DeployRequest, self._stager.deploy)
        endpoint.serve(PrepareRequest, self._stager.deploy)
        endpoint.serve(LogReadRequest, self._read_log)
        endpoint.serve(VolumeFlushRequest, self._flush_volume)
        endpoint.serve(VolumeStateRequest, self._volume_state)
        commands = Commands(endpoint, self._init, self._plan_sweep)
        self._attach_window(endpoint)
        Periodic(
            self._reactor,
            self._config.timing.telemetry_ms,
            lambda: commands.send_usage(self._take_usage_seq()),
        )
        self._init.request("held", {}, self._on_held)

    def _attach_window(self, endpoint: Endpoint) -> None:
        window, doorbell = self._ports.window, self._ports.doorbell
        if window is None or doorbell is None:
            return
        channel = WindowChannel(window, doorbell, self._reactor, self._ports.entropy)
        channel.on_fault = self._on_window_fault
        route = ChunkRoute(channel, self._reactor)
        self._receiver = TransferReceiver(endpoint, route, self._blobs, self._reactor, self._check)
        self._channel = channel
        self._try_attach()

    def _try_attach(self) -> None:
        assert self._channel is not None
        try:
            self._channel.attach()
        except HalError as exc:
            self._on_window_fault(str(exc))

    def _on_window_fault(self, text: str) -> None:
        """A window that has failed (its device is gone) may come back: it is tried again."""
        if text != self._window_fault:
            self._window_fault = text
            self._ports.log(f"window: {text}")
        if self._channel is not None and not self._channel.attached:
            self._reactor.call_at(self._reactor.now_ns() + REATTACH_NS, self._try_attach)

    def _on_held(self, answer: Answer) -> None:
        """Go on with what an agent before us was staging."""
        if isinstance(answer, RefusedError):
            return
        for held in answer["instances"]:
            if held["state"] == InstanceState.STAGING:
                spec = bytes.fromhex(held["spec"])
                self._stager.resume(held["instance"], held["generation"], spec)
        self._plan_sweep()

    # --- init ---

    def _ping(self) -> None:
        moved: tuple[int | None, int | None] = (None, None)
        if self._channel is not None:
            counters = self._channel.counters
            moved = (counters["tx_bytes"], counters["rx_bytes"])
        if moved == self._moved:
            self._init.alive()
            return
        self._moved = moved
        self._init.notify("ping", {"link_tx_bytes": moved[0], "link_rx_bytes": moved[1]})

    def _on_init_notice(self, operation: str, args: Args) -> None:
        if operation == "status_changed" and self._endpoint and self._identity:
            self._endpoint.notify(
                StatusChanged(boot_id=self._identity.boot_id, status_seq=int(args["status_seq"]))
            )

    def _take_usage_seq(self) -> int:
        self._usage_seq = (self._usage_seq + 1) & U32
        return self._usage_seq

    # --- the card ---

    def _hello(self, request: HelloRequest) -> Deferred:
        deferred = Deferred()
        known = speaks_our_language(request)

        def answered(answer: Answer) -> None:
            identity, binding = self._identity, self._binding
            assert identity is not None
            assert binding is not None
            if isinstance(answer, RefusedError):
                deferred.complete(answer.to_refusal())
                return
            binding.card_uuid = bytes.fromhex(answer["bound"])
            binding.epoch = int(answer["epoch"])
            if known and answer["verdict"] == Verdict.STALE_EPOCH.value:
                text = f"epoch {request.epoch} is over, {binding.epoch} was heard"
                deferred.complete(Refusal(reason=RefusalReason.STALE_EPOCH, text=text))
                return
            deferred.complete(
                hello_reply(
                    identity,
                    bound_card_uuid=binding.card_uuid,
                    role=Role.AGENT,
                    boot_state=BootState.READY,
                )
            )

        if known:
            args = {"card": request.card_uuid.hex(), "epoch": request.epoch}
            self._init.request("hello", args, answered)
        else:
            self._init.request(
                "info",
                {},
                lambda a: answered(a if isinstance(a, RefusedError) else {**a, "verdict": ""}),
            )
        return deferred

    def _check(self, ctx: Ctx) -> Refusal | None:
        """Rule 1 for bulk data, judged by what init last said: blobs alone start nothing."""
        assert self._binding is not None
        verdict = self._binding.admit(ctx.card_uuid, ctx.epoch, ctx.boot_id)
        return None if verdict is Verdict.OK else refusal_of(verdict).to_refusal()

    def _read_log(self, request: LogReadRequest) -> LogReadReply | Refusal:
        receiver = self._receiver
        if receiver is None:
            return Refusal(reason=RefusalReason.NO_WINDOW, text="this CNM has no window")
        try:
            found = self._logs.read(log_key_of(request.instance), request.offset, request.max_bytes)
        except HalError as exc:
            return Refusal(reason=RefusalReason.INTERNAL, text=str(exc))
        if not receiver.send_bytes(request.transfer_id, KIND_LOG, found.data):
            return Refusal(
                reason=RefusalReason.NO_WINDOW, retry_after_ms=50, text="the window is full or down"
            )
        return LogReadReply(start=found.start, end=found.end, length=len(found.data))

    def _flush_volume(self, request: VolumeFlushRequest) -> Deferred:
        """Of an instance that is here in any state, at exactly this generation."""
        deferred = Deferred()

        def answered(answer: Answer) -> None:
            if isinstance(answer, RefusedError):
                deferred.complete(answer.to_refusal())
            elif answer["generation"] != request.generation:
                text = f"{request.instance} g{request.generation} is not here"
                deferred.complete(Refusal(reason=RefusalReason.UNKNOWN_INSTANCE, text=text))
            elif request.volume not in answer["volumes"]:
                text = f"{request.instance} has no volume {request.volume}"
                deferred.complete(Refusal(reason=RefusalReason.BAD_STATE, text=text))
            else:
                try:
                    number = self._hot_tier.flush(request.volume)
                except RefusedError as exc:
                    deferred.complete(exc.to_refusal())
                else:
                    deferred.complete(VolumeFlushReply(flush_id=number))

        args = {
            "ctx": ctx_to_json(request.ctx),
            "instance": request.instance,
            "generation": request.generation,
        }
        self._init.request("look", args, answered)
        return deferred

    def _volume_state(self, request: VolumeStateRequest) -> VolumeStateReply | Refusal:
        try:
            return self._hot_tier.state(request.volume, request.flush_id)
        except RefusedError as exc:
            return exc.to_refusal()

    # --- tidying up ---

    def _plan_sweep(self) -> None:
        if not self._sweep_planned:
            self._sweep_planned = True
            self._reactor.call_at(self._reactor.now_ns() + SWEEP_DELAY_NS, self._begin_sweep)

    def _begin_sweep(self) -> None:
        self._sweep_planned = False
        self._init.request("held", {}, self._sweep)

    def _sweep(self, answer: Answer) -> None:
        """Delete the root file systems and volumes that no instance of init's table names."""
        if isinstance(answer, RefusedError):
            return
        keys = {held["key"] for held in answer["instances"]}
        volumes = {volume for held in answer["instances"] for volume in held["volumes"]}
        for sweep, keep in (
            (self._rootfs.sweep, keys | self._stager.keys),
            (self._hot_tier.sweep, volumes | self._stager.volumes),
        ):
            try:
                sweep(keep)
            except HalError as exc:
                self._ports.log(f"sweep: {exc}")
        self._blobs.need(
            digest
            for held in answer["instances"]
            for digest in self._stager.blobs_of(bytes.fromhex(held["spec"]))
        )


def build_agent(config: CnmConfig, ports: AgentPorts) -> Agent:
    """The agent on these ports, not yet started."""
    return Agent(config, ports)


if __name__ == "__main__":
    from firmware.cnm.app import agent_main

    sys.exit(agent_main(sys.argv[1:]))
