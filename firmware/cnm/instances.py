"""The instances of this CNM and the rules for commands on them. DESIGN section 4, rules 1, 4, 9.

    STAGING -> PREPARED -> STARTING -> RUNNING -> STOPPING -> STOPPED   (by the card or the lease)
         \\         \\          \\          \\---------------> EXITED    (it ended by itself)
          \\---------\\----------\\------------------------> FAILED    (text says why)

- A command of a foreign card or boot, of a lower epoch or of a lower generation is refused and
  changes nothing. An equal generation is idempotent: it answers with the state as it is.
- A generation that was stopped, removed, aborted or killed by the lease is dead for good
  (`Tombstones`): nothing stages or starts it again in this boot.
- Nothing starts without a fresh lease, and RUNNING is said only when the runtime saw it run.
- `status_seq` grows with every change that `status` can show.

Bound: LIMIT instances, dead ones included until they are removed; LIMIT is the answer when full.
"""

from collections.abc import Callable
from typing import Final, Protocol

from firmware.cnm.lease_guard import LeaseGuard, Verdict
from firmware.cnm.records import (
    DEAD,
    LEASE_EXPIRED_TEXT,
    UNSTARTED,
    Instance,
    Prepared,
    RefusedError,
    key_of,
    refusal_of,
)
from firmware.cnm.runner import Runner
from firmware.cnm.tombstones import Tombstones
from hal.errors import HalError
from hal.ports import InstanceExit, InstanceHandle, Reactor
from protocol.apf import Ctx, Health, InstanceState, RefusalReason

INSTANCES_LIMIT: Final = 256
GRACE_MAX_MS: Final = 600_000  # longer is cut: the lease of a dead card ends it sooner anyway
STATUS_SEQ_MASK: Final = 0xFFFF_FFFF
BUSY_MS: Final = 100


class InstanceEvents(Protocol):
    """Who is told what happens to instances: log capture, health checks, the status notice."""

    def changed(self) -> None:
        """`status_seq` grew."""
        ...

    def running(self, instance: Instance, output_fd: int) -> None: ...

    def ended(self, instance: Instance) -> None: ...

    def removed(self, instance: Instance) -> None:
        """The name is no longer in the table."""
        ...


class InstanceTable:
    """Loop thread only. Commands raise `RefusedError`; what they return is the state after."""

    def __init__(
        self, *, reactor: Reactor, guard: LeaseGuard, runner: Runner, events: InstanceEvents
    ) -> None:
        self.status_seq = 0
        self._reactor = reactor
        self._guard = guard
        self._runner = runner
        self._events = events
        self._tombstones = Tombstones()
        self._instances: dict[str, Instance] = {}  # at most INSTANCES_LIMIT
        self._stopping = ""  # why nothing may start any more

    # --- looking ---

    def listing(self) -> list[Instance]:
        """All of them, sorted by name."""
        return [self._instances[name] for name in sorted(self._instances)]

    @property
    def count(self) -> int:
        return len(self._instances)

    def alive_count(self) -> int:
        return sum(1 for instance in self._instances.values() if instance.alive)

    def find(self, name: str) -> Instance | None:
        return self._instances.get(name)

    def admit(self, ctx: Ctx) -> None:
        """Rule 1, the part about the card, its epoch and the boot."""
        verdict = self._guard.binding.admit(ctx.card_uuid, ctx.epoch, ctx.boot_id)
        if verdict is not Verdict.OK:
            raise refusal_of(verdict)

    def look(self, ctx: Ctx, name: str, generation: int) -> Instance | None:
        """What a command for this generation would meet; changes nothing."""
        self.admit(ctx)
        return self._newest_up_to(name, generation)

    # --- commands ---

    def stage(
        self,
        ctx: Ctx,
        name: str,
        generation: int,
        *,
        spec_digest: bytes,
        volumes: tuple[str, ...] = (),
    ) -> InstanceState:
        """Take (name, generation) in. STAGING means: make it ready and call `prepared`."""
        self.admit(ctx)
        self._refuse_dead(name, generation)
        old = self._newest_up_to(name, generation)
        if old is not None and old.generation == generation:
            if old.spec_digest != spec_digest:
                raise RefusedError(
                    RefusalReason.BAD_SPEC, f"{name} g{generation} was staged with another spec"
                )
            if old.state is not InstanceState.FAILED or old.handle or old.prepared:
                return old.state
        elif old is not None and old.alive:
            raise RefusedError(
                RefusalReason.BAD_STATE, f"{name} g{old.generation} is {old.state.name} here"
            )
        elif old is not None and old.removing:
            raise RefusedError(
                RefusalReason.BUSY, f"{name} is being removed", retry_after_ms=BUSY_MS
            )
        if old is None:
            self._refuse_full(name)
        elif old.generation < generation:
            self._bury(name, old.generation)
            self._forget_run(old)
        self._instances[name] = Instance(
            name=name,
            generation=generation,
            key=key_of(name, generation),
            spec_digest=spec_digest,
            volumes=volumes,
        )
        self._change()
        return InstanceState.STAGING

    def prepared(self, name: str, generation: int, result: Prepared | str) -> None:
        """Staging is over, with a text when it failed. Stale news are ignored."""
        instance = self._instances.get(name)
        if (
            instance is None
            or instance.generation != generation
            or instance.state is not InstanceState.STAGING
        ):
            return
        if isinstance(result, str):
            instance.state, instance.text = InstanceState.FAILED, f"staging failed: {result}"
        elif result.runtime not in self._runner.names:
            instance.state = InstanceState.FAILED
            instance.text = f"no runtime {result.runtime!r}; here: {', '.join(self._runner.names)}"
        elif result.spec.key != instance.key:  # what we could not find again, we could not kill
            instance.state = InstanceState.FAILED
            instance.text = f"prepared as {result.spec.key!r}, its key is {instance.key!r}"
        else:
            instance.state, instance.prepared = InstanceState.PREPARED, result
        self._change()

    def start(self, ctx: Ctx, name: str, generation: int) -> InstanceState:
        """Run a prepared instance; a repeated start answers with what became of the first."""
        self.admit(ctx)
        instance = self._exactly(name, generation)
        if instance.state is InstanceState.STAGING:
            raise RefusedError(
                RefusalReason.BUSY, f"{name} is being staged", retry_after_ms=BUSY_MS
            )
        if instance.state is not InstanceState.PREPARED:
            return instance.state
        self._refuse_dead(name, generation)
        if self._stopping:
            raise RefusedError(RefusalReason.BAD_STATE, self._stopping)
        if not self._guard.fresh(self._reactor.now_ns()):
            raise RefusedError(RefusalReason.NO_LEASE, "no fresh lease")
        instance.state = InstanceState.STARTING
        self._change()
        self._runner.start(
            instance,
            lambda result: self._on_started(instance, result),
            lambda end: self._on_exit(instance, end),
        )
        return instance.state

    def stop(self, ctx: Ctx, name: str, generation: int, *, grace_ms: int) -> InstanceState:
        """Bury the generation and end what runs of it or of a lower one.

        An instance that is not here is ABSENT, and stays so: a delayed start is stale from now on.
        """
        self.admit(ctx)
        instance = self._newest_up_to(name, generation)
        if instance is None:
            self._refuse_full(name)
            self._bury(name, generation)
            return InstanceState.ABSENT
        self._bury(name, generation)
        self._stop(instance, min(grace_ms, GRACE_MAX_MS))
        return instance.reported

    def abort(self, ctx: Ctx, name: str, generation: int) -> InstanceState:
        """Drop what was prepared and never started."""
        self.admit(ctx)
        instance = self._newest_up_to(name, generation)
        if instance is None:
            self._refuse_full(name)
        elif instance.state not in UNSTARTED and instance.prepared is not None:
            raise RefusedError(
                RefusalReason.BAD_STATE, f"{name} is {instance.state.name}: stop and remove it"
            )
        self._bury(name, generation)
        if instance is not None:
            self._drop(instance)
        return InstanceState.ABSENT

    def remove(
        self,
        ctx: Ctx,
        name: str,
        generation: int,
        done: Callable[[RefusedError | None], None],
    ) -> None:
        """Forget a dead instance and all that its runtime kept; absent is a success."""
        self.admit(ctx)
        instance = self._newest_up_to(name, generation)
        if instance is None:
            self._refuse_full(name)
        elif instance.alive:
            raise RefusedError(
                RefusalReason.BAD_STATE, f"{name} is {instance.state.name}: stop it first"
            )
        elif instance.removing:
            raise RefusedError(
                RefusalReason.BUSY, f"{name} is being removed", retry_after_ms=BUSY_MS
            )
        self._bury(name, generation)
        if instance is None:
            done(None)
            return
        instance.removing = True
        if instance.state in UNSTARTED:
            instance.state = InstanceState.STOPPED
            self._change()
        self._runner.remove(instance, lambda result: self._on_removed(instance, result, done))

    # --- the lease's end, the CNM's end ---

    def end_all(self, text: str) -> None:
        """The lease has ended: kill everything, bury every generation."""
        for instance in list(self._instances.values()):
            self._bury(instance.name, instance.generation)
            if instance.state in UNSTARTED:
                instance.state, instance.text = InstanceState.STOPPED, text
                self._change()
            elif instance.alive and not instance.doom:
                instance.doom = instance.text = text
                if instance.state is InstanceState.RUNNING:
                    instance.state = InstanceState.STOPPING
                self._change()
                self._runner.kill(instance)

    def stop_all(self, text: str, grace_ms: int) -> None:
        """The CNM goes down: no start from now on, and at most `grace_ms` for what runs."""
        self._stopping = text
        for instance in list(self._instances.values()):
            self._bury(instance.name, instance.generation)
            self._stop(instance, grace_ms)

    def set_health(self, instance: Instance, health: Health) -> None:
        """What the healthcheck found."""
        if instance.health is not health and instance.state is InstanceState.RUNNING:
            instance.health = health
            self._change()

    # --- inside ---

    def _change(self) -> None:
        self.status_seq = (self.status_seq + 1) & STATUS_SEQ_MASK
        self._events.changed()

    def _bury(self, name: str, generation: int) -> None:
        self._tombstones.bury(
            name,
            generation,
            epoch=self._guard.binding.epoch,
            now_ns=self._reactor.now_ns(),
        )

    def _refuse_dead(self, name: str, generation: int) -> None:
        if self._tombstones.is_dead(name, generation):
            raise RefusedError(
                RefusalReason.STALE_GENERATION, f"{name} g{generation} was ended here"
            )

    def _refuse_full(self, name: str) -> None:
        """Room for a new name: in the table, and later among the tombstones."""
        if len(self._instances) >= INSTANCES_LIMIT:
            raise RefusedError(
                RefusalReason.LIMIT, f"{INSTANCES_LIMIT} instances are here; remove dead ones"
            )
        room = self._tombstones.has_room(
            name,
            reserved=len(self._instances),
            epoch=self._guard.binding.epoch,
            now_ns=self._reactor.now_ns(),
        )
        if not room:
            raise RefusedError(RefusalReason.LIMIT, "too many instances ended within a minute")

    def _newest_up_to(self, name: str, generation: int) -> Instance | None:
        """The instance of that name; a higher generation makes the command stale."""
        instance = self._instances.get(name)
        if instance is not None and instance.generation > generation:
            raise RefusedError(
                RefusalReason.STALE_GENERATION,
                f"{name} is at g{instance.generation} here, the command is for g{generation}",
            )
        return instance

    def _exactly(self, name: str, generation: int) -> Instance:
        instance = self._newest_up_to(name, generation)
        if instance is None or instance.generation < generation:
            self._refuse_dead(name, generation)
            raise RefusedError(RefusalReason.UNKNOWN_INSTANCE, f"{name} g{generation} is not here")
        return instance

    def _stop(self, instance: Instance, grace_ms: int) -> None:
        if instance.state in UNSTARTED:
            instance.state = InstanceState.STOPPED
            self._change()
        elif instance.alive:
            first, instance.stop_wanted = not instance.stop_wanted, True
            if instance.state is InstanceState.RUNNING:
                instance.state = InstanceState.STOPPING
                self._change()
            elif instance.state is InstanceState.STARTING and first:
                self._change()  # of what is reported
            if instance.state is InstanceState.STOPPING:
                self._runner.stop(instance, grace_ms)

    def _on_started(self, instance: Instance, result: InstanceHandle | HalError) -> None:
        if instance.state is not InstanceState.STARTING:
            return
        if isinstance(result, HalError):
            stopped = instance.stop_wanted or bool(instance.doom)
            instance.state = InstanceState.STOPPED if stopped else InstanceState.FAILED
            instance.text = instance.doom or f"start failed: {result}"
            self._runner.kill_once(instance)  # what half of it may have been started
            self._change()
            return
        instance.handle = result
        if not self._guard.fresh(self._reactor.now_ns()):
            instance.doom = instance.text = LEASE_EXPIRED_TEXT
        wanted_dead = bool(instance.doom) or instance.stop_wanted
        instance.state = InstanceState.STOPPING if wanted_dead else InstanceState.RUNNING
        self._change()
        self._events.running(instance, result.output_fd)
        # it was wanted dead while it started: it never had a right to run, so no grace
        if wanted_dead:
            self._runner.kill(instance)

    def _on_exit(self, instance: Instance, end: InstanceExit) -> None:
        if not instance.alive:
            return
        instance.cancel_kill()
        instance.exit = end
        instance.health = Health.NONE
        if instance.stop_wanted or instance.doom:
            instance.state = InstanceState.STOPPED
        else:
            instance.state = InstanceState.EXITED
        instance.text = instance.doom or end.text or instance.text
        self._change()
        self._events.ended(instance)

    def _on_removed(
        self,
        instance: Instance,
        result: HalError | None,
        done: Callable[[RefusedError | None], None],
    ) -> None:
        instance.removing = False
        if isinstance(result, HalError):
            instance.text = f"remove: {result}"
            self._change()
            done(RefusedError(RefusalReason.INTERNAL, instance.text))
            return
        self._drop(instance)
        done(None)

    def _drop(self, instance: Instance) -> None:
        assert not instance.alive, "only dead or unstarted instances are dropped"
        if self._instances.get(instance.name) is instance:
            del self._instances[instance.name]
            self._change()
            self._events.removed(instance)

    def _forget_run(self, old: Instance) -> None:
        """A newer generation takes its place; its cgroups and state go in the background."""
        assert old.state in DEAD or old.state in UNSTARTED
        self._runner.remove(old, lambda _result: None)
