"""Root file systems: an image is unpacked once where overlays work, and copied where not."""

import pytest

from firmware.cnm.rootfs import RootfsFactory
from firmware.cnm.volumes import HotTier
from firmware.loop import Loop
from hal.errors import HalError, StoreFull, Unavailable
from hal.mock.blobs import MockBlobs
from hal.mock.disk import Disk
from hal.mock.files import MockFiles
from hal.mock.kernel import VirtualKernel
from hal.mock.trees import MockTrees
from tests.unit.firmware.cnm.mock_cnm import layer


class FakeOverlay:
    def __init__(self) -> None:
        self.mounted: dict[str, str] = {}
        self.refuse = False
        self.full = 0  # that many mounts more find no space

    def mount(self, lower: str, upper: str, work: str, target: str) -> None:
        if self.full:
            self.full -= 1
            raise StoreFull("no space for the upper directory")
        if self.refuse:
            raise Unavailable("no overlayfs in this kernel")
        self.mounted[target] = lower

    def unmount(self, target: str) -> None:
        self.mounted.pop(target, None)


class Bench:
    def __init__(self, overlay: FakeOverlay | None) -> None:
        self.kernel = VirtualKernel(1)
        self.loop = Loop(self.kernel.node("cnm").clock)
        node = self.kernel.attach("cnm", self.loop)
        self.disk = Disk(self.kernel, "disk")
        self.files = MockFiles(self.disk, "state")
        self.blobs = MockBlobs(node, self.disk)
        self.trees = MockTrees(node, self.disk)
        self.make(overlay)

    def make(self, overlay: FakeOverlay | None) -> None:
        """A factory, as after an agent's restart."""
        self.factory = RootfsFactory(
            self.loop, self.trees, self.files, lambda path: f"/state/{path}", overlay
        )

    def prepare(self, *keys: str, files: dict[str, bytes] | None = None) -> list[str | HalError]:
        digest = self.blobs.put(layer(files or {"bin/sh": b"shell"}))
        got: list[str | HalError] = []
        for key in keys:
            self.factory.submit_prepare([digest], key, got.append)
        assert self.kernel.run_until(lambda: len(got) == len(keys), 10**10)
        return got


@pytest.fixture
def overlay() -> FakeOverlay:
    return FakeOverlay()


def test_with_overlays_an_image_is_unpacked_once_for_all(overlay) -> None:
    bench = Bench(overlay)
    assert bench.prepare("a", "b") == ["instances/a/rootfs", "instances/b/rootfs"]
    bench.prepare("c")
    assert bench.factory.counters["unpacks"] == 1
    assert len(set(overlay.mounted.values())) == 1
    assert len(overlay.mounted) == 3


def test_an_agent_that_comes_after_another_finds_the_image_unpacked(overlay) -> None:
    bench = Bench(overlay)
    bench.prepare("a")
    bench.make(overlay)
    bench.prepare("b")
    assert bench.factory.counters["unpacks"] == 0


def test_an_image_whose_unpacking_was_cut_short_is_unpacked_again(overlay) -> None:
    bench = Bench(overlay)
    bench.prepare("a")
    for mark in bench.files.names("image-marks"):
        bench.files.remove(f"image-marks/{mark}")
    bench.make(overlay)
    bench.prepare("b")
    assert bench.factory.counters["unpacks"] == 1


def test_where_the_kernel_refuses_overlays_each_instance_gets_a_copy(overlay) -> None:
    overlay.refuse = True
    bench = Bench(overlay)
    assert bench.prepare("a", "b") == ["instances/a/rootfs", "instances/b/rootfs"]
    assert bench.factory.counters["overlay_refused"] == 1
    for key in ("a", "b"):
        assert bench.files.read(f"instances/{key}/rootfs/bin/sh") == b"shell"


def test_without_overlays_each_instance_gets_a_copy() -> None:
    bench = Bench(None)
    bench.prepare("a")
    assert bench.files.read("instances/a/rootfs/bin/sh") == b"shell"
    bench.factory.remove("a")
    assert bench.files.names("instances") == []


def test_a_bad_layer_is_an_error_for_everybody_who_waits(overlay) -> None:
    bench = Bench(overlay)
    digest = bench.blobs.put(b"no tar" * 200)
    got: list[str | HalError] = []
    for key in ("a", "b"):
        bench.factory.submit_prepare([digest], key, got.append)
    assert bench.kernel.run_until(lambda: len(got) == 2, 10**10)
    assert all(isinstance(result, HalError) for result in got)


def test_a_sweep_removes_what_nobody_keeps(overlay) -> None:
    bench = Bench(overlay)
    bench.prepare("a", "b")
    bench.factory.sweep({"b"})
    assert bench.files.names("instances") == ["b"]
    assert list(overlay.mounted) == ["/state/instances/b/rootfs"]


def test_images_in_use_are_not_dropped_for_room(overlay) -> None:
    bench = Bench(overlay)
    bench.prepare("a")
    bench.prepare("b", files={"other": b"1"})
    bench.factory.remove("b")
    assert bench.factory.drop_unused_images()
    assert len(bench.files.names("images")) == 1
    assert not bench.factory.drop_unused_images()


def test_a_full_disk_is_an_error_of_that_staging_and_overlays_go_on(overlay) -> None:
    bench = Bench(overlay)
    overlay.full = 1
    first, second = bench.prepare("a", "b")
    assert isinstance(first, StoreFull)
    assert second == "instances/b/rootfs"
    assert bench.prepare("a") == ["instances/a/rootfs"]
    assert sorted(overlay.mounted) == ["/state/instances/a/rootfs", "/state/instances/b/rootfs"]
    assert bench.factory.counters["unpacks"] == 1


def test_what_stands_on_an_overlay_is_unmounted_also_when_a_later_one_is_refused(overlay) -> None:
    bench = Bench(overlay)
    bench.prepare("a")
    overlay.refuse = True
    bench.prepare("b")
    assert bench.files.read("instances/b/rootfs/bin/sh") == b"shell"
    bench.factory.remove("a")
    assert overlay.mounted == {}
    overlay.refuse = False  # it was that one only: the kernel can do it
    bench.prepare("c")
    assert list(overlay.mounted) == ["/state/instances/c/rootfs"]


def test_an_image_is_kept_until_all_who_waited_for_it_stand_on_it(overlay) -> None:
    bench = Bench(overlay)
    overlay.full = 1
    digest = bench.blobs.put(layer({"bin/sh": b"shell"}))
    got: list[str | HalError] = []

    def full(result: str | HalError) -> None:
        got.append(result)
        bench.factory.drop_unused_images()

    bench.factory.submit_prepare([digest], "a", full)
    bench.factory.submit_prepare([digest], "b", got.append)
    assert bench.kernel.run_until(lambda: len(got) == 2, 10**10)
    assert len(bench.files.names("images")) == 1
    bench.factory.sweep(())
    assert bench.factory.drop_unused_images()


class StuckFiles(MockFiles):
    """Some paths can't be removed."""

    stuck: tuple[str, ...] = ()

    def remove(self, path: str) -> None:
        if path in self.stuck:
            raise Unavailable(f"{path}: device or resource busy")
        super().remove(path)


def test_what_can_not_be_removed_does_not_hold_up_the_others(overlay) -> None:
    bench = Bench(overlay)
    bench.files = StuckFiles(bench.disk, "state")
    bench.make(overlay)
    bench.prepare("a", "b")
    bench.prepare("c", files={"other": b"1"})
    bench.files.stuck = ("instances/a",)
    with pytest.raises(Unavailable, match="instances/a"):
        bench.factory.sweep({"c"})
    assert bench.files.names("instances") == ["a", "c"]

    bench.files.stuck = ()
    bench.factory.sweep(())
    images = bench.files.names("images")
    bench.files.stuck = (f"images/{images[0]}",)
    assert bench.factory.drop_unused_images()
    assert bench.files.names("images") == images[:1]


def test_a_volume_that_can_not_be_removed_does_not_hold_up_the_others() -> None:
    bench = Bench(None)
    files = StuckFiles(bench.disk, "state")
    tier = HotTier(bench.loop, bench.trees, bench.blobs, files, lambda path: f"/state/{path}")
    for name in ("a", "b"):
        files.write(f"volumes/{name}/f", b"1")
    files.stuck = ("volumes/a",)
    with pytest.raises(Unavailable, match="volumes/a"):
        tier.sweep(())
    assert files.names("volumes") == ["a"]
