"""The `BlobStore` port on a simulated disk, with real SHA-256."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from hal.errors import HalError, LinkDown, Refused, StoreFull, Unavailable
from hal.mock.disk import Partial
from hal.mock.later import run_later
from hal.ports import Buffer, Done

if TYPE_CHECKING:
    from hal.mock.disk import Disk
    from hal.mock.node import Node

SMALL_BYTES: Final = 1 << 20  # of one read, and of one `put`
DIGEST_BYTES: Final = 32
PARTIAL_LIMIT: Final = 256  # blobs on their way in


class MockBlobs:
    """The blobs of a disk, for one node. What is in the store survives the node."""

    def __init__(self, node: Node, disk: Disk) -> None:
        self._node, self._disk = node, disk
        self._kernel = node.kernel
        self._post = node.poster()

    def has(self, digest: bytes) -> int | None:
        """Size in bytes, or None."""
        data = self._disk.blobs.get(digest)
        return None if data is None else len(data)

    def read(self, digest: bytes, offset: int, length: int) -> bytes:
        """Raises Unavailable for an unknown digest, Refused beyond 1 MiB."""
        self._disk.check_read("blob")
        data = self._disk.blobs.get(digest)
        if data is None:
            raise Unavailable(f"{self._disk.name}: no blob {digest.hex()}")
        if offset < 0 or not 0 <= length <= SMALL_BYTES:
            raise Refused(f"blob {digest.hex()[:12]}: read of {length} bytes at {offset}")
        return data[offset : offset + length]

    def put(self, data: Buffer) -> bytes:
        """Store a small object; its digest. Raises Refused beyond 1 MiB, StoreFull."""
        content = bytes(data)
        if len(content) > SMALL_BYTES:
            raise Refused(f"put of {len(content)} bytes, at most {SMALL_BYTES}")
        digest = hashlib.sha256(content).digest()
        if digest not in self._disk.blobs:
            self._disk.need(len(content), "blob")
            self._admit(digest, content)
        return digest

    def begin(self, digest: bytes, size_bytes: int) -> None:
        """Room for a partial object. Raises StoreFull; Refused for another size than before."""
        if len(digest) != DIGEST_BYTES or size_bytes < 0:
            raise Refused(f"begin of {size_bytes} bytes, digest of {len(digest)} bytes")
        if digest in self._disk.blobs:
            return
        begun = self._disk.partials.get(digest)
        if begun is not None:
            if begun.size_bytes != size_bytes:
                raise Refused(
                    f"blob {digest.hex()[:12]}: begun with {begun.size_bytes} bytes, "
                    f"now {size_bytes}"
                )
            return
        if len(self._disk.partials) >= PARTIAL_LIMIT:
            raise StoreFull(f"{self._disk.name}: {PARTIAL_LIMIT} blobs are coming in already")
        self._disk.need(size_bytes, "blob")
        self._disk.partials[digest] = Partial(size_bytes, bytearray(size_bytes))
        self._disk.blob_bytes += size_bytes

    def write_chunk(self, digest: bytes, offset: int, data: Buffer) -> None:
        """Raises Refused out of its bounds, or when it was not begun."""
        if digest in self._disk.blobs:
            return
        begun = self._disk.partials.get(digest)
        if begun is None:
            raise Refused(f"blob {digest.hex()[:12]}: chunk before its begin")
        if offset < 0 or offset + len(data) > begun.size_bytes:
            raise Refused(
                f"blob {digest.hex()[:12]}: chunk of {len(data)} bytes at {offset}, "
                f"it has {begun.size_bytes}"
            )
        begun.data[offset : offset + len(data)] = data

    def submit_finish(self, digest: bytes, deadline_ns: int, done: Done[None]) -> None:
        """Refused, and dropped, if the digest is wrong."""
        if digest in self._disk.blobs:
            self._post(lambda: done(None))
            return
        begun = self._disk.partials.get(digest)
        if begun is None:
            error = Refused(f"blob {digest.hex()[:12]}: finish before its begin")
            self._post(lambda: done(error))
            return
        duration_ns = self._disk.work_ns(begun.size_bytes)
        run_later(self._node, duration_ns, deadline_ns, lambda: self._finish(digest), done)

    def submit_ingest(
        self, fd: int, size_bytes: int, digest: bytes, deadline_ns: int, done: Done[None]
    ) -> None:
        """`fd` is a handle of this world: `kernel.open_file` makes one, or a stream's end."""
        duration_ns = self._disk.work_ns(size_bytes)
        ingest = partial(self._ingest, fd, size_bytes, digest)
        run_later(self._node, duration_ns, deadline_ns, ingest, done)

    def drop(self, digest: bytes) -> None:
        """Remove it, whole or partial; absent is a success."""
        begun = self._disk.partials.pop(digest, None)
        if begun is not None:
            self._disk.blob_bytes -= begun.size_bytes
        data = self._disk.blobs.pop(digest, None)
        if data is not None:
            self._disk.blob_bytes -= len(data)

    def digests(self, first: int | None = None) -> Sequence[bytes]:
        """Of whole objects, sorted."""
        if first is None:
            return sorted(self._disk.blobs)
        return sorted(digest for digest in self._disk.blobs if digest[0] == first)

    def _admit(self, digest: bytes, content: bytes) -> None:
        self._disk.blobs[digest] = content
        self._disk.blob_bytes += len(content)
        self._kernel.note(self._disk.name, "blob", f"{digest.hex()[:12]} {len(content)}")

    def _finish(self, digest: bytes) -> HalError | None:
        begun = self._disk.partials.get(digest)
        if begun is None:
            return Refused(f"blob {digest.hex()[:12]}: dropped while it was hashed")
        self.drop(digest)
        found = hashlib.sha256(begun.data).digest()
        if found != digest:
            return Refused(f"blob {digest.hex()[:12]}: its content hashes to {found.hex()[:12]}")
        self._admit(digest, bytes(begun.data))
        return None

    def _ingest(self, fd: int, size_bytes: int, digest: bytes) -> HalError | None:
        try:
            content = self._kernel.read_all(fd, size_bytes)
        except (Unavailable, LinkDown) as exc:
            return exc
        if digest in self._disk.blobs:
            return None
        found = hashlib.sha256(content).digest()
        if len(content) != size_bytes or found != digest:
            return Refused(
                f"blob {digest.hex()[:12]}: {len(content)} of {size_bytes} bytes came, "
                f"which hash to {found.hex()[:12]}"
            )
        try:
            self._disk.need(size_bytes, "blob")
        except HalError as exc:
            return exc
        self.drop(digest)
        self._admit(digest, content)
        return None
