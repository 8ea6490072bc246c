"""What the control socket offers: one handler a method, over the card's services.

A handler checks its input whole before it changes anything; what it has promised is on disk
before it answers.
"""

import base64
from collections.abc import Callable, Mapping
from typing import Any, Final

from firmware.card import Card
from firmware.decisions import WorkloadDecision
from firmware.events import EventCode
from firmware.images import register_image_methods
from firmware.inventory import Cnm
from firmware.journal import JournalError
from firmware.logs import LogPart
from firmware.placement_api import PlacementApi
from firmware.reconciler import split_name
from firmware.rpc import BUSY, Call, Deferred, MethodTable, Role, RpcError, busy, refused
from firmware.specs import runtime_of
from firmware.workload import HOST_IMAGE, Workload

LOG_READ_BYTES: Final = 256 << 10
WORKLOADS_LIMIT: Final = 1024
INSTANCES_LIMIT: Final = 8192


class Api:
    """Registers all methods on a table."""

    def __init__(
        self,
        card: Card,
        *,
        pids: Callable[[], Mapping[str, int | None]],
        last_crash: Callable[[], object] = lambda: {"found": False, "kept": 0},
    ) -> None:
        """`pids()`: daemon_pid, keeper_pid and their like, for `status`; `last_crash()`: what is
        known of the last life that did not end well."""
        self._card = card
        self._pids = pids
        self._last_crash = last_crash

    def register(self, table: MethodTable) -> None:
        """Reading is for all who may open the socket; the rest as DESIGN D9 says."""
        table.add("status", Role.READ, self._status)
        table.add("cnm.list", Role.READ, self._cnm_list)
        table.add("cnm.show", Role.READ, self._cnm_show)
        table.add("cnm.power", Role.ADMIN, self._cnm_power)
        table.add("cnm.drain", Role.OPERATE, lambda call: self._drain(call, draining=True))
        table.add("cnm.undrain", Role.OPERATE, lambda call: self._drain(call, draining=False))
        table.add("workload.submit", Role.OPERATE, self._submit)
        table.add("workload.ps", Role.READ, self._ps)
        table.add("workload.list", Role.READ, self._workloads)
        table.add("workload.remove", Role.OPERATE, self._remove)
        table.add("instance.migrate", Role.OPERATE, self._migrate)
        table.add("instance.logs", Role.READ, self._logs)
        table.add("profile.list", Role.READ, self._profiles)
        table.add("profile.show", Role.READ, self._profile)
        table.add("volume.list", Role.READ, lambda _call: self._card.volumes.show())
        table.add("volume.flush", Role.OPERATE, self._flush)
        table.add("events.subscribe", Role.READ, self._subscribe)
        table.add("events.last_crash", Role.READ, self._show_crash)
        table.add("shutdown", Role.ADMIN, self._shutdown)
        register_image_methods(table, self._card.images)
        PlacementApi(self._card).register(table)

    # --- card and modules ---

    def _status(self, _call: Call) -> object:
        return self._card.status() | dict(self._pids())

    def _cnm_list(self, _call: Call) -> object:
        return self._card.views.cnms()

    def _cnm(self, name: str) -> Cnm:
        cnm = self._card.inventory.get(name)
        if cnm is None:
            known = ", ".join(c.id for c in self._card.inventory)
            raise refused("unknown_cnm", f"there is no module {name!r}; this card has {known}")
        return cnm

    def _cnm_show(self, call: Call) -> object:
        cnm = self._cnm(call.params.text("id"))
        call.params.done()
        return self._card.views.cnm_detail(cnm)

    def _cnm_power(self, call: Call) -> object:
        slot = call.params.integer("slot", low=0, high=1023)
        action = call.params.choice("action", ("on", "off"))
        call.params.done()
        cnm = self._card.inventory.by_slot(slot)
        if cnm is None:
            raise refused("unknown_slot", f"this board has no slot {slot}")
        answer = Deferred()

        def done(good: bool) -> None:
            if good:
                answer.complete({"slot": slot, "cnm": cnm.id, "power_wanted": action})
            else:
                answer.fail(_journal_failed())

        self._card.fencing.set_power(cnm, action == "on", done)
        return answer

    def _drain(self, call: Call, *, draining: bool) -> object:
        cnm = self._cnm(call.params.text("id"))
        call.params.done()
        answer = Deferred()

        def done(good: bool) -> None:
            if not good:
                answer.fail(_journal_failed())
                return
            code = EventCode.CNM_DRAINING if draining else EventCode.CNM_UNDRAINED
            self._card.events.emit(code, f"{cnm.id}: on request", cnm=cnm.id)
            self._card.on_cnm_change(cnm)
            answer.complete({"id": cnm.id, "draining": draining})

        self._card.decisions.keep(cnm, done, draining=draining)
        return answer

    # --- workloads ---

    def _submit(self, call: Call) -> object:
        document = call.params.rest().get("workload")
        workload = Workload.from_json(document)
        self._card.check_open()
        known = self._card.decisions.workloads
        if workload.name in known:
            word = "is still being removed" if known[workload.name].deleted else "is there already"
            raise refused(
                "name_taken",
                f"a workload named {workload.name!r} {word}; choose another name (--name), or "
                f"remove it first (apf rm {workload.name})",
            )
        if len(known) + len(self._card.submitting) >= WORKLOADS_LIMIT:
            raise refused("too_many_workloads", f"the card holds {WORKLOADS_LIMIT} already")
        total = workload.instances + self._instances()
        if total > INSTANCES_LIMIT:
            raise refused(
                "too_many_instances",
                f"the card would hold {total} instances, at most {INSTANCES_LIMIT}: submit fewer, "
                "or remove a workload first (apf rm)",
            )
        self._check_images(workload)
        hopeless = self._card.placer.hopeless(workload)
        if hopeless:
            name, reasons = next(iter(hopeless.items()))
            whys = "; ".join(f"{cnm}: {why}" for cnm, why in sorted(reasons.items()))
            raise refused(
                "never_fits",
                f"no module of this card can ever hold {workload.name}/{name}: {whys}",
                components={n: dict(r) for n, r in hopeless.items()},
            )
        names = [mount.name for c in workload.components for mount in c.volumes]
        answer = Deferred()

        def done(error: JournalError | None) -> None:
            self._card.submitting.pop(workload.name, None)
            if error is not None:
                answer.fail(_journal_failed(str(error)))
                return
            self._card.events.emit(
                EventCode.WORKLOAD_SUBMITTED, f"{workload.name}: {workload.instances} instances"
            )
            self._card.reconciler.kick_workload(workload.name)
            answer.complete({"name": workload.name, "instances": workload.instances})

        if workload.name in self._card.submitting:
            raise refused("name_taken", f"{workload.name!r} is being submitted by somebody else")
        self._card.submitting[workload.name] = workload
        decision = WorkloadDecision(workload=workload)
        self._card.decisions.accept(decision, self._card.volumes.ensure(names), done)
        return answer

    def _instances(self) -> int:
        """What the card is to hold, placed or not."""
        submitting = sum(workload.instances for workload in self._card.submitting.values())
        return submitting + sum(map(self._instances_of, self._card.decisions.workloads.values()))

    def _instances_of(self, record: WorkloadDecision) -> int:
        """Of what is being removed, what is left."""
        if record.deleted:
            return len(self._card.decisions.of_workload(record.workload.name))
        return record.workload.instances

    def _check_images(self, workload: Workload) -> None:
        for component in workload.components:
            runtime = runtime_of(component)
            if component.image == HOST_IMAGE:
                if runtime != "process":
                    raise refused(
                        "bad_runtime",
                        f"{component.name}: image host is the module's own root filesystem and "
                        f"runs under the process runtime, not {runtime}",
                    )
                continue
            images = self._card.images
            if images.resolve(component.image) is None or images.is_going(component.image):
                raise refused(
                    "image_missing",
                    f"{component.name}: image {component.image} is not on this card; import it "
                    f"first: apf image import {component.image} SOURCE",
                    image=component.image,
                )

    def _ps(self, call: Call) -> object:
        return self._card.views.instances(self._workload_or_none(call))

    def _workload_or_none(self, call: Call) -> str | None:
        """The one that is asked for; None is all of them."""
        name = call.params.text_or_none("workload")
        call.params.done()
        if name is not None and name not in self._card.decisions.workloads:
            raise refused("unknown_workload", f"there is no workload {name!r}")
        return name

    def _workloads(self, call: Call) -> object:
        """What has a name here: nobody else may take it as long as it is listed, also when it is
        being removed and `ps` has nothing of it any more."""
        only = self._workload_or_none(call)
        known = self._card.decisions.workloads
        return [
            {
                "workload": name,
                "removing": known[name].deleted,
                "instances": self._instances_of(known[name]),
            }
            for name in ([only] if only is not None else sorted(known))
        ]

    def _remove(self, call: Call) -> object:
        name = call.params.text("name")
        call.params.done()
        record = self._card.decisions.workloads.get(name)
        if record is None:
            raise refused("unknown_workload", f"there is no workload {name!r}")
        if record.deleted:  # written once more, it would come back behind its own erasure
            self._card.reconciler.kick_workload(name)
            self._card.reconciler.finish_workload(name)
            return {"name": name}
        answer = Deferred()

        def done(error: JournalError | None) -> None:
            if error is not None:
                answer.fail(_journal_failed(str(error)))
                return
            self._card.events.emit(EventCode.WORKLOAD_REMOVING, f"{name}: on request")
            self._card.reconciler.kick_workload(name)
            self._card.reconciler.finish_workload(name)
            answer.complete({"name": name})

        decision = WorkloadDecision(workload=record.workload, deleted=True)
        self._card.decisions.accept(decision, (), done)
        return answer

    def _instance(self, name: str, nothing: str) -> None:
        """Refuse one that is not there; for one that waits for its first place there is `nothing`
        yet."""
        if name in self._card.decisions.assignments:
            return
        workload, component, index = split_name(name)
        record = self._card.decisions.workloads.get(workload)
        wanted = record.workload.component(component) if record and not record.deleted else None
        if wanted is None or index >= wanted.replicas:
            raise refused("unknown_instance", f"there is no instance {name!r}; see apf ps")
        text = f"{name} is not placed yet: {nothing}; see `apf explain {name}`"
        raise refused("not_placed", text)

    def _migrate(self, call: Call) -> object:
        name = call.params.text("instance")
        to = call.params.text_or_none("to")
        call.params.done()
        self._instance(name, "nothing to move")
        if to is not None:
            self._cnm(to)
        answer = Deferred()

        def done(error: str) -> None:
            if error:
                answer.fail(refused("cannot_migrate", error))
                return
            target = self._card.decisions.assignments[name].target
            answer.complete({"instance": name, "to": target.cnm if target else to})

        self._card.reconciler.migration.migrate_component(name, to, "on request", done)
        return answer

    def _logs(self, call: Call) -> object:
        name = call.params.text("instance")
        offset = call.params.integer("offset", 0, high=1 << 62)
        most = call.params.integer("max_bytes", LOG_READ_BYTES, low=1, high=LOG_READ_BYTES)
        call.params.done()
        self._instance(name, "no log")
        answer = Deferred()

        def done(part: LogPart | str) -> None:
            if isinstance(part, str):
                answer.fail(refused("log_unreadable", part))
                return
            answer.complete(
                {
                    "start": part.start,
                    "end": part.end,
                    "data_base64": base64.b64encode(part.data).decode(),
                    "ended": part.ended,
                }
            )

        self._card.logs.read(name, offset, most, done)
        return answer

    # --- profiles ---

    def _profiles(self, call: Call) -> object:
        call.params.done()
        return self._card.profile_views.rows()

    def _profile(self, call: Call) -> object:
        name = call.params.text("component")
        call.params.done()
        rows = self._card.profile_views.show(name)
        if not rows:
            raise refused(
                "unknown_profile",
                f"nothing that is called {name!r} runs or was measured; see apf profile ls",
            )
        return rows

    # --- the rest ---

    def _flush(self, call: Call) -> object:
        name = call.params.text("name")
        call.params.done()
        answer = Deferred()

        def done(error: str) -> None:
            if error:
                answer.fail(refused("flush_failed", error))
            else:
                row = next(row for row in self._card.volumes.show() if row["name"] == name)
                answer.complete(row)

        self._card.flush_volume(name, done)
        return answer

    def _subscribe(self, call: Call) -> object:
        since = call.params.integer("since_seq", 0, high=1 << 62)
        call.params.done()
        caller = call.caller
        events = self._card.events

        def deliver(event: Any) -> bool:
            return caller.notify("event", event.to_json())

        subscription = events.subscribe(since, deliver)
        if subscription is None:
            raise busy("too_many_subscriptions", "too many readers follow the events already")
        self._card.loop.post(subscription.pump)  # the answer goes first
        caller.on_room(subscription.pump)
        caller.on_close(subscription.close)
        return {"since_seq": since, "next_seq": events.next_seq, "first_seq": events.first_seq}

    def _show_crash(self, call: Call) -> object:
        call.params.done()
        return self._last_crash()

    def _shutdown(self, call: Call) -> object:
        call.params.done()
        self._card.shut_down()
        return {"stopping": True}


def _journal_failed(text: str = "see apf events") -> RpcError:
    return RpcError(
        BUSY, "journal_failed", f"the decision could not be written to the journal: {text}"
    )
