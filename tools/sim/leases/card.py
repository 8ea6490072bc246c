"""One life of the card's daemon: its real services, wired as `firmware.card` wires them.

Left out is what decides nothing about where a generation may run: windows, transfers, volumes,
telemetry, the allocator's scores. The placer's choice is drawn.
"""

from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, cast

from firmware.assignments import Assignment
from firmware.board_types import Slot
from firmware.decisions import Decisions, WorkloadDecision
from firmware.deployer import Deployer, _Job
from firmware.endpoint import ATTEMPTS, TIMEOUT_MS, RequestLost, RequestRefused, RequestTimedOut
from firmware.inventory import Cnm
from firmware.journal import JournalError
from firmware.lease import LeaseState
from firmware.placer import NoRoom
from firmware.reconciler import Reconciler
from firmware.status import StatusReader
from firmware.workload import Component, Workload, instance_name
from hal.ports import SlotState
from protocol.apf import (
    CapabilitiesReply,
    CapabilitiesRequest,
    DeployRequest,
    Grant,
    Heartbeat,
    PrepareRequest,
    Refusal,
)
from tools.sim.documents import component, workload
from tools.sim.leases.between import ModelJournal
from tools.sim.leases.clockwork import MS, Host, Oscillator

if TYPE_CHECKING:
    from firmware.inventory import Inventory
    from tools.sim.leases.run import Run

WORKLOAD: Final = Workload.from_json(workload("w", component("c")))
NAME: Final = instance_name("w", "c", 0)
DIGEST: Final = b"d" * 32
SCAN_NS: Final = 1_500 * MS  # slower than the daemon's: each scan is an event
TICK_NS: Final = 25 * MS  # timers closer than this are the fencing's ticks
CALM_NS: Final = 3_000 * MS  # what a tick that watches a lease may be late
CAPABILITIES: Final = CapabilitiesReply(
    arch="arm64",
    cores_milli=4_000,
    memory_bytes=1 << 30,
    nvme_bytes=1 << 30,
    link_mbit=1_000,
    window_tx_bytes=1 << 20,
    window_rx_bytes=1 << 20,
)


class ModelDecisions(Decisions):
    """The real ones; the workload need not be parsed at each start."""

    def load(self) -> None:
        super().load()
        self.workloads = {"w": WorkloadDecision(workload=WORKLOAD)}


class ModelDeployer(Deployer):
    """The real one; staging is one DEPLOY, with nothing to bring through a window."""

    def _stage(
        self,
        job: _Job,
        assignment: Assignment,
        component: Component,
        place: Any,
        prepare: bool,
    ) -> None:
        kind = PrepareRequest if prepare else DeployRequest
        job.deploy(
            lambda: kind(
                ctx=self.ctx(job.cnm),
                instance=assignment.instance,
                generation=place.generation,
                spec_digest=DIGEST,
            )
        )


class ModelPlacer:
    """Any module that may be used will do."""

    def __init__(self, run: "Run", inventory: "Inventory") -> None:
        self._run = run
        self._inventory = inventory

    def choose(self, _workload: str, _component: Component, _instance: str) -> str | NoRoom:
        return self._any([cnm.id for cnm in self._inventory if cnm.schedulable])

    def find_alternative_cnm(
        self, _component: Component, assignment: Assignment, only: str | None = None
    ) -> str | NoRoom:
        here = assignment.place.cnm if assignment.place else ""
        others = [c.id for c in self._inventory if c.schedulable and c.id != here]
        return self._any(others if only is None else [name for name in others if name == only])

    def _any(self, names: list[str]) -> str | NoRoom:
        return self._run.kernel.rng.choice(names) if names else NoRoom(reasons={})

    def sync(self, _assignment: Assignment | None, _component: Component | None) -> None: ...
    def catch_up(self, _instance: str) -> None: ...
    def forget(self, _instance: str) -> None: ...
    def reserve(self, _assignment: Assignment, _component: Component) -> None: ...
    def reserve_target(self, _assignment: Assignment, _component: Component) -> None: ...

    def sharing(self, _assignment: Assignment, _component: Component) -> list[str]:
        return []

    def outgrown(self, _assignment: Assignment, _component: Component) -> bool:
        return False

    def tightest_first(self, instances: Iterable[str]) -> list[str]:
        return list(instances)

    def constrained_first(self, instances: Iterable[str]) -> list[str]:
        return sorted(instances)

    def in_order(self, instances: Iterable[str]) -> list[str]:
        return list(instances)


class ModelEndpoint:
    """The card's end of one link: requests are retried as the real one does, nothing is cached."""

    def __init__(self, life: "CardLife", module: str, name: str) -> None:
        self.link = SimpleNamespace(last_rx_ns=None, local_eid=0, peer_eid=0)
        self._life = life
        self._module = module
        self._name = name
        self.name = f"{module}/{name}"
        self._pending: list[_Request] = []

    def control(
        self, _command: int, _data: bytes, done: Callable[[Any], None], **_limits: int
    ) -> None:
        done(b"\0")

    def request(
        self,
        body: Any,
        done: Callable[[Any], None],
        *,
        timeout_ms: int = TIMEOUT_MS,
        attempts: int = ATTEMPTS,
    ) -> None:
        if isinstance(body, CapabilitiesRequest):
            done(CAPABILITIES)
            return
        request = _Request(self, body, done, timeout_ms * MS, attempts)
        self._pending.append(request)
        request.attempt()

    def notify(self, grant: Grant, *, urgent: bool) -> bool:
        run = self._life.run
        run.net.to_module(
            self._module,
            self._name,
            lambda boot: boot.on_grant(grant),
            late=run.weather.late_grants,
        )
        return urgent

    def abandon(self, text: str) -> None:
        for request in list(self._pending):
            request.finish(RequestLost(text))


class _Request:
    def __init__(
        self,
        endpoint: ModelEndpoint,
        body: Any,
        done: Callable[[Any], None],
        timeout_ns: int,
        attempts: int,
    ) -> None:
        self._endpoint = endpoint
        self._body = body
        self._done = done
        self._timeout_ns = timeout_ns
        self._left = attempts
        self._cancel: Callable[[], None] = lambda: None
        self._over = False

    def attempt(self) -> None:
        if self._left == 0:
            self.finish(RequestTimedOut("no answer"))
            return
        self._left -= 1
        end = self._endpoint
        net, host = end._life.run.net, end._life.host
        module, link = end._module, end._name

        def answer(reply: Any) -> None:
            net.to_card(module, link, lambda _card: self._on_answer(reply))

        net.to_module(module, link, lambda boot: boot.serve(self._body, answer))
        self._cancel = host.call_later(self._timeout_ns, self.attempt)

    def _on_answer(self, reply: Any) -> None:
        if isinstance(reply, Refusal):
            reply = RequestRefused("request", reply)
        self.finish(reply)

    def finish(self, result: Any) -> None:
        if not self._over:
            self._over = True
            self._cancel()
            self._endpoint._pending.remove(self)
            self._done(result)


class CardLife:
    """From the start of a daemon to its end."""

    def __init__(self, run: "Run", clock: Oscillator) -> None:
        self.run = run
        run.lives += 1
        self.host = Host(run.kernel, clock)
        loop: Any = self.host
        rules = run.rules
        events = cast("Any", _Silent())
        self.decisions = rules.decisions(ModelJournal(run, self), loop, events)
        self.inventory = rules.inventory()
        placer = cast("Any", ModelPlacer(run, self.inventory))
        self.status = StatusReader(self._on_report)
        self.deployer = ModelDeployer(
            loop,
            self.inventory,
            self.decisions,
            events,
            cast("Any", None),
            cast("Any", None),
            cast("Any", None),
            self.status,
            kick=lambda instance: self.reconciler.kick(instance),
        )
        self.reconciler = Reconciler(
            loop,
            self.inventory,
            self.decisions,
            self.deployer,
            placer,
            cast("Any", None),
            events,
        )
        self.discovery = rules.discovery(
            loop,
            self.inventory,
            self.decisions,
            events,
            self.status,
            cast("Any", _Sessions()),
            software=str(run.lives),
            on_boot=self._on_cnm_change,
            on_ready=self._on_ready,
        )
        self.fencing = rules.fencing(
            cast("Any", _Ticks(self.host, self._lateness)),
            self.inventory,
            self.decisions,
            events,
            cast("Any", _Port(run)),
            self.discovery,
            lease_ms=run.timing.lease_ms,
            on_fenced=self.discovery.forget,
        )
        self.inventory.on_change = self._on_cnm_change
        for name in run.modules:
            self.inventory.add(self._cnm(name))

    def _cnm(self, name: str) -> Cnm:
        slot = cast("Slot", SimpleNamespace(slot=list(self.run.modules).index(name), id=name))
        return self.run.rules.cnm(
            id=name,
            config=slot,
            lease=self.run.rules.lease(self.run.timing, power_fence=False),
            ports=cast("Any", None),
            mc=cast("Any", ModelEndpoint(self, name, "mc")),
            agent=cast("Any", ModelEndpoint(self, name, "agent")),
        )

    def _lateness(self, due_ns: int, now_ns: int) -> int:
        """A timer never comes early. The fencing's come late, or at the very moment at which the
        lease's own clock makes a difference."""
        rng = self.run.kernel.rng
        if due_ns - now_ns > TICK_NS:
            return int(rng.random() * CALM_NS)
        if rng.random() < 0.5:
            waits = [cnm.lease.next_ns(now_ns) for cnm in self.inventory if _waits(cnm)]
            turns = [at_ns for at_ns in waits if at_ns > due_ns]
            if turns:
                return min(turns) - due_ns
        return int(rng.random() * self.run.weather.lazy_ns)

    def start(self) -> None:
        """Journal read, epoch written, then the links (rule 2)."""
        self.decisions.load()

        def begun(error: JournalError | None) -> None:
            if error is None:
                self.open_slots()
            else:
                self.host.call_later(SCAN_NS, self.start)

        self.decisions.begin_epoch(b"C" * 16, begun)

    def open_slots(self) -> None:
        self.fencing.start()
        self.scan()
        self.reconciler.kick(NAME)

    def scan(self) -> None:
        self.discovery.scan_cnms()
        self.host.call_later(SCAN_NS, self.scan)

    def warm(self) -> None:
        """The state after a quiet hour: every module leased and read, each decision on disk."""
        now_ns = self.host.now_ns()
        self.decisions.load()
        self.decisions.epoch = self.decisions.journal.epoch
        self.decisions.card_uuid = bytes.fromhex(self.decisions.journal.card_uuid or "")
        for cnm in self.inventory:
            boot = self.run.modules[cnm.id].boot
            assert boot is not None
            cnm.lease.on_boot(boot.identity.boot_id, now_ns)
            cnm.granted_durable = cnm.boot_id
            cnm.capabilities = CAPABILITIES
            cnm.agent_ready = True
            cnm.observed = {entry.instance: entry for entry in boot.look()}
            cnm.observed_seq = boot.table.status_seq
            cnm.lease.power_fence = self.run.power.state(cnm.id).fence.value == "power"
            cnm.power = self.run.power.state(cnm.id)
            cnm.lease.admit(cnm.boot_id, now_ns)
            self.fencing.on_admitted(cnm)
        self.scan()

    def die(self) -> None:
        self.host.alive = False

    # --- what comes from outside ---

    def hear(self, module: str, link: str, call: Callable[["CardLife"], None]) -> None:
        cnm = self.inventory.get(module)
        assert cnm is not None
        end: Any = cnm.mc if link == "mc" else cnm.agent
        end.link.last_rx_ns = self.host.now_ns()
        call(self)

    def on_heartbeat(self, module: str, beat: Heartbeat) -> None:
        cnm = self.inventory.get(module)
        assert cnm is not None
        self.fencing.on_heartbeat(cnm, beat)
        if beat.boot_id == cnm.boot_id and beat.status_seq != cnm.observed_seq:
            self.status.wish(cnm)

    def on_hint(self, module: str, boot_id: bytes, status_seq: int) -> None:
        cnm = self.inventory.get(module)
        assert cnm is not None
        if boot_id == cnm.boot_id and status_seq != cnm.observed_seq:
            self.status.wish(cnm)

    def on_slot(self, state: SlotState) -> None:
        self.fencing._on_slot(state)

    def migrate(self) -> None:
        self.reconciler.migration.migrate_component(NAME, None, "on request", lambda _error: None)

    # --- what the services tell each other ---

    def _on_report(self, cnm: Cnm, changed: set[str]) -> None:
        self.reconciler.on_report(cnm, changed)

    def _on_ready(self, cnm: Cnm) -> None:
        self.fencing.on_admitted(cnm)
        self._on_cnm_change(cnm)
        self.reconciler.on_report(cnm, ())

    def _on_cnm_change(self, cnm: Cnm) -> None:
        self.reconciler.kick_cnm(cnm)


def _waits(cnm: Cnm) -> bool:
    return cnm.lease.state in (LeaseState.SUSPECT, LeaseState.FENCING)


class _Ticks:
    """The loop as the fencing sees it: its timers come late."""

    def __init__(self, host: Host, late: Callable[[int, int], int]) -> None:
        self._host = host
        self._late = late
        self.now_ns = host.now_ns
        self.call_later = host.call_later
        self.post = host.post

    @property
    def turn_ns(self) -> int:
        """Every event here is a turn of its own."""
        return self.now_ns()

    def call_at(self, when_ns: int, call: Callable[[], None]) -> Callable[[], None]:
        late_ns = self._late(when_ns, self._host.now_ns())
        return self._host.call_at(when_ns + late_ns, call)


class _Silent:
    """An event log that nobody reads."""

    def emit(self, *_words: object, **_more: object) -> None: ...


class _Sessions:
    """Windows that open at once."""

    def open_window(self, _cnm: Cnm, attached: Callable[[str], None]) -> None:
        attached("")

    def close_window(self, _cnm: Cnm) -> None: ...


class _Port:
    """The power port of one life; changes are brought to it by `CardLife.on_slot`."""

    def __init__(self, run: "Run") -> None:
        self.submit = run.power.submit

    def on_change(self, _call: Callable[[SlotState], None]) -> None: ...
