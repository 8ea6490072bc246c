"""The work of a staging: the image, each volume, and then the finished start order for init.

Who holds a volume is asked anew for each one, right before it may be checked out. Manifests are
read in slices, one a turn of the loop.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, TypeVar

from firmware.cnm.local_stream import Answer
from firmware.cnm.records import Prepared, RefusedError
from firmware.cnm.spec import Spec, VolumeMount, read_manifest
from firmware.fields import FieldError
from hal.errors import HalError, StoreFull
from hal.ports import FileInfo, InstanceSpec, MountSpec
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

        def held(answer: Answer) -> None:
            if isinstance(answer, RefusedError):
                self._stager.ended(self, answer.text)
            else:
                shared = self._stager.in_use(volume, answer["instances"], self.key)
                self._fill(volume, shared, lambda: self._next_volume(volumes))

        self._stager.init.request("held", {}, held)

    def _fill(self, volume: VolumeMount, shared: bool, then: Callable[[], None]) -> None:
        tier, name = self._stager.hot_tier, volume.name

        def checked_out(result: HalError | None) -> None:
            if isinstance(result, HalError):
                self._stager.ended(self, f"volume {name}: {result}")
            else:
                then()

        def entries_read(result: Entries | RefusedError) -> None:
            if isinstance(result, RefusedError):
                self._stager.ended(self, f"volume {name}: {result.text}")
            else:
                tier.submit_checkout(name, result, checked_out)

        if tier.exists(name) and (shared or volume.manifest is None):
            then()
        elif volume.manifest is not None:
            read_entries(self._stager, volume.manifest, entries_read, lambda _digest: None)
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
    stager: "Stager",
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
        stager.reactor.post(lambda: step(source))

    try:
        source = read_document(lambda: read_manifest(stager.load(manifest)), what)
    except RefusedError as exc:
        done(exc)
        return
    step(source)


def read_document(call: Callable[[], T], what: str) -> T:
    """A document of the card's; what is wrong in it is a RefusedError."""
    try:
        return call()
    except FieldError as exc:
        raise RefusedError(RefusalReason.BAD_SPEC, f"{what}: {exc}") from exc
