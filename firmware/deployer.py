"""`deploy_component`: image, data and spec to the module, then the commands that change instances.

    stage    spec through the window -> DEPLOY -> what it names as missing -> DEPLOY again
    start, stop, remove    one command each, idempotent at the far end (rule 1)

Every job is known by what it does to which generation, so that the reconciler may ask for the same
thing as often as it likes. A job that failed rests for a while; then it may be asked for again.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Final, Protocol

from firmware.assignments import Assignment, Place
from firmware.decisions import Decisions
from firmware.endpoint import RequestError, RequestRefused
from firmware.events import EventCode, EventLog
from firmware.images import ImageStore
from firmware.inventory import Cnm, Inventory
from firmware.job_table import JobKey, JobTable
from firmware.loop import MS, Loop
from firmware.specs import make_spec
from firmware.status import StatusReader
from firmware.storage import Volumes
from firmware.transfer import TransferError
from firmware.volume_manifest import VolumeError
from firmware.workload import Component
from hal.errors import HalError
from hal.ports import BlobStore
from protocol.apf import (
    AbortRequest,
    Body,
    CommitRequest,
    Ctx,
    DeployRequest,
    PrepareRequest,
    RefusalReason,
    RemoveRequest,
    StartRequest,
    StopRequest,
)

ROUNDS_LIMIT: Final = 64  # DEPLOY names at most 64 missing blobs at a time
REST_FIRST_NS: Final = 100 * MS
REST_MOST_NS: Final = 10_000 * MS
FAILURES_KEPT: Final = 8192
BURIED_KEPT: Final = 8192  # one that fell out costs another REMOVE


class ReplyWithSeq(Protocol):
    """What the answers to all commands have in common."""

    @property
    def status_seq(self) -> int: ...


class Deployer:
    """Carries out what the reconciler decides on the modules. Loop thread only."""

    def __init__(
        self,
        loop: Loop,
        inventory: Inventory,
        decisions: Decisions,
        events: EventLog,
        blobs: BlobStore,
        images: ImageStore,
        volumes: Volumes,
        status: StatusReader,
        *,
        kick: Callable[[str], None],
    ) -> None:
        """`kick(instance)` whenever a job has ended, well or not."""
        self._loop = loop
        self._inventory = inventory
        self._decisions = decisions
        self._events = events
        self._blobs = blobs
        self._images = images
        self._volumes = volumes
        self._status = status
        self._kick = kick
        self.trace: Callable[[str], None] = lambda _text: None  # of each job's begin and end
        self._jobs: JobTable[_Job] = JobTable()
        self._buried: dict[JobKey, None] = {}  # removals that their module confirmed
        self._failures: JobTable[tuple[int, int, str]] = JobTable()  # count, rest until, text
        self._given_up: dict[str, int] = {}  # instance -> failures on modules that it has left

    def ctx(self, cnm: Cnm) -> Ctx:
        """Rule 1: who commands whom."""
        return Ctx(
            card_uuid=self._decisions.card_uuid,
            epoch=self._decisions.epoch,
            boot_id=cnm.boot_id,
        )

    @property
    def idle(self) -> bool:
        """Nothing is being done on any module."""
        return not self._jobs

    def busy(self, instance: str) -> bool:
        """A job for this instance is under way."""
        return bool(self._jobs.of(instance))

    def trouble(self, instance: str) -> str:
        """The last failure of what is being tried for this instance, or ""."""
        failed = self._failures.of(instance)
        return self._failures[failed[-1]][2] if failed else ""

    def settle(self, instance: str) -> None:
        """Forget failures: the instance has moved on."""
        self._given_up.pop(instance, None)
        self._forget_failures(instance)

    def settle_at(self, instance: str, place: Place) -> None:
        """It runs there. What failed elsewhere, a removal from where it was, goes on resting."""
        self._given_up.pop(instance, None)
        here = (instance, place.generation, place.cnm)
        for key in self._failures.of(instance):
            if key[1:] == here:
                del self._failures[key]

    def give_up(self, instance: str, place: Place) -> None:
        """It is to be staged on another module. Its rests go on growing there: what can be staged
        nowhere goes round all modules, ever more slowly."""
        failed = self._given_up.pop(instance, 0) + self.failures("stage", instance, place)
        while len(self._given_up) >= FAILURES_KEPT:
            del self._given_up[next(iter(self._given_up))]
        self._given_up[instance] = failed
        self._forget_failures(instance)

    def _forget_failures(self, instance: str) -> None:
        for key in self._failures.of(instance):
            del self._failures[key]

    def drop_staging(self, instance: str) -> None:
        """It is not wanted any more: what is being brought for it need not arrive."""
        for key in self._jobs.of(instance):
            if key[0] == "stage":
                self._jobs.pop(key).drop()

    def buried(self, instance: str, place: Place) -> bool:
        """Its module has confirmed that nothing is left of this generation, and will refuse all
        that is still on its way to it."""
        return ("remove", instance, place.generation, place.cnm) in self._buried

    # --- the jobs ---

    def deploy_component(
        self, assignment: Assignment, component: Component, place: Place, *, prepare: bool
    ) -> None:
        """Bring all that `place` needs and have it unpacked there; not started."""
        self._begin(
            "stage",
            assignment.instance,
            place,
            lambda job: self._stage(job, assignment, component, place, prepare),
        )

    def start(self, instance: str, place: Place, *, moved: bool) -> None:
        """Start what is prepared; `moved` commits the target of a move."""

        def ask(job: "_Job") -> None:
            kind = CommitRequest if moved else StartRequest
            job.command(kind(ctx=self.ctx(job.cnm), instance=instance, generation=place.generation))

        self._begin("start", instance, place, ask)

    def stop(self, instance: str, place: Place, generation: int, grace_ms: int) -> None:
        """Stop signal, grace, SIGKILL; the module then refuses this generation for ever."""

        def ask(job: "_Job") -> None:
            job.command(
                StopRequest(
                    ctx=self.ctx(job.cnm),
                    instance=instance,
                    generation=generation,
                    grace_ms=grace_ms,
                )
            )

        self._begin("stop", instance, place, ask, generation=generation)

    def remove(self, instance: str, place: Place, generation: int, *, abort: bool) -> None:
        """Delete what a dead or merely prepared generation holds on its module."""

        def ask(job: "_Job") -> None:
            kind = AbortRequest if abort else RemoveRequest
            job.command(kind(ctx=self.ctx(job.cnm), instance=instance, generation=generation))

        self._begin("remove", instance, place, ask, generation=generation)

    def flush(
        self, instance: str, place: Place, volumes: Iterable[str], done: Callable[[str], None]
    ) -> None:
        """Bring volumes home; `done` gets "" or what went wrong, then the instance is kicked."""

        def ask(job: "_Job") -> None:
            def flushed(error: str) -> None:
                done(error)
                job.end(error)

            self._volumes.flush(job.cnm, instance, place.generation, list(volumes), flushed)

        self._begin("flush", instance, place, ask)

    def failures(self, verb: str, instance: str, place: Place) -> int:
        """How often this very job has failed in a row."""
        return self._failures.get((verb, instance, place.generation, place.cnm), (0, 0, ""))[0]

    # --- inside ---

    def _begin(
        self,
        verb: str,
        instance: str,
        place: Place,
        work: Callable[["_Job"], None],
        *,
        generation: int | None = None,
    ) -> None:
        key = (verb, instance, place.generation if generation is None else generation, place.cnm)
        cnm = self._inventory.get(place.cnm)
        if key in self._jobs or cnm is None:
            return
        rest = self._failures.get(key)
        if rest is not None and self._loop.now_ns() < rest[1]:
            return  # a timer will kick it
        job = self._jobs[key] = _Job(self, key, cnm)
        self.trace(f"{verb} {instance} g{key[2]} on {key[3]}")
        work(job)

    def _end(self, key: JobKey, error: str) -> None:
        self._jobs.pop(key, None)
        instance = key[1]
        self.trace(f"{key[0]} {instance} g{key[2]} on {key[3]}: {error or 'done'}")
        if not error:
            self._failures.pop(key, None)
            if key[0] == "remove":
                self._buried[key] = None
                while len(self._buried) > BURIED_KEPT:
                    del self._buried[next(iter(self._buried))]
        else:
            count = self._failures.get(key, (0, 0, ""))[0] + 1
            before = self._given_up.get(instance, 0) if key[0] == "stage" else 0
            rest_ns = min(REST_MOST_NS, REST_FIRST_NS << min(count - 1 + before, 10))
            while len(self._failures) >= FAILURES_KEPT:
                self._failures.pop(next(iter(self._failures)))
            self._failures[key] = (count, self._loop.now_ns() + rest_ns, f"{key[0]}: {error}")
            self._loop.call_later(rest_ns, lambda: self._kick(instance))
        self._kick(instance)

    def _applied(self, cnm: Cnm, status_seq: int) -> None:
        """An observation older than the last command is ignored (DESIGN D1)."""
        cnm.note_applied(status_seq)
        self._status.wish(cnm)

    def _stage(
        self,
        job: "_Job",
        assignment: Assignment,
        component: Component,
        place: Place,
        prepare: bool,
    ) -> None:
        try:
            spec = make_spec(assignment, component, self._images, self._volumes)
            digest = self._blobs.put(spec)
        except (VolumeError, HalError) as exc:
            job.end(str(exc))
            return
        kind = PrepareRequest if prepare else DeployRequest

        def request() -> DeployRequest | PrepareRequest:
            """With the epoch of the moment: bringing what is missing may take minutes."""
            return kind(
                ctx=replace(self.ctx(job.cnm), boot_id=place.boot_id),
                instance=assignment.instance,
                generation=place.generation,
                spec_digest=digest,
            )

        self._events.emit(
            EventCode.INSTANCE_STAGING,
            f"{assignment.instance}: staging on {place.cnm}",
            cnm=place.cnm,
            instance=assignment.instance,
            data={"generation": place.generation},
        )
        job.push([digest], lambda: job.deploy(request))


class _Job:
    """One thing that is being done to one generation on one module."""

    def __init__(self, deployer: Deployer, key: JobKey, cnm: Cnm) -> None:
        self.cnm = cnm
        self._deployer = deployer
        self._key = key
        self._rounds = 0
        self._ended = False

    def end(self, error: str = "") -> None:
        """Over: "" or what went wrong."""
        if not self._ended:
            self._ended = True
            self._deployer._end(self._key, error)  # noqa: SLF001  one idea in two classes

    def drop(self) -> None:
        """Nobody wants its end any more; answers that still come change nothing."""
        self._ended = True

    def command(self, request: Body) -> None:
        """Send one command; its answer ends the job."""
        self.cnm.agent.request(request, self._on_command)

    def push(self, digests: list[bytes], then: Callable[[], None]) -> None:
        """Send blobs through the window, all at once; the sender bounds what is in flight."""
        transfers = self.cnm.transfers
        if transfers is None:
            self.end("its window is down")
            return
        left = {"count": len(digests)}

        def pushed(error: TransferError | None) -> None:
            if error is not None:
                self.end(str(error))
                return
            left["count"] -= 1
            if left["count"] == 0 and not self._ended:
                then()

        for digest in digests:
            transfers.push(digest, pushed)

    def deploy(self, request: Callable[[], DeployRequest | PrepareRequest]) -> None:
        """DEPLOY until nothing is missing."""

        def answered(reply: Any) -> None:
            if self._ended:
                return
            if isinstance(reply, RequestError):
                self._on_command(reply)
                return
            if not reply.missing:
                self._on_command(reply)
                return
            self._rounds += 1
            if self._rounds > ROUNDS_LIMIT:
                self.end(f"it still misses blobs after {ROUNDS_LIMIT} rounds")
                return
            self.push(list(reply.missing), lambda: self.deploy(request))

        self.cnm.agent.request(request(), answered)

    def _on_command(self, reply: ReplyWithSeq | RequestError) -> None:
        if isinstance(reply, RequestRefused):
            # what it refuses as unknown or stale was decided on an old report: read a new one
            self._deployer._status.wish(self.cnm)  # noqa: SLF001
            gone = self._key[0] in ("remove", "stop") and (
                reply.refusal.reason == RefusalReason.UNKNOWN_INSTANCE
            )
            self.end("" if gone else str(reply))
        elif isinstance(reply, RequestError):
            self.end(str(reply))
        else:
            self._deployer._applied(self.cnm, reply.status_seq)  # noqa: SLF001
            self.end()
