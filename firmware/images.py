"""The card's image store: manifests in the journal, layers in the blob store.

An import is `begin` (the manifest is judged whole, the answer names the blobs that are missing),
`blob` for each of those (a file descriptor, hashed on its way in), `commit` (every blob is there:
the journal takes the image). Until then nobody sees it. A reference that a workload uses can
neither be removed nor be given another content: a failover would otherwise start something else.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from firmware import rpc
from firmware.events import EventCode, EventLog
from firmware.fields import Fields
from firmware.image_manifest import MAX_BLOB_BYTES, REF, Image, ImageError, normal_ref, read_digest
from firmware.journal import Change, Journal, JournalError, Kind
from firmware.workload import HOST_IMAGE
from hal.errors import HalError, Refused
from hal.ports import BlobStore, Reactor

MAX_IMAGES: Final = 1024
MAX_UPLOADS: Final = 16
MAX_INGESTS: Final = 4
UPLOAD_IDLE_NS: Final = 3600 * 1_000_000_000
INGEST_NS: Final = 540_000_000_000  # below the control socket's own limit for an answer

__all__ = ["ImageStore", "normal_ref", "register_image_methods"]


@dataclass(slots=True, kw_only=True)
class _Upload:
    image: Image
    touched_ns: int
    running: int = 0  # blobs on their way in


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
        keeps: Callable[[bytes], bool] = lambda _digest: False,
    ) -> None:
        """`used_by(ref)` names the workloads that use an image; `keeps(digest)` says whether
        somebody other than the images still needs a blob."""
        self._blobs = blobs
        self._journal = journal
        self._reactor = reactor
        self._events = events
        self._used_by = used_by
        self._keeps = keeps
        self._uploads: dict[str, _Upload] = {}  # by reference; at most MAX_UPLOADS
        self._ingests = 0
        self.drop_failures = 0
        self._changing: set[str] = set()  # references with a decision on its way to the disk
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

    def users_of(self, ref: str) -> Sequence[str]:
        """The workloads that use an image."""
        return self._used_by(normal_ref(ref))

    def images(self) -> list[Image]:
        records = self._journal.items(Kind.IMAGE)
        return [Image.from_json(record["manifest"]) for _, record in sorted(records.items())]

    def begin(self, ref: str, manifest: object) -> list[str]:
        """Judge the manifest; the hex digests that must come before `commit`."""
        image = Image.from_json(manifest)
        if normal_ref(ref) != image.ref:
            raise ImageError(("ref",), f"{normal_ref(ref)!r}, as in the request", repr(image.ref))
        if image.ref == normal_ref(HOST_IMAGE):
            raise rpc.refused(
                "reserved_name", f"{HOST_IMAGE!r} means the CNM's own root filesystem"
            )
        known = self._journal.items(Kind.IMAGE)
        if image.ref not in known and len(known) >= MAX_IMAGES:
            raise rpc.busy("too_many_images", f"{MAX_IMAGES} images are kept: remove one")
        self._check_replaceable(image)
        self._make_room(image.ref)
        previous = self._uploads.get(image.ref)
        running = previous.running if previous else 0
        now_ns = self._reactor.now_ns()
        self._uploads[image.ref] = _Upload(image=image, touched_ns=now_ns, running=running)
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

    def _make_room(self, ref: str) -> None:
        if ref in self._uploads or len(self._uploads) < MAX_UPLOADS:
            return
        now_ns = self._reactor.now_ns()
        idle = [
            (upload.touched_ns, name)
            for name, upload in self._uploads.items()
            if upload.running == 0 and now_ns - upload.touched_ns >= UPLOAD_IDLE_NS
        ]
        if not idle:
            raise rpc.busy("too_many_imports", f"{MAX_UPLOADS} imports have begun and not ended")
        self._drop_unused(self._uploads.pop(min(idle)[1]).image)

    def _missing(self, image: Image) -> list[bytes]:
        sizes = {layer.digest: layer.size_bytes for layer in image.layers}
        return [digest for digest, size in sizes.items() if self._blobs.has(digest) != size]

    def _upload(self, ref: str) -> _Upload:
        upload = self._uploads.get(normal_ref(ref))
        if upload is None:
            raise rpc.refused("no_import", f"no import of {normal_ref(ref)} has begun")
        upload.touched_ns = self._reactor.now_ns()
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
        if ref in self._changing:
            raise rpc.busy("image_changing", f"{ref} is being changed by another request")
        self._changing.add(ref)

        def done(error: JournalError | None) -> None:
            self._changing.discard(ref)
            self._digests.pop(ref, None)
            if error is not None:
                answer.fail(rpc.refused(f"journal_{error.code}", str(error)))
            else:
                durable()

        self._journal.commit([Change(kind=Kind.IMAGE, key=ref, value=value)], done)

    def referenced(self) -> set[bytes]:
        """Every blob that an image, or an import that has begun, needs."""
        images = [*self.images(), *(upload.image for upload in self._uploads.values())]
        return {layer.digest for image in images for layer in image.layers}

    def _drop_unused(self, image: Image) -> None:
        self._drop(sorted({layer.digest for layer in image.layers} - self.referenced()))

    def _drop(self, digests: Iterable[bytes]) -> int:
        dropped = 0
        for digest in digests:
            if self._keeps(digest):
                continue
            try:
                self._blobs.drop(digest)
                dropped += 1
            except HalError:  # it stays an orphan, and the next start tries again
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
        return {"missing": store.begin(ref, manifest)}

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
