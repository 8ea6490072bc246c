"""cnm-init: PID 1 of a CNM and, where it has no separate one, its management controller (D13).

    python -m firmware.cnm.init --config FD-or-PATH

It makes the boot id, heartbeats on the MC link, holds and guards the lease, is the parent of every
instance, and keeps an agent running. What counts is kept here, in memory, for one boot; a CNM that
boots starts nothing by itself. `build_init` puts it together from ports, real or mock.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from firmware.cnm.config import CnmConfig
from firmware.cnm.ends import Identity, open_endpoint
from firmware.cnm.health import HealthRunner
from firmware.cnm.init_server import InitServer
from firmware.cnm.instances import InstanceTable
from firmware.cnm.lease_guard import CardBinding, LeaseGuard
from firmware.cnm.local_stream import LocalPeer
from firmware.cnm.logs import LogCapture, LogFiles
from firmware.cnm.mc import ManagementController, Vitals
from firmware.cnm.records import LEASE_EXPIRED_TEXT, Instance, log_key_of
from firmware.cnm.runner import Runner
from firmware.cnm.supervisor import AgentSupervisor, StartAgent
from firmware.loop import MS
from firmware.signs_of_life import hung_ms
from hal.errors import HalError
from hal.ports import ByteStream, Entropy, Files, Reactor, Runtime, Usage
from protocol.apf import InitState

UUID_FILE: Final = "cnm-uuid"
UUID_BYTES: Final = 16
AGENT_STOP_MS: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class InitPorts:
    """Everything that init needs of the world outside it."""

    reactor: Reactor
    entropy: Entropy
    open_mc: Callable[[], ByteStream]
    start_agent: StartAgent
    runtimes: Mapping[str, Runtime]
    files: Files  # the CNM's state directory
    logs: Files  # below it, "logs"
    open_output: Callable[[int], ByteStream]  # of an InstanceHandle.output_fd; owns it then
    node_usage: Callable[[], Usage]  # of the whole CNM
    window_tx_bytes: int
    window_rx_bytes: int
    halt: Callable[[str], None] | None  # kill the CNM as a whole; None where init can't
    log: Callable[[str], None]


class Init:
    """The composition; `stop` ends it in order. Loop thread only."""

    def __init__(self, config: CnmConfig, ports: InitPorts) -> None:
        self._config = config
        self._ports = ports
        self._reactor = ports.reactor
        self._timer_set = False
        self._notice_posted = False
        self._ending = False
        identity = Identity(
            cnm_uuid=_stable_uuid(ports),
            boot_id=ports.entropy.random_bytes(UUID_BYTES),
            vendor_id=config.vendor_id,
        )
        self.vitals = Vitals()
        self.guard = LeaseGuard(CardBinding(identity.boot_id))
        self._log_files = LogFiles(ports.logs)
        self._capture = LogCapture(self._reactor, self._log_files, ports.open_output)
        runner = Runner(self._reactor, ports.runtimes)
        self.table = InstanceTable(
            reactor=self._reactor, guard=self.guard, runner=runner, events=self
        )
        self._health = HealthRunner(self._reactor, runner.runtime_of, self.table.set_health)
        self.supervisor = AgentSupervisor(
            self._reactor,
            ports.start_agent,
            self._serve_agent,
            ports.log,
            hung_ms=hung_ms(config.timing.heartbeat_ms),
        )
        self._server = InitServer(
            reactor=self._reactor,
            identity=identity,
            table=self.table,
            guard=self.guard,
            runner=runner,
            vitals=self.vitals,
            on_ping=self._on_ping,
        )
        self.endpoint = open_endpoint(
            self._reactor,
            ports.open_mc,
            entropy=ports.entropy,
            identity=identity,
            name=f"{config.id} mc",
            dialect=config.module.dialect,
        )
        self.identity = identity
        self.mc = ManagementController(
            reactor=self._reactor,
            endpoint=self.endpoint,
            identity=identity,
            module=config.module,
            timing=config.timing,
            guard=self.guard,
            table=self.table,
            vitals=self.vitals,
            runtimes=runner.names,
            window_tx_bytes=ports.window_tx_bytes,
            window_rx_bytes=ports.window_rx_bytes,
            files=ports.files,
            node_usage=ports.node_usage,
            on_lease=self._on_lease,
        )

    def start(self) -> None:
        """Forget the logs of an earlier boot, start the agent, beat for the first time."""
        for log in self._log_files.logs():
            self._log_files.remove(log)
        self.vitals.state = InitState.READY
        self.mc.send_heartbeat()
        self.supervisor.start()

    def stop(self, done: Callable[[], None]) -> None:
        """End every instance and the agent, then `done`; at most shutdown_ms, S and a little.

        Heartbeats go on meanwhile: they say STOPPING.
        """
        if self._ending:
            return
        self._ending = True
        self.vitals.state = InitState.STOPPING
        self.mc.send_heartbeat()
        timing = self._config.timing
        self.table.stop_all("the CNM goes down", timing.shutdown_ms)
        last_ns = self._reactor.now_ns() + (timing.shutdown_ms + timing.stop_ms) * MS
        self._wait_for_end(last_ns, lambda: self._stop_agent(done))

    # --- InstanceEvents ---

    def changed(self) -> None:
        """Told to the agent once a turn, however much has changed in it."""
        if not self._notice_posted:
            self._notice_posted = True
            self._reactor.post(self._tell_change)

    def running(self, instance: Instance, output_fd: int) -> None:
        self._capture.attach(log_key_of(instance.name), output_fd)
        self._health.begin(instance)

    def ended(self, instance: Instance) -> None:
        self._health.end(instance)

    def removed(self, instance: Instance) -> None:
        log = log_key_of(instance.name)
        self._capture.forget(log)
        try:
            self._log_files.remove(log)
        except HalError as exc:
            self._ports.log(f"logs of {instance.name}: {exc}")

    # --- the lease (DESIGN section 4, rules 3 and 4) ---

    def _on_lease(self) -> None:
        fresh = self.guard.fresh(self._reactor.now_ns())  # a late grant may be over already
        if fresh and self.vitals.state is InitState.LEASE_EXPIRED:
            self.vitals.state = InitState.READY
        if not self._timer_set:
            self._set_timer()

    def _set_timer(self) -> None:
        """One timer follows the expiry: when it fires early it is set again."""
        expires_at_ns = self.guard.expires_at_ns
        assert expires_at_ns is not None
        self._timer_set = True
        self._reactor.call_at(expires_at_ns, self._on_timer)

    def _on_timer(self) -> None:
        self._timer_set = False
        if self.guard.fresh(self._reactor.now_ns()):
            self._set_timer()
            return
        if self.vitals.state is not InitState.STOPPING:
            self.vitals.state = InitState.LEASE_EXPIRED
        if self.table.alive_count():
            self._ports.log(f"lease expired: {self.table.alive_count()} instances are killed")
        self.table.end_all(LEASE_EXPIRED_TEXT)
        expires_at_ns = self.guard.expires_at_ns
        assert expires_at_ns is not None
        last_call_ns = expires_at_ns + self._config.timing.stop_ms * MS * 3 // 4
        self._reactor.call_at(last_call_ns, lambda: self._last_call(expires_at_ns))

    def _last_call(self, expired_at_ns: int) -> None:
        """What still lives shortly before S is over dies with the whole CNM."""
        living = [found.name for found in self.table.listing() if found.alive and found.doom]
        if living and self._ports.halt is not None:
            self._ports.halt(
                f"{', '.join(living[:4])} outlived the lease that ended "
                f"{(self._reactor.now_ns() - expired_at_ns) // MS} ms ago: the CNM ends itself"
            )

    # --- the agent ---

    def _serve_agent(self, peer: LocalPeer) -> None:
        peer.on_request = self._server.on_request
        peer.on_notice = self._server.on_notice

    def _on_ping(self) -> None:
        self.supervisor.seen()

    def _tell_change(self) -> None:
        self._notice_posted = False
        peer = self.supervisor.peer
        if peer is not None:
            peer.notify("status_changed", {"status_seq": self.table.status_seq})

    # --- the end ---

    def _wait_for_end(self, last_ns: int, then: Callable[[], None]) -> None:
        if not self.table.alive_count() or self._reactor.now_ns() >= last_ns:
            then()
            return
        self._reactor.call_at(
            self._reactor.now_ns() + 10 * MS, lambda: self._wait_for_end(last_ns, then)
        )

    def _stop_agent(self, done: Callable[[], None]) -> None:
        finished = False

        def finish() -> None:
            nonlocal finished
            if not finished:
                finished = True
                self._capture.close()
                self.mc.close()
                done()

        self._reactor.call_at(self._reactor.now_ns() + AGENT_STOP_MS * MS, finish)
        self.supervisor.stop(finish)


def build_init(config: CnmConfig, ports: InitPorts) -> Init:
    """Init on these ports, not yet started."""
    return Init(config, ports)


def _stable_uuid(ports: InitPorts) -> bytes:
    """The module's uuid: made once, then the same at every boot.

    A state directory that can't be written gives a fresh one, which only costs recognition.
    """
    try:
        kept = ports.files.read(UUID_FILE)
        if len(kept) == UUID_BYTES:
            return kept
    except HalError:
        pass  # the first boot of this module
    fresh = ports.entropy.random_bytes(UUID_BYTES)
    try:
        ports.files.write(UUID_FILE, fresh)
    except HalError as exc:
        ports.log(f"{UUID_FILE} can't be kept: {exc}")
    return fresh


if __name__ == "__main__":
    from firmware.cnm.app import init_main

    sys.exit(init_main(sys.argv[1:]))
