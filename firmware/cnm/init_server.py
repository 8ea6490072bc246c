"""What init does for its agent, over the local stream. Init owns the state; the agent asks.

Operations (arguments -> answer; ctx as `records.ctx_to_json`):

    info     -> boot, cnm_uuid, runtimes, bound, epoch
    hello    card, epoch -> verdict, bound                     binds as a command would
    look     ctx, instance, generation -> state, generation    admission without an effect
    stage    ctx, instance, generation, spec, volumes -> state
    prepared instance, generation, prepared | error            the end of a staging
    start | stop (+ grace_ms) | abort | remove                 ctx, instance, generation -> state
    status   cursor -> boot, total, next, entries
    usage    cursor -> boot, next, entries
    held     -> instances                                      what staging may not delete
Every answer also has status_seq. Notice from the agent: ping (link_tx_bytes, link_rx_bytes).
"""

from collections.abc import Callable
from typing import Any, Final

from firmware.cnm.ends import Identity
from firmware.cnm.instances import InstanceTable
from firmware.cnm.lease_guard import LeaseGuard
from firmware.cnm.local_stream import Answer, Args, Reply
from firmware.cnm.mc import Vitals
from firmware.cnm.prepared_json import prepared_from_json
from firmware.cnm.records import (
    U64_MAX,
    Instance,
    RefusedError,
    ctx_from_json,
    number_of,
    uuid_of,
)
from firmware.cnm.runner import Runner
from firmware.fields import FieldError
from hal.errors import HalError
from hal.ports import ExitReason as PortExitReason
from hal.ports import Reactor, Usage
from protocol.apf import (
    CGROUP_MAX_BYTES,
    INSTANCE_MAX_BYTES,
    STATUS_END,
    STATUS_ENTRIES_MAX,
    USAGE_MAX,
    ExitReason,
    InstanceState,
    RefusalReason,
    clip,
)

_EXIT_REASONS: Final = {
    PortExitReason.EXITED: ExitReason.EXITED,
    PortExitReason.SIGNALED: ExitReason.SIGNALED,
    PortExitReason.OOM_KILLED: ExitReason.OOM_KILLED,
    PortExitReason.UNKNOWN: ExitReason.UNKNOWN,
}


class InitServer:
    """Loop thread only."""

    def __init__(
        self,
        *,
        reactor: Reactor,
        identity: Identity,
        table: InstanceTable,
        guard: LeaseGuard,
        runner: Runner,
        vitals: Vitals,
        on_ping: Callable[[], None],
    ) -> None:
        self._reactor = reactor
        self._identity = identity
        self._table = table
        self._guard = guard
        self._runner = runner
        self._vitals = vitals
        self._on_ping = on_ping
        self._operations: dict[str, Callable[[Args], Args]] = {
            "info": self._info,
            "hello": self._hello,
            "look": self._look,
            "stage": self._stage,
            "prepared": self._prepared,
            "start": self._start,
            "stop": self._stop,
            "abort": self._abort,
            "status": self._status,
            "usage": self._usage,
            "held": self._held,
        }

    def on_request(self, operation: str, args: Args, reply: Reply) -> None:
        """Answers at once, but for `remove`."""
        self._on_alive()
        try:
            if operation == "remove":
                self._remove(args, reply)
                return
            handler = self._operations[operation]
            answer = {**handler(args), "status_seq": self._table.status_seq}
        except RefusedError as exc:
            reply(exc)
        except (KeyError, TypeError, ValueError, FieldError) as exc:
            text = f"init: {operation}: unknown, or bad arguments: {exc!r}"
            reply(RefusedError(RefusalReason.INTERNAL, text))
        else:
            reply(answer)

    def on_notice(self, operation: str, args: Args) -> None:
        """A sign of life is a sign of life, whatever it says."""
        if operation == "ping":
            for name in ("link_tx_bytes", "link_rx_bytes"):
                if name in args:  # else they are as they were
                    value = args[name]
                    known = type(value) is int and 0 <= value <= U64_MAX  # else no telemetry
                    setattr(self._vitals, name, value if known else None)
        self._on_alive()

    def _on_alive(self) -> None:
        self._vitals.agent_seen_ns = self._reactor.now_ns()
        self._on_ping()

    def _info(self, _args: Args) -> Args:
        return {
            "boot": self._identity.boot_id.hex(),
            "cnm_uuid": self._identity.cnm_uuid.hex(),
            "runtimes": list(self._runner.names),
            "bound": self._guard.binding.card_uuid.hex(),
            "epoch": self._guard.binding.epoch,
        }

    def _hello(self, args: Args) -> Args:
        binding = self._guard.binding
        verdict = binding.introduce(uuid_of(args, "card"), number_of(args, "epoch"))
        return {"verdict": verdict.value, "bound": binding.card_uuid.hex(), "epoch": binding.epoch}

    def _look(self, args: Args) -> Args:
        found = self._table.look(ctx_from_json(args["ctx"]), *_named(args))
        if found is None:
            return {"state": int(InstanceState.ABSENT), "generation": 0, "volumes": []}
        return {
            "state": int(found.state),
            "generation": found.generation,
            "volumes": list(found.volumes),
        }

    def _stage(self, args: Args) -> Args:
        state = self._table.stage(
            ctx_from_json(args["ctx"]),
            *_named(args),
            spec_digest=bytes.fromhex(args["spec"]),
            volumes=_volumes(args),
        )
        return {"state": int(state)}

    def _prepared(self, args: Args) -> Args:
        error = args.get("error")
        result = str(error) if error is not None else prepared_from_json(args["prepared"])
        self._table.prepared(*_named(args), result)
        return {}

    def _start(self, args: Args) -> Args:
        return {"state": int(self._table.start(ctx_from_json(args["ctx"]), *_named(args)))}

    def _stop(self, args: Args) -> Args:
        grace_ms = number_of(args, "grace_ms")
        ctx = ctx_from_json(args["ctx"])
        return {"state": int(self._table.stop(ctx, *_named(args), grace_ms=grace_ms))}

    def _abort(self, args: Args) -> Args:
        return {"state": int(self._table.abort(ctx_from_json(args["ctx"]), *_named(args)))}

    def _remove(self, args: Args, reply: Reply) -> None:
        def done(error: RefusedError | None) -> None:
            answer: Answer = {"status_seq": self._table.status_seq}
            reply(answer if error is None else error)

        self._table.remove(ctx_from_json(args["ctx"]), *_named(args), done)

    def _status(self, args: Args) -> Args:
        instances = self._table.listing()
        cursor = number_of(args, "cursor", STATUS_END)
        page = instances[cursor : cursor + STATUS_ENTRIES_MAX]
        after = cursor + len(page)
        return {
            "boot": self._identity.boot_id.hex(),
            "total": len(instances),
            "next": after if after < len(instances) else STATUS_END,
            "entries": [status_of(instance) for instance in page],
        }

    def _usage(self, args: Args) -> Args:
        alive = [i for i in self._table.listing() if i.state is InstanceState.RUNNING]
        cursor = number_of(args, "cursor", STATUS_END)
        page = alive[cursor : cursor + USAGE_MAX]
        after = cursor + len(page)
        return {
            "boot": self._identity.boot_id.hex(),
            "next": after if after < len(alive) else STATUS_END,
            "entries": [self._usage_of(instance) for instance in page],
        }

    def _usage_of(self, instance: Instance) -> dict[str, Any]:
        try:
            usage = self._runner.runtime_of(instance).usage(instance.key)
        except HalError:
            usage = Usage()
        return {
            "instance": instance.name,
            "generation": instance.generation,
            "cpu_us": usage.cpu_us,
            "memory_bytes": usage.memory_bytes,
            "memory_peak_bytes": usage.memory_peak_bytes,
            "io_bytes": usage.io_bytes,
            "pids": usage.pids,
        }

    def _held(self, _args: Args) -> Args:
        return {
            "instances": [
                {
                    "instance": found.name,
                    "generation": found.generation,
                    "key": found.key,
                    "state": int(found.state),
                    "spec": found.spec_digest.hex(),
                    "volumes": list(found.volumes),
                }
                for found in self._table.listing()
            ]
        }


def status_of(instance: Instance) -> dict[str, Any]:
    """The fields of a `protocol.apf.InstanceStatus`."""
    handle = instance.handle if instance.alive else None
    cgroup = instance.handle.cgroup if instance.handle else ""
    end = instance.exit
    return {
        "instance": instance.name,
        "generation": instance.generation,
        "state": int(instance.reported),
        "pid": handle.pid if handle else 0,
        "start_ticks": handle.start_ticks if handle else 0,
        "cgroup": cgroup if len(cgroup.encode()) <= CGROUP_MAX_BYTES else "",
        "health": int(instance.health),
        "exit_reason": int(_EXIT_REASONS[end.reason] if end else ExitReason.NONE),
        "exit_status": end.status if end else 0,
        "text": clip(instance.text),
    }


def _named(args: Args) -> tuple[str, int]:
    name = args["instance"]
    if not isinstance(name, str) or not name.isprintable() or not _fits(name, INSTANCE_MAX_BYTES):
        raise ValueError(f"instance: {name!r:.60}, wanted a name of 1..{INSTANCE_MAX_BYTES} bytes")
    return name, number_of(args, "generation")


def _volumes(args: Args) -> tuple[str, ...]:
    names = args["volumes"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"volumes: {names!r:.60}, wanted names")
    return tuple(names)


def _fits(text: str, limit: int) -> bool:
    return 0 < len(text.encode()) <= limit
