"""Root file systems of instances, made from image layers.

With overlayfs a layer list is unpacked once (`images/<digest of the list>`, shared, read-only) and
each instance gets its own upper directory on it; without, each instance gets a copy. Where the
kernel refuses the first overlay, copies are made from then on; where it refuses a later one, that
instance gets a copy. Layout below the state directory:

    images/<list digest>       unpacked layers    image-marks/<list digest>   it is complete
    instances/<key>/rootfs     what the instance sees; with an overlay also its upper and work
                               directories, and in `image` the list digest that it stands on
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Final, Protocol

from firmware.loop import MS
from hal.errors import HalError, StoreFailed, StoreFull
from hal.ports import Done, Files, Reactor, Trees

UNPACK_DEADLINE_MS: Final = 300_000
IMAGES: Final = "images"
MARKS: Final = "image-marks"
INSTANCES: Final = "instances"
IMAGE_NOTE: Final = "image"  # in an instance's directory: the image that it stands on


class Overlay(Protocol):
    """overlayfs, where this host lets us. Paths are absolute; both calls take under 1 ms."""

    def mount(self, lower: str, upper: str, work: str, target: str) -> None:
        """The three last directories are made. Raises HalError."""
        ...

    def unmount(self, target: str) -> None:
        """What is not mounted is a success. Raises HalError."""
        ...


class RootfsFactory:
    """Loop thread only."""

    def __init__(
        self,
        reactor: Reactor,
        trees: Trees,
        files: Files,
        path_of: Callable[[str], str],
        overlay: Overlay | None,
    ) -> None:
        """`path_of` makes an absolute path of one below the state directory."""
        self.counters: Counter[str] = Counter()
        self._reactor = reactor
        self._trees = trees
        self._files = files
        self._path_of = path_of
        self._overlay = overlay
        self._copying = overlay is None  # no overlays are made; those there are must still be ended
        self._proven = False  # this kernel has made one
        self._unpacking: dict[str, list[Done[None]]] = {}  # bounded by the instances being staged

    def path(self, root: str) -> str:
        """Absolute on the CNM, of what `submit_prepare` gave."""
        return self._path_of(root)

    def submit_prepare(self, layers: Sequence[bytes], key: str, done: Done[str]) -> None:
        """`done` with the path of the root file system, relative to the state directory."""
        home, root = f"{INSTANCES}/{key}", f"{INSTANCES}/{key}/rootfs"
        overlay = self._overlay
        if overlay is None or self._copying:
            self._copy(layers, key, done)
            return

        def unpacked(error: HalError | None) -> None:
            try:
                if error is not None:
                    raise error
                mounted = not self._copying and self._mount(overlay, image, home)
            except HalError as exc:
                done(exc)
                return
            if mounted:
                done(root)
            else:
                self._copy(layers, key, done)

        try:
            self.remove(key)  # of a staging that was cut short
        except HalError as exc:
            done(exc)
            return
        image = _image_of(layers)
        self._image(layers, image, unpacked)

    def _copy(self, layers: Sequence[bytes], key: str, done: Done[str]) -> None:
        root = f"{INSTANCES}/{key}/rootfs"
        try:
            self.remove(key)
        except HalError as exc:
            done(exc)
            return
        self._unpack(layers, root, lambda error: done(root if error is None else error))

    def remove(self, key: str) -> None:
        """Absent is a success. Raises HalError."""
        if self._overlay is not None:
            self._overlay.unmount(self._path_of(f"{INSTANCES}/{key}/rootfs"))
        self._files.remove(f"{INSTANCES}/{key}")

    def sweep(self, keep: Collection[str]) -> None:
        """Delete the root file systems of all other keys. Raises HalError, the first one, when
        all that can be deleted is."""
        failed: HalError | None = None
        for key in self._files.names(INSTANCES):
            if key not in keep:
                self.counters["swept"] += 1
                try:
                    self.remove(key)
                except HalError as exc:
                    failed = failed or exc
        if failed is not None:
            raise failed

    def drop_unused_images(self) -> bool:
        """Give back the space of unpacked images that no instance stands on; did any go?"""
        try:
            unused = self._unused_images()
        except HalError:
            self.counters["drop_failed"] += 1
            return False
        dropped = 0
        for image in unused:
            try:
                self._files.remove(f"{MARKS}/{image}")
                self._files.remove(f"{IMAGES}/{image}")
                dropped += 1
            except HalError:
                self.counters["drop_failed"] += 1
        self.counters["images_dropped"] += dropped
        return dropped > 0

    def _unused_images(self) -> list[str]:
        notes = [f"{INSTANCES}/{key}/{IMAGE_NOTE}" for key in self._files.names(INSTANCES)]
        used = {
            self._files.read(note).decode(errors="replace")
            for note in notes
            if self._files.size_bytes(note) is not None
        }
        used |= self._unpacking.keys()
        return [name for name in self._files.names(IMAGES) if name not in used]

    def _mount(self, overlay: Overlay, image: str, home: str) -> bool:
        """False where the kernel refuses. Raises HalError, as of a disk that is full."""
        self._files.write(f"{home}/{IMAGE_NOTE}", image.encode())
        try:
            overlay.mount(
                self._path_of(f"{IMAGES}/{image}"),
                self._path_of(f"{home}/upper"),
                self._path_of(f"{home}/work"),
                self._path_of(f"{home}/rootfs"),
            )
        except (StoreFull, StoreFailed):
            raise
        except HalError:
            self.counters["overlay_refused"] += 1
            self._copying = not self._proven
            return False
        self._proven = True
        return True

    def _image(self, layers: Sequence[bytes], image: str, done: Done[None]) -> None:
        """Unpack the layer list once, however many wait for it."""
        if image in self._unpacking:
            self._unpacking[image].append(done)
            return
        if self._files.size_bytes(f"{MARKS}/{image}") is not None:
            done(None)
            return
        self._unpacking[image] = [done]

        def unpacked(result: HalError | None) -> None:
            if result is None:
                try:
                    self._files.write(f"{MARKS}/{image}", b"")
                except HalError as exc:
                    result = exc
            if result is not None:
                for waiter in self._unpacking.pop(image):
                    waiter(result)
                return
            for waiter in self._unpacking[image]:  # also one that asks again meanwhile
                waiter(None)
            del self._unpacking[image]  # until now it counted as used

        self._unpack(layers, f"{IMAGES}/{image}", unpacked)

    def _unpack(self, layers: Sequence[bytes], path: str, done: Done[None]) -> None:
        self.counters["unpacks"] += 1
        deadline_ns = self._reactor.now_ns() + UNPACK_DEADLINE_MS * MS
        try:
            self._trees.submit_unpack(layers, self._path_of(path), deadline_ns, done)
        except HalError as exc:
            done(exc)


def _image_of(layers: Sequence[bytes]) -> str:
    return hashlib.sha256(b"".join(layers)).hexdigest()
