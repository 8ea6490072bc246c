"""The CNM's blob store as a cache: what nobody needs makes room for what is coming.

The card sends again whatever is missing, so dropping a blob costs time and never data. Kept are
the blobs that staged instances name, and those that came or were asked for within the last
YOUNG_NS: what a deploy under way has sent already must not be dropped for its next layer.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from firmware.cnm.spec import ENTRIES_LIMIT
from firmware.loop import MS
from hal.errors import HalError, StoreFull
from hal.ports import BlobStore, Buffer, Done, Reactor

YOUNG_NS: Final = 900_000 * MS  # as long as a staging may take
YOUNG_LIMIT: Final = ENTRIES_LIMIT + 4096  # the largest volume and what comes beside it, 13 MB;
# the oldest is forgotten first: it may be dropped then


class BlobSpace:
    """`hal.ports.BlobStore` over another one. Loop thread only."""

    def __init__(self, reactor: Reactor, blobs: BlobStore) -> None:
        self.counters: Counter[str] = Counter()
        self.reclaim_more: Callable[[], bool] = lambda: False  # room elsewhere, e.g. images
        self._reactor = reactor
        self._blobs = blobs
        self._needed: frozenset[bytes] = frozenset()
        self._young: OrderedDict[bytes, int] = OrderedDict()  # digest -> when it came

    def need(self, digests: Iterable[bytes]) -> None:
        """From now on these, and no others, are needed by instances."""
        self._needed = frozenset(digests)

    def wanted(self, digest: bytes) -> bool:
        """Is it here? Then it counts as fresh: a deploy is about to use it."""
        there = self._blobs.has(digest) is not None
        if there:
            self._came(digest)
        return there

    def has(self, digest: bytes) -> int | None:
        return self._blobs.has(digest)

    def read(self, digest: bytes, offset: int, length: int) -> bytes:
        return self._blobs.read(digest, offset, length)

    def put(self, data: Buffer) -> bytes:
        try:
            digest = self._blobs.put(data)
        except StoreFull:
            if not self._reclaim():
                raise
            digest = self._blobs.put(data)
        self._came(digest)
        return digest

    def begin(self, digest: bytes, size_bytes: int) -> None:
        try:
            self._blobs.begin(digest, size_bytes)
        except StoreFull:
            if not self._reclaim():
                raise
            self._blobs.begin(digest, size_bytes)

    def write_chunk(self, digest: bytes, offset: int, data: Buffer) -> None:
        self._blobs.write_chunk(digest, offset, data)

    def submit_finish(self, digest: bytes, deadline_ns: int, done: Done[None]) -> None:
        self._came(digest)
        self._blobs.submit_finish(digest, deadline_ns, done)

    def submit_ingest(
        self, fd: int, size_bytes: int, digest: bytes, deadline_ns: int, done: Done[None]
    ) -> None:
        self._came(digest)
        self._blobs.submit_ingest(fd, size_bytes, digest, deadline_ns, done)

    def drop(self, digest: bytes) -> None:
        self._young.pop(digest, None)
        self._blobs.drop(digest)

    def digests(self, first: int | None = None) -> Sequence[bytes]:
        return self._blobs.digests(first)

    def _came(self, digest: bytes) -> None:
        self._young[digest] = self._reactor.now_ns()
        self._young.move_to_end(digest)
        while len(self._young) > YOUNG_LIMIT:
            self._young.popitem(last=False)

    def _reclaim(self) -> bool:
        """Drop what is neither needed nor young; did that make any room?"""
        old_ns = self._reactor.now_ns() - YOUNG_NS
        young = {digest for digest, came_ns in self._young.items() if came_ns > old_ns}
        idle = [d for d in self._blobs.digests() if d not in self._needed and d not in young]
        for digest in idle:
            try:
                self._blobs.drop(digest)
            except HalError:
                self.counters["drop_failed"] += 1
        self.counters["dropped"] += len(idle)
        return self.reclaim_more() or bool(idle)
