"""Blobs on the card that nothing needs any more: old states of volumes, old specs, cut-off imports.

What counts is referenced by an image, an import that has begun, or a volume's manifest. The rest is
dropped when nothing is being staged or brought home (a spec lives only for as long as it is being
staged; it is made again when it is needed), a few at a time.
"""

from collections import deque
from collections.abc import Callable
from typing import Final

from firmware.images import ImageStore
from firmware.loop import MS, Loop
from firmware.storage import Volumes
from firmware.volume_manifest import VolumeError
from hal.errors import HalError
from hal.ports import BlobStore

PERIOD_NS: Final = 60_000 * MS
RETRY_NS: Final = 5_000 * MS  # after one that something else came before
BLOBS_A_TURN: Final = 16  # a file each; the loop gets its turn in between
PARTS: Final = 256  # of what is there, by the first byte of the digest
PARTS_A_TURN: Final = 8  # some 5 ms with 100,000 blobs


class Garbage:
    """Loop thread only."""

    def __init__(
        self,
        loop: Loop,
        blobs: BlobStore,
        images: ImageStore,
        volumes: Volumes,
        *,
        idle: Callable[[], bool],
    ) -> None:
        """`idle()`: nothing is being staged or brought home at the moment."""
        self.dropped = 0
        self.failures = 0
        self._loop = loop
        self._blobs = blobs
        self._images = images
        self._volumes = volumes
        self._idle = idle
        self._unread: deque[tuple[bytes, str]] = deque()  # manifests, each with its volume
        self._marked: set[bytes] = set()  # manifests that were read in this collection
        self._live: set[bytes] = set()  # what they need; in the end, all that counts
        self._next_part = 0  # what is there is compared up to this one
        self._waiting: deque[bytes] = deque()
        self._collecting = False
        self._owed = False  # one that was asked for, or cut short, has yet to begin
        self._cancel_retry: Callable[[], None] = lambda: None
        self._seen = (0, 0)  # how often images and volumes had changed when all was read

    def start(self) -> None:
        """Collect now and once a minute."""
        self.collect()
        self._loop.every(PERIOD_NS, self.collect)

    def collect(self) -> None:
        """Find what can go: a manifest a turn is read, then what is there is compared a part a
        turn. Nothing is dropped when the references can't all be read. Put off while something
        moves, or when what counts has changed since it was read."""
        if self._collecting:
            return
        if not self._idle():
            self._put_off()
            return
        self._owed = False
        self._collecting = True
        self._images.end_idle()
        self._read_on()

    def collect_soon(self) -> None:
        """Something was left behind just now: a collection that is under way may not see it."""
        self._owed = True
        self.collect()

    def _put_off(self) -> None:
        self._end()
        self._owed = True
        self._cancel_retry()
        self._cancel_retry = self._loop.call_later(RETRY_NS, self._retry)

    def _retry(self) -> None:
        if self._owed:
            self.collect()

    def _end(self) -> None:
        self._collecting = False
        self._unread.clear()
        self._marked.clear()
        self._live.clear()
        self._waiting.clear()

    def _read_on(self) -> None:
        if not self._idle():
            self._put_off()
            return
        try:
            if self._unread:
                digest, name = self._unread.popleft()
                self._live.add(digest)
                self._live.update(self._volumes.contents(digest, name))
                self._marked.add(digest)
            if not self._unread:
                self._look_again()
        except (HalError, VolumeError):
            self.failures += 1
            self._end()
            return
        self._loop.post(self._read_on if self._unread else self._compare_some)

    def _look_again(self) -> None:
        """What counts may have changed between the turns: only when all of it was read does the
        comparison begin, and from that turn on a change puts all off."""
        manifests = self._volumes.manifests()
        self._unread.extend(one for one in manifests.items() if one[0] not in self._marked)
        if self._unread:
            return
        self._volumes.forget_all_but(manifests)
        self._live |= self._images.referenced()
        self._live.add(self._volumes.promised())
        self._next_part = 0
        self._seen = self._changes()

    def _compare_some(self) -> None:
        if not self._idle() or self._seen != self._changes():
            self._put_off()
            return
        until = min(self._next_part + PARTS_A_TURN, PARTS)
        try:
            for part in range(self._next_part, until):
                self._waiting.extend(d for d in self._blobs.digests(part) if d not in self._live)
        except HalError:
            self.failures += 1
            self._end()
            return
        self._next_part = until
        self._loop.post(self._compare_some if until < PARTS else self._drop_some)

    def _changes(self) -> tuple[int, int]:
        return self._images.changes, self._volumes.changes

    def _drop_some(self) -> None:
        if not self._idle() or self._seen != self._changes():
            self._put_off()  # what is dead may be wanted again by what has just begun
            return
        for _ in range(min(BLOBS_A_TURN, len(self._waiting))):
            try:
                self._blobs.drop(self._waiting.popleft())
                self.dropped += 1
            except HalError:
                self.failures += 1
        if self._waiting:
            self._loop.post(self._drop_some)
        else:
            self._end()
            self._retry()
