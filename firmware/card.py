"""The card: all its services, wired together over ports. No concrete backend is named here.

`firmware.app` builds it over Linux and the local board; tests and the simulator over the mock.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from firmware.board_types import Board, Slot, Timing
from firmware.card_hardware import CardHardware, HardwarePorts
from firmware.decisions import Decisions
from firmware.deployer import Deployer
from firmware.discovery import Discovery
from firmware.endpoint import Endpoint
from firmware.events import EventCode, EventLog
from firmware.fencing import Fencing
from firmware.garbage import Garbage
from firmware.history import HistoryKeeper
from firmware.hostpids import HostPids
from firmware.images import ImageStore, normal_ref
from firmware.inventory import Cnm, CnmPorts, CnmState, Inventory
from firmware.journal import Journal, JournalError, Kind
from firmware.lease import CardLease, LeaseState
from firmware.link import Link
from firmware.logs import InstanceLogs
from firmware.loop import MS, Loop
from firmware.monitor import Monitor
from firmware.move_facts import MoveFacts
from firmware.placement_views import PlacementViews
from firmware.placer import Placer
from firmware.planning import Planner
from firmware.preemptor import Preemptor
from firmware.profile_store import ProfileStore
from firmware.profile_views import ProfileViews
from firmware.profiler import Profiler
from firmware.rebalancer import Rebalancer
from firmware.reconciler import Reconciler
from firmware.rpc import refused
from firmware.sessions import CnmSessions
from firmware.signs_of_life import lost_ms
from firmware.status import StatusReader
from firmware.storage import Volumes
from firmware.views import Views
from firmware.workload import Workload
from hal.ports import BlobStore, Entropy, HostView, JournalStore, SlotPower
from protocol.apf import Ctx, Heartbeat, InstanceTelemetry, StatusChanged, Telemetry
from protocol.mctp.serial_frame import Dialect

SOFTWARE: Final = "apf-card/0.1.0"
SCAN_NS: Final = 250 * MS
LAST_FLUSH_NS: Final = 5_000 * MS  # before the card goes down; `apf down` waits 7.5 s, then presses
SETTLE_NS: Final = 5_000 * MS  # after a start, what is new waits so long for modules that boot
CARD_UUID_BYTES: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class CardPorts:
    """The hardware of the card."""

    entropy: Entropy
    power: SlotPower
    journal: JournalStore
    blobs: BlobStore
    host: HostView | None
    slots: Mapping[str, CnmPorts]
    runc_roots: Mapping[str, str]
    wall_ns: Callable[[], int]
    hardware: HardwarePorts = HardwarePorts()  # noqa: RUF009  it is frozen


class Card:
    """Everything that the daemon does, on one loop."""

    def __init__(self, board: Board, loop: Loop, ports: CardPorts, *, safe_mode: bool) -> None:
        self.board = board
        self.loop = loop
        self.safe_mode = safe_mode
        self.ready = False
        self.submitting: dict[str, Workload] = {}  # by name, on their way to the disk
        self.on_shutdown: Callable[[], None] = lambda: None
        self._stopping = False
        self._ports = ports
        self._start_ns = loop.now_ns()
        self.events = EventLog(loop, ports.wall_ns)
        self.journal = Journal(ports.journal)
        self.decisions = Decisions(self.journal, loop, self.events)
        self.inventory = Inventory()
        self.profiler = Profiler(lambda ref: self.images.digest_of(ref))
        self.profile_store = ProfileStore(loop, self.journal, self.profiler)
        self.placer = Placer(self.inventory, self.decisions, self.profiler)
        self.images = ImageStore(
            ports.blobs,
            self.journal,
            loop,
            self.events,
            used_by=self._image_users,
            needed=lambda: self.volumes.live_blobs(),
            left_behind=lambda: self.garbage.collect_soon(),
        )
        self.volumes = Volumes(
            loop, self.decisions, ports.blobs, self.events, ports.wall_ns, self.ctx
        )
        self.status_reader = StatusReader(self._on_report)
        self.deployer = Deployer(
            loop,
            self.inventory,
            self.decisions,
            self.events,
            ports.blobs,
            self.images,
            self.volumes,
            self.status_reader,
            kick=self._kick,
        )
        self.reconciler = Reconciler(
            loop,
            self.inventory,
            self.decisions,
            self.deployer,
            self.placer,
            self.volumes,
            self.events,
        )
        self.monitor = Monitor(
            loop,
            self.decisions,
            self.placer,
            self.profiler,
            self.events,
            board.thresholds,
            agent_lost_ms=lost_ms(board.timing.heartbeat_ms),
            on_loaded=self._on_loaded,
            on_floor=self.profile_store.hurry,
        )
        self.rebalancer = Rebalancer(
            loop,
            self.inventory,
            self.decisions,
            self.reconciler,
            self.placer,
            self.events,
            board.thresholds,
            self._use_of,
            MoveFacts(self.inventory, self.decisions, self.images),
            self._any_loaded,
        )
        self.rebalancer.room.enabled = self.rebalancer.tidying.enabled = not safe_mode
        self.placer.weights = board.tenants
        self.preemptor = Preemptor(
            loop,
            self.inventory,
            self.decisions,
            self.placer,
            self.reconciler.placements,
            self.events,
            board.thresholds,
            moving=self._moves_for_room,
            freed=self.reconciler.kick_pending,
        )
        if safe_mode:
            self.preemptor.enabled = False
        self.sessions = CnmSessions(loop, ports.entropy, ports.blobs, self.events, self.ctx)
        self.discovery = Discovery(
            loop,
            self.inventory,
            self.decisions,
            self.events,
            self.status_reader,
            self.sessions,
            software=SOFTWARE,
            on_boot=self._on_boot,
            on_ready=self._on_ready,
        )
        self.host = HostPids(loop, ports.host)
        self.fencing = Fencing(
            loop,
            self.inventory,
            self.decisions,
            self.events,
            ports.power,
            self.discovery,
            lease_ms=board.timing.lease_ms,
            on_fenced=self._on_fenced,
        )
        self.views = Views(
            loop,
            self.inventory,
            self.decisions,
            self.reconciler,
            self.placer,
            self.host,
            self.events,
        )
        self.history = HistoryKeeper(loop, self.inventory, self.placer)
        self.planner = Planner(loop, self.inventory, self.decisions, self.placer, self.profiler)
        self.placement_views = PlacementViews(
            self.inventory,
            self.decisions,
            self.placer,
            self.monitor,
            self.history,
            pending=self.reconciler.placements.pending,
            preemption=self.preemptor.explain,
            wall_ns=ports.wall_ns,
        )
        self.profile_views = ProfileViews(loop, self.decisions, self.placer, self.profiler)
        self.logs = InstanceLogs(self.inventory, self.decisions)
        self.reconciler.placements.settling = self._settling
        self.garbage = Garbage(
            loop, ports.blobs, self.images, self.volumes, idle=self._nothing_moves
        )
        self.inventory.on_change = self.on_cnm_change
        self.hardware = CardHardware(
            loop,
            board,
            ports.hardware,
            self.inventory,
            self.events,
            on_gone=self.fencing.on_function_gone,
        )

    def start(self, done: Callable[[JournalError | None], None]) -> None:
        """Read the journal, write the new epoch, then open the links: `done(None)` when the card
        answers requests. Raises JournalError when the journal can't be read."""
        self.journal.load()
        self.decisions.load()
        self.profile_store.load()
        self.placer.relearn()
        self.preemptor.restore()

        def begun(error: JournalError | None) -> None:
            if error is None:
                self._open_slots()
                self.ready = True
                self.events.emit(
                    EventCode.CARD_STARTED,
                    f"epoch {self.decisions.epoch}, board {self.board.name}, "
                    f"{len(self.decisions.assignments)} assignments"
                    + (", safe mode: new work is refused" if self.safe_mode else ""),
                )
            done(error)

        self.decisions.begin_epoch(self._ports.entropy.random_bytes(CARD_UUID_BYTES), begun)

    def _outwaited(self) -> None:
        """Whoever the daemon before had granted a lease has none any more, unless we know it: what
        was on slots that the board lost, or calls by another name, may go elsewhere."""
        self.inventory.outwaited = True
        self.reconciler.kick_all(list(self.decisions.assignments))

    def _open_slots(self) -> None:
        for slot in self.board.slots:
            self.inventory.add(self._open_slot(slot))
        self.inventory.outwaited = False
        self.loop.call_later(self.board.timing.fence_wait_ms * MS, self._outwaited)
        self.fencing.start()
        self.hardware.start()
        self.profile_store.start()
        for cnm in self.inventory:
            self.placer.update(cnm)
        self.loop.every(SCAN_NS, self.discovery.scan_cnms)
        self.loop.call_later(SETTLE_NS, self.reconciler.kick_pending)
        for name in list(self.decisions.workloads):
            self.reconciler.kick_workload(name)
            self.reconciler.finish_workload(name)
        self.reconciler.kick_all(list(self.decisions.assignments))
        for cnm in self.inventory:
            self.rebalancer.drain(cnm)
        self.garbage.start()
        self.history.start()
        self.rebalancer.tidying.start(self.board.thresholds.tidy_ms)

    def _open_slot(self, slot: Slot) -> Cnm:
        ports = self._ports.slots[slot.id]
        ends = {}
        for name, opener in (("mc", ports.open_mc), ("agent", ports.open_agent)):
            link = Link(self.loop, opener, name=f"{slot.id}/{name}", leads=True)
            link.on_dialect = partial(self._on_dialect, slot.id, name)
            ends[name] = Endpoint(
                self.loop,
                link,
                entropy=self._ports.entropy,
                name=f"{slot.id}/{name}",
                vendor_id=self.board.vendor_id,
                # the time-outs are made for the usual round trip
                patience=max(1, self.board.timing.round_trip_ms // Timing().round_trip_ms),
            )
        cnm = Cnm(
            id=slot.id,
            config=slot,
            lease=CardLease(self.board.timing, power_fence=False),
            ports=ports,
            mc=ends["mc"],
            agent=ends["agent"],
            runc_root=self._ports.runc_roots.get(slot.id),
        )
        cnm.mc.on_notice(Heartbeat, lambda beat: self._on_heartbeat(cnm, beat))
        cnm.mc.on_notice(Telemetry, lambda report: self._on_telemetry(cnm, report))
        cnm.agent.on_notice(
            InstanceTelemetry, lambda report: self.monitor.on_instances(cnm, report)
        )
        cnm.agent.on_notice(StatusChanged, lambda hint: self._on_hint(cnm, hint))
        return cnm

    # --- what the services tell each other ---

    def ctx(self, cnm: Cnm) -> Ctx:
        """Rule 1: who commands whom."""
        return Ctx(
            card_uuid=self.decisions.card_uuid, epoch=self.decisions.epoch, boot_id=cnm.boot_id
        )

    def _kick(self, instance: str) -> None:
        self.reconciler.kick(instance)

    def _on_dialect(self, cnm: str, link: str, old: Dialect, new: Dialect) -> None:
        self.events.emit(
            EventCode.LINK_DIALECT,
            f"{cnm}/{link}: it speaks serial dialect {new.value}, so do we from now on",
            cnm=cnm,
            data={"link": link, "from": old.value, "to": new.value},
        )

    def _on_heartbeat(self, cnm: Cnm, heartbeat: Heartbeat) -> None:
        self.fencing.on_heartbeat(cnm, heartbeat)
        if heartbeat.boot_id == cnm.boot_id:
            self.monitor.on_agent_age(cnm, heartbeat.agent_age_ms)
            if heartbeat.status_seq != cnm.observed_seq:
                self.status_reader.wish(cnm)

    def _on_telemetry(self, cnm: Cnm, report: Telemetry) -> None:
        self.monitor.on_telemetry(cnm, report)
        self.host.refresh(cnm)  # an agent that was restarted has another pid

    def _on_hint(self, cnm: Cnm, hint: StatusChanged) -> None:
        if hint.boot_id == cnm.boot_id and hint.status_seq != cnm.observed_seq:
            self.status_reader.wish(cnm)

    def _on_report(self, cnm: Cnm, changed: set[str]) -> None:
        self.monitor.on_report(cnm, changed)  # first: what is started again needs more then
        self.reconciler.on_report(cnm, changed)
        if changed:
            self.host.refresh(cnm)

    def _on_boot(self, cnm: Cnm) -> None:
        self.monitor.forget(cnm)
        self.host.forget(cnm)
        self.on_cnm_change(cnm)

    def _on_ready(self, cnm: Cnm) -> None:
        self.fencing.on_admitted(cnm)
        self.host.refresh(cnm)
        self.on_cnm_change(cnm)
        self.reconciler.on_report(cnm, ())

    def _on_fenced(self, cnm: Cnm) -> None:
        self.discovery.forget(cnm)
        self.monitor.forget(cnm)
        self.host.forget(cnm)

    def on_cnm_change(self, cnm: Cnm) -> None:
        """A module's state changed: who may go there, and what must leave."""
        self.placer.update(cnm)
        self.reconciler.kick_cnm(cnm)
        self.rebalancer.drain(cnm)

    def _moves_for_room(self) -> bool:
        return self.rebalancer.runner.busy

    def _nothing_moves(self) -> bool:
        return self.deployer.idle and not self.volumes.flushing and not self.submitting

    def _settling(self) -> str:
        if self.loop.now_ns() - self._start_ns >= SETTLE_NS:
            return ""
        late = [
            cnm.id
            for cnm in self.inventory
            if cnm.power_wanted
            and not cnm.quarantine
            and cnm.state in (CnmState.OFF, CnmState.BOOTING)
        ]
        return f"the card has just started and {', '.join(late)} still to boot" if late else ""

    def _use_of(self, cnm_id: str, instance: str) -> int:
        cnm = self.inventory.get(cnm_id)
        return self.monitor.cpu_milli(cnm, instance) if cnm is not None else 0

    def _on_loaded(self, cnm: Cnm) -> None:
        if not self.safe_mode and not cnm.draining:
            self.rebalancer.shed(cnm)

    def _any_loaded(self) -> bool:
        return any(self.monitor.loaded(cnm) for cnm in self.inventory)

    def _image_users(self, ref: str) -> list[str]:
        """Those that are on their way to the disk, too: it may not be gone when they are there."""
        known = {name: record.workload for name, record in self.decisions.workloads.items()}
        return [
            name
            for name, workload in (known | self.submitting).items()
            if any(normal_ref(component.image) == ref for component in workload.components)
        ]

    # --- for the control socket ---

    def check_open(self) -> None:
        """Raises RpcError when new work is not taken."""
        if self.safe_mode:
            raise refused(
                "safe_mode",
                "the daemon is in safe mode after repeated crashes: what runs is kept, new work "
                "is refused; see apf events, then restart it (apf down, apf up)",
            )
        if self.journal.failed:
            raise refused(
                "journal_failed",
                f"the journal can't be written ({self.journal.failed}): what runs is kept, new "
                "work is refused; mend the disk, then restart the daemon",
            )

    def flush_volume(self, name: str, done: Callable[[str], None]) -> None:
        """Bring a volume home now, from the running instance that owns it."""
        if name not in self.journal.items(Kind.VOLUME):
            done(f"there is no volume {name!r}")
            return
        for assignment in self.decisions.assignments.values():
            place = assignment.place
            if name not in assignment.volumes or place is None:
                continue
            cnm = self.inventory.get(place.cnm)
            if cnm is None or not cnm.current or cnm.boot_id != place.boot_id:
                continue
            self.volumes.flush(cnm, assignment.instance, place.generation, [name], done)
            return
        done("")  # nobody has it: what is on the card is all there is

    def status(self) -> dict[str, Any]:
        """`apf status`, without the pids."""
        states: dict[str, int] = {}
        for cnm in self.inventory:
            states[cnm.state.value] = states.get(cnm.state.value, 0) + 1
        leased = sum(cnm.lease.state is LeaseState.LEASED for cnm in self.inventory)
        return {
            "ready": self.ready,
            "safe_mode": self.safe_mode,
            "epoch": self.decisions.epoch,
            "card_uuid": self.decisions.card_uuid.hex(),
            "board": self.board.name,
            "board_file": self.board.files[0] if self.board.files else None,
            "uptime_ms": (self.loop.now_ns() - self._start_ns) // MS,
            "longest_stall_ms": self.loop.longest_turn_ns // MS,
            "cnms": states,
            "leased": leased,
            **self.hardware.status(),
            "workloads": len(self.decisions.workloads),
            "assignments": len(self.decisions.assignments),
            "journal": {
                "commits": self.journal.commits,
                "refused": self.journal.refused,
                "in_flight": self.journal.in_flight,
                "failed": self.journal.failed,
            },
            "counters": {
                "grants": self.fencing.grants,
                "events": self.events.next_seq - 1,
                "events_suppressed": self.events.suppressed,
                "blobs_dropped": self.garbage.dropped,
                "profiles": len(self.profiler),
                "profiles_saved": self.profile_store.saved,
                "profiles_unreadable": self.journal.dropped,
            },
        }

    def shut_down(self) -> None:
        """Bring the volumes home, as far as that is soon done; then stop the daemon, and with it
        (by its supervisor) the local board. Once: asked again, it is at it already."""
        if self._stopping:
            return
        self._stopping = True
        self.events.emit(EventCode.CARD_STOPPING, "on request")
        self.profile_store.save_all()
        placed = (a for a in self.decisions.assignments.values() if a.place is not None)
        waiting = {name for assignment in placed for name in assignment.volumes}
        ended = False

        def end() -> None:
            nonlocal ended
            if not ended:
                ended = True
                cancel()
                self.on_shutdown()

        def home(name: str, _error: str) -> None:
            waiting.discard(name)
            if not waiting:
                end()

        cancel = self.loop.call_later(LAST_FLUSH_NS, end)
        for name in sorted(waiting):
            self.flush_volume(name, partial(home, name))
        if not waiting:
            end()
