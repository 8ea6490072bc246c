"""The work of a staging: the image, each volume, and then the finished start order for init.

Who holds a volume is asked anew for each one, right before it may be filled. Manifests are read in
slices, one a turn of the loop. A volume that was never flushed begins as `first_use` says.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Final, TypeVar

from firmware.cnm.local_stream import Answer
from firmware.cnm.records import Prepared, RefusedError
from firmware.cnm.spec import Spec, VolumeMount, read_manifest
from firmware.fields import FieldError
from hal.errors import HalError, Refused, StoreFull
from hal.ports import Done, FileInfo, InstanceSpec, MountSpec
from protocol.apf import RefusalReason

if TYPE_CHECKING:
    from firmware.cnm.staging import Stager

ENTRIES_A_TURN: Final = 64  # each costs a look into the blob store, about 10 us
TMPFS: Final = "tmpfs"  # the source that asks a runtime for a fresh one

T = TypeVar("T")
Entries = list[tuple[FileInfo, bytes]]


class StagingJob:
    """The work for one generation."""

    def __init__(self, stager: "Stager", name: str, generation: int, key: str, spec: Spec) -> None:
        self.name = name
        self.generation = generation
        self.key = key
        self.spec = spec
        self.filled: set[tuple[str, bytes | None]] = set()  # volumes and the manifests asked for
        self._stager = stager
        self._root = ""
        self._retried = False

    def begin(self) -> None:
        if not self.spec.layers:
            self._next_volume(iter(self.spec.volumes))
            return
        self._stager.rootfs.submit_prepare(self.spec.layers, self.key, self._on_rootfs)

    def _on_rootfs(self, result: str | HalError) -> None:
        if isinstance(result, StoreFull) and not self._retried:
            self._retried = True
            if self._stager.rootfs.drop_unused_images():
                self.begin()
                return
        if isinstance(result, HalError):
            self._stager.ended(self, f"image: {result}")
            return
        self._root = result
        self._next_volume(iter(self.spec.volumes))

    def _next_volume(self, volumes: Iterator[VolumeMount]) -> None:
        """One after the other; who else has a volume is asked anew for each."""
        volume = next(volumes, None)
        if volume is None:
            self._finish()
            return

        ended = self._stager.jobs_ended

        def held(answer: Answer) -> None:
            if isinstance(answer, RefusedError):
                self._stager.ended(self, answer.text)
            elif self._stager.jobs_ended != ended:  # init was asked before it heard of that
                self._next_volume(chain((volume,), volumes))
            else:
                shared = self._stager.in_use(volume, answer["instances"], self.key)
                self._fill(volume, shared, lambda: self._next_volume(volumes))

        self._stager.init.request("held", {}, held)

    def _fill(self, volume: VolumeMount, shared: bool, then: Callable[[], None]) -> None:
        tier, name = self._stager.hot_tier, volume.name

        def filled(result: HalError | None) -> None:
            if isinstance(result, HalError):
                self._stager.ended(self, f"volume {name}: {result}")
            else:
                self.filled.add((name, volume.manifest))
                then()

        if tier.exists(name) and (shared or volume.manifest is None):
            then()
        else:
            tier.submit_fill(name, lambda ready: self._gather(volume, ready), filled)

    def _gather(self, volume: VolumeMount, ready: Done[Sequence[tuple[FileInfo, bytes]]]) -> None:
        """What the card says is in it; of one that was never flushed, what it begins with."""

        def walked(result: Entries | RefusedError) -> None:
            ready(Refused(result.text) if isinstance(result, RefusedError) else result)

        def entries_read(result: Entries | RefusedError) -> None:
            if result == []:
                begin()
            else:
                walked(result)

        def found(result: Sequence[tuple[FileInfo, bytes]] | HalError) -> None:
            if isinstance(result, HalError):
                ready(result)
            else:  # its blobs are in use from now on
                blobs = self._stager.blobs
                _walk(self._stager, iter(result), "image", walked, lambda d: blobs.wanted(d))

        def begin() -> None:
            root = self._stager.rootfs.path(self._root) if self._root else ""
            self._stager.first_use.submit(root, volume.target, self.spec.user, found)

        if volume.manifest is None:
            begin()
        else:
            read_entries(self._stager, volume.manifest, entries_read, lambda _digest: None)

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
    stager: "Stager",
    manifest: bytes,
    done: Callable[[Entries | RefusedError], None],
    each: Callable[[bytes], None],
) -> None:
    """The entries of a manifest blob, ENTRIES_A_TURN a turn; `each` gets every content digest."""
    what = f"manifest {manifest.hex()[:12]}"
    try:
        source = read_document(lambda: read_manifest(stager.load(manifest)), what)
    except RefusedError as exc:
        done(exc)
        return
    _walk(stager, source, what, done, each)


def _walk(
    stager: "Stager",
    source: Iterator[tuple[FileInfo, bytes]],
    what: str,
    done: Callable[[Entries | RefusedError], None],
    each: Callable[[bytes], object],
) -> None:
    entries: Entries = []

    def step() -> None:
        try:
            for _ in range(ENTRIES_A_TURN):
                entry = read_document(lambda: next(source, None), what)
                if entry is None:
                    done(entries)
                    return
                entries.append(entry)
                if entry[1]:
                    each(entry[1])
        except RefusedError as exc:
            done(exc)
            return
        stager.reactor.post(step)

    step()


def read_document(call: Callable[[], T], what: str) -> T:
    """A document of the card's; what is wrong in it is a RefusedError."""
    try:
        return call()
    except FieldError as exc:
        raise RefusedError(RefusalReason.BAD_SPEC, f"{what}: {exc}") from exc
