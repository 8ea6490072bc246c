"""The card's image store: manifests in the journal, layers in the blob store.

An import is `begin` (the manifest is judged whole, the answer names the blobs that are missing),
`blob` for each of those (a file descriptor, hashed on its way in), `commit` (every blob is there:
the journal takes the image). Until then nobody sees it. One whose connection has closed can be gone
on with by another, until its place is needed or it has rested for UPLOAD_IDLE_NS. A reference that
a workload uses can neither be removed nor be given another content: a failover would otherwise
start something else.
"""

import json
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from typing import Any, Final

from firmware import rpc
from firmware.events import EventCode, EventLog
from firmware.fields import Fields
from firmware.image_manifest import MAX_BLOB_BYTES, REF, Image, ImageError, normal_ref, read_digest
from firmware.journal import Change, Journal, JournalError, Kind
from firmware.volume_manifest import VolumeError
from firmware.workload import HOST_IMAGE
from hal.errors import HalError, Refused
from hal.ports import BlobStore, Reactor

MAX_IMAGES: Final = 1024
MAX_UPLOADS: Final = 16
MAX_INGESTS: Final = 4
DROPS_AT_ONCE: Final = 16  # a file each
UPLOAD_IDLE_NS: Final = 660_000_000_000  # above the time that its tool waits for one blob
INGEST_NS: Final = 540_000_000_000  # below the control socket's own limit for an answer

__all__ = ["ImageStore", "normal_ref", "register_image_methods"]


@dataclass(slots=True, kw_only=True)
class _Upload:
    image: Image
    touched_ns: int
    running: int = 0  # blobs on their way in
    caller: rpc.Caller | None = None  # whose connection began it, while that is open
    left: bool = False  # that has closed, and nobody went on with it since


class ImageStore:
    """Loop thread only. Methods raise RpcError or ImageError, having changed nothing."""

    def __init__(
        self,
        blobs: BlobStore,
        journal: Journal,
        reactor: Reactor,
        events: EventLog,
        *,
        used_by: Callable[[str], Sequence[str]],
        needed: Callable[[], Container[bytes]] = frozenset,
        left_behind: Callable[[], None] = lambda: None,
    ) -> None:
        """`used_by(ref)` names the workloads that use an image; `needed()` are the blobs that
        somebody other than the images needs; it may raise VolumeError or HalError.
        `left_behind()` is called when blobs stay that the collection of garbage has to judge."""
        self._blobs = blobs
        self._journal = journal
        self._reactor = reactor
        self._events = events
        self._used_by = used_by
        self._needed = needed
        self._left_behind = left_behind
        self._uploads: dict[str, _Upload] = {}  # by reference; at most MAX_UPLOADS
        self._watched: list[rpc.Caller] = []  # connections that began one; at most all there are
        self._ingests = 0
        self.drop_failures = 0
        self.changes = 0  # what began or was decided; more may be referenced since
        self._changing: set[str] = set()  # references with a decision on its way to the disk
        self._going: set[str] = set()  # those of them that are being removed
        self._digests: dict[str, str] = {}  # of those asked for, by reference; at most MAX_IMAGES

    def resolve(self, ref: str) -> Image | None:
        """The image that a reference means now, or None."""
        record = self._journal.get(Kind.IMAGE, normal_ref(ref))
        return Image.from_json(record["manifest"]) if record is not None else None

    def digest_of(self, ref: str) -> str:
        """Hex SHA-256 of what a reference means now: the same content has the same under any
        reference. "" when there is no such image."""
        name = normal_ref(ref)
        known = self._digests.get(name)
        if known is None:
            image = self.resolve(name)
            if image is None:
                return ""
            body = {**image.to_json(), "ref": ""}
            known = sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
            self._digests[name] = known
        return known

    def is_going(self, ref: str) -> bool:
        """Its removal is on its way to the disk: nothing new may count on it."""
        return normal_ref(ref) in self._going

    def users_of(self, ref: str) -> Sequence[str]:
        """The workloads that use an image."""
        return self._used_by(normal_ref(ref))

    def images(self) -> list[Image]:
        records = self._journal.items(Kind.IMAGE)
        return [Image.from_json(record["manifest"]) for _, record in sorted(records.items())]

    def begin(self, ref: str, manifest: object, caller: rpc.Caller | None = None) -> list[str]:
        """Judge the manifest; the hex digests that must come before `commit`. When the connection
        of `caller` ends, the import may be gone on with, unless another one needs its place."""
        image = Image.from_json(manifest)
        if normal_ref(ref) != image.ref:
            raise ImageError(("ref",), f"{normal_ref(ref)!r}, as in the request", repr(image.ref))
        if image.ref == normal_ref(HOST_IMAGE):
            raise rpc.refused(
                "reserved_name", f"{HOST_IMAGE!r} means the CNM's own root filesystem"
            )
        self._check_still(image.ref)  # a commit's layers are not known to be needed before it ends
        known = self._journal.items(Kind.IMAGE)
        if image.ref not in known and len(known) >= MAX_IMAGES:
            raise rpc.busy("too_many_images", f"{MAX_IMAGES} images are kept: remove one")
        self._check_replaceable(image)
        self._make_room(image.ref)
        previous = self._uploads.get(image.ref)
        running = previous.running if previous else 0
        now_ns = self._reactor.now_ns()
        self.changes += 1
        upload = _Upload(image=image, touched_ns=now_ns, running=running)
        self._uploads[image.ref] = upload
        if caller is not None:
            self._watch(caller, upload)
        if previous is not None:
            self._drop_unused(previous.image)
        return [digest.hex() for digest in self._missing(image)]

    def _check_replaceable(self, image: Image) -> None:
        users = self._used_by(image.ref)
        if users and self.resolve(image.ref) not in (None, image):
            raise rpc.refused(
                "image_in_use",
                f"{image.ref} has another content and is used by {', '.join(users)}: "
                f"import it under another tag",
                workloads=list(users),
            )

    def _check_still(self, ref: str) -> None:
        if ref in self._changing:
            raise rpc.busy("image_changing", f"{ref} is being changed by another request")

    def _watch(self, caller: rpc.Caller, upload: _Upload) -> None:
        upload.caller = caller
        if any(one is caller for one in self._watched):
            return
        self._watched.append(caller)

        def closed() -> None:
            self._watched = [one for one in self._watched if one is not caller]
            for one in self._uploads.values():
                if one.caller is caller:
                    one.left, one.caller = True, None

        caller.on_close(closed)

    def _make_room(self, ref: str) -> None:
        if ref in self._uploads or len(self._uploads) < MAX_UPLOADS:
            return
        idle = [name for name in self._resting() if self._uploads[name].left]
        idle = idle or self._resting(UPLOAD_IDLE_NS)
        if not idle:
            raise rpc.busy("too_many_imports", f"{MAX_UPLOADS} imports have begun and not ended")
        self._drop_unused(self._uploads.pop(idle[0]).image)

    def _resting(self, for_ns: int = 0) -> list[str]:
        """Imports with nothing on its way that were not touched for so long, oldest first."""
        before_ns = self._reactor.now_ns() - for_ns
        resting = sorted(
            (upload.touched_ns, name)
            for name, upload in self._uploads.items()
            if not upload.running and name not in self._changing and upload.touched_ns <= before_ns
        )
        return [name for _, name in resting]

    def end_idle(self) -> None:
        """Forget imports that nobody went on with: what came of them is garbage from now on."""
        for name in self._resting(UPLOAD_IDLE_NS):
            del self._uploads[name]

    def _missing(self, image: Image) -> list[bytes]:
        sizes = {layer.digest: layer.size_bytes for layer in image.layers}
        return [digest for digest, size in sizes.items() if self._blobs.has(digest) != size]

    def _upload(self, ref: str) -> _Upload:
        upload = self._uploads.get(normal_ref(ref))
        if upload is None:
            raise rpc.refused("no_import", f"no import of {normal_ref(ref)} has begun")
        upload.touched_ns = self._reactor.now_ns()
        upload.left = False
        return upload

    def check_blob(self, ref: str, digest: bytes, size_bytes: int) -> bool:
        """True when the blob is wanted, False when it is here already. Raises RpcError when it
        does not belong to the import or no more can be taken now."""
        upload = self._upload(ref)
        layer = next((one for one in upload.image.layers if one.digest == digest), None)
        if layer is None or layer.size_bytes != size_bytes:
            raise rpc.refused(
                "not_in_manifest",
                f"{digest.hex()[:12]} with {size_bytes} B is no layer of {normal_ref(ref)}",
            )
        if self._blobs.has(digest) == size_bytes:
            return False
        if self._ingests >= MAX_INGESTS:
            raise rpc.busy("too_many_ingests", f"{MAX_INGESTS} blobs are on their way in")
        return True

    def ingest(self, ref: str, digest: bytes, size_bytes: int, fd: int) -> rpc.Deferred:
        """Take a blob from a descriptor, which is closed. Call after `check_blob` said True."""
        upload, answer = self._upload(ref), rpc.Deferred()
        upload.running += 1
        self._ingests += 1

        def finished(outcome: HalError | None) -> None:
            upload.running -= 1
            self._ingests -= 1
            current = self._uploads.get(normal_ref(ref))
            if current is not None and current is not upload:
                current.running = max(current.running - 1, 0)
            upload.touched_ns = self._reactor.now_ns()
            if isinstance(outcome, Refused):
                answer.fail(rpc.refused("bad_digest", str(outcome), digest=digest.hex()))
            elif outcome is not None:
                answer.fail_from(outcome)
            else:
                if digest not in self.referenced():  # its import was begun anew without it
                    self._drop([digest])
                answer.complete({"digest": digest.hex(), "size_bytes": size_bytes})

        deadline_ns = self._reactor.now_ns() + INGEST_NS
        self._blobs.submit_ingest(fd, size_bytes, digest, deadline_ns, finished)
        return answer

    def commit(self, ref: str) -> rpc.Deferred:
        """Make the image known, if every blob of it is here."""
        upload = self._upload(ref)
        image = upload.image
        missing = self._missing(image)
        if missing:
            raise rpc.refused(
                "missing_blobs",
                f"{len(missing)} of {len(image.layers)} layers have not come",
                missing=[digest.hex() for digest in missing],
            )
        self._check_replaceable(image)
        replaced, answer = self.resolve(image.ref), rpc.Deferred()

        def durable() -> None:
            if self._uploads.get(image.ref) is upload:
                del self._uploads[image.ref]
            if replaced is not None:
                self._drop_unused(replaced)
            self._events.emit(
                EventCode.IMAGE_IMPORTED,
                f"{image.ref}, {len(image.layers)} layers",
                data={"ref": image.ref, "size_bytes": image.size_bytes},
            )
            answer.complete({"ref": image.ref, "size_bytes": image.size_bytes})

        self._decide(image.ref, {"manifest": image.to_json()}, durable, answer)
        return answer

    def remove(self, ref: str) -> rpc.Deferred:
        """Forget an image and drop the blobs that nobody else needs."""
        name, image, answer = normal_ref(ref), self.resolve(ref), rpc.Deferred()
        if image is None:
            raise rpc.refused("unknown_image", f"there is no image {name}")
        users = self._used_by(name)
        if users:
            raise rpc.refused(
                "image_in_use", f"{name} is used by {', '.join(users)}", workloads=list(users)
            )

        def durable() -> None:
            self._drop_unused(image)
            self._events.emit(EventCode.IMAGE_REMOVED, name, data={"ref": name})
            answer.complete({"ref": name})

        self._decide(name, None, durable, answer)
        return answer

    def _decide(
        self,
        ref: str,
        value: Mapping[str, object] | None,
        durable: Callable[[], None],
        answer: rpc.Deferred,
    ) -> None:
        self._check_still(ref)
        self._changing.add(ref)
        if value is None:
            self._going.add(ref)
        self.changes += 1

        def done(error: JournalError | None) -> None:
            self._changing.discard(ref)
            self._going.discard(ref)
            self.changes += 1
            self._digests.pop(ref, None)
            if error is not None:
                answer.fail(rpc.refused(f"journal_{error.code}", str(error)))
            else:
                durable()

        self._journal.commit([Change(kind=Kind.IMAGE, key=ref, value=value)], done)

    def referenced(self) -> set[bytes]:
        """Every blob that an image, or an import that has begun, needs."""
        coming = (layer for one in self._uploads.values() for layer in one.image.layers)
        referenced = {layer.digest for layer in coming}
        records: Collection[Any] = self._journal.items(Kind.IMAGE).values()
        for record in records:  # judged when they came: only looked up here
            referenced.update(bytes.fromhex(one["digest"]) for one in record["manifest"]["layers"])
        return referenced

    def _drop_unused(self, image: Image) -> None:
        self._drop(sorted({layer.digest for layer in image.layers} - self.referenced()))

    def _drop(self, digests: Collection[bytes]) -> int:
        """What can't be dropped now, or not be judged, stays an orphan: the collection of garbage
        takes it. Bounded, as the image is gone whatever becomes of its blobs."""
        dropped = 0
        try:
            needed = self._needed()
        except (HalError, VolumeError):
            self.drop_failures += 1
            self._left_behind()
            return 0
        if len(digests) > DROPS_AT_ONCE:
            self._left_behind()
        for digest in islice(digests, DROPS_AT_ONCE):
            if digest in needed:
                continue
            try:
                self._blobs.drop(digest)
                dropped += 1
            except HalError:
                self.drop_failures += 1
        return dropped


def register_image_methods(table: rpc.MethodTable, store: ImageStore) -> None:
    """image.begin, image.blob, image.commit, image.list, image.remove."""

    def read_ref(call: rpc.Call) -> str:
        return call.params.text("ref", pattern=REF, want="an image reference")

    def only_ref(call: rpc.Call) -> str:
        ref = read_ref(call)
        call.params.done()
        return ref

    def begin(call: rpc.Call) -> object:
        ref, manifest = read_ref(call), call.params.object("manifest", Fields.rest)
        call.params.done()
        return {"missing": store.begin(ref, manifest, call.caller)}

    def blob(call: rpc.Call) -> object:
        ref, digest = read_ref(call), read_digest(call.params, "digest")
        size_bytes = call.params.integer("size_bytes", low=1, high=MAX_BLOB_BYTES)
        call.params.done()
        if not store.check_blob(ref, digest, size_bytes):
            return {"digest": digest.hex(), "size_bytes": size_bytes}
        return store.ingest(ref, digest, size_bytes, call.take_fd())

    def show(call: rpc.Call) -> object:
        call.params.done()
        return [
            {
                "ref": image.ref,
                "arch": image.arch,
                "size_bytes": image.size_bytes,
                "layers": len(image.layers),
                "workloads": list(store.users_of(image.ref)),
            }
            for image in store.images()
        ]

    table.add("image.begin", rpc.Role.OPERATE, begin)
    table.add("image.blob", rpc.Role.OPERATE, blob, fds=1)
    table.add("image.commit", rpc.Role.OPERATE, lambda call: store.commit(only_ref(call)))
    table.add("image.list", rpc.Role.READ, show)
    table.add("image.remove", rpc.Role.OPERATE, lambda call: store.remove(only_ref(call)))
