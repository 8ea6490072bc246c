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
from firmware.storage import VolumeError, Volumes
from hal.errors import HalError
from hal.ports import BlobStore

PERIOD_NS: Final = 60_000 * MS
BLOBS_A_TURN: Final = 16  # a file each; the loop gets its turn in between


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
        self._waiting: deque[bytes] = deque()

    def start(self) -> None:
        """Collect now and once a minute."""
        self.collect()
        self._loop.every(PERIOD_NS, self.collect)

    def collect(self) -> None:
        """Find what can go; nothing is dropped when the references can't all be read."""
        if self._waiting or not self._idle():
            return
        try:
            live = self._images.referenced() | set(self._volumes.live_blobs())
            self._waiting.extend(d for d in self._blobs.digests() if d not in live)
        except (HalError, VolumeError):
            self.failures += 1
            return
        if self._waiting:
            self._loop.post(self._drop_some)

    def _drop_some(self) -> None:
        if not self._idle():
            self._waiting.clear()  # what is dead may be wanted again by what has just begun
            return
        for _ in range(min(BLOBS_A_TURN, len(self._waiting))):
            try:
                self._blobs.drop(self._waiting.popleft())
                self.dropped += 1
            except HalError:
                self.failures += 1
        if self._waiting:
            self._loop.post(self._drop_some)
