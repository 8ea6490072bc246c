"""The hot tier: volumes as directories on the CNM, checked out before a start, scanned at a flush.

A volume lies at `volumes/<name>` for as long as an instance of the table names it, and no longer:
what the card has not flushed by then it has given up. While an instance that runs uses it, or one
is prepared with the same manifest, a volume is shared as it is and never checked out over: that
would pull files from under it.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final

from firmware.cnm.records import RefusedError
from firmware.cnm.spec import write_manifest
from firmware.loop import MS
from hal.errors import HalError
from hal.ports import BlobStore, Done, FileInfo, Files, Reactor, Trees
from protocol.apf import FlushState, RefusalReason, VolumeStateReply

VOLUMES: Final = "volumes"
SLASH: Final = "@"  # in directory names; no volume's name holds it
DEADLINE_MS: Final = 300_000
FLUSHES_LIMIT: Final = 64  # finished ones are dropped oldest first; running ones refuse a new one
PUT_LIMIT_BYTES: Final = 1 << 20  # BlobStore.put
NO_DIGEST: Final = bytes(32)

Entries = Sequence[tuple[FileInfo, bytes]]
Gather = Callable[[Done[Entries]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Flush:
    volume: str
    state: FlushState
    manifest: bytes = NO_DIGEST
    files: int = 0
    size_bytes: int = 0
    text: str = ""


def directory_of(volume: str) -> str:
    """Below the state directory. Names were checked by `spec`."""
    return f"{VOLUMES}/{volume.replace('/', SLASH)}"


class HotTier:
    """Loop thread only."""

    def __init__(
        self,
        reactor: Reactor,
        trees: Trees,
        blobs: BlobStore,
        files: Files,
        path_of: Callable[[str], str],
    ) -> None:
        self._reactor = reactor
        self._trees = trees
        self._blobs = blobs
        self._files = files
        self._path_of = path_of
        self._fillings: dict[str, list[Done[None]]] = {}  # under way; bounded by the stagings
        self._flushes: OrderedDict[int, _Flush] = OrderedDict()
        self._next_flush = 0

    def path(self, volume: str) -> str:
        """Absolute on the CNM."""
        return self._path_of(directory_of(volume))

    def exists(self, volume: str) -> bool:
        return directory_of(volume).removeprefix(f"{VOLUMES}/") in self._files.names(VOLUMES)

    def submit_fill(self, volume: str, gather: Gather, done: Done[None]) -> None:
        """Make it hold exactly the entries that `gather` finds. Who asks while it is being filled
        gets what the first one asked for, and its own `gather` is not called: two checkouts of one
        volume would pull files from under each other."""
        if volume in self._fillings:
            self._fillings[volume].append(done)
            return
        self._fillings[volume] = [done]

        def finish(result: HalError | None) -> None:
            for waiter in self._fillings.pop(volume):
                waiter(result)

        def gathered(entries: Entries | HalError) -> None:
            if isinstance(entries, HalError):
                finish(entries)
                return
            deadline_ns = self._reactor.now_ns() + DEADLINE_MS * MS
            try:
                self._trees.submit_checkout(entries, self.path(volume), deadline_ns, finish)
            except HalError as exc:
                finish(exc)

        gather(gathered)

    def sweep(self, keep: Collection[str]) -> None:
        """Delete all volumes that are neither kept nor being scanned. Raises HalError, the first
        one, when all that can be deleted is."""
        scanning = {f.volume for f in self._flushes.values() if f.state is FlushState.SCANNING}
        held = {directory_of(volume) for volume in (*keep, *scanning)}
        failed: HalError | None = None
        for name in self._files.names(VOLUMES):
            if f"{VOLUMES}/{name}" not in held:
                try:
                    self._files.remove(f"{VOLUMES}/{name}")
                except HalError as exc:
                    failed = failed or exc
        if failed is not None:
            raise failed

    def flush(self, volume: str) -> int:
        """Begin to read it into the blob store; ask `state` how far it is. One that is being
        scanned already is scanned again: it may have changed since. Raises RefusedError."""
        self._make_room()
        self._next_flush = (self._next_flush + 1) & 0xFFFF_FFFF
        number = self._next_flush
        self._flushes[number] = _Flush(volume=volume, state=FlushState.SCANNING)
        deadline_ns = self._reactor.now_ns() + DEADLINE_MS * MS
        try:
            self._trees.submit_scan(
                self.path(volume), deadline_ns, lambda result: self._scanned(number, result)
            )
        except HalError as exc:
            self._scanned(number, exc)
        return number

    def state(self, volume: str, number: int) -> VolumeStateReply:
        """Raises RefusedError for a flush that is not known (any more)."""
        flush = self._flushes.get(number)
        if flush is None or flush.volume != volume:
            raise RefusedError(RefusalReason.BAD_STATE, f"no flush {number} of {volume}")
        return VolumeStateReply(
            state=flush.state,
            manifest_digest=flush.manifest,
            files=flush.files,
            bytes=flush.size_bytes,
            text=flush.text,
        )

    def _make_room(self) -> None:
        while len(self._flushes) >= FLUSHES_LIMIT:
            over = [n for n, f in self._flushes.items() if f.state is not FlushState.SCANNING]
            if not over:
                text = f"{FLUSHES_LIMIT} flushes are under way"
                raise RefusedError(RefusalReason.BUSY, text, retry_after_ms=500)
            del self._flushes[over[0]]

    def _scanned(self, number: int, result: Entries | HalError) -> None:
        flush = self._flushes[number]
        if isinstance(result, HalError):
            self._fail(number, str(result))
            return
        data = write_manifest(result)
        files = [info for info, _ in result if info.kind == "file"]
        total = sum(info.size_bytes for info in files)

        def stored(manifest: bytes | HalError) -> None:
            if isinstance(manifest, HalError):
                self._fail(number, str(manifest))
                return
            self._flushes[number] = _Flush(
                volume=flush.volume,
                state=FlushState.READY,
                manifest=manifest,
                files=len(files),
                size_bytes=total,
            )

        store_blob(self._blobs, self._reactor, data, stored)

    def _fail(self, number: int, text: str) -> None:
        volume = self._flushes[number].volume
        self._flushes[number] = _Flush(volume=volume, state=FlushState.FAILED, text=text)


def store_blob(blobs: BlobStore, reactor: Reactor, data: bytes, done: Done[bytes]) -> None:
    """Store `data` of any size; `done` with its digest."""
    if len(data) <= PUT_LIMIT_BYTES:
        try:
            digest = blobs.put(data)
        except HalError as exc:
            done(exc)
        else:
            done(digest)
        return
    digest = hashlib.sha256(data).digest()
    try:
        if blobs.has(digest) is not None:
            done(digest)
            return
        blobs.begin(digest, len(data))
        for offset in range(0, len(data), PUT_LIMIT_BYTES):
            blobs.write_chunk(digest, offset, data[offset : offset + PUT_LIMIT_BYTES])
    except HalError as exc:
        done(exc)
        return
    blobs.submit_finish(
        digest,
        reactor.now_ns() + DEADLINE_MS * MS,
        lambda result: done(digest if result is None else result),
    )
