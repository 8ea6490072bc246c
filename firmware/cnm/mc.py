"""The management controller's part of init: hello, capabilities, heartbeats, grants, telemetry.

protocol/SPEC.md sections 4 and 6 to 8. A heartbeat's time is read before it is handed over
(DESIGN section 4, rule 3). Notices are not repeated: the next one says all that is new.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from firmware.board_types import Module
from firmware.cnm.config import CnmTiming
from firmware.cnm.ends import Identity, hello_reply, speaks_our_language
from firmware.cnm.instances import InstanceTable
from firmware.cnm.lease_guard import LeaseGuard, Verdict
from firmware.endpoint import Endpoint
from firmware.loop import MS
from hal.errors import HalError
from hal.ports import Files, Reactor, Usage
from protocol.apf import (
    AGENT_AGE_NONE,
    Accelerator,
    BootState,
    CapabilitiesReply,
    CapabilitiesRequest,
    Grant,
    Heartbeat,
    HelloReply,
    HelloRequest,
    InitState,
    Refusal,
    RefusalReason,
    Role,
    Scope,
    Telemetry,
)

U32: Final = 0xFFFF_FFFF


@dataclass(slots=True, kw_only=True)
class Vitals:
    """What init knows of itself and of its agent; the heartbeat says it."""

    state: InitState = InitState.STARTING
    agent_seen_ns: int | None = None
    link_tx_bytes: int | None = None  # of the window, as the agent counts them
    link_rx_bytes: int | None = None


class Periodic:
    """Calls at a fixed period; a beat that was missed is skipped, not made up for."""

    def __init__(self, reactor: Reactor, period_ms: int, call: Callable[[], None]) -> None:
        self._reactor = reactor
        self._period_ns = period_ms * MS
        self._call = call
        self._due_ns = reactor.now_ns() + self._period_ns
        self._cancel = reactor.call_at(self._due_ns, self._beat)

    def stop(self) -> None:
        self._cancel()

    def _beat(self) -> None:
        now_ns = self._reactor.now_ns()
        missed = max(0, now_ns - self._due_ns) // self._period_ns
        self._due_ns += (missed + 1) * self._period_ns
        self._cancel = self._reactor.call_at(self._due_ns, self._beat)
        self._call()


class ManagementController:
    """Serves the MC link. Loop thread only."""

    def __init__(
        self,
        *,
        reactor: Reactor,
        endpoint: Endpoint,
        identity: Identity,
        module: Module,
        timing: CnmTiming,
        guard: LeaseGuard,
        table: InstanceTable,
        vitals: Vitals,
        runtimes: tuple[str, ...],
        window_tx_bytes: int,
        window_rx_bytes: int,
        files: Files,
        node_usage: Callable[[], Usage],
        on_lease: Callable[[], None],
    ) -> None:
        """`on_lease` after every grant that was taken."""
        self._reactor = reactor
        self._endpoint = endpoint
        self._identity = identity
        self._module = module
        self._guard = guard
        self._table = table
        self._vitals = vitals
        self._runtimes = runtimes
        self._window_bytes = (window_tx_bytes, window_rx_bytes)
        self._files = files
        self._node_usage = node_usage
        self._on_lease = on_lease
        # what the module's own sensors read, by the names of Telemetry's fields (None: they can't
        # be read); wins over what is counted here
        self.sensors: Callable[[], Mapping[str, int | None]] = dict
        self._heartbeat_seq = 0
        self._telemetry_seq = 0
        self._cpu: tuple[int, int] | None = None  # (cpu_us, at ns) of the last telemetry
        endpoint.serve(HelloRequest, self._hello)
        endpoint.serve(CapabilitiesRequest, self._capabilities)
        endpoint.on_notice(Grant, self._on_grant)
        self._beats = (
            Periodic(reactor, timing.heartbeat_ms, self.send_heartbeat),
            Periodic(reactor, timing.telemetry_ms, self._send_telemetry),
        )

    def send_heartbeat(self) -> None:
        """One now; the period goes on as it was."""
        now_ns = self._reactor.now_ns()
        self._heartbeat_seq = (self._heartbeat_seq + 1) & U32
        self._guard.on_heartbeat_sent(self._heartbeat_seq, now_ns)
        self._endpoint.notify(
            Heartbeat(
                boot_id=self._identity.boot_id,
                seq=self._heartbeat_seq,
                init_state=self._vitals.state,
                bound_epoch=self._guard.binding.epoch,
                lease_left_ms=self._guard.left_ms(now_ns),
                agent_age_ms=self._agent_age_ms(now_ns),
                status_seq=self._table.status_seq,
                instances=self._table.count,
            )
        )

    def close(self) -> None:
        for beat in self._beats:
            beat.stop()
        self._endpoint.link.close()

    def _agent_age_ms(self, now_ns: int) -> int:
        seen_ns = self._vitals.agent_seen_ns
        return AGENT_AGE_NONE if seen_ns is None else min((now_ns - seen_ns) // MS, U32 - 1)

    def _hello(self, request: HelloRequest) -> HelloReply | Refusal:
        binding = self._guard.binding
        if speaks_our_language(request):
            verdict = binding.introduce(request.card_uuid, request.epoch)
            if verdict is Verdict.STALE_EPOCH:
                text = f"epoch {request.epoch} is over, {binding.epoch} was heard"
                return Refusal(reason=RefusalReason.STALE_EPOCH, retry_after_ms=0, text=text)
        up = self._vitals.agent_seen_ns is not None
        return hello_reply(
            self._identity,
            bound_card_uuid=binding.card_uuid,
            role=Role.MC,
            boot_state=BootState.READY if up else BootState.BOOTING,
        )

    def _capabilities(self, _request: CapabilitiesRequest) -> CapabilitiesReply:
        module = self._module
        return CapabilitiesReply(
            arch=module.arch,
            cores_milli=module.cores_milli,
            memory_bytes=module.memory_bytes,
            nvme_bytes=module.nvme_bytes,
            link_mbit=module.link_mbit,
            window_tx_bytes=self._window_bytes[0],
            window_rx_bytes=self._window_bytes[1],
            accelerators=tuple(
                Accelerator(
                    kind=item.kind,
                    model=item.model,
                    count=item.count,
                    scope=Scope.FABRIC if item.scope == "fabric" else Scope.LOCAL,
                )
                for item in module.accelerators
            ),
            runtimes=self._runtimes,
            labels=tuple(sorted(module.labels.items())),
        )

    def _on_grant(self, grant: Grant) -> None:
        verdict = self._guard.on_grant(
            grant.seq, grant.lease_ms, grant.card_uuid, grant.epoch, grant.boot_id
        )
        if verdict is Verdict.OK:
            self._on_lease()

    def _send_telemetry(self) -> None:
        self._telemetry_seq = (self._telemetry_seq + 1) & U32
        usage = self._node_usage()
        readings: dict[str, int | None] = {
            "cpu_milli": self._cpu_milli(usage.cpu_us),
            "memory_bytes": usage.memory_bytes,
            "nvme_bytes": self._nvme_used(),
            "link_tx_bytes": self._vitals.link_tx_bytes,
            "link_rx_bytes": self._vitals.link_rx_bytes,
        }
        readings.update(self.sensors())
        self._endpoint.notify(
            Telemetry.of(boot_id=self._identity.boot_id, seq=self._telemetry_seq, **readings)
        )

    def _cpu_milli(self, cpu_us: int | None) -> int | None:
        """Mean since the last telemetry; None the first time. Two that follow each other at once
        (the clock was held up) make any step of the counter absurd: cut to what a report holds."""
        now_ns = self._reactor.now_ns()
        last, self._cpu = self._cpu, None if cpu_us is None else (cpu_us, now_ns)
        if cpu_us is None or last is None or now_ns <= last[1]:
            return None
        return min(U32, max(0, cpu_us - last[0]) * MS // (now_ns - last[1]))

    def _nvme_used(self) -> int | None:
        """What of the module's NVMe is not free."""
        try:
            free_bytes = self._files.free_bytes()
        except HalError:
            return None
        return max(0, self._module.nvme_bytes - free_bytes)
