"""Named volumes: kept on the card's capacity tier, staged to a CNM's hot tier, brought home again.

A volume's state is a manifest blob ("apf-volume/1": entries by path, file contents by digest), so
bringing one home moves changed files only and checks each of them. The journal names the manifest
that counts. It is replaced as a whole, and only by a generation that is the present one of its
instance (DESIGN section 4, rule 13): a module that was given up cannot write over its successor.
Instances that share a volume are on one module, so that either of them brings home what both wrote.

First form, behind this small interface: `ensure`, `blobs`, `flush`, `show`.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from hashlib import sha256
from typing import Any, Final

from firmware.decisions import Decisions
from firmware.events import EventLog
from firmware.inventory import Cnm
from firmware.journal import Change, JournalError, Kind
from firmware.loop import MS, Loop
from firmware.turns import Turns
from firmware.volume_flush import Flushed, Home, VolumeFlush
from firmware.volume_manifest import VolumeError, empty_manifest, manifest_digests, read_manifest
from hal.ports import BlobStore
from protocol.apf import Ctx, VolumeStateReply

REMEMBERED_DIGESTS: Final = 131_072  # of manifests that were read: 4 MiB, packed
DIGEST_BYTES: Final = 32


class Volumes:
    """The storage manager. Loop thread only."""

    def __init__(
        self,
        loop: Loop,
        decisions: Decisions,
        blobs: BlobStore,
        events: EventLog,
        wall_ns: Callable[[], int],
        ctx: Callable[[Cnm], Ctx],
    ) -> None:
        self._decisions = decisions
        self._blobs = blobs
        self._wall_ns = wall_ns
        self.flushing = 0  # instances whose volumes are on their way home
        self._home = Home(
            loop=loop, blobs=blobs, events=events, turns=Turns(), ctx=ctx, commit=self.commit
        )
        self.changes = 0  # decisions that made another manifest count, or are about to
        self._remembered: dict[bytes, bytes] = {}  # a manifest's digest -> its digests, packed
        self._remembered_digests = 0  # at most REMEMBERED_DIGESTS

    def ensure(self, names: Sequence[str]) -> list[Change]:
        """The decisions that make volumes exist; for the batch that accepts their workload."""
        known = self._decisions.journal.items(Kind.VOLUME)
        fresh = [name for name in dict.fromkeys(names) if name not in known]
        if not fresh:
            return []
        manifest = self._blobs.put(empty_manifest()).hex()
        record = {"manifest": manifest, "generation": 0, "flushed_wall_ms": None, "bytes": 0}
        return [Change(kind=Kind.VOLUME, key=name, value={**record, "files": 0}) for name in fresh]

    def manifest(self, name: str) -> bytes:
        """Digest of the manifest that counts. Raises VolumeError for an unknown volume."""
        record: Any = self._decisions.journal.get(Kind.VOLUME, name)
        if record is None:
            raise VolumeError(f"volume {name} is not known")
        return bytes.fromhex(record["manifest"])

    def blobs(self, name: str) -> list[bytes]:
        """What a CNM needs of a volume: the manifest and all file contents."""
        digest = self.manifest(name)
        return [digest, *manifest_digests(read_manifest(self._blobs, digest, name), name)]

    def promised(self) -> bytes:
        """What a volume that is being made begins with: it counts before its record is there."""
        return sha256(empty_manifest()).digest()

    def manifests(self) -> dict[bytes, str]:
        """The manifests that count, each with one of the volumes that have it."""
        records: Mapping[str, Any] = self._decisions.journal.items(Kind.VOLUME)
        return {bytes.fromhex(record["manifest"]): name for name, record in records.items()}

    def contents(self, digest: bytes, name: str) -> Sequence[bytes]:
        """The file digests of a manifest; what was read is remembered, as far as there is room
        (content has one name, so it never grows old). Raises VolumeError or HalError."""
        packed = self._remembered.get(digest)
        if packed is not None:
            return _unpacked(packed)
        digests = list(
            dict.fromkeys(manifest_digests(read_manifest(self._blobs, digest, name), name))
        )
        if self._remembered_digests + len(digests) <= REMEMBERED_DIGESTS:
            self._remembered[digest] = b"".join(digests)
            self._remembered_digests += len(digests)
        return digests

    def forget_all_but(self, manifests: Collection[bytes]) -> None:
        """Remember nothing of manifests that count no more."""
        for digest in [digest for digest in self._remembered if digest not in manifests]:
            self._remembered_digests -= len(self._remembered.pop(digest)) // DIGEST_BYTES

    def live_blobs(self) -> set[bytes]:
        """What no clean-up may drop, without a look at the disk. Raises VolumeError when a
        manifest that counts is not remembered: then nobody can say it at once."""
        live: set[bytes] = set()
        for digest, name in self.manifests().items():
            packed = self._remembered.get(digest)
            if packed is None:
                raise VolumeError(f"volume {name}: its manifest was not read yet")
            live.add(digest)
            live.update(_unpacked(packed))
        return live

    def age_ms(self, name: str) -> int | None:
        """How old the state on the card is; None when it was never brought home."""
        record: Any = self._decisions.journal.get(Kind.VOLUME, name) or {}
        flushed = record.get("flushed_wall_ms")
        return None if flushed is None else max(0, self._wall_ns() // MS - flushed)

    def show(self) -> list[dict[str, Any]]:
        """`volume ls`."""
        rows = []
        for name, record in sorted(self._decisions.journal.items(Kind.VOLUME).items()):
            users = [a for a in self._decisions.assignments.values() if name in a.volumes]
            on = sorted({a.place.cnm for a in users if a.place})
            rows.append(
                {
                    "name": name,
                    "manifest": record["manifest"],
                    "bytes": record["bytes"],
                    "files": record["files"],
                    "generation": record["generation"],
                    "age_ms": self.age_ms(name),
                    "cnms": on,
                    "instances": sorted(a.instance for a in users),
                }
            )
        return rows

    def flush(
        self, cnm: Cnm, instance: str, generation: int, names: Sequence[str], done: Flushed
    ) -> None:
        """Bring the volumes of an instance home, one after the other."""
        self.flushing += 1

        def flushed(error: str) -> None:
            self.flushing -= 1
            done(error)

        VolumeFlush(self._home, cnm, instance, generation, list(names), flushed).next_volume()

    def commit(
        self,
        name: str,
        instance: str,
        generation: int,
        state: VolumeStateReply,
        done: Flushed,
    ) -> None:
        """Make a checked manifest the one that counts (rule 13)."""
        assignment = self._decisions.assignments.get(instance)
        place = assignment.place if assignment is not None else None
        present = place.generation if place is not None else None
        known = self._decisions.journal.get(Kind.VOLUME, name) is not None
        if not known or assignment is None or name not in assignment.volumes:
            done(f"volume {name} is not one that {instance} may write")
            return
        if present != generation:
            done(
                f"volume {name}: {instance} is at generation {present}, generation {generation} "
                "may not write it any more"
            )
            return
        value = {
            "manifest": state.manifest_digest.hex(),
            "generation": generation,
            "flushed_wall_ms": self._wall_ns() // MS,
            "bytes": state.bytes,
            "files": state.files,
        }

        def committed(error: JournalError | None) -> None:
            self.changes += 1
            done("" if error is None else str(error))

        self.changes += 1
        self._decisions.journal.commit([Change(kind=Kind.VOLUME, key=name, value=value)], committed)


def _unpacked(packed: bytes) -> list[bytes]:
    return [packed[at : at + DIGEST_BYTES] for at in range(0, len(packed), DIGEST_BYTES)]
