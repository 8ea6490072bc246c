"""Deploy and Prepare: what is missing, then image, volumes and the finished start order.

    look      init admits the command (card, epoch, boot, generation); nothing is changed yet
    check     spec blob, layers, volume manifests, volume files: the first 64 missing are named
    stage     init takes the instance in: STAGING is the answer
    work      root file system, then each volume, then `prepared` to init: PREPARED or FAILED

All of it can be done again: a repeated Deploy finds the work under way, a restarted agent begins
the work anew for what init holds as STAGING. Manifests are read in slices, one a turn.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from firmware.cnm.blob_space import BlobSpace
from firmware.cnm.first_use import FirstUse
from firmware.cnm.local_stream import Answer, Args, LocalPeer
from firmware.cnm.prepared_json import prepared_to_json
from firmware.cnm.records import ALIVE, Prepared, RefusedError, ctx_to_json, key_of
from firmware.cnm.rootfs import RootfsFactory
from firmware.cnm.spec import Spec, VolumeMount, read_spec
from firmware.cnm.staging_job import Entries, StagingJob, read_document, read_entries
from firmware.cnm.volumes import HotTier
from firmware.endpoint import Deferred
from hal.errors import HalError
from hal.ports import Reactor
from protocol.apf import (
    LIST_MAX,
    DeployReply,
    DeployRequest,
    InstanceState,
    PrepareReply,
    PrepareRequest,
    RefusalReason,
)

READ_STEP: Final = 1 << 20
JOBS_LIMIT: Final = 256  # as many as init holds instances

UNSTAGED: Final = frozenset(  # from these Deploy goes on
    {InstanceState.ABSENT, InstanceState.STAGING, InstanceState.FAILED}
)


class Stager:
    """Loop thread only."""

    def __init__(
        self,
        *,
        reactor: Reactor,
        init: LocalPeer,
        blobs: BlobSpace,
        rootfs: RootfsFactory,
        hot_tier: HotTier,
        first_use: FirstUse,
        on_end: Callable[[], None],
    ) -> None:
        """`on_end` after each staging: what it left over may be swept."""
        self.reactor = reactor
        self.init = init
        self.blobs = blobs
        self.rootfs = rootfs
        self.hot_tier = hot_tier
        self.first_use = first_use
        self.jobs_ended = 0
        self.runtimes: tuple[str, ...] = ()
        self._on_end = on_end
        self._jobs: dict[str, StagingJob] = {}  # by key; at most JOBS_LIMIT

    @property
    def keys(self) -> set[str]:
        """Of the stagings under way."""
        return set(self._jobs)

    @property
    def volumes(self) -> set[str]:
        """That they are about to fill."""
        return {volume.name for job in self._jobs.values() for volume in job.spec.volumes}

    def deploy(self, request: DeployRequest | PrepareRequest) -> Deferred:
        """Answers with what is missing, or with the state after `stage`."""
        return _Check(self, request).begin()

    def resume(self, name: str, generation: int, spec_digest: bytes) -> None:
        """Work again on what init holds as STAGING; an agent before us was killed over it."""
        try:
            spec = self.load_spec(spec_digest)
        except RefusedError as exc:
            self._tell(name, generation, {"error": exc.text})
            return
        self.work(name, generation, spec)

    def load_spec(self, digest: bytes) -> Spec:
        """Raises RefusedError."""
        spec = read_document(lambda: read_spec(self.load(digest)), f"spec {digest.hex()[:12]}")
        if spec.runtime not in self.runtimes:
            text = f"runtime {spec.runtime!r} is not here; here: {', '.join(self.runtimes)}"
            raise RefusedError(RefusalReason.NO_RUNTIME, text)
        if spec.runtime == "oci" and not spec.layers:
            raise RefusedError(RefusalReason.BAD_SPEC, "an OCI container needs image layers")
        return spec

    def blobs_of(self, spec_digest: bytes) -> tuple[bytes, ...]:
        """What an instance of this spec needs to be staged again."""
        try:
            return (spec_digest, *self.load_spec(spec_digest).blobs)
        except RefusedError:
            return (spec_digest,)

    def load(self, digest: bytes) -> bytes:
        """A whole blob of some MiB. Raises RefusedError."""
        size = self.blobs.has(digest)
        if size is None:
            raise RefusedError(RefusalReason.MISSING_BLOB, f"blob {digest.hex()} is not here")
        try:
            steps = range(0, size, READ_STEP)
            return b"".join(self.blobs.read(digest, offset, READ_STEP) for offset in steps)
        except HalError as exc:
            raise RefusedError(RefusalReason.INTERNAL, str(exc)) from exc

    def work(self, name: str, generation: int, spec: Spec) -> None:
        """Begin, unless it is under way already."""
        key = key_of(name, generation)
        if key in self._jobs:
            return
        if len(self._jobs) >= JOBS_LIMIT:
            self._tell(name, generation, {"error": f"{JOBS_LIMIT} stagings are under way"})
            return
        self._jobs[key] = StagingJob(self, name, generation, key, spec)
        self._jobs[key].begin()

    def in_use(self, volume: VolumeMount, instances: Sequence[Args], key: str) -> bool:
        """Must it be left as it is? Of `held`'s instances, all but the one of `key` are asked, and
        so are the stagings under way: they may end, and start, before a checkout would."""
        wanted = (volume.name, volume.manifest)
        if any(wanted in job.filled for job in self._jobs.values() if job.key != key):
            return True
        for held in instances:
            if held["key"] == key or volume.name not in held["volumes"]:
                continue
            if held["state"] in ALIVE:
                return True
            if held["state"] == InstanceState.PREPARED:
                try:
                    spec = self.load_spec(bytes.fromhex(held["spec"]))
                except RefusedError:
                    continue
                if wanted in [(v.name, v.manifest) for v in spec.volumes]:
                    return True
        return False

    def ended(self, job: StagingJob, result: Prepared | str) -> None:
        """For a job: it is over."""
        del self._jobs[job.key]
        self.jobs_ended += 1
        if isinstance(result, str):
            self._tell(job.name, job.generation, {"error": result})
        else:
            self._tell(job.name, job.generation, {"prepared": prepared_to_json(result)})
        self._on_end()

    def _tell(self, name: str, generation: int, outcome: dict[str, Any]) -> None:
        args = {"instance": name, "generation": generation, **outcome}
        self.init.request("prepared", args, lambda _answer: None)


class _Check:
    """One Deploy or Prepare until its answer."""

    def __init__(self, stager: Stager, request: DeployRequest | PrepareRequest) -> None:
        self._stager = stager
        self._request = request
        self._reply = DeployReply if isinstance(request, DeployRequest) else PrepareReply
        self._deferred = Deferred()
        self._missing: dict[bytes, None] = {}
        self._args = {
            "ctx": ctx_to_json(request.ctx),
            "instance": request.instance,
            "generation": request.generation,
        }
        self._state = InstanceState.ABSENT
        self._status_seq = 0
        self._spec: Spec | None = None

    def begin(self) -> Deferred:
        self._stager.init.request("look", self._args, self._looked)
        return self._deferred

    def _looked(self, answer: Answer) -> None:
        if isinstance(answer, RefusedError):
            self._deferred.complete(answer.to_refusal())
            return
        self._status_seq = int(answer["status_seq"])
        if answer["generation"] == self._request.generation:
            self._state = InstanceState(answer["state"])
            if self._state not in UNSTAGED:  # equal generation: the answer is the state as it is
                self._answer_state(self._state, self._status_seq)
                return
        digest = self._request.spec_digest
        if not self._stager.blobs.wanted(digest):
            self._missing[digest] = None
            self._answer_missing()
            return
        try:
            spec = self._spec = self._stager.load_spec(digest)
            if spec.instance != self._request.instance:
                text = f"the spec is for {spec.instance}"
                raise RefusedError(RefusalReason.BAD_SPEC, text)  # noqa: TRY301
        except RefusedError as exc:
            self._deferred.complete(exc.to_refusal())
            return
        self._look_for(spec.blobs)
        if self._missing:
            self._answer_missing()
            return
        self._check_volumes(spec, iter(spec.volumes))

    def _check_volumes(self, spec: Spec, volumes: Iterator[VolumeMount]) -> None:
        """The file contents of each volume, a slice a turn."""
        volume = next(volumes, None)
        if volume is None or len(self._missing) >= LIST_MAX:
            self._checked(spec)
        elif volume.manifest is None:
            self._check_volumes(spec, volumes)
        else:
            manifest = volume.manifest
            read_entries(
                self._stager,
                manifest,
                lambda result: self._on_entries(result, lambda: self._check_volumes(spec, volumes)),
                lambda digest: self._look_for((digest,)),
            )

    def _on_entries(self, result: Entries | RefusedError, then: Callable[[], None]) -> None:
        if isinstance(result, RefusedError):
            self._deferred.complete(result.to_refusal())
        else:
            then()

    def _look_for(self, digests: tuple[bytes, ...]) -> None:
        for digest in digests:
            if len(self._missing) < LIST_MAX and not self._stager.blobs.wanted(digest):
                self._missing[digest] = None

    def _answer_missing(self) -> None:
        self._deferred.complete(
            self._reply(
                state=self._state, status_seq=self._status_seq, missing=tuple(self._missing)
            )
        )

    def _answer_state(self, state: InstanceState, status_seq: int) -> None:
        self._deferred.complete(self._reply(state=state, status_seq=status_seq))

    def _checked(self, spec: Spec) -> None:
        if self._missing:
            self._answer_missing()
            return
        args = {
            **self._args,
            "spec": self._request.spec_digest.hex(),
            "volumes": [volume.name for volume in spec.volumes],
        }
        self._stager.init.request("stage", args, self._staged)

    def _staged(self, answer: Answer) -> None:
        if isinstance(answer, RefusedError):
            self._deferred.complete(answer.to_refusal())
            return
        state = InstanceState(answer["state"])
        self._answer_state(state, int(answer["status_seq"]))
        if state is InstanceState.STAGING:
            assert self._spec is not None
            self._stager.work(self._request.instance, self._request.generation, self._spec)
