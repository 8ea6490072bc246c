"""Deploy and Prepare: what is missing, then image, volumes and the finished start order.

    look      init admits the command (card, epoch, boot, generation); nothing is changed yet
    check     spec blob, layers, volume manifests, volume files: the first 64 missing are named
    stage     init takes the instance in: STAGING is the answer
    work      root file system, then each volume, then `prepared` to init: PREPARED or FAILED

All of it can be done again: a repeated Deploy finds the work under way, a restarted agent begins
the work anew for what init holds as STAGING. Manifests are read in slices, one a turn.
"""

from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

from firmware.cnm.blob_space import BlobSpace
from firmware.cnm.local_stream import Answer, LocalPeer
from firmware.cnm.prepared_json import prepared_to_json
from firmware.cnm.records import ALIVE, Prepared, RefusedError, ctx_to_json, key_of
from firmware.cnm.rootfs import RootfsFactory
from firmware.cnm.spec import Spec, VolumeMount, read_manifest, read_spec
from firmware.cnm.volumes import HotTier
from firmware.endpoint import Deferred
from firmware.fields import FieldError
from hal.errors import HalError, StoreFull
from hal.ports import FileInfo, InstanceSpec, MountSpec, Reactor
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
ENTRIES_A_TURN: Final = 64  # each costs a look into the blob store, about 10 us
JOBS_LIMIT: Final = 256  # as many as init holds instances

TMPFS: Final = "tmpfs"  # the source that asks a runtime for a fresh one

T = TypeVar("T")
Entries = list[tuple[FileInfo, bytes]]


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
        on_end: Callable[[], None],
    ) -> None:
        """`on_end` after each staging: what it left over may be swept."""
        self.reactor = reactor
        self.init = init
        self.blobs = blobs
        self.rootfs = rootfs
        self.hot_tier = hot_tier
        self.runtimes: tuple[str, ...] = ()
        self._on_end = on_end
        self._jobs: dict[str, _Job] = {}  # by key; at most JOBS_LIMIT

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
        spec = read(lambda: read_spec(self.load(digest)), f"spec {digest.hex()[:12]}")
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
        self._jobs[key] = _Job(self, name, generation, key, spec)
        self._jobs[key].begin()

    def ended(self, job: "_Job", result: Prepared | str) -> None:
        """For a job: it is over."""
        del self._jobs[job.key]
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
        self._deferred.complete(self._reply(state=state, status_seq=int(answer["status_seq"])))
        if state is InstanceState.STAGING:
            assert self._spec is not None
            self._stager.work(self._request.instance, self._request.generation, self._spec)


class _Job:
    """The work for one generation."""

    def __init__(self, stager: Stager, name: str, generation: int, key: str, spec: Spec) -> None:
        self.name = name
        self.generation = generation
        self.key = key
        self.spec = spec
        self._stager = stager
        self._shared: set[str] = set()  # volumes that an instance which runs has in use
        self._root = ""
        self._retried = False

    def begin(self) -> None:
        self._stager.init.request("held", {}, self._held)

    def _held(self, answer: Answer) -> None:
        if isinstance(answer, RefusedError):
            self._stager.ended(self, answer.text)
            return
        for held in answer["instances"]:
            if held["key"] != self.key and held["state"] in ALIVE:
                self._shared.update(held["volumes"])
        self._prepare_rootfs()

    def _prepare_rootfs(self) -> None:
        if not self.spec.layers:
            self._next_volume(iter(self.spec.volumes))
            return
        self._stager.rootfs.submit_prepare(self.spec.layers, self.key, self._on_rootfs)

    def _on_rootfs(self, result: str | HalError) -> None:
        if isinstance(result, StoreFull) and not self._retried:
            self._retried = True
            if self._stager.rootfs.drop_unused_images():
                self._prepare_rootfs()
                return
        if isinstance(result, HalError):
            self._stager.ended(self, f"image: {result}")
            return
        self._root = result
        self._next_volume(iter(self.spec.volumes))

    def _next_volume(self, volumes: Iterator[VolumeMount]) -> None:
        volume = next(volumes, None)
        if volume is None:
            self._finish()
            return
        tier, name = self._stager.hot_tier, volume.name

        def checked_out(result: HalError | None) -> None:
            if isinstance(result, HalError):
                self._stager.ended(self, f"volume {name}: {result}")
            else:
                self._next_volume(volumes)

        def entries_read(result: Entries | RefusedError) -> None:
            if isinstance(result, RefusedError):
                self._stager.ended(self, f"volume {name}: {result.text}")
            else:
                tier.submit_checkout(name, result, checked_out)

        if name in self._shared and tier.exists(name):
            self._next_volume(volumes)
        elif volume.manifest is not None:
            read_entries(self._stager, volume.manifest, entries_read, lambda _digest: None)
        elif tier.exists(name):
            self._next_volume(volumes)
        else:
            tier.submit_checkout(name, (), checked_out)

    def _finish(self) -> None:
        spec, stager = self.spec, self._stager
        mounts = [
            MountSpec(
                source=stager.hot_tier.path(volume.name),
                target=volume.target,
                read_only=volume.read_only,
            )
            for volume in spec.volumes
        ]
        mounts += [MountSpec(source=TMPFS, target=target) for target in spec.tmpfs]
        order = InstanceSpec(
            key=self.key,
            argv=spec.argv,
            env=spec.env,
            cwd=spec.cwd,
            user=spec.user,
            hostname=spec.hostname,
            rootfs=stager.rootfs.path(self._root) if self._root else "",
            read_only_rootfs=spec.read_only,
            mounts=mounts,
            limits=spec.limits,
            stop_signal=spec.stop_signal,
        )
        stager.ended(
            self,
            Prepared(
                runtime=spec.runtime,
                spec=order,
                healthcheck=spec.healthcheck,
                stop_signal=spec.stop_signal,
            ),
        )


def read_entries(
    stager: Stager,
    manifest: bytes,
    done: Callable[[Entries | RefusedError], None],
    each: Callable[[bytes], None],
) -> None:
    """The entries of a manifest blob, ENTRIES_A_TURN a turn; `each` gets every content digest."""
    entries: Entries = []
    what = f"manifest {manifest.hex()[:12]}"

    def step(source: Iterator[tuple[FileInfo, bytes]]) -> None:
        try:
            for _ in range(ENTRIES_A_TURN):
                entry = read(lambda: next(source, None), what)
                if entry is None:
                    done(entries)
                    return
                entries.append(entry)
                if entry[1]:
                    each(entry[1])
        except RefusedError as exc:
            done(exc)
            return
        stager.reactor.post(lambda: step(source))

    try:
        source = read(lambda: read_manifest(stager.load(manifest)), what)
    except RefusedError as exc:
        done(exc)
        return
    step(source)


def read(call: Callable[[], T], what: str) -> T:
    """A document of the card's; what is wrong in it is a RefusedError."""
    try:
        return call()
    except FieldError as exc:
        raise RefusedError(RefusalReason.BAD_SPEC, f"{what}: {exc}") from exc
