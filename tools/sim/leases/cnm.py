"""A module: the real lease guard, instance table, runner and init's lease timer; a modelled rest.

The agent is a process of its own that can be frozen while init goes on (rule 4). A kill takes at
most S on the module's clock: that is the platform's promise, not something to be proved here.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, cast

from firmware.cnm.ends import Identity, hello_reply
from firmware.cnm.init import Init
from firmware.cnm.init_server import status_of
from firmware.cnm.instances import InstanceTable
from firmware.cnm.lease_guard import LeaseGuard, Verdict
from firmware.cnm.mc import Vitals
from firmware.cnm.records import Instance, Prepared, RefusedError, key_of
from firmware.cnm.runner import Runner
from firmware.cnm.tombstones import Tombstones
from hal.errors import Unavailable
from hal.ports import Done, ExitReason, InstanceExit, InstanceHandle, InstanceSpec, Reactor, Runtime
from protocol.apf import (
    AbortRequest,
    BootState,
    CommitRequest,
    DeployReply,
    DeployRequest,
    Grant,
    Heartbeat,
    HelloRequest,
    InitState,
    InstanceStatus,
    PrepareRequest,
    Refusal,
    RefusalReason,
    RemoveRequest,
    Role,
    StartReply,
    StartRequest,
    StatusReply,
    StatusRequest,
    StopRequest,
)
from tools.sim.leases.clockwork import MS, Host, Kernel, Oscillator

if TYPE_CHECKING:
    from tools.sim.leases.run import Run

RUNTIME: Final = "model"
VENDOR: Final = 0x4150
KILLED: Final = InstanceExit(reason=ExitReason.SIGNALED, status=9)
EXITED: Final = InstanceExit(reason=ExitReason.EXITED, status=1)
START_NS: Final = 400 * MS
STAGE_NS: Final = 400 * MS
BEAT_HELD_NS: Final = 1_500 * MS  # at most, between reading its time and handing it over

Answer = Callable[[Any], None]
_PREPARED: dict[str, Prepared] = {}  # by key; a few generations of one instance


def prepared(name: str, generation: int) -> Prepared:
    key = key_of(name, generation)
    found = _PREPARED.get(key)
    if found is None:
        spec = InstanceSpec(key=key, argv=("app",), env={})
        found = _PREPARED[key] = Prepared(runtime=RUNTIME, spec=spec)
    return found


class ModelRuntime:
    """`hal.ports.Runtime`, as far as `Runner` and `InstanceTable` use it."""

    def __init__(self, boot: "Boot") -> None:
        self._boot = boot
        self._running: dict[str, _Process] = {}

    def submit_start(
        self,
        spec: InstanceSpec,
        _deadline_ns: int,
        done: Done[InstanceHandle],
        on_exit: Callable[[InstanceExit], None],
    ) -> None:
        process = self._running[spec.key] = _Process(self._boot, spec.key, done, on_exit)
        self._boot.later(self._boot.quick(START_NS), process.begin)

    def signal(self, key: str, _signal: int) -> None:
        process = self._running.get(key)
        if process is not None:
            self._boot.later(self._boot.quick(START_NS), lambda: process.end(EXITED))

    def kill_all(self, key: str) -> None:
        process = self._running.get(key)
        if process is not None:
            process.kill()

    def submit_remove(self, key: str, _deadline_ns: int, done: Done[None]) -> None:
        self._running.pop(key, None)
        done(None)

    def exit_one(self) -> None:
        """Fault: something ends by itself."""
        for process in list(self._running.values()):
            process.end(EXITED)

    def power_lost(self) -> None:
        for process in self._running.values():
            process.vanish()


class _Process:
    """starting -> live -> dead. Live is what the judge looks at."""

    def __init__(
        self,
        boot: "Boot",
        key: str,
        done: Done[InstanceHandle],
        on_exit: Callable[[InstanceExit], None],
    ) -> None:
        self._boot = boot
        self._key = key
        self._done = done
        self._on_exit = on_exit
        self._dying = False
        self.state = "starting"

    def begin(self) -> None:
        """Its program's first instruction."""
        if self.state != "starting":
            return
        self.state = "live"
        self._boot.run.goes_live(self._boot.name, self._key)
        self._boot.later(self._boot.quick(START_NS // 8), self._seen)

    def _seen(self) -> None:
        if self.state == "live":
            self._done(InstanceHandle(pid=2, start_ticks=1, cgroup=self._key))

    def kill(self) -> None:
        """Of what is being started too: the start then fails (the port's contract)."""
        if self.state == "starting":
            self.state = "dead"
            self._done(Unavailable("killed while it was being started"))
        elif self.state == "live" and not self._dying:
            self._dying = True
            self._boot.later(self._boot.stop_takes_ns(), lambda: self.end(KILLED))

    def end(self, how: InstanceExit) -> None:
        if self.state == "live":
            self.vanish()
            self._on_exit(how)

    def vanish(self) -> None:
        if self.state == "live":
            self._boot.run.is_dead(self._boot.name, self._key)
        self.state = "dead"


class Guardian(Init):
    """Init's own lease timer (rule 4) on a modelled boot; nothing else of init is built."""

    def __init__(
        self, reactor: Host, guard: LeaseGuard, table: InstanceTable, stop_ms: int
    ) -> None:
        self._reactor = cast("Any", reactor)
        self.guard = guard
        self.table = table
        self.vitals = Vitals(state=InitState.READY)
        self._timer_set = False
        self._ports = cast("Any", SimpleNamespace(log=lambda _text: None, halt=None))
        timing = SimpleNamespace(stop_ms=stop_ms)
        self._config = cast("Any", SimpleNamespace(timing=timing))

    def on_lease(self) -> None:
        self._on_lease()


class EvictingTable(InstanceTable):
    """The real table, whose tombstones are always as few as they may be: those that were made
    under an earlier daemon than the newest that was heard may have been dropped for want of room.
    """

    def __init__(
        self, *, reactor: Reactor, guard: LeaseGuard, runner: Runner, events: "Boot"
    ) -> None:
        super().__init__(reactor=reactor, guard=guard, runner=runner, events=events)
        self._tombstones = EvictingTombstones(events)


class EvictingTombstones(Tombstones):
    def __init__(self, boot: "Boot") -> None:
        super().__init__()
        self._boot = boot
        self._made_under: dict[str, int] = {}

    def is_dead(self, name: str, generation: int) -> bool:
        kept = self._made_under.get(name, 0) >= self._boot.heard_life
        return kept and super().is_dead(name, generation)

    def bury(self, name: str, generation: int, *, epoch: int, now_ns: int) -> None:
        self._made_under[name] = self._boot.heard_life
        super().bury(name, generation, epoch=epoch, now_ns=now_ns)


class Boot:
    """One boot of one module. It starts nothing by itself."""

    def __init__(self, run: "Run", name: str, boot_id: bytes, clock: Oscillator) -> None:
        self.run = run
        self.name = name
        self.alive = True
        rules = run.rules
        self.init = Host(run.kernel, clock)
        self.agent = Host(run.kernel, clock)
        self.identity = Identity(cnm_uuid=name.encode() * 4, boot_id=boot_id, vendor_id=VENDOR)
        self.binding = rules.binding(boot_id)
        self.guard = rules.guard(self.binding, clock.now_ns)
        self.runtime = ModelRuntime(self)
        runner = Runner(self.init, {RUNTIME: cast("Runtime", self.runtime)})
        self.table = rules.table(reactor=self.init, guard=self.guard, runner=runner, events=self)
        guards = self.agent if rules.guard_is_the_agents else self.init
        self.guardian = Guardian(guards, self.guard, self.table, run.timing.stop_ms)
        self.heard_life = 1  # the newest daemon whose hello was taken
        self._seq = 0
        self._hinting = False

    # --- time ---

    def later(self, delay_ns: int, call: Callable[[], None]) -> None:
        self.init.call_later(delay_ns, call)

    def quick(self, most_ns: int) -> int:
        """How long something takes here: often nothing."""
        rng = self.run.kernel.rng
        return 0 if rng.random() < 0.6 else int(rng.random() * most_ns)

    def stop_takes_ns(self) -> int:
        rng = self.run.kernel.rng
        worst_ns = self.run.timing.stop_ms * MS
        return worst_ns if rng.random() < self.run.weather.worst_stop else int(rng.random() * MS)

    def die(self) -> None:
        """Power or kernel gone: everything ends at this moment, and nobody is told."""
        self.alive = self.init.alive = self.agent.alive = False
        self.runtime.power_lost()

    # --- InstanceEvents ---

    def changed(self) -> None:
        if not self._hinting and self.run.kernel.rng.random() < 0.5:  # a heartbeat says it too
            self._hinting = True
            self.init.post(self._hint)

    def _hint(self) -> None:
        self._hinting = False
        boot_id, seq = self.identity.boot_id, self.table.status_seq
        self.run.net.to_card(self.name, "agent", lambda card: card.on_hint(self.name, boot_id, seq))

    def running(self, instance: Instance, output_fd: int) -> None:
        pass

    def ended(self, instance: Instance) -> None:
        pass

    def removed(self, instance: Instance) -> None:
        pass

    # --- heartbeats and grants (rule 3) ---

    def beat(self) -> None:
        """Its time is read first; how long it lies about before it leaves is anybody's guess."""
        rng, span_ns = self.run.kernel.rng, self.run.weather.beat_ns
        self.later(int(span_ns * (0.5 + rng.random())), self.beat)
        self._seq += 1
        self.guard.on_heartbeat_sent(self._seq, self.init.now_ns())
        beat = Heartbeat(
            boot_id=self.identity.boot_id,
            seq=self._seq,
            init_state=InitState.READY,
            bound_epoch=self.binding.epoch,
            lease_left_ms=0,
            agent_age_ms=0,
            status_seq=self.table.status_seq,
            instances=0,
        )

        def hand_over() -> None:
            self.run.net.to_card(self.name, "mc", lambda card: card.on_heartbeat(self.name, beat))

        if rng.random() < 0.9:
            hand_over()
        else:
            self.later(int(rng.random() * BEAT_HELD_NS), hand_over)

    def on_grant(self, grant: Grant) -> None:
        verdict = self.guard.on_grant(
            grant.seq, grant.lease_ms, grant.card_uuid, grant.epoch, grant.boot_id
        )
        if verdict is Verdict.OK:
            self.guardian.on_lease()

    # --- requests ---

    def serve(self, body: Any, answer: Answer) -> None:
        """Carry out one request; a repeated one too, which is more than an endpoint would do."""
        try:
            self._serve(body, answer)
        except RefusedError as exc:
            answer(exc.to_refusal())

    def _serve(self, body: Any, answer: Answer) -> None:
        table = self.table
        match body:
            case HelloRequest():
                answer(self._hello(body))
            case StatusRequest():
                answer(self._status())
            case DeployRequest() | PrepareRequest():
                state = table.stage(
                    body.ctx, body.instance, body.generation, spec_digest=body.spec_digest
                )
                ready = prepared(body.instance, body.generation)
                self.later(
                    self.quick(STAGE_NS),
                    lambda: table.prepared(body.instance, body.generation, ready),
                )
                answer(DeployReply(state=state, status_seq=table.status_seq))
            case StartRequest() | CommitRequest():
                state = table.start(body.ctx, body.instance, body.generation)
                answer(StartReply(state=state, status_seq=table.status_seq))
            case StopRequest():
                state = table.stop(body.ctx, body.instance, body.generation, grace_ms=body.grace_ms)
                answer(StartReply(state=state, status_seq=table.status_seq))
            case AbortRequest():
                state = table.abort(body.ctx, body.instance, body.generation)
                answer(StartReply(state=state, status_seq=table.status_seq))
            case RemoveRequest():
                table.remove(
                    body.ctx,
                    body.instance,
                    body.generation,
                    lambda error: answer(
                        StartReply(state=0, status_seq=table.status_seq)
                        if error is None
                        else error.to_refusal()
                    ),
                )
            case _:
                raise AssertionError(f"no module would get {body}")

    def _hello(self, request: HelloRequest) -> Any:
        verdict = self.binding.introduce(request.card_uuid, request.epoch)
        if verdict is Verdict.STALE_EPOCH:
            return Refusal(reason=RefusalReason.STALE_EPOCH, text="an older epoch")
        self.heard_life = max(self.heard_life, int(request.software))
        return hello_reply(
            self.identity,
            bound_card_uuid=self.binding.card_uuid,
            role=Role.AGENT,
            boot_state=BootState.READY,
        )

    def look(self) -> tuple[InstanceStatus, ...]:
        return tuple(InstanceStatus(**status_of(found)) for found in self.table.listing())

    def _status(self) -> StatusReply:
        entries = self.look()
        return StatusReply(
            boot_id=self.identity.boot_id,
            status_seq=self.table.status_seq,
            total=len(entries),
            entries=entries,
        )


class Module:
    """A slot with a module in it: power, and the boot that runs now."""

    def __init__(self, run: "Run", index: int, ppm: int) -> None:
        self.name = f"cnm{index}"
        self.run = run
        self.boot: Boot | None = None
        self.boots = 0
        self._index = index
        self._ppm = ppm
        self._memory = ""  # what ran last; only a module without rule 9's last sentence looks at it

    @property
    def kernel(self) -> Kernel:
        return self.run.kernel

    def start(self) -> Boot:
        """Boot: fresh memory, a fresh boot id, a clock that begins anew."""
        self.boots += 1
        number = 1 if self.run.rules.boot_ids_repeat else self.boots
        boot_id = bytes((self._index + 1, number)) * 8
        begin_ns = (1 << 40) + self.kernel.rng.getrandbits(39) - self.kernel.now
        clock = Oscillator(self.kernel, self._ppm, begin_ns)
        boot = self.boot = Boot(self.run, self.name, boot_id, clock)
        if self.boots > 1:
            boot.later(boot.quick(200 * MS), boot.beat)
            if self.run.rules.boots_start_what_ran and self._memory:
                self.run.goes_live(self.name, self._memory)
        return boot

    def boot_again(self) -> None:
        if self.boot is None and self.run.power.state(self.name).power_good:
            self.start()

    def crash(self) -> None:
        if self.boot is not None:
            self._memory = self.run.live_on(self.name)
            self.boot.die()
            self.boot = None
